"""The store: everything that is written to ClickHouse or read back, server or embedded.

Delivery guarantee: `insert` with a token has its effect once, however often it
is repeated with the same rows (ClickHouse remembers the last 10,000 tokens of
a table). Every other write is idempotent by its key: writing the same again
changes nothing. Errors are of two kinds: `RowsRefused` when these rows can
never be taken, `SinkUnavailable` for everything else, which a retry, or an
operator and a retry, will mend.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver import options
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, ProgrammingError

from pipeline.config import ClickHouseSettings
from pipeline.core.chunk import Columns
from pipeline.errors import KizashiError, PermanentError, RowsRefused, SinkUnavailable
from pipeline.sinks.arrow import to_table
from schemas.clickhouse import Migration, read_migrations

#: ClickHouse's error codes that speak of the rows themselves.
_ROW_ERRORS = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        33,  # CANNOT_READ_ALL_DATA
        53,  # TYPE_MISMATCH
        69,  # ARGUMENT_OUT_OF_BOUND
        70,  # CANNOT_CONVERT_TYPE
        117,  # INCORRECT_DATA
        131,  # TOO_LARGE_STRING_SIZE
        321,  # VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
        349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
        407,  # DECIMAL_OVERFLOW
        469,  # VIOLATED_CONSTRAINT
    }
)
#: UNKNOWN_TABLE and UNKNOWN_DATABASE.
_NO_SCHEMA = frozenset({60, 81})
_CODE = re.compile(r"Code: (\d+)")

# The driver asks of every insert of rows whether it is a data frame, and imports pandas for the
# question: 35 MB. We insert none.
options.pd = None


@contextmanager
def open_store(settings: ClickHouseSettings) -> Iterator[Store]:
    """Give the store, in its migrated database, for as long as it takes.

    Raises:
        SinkUnavailable: ClickHouse is away, another process has it open, or there is no schema.
    """
    store = Store(settings)
    try:
        store.use_database()
        yield store
    finally:
        store.close()


class QueryFailed(PermanentError):
    """A query that ClickHouse will not run; the message is its own."""


class Store:
    """One connection to ClickHouse. Calls block: the shell runs them in a thread."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._settings = settings
        self._client = _connect(settings)
        self._database = settings.database

    @property
    def server_version(self) -> str:
        return str(self._client.server_version)

    def close(self) -> None:
        self._client.close()

    def migrate(self) -> list[str]:
        """Bring the schema up to date; returns the names of the migrations that were applied.

        Idempotent, and safe to be cut off: every statement can be run again.
        """
        self._run(f"CREATE DATABASE IF NOT EXISTS {self._database}")
        self._client.database = self._database
        self._run(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number UInt32, name String,"
            " applied_at DateTime64(3, 'UTC') DEFAULT now64(3))"
            " ENGINE = ReplacingMergeTree ORDER BY number"
        )
        done = {row[0] for row in self.rows("SELECT number FROM schema_migrations")}
        todo = [m for m in read_migrations() if m.number not in done]
        for migration in todo:
            self._apply(migration)
        return [f"{m.number:03} {m.name}" for m in todo]

    def use_database(self) -> None:
        """Work in the configured database; it must have been migrated.

        Raises:
            SinkUnavailable: there is no such database, or it lacks the tables.
        """
        self._client.database = self._database
        try:
            done = self.rows("SELECT max(number) FROM schema_migrations")
        except SinkUnavailable as error:
            if error_code(error) in _NO_SCHEMA:
                raise SinkUnavailable("there is no schema yet: run `kizashi init`") from error
            raise
        if done[0][0] < len(read_migrations()):
            raise SinkUnavailable("the schema is older than this version: run `kizashi init`")

    def insert(self, table: str, columns: Columns | pa.Table, token: str | None = None) -> None:
        """Insert columns of equal length as one block.

        `token` names these very rows: another insert with the same token has
        no effect, so a token must never be used again for other rows.
        """
        rows = columns if isinstance(columns, pa.Table) else to_table(table, columns)
        settings: dict[str, Any] = {
            "async_insert": 0,
            "max_partitions_per_insert_block": 0,
            # Merges do what this would do, later and not while a chunk waits: half the time.
            "optimize_on_insert": 0,
        }
        if token is not None:
            settings |= {"insert_deduplicate": 1, "insert_deduplication_token": token}
        with _translated():
            self._client.insert_arrow(table, rows, settings=settings)

    def insert_rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert a few rows (mappings with the same keys), idempotent by the table's key."""
        if not rows:
            return
        names = list(rows[0])
        with _translated():
            self._client.insert(
                table,
                [[row[name] for name in names] for row in rows],
                column_names=names,
                settings={"async_insert": 0},
            )

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a query of ours and return its rows."""
        with _translated():
            result = self._client.query(sql, parameters=dict(parameters or {}))
            return [tuple(row) for row in result.result_rows]

    def table(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Run a query of ours and return its columns as Arrow has them."""
        with _translated():
            return self._client.query_arrow(sql, parameters=dict(parameters or {}))

    def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, read_only: bool = False
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run a user's query; returns column names and rows.

        Raises:
            QueryFailed: ClickHouse refused it; the message says why.
            SinkUnavailable: ClickHouse could not be asked.
        """
        settings = {"readonly": 1} if read_only else None
        try:
            with _translated(), self._lend(apart=read_only) as client:
                result = client.query(sql, parameters=dict(parameters or {}), settings=settings)
        except KizashiError as error:
            if (message := _sql_message(error)) is not None:
                raise QueryFailed(message) from error
            raise
        return list(result.column_names), [tuple(row) for row in result.result_rows]

    def delete(self, table: str, where: str, parameters: Mapping[str, Any]) -> None:
        """Remove rows of one of our tables; returns when the parts on disk are without them."""
        # The parts are written anew by another thread, which asks `where` for itself; what it
        # asks of other tables must not have changed meanwhile: the caller erases these later.
        settings = {"mutations_sync": 2, "allow_nondeterministic_mutations": 1}
        with _translated():
            self._client.command(
                f"ALTER TABLE {table} DELETE WHERE {where}",
                parameters=dict(parameters),
                settings=settings,
            )

    def release_memory(self) -> None:
        """Have the embedded engine give back at once what its allocator keeps for later.

        Raises:
            SinkUnavailable: it would not.
        """
        if self._settings.mode == "embedded":
            self._run("SYSTEM JEMALLOC PURGE")

    def empty(self, keep: Collection[str] = ()) -> None:
        """Remove every row of our tables but those of `keep`; the schema stays."""
        tables = self.rows(
            "SELECT name FROM system.tables WHERE database = {database:String}"
            " AND engine LIKE '%MergeTree' AND name != 'schema_migrations' AND total_rows > 0",
            {"database": self._database},
        )
        for (table,) in tables:
            if table not in keep:
                self.truncate(table)

    def truncate(self, table: str) -> None:
        """Remove every row of one of our tables."""
        self._run(f"TRUNCATE TABLE {table}")

    @contextmanager
    def _lend(self, *, apart: bool) -> Iterator[Client]:
        """The connection, or one of its own where a read-only query could spoil ours.

        An embedded connection keeps a setting when it cannot be set back, and `readonly` is
        the one that never can.
        """
        if not apart or self._settings.mode != "embedded":
            yield self._client
            return
        client = _connect(self._settings)
        try:
            client.database = self._client.database
            yield client
        finally:
            client.close()

    def _apply(self, migration: Migration) -> None:
        days = {
            "requests_ttl_days": self._settings.requests_ttl_days,
            "rollups_ttl_days": self._settings.rollups_ttl_days,
            "texts_ttl_days": self._settings.texts_ttl_days,
            "samples_ttl_days": self._settings.samples_ttl_days,
        }
        for statement in migration.statements:
            self._run(re.sub(r"\{(\w+_ttl_days)\}", lambda m: str(days[m[1]]), statement))
        self.insert_rows(
            "schema_migrations", [{"number": migration.number, "name": migration.name}]
        )

    def _run(self, statement: str) -> None:
        with _translated():
            self._client.command(statement)


def _connect(settings: ClickHouseSettings) -> Client:
    with _translated():
        if settings.mode == "embedded":
            return _open_embedded(settings.path)
        return clickhouse_connect.get_client(
            host=settings.host,
            port=settings.port,
            username=settings.username,
            password=settings.password.get_secret_value(),
            interface="https" if settings.secure else "http",
            ca_cert=str(settings.ca_file) if settings.ca_file else None,
            connect_timeout=settings.timeout_s,
            send_receive_timeout=settings.timeout_s,
            # Two queries of one session may not run at once, and we need no session.
            autogenerate_session_id=False,
            query_retries=0,
        )


def _open_embedded(path: Path) -> Client:
    path.mkdir(parents=True, exist_ok=True)
    try:
        return clickhouse_connect.get_client(interface="chdb", path=str(path))
    except ProgrammingError as error:
        # The engine locks its directory, and does not say so when it finds it locked.
        raise SinkUnavailable(
            f"cannot open {path}: only one process may have it open at a time;"
            " a worker, a demo or another query is perhaps still running"
        ) from error


@contextmanager
def _translated() -> Iterator[None]:
    """Turn ClickHouse's and the network's errors into ours."""
    try:
        yield
    except (ClickHouseError, OSError) as error:
        kind = RowsRefused if error_code(error) in _ROW_ERRORS else SinkUnavailable
        raise kind(str(error)) from error


def error_code(error: BaseException) -> int | None:
    """Return ClickHouse's own error code, if the error carries one."""
    match = _CODE.search(str(error))
    return int(match[1]) if match else None


def _sql_message(error: KizashiError) -> str | None:
    return str(error) if error_code(error) is not None else None
