"""The whole pipeline without a broker: from raw events to one incident that names its cause."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import ClickHouseSettings, Config, IngestSettings
from pipeline.inputs import InputError
from pipeline.local import SIGNALS_STEP, Counts, LocalPipeline
from pipeline.replay import replay, to_json_line, to_words
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.detections import DetectionStore
from pipeline.sinks.incidents import IncidentStore
from schemas.alarm import Alarm, Transition
from schemas.incident import Incident, Status
from schemas.signal import Family
from tests.support.clickhouse import few_attempts
from tests.support.events import Json, make_event, make_raw, make_traffic, to_bytes

ROOT = Path(__file__).parents[1]
#: `kizashi replay` asks the clock when its records are written, so events are of these days.
NOW_MS = int(time.time()) * 1000 - 3_600_000
STEP_MS = 250
MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-4"}
QUIET, BROKEN = 0.03, 0.4

News = list[Alarm | Incident]


def make_company(
    seed: int, size: int, broken: range = range(0), *, error_rate: float = 0.01
) -> list[Json]:
    """Return a company's traffic; in `broken`, version 2 of the prompt "triage" refuses often."""
    rng = np.random.default_rng(seed)
    luck, errors = rng.random(size), rng.random(size)
    first = rng.lognormal(-1.0, 0.4, size)
    tokens = rng.integers(20, 400, size)
    names = rng.choice(["triage", "summary", "search"], size)
    providers = rng.choice(["openai", "anthropic"], size)
    versions = rng.choice(["1", "2"], size)
    sick = (names == "triage") & (versions == "2") & np.isin(np.arange(size), broken)
    return [
        make_event(
            f"c{seed}-{i}",
            time_ms=NOW_MS + i * STEP_MS,
            provider=str(providers[i]),
            request_model=MODELS[providers[i]],
            response_model=f"{MODELS[providers[i]]}-2025",
            route=str(rng.choice(["support", "api"])),
            tenant=str(rng.choice(["acme", "globex", "日本商事"])),
            prompt_name=str(names[i]),
            prompt_version=str(versions[i]),
            region=str(rng.choice(["eu", "us"])),
            error_type="timeout" if errors[i] < error_rate else None,
            refusal=bool(luck[i] < (BROKEN if sick[i] else QUIET)),
            finish_reasons=["stop"],
            input_tokens=500,
            output_tokens=int(tokens[i]),
            time_to_first_chunk_s=float(first[i]),
            duration_s=float(first[i] + 0.02 * tokens[i]),
        )
        for i in range(size)
    ]


@pytest.fixture
def config(embedded_path: Path, empty_database: str) -> Config:
    days = {"requests_ttl_days": 10_000, "rollups_ttl_days": 10_000}
    return Config(
        clickhouse=ClickHouseSettings(path=embedded_path, database=empty_database, **days)
    )


@pytest.fixture
def store(config: Config) -> Iterator[Store]:
    store = Store(config.clickhouse)
    store.migrate()
    yield store
    store.close()


def run(pipeline: LocalPipeline, events: list[Json]) -> News:
    now_ms = NOW_MS + len(events) * STEP_MS
    return pipeline.feed([to_bytes(e) for e in events], now_ms) + pipeline.finish(now_ms)


def alarms_of(news: News, transition: Transition = Transition.RAISED) -> list[Alarm]:
    return [n for n in news if isinstance(n, Alarm) and n.transition is transition]


def latest_incidents(news: News) -> dict[str, Incident]:
    return {n.incident_id: n for n in news if isinstance(n, Incident)}


# --- The books -------------------------------------------------------------------------------


