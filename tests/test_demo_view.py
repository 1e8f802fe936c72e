"""The demo as it is seen: its pace, its screen, its summary, and a whole run of it."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline.config import ClickHouseSettings, Config, NotifySettings, PagerDutySettings
from pipeline.demo.company import Company, Record, RecordKind
from pipeline.demo.run import DemoResult, paced_batches, run_demo
from pipeline.demo.score import Detection, find_unscripted, score
from pipeline.demo.script import SCRIPT, PlayedIncident
from pipeline.demo.snapshot import (
    Accounts,
    Moment,
    Query,
    Slice,
    Snapshot,
    take_snapshot,
    unanswered_sql,
)
from pipeline.demo.summary import QUESTIONS, render_summary, summarise_as_json
from pipeline.demo.trace import HOUR_MS
from pipeline.demo.view import LiveView, LogView, choose_view, draw_sparkline, headline, render
from pipeline.errors import ConfigError
from pipeline.local import LocalPipeline
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.notifier import MemoryOutbox, Notifier, build_destinations
from schemas.alarm import Alarm, Direction, Rate, Transition
from schemas.incident import Action, Cause, Incident, RootCause, Severity, Status, Symptom
from schemas.signal import Family, Signal
from tests.support.pagerduty import ROUTING_KEY, FakePagerDuty, validate_event

#: 12:00:00 UTC.
START_MS = 1_789_992_000_000
MINUTE_MS = 60_000
SIZES = [(80, 24), (100, 30), (160, 50), (80, 60), (60, 20), (40, 10)]


# --- What is shown -------------------------------------------------------------------------------


def make_alarm(**changes: Any) -> Alarm:
    facts: dict[str, Any] = {
        "alarm_id": "a1",
        "transition": Transition.RAISED,
        "event_index": 9_000,
        "time_ms": START_MS + 16 * MINUTE_MS,
        "grouping": "route",
        "monitor": {"route": "support"},
        "family": Family.REFUSAL,
        "signal": Signal.REFUSAL,
        "direction": Direction.RISE,
        "e_value": 9_000.0,
        "threshold": 240.0,
        "baseline": Rate(20, 2_000),
        "current": Rate(14, 40),
        "change_time_ms": START_MS + 15 * MINUTE_MS,
    }
    return Alarm(**facts | changes)


def make_incident(**changes: Any) -> Incident:
    facts: dict[str, Any] = {
        "incident_id": "inc-a1",
        "version": 1,
        "status": Status.OPEN,
        "severity": Severity.CRITICAL,
        "family": Family.REFUSAL,
        "symptom": Symptom.INVALID_INFERENCE,
        "root_cause": RootCause.CONFIGURATION,
        "opened_ms": START_MS + 16 * MINUTE_MS,
        "updated_ms": START_MS + 16 * MINUTE_MS,
        "explained_ms": START_MS + 16 * MINUTE_MS,
        "last_alarm_ms": START_MS + 16 * MINUTE_MS,
        "change_time_ms": START_MS + 15 * MINUTE_MS,
        "summary": (
            "Refusals rose from 1.0% to 35% for prompt_name=support-answer, prompt_version=v7"
            " since 12:15:00 UTC: 14 of 40, before 20 of 2,000."
            " First seen on route=support; evidence 9,000 against a threshold of 240."
        ),
        "suggestion": "Roll the prompt template back to the version before this one.",
        "cause": Cause(
            {"prompt_name": "support-answer", "prompt_version": "v7"},
            0.97,
            Rate(20, 2_000),
            Rate(14, 40),
        ),
        "alarms": (make_alarm(),),
    }
    return Incident(**facts | changes)


JAPANESE = make_incident(
    incident_id="inc-ja",
    summary=("プロンプトの新しい版で、注文についての回答の拒否が1.0%から35%に増えました。" * 3),
    cause=Cause(
        {"tenant": "株式会社あおぞらトラベル東日本営業本部第二課"}, 1.0, Rate(1, 2), Rate(2, 2)
    ),
)
RESOLVED = make_incident(
    incident_id="inc-done",
    status=Status.RESOLVED,
    family=Family.ERROR,
    opened_ms=START_MS + 5 * MINUTE_MS,
    resolved_ms=START_MS + 9 * MINUTE_MS,
    summary="Errors rose from 0.5% to 34% for provider=openai since 12:04:50 UTC. More.",
    cause=Cause({"provider": "openai"}, 1.0, Rate(1, 200), Rate(34, 100)),
    alarms=(make_alarm(alarm_id="a2", family=Family.ERROR, monitor={"provider": "openai"}),),
    cleared=("a2",),
)


def make_slice(dimension: str, name: str, **changes: Any) -> Slice:
    facts: dict[str, Any] = {
        "requests_per_min": 116.8,
        "error_rate": 0.005,
        "refusal_rate": 0.34,
        "duration_s_p50": 1.131,
        "duration_s_p95": 14.79,
        "first_chunk_s_p95": None,
        "tokens_per_min": 129_800.0,
        "cost_usd_per_hour": 7.8,
        "unanswered": tuple(0.35 if 15 <= m <= 20 else 0.01 for m in range(21)),
    }
    return Slice(dimension=dimension, name=name, **facts | changes)


ROUTES = ("code-review", "search", "summarise", "support", "translate")
PROVIDERS = ("anthropic", "openai", "vllm")


def make_moment(*incidents: Incident) -> Moment:
    return Moment(
        start_ms=START_MS,
        end_ms=START_MS + HOUR_MS,
        now_ms=START_MS + 20 * MINUTE_MS,
        speed=60.0,
        accounts=Accounts(10_532, 10_492, 13, 27),
        alarms=13,
        incidents=incidents,
    )


def make_snapshot(*incidents: Incident) -> Snapshot:
    slices = [make_slice("route", name) for name in ROUTES]
    slices += [make_slice("provider", name) for name in PROVIDERS]
    return Snapshot(make_moment(*incidents), tuple(slices))


def draw(snapshot: Snapshot, width: int, height: int) -> list[str]:
    """The lines of a screen of that size, without trailing blanks."""
    console = Console(
        width=width, height=height, file=io.StringIO(), record=True, force_terminal=True
    )
    console.print(render(snapshot, width))
    lines = console.export_text().splitlines()
    assert len(lines) == height
    assert all(cell_len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(
    "incidents",
    [(), (RESOLVED,), (make_incident(), RESOLVED), (JAPANESE, make_incident(), RESOLVED) * 9],
    ids=["none", "one", "two", "many"],
)
def test_a_screen_of_any_size_is_filled_and_not_overrun(
    width: int, height: int, incidents: tuple[Incident, ...]
) -> None:
    draw(make_snapshot(*incidents), width, height)


def test_everything_fits_on_80_by_24() -> None:
    text = "\n".join(draw(make_snapshot(make_incident(), RESOLVED), 80, 24))
    for word in ("兆し Kizashi", "12:20:00 UTC · 60×", *ROUTES, *PROVIDERS, "unanswered"):
        assert word in text
    assert "10,532 events = 10,492 stored + 13 dead-lettered + 27 duplicates  ·  13 alarms" in text
    assert "2 incidents, 1 open" in text
    assert "● refusal  12:16:00, 4 min  prompt_name=support-answer, prompt_version=v7" in text
    assert "14 of 40, before 20 of 2,000." in text
    assert "First seen" not in text
    assert "✓ error    12:05:00 – 12:09:00  provider=openai" in text
    assert "…" not in text


def test_the_numbers_of_a_route() -> None:
    (line,) = (s for s in draw(make_snapshot(), 80, 24) if s.strip().startswith("support"))
    assert line.split()[:9] == [
        "support", "117", "0.5%", "34.0%", "1.13", "14.8", "–", "130k", "7.80",
    ]  # fmt: skip


def test_a_wide_screen_shows_the_whole_hour() -> None:
    (line,) = (s for s in draw(make_snapshot(), 160, 24) if s.strip().startswith("support"))
    assert line.endswith("▁" * 15 + "█" * 6)
    assert draw(make_snapshot(), 80, 24)[7].endswith("▁" * 4 + "█" * 6)


def test_japanese_is_kept_within_its_cells() -> None:
    text = "\n".join(draw(make_snapshot(JAPANESE), 80, 24))
    assert "プロンプトの新しい版で" in text
    assert "株式会社あおぞらトラベル" in text


def test_open_incidents_come_first_and_what_has_no_room_is_counted() -> None:
    incidents = [RESOLVED] + [make_incident(incident_id=f"inc-{i}") for i in range(20)]
    lines = draw(make_snapshot(*incidents), 80, 24)
    (title,) = (i for i, line in enumerate(lines) if "21 incidents, 20 open" in line)
    below = [line for line in lines[title + 1 :] if line]
    assert all(line.startswith(" ● refusal") for line in below[:-1])
    assert below[-1] == f" … and {21 - len(below) + 1} more"


def test_nothing_has_happened_yet() -> None:
    lines = draw(Snapshot(make_moment(), ()), 80, 24)
    assert any("no incidents" in line for line in lines)


def red_words(snapshot: Snapshot) -> list[str]:
    console = Console(width=80, height=24, file=io.StringIO(), force_terminal=True)
    segments = console.render(render(snapshot, 80), console.options.update(height=24))
    return [
        s.text.strip()
        for s in segments
        if s.text.strip() and s.style and s.style.color and s.style.color.name == "red"
        and set(s.text.strip()).isdisjoint("▁▂▃▄▅▆▇█")
    ]  # fmt: skip


def test_red_says_that_a_detector_has_spoken() -> None:
    assert red_words(make_snapshot()) == []
    # The refusals of the route, and the incident itself.
    assert red_words(make_snapshot(make_incident()))[0] == "34.0%"
    assert red_words(make_snapshot(make_incident())).count("34.0%") == 1
    assert "support" not in red_words(make_snapshot(make_incident()))
    cause = Cause({"route": "support"}, 1.0, Rate(1, 2), Rate(2, 2))
    assert red_words(make_snapshot(make_incident(cause=cause)))[:2] == ["support", "34.0%"]


def test_red_goes_when_the_alarm_has_cleared() -> None:
    assert "34.0%" not in red_words(make_snapshot(make_incident(cleared=("a1",))))
    assert red_words(make_snapshot(RESOLVED)) == []


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ((), 5, ""),
        ((0.0, 0.1, 0.2), 5, "▁▅█"),
        ((0.0, 0.1, 0.2), 2, "▅█"),
        ((0.0, 0.1), 0, ""),
        ((0.9,), 3, "█"),
    ],
)
def test_a_sparkline(values: tuple[float, ...], width: int, bars: str) -> None:
    assert draw_sparkline(values, width, 0.2).plain == bars


def test_the_headline_is_the_first_sentence() -> None:
    assert headline(make_incident()).endswith("before 20 of 2,000.")
    assert headline(make_incident(summary="One sentence at 1.5%")) == "One sentence at 1.5%"
    assert headline(make_incident(summary="Two. More.")) == "Two."


# --- Where it is shown ---------------------------------------------------------------------------


def no_rows(_: str) -> list[dict[str, object]]:
    return []


def test_only_a_terminal_gets_the_live_view() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    pipe = Console(file=io.StringIO(), force_terminal=False)
    assert isinstance(choose_view(terminal, pipe, as_json=False), LiveView)
    assert isinstance(choose_view(terminal, pipe, as_json=True), LogView)
    assert isinstance(choose_view(pipe, pipe, as_json=False), LogView)


def test_the_live_view_draws_and_gives_the_terminal_back() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, force_terminal=True, width=80, height=24)) as view:
        view.announce(make_incident())
        view.update(make_moment(make_incident()), no_rows)
    enter, leave = "\x1b[?1049h", "\x1b[?1049l"
    assert (
        out.getvalue().index(enter) < out.getvalue().index("Refusals") < out.getvalue().index(leave)
    )


def test_the_log_says_a_thing_once() -> None:
    out = io.StringIO()
    view = LogView(Console(file=out, width=40))
    resolved = make_incident(version=3, status=Status.RESOLVED, resolved_ms=START_MS + HOUR_MS // 2)
    with view:
        for incident in (make_incident(), make_incident(version=2), resolved):
            view.announce(incident)
        moment = make_moment()
        for now in range(61):
            view.update(
                Moment(
                    start_ms=START_MS,
                    end_ms=moment.end_ms,
                    now_ms=START_MS + now * MINUTE_MS,
                    speed=60.0,
                    accounts=moment.accounts,
                    alarms=0,
                    incidents=(),
                ),
                no_rows,
            )
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("12:16:00  opened    Refusals rose")
    assert lines[1] == ("12:30:00  resolved  refusal prompt_name=support-answer, prompt_version=v7")
    assert [line[:8] for line in lines[2:]] == [f"12:{m}:00" for m in range(10, 60, 10)] + [
        "13:00:00"
    ]


# --- The pace ------------------------------------------------------------------------------------


class FakeTime:
    """A clock that sleeping moves on; `work_s` passes with every look at it."""

    def __init__(self, work_s: float = 0.0) -> None:
        self.now_s = 1_000.0
        self.slept: list[float] = []
        self._work_s = work_s

    def clock(self) -> float:
        self.now_s += self._work_s
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now_s += seconds


def make_records(*seconds: float) -> list[Record]:
    return [
        Record(START_MS + round(s * 1000), RecordKind.EVENT, b"%d" % i)
        for i, s in enumerate(seconds)
    ]


def pace(
    records: Sequence[Record], speed: float, time: FakeTime, end_s: float = 60
) -> list[tuple[float, float, list[bytes]]]:
    """(wall seconds, event seconds, what came) of every batch."""
    began_s = time.now_s
    batches = paced_batches(
        records,
        speed,
        time.clock,
        time.sleep,
        start_ms=START_MS,
        end_ms=START_MS + round(end_s * 1000),
    )
    return [
        (time.now_s - began_s, (now - START_MS) / 1000, [r.raw for r in batch])
        for now, batch in batches
    ]


def test_records_come_when_the_clock_gets_there() -> None:
    batches = pace(make_records(0.5, 14.9, 15, 15.1, 59), speed=20, time=FakeTime())
    assert [b[1] for b in batches] == pytest.approx([5.0 * i for i in range(1, 13)])
    assert [b[0] for b in batches] == pytest.approx([0.25 * i for i in range(1, 13)])
    assert {event_s: came for _, event_s, came in batches if came} == {
        5: [b"0"],
        15: [b"1", b"2"],
        20: [b"3"],
        60: [b"4"],
    }


def test_a_slow_machine_is_late_and_drops_nothing() -> None:
    prompt, late = FakeTime(), FakeTime(work_s=1.0)
    records = make_records(*range(60))
    on_time, behind = pace(records, 20, prompt), pace(records, 20, late)
    assert [b[1:] for b in behind] == [b[1:] for b in on_time]
    assert late.slept == []
    assert behind[-1][0] > on_time[-1][0]


def test_what_comes_after_the_end_is_still_played() -> None:
    batches = pace(make_records(61, 64), speed=20, time=FakeTime())
    assert [b[1] for b in batches if b[2]] == [65]


def test_an_empty_hour_lasts_an_hour() -> None:
    time = FakeTime()
    assert pace([], speed=20, time=time)[-1][:2] == (pytest.approx(3.0), 60.0)


@pytest.mark.parametrize(("speed", "step_s"), [(0.5, 1.0), (60, 15.0), (1e6, 60.0)])
def test_a_batch_is_neither_tiny_nor_huge(speed: float, step_s: float) -> None:
    assert pace([], speed, FakeTime(), end_s=120)[0][1] == step_s


# --- The run, with a pipeline that only counts ---------------------------------------------------


class CountingPipeline:
    """Stores what is an object with an id it has not seen, and reports what it was told to."""

    def __init__(self, news: dict[int, list[Alarm | Incident]] | None = None) -> None:
        self.counts = Accounts()
        self.fed_ms: list[int] = []
        self.rated: list[bytes] = []
        self.finished_ms: int | None = None
        self._news = dict(news or {})
        self._seen: set[str] = set()

    def feed(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        self.fed_ms.append(now_ms)
        for raw in records:
            self._count(raw)
        due = [at for at in self._news if at <= now_ms]
        return [item for at in due for item in self._news.pop(at)]

    def feed_feedback(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        self.rated += records
        assert all(json.loads(raw)["event.id"] in self._seen for raw in records)
        return []

    def finish(self, now_ms: int) -> list[Alarm | Incident]:
        self.finished_ms = now_ms
        return [item for news in self._news.values() for item in news]

    def query(self, sql: str) -> list[dict[str, object]]:
        if "AS ratings" in sql:
            return [{"ratings": len(self.rated)}]
        return [{"events": 43}] if sql.startswith("SELECT count() AS events") else []

    def _count(self, raw: bytes) -> None:
        c = self.counts
        try:
            event = json.loads(raw)["event.id"]
        except (ValueError, TypeError, KeyError):
            self.counts = Accounts(c.events + 1, c.stored, c.deadlettered + 1, c.duplicates)
            return
        new = event not in self._seen
        self._seen.add(event)
        self.counts = Accounts(
            c.events + 1, c.stored + new, c.deadlettered, c.duplicates + (not new)
        )


class Recorder:
    """A view that keeps what it is shown."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.announced: list[Incident] = []
        self.open = False

    def __enter__(self) -> Recorder:
        self.open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False

    def update(self, moment: Moment, query: Query) -> None:
        assert self.open
        self.moments.append(moment)

    def announce(self, incident: Incident) -> None:
        self.announced.append(incident)


