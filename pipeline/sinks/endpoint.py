"""ClickHouse's HTTP interface over the embedded engine, so that its clients can read what we keep.

One engine owns its directory and only the process that opened it can read it. This
endpoint lets Grafana, `curl` and `clickhouse-connect` in: it speaks the part of
ClickHouse's HTTP interface that they use (https://clickhouse.com/docs/interfaces/http).

What it promises:

* An answer is complete before its first byte leaves. An error is always a status with
  ``Code: N. DB::Exception: …`` as its body, never a torn result.
* 200 to an insert means that ClickHouse has written it, as with a server. No answer
  means that it may have: send it again with the same ``insert_deduplication_token``.
* Every request has a handle of the engine to itself, which is thrown away. Nothing that
  one request sets is seen by another; sessions and temporary tables do not exist.
* Read-only (the default) is the engine's own ``readonly = 1``, under caps on time, memory
  and result. What that leaves open on an embedded engine, such as ``INTO OUTFILE`` and
  the function ``file``, is closed here: see `check_readable`.

``python -m pipeline.sinks.endpoint --path DIR --port 0 --writable`` serves a directory for
tests and prints where. Writable endpoints also take faults, see `Faults`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import functools
import gzip
import hmac
import json
import re
import signal
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lz4.frame
from aiohttp import web
from backports import zstd

from pipeline.config import is_loopback
from pipeline.errors import ConfigError, KizashiError

# --- configuration and vocabulary -----------------------------------------------------


@dataclass(frozen=True)
class EndpointConfig:
    """Where to listen, what to serve, and how much of it at once."""

    path: Path
    host: str = "127.0.0.1"
    #: 0 lets the system choose; `Endpoint.port` tells which.
    port: int = 0
    #: Writable is for tests: no caps on a query but time, and faults on request.
    read_only: bool = True
    #: Without a password everybody who can connect may read.
    username: str = "default"
    password: str | None = None
    body_bytes: int = 64 * 1024 * 1024
    concurrent_requests: int = 4
    #: Requests that may wait for their turn; more are answered 503.
    waiting_requests: int = 64
    body_timeout_s: float = 60.0
    query_time_s: float = 30.0
    #: Read-only caps, for the queries share a process with what feeds the tables.
    query_memory_bytes: int = 1024 * 1024 * 1024
    result_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("body_bytes", "concurrent_requests", "query_time_s", "result_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: has to be greater than zero")
        if not is_loopback(self.host) and (self.password is None or not self.read_only):
            raise ConfigError(
                f"host: {self.host} is not this machine; to be reached from others the endpoint"
                " has to be read-only and have a password"
            )


class QueryFailed(KizashiError):
    """A request that ClickHouse, or this endpoint in its place, answered with an exception."""

    def __init__(self, code: int, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status or _HTTP_STATUSES.get(code, 500)

    @classmethod
    def from_engine(cls, text: str) -> QueryFailed:
        """Read the engine's ``Code: N. DB::Exception: …``, whatever stands before it."""
        if found := re.search(r"Code: (\d+)\. ", text):
            return cls(int(found[1]), text[found.end() :].removeprefix("DB::Exception: ").strip())
        return cls(_STD_EXCEPTION, text)

    @property
    def body(self) -> bytes:
        return f"Code: {self.code}. DB::Exception: {self}\n".encode()


_BAD_ARGUMENTS, _NOT_IMPLEMENTED, _UNKNOWN_SETTING = 36, 48, 115
_TIMEOUT_EXCEEDED, _READONLY, _TOO_MANY_SIMULTANEOUS_QUERIES = 159, 164, 202
_EMPTY_QUERY, _CANNOT_DECOMPRESS, _TOO_MANY_BYTES = 211, 271, 307
_AUTHENTICATION_FAILED, _STD_EXCEPTION = 516, 1001

_BAD_REQUEST_CODES = (6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168,
                      223, 321, 376, 427, 441, 675, 676)  # fmt: skip
_NOT_FOUND_CODES = (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511)
#: ClickHouse's own table (src/Server/HTTP/exceptionCodeToHTTPStatus.cpp); the rest is 500.
_HTTP_STATUSES: dict[int, int] = {
    **dict.fromkeys(_BAD_REQUEST_CODES, 400),
    **dict.fromkeys(_NOT_FOUND_CODES, 404),
    **dict.fromkeys((192, 193, 497, 512, 516), 403),
    48: 501, 76: 503, 159: 408, 194: 401, 209: 503, 229: 413, 381: 411, 439: 503, 779: 415,
}  # fmt: skip

