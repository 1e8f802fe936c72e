"""Silences and maintenance windows: what lies within one is recorded, and pages nobody."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from pydantic import ValidationError

from pipeline.cli import cli
from pipeline.config import ClickHouseSettings, NotifySettings, WindowSettings
from pipeline.errors import SinkUnavailable
from pipeline.incident_report import report
from pipeline.incidents.book import BookConfig
from pipeline.incidents.silencing import WeeklyWindow, find_active, find_silence
from pipeline.respond import Responder
from pipeline.silences import REFRESH_MS, SilenceKeeper
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.silences import SilenceStore
from schemas.incident import Action, Incident, Status
from schemas.signal import Family
from schemas.silence import Silence
from tests.support.pagerduty import make_incident
from tests.test_respond import ALARM, CLEAR, HOLD_MS, START_MS, FakeIncidents, FakeNotifier

HOUR_MS = 3_600_000
SILENCE = Silence(
    silence_id="s-1",
    starts_ms=START_MS - 1_000,
    ends_ms=START_MS + HOUR_MS,
    labels={"route": "support"},
    families=(Family.REFUSAL,),
    by="aiko",
    why="a new prompt goes out",
)


def incident_on(cause: dict[str, str], *monitors: dict[str, str]) -> Incident:
    incident = make_incident()
    alarms = tuple(structs.replace(incident.alarms[0], monitor=each) for each in monitors)
    return structs.replace(
        incident, cause=structs.replace(incident.cause, labels=cause), alarms=alarms
    )


@pytest.mark.parametrize(
    ("incident", "within"),
    [
        (incident_on({"route": "support"}, {"request_model": "m"}), True),
        (incident_on({"route": "support", "tenant": "a"}, {"request_model": "m"}), True),
        (incident_on({}, {"route": "support"}), True),
        (incident_on({"tenant": "a"}, {"route": "support", "tenant": "a"}), True),
        (incident_on({}, {"route": "support"}, {"request_model": "m"}), False),
        (incident_on({"route": "other"}, {"request_model": "m"}), False),
        (incident_on({}), False),
    ],
)
def test_within_is_what_the_slice_explains_or_what_was_seen_nowhere_else(
    incident: Incident, within: bool
) -> None:
    assert (find_silence([SILENCE], incident) is not None) is within


def test_another_family_is_heard() -> None:
    latency = structs.replace(incident_on({"route": "support"}), family=Family.LATENCY)
    assert find_silence([SILENCE], latency) is None
    assert find_silence([structs.replace(SILENCE, families=())], latency) is not None


def test_the_silence_that_ends_last_is_the_one_that_is_shown() -> None:
    longer = structs.replace(SILENCE, silence_id="s-2", ends_ms=SILENCE.ends_ms + 1)
    active = find_active([SILENCE, longer], [], START_MS)
    found = find_silence(active, incident_on({"route": "support"}))
    assert found is not None
    assert found.silence_id == "s-2"


@pytest.mark.parametrize(
    ("now_ms", "holds"),
    [
        (SILENCE.starts_ms - 1, False),
        (SILENCE.starts_ms, True),
        (SILENCE.ends_ms - 1, True),
        (SILENCE.ends_ms, False),
    ],
)
def test_a_silence_holds_from_its_start_up_to_its_end(now_ms: int, holds: bool) -> None:
    assert bool(find_active([SILENCE], [], now_ms)) is holds


# --- Windows -------------------------------------------------------------------------------------


def to_ms(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


def weekly(days: set[int], at: str, hours: float, zone: str = "Europe/Berlin") -> WeeklyWindow:
    return WeeklyWindow(
        "w", frozenset(days), dt.time.fromisoformat(at), ZoneInfo(zone), dt.timedelta(hours=hours)
    )


@pytest.mark.parametrize(
    ("window", "now", "holds"),
    [
        # Monday, 17 November 2025, 23:00 in Berlin is 22:00 UTC.
        (weekly({0}, "23:00", 3), "2025-11-17T21:59:59Z", False),
        (weekly({0}, "23:00", 3), "2025-11-17T22:00:00Z", True),
        (weekly({0}, "23:00", 3), "2025-11-18T00:59:59Z", True),
        (weekly({0}, "23:00", 3), "2025-11-18T01:00:00Z", False),
        (weekly({1}, "23:00", 3), "2025-11-17T22:30:00Z", False),
        # In summer the same hour is 21:00 UTC.
        (weekly({0}, "23:00", 3), "2025-07-14T21:00:00Z", True),
        (weekly({0}, "23:00", 168), "2025-11-24T21:59:59Z", True),
        # On 30 March 2025 two o'clock follows one o'clock UTC at once.
        (weekly({6}, "01:30", 1), "2025-03-30T01:29:59Z", True),
        (weekly({6}, "01:30", 1), "2025-03-30T01:30:00Z", False),
    ],
)
def test_a_window_comes_again_every_week_by_its_own_clock(
    window: WeeklyWindow, now: str, holds: bool
) -> None:
    assert bool(find_active([], [window], to_ms(now))) is holds


@given(
    st.integers(to_ms("2024-01-01T00:00:00Z"), to_ms("2026-12-31T00:00:00Z")),
    st.sets(st.integers(0, 6)),
    st.times(),
    st.floats(0.1, 168),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo"]),
)
def test_a_window_agrees_with_all_occurrences_written_out(
    now_ms: int, days: set[int], at: dt.time, hours: float, zone: str
) -> None:
    window = WeeklyWindow("w", frozenset(days), at, ZoneInfo(zone), dt.timedelta(hours=hours))
    now = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
    written_out = []
    for offset in range(-10, 3):
        day = now.date() + dt.timedelta(days=offset)
        start = dt.datetime.combine(day, at, ZoneInfo(zone)).astimezone(dt.UTC)
        if day.weekday() in days and start <= now < start + window.length:
            written_out.append(start)
    active = find_active([], [window], now_ms)
    assert bool(active) == bool(written_out)
    if active:
        assert active[0].starts_ms == round(max(written_out).timestamp() * 1000)


@pytest.mark.parametrize(
    "window",
    [
        {"name": "w"},
        {"name": "w", "at": "02:00:00"},
        {"name": "w", "start": "2026-01-01T00:00:00Z"},
        {"name": "w", "start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"},
        {"name": "w", "at": "02:00:00", "hours": 1, "start": "2026-01-02T00:00:00Z"},
        {"name": "w", "at": "02:00:00", "hours": 1, "timezone": "Mars/Olympus"},
        {"name": "w", "at": "02:00:00", "hours": 1, "timezone": "../etc/passwd"},
    ],
)
def test_a_window_that_makes_no_sense_stops_the_start(window: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WindowSettings.model_validate(window)


# --- From an alarm to what is told ---------------------------------------------------------------


class FakeSilences:
    def __init__(self) -> None:
        self.silences: list[Silence] = []

    def active(self, now_ms: int) -> tuple[Silence, ...]:
        return find_active(self.silences, [], now_ms)


class Scene:
    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.incidents = FakeIncidents()
        self.silences = FakeSilences()
        self.told: dict[tuple[str, int], Action] = {}
        self.responder = Responder(
            BookConfig(review_ms=()),
            self.incidents,  # type: ignore[arg-type]
            lambda: FakeNotifier(self.told),
            executor,
            self.silences.active,
        )

    @property
    def stored(self) -> Incident:
        [incident] = self.incidents.stored.values()
        return incident


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ThreadPoolExecutor(1) as executor:
        yield Scene(executor)


async def test_a_silenced_incident_is_recorded_with_the_reason(scene: Scene) -> None:
    scene.silences.silences = [SILENCE]
    [opened] = await scene.responder.respond([ALARM], START_MS)
    assert opened.silenced is not None
    assert scene.stored.silenced == opened.silenced
    assert "silenced           until 2025-06-15 16:06:40" in report(opened)
    assert "by aiko: a new prompt goes out (s-1)" in report(opened)
    await scene.responder.respond([CLEAR], START_MS + 60_000)
    await scene.responder.tick(CLEAR.time_ms + HOLD_MS)
    assert scene.stored.status is Status.RESOLVED
    assert scene.stored.silenced == opened.silenced, "that it was silenced stays on record"


async def test_what_is_still_open_is_told_when_the_silence_ends(scene: Scene) -> None:
    scene.silences.silences = [SILENCE]
    await scene.responder.respond([ALARM], START_MS)
    assert await scene.responder.tick(SILENCE.ends_ms - 1) == []
    [heard] = await scene.responder.tick(SILENCE.ends_ms)
    assert heard.silenced is None
    assert scene.told[heard.incident_id, heard.version] is Action.UPDATE
    assert await scene.responder.tick(SILENCE.ends_ms + 1) == []


async def test_a_silence_that_comes_later_holds_for_what_is_open(scene: Scene) -> None:
    [opened] = await scene.responder.respond([ALARM], START_MS)
    assert opened.silenced is None
    scene.silences.silences = [SILENCE]
    [silent] = await scene.responder.tick(START_MS + 1)
    assert silent.silenced is not None


async def test_a_successor_that_knows_no_time_leaves_silent_what_was(scene: Scene) -> None:
    scene.silences.silences = [SILENCE]
    await scene.responder.respond([ALARM], START_MS)
    await scene.responder.hand_over()
    [cleared] = await scene.responder.respond([CLEAR])
    assert cleared.silenced is not None


# --- In ClickHouse, and by hand ------------------------------------------------------------------


class CountingStore:
    def __init__(self, *silences: Silence) -> None:
        self.silences = silences
        self.reads = 0

    def load(self, after_ms: int, limit: int) -> list[Silence]:
        self.reads += 1
        if not self.silences:
            raise SinkUnavailable("away")
        return [s for s in self.silences if s.ends_ms > after_ms][:limit]


def test_stored_and_configured_silences_hold_together() -> None:
    windows = NotifySettings.model_validate(
        {
            "windows": [
                {"name": "nightly", "at": "00:00:00", "hours": 24},
                {"name": "once", "start": "2025-06-15T00:00:00Z", "end": "2025-06-16T00:00:00Z"},
            ]
        }
    ).windows
    store = CountingStore(SILENCE)
    keeper = SilenceKeeper(store, windows)  # type: ignore[arg-type]
    names = {s.silence_id for s in keeper.active(START_MS)}
    assert names == {"s-1", "window/nightly", "window/once"}
    keeper.active(START_MS + REFRESH_MS - 1)
    assert store.reads == 1
    assert {s.silence_id for s in keeper.active(SILENCE.ends_ms)} == names - {"s-1"}
    assert store.reads == 2


@pytest.fixture
def store(embedded_path: Path, empty_database: str) -> Iterator[Store]:
    made = Store(ClickHouseSettings(path=embedded_path, database=empty_database))
    made.migrate()
    yield made
    made.close()


def test_a_silence_stands_as_it_was_last_saved(store: Store) -> None:
    silences = SilenceStore(store)
    silences.save(SILENCE, 1)
    silences.save(structs.replace(SILENCE, silence_id="s-2", labels={}, families=()), 1)
    over = structs.replace(SILENCE, ends_ms=START_MS)
    silences.save(over, 2)
    assert [s.silence_id for s in silences.load(START_MS)] == ["s-2"]
    assert len(silences.load(limit=1)) == 1
    assert silences.find("s-1") == [over]
    assert [s.silence_id for s in silences.find("s-")] == ["s-1", "s-2"]


def test_silencing_by_hand(
    tmp_path: Path, store: Store, embedded_path: Path, empty_database: str
) -> None:
    file = tmp_path / "kizashi.toml"
    file.write_text(f'[clickhouse]\npath = "{embedded_path}"\ndatabase = "{empty_database}"\n')

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["--config", str(file), "silence", *words])
        return result.exit_code, result.output

    slice_ = ("--grouping", "route", "--value", "checkout", "--family", "latency")
    code, name = run("add", *slice_, "--for", "2h", "--why", "load test", "--by", "aiko")
    assert code == 0, name
    _, listed = run("list", "--json")
    silence = msgspec.json.decode(listed, type=Silence)
    assert silence.labels == {"route": "checkout"}
    assert silence.ends_ms - silence.starts_ms == 2 * HOUR_MS
    assert "load test" in run("list")[1]
    assert run("end", name.strip()[:6])[0] == 0
    assert run("list", "--json")[1] == ""
    assert "load test" in run("list", "--all")[1]
    assert run("end", "nothing")[0] != 0


@pytest.mark.parametrize(
    "words",
    [
        ("--for", "2h"),
        ("--for", "2h", "--everything", "--family", "latency"),
        ("--for", "2x", "--everything"),
        ("--for", "0h", "--everything"),
        ("--for", "9999d", "--everything"),
        ("--for", "2h", "--grouping", "planet", "--value", "x"),
        ("--for", "2h", "--grouping", "route"),
        ("--for", "2h", "--value", "x"),
    ],
)
def test_what_makes_no_silence(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, ["silence", "add", "--why", "because", *words])
    assert result.exit_code == 2, result.output