def play(pipeline: Any, view: Any, seconds: float = 60.0, **company: Any) -> DemoResult:
    time = FakeTime()
    return run_demo(
        pipeline,
        Company(START_MS, **company),
        seconds=seconds,
        clock=time.clock,
        sleep=time.sleep,
        view=view,
    )


FOUND_MS = START_MS + 15 * MINUTE_MS + 24_000


@pytest.fixture(scope="module")
def counted() -> tuple[CountingPipeline, Recorder, DemoResult]:
    first = make_incident(opened_ms=FOUND_MS)
    late = make_incident(
        opened_ms=FOUND_MS, version=3, status=Status.RESOLVED, resolved_ms=FOUND_MS + 1
    )
    stale = make_incident(opened_ms=FOUND_MS, version=2, summary="An old version.")
    stray = make_incident(incident_id="inc-stray", opened_ms=START_MS + 50 * MINUTE_MS)
    pipeline = CountingPipeline(
        {FOUND_MS: [make_alarm(), first], FOUND_MS + 1_000_000: [late, stale, stray]}
    )
    view = Recorder()
    return pipeline, view, play(pipeline, view)


def test_the_hour_takes_the_time_it_was_given(
    counted: tuple[CountingPipeline, Recorder, DemoResult],
) -> None:
    pipeline, view, result = counted
    assert result.seconds == pytest.approx(60.0)
    assert view.moments[0].speed == 60.0
    assert pipeline.finished_ms == pipeline.fed_ms[-1] == START_MS + HOUR_MS
    assert len(pipeline.fed_ms) == 240