#: Parameters that the transport consumes; every other one is a setting of the query.
_TRANSPORT_PARAMETERS = frozenset(
    {
        "buffer_size", "client_protocol_version", "close_session", "compress", "database",
        "decompress", "default_format", "enable_http_compression",
        "http_headers_progress_interval_ms", "password", "query", "query_id", "quota_key", "role",
        "send_progress_in_http_headers", "session_check", "session_id", "session_timeout",
        "stacktrace", "user", "wait_end_of_query",
    }
)  # fmt: skip

_CONTENT_TYPES = {
    "JSON": "application/json; charset=UTF-8",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "Native": "application/octet-stream",
    "Arrow": "application/octet-stream",
    "Parquet": "application/octet-stream",
}

# --- reading SQL just far enough ------------------------------------------------------

_TOKEN = re.compile(
    rb"""
      (?: -- [^\n]* | \# [ !] [^\n]* | /\* .*? \*/ )             # a comment
    | (?P<quoted> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | `(?:[^`\\]|\\.)*` )
    | (?P<word> [A-Za-z_] \w* )
    | (?P<other> \S )
    """,
    re.DOTALL | re.VERBOSE,
)
_ANSWERING = frozenset({b"SELECT", b"WITH", b"FROM", b"SHOW", b"DESCRIBE", b"DESC", b"EXPLAIN",
                        b"EXISTS", b"CHECK", b"KILL"})  # fmt: skip
#: What follows these in an INSERT is the statement's own, not data in a format.
_SELF_CONTAINED = frozenset({b"SELECT", b"WITH", b"VALUES", b"INFILE"})


class _Format(NamedTuple):
    """A FORMAT clause outside all brackets: where it starts, its name, where it ends."""

    start: int
    name: str
    end: int


def first_word(sql: bytes) -> bytes:
    """Return the statement's first word in capitals, or nothing: what kind of statement it is."""
    for token in _TOKEN.finditer(sql):
        if token["word"]:
            return token["word"].upper()
        if token["quoted"] or (token["other"] and token["other"] != b"("):
            break
    return b""


def find_insert_format(sql: bytes) -> _Format | None:
    """Find the clause behind which an INSERT brings its data; the data is not looked at."""
    return next(_format_clauses(sql, stop_at=_SELF_CONTAINED), None)


def find_format(sql: bytes) -> _Format | None:
    """Find the clause that ends a query; a column called ``format`` is none."""
    for clause in _format_clauses(sql):
        rest = (token for token in _TOKEN.finditer(sql, clause.end) if token.lastgroup)
        following = next(rest, None)
        if following is None or following[0].upper() in (b";", b"SETTINGS"):
            return clause
    return None


def _format_clauses(sql: bytes, stop_at: frozenset[bytes] = frozenset()) -> Iterator[_Format]:
    depth, start = 0, None
    for token in _TOKEN.finditer(sql):
        word = token["word"]
        if word and start is not None and depth == 0:
            yield _Format(start, word.decode(), token.end())
        depth += {b"(": 1, b")": -1}.get(token["other"], 0)
        start = token.start() if word and word.upper() == b"FORMAT" else None
        if word and depth == 0 and word.upper() in stop_at:
            return


# --- the engine -----------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One request, understood: a statement and all that bears on how it is run."""

    sql: bytes
    database: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    #: Server-side parameters, ``{name:Type}`` in the statement, in ClickHouse's escaping.
    parameters: Mapping[str, str] = field(default_factory=dict)
    default_format: str = "TabSeparated"
    #: The engine's setting: 0 writes, 1 reads, 2 reads and may change settings.
    readonly: Literal[0, 1, 2] = 0
    #: Settings of ours, not the client's: they hold where the client may set none.
    limits: Mapping[str, str] = field(default_factory=dict)
    #: From 54454 on, Native blocks carry a header and a flag for each column.
    protocol_version: int = 0

    @property
    def inserts(self) -> bool:
        return first_word(self.sql) == b"INSERT"


@dataclass(frozen=True)
class Answer:
    """A whole result; `format` is None where the statement has none, as DDL and inserts do."""

    body: bytes
    format: str | None
    summary: Mapping[str, str]