def test_the_books_balance(config: Config, store: Store) -> None:
    good = [to_bytes(e) for e in make_company(1, 300)]
    values = [*good, b"[]", b"", good[7], good[299], b"\xff", make_raw(input_tokens=-1)]
    pipeline = LocalPipeline(config, store, epoch="1")
    for start in range(0, len(values), 100):
        pipeline.feed(values[start : start + 100], NOW_MS)
    assert pipeline.counts == Counts(events=306, stored=300, deadlettered=4, duplicates=2)
    assert pipeline.query("SELECT count() AS n, uniq(event_id) AS ids FROM requests") == [
        {"n": 300, "ids": 300}
    ]
    letters = pipeline.query("SELECT offset, reason FROM deadletters ORDER BY offset")
    assert [tuple(row.values()) for row in letters] == [
        (300, "not_an_object"),
        (301, "invalid_json"),
        (304, "invalid_utf8"),
        (305, "invalid_field"),
    ]


def test_every_kind_of_event_goes_through(config: Config, store: Store) -> None:
    events = make_traffic(1, 500)
    pipeline = LocalPipeline(config, store, epoch="1")
    for start in range(0, 500, 170):
        values = [to_bytes(e) for e in events[start : start + 170]]
        pipeline.feed(values, int(events[-1]["event.time"] * 1000))
    assert pipeline.counts == Counts(500, 500, 0, 0)
    total = "SELECT sum(requests) AS n FROM rollup_1m WHERE grouping = 'request_model'"
    assert pipeline.query(total) == [{"n": 500}]


def test_large_batches_are_cut_into_chunks(config: Config, store: Store) -> None:
    small = config.model_copy(update={"ingest": IngestSettings(chunk_events=64)})
    pipeline = LocalPipeline(small, store, epoch="1")
    values = [to_bytes(e) for e in make_company(1, 150)]
    pipeline.feed([*values, *values], NOW_MS)
    assert pipeline.counts == Counts(300, 150, 0, 150)


def test_two_runs_are_two_sets_of_rows(config: Config, store: Store) -> None:
    values = [make_raw(time_ms=NOW_MS)]
    for epoch in ("1", "2"):
        pipeline = LocalPipeline(config, store, epoch=epoch)
        pipeline.feed(values, NOW_MS)
        assert pipeline.counts.stored == 1
    rows = store.rows("SELECT sum(requests) FROM rollup_1m WHERE grouping = 'request_model'")
    assert rows == [(2,)]


def test_a_row_that_clickhouse_refuses_is_a_dead_letter(config: Config, store: Store) -> None:
    pipeline = LocalPipeline(config, store, epoch="1")
    fields = {"time_ms": NOW_MS}
    with few_attempts(store):
        pipeline.feed(
            [make_raw(str(i), attempts=9 if i == 3 else 1, **fields) for i in range(8)], NOW_MS
        )
    assert pipeline.counts == Counts(8, 7, 1, 0)
    assert pipeline.query("SELECT offset, reason FROM deadletters") == [
        {"offset": 3, "reason": "unstorable"}
    ]


# --- What is found ---------------------------------------------------------------------------

START, END, SIZE = 3_000, 4_000, 6_500
RECORDED = 3_700


@pytest.fixture(scope="module")
def broken_news(embedded_path: Path) -> Iterator[tuple[News, Store]]:
    """A prompt version breaks at START and is mended at END; played once for several tests."""
    database = f"t{uuid.uuid4().hex[:12]}"
    config = Config(clickhouse=ClickHouseSettings(path=embedded_path, database=database))
    store = Store(config.clickhouse)
    store.migrate()
    pipeline = LocalPipeline(config, store, epoch="1")
    yield run(pipeline, make_company(7, SIZE, range(START, END))), store
    store.close()


def test_a_broken_prompt_version_is_one_incident_with_its_cause(
    broken_news: tuple[News, Store],
) -> None:
    (incident,) = latest_incidents(broken_news[0]).values()
    assert incident.family is Family.REFUSAL
    assert incident.cause.labels == {"prompt_name": "triage", "prompt_version": "2"}
    assert incident.cause.share > 0.8
    assert incident.cause.after.value > 3 * incident.cause.before.value
    change_event = (incident.change_time_ms - NOW_MS) / STEP_MS
    assert abs(change_event - START) < 300
    assert all(event_id.startswith("c7-") for event_id in incident.example_event_ids)
    assert incident.example_event_ids