def test_every_record_is_fed_once(counted: tuple[CountingPipeline, Recorder, DemoResult]) -> None:
    _, view, result = counted
    a = result.accounts
    assert a.events == a.stored + a.deadlettered + a.duplicates == 28_285
    # What parses and has an id is good enough for this pipeline.
    assert a.duplicates >= 60
    assert a.deadlettered > 10
    assert view.moments[-1].accounts == a
    assert not view.open


def test_every_rating_is_fed_once_behind_its_request(
    counted: tuple[CountingPipeline, Recorder, DemoResult],
) -> None:
    assert counted[0].rated == [record.raw for record in Company(START_MS).ratings()]


def test_the_latest_version_of_an_incident_stands(
    counted: tuple[CountingPipeline, Recorder, DemoResult],
) -> None:
    _, view, result = counted
    assert [(i.incident_id, i.version) for i in result.incidents] == [
        ("inc-a1", 3),
        ("inc-stray", 1),
    ]
    assert [i.version for i in view.announced] == [1, 3, 1]
    assert view.moments[-1].alarms == 1


def test_the_result_says_how_soon_each_was_found(
    counted: tuple[CountingPipeline, Recorder, DemoResult],
) -> None:
    _, _, result = counted
    found, *missed = result.detections
    assert (found.delay_s, found.events) == (24.0, 43)
    assert [d.incident for d in missed] == [None, None]
    assert [i.incident_id for i in find_unscripted(result.detections, result.incidents)] == [
        "inc-stray"
    ]