class Engine:
    """The embedded engine behind calls that share nothing; safe to call from many threads.

    A handle opens in a fifth of a millisecond. One per call costs less than putting a shared
    one back as it was, and cannot go wrong. Loading the engine's library takes a quarter of a
    second, so only what opens an engine does it: most of this module is used without one.
    """

    def __init__(self, config: EndpointConfig) -> None:
        import chdb

        self._config = config
        # The engine lives as long as any handle of it does.
        self._anchor = chdb.connect(str(config.path))
        hello = self._anchor.query("SELECT timezone(), displayName()", "TabSeparated").bytes()
        self.timezone, self.name = hello.decode().rstrip("\n").split("\t")
        self._outward = find_outward_functions(functools.partial(_ask, self._anchor))

    def close(self) -> None:
        self._anchor.close()

    def answer(self, call: Call) -> Answer:
        """Run the call.

        Raises:
            QueryFailed: the engine's exception, with its code.
        """
        import chdb

        handle = chdb.connect(str(self._config.path))
        try:
            self._prepare(handle, call)
            return _insert(handle, call) or _query(handle, call)
        except (chdb.ChdbError, RuntimeError) as error:
            raise QueryFailed.from_engine(str(error)) from None
        finally:
            handle.close()

    def _prepare(self, handle: Any, call: Call) -> None:
        if call.database:
            handle.query(f"USE {_quote(call.database, '`')}")
        parameters = {f"param_{name}": value for name, value in call.parameters.items()}
        settings = dict(call.settings)
        _set(handle, {**parameters, **self._limits(call, settings)})
        if call.readonly == 1:
            check_readable(functools.partial(_ask, handle), call.sql, self._outward)
        # After the limits: where the handle is read-only, the engine refuses to change them.
        _set(handle, settings)

    def _limits(self, call: Call, settings: dict[str, str]) -> dict[str, str]:
        # The embedded engine takes "1 + 1" for a statement and lets a query read its memory
        # map; a server does neither.
        limits = {
            "implicit_select": "0",
            "allow_introspection_functions": "0",
            "max_execution_time": str(self._config.query_time_s),
        }
        if call.readonly == 1:
            limits["max_memory_usage"] = str(self._config.query_memory_bytes)
            limits["max_result_bytes"] = str(self._config.result_bytes)
            # The one setting that a reader may change, and only downwards.
            if asked := _seconds(settings.pop("max_execution_time", "0")):
                limits["max_execution_time"] = str(min(asked, self._config.query_time_s))
        return {**limits, **call.limits, "readonly": str(call.readonly)}


def _insert(handle: Any, call: Call) -> Answer | None:
    """Run an INSERT that brings its data in a format; None if it is no such statement."""
    if not call.inserts:
        return None
    clause = find_insert_format(call.sql)
    if clause is None:
        return None
    statement = call.sql[: clause.start].decode(errors="replace")
    # Data starts behind the clause, or on the next line if nothing else is on this one.
    gap = re.compile(rb"[ \t]*;?(?:[ \t]*\r?\n)?").match(call.sql, clause.end)
    with handle.send_insert(statement, clause.name) as stream:
        stream.append(memoryview(call.sql)[gap.end() if gap else clause.end :])
        written = stream.finish()
    summary = {
        "written_rows": str(written.rows_written),
        "written_bytes": str(written.bytes_written),
        "elapsed_ns": str(int(written.elapsed * 1e9)),
    }
    return Answer(b"", None, summary)


def _query(handle: Any, call: Call) -> Answer:
    answers = first_word(call.sql) in _ANSWERING
    clause = find_format(call.sql) if answers else None
    name = (clause.name if clause else call.default_format) if answers else None
    result = handle.query(call.sql, name or "TabSeparated")
    body = result.bytes()
    if name == "Native" and call.protocol_version >= _WITH_COLUMN_FLAGS:
        body = frame_native(body)
    summary = {
        "read_rows": str(result.storage_rows_read()),
        "read_bytes": str(result.storage_bytes_read()),
        "written_rows": str(result.rows_written()),
        "written_bytes": str(result.bytes_written()),
        "result_rows": str(result.rows_read()),
        "result_bytes": str(len(body)),
        "elapsed_ns": str(int(result.elapsed() * 1e9)),
    }
    return Answer(body, name, summary)


