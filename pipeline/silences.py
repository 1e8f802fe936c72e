"""The silences that hold, from what is stored and what is configured.

Delivery guarantee: none. A stored silence is known `REFRESH_MS` after it was saved at the latest.
"""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

from pipeline.config import WEEKDAYS, WindowSettings
from pipeline.incidents.silencing import WeeklyWindow, find_active
from pipeline.sinks.silences import SilenceStore
from schemas.silence import Silence

REFRESH_MS = 10_000
#: Silences beyond these, by their end, are not heard.
HELD = 1_000


class SilenceKeeper:
    """Reads silences now and then; holds at most `HELD`. Calls block."""

    def __init__(self, store: SilenceStore, windows: tuple[WindowSettings, ...]) -> None:
        self._store = store
        self._weekly = tuple(_build_weekly(w) for w in windows if w.start is None)
        self._once = tuple(_build_once(w) for w in windows if w.start is not None)
        self._stored: list[Silence] = []
        self._read_ms: int | None = None

    def active(self, now_ms: int) -> tuple[Silence, ...]:
        """Return those that hold at a time.

        Raises:
            SinkUnavailable: ClickHouse is away.
        """
        if self._read_ms is None or abs(now_ms - self._read_ms) >= REFRESH_MS:
            self._stored = self._store.load(now_ms, HELD)
            self._read_ms = now_ms
        return find_active((*self._stored, *self._once), self._weekly, now_ms)

    def last_known(self, now_ms: int) -> tuple[Silence, ...]:
        """Return those that hold, of what was read last: for when ClickHouse is away."""
        return find_active((*self._stored, *self._once), self._weekly, now_ms)


def _build_once(window: WindowSettings) -> Silence:
    assert window.start is not None and window.end is not None  # noqa: S101, PT018 — validated
    return Silence(
        silence_id=f"window/{window.name}",
        starts_ms=round(window.start.timestamp() * 1000),
        ends_ms=round(window.end.timestamp() * 1000),
        labels={d.value: v for d, v in window.labels.items()},
        families=window.families,
        by="configuration",
        why=window.why or window.name,
    )


def _build_weekly(window: WindowSettings) -> WeeklyWindow:
    assert window.at is not None and window.hours is not None  # noqa: S101, PT018 — validated
    return WeeklyWindow(
        name=window.name,
        days=frozenset(WEEKDAYS.index(day) for day in window.days or WEEKDAYS),
        at=window.at,
        zone=ZoneInfo(window.timezone),
        length=dt.timedelta(hours=window.hours),
        labels={d.value: v for d, v in window.labels.items()},
        families=window.families,
        why=window.why,
    )
