"""Dashboards: every panel's SQL on a real engine, the JSON against the SDK, and the push."""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import clickhouse_connect
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as models
from msgspec import structs

from dashboards.alerts import ALERTS_FILE, build_alerts, render_alerts, write_alerts
from dashboards.boards import BOARDS
from dashboards.build import (
    DATASOURCE_TYPE,
    DATASOURCE_UID,
    GENERATED,
    build_all,
    render,
    write_all,
)
from dashboards.panels import INCIDENTS_SQL, OPENED_BY, Board, Kind, Panel
from dashboards.push import Action, ClickHouse, Unusable, datasource_model, push
from dashboards.rules import RULES, Rule
from dashboards.sql import chosen, variable_options
from pipeline.cli import cli
from pipeline.config import ClickHouseSettings, Config, DetectionSettings, ObjectiveSettings
from pipeline.errors import ConfigError
from pipeline.local import LocalPipeline
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.detections import DetectionStore
from pipeline.sinks.endpoint import EndpointConfig
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.objectives import ObjectiveStore
from pipeline.sinks.reconciliation import Comparison, Reconciler
from pipeline.sinks.times import to_datetime
from schemas.incident import Incident, Status
from schemas.monitor import DIMENSIONS, Dimension
from schemas.signal import Family, Signal
from tests.support.clickhouse import serving
from tests.support.events import make_event, make_raw, to_bytes
from tests.support.feedback import feedback_raw
from tests.support.grafana import TOKEN, FakeGrafana, TimeRange, expand, grafana_fixture
from tests.support.pagerduty import make_incident, make_notification

__all__ = ["grafana_fixture"]

ROOT = Path(__file__).parents[1]
PANELS = [(board, panel) for board in BOARDS for panel in board.panels]
each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.uid)
each_panel = pytest.mark.parametrize(
    ("board", "panel"), PANELS, ids=[f"{b.uid}: {p.title}" for b, p in PANELS]
)
#: What panels read that the filters do not apply to.
UNFILTERED = ("FROM incidents", "FROM alarms", "FROM references")
#: Would end a string that only has its quotes doubled: ClickHouse knows the backslash as well.
HOSTILE = (
    "\\' OR 1 --",
    "' OR 1 OR '",
    "x' UNION ALL SELECT sleep(3) --",
    "\\",
    "a,b",
    "a&v=b",
    "all",
    "$__timeFilter(minute)",
    "${route:raw}",
    "100%27",
    "日本 モデル+1",
    '"; DROP TABLE requests',
    "/* */",
)
SIZE = 1_500
SPAN_MS = 30 * 60_000


# --- A database with everything in it --------------------------------------------------------


