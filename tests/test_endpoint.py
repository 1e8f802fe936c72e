"""The endpoint against ClickHouse's own clients: what is promised, refused and survived."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import chdb
import clickhouse_connect
import lz4.frame
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from pipeline.errors import ConfigError
from pipeline.sinks.endpoint import (
    Endpoint,
    EndpointConfig,
    QueryFailed,
    decompress,
    find_format,
    find_insert_format,
    first_word,
    frame_native,
    main,
    understand,
)
from tests.support.clickhouse import ROOT, ClickHouseServer, serving

DEADLINE_S = 20.0


@pytest.fixture
def client(clickhouse_server: ClickHouseServer, database: str) -> Iterator[Client]:
    """A client of the writable server, at home in a database of its own."""
    with clickhouse_server.client() as setup:
        setup.command(f"CREATE DATABASE {database}")
    with clickhouse_server.client(database=database) as client:
        yield client


@pytest.fixture(scope="module")
def reader_port(embedded_path: Path) -> Iterator[int]:
    """A read-only endpoint in this process, beside an engine that has written one table."""
    with chdb.connect(str(embedded_path)) as engine:
        engine.query("CREATE DATABASE IF NOT EXISTS shown")
        engine.query("CREATE TABLE shown.t (a UInt32, s String) ENGINE = MergeTree ORDER BY a")
        engine.query("INSERT INTO shown.t SELECT number, toString(number) FROM numbers(100)")
        config = EndpointConfig(embedded_path, query_time_s=2.0, result_bytes=4_000_000)
        with serving(config) as endpoint:
            yield endpoint.port
        engine.query("DROP DATABASE shown")


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def call(port: int, sql: str | bytes | None = None, **parameters: str) -> Reply:
    """Ask as `curl` does: POST with a statement in the body, else GET."""
    headers = {n.replace("_", "-"): parameters.pop(n) for n in list(parameters) if n[0].isupper()}
    url = f"http://127.0.0.1:{port}/?{urllib.parse.urlencode(parameters)}"
    body = sql.encode() if isinstance(sql, str) else sql
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, headers), timeout=DEADLINE_S
        ) as answer:
            return Reply(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        return Reply(error.code, dict(error.headers), error.read())


def exception_code(reply: Reply) -> int:
    return int(reply.headers.get("X-ClickHouse-Exception-Code", 0))


# --- what clickhouse-connect does ----------------------------------------------------------


def test_the_client_shakes_hands(client: Client) -> None:
    assert client.ping()
    assert client.server_version.split(".")[0].isdecimal()
    assert client.query("SELECT 1 AS one, 'x' AS text").result_rows == [(1, "x")]


TYPED = {
    "id UInt32": [1, 2],
    "name LowCardinality(String)": ["gpt-5", "日本"],
    "cost Nullable(Float64)": [None, 0.25],
    "bins Map(Int16, UInt64)": [{-3: 7, 12: 2**63}, {}],
    "tags Array(String)": [["a", "it's"], []],
    "price Decimal(38, 12)": [Decimal("0.000000000001"), Decimal("-12345678901234567890.5")],
    "at DateTime64(3, 'Asia/Tokyo')": [
        datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
    ],
}


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_values_of_every_type_come_back(
    clickhouse_server: ClickHouseServer, client: Client, compress: bool | str
) -> None:
    client.command(f"CREATE TABLE t ({', '.join(TYPED)}) ENGINE = MergeTree ORDER BY id")
    with clickhouse_server.client(database=client.database, compress=compress) as writer:
        summary = writer.insert("t", list(TYPED.values()), column_oriented=True)
        rows = writer.query("SELECT * FROM t ORDER BY id").result_columns
    assert summary.written_rows == 2
    assert [list(column) for column in rows] == list(TYPED.values())


def test_an_insert_of_many_blocks_comes_back(client: Client) -> None:
    client.command("CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    rows = 300_000
    text = [f"{i:064d}" for i in range(rows)]
    client.insert("t", [list(range(rows)), text], column_names=["a", "s"], column_oriented=True)
    assert client.query("SELECT count(), sum(a), uniqExact(s) FROM t").result_rows == [
        (rows, rows * (rows - 1) // 2, rows)
    ]


def arrow_table(rows: int, start: int = 0) -> pa.Table:
    return pa.table({"a": pa.array(range(start, start + rows), pa.uint32()), "s": ["text"] * rows})


def create_deduplicating(client: Client) -> None:
    client.command(
        "CREATE TABLE t (a UInt32, s LowCardinality(String)) ENGINE = MergeTree ORDER BY a"
        " SETTINGS non_replicated_deduplication_window = 100"
    )


def count(client: Client, table: str = "t") -> int:
    return client.query(f"SELECT count() FROM {table}").result_rows[0][0]


def test_arrow_is_inserted(client: Client) -> None:
    create_deduplicating(client)
    summary = client.insert_arrow("t", arrow_table(1_000))
    assert summary.written_rows == 1_000
    assert client.query_arrow("SELECT sum(a) AS a FROM t").to_pydict() == {"a": [499_500]}


def test_a_token_is_inserted_once(client: Client) -> None:
    create_deduplicating(client)
    for _ in range(2):
        client.insert_arrow("t", arrow_table(10), settings={"insert_deduplication_token": "t:0:1"})
    assert count(client) == 10
    other = {"insert_deduplication_token": "t:0:2", "async_insert": 0}
    client.insert("t", [[1, "x"]], column_names=["a", "s"], settings=other)
    client.insert("t", [[2, "y"]], column_names=["a", "s"], settings=other)
    assert count(client) == 11


HOSTILE = "'; DROP TABLE t; --\\' \t\n\u2028{x:String}`\" 日本"


@pytest.mark.parametrize("in_form", [False, True])
def test_parameters_are_data(
    clickhouse_server: ClickHouseServer, database: str, in_form: bool
) -> None:
    with clickhouse_server.client(form_encode_query_params=in_form) as client:
        answer = client.query(
            "SELECT {text:String}, {list:Array(String)}, {n:UInt8} + 1",
            parameters={"text": HOSTILE, "list": [HOSTILE, ""], "n": 41},
        )
    assert answer.result_rows == [(HOSTILE, [HOSTILE, ""], 42)]


def test_a_setting_lasts_for_its_request(client: Client) -> None:
    shown = "SELECT getSetting('max_threads')"
    usual = client.query(shown).result_rows
    assert client.query(shown, settings={"max_threads": 7}).result_rows == [(7,)]
    assert client.query(shown).result_rows == usual != [(7,)]


def test_an_unknown_setting_is_refused(clickhouse_server: ClickHouseServer) -> None:
    reply = call(clickhouse_server.port, "SELECT 1", no_such_setting="1")
    assert (reply.status, exception_code(reply)) == (404, 115)
    assert call(clickhouse_server.port, "SELECT 1", **{"a = 1, b": "1"}).status == 404


@pytest.mark.parametrize(
    ("sql", "code", "name"),
    [
        ("SELECT * FROM nosuch", 60, "UNKNOWN_TABLE"),
        ("SELEC 1", 62, "SYNTAX_ERROR"),
        ("SELECT throwIf(number = 3000000) FROM numbers(4000000)", 395, "FUNCTION_THROW_IF"),
    ],
)
def test_an_error_keeps_its_code(client: Client, sql: str, code: int, name: str) -> None:
    with pytest.raises(DatabaseError, match=name) as caught:
        client.query(sql)
    assert caught.value.code == code


def test_an_insert_that_does_not_parse_is_refused_whole(client: Client) -> None:
    create_deduplicating(client)
    with pytest.raises(DatabaseError) as caught:
        client.raw_insert("t", ["a", "s"], b"1,one\nx,two\n", fmt="CSV")
    assert caught.value.code == 27
    assert count(client) == 0


def test_ddl_reports_no_result(client: Client) -> None:
    create_deduplicating(client)
    assert client.command("SELECT count() FROM t") == 0
    assert client.command("SHOW TABLES") == "t"
    assert (
        "written_rows" in client.command("INSERT INTO t VALUES (1, 'FORMAT CSV'), (2, 'b')").summary
    )
    assert count(client) == 2


# --- plain HTTP -------------------------------------------------------------------------------


def test_ping(clickhouse_server: ClickHouseServer) -> None:
    url = f"http://127.0.0.1:{clickhouse_server.port}/ping"
    assert urllib.request.urlopen(url, timeout=5).read() == b"Ok.\n"
    assert call(clickhouse_server.port).body == b"Ok.\n"


def test_a_plain_get_answers_with_clickhouse_headers(clickhouse_server: ClickHouseServer) -> None:
    reply = call(clickhouse_server.port, query="SELECT 1, 'a'", query_id="mine\nX: y")
    assert (reply.status, reply.body) == (200, b"1\ta\n")
    assert reply.headers["X-ClickHouse-Format"] == "TabSeparated"
    assert reply.headers["X-ClickHouse-Query-Id"] == "mine?X: y"
    assert reply.headers["X-ClickHouse-Timezone"]
    assert json.loads(reply.headers["X-ClickHouse-Summary"])["result_rows"] == "1"


@pytest.mark.parametrize("sql", ["SELECT 1 AS a FORMAT JSONEachRow", "SELECT 1 AS a"])
def test_the_format_is_the_statements_or_the_default(
    clickhouse_server: ClickHouseServer, sql: str
) -> None:
    reply = call(clickhouse_server.port, sql, default_format="JSONEachRow")
    assert reply.headers["X-ClickHouse-Format"] == "JSONEachRow"
    assert reply.body == b'{"a":1}\n'


def test_get_does_not_write(clickhouse_server: ClickHouseServer, database: str) -> None:
    reply = call(clickhouse_server.port, query=f"CREATE DATABASE {database}")
    assert (reply.status, exception_code(reply)) == (500, 164)
    assert reply.body.startswith(b"Code: 164. DB::Exception: ")


def test_a_statement_may_begin_in_the_url(client: Client, database: str) -> None:
    create_deduplicating(client)
    port = client_port(client)
    insert = f"INSERT INTO {database}.t (a, s) FORMAT CSV"
    assert call(port, b"1,one\n2,two\n", query=insert).status == 200
    assert call(port, f"{insert}\n3,three\n").status == 200
    assert call(port, gzip.compress(b"4,four"), query=insert, Content_Encoding="gzip").status == 200
    assert call(port, "(5, 'five')", query=f"INSERT INTO {database}.t VALUES").status == 200
    assert count(client) == 5


def client_port(client: Client) -> int:
    return urllib.parse.urlsplit(client.url).port or 0


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip"])
def test_an_answer_is_compressed_only_on_request(
    clickhouse_server: ClickHouseServer, encoding: str
) -> None:
    sql = "SELECT 'again' FROM numbers(1000)"
    plain = call(clickhouse_server.port, sql, Accept_Encoding=encoding)
    packed = call(
        clickhouse_server.port, sql, Accept_Encoding=encoding, enable_http_compression="1"
    )
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == encoding
    assert decompress(packed.body, encoding, 10_000) == plain.body
    assert len(packed.body) < len(plain.body)


def test_nothing_is_no_statement(clickhouse_server: ClickHouseServer) -> None:
    assert exception_code(call(clickhouse_server.port, b"")) == 211
    assert exception_code(call(clickhouse_server.port, "SELECT 1", compress="1")) == 48


# --- read-only -------------------------------------------------------------------------------


def test_grafana_and_others_may_read(reader_port: int) -> None:
    with clickhouse_connect.get_client(host="127.0.0.1", port=reader_port) as client:
        assert client.query("SELECT count() FROM shown.t").result_rows == [(100,)]
        assert client.command("EXISTS TABLE shown.t") == 1


@pytest.mark.parametrize(
    "sql",
    [
        "SHOW TABLES FROM shown",
        "DESCRIBE TABLE shown.t",
        "EXPLAIN SELECT * FROM shown.t",
        "WITH 1 AS x SELECT x",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SELECT 'INTO OUTFILE file(' AS `file`",
        "SELECT 1 -- comment\n;",
        "SELECT format('{} {}', 'a', 'b') AS file, file AS url",
        "SELECT * FROM merge('shown', 't') LIMIT 1",
    ],
)
def test_reading_is_allowed(reader_port: int, sql: str) -> None:
    assert call(reader_port, sql).status == 200
    assert call(reader_port, query=sql).status == 200


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO shown.t VALUES (1000, 'x')",
        "INSERT INTO shown.t FORMAT CSV\n1000,x",
        "INSERT INTO FUNCTION file('{out}') SELECT 1",
        "CREATE TABLE shown.u (a UInt8) ENGINE = Memory",
        "CREATE TEMPORARY TABLE u (a UInt8)",
        "CREATE DATABASE other",
        "DROP TABLE shown.t",
        "TRUNCATE TABLE shown.t",
        "ALTER TABLE shown.t DELETE WHERE 1",
        "OPTIMIZE TABLE shown.t",
        "RENAME TABLE shown.t TO shown.u",
        "SYSTEM FLUSH LOGS",
        "KILL QUERY WHERE 1",
        "SET readonly = 0",
        "USE shown",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_execution_time = 1000",
        "SELECT 1; DROP TABLE shown.t",
        "SELECT 1 INTO OUTFILE '{out}'",
        "SELECT 1 INTO /* */ OUTFILE '{out}' TRUNCATE FORMAT CSV",
        "(SELECT 1) UNION ALL (SELECT 2) INTO OUTFILE '{out}'",
        "SHOW TABLES INTO OUTFILE '{out}'",
        "EXPLAIN SELECT 1 INTO OUTFILE '{out}'",
        "SELECT file('{secret}')",
        "SELECT `file` /* */ ('{secret}')",
        "SELECT \"file\"(x) FROM (SELECT '{secret}' AS x)",
        "SELECT * APPLY file FROM (SELECT '{secret}' AS x)",
        "SELECT * APPLY(`file`) FROM (SELECT '{secret}' AS x)",
        "SELECT * APPLY(x -> file(x)) FROM (SELECT '{secret}' AS x)",
        "SELECT arrayMap(x -> file(x), ['{secret}'])",
        "WITH (x -> file(x)) AS f SELECT f('{secret}')",
        "SELECT * FROM view(SELECT file('{secret}'))",
        "EXPLAIN SELECT file('{secret}')",
        "SELECT * FROM file('{secret}', 'CSV', 'a String')",
        "SELECT * FROM `{secret}`",
        "EXISTS TABLE `{secret}`",
        "EXISTS default.`{secret}`",
        "SELECT * FROM url('http://127.0.0.1:{port}/ping', 'CSV', 'a String')",
        "SELECT * FROM url('file://{secret}', 'CSV', 'a String')",
        "SELECT * FROM s3('http://127.0.0.1:{port}/bucket/key', 'CSV', 'a String')",
        "SELECT * FROM remote('127.0.0.1:{port}', 'system', 'one')",
        "SELECT * FROM executable('id', 'TSV', 'a String')",
        "SELECT * FROM sqlite('{out}', 't')",
        "SELECT * FROM mysql('127.0.0.1:{port}', 'a', 'b', 'c', 'd')",
        "SELECT * FROM Python(os)",
        "SELECT * FROM `python`(sys)",
        "SELECT * FROM eval('SELECT 1')",
        "SELECT * FROM eval('SELECT 1') SETTINGS allow_experimental_eval_table_function = 1",
    ],
)
def test_reading_is_all_that_is_allowed(reader_port: int, tmp_path: Path, sql: str) -> None:
    secret, out = tmp_path / "secret.csv", tmp_path / "out"
    secret.write_text("topsecret\n")
    reply = call(reader_port, sql.format(secret=secret, out=out, port=reader_port))
    assert reply.status >= 400, reply.body
    assert exception_code(reply) in (62, 164), reply.body
    assert b"topsecret" not in reply.body
    assert not out.exists()
    assert call(reader_port, "SELECT count() FROM shown.t").body == b"100\n"


def test_what_is_refused_would_have_read_the_file(
    clickhouse_server: ClickHouseServer, tmp_path: Path
) -> None:
    """The holes are there: without the check above, the engine gives the file away."""
    secret = tmp_path / "secret.csv"
    secret.write_text("topsecret\n")
    for sql in (f"SELECT file('{secret}')", f"SELECT * APPLY file FROM (SELECT '{secret}')"):
        assert b"topsecret" in call(clickhouse_server.port, query=sql).body  # GET: readonly = 2


def test_a_reader_changes_no_setting_but_time(reader_port: int) -> None:
    shown = "SELECT getSetting('max_execution_time')"
    assert call(reader_port, shown).body == b"2\n"
    assert call(reader_port, shown, max_execution_time="0").body == b"2\n"
    assert call(reader_port, shown, max_execution_time="1").body == b"1\n"
    assert call(reader_port, shown, max_execution_time="1000").body == b"2\n"
    for name, value in (("readonly", "0"), ("max_memory_usage", "0"), ("max_result_bytes", "0")):
        assert exception_code(call(reader_port, "SELECT 1", **{name: value})) == 164
    for value in ("-1", "inf", "x"):
        assert exception_code(call(reader_port, "SELECT 1", max_execution_time=value)) == 36


def test_time_and_result_are_capped(reader_port: int) -> None:
    slow = call(reader_port, "SELECT count() FROM numbers(1e12) WHERE sipHash64(number) = 1")
    assert (slow.status, exception_code(slow)) == (408, 159)
    large = call(reader_port, "SELECT number FROM numbers(1000000)")
    assert exception_code(large) == 396
    hungry = call(reader_port, "SELECT length(groupArray(number)) FROM numbers(1000000000)")
    assert exception_code(hungry) in (159, 241)


def test_a_read_only_endpoint_takes_no_faults(reader_port: int) -> None:
    url = f"http://127.0.0.1:{reader_port}/admin/faults?refuse=1"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5)


# --- credentials, caps, configuration ------------------------------------------------------------


def test_a_password_is_asked_for(embedded_path: Path) -> None:
    with serving(EndpointConfig(embedded_path, username="viewer", password="s3cret")) as endpoint:
        basic = base64.b64encode(b"viewer:s3cret").decode()
        allowed = [
            call(endpoint.port, "SELECT 1", Authorization=f"Basic {basic}"),
            call(endpoint.port, "SELECT 1", X_ClickHouse_User="viewer", X_ClickHouse_Key="s3cret"),
            call(endpoint.port, "SELECT 1", user="viewer", password="s3cret"),
        ]
        refused = [
            call(endpoint.port, "SELECT 1"),
            call(endpoint.port, "SELECT 1", Authorization="Basic ?"),
            call(endpoint.port, "SELECT 1", X_ClickHouse_User="viewer", X_ClickHouse_Key="wrong"),
            call(endpoint.port, "SELECT 1", user="default", password="s3cret"),
        ]
        with pytest.raises(DatabaseError) as caught:
            clickhouse_connect.get_client(host="127.0.0.1", port=endpoint.port, password="no")
    assert [reply.status for reply in allowed] == [200] * 3
    assert [(r.status, exception_code(r)) for r in refused] == [(403, 516)] * 4
    assert caught.value.code == 516


def test_bodies_are_capped_before_and_after_decompression(embedded_path: Path) -> None:
    with serving(EndpointConfig(embedded_path, body_bytes=10_000)) as endpoint:
        long = b"SELECT 1 -- " + b"x" * 20_000
        bomb = lz4.frame.compress(b"SELECT 1 -- " + b"x" * 5_000_000)
        assert len(bomb) < 100_000
        replies = [
            call(endpoint.port, long),
            call(endpoint.port, gzip.compress(long), Content_Encoding="gzip"),
            call(endpoint.port, lz4.frame.compress(long), Content_Encoding="lz4"),
            call(endpoint.port, bomb, Content_Encoding="lz4"),
        ]
        assert [(r.status, exception_code(r)) for r in replies] == [(413, 307)] * 4
        assert call(endpoint.port, "SELECT 1").status == 200


def test_what_cannot_be_queued_is_answered_busy(embedded_path: Path) -> None:
    config = EndpointConfig(embedded_path, concurrent_requests=1, waiting_requests=1)
    with serving(config) as endpoint, ThreadPoolExecutor(6) as threads:
        slow = "SELECT sleep(0.5)"
        replies = list(threads.map(lambda _: call(endpoint.port, slow), range(6)))
    statuses = sorted(reply.status for reply in replies)
    assert statuses == [200, 200, 503, 503, 503, 503]
    assert {exception_code(r) for r in replies if r.status == 503} == {202}


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "0.0.0.0"},  # noqa: S104
        {"host": "example.org"},
        {"host": "::", "password": "x", "read_only": False},
        {"concurrent_requests": 0},
        {"body_bytes": 0},
    ],
)
def test_an_unsafe_configuration_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"host|concurrent_requests|body_bytes"):
        EndpointConfig(tmp_path, **changes)


async def test_a_taken_port_is_named(embedded_path: Path) -> None:
    async with Endpoint(EndpointConfig(embedded_path)) as first:
        with pytest.raises(ConfigError, match=str(first.port)):
            await Endpoint(EndpointConfig(embedded_path, port=first.port)).start()
        reply = await asyncio.to_thread(call, first.port, "SELECT 1")
        assert reply.body == b"1\n"


def test_the_command_refuses_to_serve_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--path", str(tmp_path), "--host", "192.0.2.1", "--writable"]) == 2
    assert "host" in capsys.readouterr().err


# --- trouble -----------------------------------------------------------------------------------


def test_a_client_that_hangs_up_hurts_nobody(
    clickhouse_server: ClickHouseServer, client: Client
) -> None:
    create_deduplicating(client)
    insert = urllib.parse.quote(f"INSERT INTO {client.database}.t FORMAT CSV")
    head = f"POST /?query={insert} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n1,half"
    for _ in range(12):
        with socket.create_connection(("127.0.0.1", clickhouse_server.port)) as half:
            half.sendall(head.encode())
        with socket.create_connection(("127.0.0.1", clickhouse_server.port)) as gone:
            gone.sendall(b"GET /?query=SELECT+sleep(0.2) HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.query("SELECT 1").result_rows == [(1,)]
    assert count(client) == 0


def test_writers_at_once_lose_nothing(clickhouse_server: ClickHouseServer, client: Client) -> None:
    create_deduplicating(client)

    def write(writer: int) -> None:
        with clickhouse_server.client(database=client.database) as own:
            for batch in range(5):
                own.insert_arrow("t", arrow_table(100, start=(writer * 5 + batch) * 100))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert client.query("SELECT count(), uniqExact(a), max(a) FROM t").result_rows == [
        (4_000, 4_000, 3_999)
    ]


def test_acknowledged_rows_survive_kill(
    clickhouse_server: ClickHouseServer, client: Client
) -> None:
    create_deduplicating(client)
    port = clickhouse_server.port
    for batch in range(5):
        token = {"insert_deduplication_token": f"batch-{batch}"}
        client.insert_arrow("t", arrow_table(100, start=batch * 100), settings=token)
    clickhouse_server.kill()
    assert not clickhouse_server.running
    with pytest.raises(OperationalError):
        client.query("SELECT 1")
    clickhouse_server.start()
    assert clickhouse_server.port == port
    assert count(client) == 500
    # Tokens are remembered as well: what was answered may be sent again.
    again = {"insert_deduplication_token": "batch-4"}
    client.insert_arrow("t", arrow_table(100, start=400), settings=again)
    assert count(client) == 500


def test_stop_and_start_keep_everything(
    clickhouse_server: ClickHouseServer, client: Client
) -> None:
    create_deduplicating(client)
    client.insert_arrow("t", arrow_table(10))
    clickhouse_server.stop()
    clickhouse_server.start()
    assert count(client) == 10


def test_a_paused_server_times_out_and_comes_back(
    clickhouse_server: ClickHouseServer, client: Client
) -> None:
    with clickhouse_server.client(send_receive_timeout=1) as impatient:
        clickhouse_server.pause()
        try:
            with pytest.raises(OperationalError):
                impatient.query("SELECT 1")
        finally:
            clickhouse_server.resume()
        assert impatient.query("SELECT 1").result_rows == [(1,)]


def test_refused_inserts_write_nothing(clickhouse_server: ClickHouseServer, client: Client) -> None:
    create_deduplicating(client)
    clickhouse_server.refuse_next(2)
    for _ in range(2):
        with pytest.raises(OperationalError):
            client.insert_arrow("t", arrow_table(10))
        assert count(client) == 0
    client.insert_arrow("t", arrow_table(10))
    assert count(client) == 10
    assert set(clickhouse_server.faults_left().values()) == {0}


def test_a_lost_answer_is_repaired_by_the_token(
    clickhouse_server: ClickHouseServer, client: Client
) -> None:
    create_deduplicating(client)
    clickhouse_server.fail_after_apply_next()
    token = {"insert_deduplication_token": "once"}
    with pytest.raises(OperationalError):
        client.insert_arrow("t", arrow_table(10), settings=token)
    assert count(client) == 10
    client.insert_arrow("t", arrow_table(10), settings=token)
    assert count(client) == 10


def test_hung_inserts_write_nothing_and_block_nobody(
    clickhouse_server: ClickHouseServer, client: Client
) -> None:
    create_deduplicating(client)
    clickhouse_server.hang_next(6)
    insert = f"INSERT INTO {client.database}.t VALUES (1, 'x')"
    with ThreadPoolExecutor(6) as threads:
        hung = [threads.submit(call_impatiently, clickhouse_server.port, insert) for _ in range(6)]
        assert count(client) == 0
    for one in hung:
        with pytest.raises(TimeoutError):
            one.result()
    with clickhouse_server.client(database=client.database) as writer:
        writer.insert_arrow("t", arrow_table(10))
    assert count(client) == 10


def call_impatiently(port: int, sql: str) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", sql.encode())
    with urllib.request.urlopen(request, timeout=1.0) as answer:  # noqa: S310
        return answer.read()


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import signal, sys, pathlib\n"
        "from tests.support.clickhouse import ClickHouseServer\n"
        "server = ClickHouseServer(pathlib.Path(sys.argv[1]))\n"
        "server.start(); server.pause()\n"
        "print(server.pid, flush=True); signal.pause()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Not select(), which knows no file number above a thousand.
        waiting = select.poll()
        waiting.register(process, select.POLLIN)
        ended = waiting.poll(DEADLINE_S * 1000)
    finally:
        os.close(process)
    assert ended, "the process lives on"


def test_sigterm_ends_the_command(tmp_path: Path) -> None:
    server = ClickHouseServer(tmp_path)
    server.start()
    os.kill(server.pid, signal.SIGTERM)
    wait_for_end(server.pid)
    assert not server.running
    server.stop()


# --- reading SQL and requests --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        (b" /* SELECT */ -- x\n insert into t", b"INSERT"),
        (b"((select 1))", b"SELECT"),
        (b"#!x\nwith 1 as x", b"WITH"),
        (b"'select'", b""),
        (b"", b""),
    ],
)
def test_the_first_word_says_what_a_statement_is(sql: bytes, word: bytes) -> None:
    assert first_word(sql) == word


@pytest.mark.parametrize(
    ("sql", "name", "rest"),
    [
        (b"INSERT INTO t FORMAT Native\n\x00FORMAT x", "Native", b"\n\x00FORMAT x"),
        (b"INSERT INTO `FORMAT x` (a, `FORMAT y`) format CSV 1", "CSV", b" 1"),
        (b"INSERT INTO t SETTINGS a = 'FORMAT x' FORMAT JSONEachRow{}", "JSONEachRow", b"{}"),
    ],
)
def test_the_data_of_an_insert_is_found(sql: bytes, name: str, rest: bytes) -> None:
    found = find_insert_format(sql)
    assert found is not None
    assert (found.name, sql[found.end :]) == (name, rest)
    assert sql[found.start :].upper().startswith(b"FORMAT")


@pytest.mark.parametrize(
    "sql",
    [
        b"INSERT INTO t VALUES ('FORMAT x')",
        b"INSERT INTO t (a) SELECT 1 FORMAT CSV",
        b"INSERT INTO t FROM INFILE 'x' FORMAT CSV",
    ],
)
def test_an_insert_may_bring_no_data_of_its_own(sql: bytes) -> None:
    assert find_insert_format(sql) is None


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        (b"SELECT format(a, b), x AS format FROM t -- FORMAT x\nFORMAT JSON", "JSON"),
        (b"SELECT (SELECT 1 FORMAT Null) FORMAT CSV; -- end", "CSV"),
        (b"SELECT 1 FORMAT CSV SETTINGS max_threads = 1", "CSV"),
        (b"SELECT format, x FROM t", None),
        (b"SELECT x AS format FROM t", None),
        (b"SELECT 'FORMAT x'", None),
        (b"FORMAT", None),
    ],
)
def test_the_format_of_a_query_is_found(sql: bytes, name: str | None) -> None:
    found = find_format(sql)
    assert (found and found.name) == name


def test_a_request_is_taken_apart() -> None:
    parameters = {
        "query": "SELECT {a:String}", "param_a": "x", "database": "d", "max_threads": "1",
        "session_id": "s", "client_protocol_version": "54460", "enable_http_compression": "1",
    }  # fmt: skip
    understood = understand(parameters, {"X-ClickHouse-Format": "CSV"}, b"-- end", 2)
    assert understood.sql == b"SELECT {a:String}\n-- end"
    assert understood.settings == {"max_threads": "1"}
    assert understood.parameters == {"a": "x"}
    assert (understood.database, understood.default_format) == ("d", "CSV")
    assert (understood.readonly, understood.protocol_version) == (2, 54_460)


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip", "deflate", "br"])
def test_broken_and_unknown_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(QueryFailed):
        decompress(b"no such frame", encoding, 100)
    if encoding == "lz4":
        with pytest.raises(QueryFailed, match="cut short"):
            decompress(lz4.frame.compress(b"x" * 1_000)[:-8], encoding, 10_000)


def test_frames_may_follow_one_another() -> None:
    frames = lz4.frame.compress(b"one ") + lz4.frame.compress(b"two")
    assert decompress(frames, "lz4", 7) == b"one two"
    with pytest.raises(QueryFailed):
        decompress(frames, "lz4", 6)


# --- Native as later protocols have it ------------------------------------------------------------

COLUMNS = [
    "toUInt8(number)", "toInt256(number)", "toFloat32(number)", "number % 2 = 0",
    "toString(number * 1000)", "repeat('日', number)", "toFixedString('abc', 5)",
    "toDate('2026-01-01')", "toDateTime('2026-01-01 00:00:00', 'Asia/Tokyo')",
    "toDateTime64('2026-01-01 00:00:00', 3, 'UTC')", "toDecimal32(1, 2)", "toDecimal64(1, 2)",
    "toDecimal128(1, 2)", "toDecimal256(1, 2)", "generateUUIDv4()", "toIPv4('127.0.0.1')",
    "toIPv6('::1')", "CAST('a', 'Enum8(\\'a\\' = 1, \\'(,b\\' = 2)')", "toIntervalDay(1)",
    "if(number = 1, NULL, hex(number))", "NULL", "materialize(NULL)",
    "range(number)", "emptyArrayString()", "[['a', 'b'], []]", "map('k', number, 'l', 2)",
    "CAST(map(), 'Map(Int16, UInt64)')", "(1, 'x', [2, 3])",
    "CAST((1, 'x'), 'Tuple(a UInt8, `b (c, d)` String)')",
    "toLowCardinality(toString(number))", "toLowCardinality('same')",
    "CAST(if(number = 1, NULL, 'x'), 'LowCardinality(Nullable(String))')",
    "[toLowCardinality('x'), 'y']", "CAST([], 'Array(LowCardinality(String))')",
    "CAST((toString(number), 1), 'Tuple(LowCardinality(String), UInt8)')",
    "map(toLowCardinality('k'), [number])",
    "CAST(number, 'SimpleAggregateFunction(sum, UInt64)')",
]  # fmt: skip


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def one_column(port: int, expression: str, rows: int) -> tuple[bytes, bytes]:
    """Ask for one column alone: its name and type as sent, and its data."""
    sql = f"SELECT {expression} AS x FROM numbers({rows})"
    data = call(port, sql, default_format="Native").body
    assert data[:2] == bytes([1, rows])
    at = 2
    for _ in range(2):
        size, at = read_varint(data, at)
        at += size
    return data[2:at], data[at:]


def test_later_native_is_the_columns_with_a_flag_each(reader_port: int) -> None:
    """The engine's own answers for each column alone say where a column ends."""
    rows = 4
    fixed = [c for c in COLUMNS if "UUID" not in c]
    selected = ", ".join(f"{c} AS x{i}" for i, c in enumerate(fixed))
    answer = call(
        reader_port, f"SELECT {selected} FROM numbers({rows})",
        default_format="Native", client_protocol_version="54460",
    )  # fmt: skip
    assert answer.status == 200, answer.body
    expected = b"\x01\x00\x02\xff\xff\xff\xff\x00" + bytes([len(fixed), rows])
    for i, expression in enumerate(fixed):
        head, data = one_column(reader_port, expression, rows)
        name = f"x{i}".encode()
        expected += bytes([len(name)]) + name + head[2:] + b"\x00" + data
    assert answer.body == expected