def _set(handle: Any, settings: Mapping[str, str]) -> None:
    for name in settings:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise QueryFailed(_UNKNOWN_SETTING, f"Unknown setting {name!r}. (UNKNOWN_SETTING)")
    # Quoted, a number still reads as one; bare, a string of digits would not stay a string.
    if changes := ", ".join(f"{name} = {_quote(value)}" for name, value in settings.items()):
        handle.query(f"SET {changes}")


def _seconds(text: str) -> float:
    """Read a time limit; 0 is none."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise QueryFailed(_BAD_ARGUMENTS, f"max_execution_time cannot be {text!r}")
    return seconds


def _quote(text: str, mark: str = "'") -> str:
    return mark + text.replace("\\", "\\\\").replace(mark, "\\" + mark) + mark


_READING = frozenset({b"SELECT", b"WITH", b"SHOW", b"DESCRIBE", b"EXPLAIN", b"EXISTS"})
_OUTFILE = re.compile(rb"\bINTO\s+OUTFILE\b", re.IGNORECASE)


#: Runs a query of ours and returns its result without any framing.
Ask = Callable[[str], bytes]


def _ask(handle: Any, sql: str) -> bytes:
    import chdb

    try:
        answer: bytes = handle.query(sql, "RawBLOB").bytes()
    except chdb.ChdbError as error:
        raise QueryFailed.from_engine(str(error)) from None
    return answer


def find_outward_functions(ask: Ask) -> re.Pattern[bytes]:
    """Return what matches calls of the functions that reach files, networks or this process.

    Those are the table functions that the engine itself keeps from readers, with ``eval``,
    which it merely calls experimental, and the scalar ``file``, which ``APPLY`` calls without
    brackets. ``format`` is the name of a harmless scalar too; the table function is left to
    the engine to refuse.
    """
    sql = (
        "SELECT arrayStringConcat(groupArray(name), ' ') FROM system.table_functions"
        " WHERE NOT allow_readonly"
    )
    names = set(ask(sql).split()) - {b"format"} | {b"eval"}
    return re.compile(
        rb"\b(?:" + b"|".join(sorted(names)) + rb")\s*\(|\bAPPLY\s*\(?\s*file\b", re.IGNORECASE
    )


def check_readable(ask: Ask, sql: bytes, outward: re.Pattern[bytes]) -> None:
    """Refuse what ``readonly = 1`` lets through although it touches files, or kills.

    Measured on chDB 26.9: the setting refuses every write, every change of a setting and
    every table function that reads a file or the network, though some only after they have
    created a file (``sqlite``) or looked for a Python object (``python``). It does not refuse
    ``INTO OUTFILE`` (a client writes that file, and here the engine is the client), the
    function ``file`` (a server confines it to user_files; the embedded engine has none), KILL
    QUERY, or a second statement; and EXISTS tells of a path whether there is such a file.

    The engine's own parser reads the statement first: what it prints back is one statement
    with no comments, strings in single quotes, and names quoted only if they need it.
    The statement travels in hexadecimal, so there is no quoting to get out of.

    Raises:
        QueryFailed: it does not parse, or it does more than read.
    """
    try:
        printed = ask(f"SELECT formatQuerySingleLine(unhex('{sql.hex()}'))")
    except QueryFailed as error:
        # Our own wrapping is no part of what the client got wrong.
        words = str(error).split(": In scope SELECT formatQ")[0]
        raise QueryFailed(error.code, words) from None
    unquoted = _TOKEN.sub(lambda t: b"''" if t["quoted"] else t[0], printed)
    if first_word(unquoted) not in _READING:
        raise QueryFailed(_READONLY, "Cannot execute query in readonly mode. (READONLY)")
    if first_word(unquoted) == b"EXISTS" and b"/" in printed:
        raise QueryFailed(_READONLY, "A path is no table. (READONLY)")
    if _OUTFILE.search(unquoted):
        raise QueryFailed(_READONLY, "INTO OUTFILE is not allowed. (READONLY)")
    if found := outward.search(unquoted):
        name = found[0].rstrip(b" (").decode()
        raise QueryFailed(_READONLY, f"Function {name} is not allowed. (READONLY)")


# --- Native for clients that speak the later protocol -----------------------------------

_WITH_COLUMN_FLAGS = 54_454  # DBMS_MIN_REVISION_WITH_CUSTOM_SERIALIZATION
_BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"  # no overflows, no bucket, end
_WIDTHS: dict[str, int] = {
    "Nothing": 1, "Bool": 1, "Enum8": 1, "Enum16": 2, "BFloat16": 2, "Float32": 4, "Float64": 8,
    "Date": 2, "Date32": 4, "DateTime": 4, "DateTime64": 8, "Time": 4, "Time64": 8,
    "UUID": 16, "IPv4": 4, "IPv6": 16,
    **{f"{sign}Int{bits}": bits // 8 for sign in ("", "U") for bits in (8, 16, 32, 64, 128, 256)},
}  # fmt: skip
_ELEMENT_NAME = re.compile(r"(?:`(?:[^`\\]|\\.)*`|\w+)\s+(?=\S)")


def frame_native(data: bytes) -> bytes:
    """Give plain Native blocks the framing of protocol 54454 and later.

    The embedded engine writes Native as if to a client of no known version. Clients such
    as clickhouse-go, hence Grafana, decode the later form, whatever they were sent: eight
    bytes before each block and a zero ("no custom serialization") before each column's data.

    Raises:
        QueryFailed: a column's type is not laid out simply enough to find where it ends
            (aggregate states, JSON, Variant, Dynamic): finalize or cast it in the query.
    """
    reader, parts = _NativeReader(data), []
    while reader.at < len(data):
        start, columns, rows = reader.at, reader.read_varint(), reader.read_varint()
        parts += [_BLOCK_INFO, data[start : reader.at]]
        for _ in range(columns):
            start = reader.at
            reader.skip_strings(1)
            kind = reader.read_string()
            head, values = data[start : reader.at], reader.at
            reader.skip_column(kind, rows)
            parts += [head, b"\x00", data[values : reader.at]]
    return b"".join(parts)


class _NativeReader:
    """Walks Native data only to know where each column ends."""

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = data

    def read_varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def read_string(self) -> str:
        size = self.read_varint()
        self.at += size
        return self._data[self.at - size : self.at].decode()

    def read_uint64(self) -> int:
        self.at += 8
        return int.from_bytes(self._data[self.at - 8 : self.at], "little")

    def skip_strings(self, rows: int) -> None:
        for _ in range(rows):
            size = self.read_varint()  # moves `at` as well
            self.at += size

    def skip_column(self, kind: str, rows: int) -> None:
        if rows:
            self._skip_prefix(kind)
            self._skip_values(kind, rows)

    def _skip_prefix(self, kind: str) -> None:
        name, inner = _split_type(kind)
        if name == "LowCardinality":
            self.at += 8
            return
        for element in _elements(name, inner):
            self._skip_prefix(element)

    def _skip_values(self, kind: str, rows: int) -> None:
        name, inner = _split_type(kind)
        if rows == 0:
            return
        if name == "String":
            self.skip_strings(rows)
        elif name == "LowCardinality":
            self._skip_low_cardinality(inner[0])
        elif name == "Nullable":
            self.at += rows
            self._skip_values(inner[0], rows)
        elif name in ("Array", "Map"):
            self.at += 8 * (rows - 1)
            rows = self.read_uint64()
            for element in _elements(name, inner):
                self._skip_values(element, rows)
        elif name in ("Tuple", "SimpleAggregateFunction"):
            for element in _elements(name, inner):
                self._skip_values(element, rows)
        else:
            self.at += rows * _width(kind, name, inner)

    def _skip_low_cardinality(self, kind: str) -> None:
        index_bytes = 1 << (self.read_uint64() & 0xFF)
        keys = self.read_uint64()
        # A nullable dictionary keeps its null as a plain first key.
        name, inner = _split_type(kind)
        self._skip_values(inner[0] if name == "Nullable" else kind, keys)
        rows = self.read_uint64()
        self.at += rows * index_bytes


def _width(kind: str, name: str, inner: tuple[str, ...]) -> int:
    if name.startswith("Interval"):
        return 8
    if name == "FixedString":
        return int(inner[0])
    if name == "Decimal":
        return next(size for size, digits in ((4, 9), (8, 18), (16, 38), (32, 76))
                    if int(inner[0]) <= digits)  # fmt: skip
    if name in _WIDTHS:
        return _WIDTHS[name]
    message = f"Type {kind} cannot be sent in Native to this client. (NOT_IMPLEMENTED)"
    raise QueryFailed(_NOT_IMPLEMENTED, message)


def _elements(name: str, inner: tuple[str, ...]) -> tuple[str, ...]:
    """Return the types that a composite column is laid out as, in their order."""
    if name == "SimpleAggregateFunction":
        return inner[1:]
    if name == "Tuple":
        return tuple(_ELEMENT_NAME.sub("", element, count=1) for element in inner)
    return inner if name in ("Array", "Map", "Nullable") else ()


@functools.lru_cache(maxsize=1_024)
def _split_type(kind: str) -> tuple[str, tuple[str, ...]]:
    """Split ``Map(String, Array(UInt8))`` into its name and the arguments at the first level."""
    name, bracket, rest = kind.partition("(")
    if not bracket:
        return name, ()
    arguments, depth, start = [], 0, 0
    for token in re.finditer(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|[(),]", rest):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if (token[0] == "," and depth == 0) or depth < 0:
            arguments.append(rest[start : token.start()].strip())
            start = token.end()
    return name, tuple(arguments)


# --- compression ------------------------------------------------------------------------

#: Each makes an object with decompress(data, max_length), eof and unused_data.
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "deflate": zlib.decompressobj,
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": zstd.ZstdDecompressor,
}
_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
    "gzip": functools.partial(gzip.compress, compresslevel=1),
}
_BROKEN_DATA = (zlib.error, zstd.ZstdError, RuntimeError, EOFError)


def decompress(data: bytes, encoding: str, limit: int) -> bytes:
    """Undo a request's Content-Encoding, which may be several frames one after another.

    Raises:
        QueryFailed: unknown encoding, broken data, or more than `limit` bytes come out; no
            more than that is ever held.
    """
    if encoding in ("", "identity"):
        return data
    if encoding not in _DECOMPRESSORS:
        raise QueryFailed(_NOT_IMPLEMENTED, f"Unknown compression method: {encoding}")
    plain = bytearray()
    while data:
        frame = _DECOMPRESSORS[encoding]()
        try:
            plain += frame.decompress(data, limit + 1 - len(plain))
        except _BROKEN_DATA as error:
            raise QueryFailed(
                _CANNOT_DECOMPRESS, f"Cannot decompress {encoding}: {error}"
            ) from None
        if len(plain) > limit:
            raise _too_large(limit)
        if not frame.eof:
            raise QueryFailed(_CANNOT_DECOMPRESS, f"Cannot decompress {encoding}: cut short")
        data = frame.unused_data or b""
    return bytes(plain)


def _too_large(limit: int) -> QueryFailed:
    message = f"Request body is larger than {limit} bytes. (TOO_MANY_BYTES)"
    return QueryFailed(_TOO_MANY_BYTES, message, 413)


# --- HTTP -------------------------------------------------------------------------------


@dataclass
class Faults:
    """How many of the next inserts fail, and how. Only a writable endpoint takes them.

    ``POST /admin/faults?refuse=2`` sets a count, GET shows what is left. Other statements
    pass, so that a test can look on while its sink suffers.
    """

    #: Answered 503; nothing was written.
    refuse: int = 0
    #: Not answered until the client gives up; nothing was written.
    hang: int = 0
    #: Written, then the connection is cut without an answer.
    fail_after_apply: int = 0

    def take(self, name: str) -> bool:
        left: int = getattr(self, name)
        setattr(self, name, max(0, left - 1))
        return left > 0


class _Hung(KizashiError):
    """This request is not to be answered."""


class Endpoint:
    """The HTTP server. Start it in a running event loop; queries run in threads of its own.

    ::

        async with Endpoint(EndpointConfig(path=Path("kizashi-data"))) as endpoint:
            print(endpoint.port)
    """

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._faults = Faults()
        self._unanswered = 0
        self._port = 0

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        return self._port

    async def start(self) -> None:
        """Open the engine and listen.

        Raises:
            ConfigError: the directory cannot be opened, or the port is taken.
        """
        config = self._config
        try:
            self._engine = await asyncio.to_thread(Engine, config)
        except RuntimeError as error:
            raise ConfigError(f"path: cannot open {config.path}: {error}") from None
        self._slots = asyncio.Semaphore(config.concurrent_requests)
        self._threads = ThreadPoolExecutor(config.concurrent_requests, "endpoint")
        # Bodies are decompressed here and not by the server: it knows neither lz4 nor a cap.
        self._runner = web.AppRunner(
            self._application(), access_log=None, auto_decompress=False, max_line_size=256 * 1024,
            shutdown_timeout=5.0,
        )  # fmt: skip
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, config.host, config.port).start()
        except OSError as error:
            await self.stop()
            raise ConfigError(f"port: cannot listen on {config.port}: {error}") from None
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening, let the queries in progress end, and let go of the engine."""
        await self._runner.cleanup()
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.close()

    async def __aenter__(self) -> Endpoint:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=self._config.body_bytes)
        application.router.add_get("/ping", self._ping)
        application.router.add_get("/", self._serve)
        application.router.add_post("/", self._serve)
        if not self._config.read_only:
            application.router.add_route("*", "/admin/faults", self._set_faults)
        return application

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _set_faults(self, request: web.Request) -> web.Response:
        names = {f.name for f in fields(Faults)}
        for name, count in request.query.items():
            if request.method != "POST" or name not in names or not count.isdecimal():
                raise web.HTTPBadRequest(text=f"POST {'|'.join(sorted(names))}=N\n")
            setattr(self._faults, name, int(count))
        return web.json_response(asdict(self._faults))

    async def _serve(self, request: web.Request) -> web.Response:
        query_id = request.query.get("query_id") or str(uuid.uuid4())
        headers = {
            "X-ClickHouse-Query-Id": _one_line(query_id),
            "X-ClickHouse-Server-Display-Name": self._engine.name,
            "X-ClickHouse-Timezone": self._engine.timezone,
        }
        try:
            self._authenticate(request)
            if request.method == "GET" and not request.query.get("query"):
                return web.Response(text="Ok.\n", headers=headers)
            answer = await self._take_turn(request)
        except _Hung:
            # Here, where it holds no slot: others are to be served meanwhile.
            await _until_gone(request)
            return web.Response(status=503)
        except QueryFailed as error:
            headers["X-ClickHouse-Exception-Code"] = str(error.code)
            headers["Content-Type"] = "text/plain; charset=UTF-8"
            return web.Response(status=error.status, body=error.body, headers=headers)
        return _respond(request, answer, headers)

    def _authenticate(self, request: web.Request) -> None:
        if self._config.password is None:
            return
        expected = f"{self._config.username}\n{self._config.password}"
        given = "\n".join(_credentials(request))
        if not hmac.compare_digest(given.encode(errors="replace"), expected.encode()):
            raise QueryFailed(
                _AUTHENTICATION_FAILED,
                "Authentication failed: password is incorrect, or there is no user with such name."
                " (AUTHENTICATION_FAILED)",
            )

    async def _take_turn(self, request: web.Request) -> Answer:
        """Wait for a slot, and only then read the body: what is held in memory stays capped."""
        config = self._config
        if self._unanswered >= config.concurrent_requests + config.waiting_requests:
            message = "Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)"
            raise QueryFailed(_TOO_MANY_SIMULTANEOUS_QUERIES, message, 503)
        self._unanswered += 1
        try:
            async with self._slots:
                call = await self._receive(request)
                return await self._run(request, call)
        finally:
            self._unanswered -= 1

    async def _receive(self, request: web.Request) -> Call:
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                parameters, body = await _read(request, self._config.body_bytes)
        except web.HTTPRequestEntityTooLarge:
            raise _too_large(self._config.body_bytes) from None
        except TimeoutError:
            message = "Timeout exceeded while reading the request. (TIMEOUT_EXCEEDED)"
            raise QueryFailed(_TIMEOUT_EXCEEDED, message) from None
        readonly: Literal[0, 1, 2] = 1 if self._config.read_only else 0
        if not readonly and request.method == "GET":
            readonly = 2
        return understand(parameters, request.headers, body, readonly)

    async def _run(self, request: web.Request, call: Call) -> Answer:
        if call.inserts and self._faults.take("refuse"):
            raise QueryFailed(_TOO_MANY_SIMULTANEOUS_QUERIES, "Refused by a fault.", 503)
        if call.inserts and self._faults.take("hang"):
            raise _Hung
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._threads, self._engine.answer, call)
        if call.inserts and self._faults.take("fail_after_apply"):
            _cut(request)
        return answer


