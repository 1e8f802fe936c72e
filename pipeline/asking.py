"""`kizashi sql`: a read-only question to the store, and its answer as a table or as JSON."""

from __future__ import annotations

import datetime as dt
import decimal
import logging
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipeline.config import Config
from pipeline.errors import SinkUnavailable
from pipeline.prices import UsageLine
from pipeline.sinks.clickhouse import open_store
from pipeline.sinks.text import json_line, printable

logger = logging.getLogger(__name__)

Row = tuple[object, ...]


def ask(config: Config, query: str) -> tuple[list[str], list[Row]]:
    """Return column names and rows.

    Raises:
        QueryFailed: ClickHouse refused the query; it may only read.
        SinkUnavailable: there is no ClickHouse, or no schema in it.
    """
    with open_store(config.clickhouse) as store:
        return store.query(query, read_only=True)


def read_usage(config: Config) -> list[UsageLine]:
    """Return how many requests of each model were stored on each day; none without a store."""
    try:
        _, rows = ask(
            config,
            "SELECT if(response_model = '', request_model, response_model) AS model, provider,"
            " toUnixTimestamp64Milli(max(event_time)), count() FROM requests"
            " GROUP BY model, provider, toDate(event_time) ORDER BY ALL",
        )
    except SinkUnavailable as error:
        logger.warning("prices are not checked against traffic: %s", error)
        return []
    return [
        UsageLine(str(model), str(provider) or None, int(str(time_ms)), int(str(requests)))
        for model, provider, time_ms, requests in rows
    ]


def render_json(names: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """Yield each row as a JSON object; decimals become numbers, times RFC 3339."""
    for row in rows:
        yield json_line(dict(zip(names, map(_plain, row), strict=True)))


def render_table(names: Sequence[str], rows: Sequence[Row]) -> None:
    """Print the rows as a table as wide as it needs to be."""
    head = (Column(Text(printable(name))) for name in names)
    table = Table(*head, show_edge=False, header_style="bold")
    for column, name in zip(table.columns, names, strict=True):
        if rows and isinstance(rows[0][names.index(name)], int | float | decimal.Decimal):
            column.justify = "right"
    for row in rows:
        # Values are data: what looks like rich's markup is none.
        table.add_row(*(Text(_cell(value)) for value in row))
    # Rows are for reading and for cutting with other tools: never folded to the terminal.
    Console(width=max(80, 40 * len(names) + 4_000)).print(table)


def _plain(value: object) -> object:
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return value.hex()
    return value


def _cell(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, decimal.Decimal):
        return f"{value.normalize():f}"
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return printable(str(value))