@pytest.mark.parametrize("expression", COLUMNS)
def test_every_type_is_walked_to_its_end(reader_port: int, expression: str) -> None:
    """The column behind it is found, name, type, flag and data, where it belongs."""
    sql = f"SELECT {expression} AS x, 'marker' AS m FROM numbers(300)"
    framed = frame_native(call(reader_port, sql, default_format="Native").body)
    assert framed.startswith(b"\x01\x00\x02\xff\xff\xff\xff\x00\x02")
    assert framed.count(b"\x01m\x06String\x00" + b"\x06marker" * 300) == 1
    assert framed.endswith(b"\x06marker")


def test_blocks_are_framed_one_by_one(reader_port: int) -> None:
    sql = "SELECT toString(number) AS s FROM numbers(100000)"
    plain = call(reader_port, sql, default_format="Native").body
    framed = call(reader_port, sql, default_format="Native", client_protocol_version="54460").body
    blocks = plain.count(b"\x01s\x06String")
    assert blocks > 1
    assert framed.count(b"\x01s\x06String\x00") == blocks
    assert len(framed) == len(plain) + 9 * blocks


def test_older_clients_get_plain_native(reader_port: int) -> None:
    sql = "SELECT 1 AS a"
    plain = call(reader_port, sql, default_format="Native").body
    for version in ("0", "54405", "x"):
        reply = call(reader_port, sql, default_format="Native", client_protocol_version=version)
        assert reply.body == plain == b"\x01\x01\x01a\x05UInt8\x01"


def test_a_type_without_a_plain_layout_is_refused(reader_port: int) -> None:
    reply = call(
        reader_port, "SELECT uniqState(1) AS x",
        default_format="Native", client_protocol_version="54460",
    )  # fmt: skip
    assert (reply.status, exception_code(reply)) == (501, 48)
    assert b"AggregateFunction" in reply.body