def test_the_json_is_one_line_that_says_it_all(
    counted: tuple[CountingPipeline, Recorder, DemoResult],
) -> None:
    _, _, result = counted
    line = summarise_as_json(result)
    assert "\n" not in line
    said = json.loads(line)
    assert said["events"] == said["stored"] + said["deadlettered"] + said["duplicates"] == 28_285
    assert said["seconds"] == 60.0
    first = said["incidents"][0]
    assert first["opened_at"] == "2026-09-21T12:15:24.000Z"
    assert first["resolved_at"] == "2026-09-21T12:15:24.001Z"
    assert (first["family"], first["monitor"]) == ("refusal", {"route": "support"})
    assert first["summary"].startswith("Refusals rose")
    assert said["incidents"][1]["resolved_at"] is None
    assert [s["family"] for s in said["scripted_incidents"]] == ["refusal", "error", "latency"]
    scripted = said["scripted_incidents"][0]
    assert scripted["started_at"] == "2026-09-21T12:15:00.000Z"
    assert scripted["where"] == {"route": "support", "prompt_version": "v7"}
    assert said["scripted_incidents"][1]["incident_id"] is None


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_tells_what_was_missed_and_what_was_too_much(
    counted: tuple[CountingPipeline, Recorder, DemoResult], width: int
) -> None:
    text = print_summary(counted[2], width)
    assert "1 of 3 scripted incidents were found, and 1 besides." in text
    assert "24 s, 43 requests" in text
    assert text.count("not found") == 2
    assert "Besides these:" in text
    assert "28,285 events = " in text
    assert text.count("kizashi sql") == len(QUESTIONS)


