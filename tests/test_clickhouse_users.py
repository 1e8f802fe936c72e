"""Who may do what in ClickHouse, and over which wire.

The users of `deploy/` are read and their grants worked out here; a real server of the same
image judges the same table where Docker answers (the embedded engine has no users). The
read-only endpoint over the embedded engine has its tests in `test_endpoint.py`.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import clickhouse_connect
import pytest
import yaml
from clickhouse_connect.driver.exceptions import ClickHouseError
from docker.errors import DockerException
from pydantic import SecretStr, ValidationError
from testcontainers.core.container import DockerContainer

from pipeline.config import ClickHouseSettings
from pipeline.errors import SinkUnavailable
from pipeline.sinks.clickhouse import Store
from schemas.clickhouse import read_migrations
from tests.support.clickhouse import ClickHouseServer
from tests.support.kafka import docker_answers
from tests.support.tls import Authority

ROOT = Path(__file__).parents[1]
CLICKHOUSE = ROOT / "deploy" / "clickhouse"
USERS = ElementTree.parse(CLICKHOUSE / "users.d" / "kizashi.xml")  # noqa: S314 - our own file
NAMES = ("migrator", "writer", "reader")


class Grant(NamedTuple):
    gives: bool
    privileges: frozenset[str]
    target: str


def grants_of(user: str) -> list[Grant]:
    queries = USERS.findall(f"users/{user}/grants/query")
    return [parse_grant(query.text or "") for query in queries]


def parse_grant(query: str) -> Grant:
    verb, _, rest = query.partition(" ")
    if "TABLE ENGINE" in rest:
        engines = frozenset(re.findall(r"TABLE ENGINE ON (\w+)", rest))
        return Grant(verb == "GRANT", frozenset(f"ENGINE {e}" for e in engines), "*.*")
    privileges, _, target = rest.partition(" ON ")
    return Grant(verb == "GRANT", frozenset(privileges.split(", ")), target)


def covers(target: str, table: str) -> bool:
    database, _, name = target.partition(".")
    wanted_database, _, wanted = table.partition(".")
    return database in {"*", wanted_database} and name in {"*", wanted}


def may(user: str, privilege: str, table: str) -> bool:
    """Whether the last grant or revocation that speaks of it gives it."""
    given = False
    for grant in grants_of(user):
        if covers(grant.target, table) and privilege in grant.privileges:
            given = grant.gives
    return given


#: Statement → its privilege, its object, and who may.
TABLE = [
    ("SELECT count() FROM kizashi.requests", "SELECT", "kizashi.requests", NAMES),
    ("SELECT count() FROM kizashi.request_texts", "SELECT", "kizashi.request_texts", NAMES[:2]),
    ("SELECT count() FROM system.users", "SELECT", "system.users", ()),
    ("SELECT count() FROM system.query_log", "SELECT", "system.query_log", ()),
    (
        "INSERT INTO kizashi.deadletters (topic) VALUES ('t')",
        "INSERT",
        "kizashi.deadletters",
        NAMES[:2],
    ),
    ("TRUNCATE TABLE kizashi.deadletters", "TRUNCATE", "kizashi.deadletters", NAMES[:1]),
    ("ALTER TABLE kizashi.requests DELETE WHERE 0", "ALTER", "kizashi.requests", NAMES[:1]),
    ("CREATE TABLE kizashi.mine (a Int8) ENGINE = MergeTree ORDER BY a", "CREATE TABLE",
     "kizashi.mine", NAMES[:1]),
    ("CREATE TABLE other.mine (a Int8) ENGINE = MergeTree ORDER BY a", "CREATE TABLE",
     "other.mine", ()),
    ("CREATE USER eve", "CREATE USER", "*.*", ()),
    ("GRANT SELECT ON *.* TO reader", "ADMIN OPTION", "*.*", ()),
    ("SELECT * FROM url('http://127.0.0.1:1/', CSV, 'a String')", "URL", "*.*", ()),
    ("SELECT * FROM file('/etc/passwd', CSV, 'a String')", "FILE", "*.*", ()),
    ("SELECT * FROM remote('127.0.0.1', system.one)", "REMOTE", "*.*", ()),
    ("SYSTEM SHUTDOWN", "SYSTEM SHUTDOWN", "*.*", ()),
    ("KILL QUERY WHERE 1", "KILL QUERY", "*.*", ()),
    ("DROP DATABASE kizashi", "DROP DATABASE", "kizashi.*", ()),
    ("BACKUP TABLE kizashi.requests TO Disk('d', 'b')", "BACKUP", "kizashi.requests", ()),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "privilege", "target", "who"), TABLE)
def test_the_grants_say_who_may(
    statement: str, privilege: str, target: str, who: tuple[str, ...]
) -> None:
    assert tuple(n for n in NAMES if may(n, privilege, target)) == who, statement


def test_there_are_three_users_and_none_without_a_password() -> None:
    users = {user.tag: user for user in USERS.findall("users/*")}
    assert set(users) == {*NAMES, "default"}
    assert users["default"].get("remove") == "remove"
    for name in NAMES:
        (password,) = users[name].findall("password")
        assert password.get("from_env") == f"CLICKHOUSE_{name.upper()}_PASSWORD"
        assert not (password.text or "").strip()
        assert users[name].find("access_management") is None
        assert len(users[name].findall("grants")) == 1


def test_the_reader_can_change_its_time_and_nothing_else() -> None:
    profile = USERS.find("profiles/reader")
    assert profile is not None
    assert profile.findtext("readonly") == "1"
    assert [each.tag for each in profile.findall("constraints/*")] == ["max_execution_time"]
    assert USERS.findtext("users/reader/profile") == "reader"


NEEDS = {
    "CREATE TABLE": r"^CREATE TABLE\b",
    "CREATE VIEW": r"^CREATE (?:OR REPLACE )?VIEW\b",
    "CREATE FUNCTION": r"^CREATE (?:OR REPLACE )?FUNCTION\b",
    "ALTER": r"^ALTER TABLE\b",
}


def test_the_migrator_may_do_what_migrations_do_and_the_others_nothing_of_it() -> None:
    needed = set()
    for migration in read_migrations():
        for statement in migration.statements:
            text = re.sub(r"--[^\n]*\n", "", statement).strip()
            found = {need for need, shape in NEEDS.items() if re.match(shape, text)}
            assert len(found) == 1, text[:80]
            needed |= found
            for engine in re.findall(r"ENGINE = (\w+)", text):
                assert may("migrator", f"ENGINE {engine}", "*.*"), engine
    for need in needed | {"CREATE DATABASE"}:
        target = "*.*" if need == "CREATE FUNCTION" else "kizashi.requests"
        assert may("migrator", need, target), need
        assert not may("writer", need, target)
        assert not may("reader", need, target)


def test_a_grant_too_many_would_be_seen() -> None:
    assert parse_grant("GRANT SELECT, INSERT ON *.*").privileges == {"SELECT", "INSERT"}
    assert covers("*.*", "system.users")
    assert not covers("kizashi.*", "system.users")


# --- A server of the same image ----------------------------------------------------------------


@pytest.fixture(scope="module")
def container() -> Iterator[DockerContainer]:
    if not docker_answers():
        pytest.skip("Docker does not answer: the users are judged by their grants alone")
    stack = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    image = stack["services"]["clickhouse"]["image"]
    made = DockerContainer(image).with_exposed_ports(8123)
    made.with_env("CLICKHOUSE_SKIP_USER_SETUP", "1")
    for name in NAMES:
        made.with_env(f"CLICKHOUSE_{name.upper()}_PASSWORD", f"{name}-password")
    for folder in ("config.d", "users.d"):
        file = CLICKHOUSE / folder / "kizashi.xml"
        made.with_volume_mapping(str(file), f"/etc/clickhouse-server/{folder}/kizashi.xml", "ro")
    try:
        made.start()
    except (DockerException, OSError, RuntimeError) as error:
        warnings.warn(f"Docker answers, but {image} does not start: {error}", stacklevel=2)
        made.stop()
        pytest.skip(f"{image} does not start here")
    yield made
    made.stop()


@pytest.mark.parametrize("user", NAMES)
def test_a_server_judges_the_same(container: DockerContainer, user: str) -> None:
    host, port = container.get_container_host_ip(), int(container.get_exposed_port(8123))
    settings = {
        "mode": "http", "host": host, "port": port, "allow_plaintext": True, "timeout_s": 30,
    }  # fmt: skip
    migrator = ClickHouseSettings(
        **settings, username="migrator", password=SecretStr("migrator-password")
    )
    Store(migrator).migrate()
    client = clickhouse_connect.get_client(
        host=host, port=port, username=user, password=f"{user}-password"
    )
    for statement, _, _, who in TABLE:
        if user in who:
            client.command(statement)
        else:
            with pytest.raises(ClickHouseError):
                client.command(statement)


# --- The wire ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["clickhouse", "10.0.0.7", "db.example.com"])
def test_plain_http_off_this_machine_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="in the clear"):
        ClickHouseSettings(mode="http", host=host)
    for allowed in ({"secure": True}, {"allow_plaintext": True}):
        assert ClickHouseSettings(mode="http", host=host, **allowed).host == host
    assert ClickHouseSettings(mode="http", host="::1").secure is False


@contextmanager
def tls_before(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """A port that speaks TLS and hands on to another that does not."""
    loop = asyncio.new_event_loop()

    async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        finally:
            target.close()

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            pipe(reader, behind_writer), pipe(behind_reader, writer), return_exceptions=True
        )

    async def serve() -> asyncio.Server:
        return await asyncio.start_server(hand_on, "127.0.0.1", 0, ssl=context)

    server = loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def test_tls_verifies_the_server(
    clickhouse_server: ClickHouseServer, database: str, tmp_path: Path
) -> None:
    ours, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "stranger")
    identity = ours.issue("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(identity.certificate, identity.key)
    with tls_before(clickhouse_server.port, context) as port:

        def connect(**changes: object) -> Store:
            given = {"mode": "http", "host": "127.0.0.1", "port": port, "secure": True}
            given |= {"database": database, "ca_file": ours.file, "timeout_s": 5.0}
            return Store(ClickHouseSettings.model_validate(given | changes))

        store = connect()
        assert store.rows("SELECT 1") == [(1,)]
        store.close()
        for wrong, says in (
            ({"ca_file": stranger.file}, "CERTIFICATE_VERIFY_FAILED"),
            ({"ca_file": None}, "CERTIFICATE_VERIFY_FAILED"),
            ({"host": "localhost"}, "(?i)hostname mismatch|doesn't match"),
            ({"secure": False}, "."),
        ):
            with pytest.raises(SinkUnavailable, match=says):
                connect(**wrong)