def test_it_resolves_once_the_version_is_mended(broken_news: tuple[News, Store]) -> None:
    news, _ = broken_news
    (incident,) = latest_incidents(news).values()
    assert incident.status is Status.RESOLVED
    assert NOW_MS + END * STEP_MS < (incident.resolved_ms or 0) < NOW_MS + SIZE * STEP_MS
    raised = {a.alarm_id for a in alarms_of(news)}
    assert {a.alarm_id for a in alarms_of(news, Transition.CLEARED)} == raised
    versions = [n.version for n in news if isinstance(n, Incident)]
    assert versions == list(range(1, len(versions) + 1))


def test_an_input_that_ends_clear_ends_resolved(config: Config, store: Store) -> None:
    """No time passes after the last event, so nobody could wait for the alarms to stay clear."""
    values = [to_bytes(e) for e in make_company(7, SIZE, range(START, END))]
    pipeline = LocalPipeline(config, store, epoch="1")
    news = pipeline.feed(values[:END], NOW_MS)
    for start in range(END, SIZE, SIGNALS_STEP):
        news += pipeline.feed(values[start : start + SIGNALS_STEP], NOW_MS)
        if len(alarms_of(news, Transition.CLEARED)) == len(alarms_of(news)) > 0:
            break
    (still_open,) = latest_incidents(news).values()
    assert still_open.status is Status.OPEN
    assert len(still_open.cleared) == len(still_open.alarms)
    (resolved,) = pipeline.finish(NOW_MS)
    assert (resolved.incident_id, resolved.status) == (still_open.incident_id, Status.RESOLVED)
    assert resolved.resolved_ms == still_open.updated_ms
    assert pipeline.finish(NOW_MS) == []


def test_an_alarm_says_where_in_the_input_it_was_raised(broken_news: tuple[News, Store]) -> None:
    alarms = alarms_of(broken_news[0])
    assert alarms
    for alarm in alarms:
        assert alarm.family is Family.REFUSAL
        assert START < alarm.event_index < END + 2 * SIGNALS_STEP
        # The input has one event every STEP_MS, so the index and the time must agree.
        age_steps = alarm.event_index - (alarm.time_ms - NOW_MS) / STEP_MS
        assert 0 <= age_steps < SIGNALS_STEP
        assert alarm.e_value >= alarm.threshold
        assert alarm.current.value > alarm.baseline.value
    first = alarms[0].event_index
    assert first < RECORDED, "the change was there for the seeing"


def test_what_was_said_is_what_is_stored(broken_news: tuple[News, Store]) -> None:
    news, store = broken_news
    assert {i.incident_id: i for i in IncidentStore(store).load_recent()} == latest_incidents(news)
    sql = "SELECT alarm_id, transition FROM alarms FINAL"
    said = {(a.alarm_id, a.transition.value) for a in news if isinstance(a, Alarm)}
    assert set(store.rows(sql)) == said
    states = {row[0] for row in store.rows("SELECT DISTINCT state FROM verdicts")}
    assert {"quiet", "alarmed"} <= states


def test_the_same_input_says_the_same(config: Config, store: Store) -> None:
    """Whatever else is in the store, under another topic, and however the input is cut."""
    events = make_company(7, RECORDED, range(START, END))
    values = [to_bytes(e) for e in events]
    runs = []
    for size in (len(values), SIGNALS_STEP * 20):
        own = f"{config.clickhouse.database}_{size}"
        apart = Store(config.clickhouse.model_copy(update={"database": own}))
        apart.migrate()
        pipeline = LocalPipeline(config, apart, epoch="1")
        runs.append(
            [
                alarm
                for start in range(0, len(values), size)
                for alarm in alarms_of(pipeline.feed(values[start : start + size], NOW_MS))
            ]
        )
        apart.close()
    assert runs[0] == runs[1] != []
    assert DetectionStore(store).load_snapshot("local", "1", 0) is None