def print_summary(result: DemoResult, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(render_summary(result))
    text = console.export_text()
    assert all(cell_len(line) <= width for line in text.splitlines())
    return text


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_an_impossible_time_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="positive number of seconds"):
        play(CountingPipeline(), Recorder(), seconds)


def test_any_other_time_plays_the_whole_hour() -> None:
    pipeline = CountingPipeline()
    assert play(pipeline, Recorder(), seconds=0.1, script=()).seconds == pytest.approx(0.1)
    assert pipeline.counts.events == 28_285


# --- The score -----------------------------------------------------------------------------------

PLAYED = PlayedIncident(
    "x", Family.REFUSAL, START_MS, START_MS + HOUR_MS // 4, {"route": "a", "prompt_version": "v7"}
)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"opened_ms": START_MS + 1_000}, True),
        ({"opened_ms": START_MS - 1}, False),
        ({"opened_ms": START_MS + HOUR_MS}, False),
        ({"opened_ms": START_MS, "family": Family.ERROR}, False),
        ({"opened_ms": START_MS, "cause": Cause({"tenant": "t"}, 1, Rate(0, 1), Rate(1, 1))}, True),
        (
            {"opened_ms": START_MS, "cause": Cause({"route": "b"}, 1, Rate(0, 1), Rate(1, 1))},
            False,
        ),
    ],
)
def test_an_incident_counts_when_it_fits(changes: dict[str, Any], found: bool) -> None:
    (detection,) = score([PLAYED], [make_incident(**changes)], no_rows)
    assert (detection.incident is not None) == found
    assert detection.events is None


