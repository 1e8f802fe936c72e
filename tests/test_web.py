"""The page's server: who may ask, what they get, and that nothing can be written or reached."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pytest
from aiohttp import web as aiohttp_web
from clickhouse_connect.driver.exceptions import DatabaseError
from pydantic import SecretStr, ValidationError

from dashboards.boards import BOARDS
from dashboards.filling import Span, fill
from pipeline.config import ClickHouseSettings, Config, EndpointSettings, WebSettings
from pipeline.sinks.endpoint import QueryFailed
from pipeline.web.front import Front, FrontThread
from pipeline.web.reading import EmbeddedReader, ServerReader
from tests.support.clickhouse import ClickHouseServer
from tests.support.grafana import TimeRange, expand
from tests.support.page import SmallTraffic

TOKEN = "a-token-of-many-characters"
ROOT = Path(__file__).parents[1]
STATIC = ROOT / "pipeline" / "web" / "static"


@pytest.fixture(scope="module")
def traffic(embedded_path: Path) -> Iterator[SmallTraffic]:
    traffic = SmallTraffic(embedded_path, f"t{uuid.uuid4().hex[:12]}", query_time_s=60.0, rows=100)
    traffic.feed()
    yield traffic
    traffic.store.close()


@pytest.fixture(scope="module")
def url(traffic: SmallTraffic) -> Iterator[str]:
    with traffic.serve(_hook) as url:
        yield url


def _hook(application: aiohttp_web.Application) -> None:
    async def answer(_: aiohttp_web.Request) -> aiohttp_web.Response:
        return aiohttp_web.Response(text="hooked")

    application.router.add_post("/hooks/test", answer)


def ask(url: str, sql: str) -> tuple[int, dict[str, Any]]:
    answer = httpx.post(f"{url}api/sql", json={"sql": sql}, timeout=30)
    return answer.status_code, answer.json()


# --- What is shown ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b.uid.removeprefix("kizashi-") for b in BOARDS])
def test_every_panel_of_every_board_has_an_answer(url: str, name: str) -> None:
    answer = httpx.get(f"{url}api/boards/{name}", params={"range": 3600}, timeout=60).json()
    board = next(b for b in BOARDS if b.uid == f"kizashi-{name}")
    assert {str(n) for n in range(len(board.panels))} <= answer["panels"].keys()
    assert not [p["error"] for p in answer["panels"].values() if "error" in p]


def test_the_overview_counts_what_was_stored(url: str) -> None:
    boards = {b["name"]: b for b in httpx.get(f"{url}api/boards").json()["boards"]}
    panels = [p for row in boards["overview"]["rows"] for p in row["panels"]]
    assert not any("sql" in panel for panel in panels)
    top = next(p["id"] for p in panels if p["title"] == "Top routes and models")
    for chosen, expected in (({}, SmallTraffic.SIZE), ({"v.route": "search"}, None)):
        query = {"range": 3600, "panel": top, **chosen}
        answer = httpx.get(f"{url}api/boards/overview", params=query).json()
        rows = answer["panels"][str(top)]["data"]
        assert expected is None or sum(row[2] for row in rows) == expected
        assert rows
    assert {row[0] for row in rows} == {"search"}


def test_filling_is_what_grafana_does() -> None:
    span, chosen = Span.ending(1_700_000_000, 21_600), {"route": ("a'b\\", "c")}
    grafana = TimeRange(span.start_s, span.end_s, span.step_s)
    for board in BOARDS:
        for sql in (*(panel.sql for panel in board.panels), board.marks):
            assert fill(sql, span, chosen) == expand(sql, grafana, {"route": ["a'b\\", "c"]})


def test_a_span_begins_with_a_step_and_is_no_longer_than_a_picture() -> None:
    for length_s in (900, 3_600, 86_400, 90 * 86_400):
        span = Span.ending(1_700_000_123, length_s)
        assert span.start_s % span.step_s == 0
        assert length_s <= span.end_s - span.start_s < length_s + span.step_s
        assert (span.end_s - span.start_s) / span.step_s < 200


# --- Who may ask -----------------------------------------------------------------------------


def test_another_sites_name_is_refused(url: str) -> None:
    for path in ("", "api/boards"):
        answer = httpx.get(url + path, headers={"Host": "evil.example"})
        assert answer.status_code == 403
    assert httpx.get(url, headers={"Host": "localhost:1"}).status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(url: str) -> None:
    for path in ("", "main.js", "api/boards", "nothing"):
        headers = httpx.get(url + path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    ours = [f for f in STATIC.iterdir() if f.suffix in {".html", ".css", ".js"}]
    for file in ours:
        assert "style=" not in file.read_text(encoding="utf-8") or file.name == "uplot.js"
        found = re.findall(r"(?:src|href|@import|url\()\W*(https?:)?//", file.read_text("utf-8"))
        assert not found, file.name


@pytest.mark.parametrize("path", ["../config.py", "%2e%2e/server.py", "static/main.js", "x"])
def test_only_known_files_are_given(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 404


def test_with_a_token_nothing_is_told_without_it(
    traffic: SmallTraffic, embedded_path: Path
) -> None:
    guarded = traffic.config.model_copy(
        update={"web": WebSettings(port=0, token=SecretStr(TOKEN), host="127.0.0.1")}
    )
    front = Front(guarded, lambda: 0.0, extensions=[_hook])
    with FrontThread(front):
        url = front.page_url
        assert url is not None
        assert httpx.get(url).status_code == 200, "the page itself, which asks for the token"
        for wrong in (b"", b"Bearer x", b"Bearer", f"Basic {TOKEN}".encode(), b"Bearer \xff\xe9"):
            headers = {b"Authorization": wrong}
            for path in ("api/boards", "api/boards/cost", "api/boards/cost/options", "metrics"):
                assert httpx.get(url + path, headers=headers).status_code == 401
            assert httpx.post(f"{url}api/sql", json={}, headers=headers).status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}", "Host": "kizashi.example"}
        assert httpx.get(f"{url}api/boards", headers=right).status_code == 200
        assert httpx.post(f"{url}hooks/test").text == "hooked"


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "0.0.0.0"},  # noqa: S104
        {"host": "::"},
        {"host": "page.example"},
        {"token": "short"},
        {"host": "0.0.0.0", "enabled": False},  # noqa: S104
    ],
)
def test_an_open_page_is_refused_at_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WebSettings(**settings)


def test_an_open_endpoint_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError):
        EndpointSettings(enabled=True, host="0.0.0.0")  # noqa: S104
    with pytest.raises(ValidationError):
        ClickHouseSettings(mode="http", endpoint=EndpointSettings(enabled=True))


# --- The SQL box -----------------------------------------------------------------------------


def test_a_question_is_answered_up_to_a_number_of_rows(url: str) -> None:
    status, answer = ask(url, "SELECT number FROM numbers(5000) ORDER BY number; -- all")
    assert status == 200
    assert len(answer["result"]["data"]) == answer["rows"] + 1 == 101
    for sql in ("SHOW TABLES", "DESCRIBE requests", "EXPLAIN SELECT 1", "SELECT 1 LIMIT 1"):
        assert ask(url, sql)[0] == 200, sql


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO requests (event_id) VALUES ('x')",
        "DROP TABLE requests",
        "CREATE TABLE x (a Int8) ENGINE = Memory",
        "ALTER TABLE requests DELETE WHERE 1",
        "TRUNCATE TABLE requests",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_execution_time = 0",
        "SELECT * FROM file('x')",
        "SELECT file('/etc/passwd')",
        "SELECT * FROM url('http://127.0.0.1/', CSV, 'a String')",
        "SELECT * FROM remote('127.0.0.1', system.one)",
        "SELECT * FROM s3('http://127.0.0.1/b/k')",
        "SELECT 1 INTO OUTFILE 'x'",
        "SELECT 1; DROP TABLE requests",
        "KILL QUERY WHERE 1",
        "SYSTEM SHUTDOWN",
        "SELECT 1 FORMAT CSV",
        "",
        "no sql",
    ],
)
def test_nothing_is_written_or_reached(url: str, traffic: SmallTraffic, sql: str) -> None:
    status, answer = ask(url, sql)
    assert status == 400
    assert answer["error"]
    assert traffic.store.rows("SELECT count() FROM requests FINAL") == [(SmallTraffic.SIZE,)]


def test_a_question_that_takes_too_long_is_ended(traffic: SmallTraffic) -> None:
    reader = EmbeddedReader(traffic.config.clickhouse, WebSettings(query_time_s=0.5))
    try:
        with pytest.raises(QueryFailed, match=r"(?i)exceeded"):
            reader.read("SELECT count() FROM numbers(1000000000000) WHERE number % 3 = 1")
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("api/boards/nothing", 404),
        ("api/boards/nothing/options", 404),
        ("api/boards/cost?range=1", 400),
        ("api/boards/cost?range=x", 400),
        ("api/boards/cost?end=-1", 400),
    ],
)
def test_a_wrong_request_is_answered_so(url: str, path: str, status: int) -> None:
    assert httpx.get(url + path).status_code == status


def test_sql_wants_a_type_that_other_sites_cannot_send(url: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": kind}
        answer = httpx.post(f"{url}api/sql", content='{"sql":"SELECT 1"}', headers=headers)
        assert answer.status_code == 415
    for body in ("", "[]", '{"sql":1}', "{}"):
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{url}api/sql", content=body, headers=headers)
        assert answer.status_code == 400


# --- A server, and clients -------------------------------------------------------------------


def test_a_server_is_read_under_the_same_rules(
    clickhouse_server: ClickHouseServer, database: str
) -> None:
    with clickhouse_server.client() as setup:
        setup.command(f"CREATE DATABASE {database}")
        setup.command(f"CREATE TABLE {database}.t (a UInt8) ENGINE = MergeTree ORDER BY a")
    settings = ClickHouseSettings(mode="http", port=clickhouse_server.port, database=database)
    reader = ServerReader(settings, WebSettings())
    try:
        assert b'"data"' in reader.read("SELECT 1 AS one;", rows=5)
        assert reader.read("SELECT number FROM numbers(9)", rows=2).count(b"[") == 4
        for sql in ("INSERT INTO t VALUES (1)", "SELECT * FROM file('x')", "SET readonly = 0"):
            with pytest.raises(QueryFailed):
                reader.read(sql)
    finally:
        reader.close()


def test_clickhouse_clients_are_answered(traffic: SmallTraffic) -> None:
    endpoint = EndpointSettings(enabled=True, port=0)
    clickhouse = traffic.config.clickhouse.model_copy(update={"endpoint": endpoint})
    config = traffic.config.model_copy(
        update={"clickhouse": clickhouse, "web": WebSettings(enabled=False)}
    )
    front = Front(config, lambda: 0.0)
    with FrontThread(front):
        assert front.page_url is None
        client = clickhouse_connect.get_client(
            host="127.0.0.1", port=front.clickhouse_port or 0, database=clickhouse.database
        )
        assert client.query("SELECT count() FROM requests").result_rows == [(SmallTraffic.SIZE,)]
        counted = client.query(
            "SELECT count() FROM requests WHERE route = {route:String}", {"route": "search"}
        )
        assert 0 < counted.result_rows[0][0] < SmallTraffic.SIZE
        with pytest.raises(DatabaseError, match="readonly"):
            client.command("TRUNCATE TABLE requests")
        with pytest.raises(DatabaseError):
            client.insert("requests", [["x"]], column_names=["event_id"])
        client.close()


def test_a_taken_port_keeps_nobody_from_working(
    traffic: SmallTraffic, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(url.rstrip("/").rpartition(":")[2])
    config = Config(clickhouse=traffic.config.clickhouse, web=WebSettings(port=port))
    front = Front(config, lambda: 0.0)
    with FrontThread(front):
        assert front.page_url is None
        assert f"cannot listen on {port}" in caplog.text
    elsewhere = Front(config, lambda: 0.0, any_port=True)
    with FrontThread(elsewhere):
        assert elsewhere.page_url not in (None, url)


MIGRATE = "from pipeline.config import *; from pipeline.sinks.clickhouse import Store; "
MIGRATE += "store = Store(load_config().clickhouse); store.migrate(); store.close()"


def test_the_command_shows_what_is_stored_until_it_is_interrupted(tmp_path: Path) -> None:
    environment = {**os.environ, "KIZASHI_CLICKHOUSE__PATH": str(tmp_path / "data")}
    command = [sys.executable, "-m", "pipeline", "web", "--port", "0", "--clickhouse-port", "0"]
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "text": True, "timeout": 60}
    early = subprocess.run(command, capture_output=True, check=False, **options)
    assert early.returncode == 1
    assert "run `kizashi init`" in early.stderr
    subprocess.run([sys.executable, "-c", MIGRATE], check=True, **options)
    del options["timeout"]
    # Whoever was started in the background ignores interrupts, and so would the command.
    obey = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    shown = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=obey, **options)
    try:
        assert shown.stderr is not None
        said = shown.stderr.readline()
        assert said.startswith("Kizashi is at http://127.0.0.1:"), said
        assert httpx.get(f"{said.split()[-1]}api/boards").status_code == 200
    finally:
        shown.send_signal(signal.SIGINT)
    assert shown.wait(30) == 130


# --- Colours ---------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme: int) -> None:
    css = (STATIC / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for text in ("ink", "soft", "faint", "accent", "good", "warn", "bad"):
        for ground in ("card", "bg"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for tone in ("accent", "good", "warn", "bad"):
        assert _contrast(colours[tone], colours[f"{tone}-bg"]) >= 4.5, tone
    for i in range(10):
        assert _contrast(colours[f"s{i}"], colours["card"]) >= 3, f"s{i}"