@pytest.mark.parametrize("seed", [11, 12])
def test_nothing_happens_and_nothing_is_said(config: Config, store: Store, seed: int) -> None:
    pipeline = LocalPipeline(config, store, epoch="1")
    assert run(pipeline, make_company(seed, 5_000)) == []
    assert pipeline.counts.stored == 5_000
    assert pipeline.query("SELECT count() AS n FROM alarms") == [{"n": 0}]


# --- Replay ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of events with a repeat and a broken line, the prompt broken to the end."""
    values = [to_bytes(e) for e in make_company(7, RECORDED, range(START, END))]
    path = tmp_path_factory.mktemp("recording") / "events.ndjson.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"\n".join([*values, b"", values[0], b"{broken"]) + b"\n")
    return path


def check_lines(items: list[dict[str, Any]]) -> None:
    *findings, summary = items
    alarms = [i for i in findings if i["type"] == "alarm"]
    incidents = [i for i in findings if i["type"] == "incident"]
    assert alarms
    assert {i["type"] for i in findings} <= {"alarm", "cleared", "incident"}
    for alarm in alarms:
        assert {
            "type",
            "event_index",
            "event_time",
            "monitor",
            "family",
            "signal",
            "e_value",
            "baseline",
            "current",
        } <= set(alarm)
        assert START < alarm["event_index"] < RECORDED
        assert alarm["event_time"].endswith("Z")
        assert isinstance(alarm["monitor"], dict)
        assert (alarm["family"], alarm["signal"]) == ("refusal", "refusal")
        for rate in (alarm["baseline"], alarm["current"]):
            assert rate["rate"] == pytest.approx(rate["count"] / rate["total"])
        assert alarm["current"]["rate"] > alarm["baseline"]["rate"]
    assert summary["type"] == "summary"
    assert (summary["events"], summary["stored"]) == (RECORDED + 2, RECORDED)
    assert (summary["deadlettered"], summary["duplicates"]) == (1, 1)
    assert len(summary["incidents"]) == len({i["incident_id"] for i in incidents}) == 1
    assert summary["incidents"][0]["monitor"] == {"prompt_name": "triage", "prompt_version": "2"}


def test_a_replay_says_what_it_finds_and_ends_with_the_books(
    config: Config, recording: Path
) -> None:
    items = [json.loads(to_json_line(i)) for i in replay(config, [recording], keep=True)]
    check_lines(items)
    # It was kept.
    store = Store(config.clickhouse)
    store.use_database()
    assert store.rows("SELECT count() FROM requests") == [(RECORDED,)]
    store.close()


def test_the_command_prints_the_same_and_leaves_nothing(recording: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    done = subprocess.run(
        [*command, "replay", "--json", str(recording)],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    check_lines([json.loads(line) for line in done.stdout.splitlines()])
    assert list(tmp_path.iterdir()) == []


def test_a_replay_of_two_files_is_one_input(config: Config, tmp_path: Path) -> None:
    """A repeat across files is a repeat."""
    (tmp_path / "a").write_bytes(make_raw("1", time_ms=NOW_MS) + b"\n")
    (tmp_path / "b").write_bytes(
        make_raw("1", time_ms=NOW_MS) + b"\r\n" + make_raw("2", time_ms=NOW_MS)
    )
    (summary,) = replay(config, [tmp_path / "a", tmp_path / "b"], keep=True)
    assert (summary["events"], summary["stored"], summary["duplicates"]) == (3, 2, 1)
    assert summary["incidents"] == []
    assert to_words(summary) == "3 events: 2 stored, 0 dead-lettered, 1 repeats"


def test_a_file_that_cannot_be_read_is_an_error(config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        list(replay(config, [tmp_path / "nowhere"], keep=True))