def test_the_first_of_two_counts() -> None:
    later = make_incident(incident_id="b", opened_ms=START_MS + 2)
    sooner = make_incident(incident_id="c", opened_ms=START_MS + 1)
    detections = score([PLAYED], [later, sooner], no_rows)
    assert detections == (Detection(PLAYED, sooner, None),)
    assert find_unscripted(detections, [later, sooner]) == (later,)


# --- The run, with the real pipeline -------------------------------------------------------------


class Photographer(Recorder):
    """Takes a snapshot every ten minutes, through the real queries."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshots: dict[int, Snapshot] = {}

    def update(self, moment: Moment, query: Query) -> None:
        super().update(moment, query)
        at = (moment.now_ms - moment.start_ms) // MINUTE_MS
        if at % 10 == 0 and at not in self.snapshots:
            self.snapshots[at] = take_snapshot(moment, query)


@pytest.fixture(scope="module")
def store(embedded_path: Path) -> Iterator[Store]:
    store = Store(ClickHouseSettings(path=embedded_path, database="demo_view"))
    store.migrate()
    yield store
    store.close()


@pytest.fixture(scope="module")
def played(store: Store) -> tuple[LocalPipeline, Photographer, DemoResult]:
    pipeline, view = LocalPipeline(Config(), store, "test", "demo"), Photographer()
    return pipeline, view, play(pipeline, view, seconds=10.0)


Played = tuple[LocalPipeline, Photographer, DemoResult]


def test_the_three_incidents_are_found_and_nothing_else(played: Played) -> None:
    _, _, result = played
    assert [i.family for i in result.incidents] == [Family.REFUSAL, Family.ERROR, Family.LATENCY]
    for detection, scripted in zip(result.detections, SCRIPT, strict=True):
        assert detection.incident is not None
        assert detection.delay_s is not None
        assert detection.events is not None
        assert 0 < detection.delay_s < 120
        assert 0 < detection.events < 200
        labels = detection.incident.cause.labels
        assert set(labels.items()) & set(scripted.labels.items())
        assert detection.incident.status is Status.RESOLVED


def test_the_explanation_names_what_was_scripted_with_the_largest_share(played: Played) -> None:
    named = [
        {"prompt_name": "support-answer", "prompt_version": "v7"},
        {"provider": "openai"},
        {"provider": "anthropic", "region": "eu-west"},
    ]
    for incident, labels in zip(played[2].incidents, named, strict=True):
        first = incident.explanation[0]
        assert incident.cause.labels == first.labels == labels
        assert first.share == max(a.share for a in incident.explanation) > 0.8
        assert first.after.value > 2 * first.before.value
        assert incident.example_event_ids
    kinds = [(i.symptom, i.root_cause) for i in played[2].incidents]
    assert kinds == [
        (Symptom.INVALID_INFERENCE, RootCause.CONFIGURATION),
        (Symptom.DEGRADED_PERFORMANCE, RootCause.INFRASTRUCTURE),
        (Symptom.DEGRADED_PERFORMANCE, RootCause.INFRASTRUCTURE),
    ]


async def test_each_scripted_incident_is_one_page_that_ends(
    played: Played, pagerduty: FakePagerDuty
) -> None:
    """Every version of every incident is told, as the responder tells it."""
    page = PagerDutySettings(url=pagerduty.url, routing_key=ROUTING_KEY)  # type: ignore[arg-type]
    settings = NotifySettings(pagerduty=page, link="https://grafana.example/{incident_id}")
    notifier = Notifier(
        build_destinations(settings),
        MemoryOutbox(),
        settings,
        clock=time.time,
        sleep=asyncio.sleep,
        rng=random.Random(1),
    )
    await notifier.start()
    try:
        for incident in played[1].announced:
            known = Action.TRIGGER if incident.version == 1 else Action.UPDATE
            over = incident.status is Status.RESOLVED
            await notifier.notify(incident, Action.RESOLVE if over else known)
        assert await notifier.drain(20.0)
    finally:
        await notifier.close()
    assert {r.status for r in pagerduty.received} == {202}, "valid by the published schema"
    keys = [alert.dedup_key for alert in pagerduty.alerts]
    assert sorted(keys) == sorted(f"kizashi/{i.incident_id}" for i in played[2].incidents)
    assert pagerduty.open_alerts == []
    for event in pagerduty.accepted:
        validate_event(event)
    details = pagerduty.alerts[0].events[0]["payload"]["custom_details"]
    assert details["explanation"]
    assert details["example_event_ids"]


def test_the_books_balance(played: Played) -> None:
    a = played[2].accounts
    assert (a.events, a.stored, a.deadlettered, a.duplicates) == (28_285, 28_185, 40, 60)


def test_every_rating_found_its_request(played: Played) -> None:
    (row,) = played[0].query(
        "SELECT count() AS ratings, countIf(event_id != '' AND negative IS NOT NULL) AS judged"
        " FROM feedback FINAL"
    )
    given = len(list(Company(START_MS).ratings()))
    assert row["judged"] == row["ratings"] == given == played[2].ratings


def test_a_snapshot_says_what_was_stored(played: Played) -> None:
    pipeline, view, _ = played
    snapshot = view.snapshots[20]
    now_ms = snapshot.moment.now_ms
    assert [s.name for s in snapshot.slices] == [*ROUTES, *PROVIDERS]
    support = snapshot.slices[ROUTES.index("support")]
    (row,) = pipeline.query(
        "SELECT count() AS n, countIf(refused) AS refused, countIf(error_type != '') AS failed"
        f" FROM requests FINAL WHERE route = 'support' AND event_time <= {in_sql(now_ms)}"
        f" AND event_time > {in_sql(now_ms - 5 * MINUTE_MS)}"
    )
    n = float(str(row["n"]))
    assert support.requests_per_min == pytest.approx(n / 5)
    assert support.refusal_rate == pytest.approx(float(str(row["refused"])) / n)
    assert support.error_rate == pytest.approx(float(str(row["failed"])) / n)
    assert 0.25 < support.refusal_rate < 0.45
    assert support.cost_usd_per_hour is not None
    assert len(support.unanswered) == 21
    assert min(support.unanswered[16:20]) > 4 * max(support.unanswered[3:15])


def in_sql(time_ms: int) -> str:
    return f"fromUnixTimestamp64Milli({time_ms})"


def test_a_snapshot_knows_what_it_cannot_know(played: Played) -> None:
    by_name = {s.name: s for s in played[1].snapshots[30].slices}
    # Not streamed, and of no known price.
    assert by_name["translate"].first_chunk_s_p95 is None
    assert by_name["vllm"].cost_usd_per_hour is None
    assert by_name["openai"].error_rate > 0.1 > by_name["anthropic"].error_rate


def test_a_handful_of_requests_is_no_outage(played: Played) -> None:
    pipeline, view, _ = played
    rows = pipeline.query(unanswered_sql(view.moments[-1]))
    assert len(rows) > 400
    assert all(0 <= float(str(row["unanswered"])) <= 0.6 for row in rows)


@pytest.mark.parametrize("minute", [10, 20, 30, 40, 50, 60])
def test_the_real_thing_fits_on_80_by_24(played: Played, minute: int) -> None:
    lines = draw(played[1].snapshots[minute], 80, 24)
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.text)
def test_every_question_has_an_answer(played: Played, question: Any) -> None:
    rows = played[0].query(question.sql)
    assert 3 <= len(rows) <= 10
    # It stands between double quotes of a shell.
    assert not set('"$`\\!') & set(question.sql.replace("!=", ""))


def test_the_answers_point_at_the_culprits(played: Played) -> None:
    refusals, thumbs, outage, incidents = (played[0].query(q.sql) for q in QUESTIONS)
    assert {row["prompt_version"] for row in refusals} == {"v7"}
    assert thumbs[0]["prompt_version"] == "v7"
    assert float(str(thumbs[0]["thumbs_down_pct"])) > 2 * float(str(thumbs[1]["thumbs_down_pct"]))
    assert float(str(outage[0]["errors"])) > 30
    assert [row["family"] for row in incidents] == ["refusal", "error", "latency"]


def test_the_summary_of_a_good_run(played: Played) -> None:
    text = print_summary(played[2], 80)
    assert "3 of 3 scripted incidents were found, and nothing besides." in text
