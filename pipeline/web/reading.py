"""How the page reads ClickHouse, embedded or a server: one statement, read-only, under caps.

Both ways refuse what `pipeline.sinks.endpoint.check_readable` refuses, and run the rest
under ``readonly = 1`` with caps on time, memory and result.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, TypeVar

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline.config import ClickHouseSettings, WebSettings
from pipeline.errors import SinkUnavailable
from pipeline.sinks.endpoint import (
    Call,
    EndpointConfig,
    Engine,
    QueryFailed,
    check_readable,
    find_format,
    find_outward_functions,
)

T = TypeVar("T")

#: Columns with their types, then rows as arrays: what a browser reads without a library.
FORMAT = "JSONCompact"
_SYNTAX_ERROR = 62
#: More threads would make a picture faster and the worker beside it slower.
_THREADS = "2"


class Reader(Protocol):
    """Calls block and may come from several threads at once."""

    def read(self, sql: str, *, rows: int | None = None, unix_times: bool = False) -> bytes:
        """Return the result as JSON (ClickHouse's ``JSONCompact``), of at most `rows` rows.

        With `unix_times`, times are seconds since the epoch, in strings.

        Raises:
            QueryFailed: it is refused, wrong, or over a cap; the message says why.
            SinkUnavailable: ClickHouse is away.
        """
        ...

    def close(self) -> None: ...


def build_reader(clickhouse: ClickHouseSettings, web: WebSettings) -> Reader:
    """Return the reader that the configuration asks for; nothing is connected yet with a server.

    Raises:
        SinkUnavailable: the embedded engine's directory cannot be opened.
    """
    if clickhouse.mode == "embedded":
        return EmbeddedReader(clickhouse, web)
    return ServerReader(clickhouse, web)


class EmbeddedReader:
    """Reads the engine in this process, through a handle of its own for every query."""

    def __init__(self, clickhouse: ClickHouseSettings, web: WebSettings) -> None:
        self._database = clickhouse.database
        try:
            self._engine = Engine(
                EndpointConfig(
                    clickhouse.path,
                    query_time_s=web.query_time_s,
                    query_memory_bytes=web.query_memory_bytes,
                    result_bytes=web.result_bytes,
                )
            )
        except RuntimeError as error:
            raise SinkUnavailable(f"cannot open {clickhouse.path}: {error}") from None

    def read(self, sql: str, *, rows: int | None = None, unix_times: bool = False) -> bytes:
        text = _to_bytes(sql)
        limits = _limits(rows, unix_times=unix_times)
        call = Call(text, self._database, default_format=FORMAT, readonly=1, limits=limits)
        return self._engine.answer(call).body

    def close(self) -> None:
        self._engine.close()


class ServerReader:
    """Reads a ClickHouse server, as the user of `WebSettings` or else as the worker's."""

    def __init__(self, clickhouse: ClickHouseSettings, web: WebSettings) -> None:
        self._clickhouse, self._web = clickhouse, web
        self._client: Client | None = None
        self._outward: re.Pattern[bytes] | None = None

    def read(self, sql: str, *, rows: int | None = None, unix_times: bool = False) -> bytes:
        text = _to_bytes(sql)
        client = self._connect()
        if self._outward is None:
            self._outward = find_outward_functions(self._ask)
        check_readable(self._ask, text, self._outward)
        web = self._web
        settings = {
            "readonly": "1",
            "max_execution_time": str(web.query_time_s),
            "max_memory_usage": str(web.query_memory_bytes),
            "max_result_bytes": str(web.result_bytes),
            **_limits(rows, unix_times=unix_times),
        }
        return _translated(
            lambda: client.raw_query(
                text.decode().rstrip().rstrip(";"), settings=settings, fmt=FORMAT
            )
        )

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _ask(self, sql: str) -> bytes:
        client = self._connect()
        return _translated(lambda: client.raw_query(sql, fmt="RawBLOB"))

    def _connect(self) -> Client:
        if self._client is None:
            self._client = _translated(self._open)
        return self._client

    def _open(self) -> Client:
        settings, web = self._clickhouse, self._web
        own = web.username is not None
        password = web.password if own else settings.password
        return clickhouse_connect.get_client(
            host=settings.host,
            port=settings.port,
            username=web.username if own else settings.username,
            password=password.get_secret_value(),
            database=settings.database,
            interface="https" if settings.secure else "http",
            ca_cert=str(settings.ca_file) if settings.ca_file else None,
            connect_timeout=settings.timeout_s,
            send_receive_timeout=web.query_time_s + 5,
            autogenerate_session_id=False,
            query_retries=0,
        )


def _to_bytes(sql: str) -> bytes:
    text = sql.encode(errors="replace")
    if find_format(text):
        message = "The page draws the result itself: leave the FORMAT clause out."
        raise QueryFailed(_SYNTAX_ERROR, message)
    return text


def _limits(rows: int | None, *, unix_times: bool) -> dict[str, str]:
    limits = {"max_threads": _THREADS, "output_format_json_quote_64bit_integers": "0"}
    if rows is not None:
        limits["limit"] = str(rows)
    if unix_times:
        limits["date_time_output_format"] = "unix_timestamp"
    return limits


def _translated(call: Callable[[], T]) -> T:
    try:
        return call()
    except (ClickHouseError, OSError) as error:
        if "Code: " in str(error):
            raise QueryFailed.from_engine(str(error)) from None
        raise SinkUnavailable(str(error)) from error
