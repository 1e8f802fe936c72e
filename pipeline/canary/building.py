"""From the configuration to cases that are ready to be asked."""

from __future__ import annotations

from pathlib import Path

from pipeline.canary.asking import Endpoint
from pipeline.canary.cases import load_cases
from pipeline.canary.running import Canary
from pipeline.config import Config
from pipeline.encoders.static import StaticEncoder


def build_canary(config: Config, cases: Path, model: str | None) -> Canary:
    """The cases of a file, ready to be asked; `model` instead of the configured one.

    Raises:
        ConfigError: the file, or whom to ask.
    """
    changes = {} if model is None else {"model": model}
    settings = config.canary.model_copy(update=changes)
    return Canary(
        load_cases(cases),
        Endpoint(settings),
        StaticEncoder.load,
        confidence=settings.confidence,
        concurrency=settings.concurrency,
    )
