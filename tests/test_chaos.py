"""Real workers under faults, in short: the whole is `make chaos`. And the program itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.__main__ import CONTROLS, find_wrong, parse, settings_of
from tests.chaos.books import balance_events
from tests.chaos.events import Load, is_bad
from tests.chaos.plan import BY_NAME, KINDS, POINTS, Part, draw_plan
from tests.chaos.proxy import FaultProxy
from tests.chaos.run import Settings, running
from tests.chaos.watch import Recoveries
from tests.chaos.world import Ground, ground
from tests.support.clickhouse import ClickHouseServer
from tests.support.kafka import require_jars

# --- The plan --------------------------------------------------------------------------------


def test_a_seed_is_a_plan() -> None:
    assert draw_plan(1, 120, 10) == draw_plan(1, 120, 10) != draw_plan(2, 120, 10)


@pytest.mark.parametrize("part", list(Part))
def test_the_faults_of_a_part_follow_one_another_and_all_are_over_in_time(part: Part) -> None:
    plan = [fault for fault in draw_plan(3, 300, 10) if fault.part is part]
    assert len(plan) > 3
    assert all(one.at_s + one.lasting_s < later.at_s for one, later in pairwise(plan))
    assert plan[-1].at_s + plan[-1].lasting_s <= 300


def test_every_kind_comes_in_a_long_plan() -> None:
    assert {fault.kind for fault in draw_plan(4, 900, 10)} == set(BY_NAME)
    assert len(BY_NAME) == len(KINDS)


def test_every_point_is_in_the_workers_code() -> None:
    source = (Path(__file__).parent / "chaos" / "worker.py").read_text(encoding="utf-8")
    assert [point for point in POINTS if f'"{point}"' not in source] == []


def test_what_controls_are_put_under_is_in_the_plan_of_the_run() -> None:
    assert {kind for kinds in CONTROLS.values() for kind in kinds} <= set(BY_NAME)


def test_the_load_is_a_function_of_its_numbers() -> None:
    load = Load(1_000, 500, 1_700_000_000, 10, 1, 100, 400)
    lines = list(load.lines(0, 1_000))
    assert lines == list(load.lines(0, 1_000))
    assert {number for number, _ in lines} == set(range(1_000))
    assert len(lines) == 1_000 + len(range(5, 1_000, 97))
    assert [n for n in range(1_000) if is_bad(n)] == [7, 506]


# --- Recoveries ------------------------------------------------------------------------------


def test_a_recovery_is_done_when_all_that_was_written_by_its_fault_is() -> None:
    recoveries = Recoveries()
    recoveries.begin()
    recoveries.end("worker_killed", 100.0)
    recoveries.sample({0: 5, 1: 9}, {0: 50, 1: 9}, 100.5)
    recoveries.sample({0: 49, 1: 9}, {0: 90, 1: 9}, 103.0)
    assert recoveries.taken == {}
    recoveries.sample({0: 50, 1: 9}, {0: 99, 1: 9}, 104.0)
    assert recoveries.taken == {"worker_killed": [4.0]}


def test_a_recovery_begins_when_the_last_of_several_faults_is_over() -> None:
    recoveries = Recoveries()
    recoveries.begin()
    recoveries.begin()
    recoveries.end("worker_killed", 100.0)
    recoveries.sample({0: 9}, {0: 9}, 105.0)
    recoveries.end("broker_killed", 110.0)
    recoveries.sample({0: 9}, {0: 20}, 110.5)
    recoveries.sample({0: 20}, {0: 20}, 112.0)
    assert recoveries.taken == {"broker_killed": [2.0]}


def test_a_recovery_that_the_next_fault_interrupts_is_none() -> None:
    recoveries = Recoveries()
    recoveries.begin()
    recoveries.end("worker_killed", 100.0)
    recoveries.sample({0: 5}, {0: 50}, 100.5)
    recoveries.begin()
    recoveries.sample({0: 50}, {0: 50}, 101.0)
    recoveries.end("clickhouse_hangs", 102.0)
    recoveries.sample({0: 50}, {0: 50}, 102.5)
    recoveries.sample({0: 50}, {0: 50}, 103.0)
    assert recoveries.taken == {"clickhouse_hangs": [1.0]}


# --- The verdict -----------------------------------------------------------------------------

KEPT: dict[str, Any] = {
    "lost": 0, "doubled": 0, "strange": 0, "state_differs": 0, "produce_failed": 0,
    "incidents_open": 0, "pages_wrong": 0, "commits_back": 0, "rollups_differ": [],
    "worker_crashes": [], "recovery_max_s": 19.0, "rss_max_mb": 500, "rss_growth_mb": 5,
    "soak": True, "controls_failed": True,
}  # fmt: skip


def test_a_run_that_kept_every_promise_has_nothing_wrong() -> None:
    assert find_wrong(KEPT, settings_of(parse(["--seed", "1"]))) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 1) for name, value in KEPT.items() if value == 0 and name != "soak"),
        ("rollups_differ", ["route"]),
        ("worker_crashes", ["status 1: a traceback"]),
        ("recovery_max_s", 20.1),
        ("rss_max_mb", 2_000),
        ("rss_growth_mb", 200),
        ("controls_failed", False),
        ("troubled", "it did not come to rest"),
    ],
)
def test_a_promise_that_was_not_kept_is_named(name: str, value: Any) -> None:
    assert find_wrong(KEPT | {name: value}, settings_of(parse(["--seed", "1"]))) == [name]


# --- The proxy -------------------------------------------------------------------------------


@pytest.fixture
def proxy(clickhouse_server: ClickHouseServer) -> Iterator[FaultProxy]:
    with FaultProxy(clickhouse_server.port) as made:
        yield made


@pytest.mark.parametrize(("mode", "written"), [("", 1), ("refuse", 0), ("cut", 1), ("252", 0)])
def test_a_fault_of_the_proxy_is_what_it_says(
    clickhouse_server: ClickHouseServer, proxy: FaultProxy, mode: str, written: int
) -> None:
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError

    with clickhouse_server.client() as direct:
        direct.command("CREATE OR REPLACE TABLE t (n Int8) ENGINE = MergeTree ORDER BY n")
        client = clickhouse_connect.get_client(host=proxy.host, port=proxy.port, query_retries=0)
        proxy.mode = mode
        if mode:
            with pytest.raises((ClickHouseError, OSError)):
                client.insert("t", [[1]], column_names=["n"])
            assert proxy.hits
        else:
            client.insert("t", [[1]], column_names=["n"])
        proxy.mode = ""
        # A write without an answer is tried once more by the client itself.
        assert client.query("SELECT uniqExact(n) FROM t").result_rows == [(written,)]
        client.close()


# --- The real thing --------------------------------------------------------------------------

#: One of each sort, and the points at which least may be lost.
IN_SHORT = (
    "worker_killed",
    "worker_killed_after-declared",
    "worker_killed_after-insert",
    "broker_killed",
    "clickhouse_cut_after_apply",
    "clickhouse_killed",
    "pagerduty_silent_after_accept",
    "grafana_500",
)


@pytest.fixture
def own_ground(tmp_path: Path) -> Iterator[Ground]:
    require_jars()
    with ground(tmp_path) as made:
        yield made


@pytest.mark.kafka
def test_the_books_balance_after_every_sort_of_fault(own_ground: Ground) -> None:
    settings = Settings(5, 20.0, 800.0, session_s=6.0, workers=2, kinds=IN_SHORT)
    with running(own_ground, settings) as run:
        run.strain()
        run.settle()
        report = run.balance() | {"soak": False}
        assert report["faults_total"] >= 4
        assert report["incidents"] >= 1
        # How long it takes is said of a machine that has nothing else to do.
        assert set(find_wrong(report, settings)) <= {"recovery_max_s"}, run.world.logs()
        # And would a difference be seen?
        store = run.world.store
        with own_ground.server.client(database=run.world.name) as client:
            client.command(
                "ALTER TABLE requests DELETE WHERE event_id = 'e0' SETTINGS mutations_sync = 1"
            )
            client.command("INSERT INTO rollup_1m SELECT * FROM rollup_1m LIMIT 1")
        books = balance_events(store, run.world.kafka, run.load)
        assert books.lost
        assert books.doubled
        assert books.rollups_differ
