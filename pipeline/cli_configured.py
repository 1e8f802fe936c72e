"""What the files of commands share: the configuration, and who is asking."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.config import Config


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command the configuration as its first argument."""

    @click.pass_obj
    @wraps(command)
    def wrapper(load: Callable[[], Config], *args: Any, **kwargs: Any) -> None:
        command(load(), *args, **kwargs)

    return wrapper


def name_asker(by: str | None, most_chars: int) -> str:
    """Return who says so: who is named, or else who is logged in."""
    return (by or os.environ.get("USER") or getpass.getuser())[:most_chars]
