"""What is known of one request while it is served: the notes from which its event is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gateway.answer import Answer, Usage
from gateway.asked import Asked
from gateway.errors import GatewayError
from gateway.stages import Verdict


@dataclass(slots=True)
class Exchange:
    """Mutable, and of one request alone. Times are of a steady clock, in seconds."""

    asked: Asked
    answer: Answer
    started_s: float
    #: The name of the configured model that was asked last; not the client's after a fallback.
    model: str
    provider: str | None = None
    region: str | None = None
    attempts: int = 0
    first_chunk_s: float | None = None
    ended_s: float = 0.0
    error: GatewayError | None = None
    cache: Literal["hit", "miss", "bypass"] | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    #: Of an upstream's usage, whatever came of the answer.
    usage: Usage = field(default_factory=Usage)

    @property
    def fallback_from(self) -> str | None:
        return self.asked.model if self.model != self.asked.model else None

    @property
    def duration_s(self) -> float:
        return max(0.0, self.ended_s - self.started_s)

    @property
    def error_type(self) -> str | None:
        return None if self.error is None else self.error.code.value
