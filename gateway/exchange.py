"""What is known of one request while it is served: the notes from which its event is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gateway.answer import Answer, Usage
from gateway.asked import Asked
from gateway.errors import GatewayError
from gateway.stages import Looked, Verdict


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
    #: What the cache said; None where none was asked.
    looked: Looked | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    #: Of an upstream's usage, whatever came of the answer.
    usage: Usage = field(default_factory=Usage)

    @property
    def cache(self) -> Literal["hit", "miss", "bypass"] | None:
        return None if self.looked is None else self.looked.outcome

    @property
    def is_worth_keeping(self) -> bool:
        """Whether a cache may answer with this: a whole answer of the model itself.

        A guard that has spoken would not speak again with an answer from the cache.
        """
        if self.looked is None or self.looked.place is None:
            return False
        if self.verdicts or self.fallback_from is not None:
            return False
        answer = self.answer
        ended = answer.reasons == ["stop"] and bool(answer.text)
        return ended and not answer.has_tool_calls and not answer.refused

    @property
    def fallback_from(self) -> str | None:
        return self.asked.model if self.model != self.asked.model else None

    @property
    def duration_s(self) -> float:
        return max(0.0, self.ended_s - self.started_s)

    @property
    def error_type(self) -> str | None:
        return None if self.error is None else self.error.code.value
