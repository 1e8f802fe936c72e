"""A book of incidents at work in small worlds that are made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.incidents.book import BookConfig, Entry, IncidentBook
from schemas.alarm import Alarm, Rate
from schemas.incident import Cause, Incident
from schemas.signal import Family, Signal
from tests.support.alarms import Traffic, look_at, observe

ERRORS = {"family": Family.ERROR, "signal": Signal.ERROR}
NOBODY: Callable[[Alarm, Cause], tuple[str, ...]] = lambda alarm, cause: ()  # noqa: E731


class Desk:
    """A book, and the worlds it looks its alarms up in: one for each family."""

    def __init__(self, config: BookConfig | None = None) -> None:
        self.config = config or BookConfig()
        self.book = IncidentBook(self.config)
        self.worlds: dict[Family, list[Traffic]] = {}
        self.looked_up = 0

    def see(self, number: int, monitor: dict[str, str], **named: Any) -> list[Entry]:
        """The alarm that the monitor raises in the world of its family, handled."""
        family = named.get("family", Family.REFUSAL)
        return self.handle(observe(self.worlds[family], number, monitor, **named))

    def handle(self, alarm: Alarm) -> list[Entry]:
        return self.book.handle(alarm, self._investigate, NOBODY)

    def _investigate(self, alarm: Alarm, now_ms: int) -> Any:
        self.looked_up += 1
        return look_at(alarm, self.worlds[alarm.family])


def desk_with(world: list[Traffic], family: Family = Family.REFUSAL, **config: int) -> Desk:
    desk = Desk(BookConfig(**config))
    desk.worlds[family] = world
    return desk


def world_of(*changed: tuple[dict[str, str], float], now: int = 500) -> list[Traffic]:
    """Two providers in two regions, three tenants, two prompts; 1 % but for what has changed."""
    kinds = [
        {
            "provider": p,
            "request_model": f"{p}-1",
            "region": r,
            "tenant": t,
            "prompt_name": n,
            "prompt_version": "v1",
            "route": "chat" if n == "ask" else "report",
        }
        for p in ("a", "b")
        for r in ("eu", "us")
        for t in ("t1", "t2", "t3")
        for n in ("ask", "sum")
    ]
    return [
        Traffic(
            kind,
            Rate(10, 1_000),
            Rate(
                round(next((r for s, r in changed if s.items() <= kind.items()), 0.01) * now), now
            ),
        )
        for kind in kinds
    ]


def the(entries: list[Entry]) -> Entry:
    (entry,) = entries
    return entry


def the_open(desk: Desk) -> Incident:
    (incident,) = desk.book.open
    return incident
