"""The script: what goes wrong in the demo's hour, when, and for whom.

Nothing but the company reads it. The detectors are not told.
"""

from __future__ import annotations

from msgspec import Struct

from pipeline.demo.trace import HOUR_MS
from schemas.signal import Family


class PromptRollout(Struct, frozen=True, tag=True):
    """A new version of a route's prompt template goes out to everyone, and back again."""

    version: str
    #: Share of the answers to this version that decline.
    refusal_rate: float


class Outage(Struct, frozen=True, tag=True):
    """Attempts fail. The gateway rescues some of them with another provider."""

    failure_rate: float


class Slowdown(Struct, frozen=True, tag=True):
    """Every output token takes longer."""

    token_time_factor: float


class ScriptedIncident(Struct, frozen=True):
    """One thing that goes wrong."""

    name: str
    family: Family
    #: Fractions of the hour; a request is touched when it arrives in between.
    starts: float
    ends: float
    #: The traffic that it touches, dimension → value.
    where: dict[str, str]
    effect: PromptRollout | Outage | Slowdown

    @property
    def labels(self) -> dict[str, str]:
        """What a good explanation would name."""
        if isinstance(self.effect, PromptRollout):
            return {**self.where, "prompt_version": self.effect.version}
        return self.where

    def play_from(self, start_ms: int) -> PlayedIncident:
        """Return it with its times, for an hour that starts at `start_ms`."""
        return PlayedIncident(
            name=self.name,
            family=self.family,
            started_ms=start_ms + round(self.starts * HOUR_MS),
            ended_ms=start_ms + round(self.ends * HOUR_MS),
            where=self.labels,
        )


class PlayedIncident(Struct, frozen=True):
    """A scripted incident in one run; milliseconds since the epoch."""

    name: str
    family: Family
    started_ms: int
    ended_ms: int
    where: dict[str, str]


#: Each begins when what it touches has had a few hundred requests, and ends early enough for
#: the recovery to be seen.
SCRIPT: tuple[ScriptedIncident, ...] = (
    ScriptedIncident(
        name="a prompt template that declines",
        family=Family.REFUSAL,
        starts=15 / 60,
        ends=24 / 60,
        where={"route": "support"},
        effect=PromptRollout(version="v7", refusal_rate=0.38),
    ),
    ScriptedIncident(
        name="a provider fails",
        family=Family.ERROR,
        starts=27 / 60,
        ends=35 / 60,
        where={"provider": "openai"},
        effect=Outage(failure_rate=0.45),
    ),
    ScriptedIncident(
        name="a provider slow in one region",
        family=Family.LATENCY,
        starts=37.5 / 60,
        ends=45 / 60,
        where={"provider": "anthropic", "region": "eu-west"},
        effect=Slowdown(token_time_factor=2.5),
    ),
)
