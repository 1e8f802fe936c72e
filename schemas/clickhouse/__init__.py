"""Numbered ClickHouse migrations; the same files for a server and for the embedded engine.

Each file holds statements separated by a line that is a lone semicolon.
``{requests_ttl_days}`` and its like are filled in from the configuration.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import NamedTuple

_NAME = re.compile(r"^(\d{3})_([a-z0-9_]+)\.sql$")


class Migration(NamedTuple):
    number: int
    name: str
    statements: tuple[str, ...]


def read_migrations() -> tuple[Migration, ...]:
    """Return every migration in order; raises ValueError when a number is missing or double."""
    found = []
    for file in resources.files(__name__).iterdir():
        if match := _NAME.match(file.name):
            statements = tuple(
                text
                for part in file.read_text(encoding="utf-8").split("\n;\n")
                if (text := part.strip())
            )
            found.append(Migration(int(match[1]), match[2], statements))
    found.sort()
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations are not numbered 1, 2, 3 …: {[m.number for m in found]}")
    return tuple(found)
