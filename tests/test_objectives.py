"""Objectives: budgets and burn rates, against a count of every single request."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.cli import cli
from pipeline.config import ClickHouseSettings, Config, ObjectiveSettings
from pipeline.incidents.objectives import (
    BURN_RULES,
    DAY_S,
    HOUR_S,
    WINDOWS_S,
    Objective,
    Standing,
    Tally,
    Urgency,
    assess,
)
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.objectives import ObjectiveStore
from schemas.monitor import Dimension

OBJECTIVE = Objective("checkout", 0.99, 28 * DAY_S, 10)
ROUTE = (Dimension.ROUTE,)
NOW_MS = 1_760_000_030_000
UNTIL_S = NOW_MS // 60_000 * 60


def tallies(**shares: float) -> dict[int, Tally]:
    """100,000 requests in every window; `w300=0.5` means that half of five minutes was bad."""
    named = {int(name[1:]): share for name, share in shares.items()}
    return {w: Tally(round(named.get(w, 0.0) * 100_000), 100_000) for w in (*WINDOWS_S, 28 * DAY_S)}


@pytest.mark.parametrize(
    ("counted", "urgency"),
    [
        (tallies(), Urgency.NONE),
        (tallies(w3600=0.1441, w300=0.1441), Urgency.PAGE),
        (tallies(w3600=0.143, w300=0.5), Urgency.NONE),
        # It is over: the short window has forgotten.
        (tallies(w3600=0.5, w300=0.143), Urgency.NONE),
        (tallies(w21600=0.0601, w1800=0.0601), Urgency.PAGE),
        (tallies(w259200=0.0101, w21600=0.0101), Urgency.TICKET),
        (tallies(w259200=0.01, w21600=0.009), Urgency.NONE),
        (tallies(w259200=0.0101, w21600=0.0601, w1800=0.0601), Urgency.PAGE),
    ],
)
def test_a_rule_wants_both_its_windows(counted: dict[int, Tally], urgency: Urgency) -> None:
    assert assess(OBJECTIVE, counted, 0).urgency is urgency


def test_a_handful_of_bad_requests_asks_for_nothing() -> None:
    few = {w: Tally(9, 9) for w in (*WINDOWS_S, 28 * DAY_S)}
    enough = {w: Tally(10, 10) for w in (*WINDOWS_S, 28 * DAY_S)}
    assert assess(OBJECTIVE, few, 0).urgency is Urgency.NONE
    assert assess(OBJECTIVE, enough, 0).urgency is Urgency.PAGE


def test_the_budget_is_what_the_target_leaves() -> None:
    counted = tallies() | {28 * DAY_S: Tally(250, 100_000)}
    standing = assess(OBJECTIVE, counted, 0)
    assert standing.budget_left == pytest.approx(0.75)
    assert standing.good_share == pytest.approx(0.9975)
    overspent = assess(OBJECTIVE, counted | {28 * DAY_S: Tally(2_000, 100_000)}, 0)
    assert overspent.budget_left == pytest.approx(-1.0)
    quiet = assess(OBJECTIVE, {w: Tally() for w in counted}, 0)
    assert (quiet.budget_left, quiet.urgency) == (1.0, Urgency.NONE)


@given(st.floats(0.5, 0.9999), st.floats(0, 1))
def test_the_workbooks_shares_of_the_budget(target: float, share: float) -> None:
    """A burn rate that lasts for a long window spends factor x window / 30 days."""
    spent = [rule.factor * rule.long_s / (30 * DAY_S) for rule in BURN_RULES]
    assert spent == pytest.approx([0.02, 0.05, 0.1])
    objective = Objective("o", target, 28 * DAY_S, 1)
    counted = {w: Tally(round(share * 10**6), 10**6) for w in (*WINDOWS_S, 28 * DAY_S)}
    standing = assess(objective, counted, 0)
    burn = round(share * 10**6) / 10**6 / (1 - target)
    assert list(standing.burn.values()) == pytest.approx([burn] * len(WINDOWS_S))
    assert standing.budget_left == pytest.approx(1 - burn)
    assert (standing.urgency is Urgency.PAGE) == (burn >= 6.0 and share * 10**6 >= 0.5)


# --- From rollups --------------------------------------------------------------------------------


@pytest.fixture
def store(embedded_path: Path, empty_database: str) -> Iterator[Store]:
    settings = ClickHouseSettings(
        path=embedded_path, database=empty_database, rollups_ttl_days=10_000
    )
    made = Store(settings)
    made.migrate()
    yield made
    made.close()


def minutes(seed: int) -> list[dict[str, Any]]:
    """A rollup now and then over a month, of two routes; some at the edges of windows."""
    rng = random.Random(seed)
    ages = [rng.randrange(0, 30 * DAY_S) for _ in range(200)]
    ages += [w + edge for w in (*WINDOWS_S, 28 * DAY_S) for edge in (-60, 0, 60)]
    rows = []
    for age in ages:
        requests = rng.randrange(20, 200)
        errors, refusals = rng.randrange(5), rng.randrange(5)
        in_time, late = requests - 8, rng.randrange(8)
        rows.append(
            {
                "minute": dt.datetime.fromtimestamp((UNTIL_S - age) // 60 * 60, dt.UTC),
                "grouping": "route",
                "route": rng.choice(["checkout", "support"]),
                "requests": requests,
                "errors": errors,
                "answered": requests - errors,
                "refusals": refusals,
                # 2^(320/32) ms is the edge at 1,024 ms: bucket 319 is in time, 320 is not.
                "duration_ms": {319: in_time, 320: late},
                "record_time": dt.datetime.fromtimestamp(NOW_MS / 1000, dt.UTC),
            }
        )
    return rows


def count(rows: list[dict[str, Any]], route: str, span_s: int, *, slow: bool) -> Tally:
    """The batch oracle: look at every row."""
    from_s = UNTIL_S - span_s
    inside = [
        r for r in rows if r["route"] == route and from_s <= r["minute"].timestamp() < UNTIL_S
    ]
    bad = sum(r["errors"] + r["refusals"] + slow * r["duration_ms"][320] for r in inside)
    total = sum(r["requests"] for r in inside)
    return Tally(min(bad, total), total)


@pytest.mark.parametrize("slow", [False, True])
def test_standings_agree_with_a_count_of_everything(store: Store, slow: bool) -> None:
    rows = minutes(1)
    for row in rows:
        # One at a time: what has not been merged must add up all the same.
        store.insert_rows("rollup_1m", [row])
    settings = ObjectiveSettings(
        name="checkout",
        grouping=ROUTE,
        values=("checkout",),
        target=0.97,
        latency_s=1.024 if slow else None,
    )
    standing = ObjectiveStore(store, ROUTE).measure(settings, NOW_MS)
    objective = Objective("checkout", 0.97, 28 * DAY_S, 10)
    spans = (*WINDOWS_S, 28 * DAY_S)
    expected = {w: count(rows, "checkout", w, slow=slow) for w in spans}
    assert standing == assess(objective, expected, UNTIL_S * 1000)
    assert standing.requests > 0


def test_all_traffic_is_counted_once(store: Store) -> None:
    rows = minutes(2)
    store.insert_rows("rollup_1m", rows)
    store.insert_rows("rollup_1m", [{**r, "grouping": "tenant", "route": ""} for r in rows])
    settings = ObjectiveSettings(name="all", target=0.97, bad=("error",))
    standing = ObjectiveStore(store, ROUTE).measure(settings, NOW_MS)
    both = [count(rows, route, 28 * DAY_S, slow=False) for route in ("checkout", "support")]
    assert standing.requests == sum(t.total for t in both)


def test_a_standing_is_stored_once_a_minute(store: Store) -> None:
    objectives = ObjectiveStore(store, ROUTE)
    standing = objectives.measure(ObjectiveSettings(name="all", target=0.9), NOW_MS)
    objectives.save([standing])
    objectives.save([standing])
    rows = store.rows(
        "SELECT objective, urgency, urgency_level, budget_left, burn[3600]"
        " FROM objective_standings FINAL"
    )
    assert rows == [("all", "none", 0, 1.0, 0.0)]


def test_slo_at_the_terminal(
    store: Store, tmp_path: Path, embedded_path: Path, empty_database: str
) -> None:
    file = tmp_path / "kizashi.toml"
    file.write_text(
        f'[clickhouse]\npath = "{embedded_path}"\ndatabase = "{empty_database}"\n'
        '[[objectives]]\nname = "checkout"\ngrouping = "route"\nvalues = ["checkout"]\n'
        "target = 0.995\nlatency_s = 2\n"
    )
    now = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=2)
    row = {
        "minute": now.replace(second=0, microsecond=0),
        "grouping": "route",
        "route": "checkout",
        "requests": 1_000,
        "errors": 500,
        "record_time": now,
    }
    store.insert_rows("rollup_1m", [row])
    asked = CliRunner().invoke(cli, ["--config", str(file), "slo", "--json"])
    standing = msgspec.json.decode(asked.output, type=Standing)
    assert standing.urgency is Urgency.PAGE
    assert standing.burn[HOUR_S] == pytest.approx(100.0)
    table = CliRunner().invoke(cli, ["--config", str(file), "slo"]).output
    assert "checkout" in table
    assert "-9900.0%" in table


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "a b", "target": 0.9},
        {"name": "a", "target": 1.0},
        {"name": "a", "target": 0.9, "bad": []},
        {"name": "a", "target": 0.9, "bad": ["error", "error"]},
        {"name": "a", "target": 0.9, "grouping": "route"},
        {"name": "a", "target": 0.9, "values": ["x"]},
    ],
)
def test_an_objective_that_makes_no_sense_stops_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ObjectiveSettings.model_validate(settings)


def test_an_objective_needs_a_grouping_that_is_counted() -> None:
    uncounted = {"name": "a", "target": 0.9, "grouping": "region", "values": ["eu"]}
    with pytest.raises(ValidationError, match="nothing is counted"):
        Config(objectives=[uncounted])  # type: ignore[list-item]  # as it comes from a file
    twice = {"name": "a", "target": 0.9}
    with pytest.raises(ValidationError, match="stands there twice"):
        Config(objectives=[twice, twice])  # type: ignore[list-item]  # as above