def understand(
    parameters: Mapping[str, str],
    headers: Mapping[str, str],
    body: bytes,
    readonly: Literal[0, 1, 2] = 0,
) -> Call:
    """Read a request: URL parameters (with those of a form), headers, decompressed body.

    Raises:
        QueryFailed: there is no statement, or it asks for ClickHouse's own block compression.
    """
    for name in ("compress", "decompress"):
        if parameters.get(name, "0") not in ("0", "false"):
            raise QueryFailed(_NOT_IMPLEMENTED, f"{name}=1: use Content-Encoding instead")
    # The statement may be in the URL, in the body, or begin in the one and end in the other.
    sql = b"\n".join(
        part for part in (parameters.get("query", "").encode(errors="replace"), body) if part
    )
    if not sql.strip():
        raise QueryFailed(_EMPTY_QUERY, "Empty query. (EMPTY_QUERY)", 400)
    version = parameters.get("client_protocol_version", "0")
    bound = {n.removeprefix("param_"): v for n, v in parameters.items() if n.startswith("param_")}
    own = _TRANSPORT_PARAMETERS | {f"param_{name}" for name in bound}
    return Call(
        sql=sql,
        database=parameters.get("database") or headers.get("X-ClickHouse-Database", ""),
        settings={name: value for name, value in parameters.items() if name not in own},
        parameters=bound,
        default_format=parameters.get("default_format")
        or headers.get("X-ClickHouse-Format", "TabSeparated"),
        readonly=readonly,
        protocol_version=int(version) if version.isdecimal() else 0,
    )


