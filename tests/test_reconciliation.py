"""Reconciliation: what the rollups say, held against what is stored."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import cli
from pipeline.config import ClickHouseSettings, Config
from pipeline.local import LocalPipeline
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.erasure import Eraser
from pipeline.sinks.reconciliation import (
    AGAIN_MS,
    MINUTE_MS,
    SETTLED_MS,
    USUAL_MS,
    Comparison,
    Reconciler,
    find_start,
    read_last,
)

NOW_MS = round(time.time() * 1000)
START_MS = NOW_MS // MINUTE_MS * MINUTE_MS - 60 * MINUTE_MS
MINUTES, EVENTS = 5, 40


def events() -> list[bytes]:
    """Two models, one of them without a price, and some traffic that has no route."""
    return [
        json.dumps(
            {
                "event.id": f"e{i}",
                "event.time": (START_MS + i * MINUTES * MINUTE_MS // EVENTS) / 1000,
                "gen_ai.request.model": ("gpt-4o", "of-our-own")[i % 2],
                "gen_ai.provider.name": "openai",
                "gen_ai.usage.input_tokens": 100 + i,
                "gen_ai.usage.output_tokens": 7 * i,
                "gateway.refusal": i % 7 == 0,
                **({"gateway.route": "support"} if i % 3 else {}),
                **({"error.type": "timeout"} if i % 11 == 5 else {}),
            }
        ).encode()
        for i in range(EVENTS)
    ]


@pytest.fixture
def config(embedded_path: Path, empty_database: str) -> Config:
    return Config(clickhouse=ClickHouseSettings(path=embedded_path, database=empty_database))


@pytest.fixture
def store(config: Config) -> Iterator[Store]:
    store = Store(config.clickhouse)
    store.migrate()
    LocalPipeline(config, store, "e1").feed(events(), NOW_MS - 2 * SETTLED_MS)
    yield store
    store.close()


def test_what_the_workers_counted_adds_up(store: Store, config: Config) -> None:
    reconciler = Reconciler(store, config.ingest.groupings)
    found = reconciler.compare(START_MS, NOW_MS, NOW_MS)
    assert found.differences == ()
    # Groupings that none of these events has are compared nowhere.
    assert found.compared >= 4 * MINUTES
    reconciler.save(found, NOW_MS)
    assert store.rows("SELECT compared, differing FROM reconciliations") == [(found.compared, 0)]


def test_a_doubled_block_and_a_lost_row_are_found(store: Store, config: Config) -> None:
    store.query(
        "INSERT INTO rollup_1m SELECT * FROM rollup_1m"
        " WHERE grouping = 'route' AND minute = (SELECT min(minute) FROM rollup_1m)"
    )
    found = Reconciler(store, config.ingest.groupings).compare(START_MS, NOW_MS, NOW_MS)
    assert {(d.minute_ms, d.grouping) for d in found.differences} == {(START_MS, "route")}
    doubled = next(d for d in found.differences if d.what == "requests")
    assert int(doubled.rolled_up) == 2 * int(doubled.stored)
    assert found.differing == 1
    store.query("DELETE FROM requests WHERE event_id = 'e39'")
    found = Reconciler(store, config.ingest.groupings).compare(START_MS, NOW_MS, NOW_MS)
    last_ms = START_MS + (MINUTES - 1) * MINUTE_MS
    assert (last_ms, "request_model") in {(d.minute_ms, d.grouping) for d in found.differences}


def test_a_minute_that_is_still_written_is_left_alone(store: Store, config: Config) -> None:
    reconciler = Reconciler(store, config.ingest.groupings)
    written_ms = NOW_MS - 2 * SETTLED_MS
    assert reconciler.compare(START_MS, NOW_MS, written_ms + SETTLED_MS).compared == 0
    assert reconciler.compare(START_MS, NOW_MS, written_ms + SETTLED_MS + 1).compared > 0


def test_minutes_of_an_erased_user_are_left_out(store: Store, config: Config) -> None:
    Eraser(store)._note_minutes([""])
    store.query("DELETE FROM requests WHERE event_id = 'e39'")
    found = Reconciler(store, config.ingest.groupings).compare(START_MS, NOW_MS, NOW_MS)
    assert found.differences == ()
    assert found.compared == 0


def test_what_differs_is_compared_again_until_it_is_mended(store: Store, config: Config) -> None:
    assert read_last(store) is None
    assert find_start(None, NOW_MS) == NOW_MS - USUAL_MS
    reconciler = Reconciler(store, config.ingest.groupings)
    store.query("INSERT INTO rollup_1m SELECT * FROM rollup_1m WHERE grouping = 'route'")
    reconciler.save(reconciler.compare(START_MS, NOW_MS, NOW_MS), NOW_MS)
    last = read_last(store)
    assert last is not None
    assert (last.checked_ms, last.differing > 0) == (NOW_MS, True)
    assert last.first_differing_ms == START_MS
    later_ms = NOW_MS + 10 * USUAL_MS
    assert find_start(last, later_ms) == START_MS
    assert find_start(last, NOW_MS + 2 * AGAIN_MS) == NOW_MS + AGAIN_MS
    balanced = Comparison(START_MS, later_ms, 10, ())
    reconciler.save(balanced, later_ms)
    assert find_start(read_last(store), later_ms) == later_ms - USUAL_MS


def test_the_command_says_so(store: Store, config: Config) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.commands["reconcile"], arguments, obj=lambda: config)

    store.close()
    well = run()
    assert (well.exit_code, well.stdout.split(",")[1]) == (0, " 0 differ\n")
    reopened = Store(config.clickhouse)
    reopened.use_database()
    reopened.query("INSERT INTO rollup_1m SELECT * FROM rollup_1m WHERE grouping = 'route'")
    reopened.close()
    wrong = run("--json")
    assert wrong.exit_code == 1
    assert {json.loads(line)["grouping"] for line in wrong.stdout.splitlines()} == {"route"}