class Filled:
    """A migrated database, what was put into it, and the time range that holds it."""

    def __init__(self, store: Store, database: str, now_ms: int) -> None:
        self.store = store
        self.database = database
        self.span = TimeRange(now_ms // 1000 - 3600, now_ms // 1000 + 1)

    def run(self, sql: str, **chosen: list[str]) -> list[dict[str, Any]]:
        names, rows = self.store.query(expand(sql, self.span, chosen), read_only=True)
        return [dict(zip(names, row, strict=True)) for row in rows]


def make_events(now_ms: int) -> list[bytes]:
    """Traffic that goes well, until one route begins to refuse; and requests of hostile names."""
    rng = np.random.default_rng(7)
    events = []
    for i in range(SIZE):
        refuses = i > SIZE * 0.7 and i % 2 == 0
        model = ("gpt-4o", "mystery-1")[int(rng.random() < 0.2)]
        events.append(
            make_event(
                f"d{i}",
                time_ms=now_ms - SPAN_MS + i * SPAN_MS // SIZE,
                request_model=model,
                response_model=model,
                provider="openai",
                route="support" if refuses or rng.random() < 0.5 else "search",
                tenant=("acme", "globex")[int(rng.integers(2))],
                prompt_name="triage",
                prompt_version="7",
                region="eu",
                error_type="timeout" if rng.random() < 0.02 else None,
                refusal=bool(refuses or rng.random() < 0.02),
                finish_reasons=["length" if rng.random() < 0.03 else "stop"],
                input_tokens=1_000,
                cache_read_tokens=200,
                output_tokens=100,
                duration_s=float(rng.lognormal(0, 0.5)),
                time_to_first_chunk_s=float(rng.lognormal(-1, 0.5)),
            )
        )
    events += [
        make_event(
            f"h{i}", time_ms=now_ms - 1_000, request_model=name, route=name, tenant="mallory"
        )
        for i, name in enumerate(HOSTILE)
    ]
    return [to_bytes(event) for event in events]


@pytest.fixture(scope="module")
def filled(embedded_path: Path) -> Iterator[Filled]:
    settings = ClickHouseSettings(path=embedded_path, database=f"t{uuid.uuid4().hex[:12]}")
    config = Config(clickhouse=settings, detection=DetectionSettings(learn_events=100))
    store = Store(settings)
    try:
        store.migrate()
        now_ms = round(time.time() * 1000)
        pipeline = LocalPipeline(config, store, epoch="1")
        pipeline.feed(make_events(now_ms), now_ms)
        pipeline.feed([b"{", b"[]", make_raw("x", request_model=None)], now_ms)
        rated = [
            feedback_raw(f"f{i}", f"d{i}", score=i % 3, time_ms=now_ms) for i in range(0, 99, 9)
        ]
        rated += [feedback_raw(f"g{i}", f"d{i}", score=1, time_ms=now_ms) for i in range(1, 99, 9)]
        rated.append(feedback_raw("r", "d2", name="facts/v2", score=0, time_ms=now_ms))
        pipeline.feed_feedback([*rated, feedback_raw("f", "gone", time_ms=now_ms)], now_ms)
        pipeline.finish(now_ms)
        objectives = ObjectiveStore(store, config.ingest.groupings[0])
        objective = ObjectiveSettings(name="all", target=0.99)
        objectives.save([objectives.measure(objective, now_ms)])
        incident = make_incident(incident_id="told")
        DetectionStore(store).save_snapshot("llm.signals", "1", 0, 41, [b"state"])
        IncidentStore(store).save_notifications([make_notification(incident=incident)])
        Reconciler(store, config.ingest.groupings).save(
            Comparison(now_ms - 3_600_000, now_ms, 60, ()), now_ms
        )
        save_resolved(store, now_ms)
        save_fingerprints(store, now_ms)
        yield Filled(store, settings.database, now_ms)
    finally:
        store.close()


def save_resolved(store: Store, now_ms: int) -> None:
    past = make_incident(incident_id="past", status=Status.RESOLVED)
    times = {"opened_ms": now_ms - 900_000, "resolved_ms": now_ms - 600_000}
    past = structs.replace(past, change_time_ms=now_ms - 960_000, **times)
    IncidentStore(store).save(past, *(disliked(past, name) for name in ("thumbs", "facts:v2")))


def disliked(past: Incident, evaluation: str) -> Incident:
    """What ratings of one evaluation have opened."""
    monitor = {"request_model": f"feedback/{evaluation}/gpt-4o"}
    signal = {"family": Family.FEEDBACK, "signal": Signal.NEGATIVE_FEEDBACK}
    alarm = structs.replace(past.alarms[0], grouping="request_model", monitor=monitor, **signal)
    return structs.replace(
        past,
        incident_id=evaluation,
        updated_ms=past.resolved_ms or 0,
        alarms=(alarm,),
        cause=structs.replace(past.cause, labels=monitor),
        example_event_ids=("d0",),
    )


def save_fingerprints(store: Store, now_ms: int) -> None:
    """Every stored answer gets a fingerprint, and a model a reference, as `pipeline.references`
    would have them after some thousands."""
    parts = ", ".join(f"toFloat32(rand({i}) / 4294967296 - 0.5)" for i in range(24))
    store._run(f"INSERT INTO requests SELECT * REPLACE([{parts}] AS fingerprint) FROM requests")
    store._run("OPTIMIZE TABLE requests FINAL")
    moment = to_datetime(now_ms)
    reference = {"request_model": "gpt-4o", "embedding": "static", "answers": 500}
    times = dict.fromkeys(("fitted_at", "first_time", "last_time"), moment)
    store.insert_rows("references", [{**reference, **times, "reference": ""}])


# --- SQL -------------------------------------------------------------------------------------


@each_panel
def test_a_panel_has_rows(filled: Filled, board: Board, panel: Panel) -> None:
    rows = filled.run(panel.sql)
    assert rows
    values = [value for row in rows for value in row.values()]
    assert any(value not in (None, "") for value in values)
    assert all(math.isfinite(value) for value in values if isinstance(value, float))
    check_shape(panel, rows)


def check_shape(panel: Panel, rows: list[dict[str, Any]]) -> None:
    """What the plugin and the panel need to draw them."""
    texts = [n for n, v in rows[0].items() if isinstance(v, str)]
    if panel.kind is Kind.STAT:
        assert len(rows) == 1
        assert len(rows[0]) == 1
        assert isinstance(next(iter(rows[0].values())), int | float)
    if panel.kind is Kind.TIME_SERIES:
        assert next(iter(rows[0])) == "time"
        assert [r["time"] for r in rows] == sorted(r["time"] for r in rows)
        series = [(r["time"], *(r[n] for n in texts)) for r in rows]
        assert len(series) == len(set(series)), "two points of one series at one time"
    if panel.kind is Kind.BAR:
        assert texts == [next(iter(rows[0]))]
    assert {c.name for c in panel.columns} <= rows[0].keys()
    assert {d for c in panel.columns for d in c.leads_to} <= rows[0].keys()
    opening = {c.opens for c in panel.columns} - {""}
    assert {field for opened in opening for field in OPENED_BY[opened].values()} <= rows[0].keys()
    assert {*(panel.band or ()), *panel.dashed} <= rows[0].keys()


@each_panel
def test_a_panel_over_no_data_is_empty_and_not_wrong(
    filled: Filled, board: Board, panel: Panel
) -> None:
    span = TimeRange(1_000_000_000, 1_000_003_600)
    _, rows = filled.store.query(expand(panel.sql, span), read_only=True)
    flat = [value for row in rows for value in row]
    assert all(math.isfinite(value) for value in flat if isinstance(value, float))


@each_board
def test_every_filter_of_a_board_filters_every_panel(board: Board) -> None:
    for panel in board.panels:
        if not any(source in panel.sql for source in UNFILTERED):
            used = set(re.findall(r"\$\{(\w+):", panel.sql))
            assert used == {d.value for d in board.variables}, panel.title


def test_all_five_variables_are_offered() -> None:
    offered = {d.value for board in BOARDS for d in board.variables if isinstance(d, Dimension)}
    assert offered == {"provider", "route", "tenant", "request_model", "prompt_version"}


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_variable_offers_what_was_seen(filled: Filled, dimension: Dimension) -> None:
    (offered,) = zip(*filled.store.query(variable_options(dimension))[1], strict=True)
    assert "" not in offered
    assert offered
    if dimension is Dimension.REQUEST_MODEL:
        assert set(offered) == {"gpt-4o", "mystery-1", *HOSTILE}


def test_the_overview_counts_what_was_fed(filled: Filled) -> None:
    by_title = {panel.title: panel for panel in BOARDS[0].panels}
    top = filled.run(by_title["Top routes and models"].sql)
    assert sum(row["requests_total"] for row in top) == SIZE + len(HOSTILE)
    (unpriced,) = filled.run(by_title["Unpriced"].sql)
    mystery = sum(r["requests_total"] for r in top if r["request_model"] == "mystery-1")
    assert unpriced["unpriced_share"] >= mystery / (SIZE + len(HOSTILE))
    (only,) = filled.run(by_title["Requests"].sql, request_model=["gpt-4o"])
    expected = sum(r["requests_total"] for r in top if r["request_model"] == "gpt-4o")
    assert only["requests_per_minute"] * 3601 / 60 == pytest.approx(expected)


def test_the_books_are_those_of_what_was_fed(filled: Filled) -> None:
    by_title = {(b.uid, p.title): p.sql for b, p in PANELS}
    found = filled.run(by_title["kizashi-health", "Books by partition"])
    (books,) = [row for row in found if row["topic"] == "local"]
    (rated,) = [row for row in found if row["topic"] == "local.feedback"]
    assert (rated["events_read"], rated["events_stored"], rated["unaccounted"]) == (24, 24, 0)
    fed = SIZE + len(HOSTILE)
    assert (books["events_read"], books["events_stored"]) == (fed + 3, fed)
    assert (books["dead_lettered"], books["repeats"], books["unaccounted"]) == (3, 0, 0)
    assert (books["next_offset"], books["offsets_missing"]) == (fed + 3, 0)


def test_panels_agree_with_the_requests_themselves(filled: Filled) -> None:
    by_title = {(b.uid, p.title): p.sql for b, p in PANELS}
    (own,) = filled.run(
        "SELECT toFloat64(sum(cost_usd)) AS cost, countIf(cost_usd IS NULL) AS unpriced,"
        " quantileExact(0.95)(duration_s) * 1e3 AS p95 FROM requests FINAL"
    )
    (cost,) = filled.run(by_title["kizashi-cost", "Cost"])
    assert cost["cost_usd_total"] == pytest.approx(own["cost"])
    assert own["cost"] > 0
    (unpriced,) = filled.run(by_title["kizashi-cost", "Unpriced requests"])
    assert unpriced["unpriced_total"] == own["unpriced"]
    for title in ("Requests per minute by model", "Requests per minute by outcome"):
        uid = "kizashi-overview" if title.endswith("model") else "kizashi-requests"
        series = filled.run(by_title[uid, title])
        assert sum(row["requests_per_minute"] for row in series) == SIZE + len(HOSTILE)
    span = TimeRange(filled.span.start_s, filled.span.end_s, step_s=86_400)
    whole = filled.store.query(expand(by_title["kizashi-overview", "Duration"], span))[1]
    # A day's step makes one bucket of the hour, or two around midnight.
    assert min(row[2] for row in whole) < own["p95"] * 1.011
    assert max(row[2] for row in whole) > own["p95"] / 1.011


def test_panels_read_through_the_endpoint_as_well(filled: Filled, embedded_path: Path) -> None:
    """Without a server, Grafana reads through `pipeline.sinks.endpoint`, which is read-only."""
    with serving(EndpointConfig(path=embedded_path)) as endpoint:
        client = clickhouse_connect.get_client(
            host="127.0.0.1", port=endpoint.port, database=filled.database
        )
        for _, panel in PANELS:
            assert client.query(expand(panel.sql, filled.span)).result_rows, panel.title
        client.close()


@pytest.mark.parametrize(("name", "evaluation"), [("thumbs", "thumbs"), ("facts/v2", "facts:v2")])
def test_an_incident_of_feedback_shows_its_ratings(
    filled: Filled, name: str, evaluation: str
) -> None:
    by_title = {(b.uid, p.title): p.sql for b, p in PANELS}
    rows = filled.run(
        by_title["kizashi-incident", "Inside the cause and elsewhere"], incident=[evaluation]
    )
    (expected,) = filled.run(
        "SELECT avgIf(negative, request_model = 'gpt-4o') AS inside,"
        " avgIf(negative, request_model != 'gpt-4o') AS elsewhere"
        f" FROM feedback WHERE event_id != '' AND name = '{name}'"
    )
    assert [row["in_the_cause"] for row in rows] == [pytest.approx(expected["inside"])]
    if evaluation == "thumbs":
        assert 0 < expected["inside"] < 1
        assert [row["elsewhere"] for row in rows] == [pytest.approx(expected["elsewhere"])]
    examples = filled.run(by_title["kizashi-incident", "Example requests"], incident=[evaluation])
    assert [row["event_id"] for row in examples] == ["d0"]


def test_incidents_are_annotations(filled: Filled) -> None:
    rows = filled.run(INCIDENTS_SQL)
    assert rows
    assert list(rows[0]) == ["time", "timeEnd", "title", "text", "tags"]
    assert all(row["time"] < row["timeEnd"] for row in rows)
    assert "refusal" in rows[0]["tags"].split(",")


# --- Values of variables ---------------------------------------------------------------------


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_stays_a_value(filled: Filled, value: str) -> None:
    sql = f"SELECT request_model FROM requests WHERE {chosen(Dimension.REQUEST_MODEL)}"
    assert filled.run(sql, request_model=[value]) == [{"request_model": value}]
    assert filled.run(sql, request_model=[f"{value}x"]) == []


def test_several_hostile_values_are_all_found(filled: Filled) -> None:
    sql = f"SELECT DISTINCT route FROM requests WHERE {chosen(Dimension.ROUTE)}"
    assert {row["route"] for row in filled.run(sql, route=list(HOSTILE))} == set(HOSTILE)


def test_no_value_chosen_finds_nothing_and_all_finds_everything(filled: Filled) -> None:
    sql = f"SELECT count() AS n FROM requests WHERE {chosen(Dimension.ROUTE)}"
    assert filled.run(sql, route=[]) == [{"n": 0}]
    assert filled.run(sql) == [{"n": SIZE + len(HOSTILE)}]


@each_panel
def test_hostile_values_break_no_panel(filled: Filled, board: Board, panel: Panel) -> None:
    filled.run(panel.sql, **{d.value: list(HOSTILE) for d in board.variables})


def test_doubled_quotes_would_not_have_been_enough(filled: Filled) -> None:
    """Why panels do not use Grafana's format for SQL strings."""
    sql = "SELECT count() AS n FROM requests WHERE request_model IN (${request_model:sqlstring})"
    (row,) = filled.run(sql, request_model=["gpt-4o"])
    (injected,) = filled.run(sql, request_model=["\\') OR 1 --"])
    assert 0 < row["n"] < injected["n"] == SIZE + len(HOSTILE)


# --- The JSON --------------------------------------------------------------------------------


def test_the_generated_dashboards_are_up_to_date() -> None:
    written = {f.name: f.read_text(encoding="utf-8") for f in GENERATED.glob("*.json")}
    assert written == build_all(), "run `kizashi dashboards build`"


def test_building_writes_only_what_changed_and_removes_what_is_gone(tmp_path: Path) -> None:
    assert {f.name for f in write_all(tmp_path)} == set(build_all())
    assert write_all(tmp_path) == []
    (tmp_path / "kizashi-old.json").write_text("{}", encoding="utf-8")
    (tmp_path / "kizashi-cost.json").write_text("{}", encoding="utf-8")
    assert {f.name for f in write_all(tmp_path)} == {"kizashi-old.json", "kizashi-cost.json"}
    assert {f.name for f in tmp_path.iterdir()} == set(build_all())


def load(board: Board) -> dict[str, Any]:
    return json.loads(build_all()[f"{board.uid}.json"])


@each_board
def test_the_json_is_what_the_sdk_reads_and_writes(board: Board) -> None:
    register_default_plugins()
    model = load(board)
    again = json.loads(render(models.Dashboard.from_json(model)))
    # The one thing that the SDK has no type for: a query where it expects tags.
    for side in (model, again):
        for annotation in side["annotations"]["list"]:
            annotation.pop("target")
    assert again == model


@each_board
def test_every_query_goes_to_the_provisioned_data_source(board: Board) -> None:
    model = load(board)
    panels = [p for p in model["panels"] if p["type"] != "row"]
    queries = [t for p in panels for t in p["targets"]]
    queries += [a["target"] for a in model["annotations"]["list"]]
    source = {"type": DATASOURCE_TYPE, "uid": DATASOURCE_UID}
    assert all(q["datasource"] == source and q["rawSql"] for q in queries)
    assert all(p["datasource"] == source for p in panels)
    assert all(v["datasource"] == source for v in model["templating"].get("list", []))
    assert [q["format"] for q in queries if q["queryType"] == "timeseries"] == [0] * sum(
        p.kind is Kind.TIME_SERIES for p in board.panels
    )


@each_board
def test_panels_stand_beside_each_other_and_have_stable_ids(board: Board) -> None:
    panels = load(board)["panels"]
    ids = [p["id"] for p in panels]
    assert len(ids) == len(set(ids))
    assert all(0 < i < 2**31 for i in ids)
    places = [p["gridPos"] for p in panels]
    assert all(p["x"] + p["w"] <= 24 for p in places)
    assert not any(overlap(a, b) for a, b in combinations(places, 2))


def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return (
        a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    )


def test_uids_and_titles_are_unique() -> None:
    for names in ([b.uid for b in BOARDS], [b.title for b in BOARDS]):
        assert len(names) == len(set(names))
    for board in BOARDS:
        titles = [p.title for p in board.panels] + [f"row/{r.title}" for r in board.rows]
        assert len(titles) == len(set(titles))


def test_links_lead_to_a_dashboard_and_to_its_variables() -> None:
    urls = re.findall(r'"url": "(/d/[^"]*)"', "".join(build_all().values()))
    assert urls
    for url in urls:
        assert url.startswith("/d/kizashi-")
        uid, _, query = url.removeprefix("/d/").partition("/?")
        assert query.startswith(("${__url_time_range}", "time=${__value.time}&time.window="))
        board = next(b for b in BOARDS if b.uid == uid)
        assert set(re.findall(r"var-(\w+)=", url)) <= {d.value for d in board.variables}
        assert all(":percentencode}" in v for v in re.findall(r"\$\{__data[^}]*\}", url))


# --- Push ------------------------------------------------------------------------------------

CLICKHOUSE = ClickHouse(host="clickhouse", password="s3cret")
UIDS = [board.uid for board in BOARDS]
KEY = "pagerduty-integration-key"
RULE_UIDS = [rule.uid for rule in RULES]
OBJECTS = ["folder", "data source", *UIDS, *RULE_UIDS]


def bring(grafana: FakeGrafana, source: ClickHouse | None = CLICKHOUSE) -> dict[str, str]:
    """Push, and return what became of each object; nothing told may hold a secret."""
    outcomes = list(push(grafana.url, TOKEN, source))
    assert not any(secret in str(outcomes) for secret in (TOKEN, "s3cret"))
    return {
        o.kind if o.name == "kizashi" else o.name: f"{o.action}: {o.reason}".removesuffix(": ")
        for o in outcomes
    }


def test_a_push_brings_everything(grafana: FakeGrafana) -> None:
    assert bring(grafana) == dict.fromkeys(OBJECTS, "created")
    assert grafana.folders["kizashi"]["title"] == "Kizashi"
    assert grafana.secrets["kizashi"] == {"password": "s3cret"}
    for uid, text in zip(UIDS, build_all().values(), strict=True):
        saved = grafana.dashboards[uid]
        assert saved.folder_uid == "kizashi"
        assert {k: v for k, v in saved.model.items() if k not in {"id", "version"}} == (
            json.loads(text)
        )


def test_a_second_push_changes_nothing(grafana: FakeGrafana) -> None:
    bring(grafana)
    before, writes = grafana.state, list(grafana.writes)
    unknown = ClickHouse(host="clickhouse")
    assert bring(grafana, unknown) == dict.fromkeys(OBJECTS, "unchanged")
    assert grafana.writes == writes
    # A password cannot be compared, so it is written again, to the same effect.
    assert bring(grafana)["data source"] == "updated"
    assert grafana.state == before | {"datasources": grafana.datasources}
    assert grafana.secrets["kizashi"] == {"password": "s3cret"}


def test_the_data_source_is_the_provisioned_one() -> None:
    file = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "kizashi.yaml"
    (provisioned,) = yaml.safe_load(file.read_text(encoding="utf-8"))["datasources"]
    pushed = datasource_model(CLICKHOUSE)
    assert {k: provisioned[k] for k in pushed if k != "secureJsonData"} == {
        k: v for k, v in pushed.items() if k != "secureJsonData"
    }
    assert pushed["secureJsonData"].keys() == provisioned["secureJsonData"].keys()


def test_without_clickhouse_no_data_source_is_touched(grafana: FakeGrafana) -> None:
    bring(grafana, None)
    assert grafana.datasources == {}
    assert not any("datasources" in request for request in grafana.requests)


def test_what_was_changed_in_grafana_is_put_right(grafana: FakeGrafana) -> None:
    bring(grafana)
    grafana.edit("kizashi-cost", title="Costs", panels=[])
    grafana.dashboards["kizashi-health"].folder_uid = ""
    grafana.folders["kizashi"] |= {"title": "Old", "version": 7}
    grafana.datasources["kizashi"]["jsonData"] = {"host": "elsewhere"}
    grafana.datasources["kizashi"]["isDefault"] = True
    outcomes = list(push(grafana.url, TOKEN, ClickHouse(host="clickhouse")))
    updated = {(o.kind, o.name) for o in outcomes if o.action is Action.UPDATED}
    assert updated == {
        ("folder", "kizashi"),
        ("data source", "kizashi"),
        ("dashboard", "kizashi-cost"),
        ("dashboard", "kizashi-health"),
    }
    assert {o.action for o in outcomes} == {Action.UPDATED, Action.UNCHANGED}
    assert grafana.dashboards["kizashi-cost"].model["title"] == "Kizashi: Cost"
    assert grafana.dashboards["kizashi-cost"].model["version"] == 3
    assert grafana.dashboards["kizashi-health"].folder_uid == "kizashi"
    assert grafana.datasources["kizashi"]["jsonData"]["host"] == "clickhouse"
    assert grafana.datasources["kizashi"]["isDefault"] is True
    assert grafana.secrets["kizashi"] == {"password": "s3cret"}


def test_a_change_made_meanwhile_is_not_overwritten(grafana: FakeGrafana) -> None:
    bring(grafana)
    grafana.edit("kizashi-cost", title="Costs")
    grafana.before("POST /api/dashboards/db", lambda: grafana.edit("kizashi-cost", title="Mine"))
    outcomes = bring(grafana)
    assert outcomes["kizashi-cost"].startswith("failed: Client Error 412: ")
    assert "changed by someone else" in outcomes["kizashi-cost"]
    assert grafana.dashboards["kizashi-cost"].model["title"] == "Mine"
    assert bring(grafana)["kizashi-cost"] == "updated"


def test_provisioned_objects_are_left_alone_and_said_to_be(grafana: FakeGrafana) -> None:
    bring(grafana)
    grafana.edit("kizashi-cost", title="Costs")
    grafana.dashboards["kizashi-cost"].provisioned = True
    grafana.datasources["kizashi"]["readOnly"] = True
    outcomes = list(push(grafana.url, TOKEN, CLICKHOUSE))
    failed = {(o.kind, o.name): o.reason for o in outcomes if o.action is Action.FAILED}
    assert failed.keys() == {("data source", "kizashi"), ("dashboard", "kizashi-cost")}
    assert "read-only" in failed["data source", "kizashi"]
    assert "provisioned" in failed["dashboard", "kizashi-cost"]


@pytest.mark.parametrize("status", [403, 412, 500, 503])
def test_one_that_fails_holds_up_no_other(grafana: FakeGrafana, status: int) -> None:
    grafana.fail(status, "GET", "/dashboards/uid/kizashi-cost")
    outcomes = bring(grafana)
    assert str(status) in outcomes.pop("kizashi-cost")
    assert set(outcomes.values()) == {"created"}
    grafana.recover()
    assert bring(grafana)["kizashi-cost"] == "created"


def test_without_its_folder_no_dashboard_is_pushed(grafana: FakeGrafana) -> None:
    grafana.fail(403, "POST", "/folders")
    outcomes = list(push(grafana.url, TOKEN, CLICKHOUSE))
    assert [o.action for o in outcomes if o.kind == "data source"] == [Action.CREATED]
    assert {o.reason for o in outcomes if o.kind == "dashboard"} == {"its folder is not there"}
    assert grafana.dashboards == {}


def test_a_wrong_token_is_told_of_and_not_shown(grafana: FakeGrafana) -> None:
    wrong = "glsa_wrong"
    outcomes = list(push(grafana.url, wrong))
    assert outcomes[0].reason == "Unauthorized"
    assert all(o.action is Action.FAILED and wrong not in str(o) for o in outcomes)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b"<html>no message \x1b[31m here</html>",
        b'{"message": null}',
        json.dumps({"message": f"you sent {TOKEN}\n" * 40}).encode(),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_whatever_is_answered_is_one_line(grafana: FakeGrafana, status: int, body: bytes) -> None:
    grafana.fail(status, "GET", "/folders", body)
    outcome = next(iter(push(grafana.url, TOKEN)))
    if status == 404:
        return
    assert outcome.action is Action.FAILED
    assert TOKEN not in str(outcome)
    assert len(str(outcome)) < 400
    assert str(outcome).isprintable()


def test_a_redirect_is_no_success(grafana: FakeGrafana) -> None:
    grafana.fail(302, "POST", "/dashboards/db")
    outcomes = bring(grafana)
    assert all("redirect" in outcomes[uid] for uid in UIDS)


def test_a_server_that_is_away_is_said_once() -> None:
    (outcome,) = push("http://127.0.0.1:9", TOKEN, CLICKHOUSE)
    assert outcome.action is Action.FAILED
    assert "no usable answer" in outcome.reason


@pytest.mark.parametrize("version", ["12.2.0", "13.0.1", ""])
def test_a_new_grafana_is_taken_and_one_that_hides_its_version(version: str) -> None:
    with FakeGrafana(version) as grafana:
        assert set(bring(grafana).values()) == {"created"}


@pytest.mark.parametrize("version", ["12.1.9", "11.6.0", "9.0.0-beta1"])
def test_a_grafana_that_would_not_quote_is_refused(version: str) -> None:
    with FakeGrafana(version) as grafana:
        (outcome,) = push(grafana.url, TOKEN)
        assert "too old" in outcome.reason
        assert grafana.writes == []


def test_grafana_may_be_under_a_path() -> None:
    with FakeGrafana(prefix="/monitoring/grafana") as grafana:
        assert set(bring(grafana).values()) == {"created"}


@pytest.mark.parametrize(
    ("url", "token", "why"),
    [
        ("http://grafana.example", TOKEN, "in the clear"),
        ("https://ada:s3cret@grafana.example", TOKEN, "neither a user"),
        ("https://grafana.example/?token=s3cret", TOKEN, "nor a query"),
        ("grafana.example:3000", TOKEN, "begin with https"),
        ("https://", TOKEN, "a host"),
        ("https://grafana.example:99999", TOKEN, "no URL"),
        ("http://127.0.0.1:9", "", "empty"),
        ("http://127.0.0.1:9", "s3cret\nx", "no token has"),
    ],
)
def test_unusable_settings_are_refused_before_anything_is_sent(
    url: str, token: str, why: str
) -> None:
    with pytest.raises(Unusable, match=why) as refusal:
        push(url, token)
    assert "s3cret" not in str(refusal.value)


# --- Alerts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.uid)
def test_a_rule_asks_for_one_number(filled: Filled, rule: Rule) -> None:
    (row,) = filled.run(rule.sql)
    (value,) = row.values()
    assert isinstance(value, int | float)
    # An incident is open there, a notification of long ago was never sent, and far more is
    # refused than the objective allows.
    fires = {"kizashi-open-incidents", "kizashi-notifications-stuck", "kizashi-budget-page"}
    assert (value > rule.above) == (rule.uid in fires)


def test_the_rules_file_is_up_to_date_and_passed_over_by_the_dashboards(tmp_path: Path) -> None:
    written = (GENERATED / ALERTS_FILE).read_text(encoding="utf-8")
    assert written == render_alerts(), "run `kizashi dashboards build`"
    assert write_alerts(tmp_path) == [tmp_path / ALERTS_FILE]
    assert write_alerts(tmp_path) == []
    (group,) = yaml.safe_load(written)["groups"]
    assert [rule["uid"] for rule in group["rules"]] == RULE_UIDS
    assert group["folder"] == "Kizashi"


def bring_alerts(grafana: FakeGrafana) -> dict[tuple[str, str], str]:
    outcomes = list(push(grafana.url, TOKEN, pagerduty_key=KEY))
    assert KEY not in str(outcomes)
    alerting = {"alert rule", "contact point", "notification policy"}
    return {(o.kind, o.name): str(o.action) for o in outcomes if o.kind in alerting}


def test_rules_contact_point_and_policy_come_twice_with_the_same_result(
    grafana: FakeGrafana,
) -> None:
    names = [("alert rule", uid) for uid in RULE_UIDS]
    names += [("contact point", "Kizashi"), ("notification policy", "Kizashi")]
    assert bring_alerts(grafana) == dict.fromkeys(names, "created")
    assert grafana.contact_points["kizashi-pagerduty"]["settings"]["integrationKey"] == KEY
    before = grafana.state
    again = bring_alerts(grafana)
    # A key cannot be compared, so it is written again, to the same effect.
    assert again.pop(("contact point", "Kizashi")) == "updated"
    assert set(again.values()) == {"unchanged"}
    assert grafana.state == before
    assert "X-Disable-Provenance" in grafana.headers[-1]


def test_other_peoples_routes_are_left_as_they_are(grafana: FakeGrafana) -> None:
    theirs = {"receiver": "other team", "object_matchers": [["team", "=", "db"]]}
    grafana.policies["routes"] = [theirs]
    bring_alerts(grafana)
    ours, others = grafana.policies["routes"]
    assert others == theirs
    assert ours == build_alerts().policy
    ours["repeat_interval"] = "1m"
    assert bring_alerts(grafana)["notification policy", "Kizashi"] == "updated"
    assert [r["receiver"] for r in grafana.policies["routes"]] == ["Kizashi", "other team"]
    assert grafana.policies["receiver"] == "grafana-default-email"


def test_a_rule_that_was_changed_is_put_right(grafana: FakeGrafana) -> None:
    bring_alerts(grafana)
    grafana.rules["kizashi-blind"]["data"][0]["model"]["rawSql"] = "SELECT 0"
    grafana.rules["kizashi-deadletters"]["for"] = "1h"
    changed = {name for (_, name), action in bring_alerts(grafana).items() if action == "updated"}
    assert changed == {"kizashi-blind", "kizashi-deadletters", "Kizashi"}
    assert "record_time" in grafana.rules["kizashi-blind"]["data"][0]["model"]["rawSql"]


def test_what_fails_is_named_and_holds_up_only_what_needs_it(grafana: FakeGrafana) -> None:
    grafana.fail(403, "POST", "/alert-rules", {"message": f"no {KEY}"})
    grafana.fail(500, "GET", "/contact-points")
    outcomes = bring_alerts(grafana)
    assert set(outcomes.values()) == {"failed"}
    assert grafana.policies["routes"] == []
    assert set(grafana.dashboards) == set(UIDS)
    grafana.recover()
    assert set(bring_alerts(grafana).values()) == {"created"}


def test_without_a_key_or_without_alerts_nothing_of_it_is_touched(grafana: FakeGrafana) -> None:
    list(push(grafana.url, TOKEN))
    assert grafana.contact_points == {}
    assert not any("policies" in request for request in grafana.requests)
    with FakeGrafana() as other:
        list(push(other.url, TOKEN, alerts=False, pagerduty_key=KEY))
        assert not any("provisioning" in request for request in other.requests)


# --- The command -----------------------------------------------------------------------------


def test_the_command_pushes_and_its_exit_status_tells(
    grafana: FakeGrafana, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n", encoding="utf-8")
    monkeypatch.setenv("CLICKHOUSE_READER_PASSWORD", "s3cret")
    monkeypatch.delenv("GRAFANA_TOKEN", raising=False)
    command = ["dashboards", "push", "--url", grafana.url]
    whole = [*command, "--token-file", str(token_file), "--clickhouse-host", "db"]
    done = CliRunner().invoke(cli, whole)
    assert done.exit_code == 0, done.output
    assert "dashboard kizashi-cost: created" in done.output
    assert grafana.secrets["kizashi"] == {"password": "s3cret"}
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    grafana.fail(500, "GET", "kizashi-cost$")
    failed = CliRunner().invoke(cli, command)
    assert failed.exit_code == 1
    assert "dashboard kizashi-cost: failed: Server Error 500" in failed.output
    assert "dashboard kizashi-overview: unchanged" in failed.output
    assert TOKEN not in done.output + failed.output


def test_the_command_without_a_token_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFANA_TOKEN", raising=False)
    done = CliRunner().invoke(cli, ["dashboards", "push", "--url", "https://grafana.example"])
    assert isinstance(done.exception, ConfigError)
    assert "token" in str(done.exception)


def test_the_command_builds(tmp_path: Path) -> None:
    command = ["dashboards", "build", "--into", str(tmp_path)]
    assert CliRunner().invoke(cli, command).output.count("written: ") == (len(BOARDS) + 1)
    assert CliRunner().invoke(cli, command).output == "the dashboards are up to date\n"