async def _read(request: web.Request, limit: int) -> tuple[dict[str, str], bytes]:
    """Read the URL's and a form's parameters, and the body where it is not a form."""
    parameters = dict(request.query)
    if request.content_type != "multipart/form-data":
        body = await request.read()
        return parameters, decompress(body, request.headers.get("Content-Encoding", ""), limit)
    for name, value in (await request.post()).items():
        if not isinstance(value, str):
            raise QueryFailed(_NOT_IMPLEMENTED, "External tables are not supported")
        parameters[name] = value
    return parameters, b""


def _credentials(request: web.Request) -> tuple[str, str]:
    """Return user and password from wherever ClickHouse's clients put them."""
    headers, query = request.headers, request.query
    if "X-ClickHouse-User" in headers or "X-ClickHouse-Key" in headers:
        return headers.get("X-ClickHouse-User", "default"), headers.get("X-ClickHouse-Key", "")
    scheme, _, encoded = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return user, password
    return query.get("user", "default"), query.get("password", "")


def _respond(request: web.Request, answer: Answer, headers: dict[str, str]) -> web.Response:
    headers["X-ClickHouse-Summary"] = json.dumps(dict(answer.summary))
    headers["Content-Type"] = _CONTENT_TYPES.get(answer.format or "", "text/plain; charset=UTF-8")
    if answer.format:
        headers["X-ClickHouse-Format"] = answer.format
    body = answer.body
    encoding = _accepted_encoding(request)
    if body and encoding:
        headers["Content-Encoding"] = encoding
        body = _COMPRESSORS[encoding](body)
    return web.Response(body=body, headers=headers)


def _accepted_encoding(request: web.Request) -> str | None:
    if request.query.get("enable_http_compression", "0") in ("0", "false"):
        return None
    accepted = {
        e.partition(";")[0].strip() for e in request.headers.get("Accept-Encoding", "").split(",")
    }
    return next((name for name in _COMPRESSORS if name in accepted), None)


def _one_line(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:200]


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _until_gone(request: web.Request) -> None:
    # A handler is not told that its client hung up; it can only look.
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


# --- the command ------------------------------------------------------------------------


async def _serve_until_told(config: EndpointConfig) -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with Endpoint(config) as endpoint:
        print(f"listening on http://{config.host}:{endpoint.port}", flush=True)
        await told.wait()


def main(arguments: list[str] | None = None) -> int:
    """Serve a directory until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.sinks.endpoint", description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="the engine's directory")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--writable", action="store_true", help="for tests")
    given = parser.parse_args(arguments)
    try:
        config = EndpointConfig(given.path, given.host, given.port, read_only=not given.writable)
        asyncio.run(_serve_until_told(config))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
