"""Storing a block of which ClickHouse may refuse some rows for good."""

from __future__ import annotations

import pyarrow as pa

from pipeline.core.redaction import redact
from pipeline.errors import RowsRefused
from pipeline.sinks.clickhouse import Store

_WHY_CHARS, _READ_CHARS = 200, 2_000


def store_or_refuse(
    store: Store, table: str, rows: pa.Table, token: str, first: int = 0
) -> dict[int, str]:
    """Store the rows; returns row index → why for those that ClickHouse refuses.

    The usual answer is an empty dict after one insert. When the block is refused it is halved
    down to the offending rows, and the rest is stored. `first` is the index of its first row.
    """
    size = len(rows)
    try:
        store.insert(table, rows, token)
    except RowsRefused as refused:
        if size == 1:
            # ClickHouse quotes the value that it will not take.
            return {first: redact(str(refused)[:_READ_CHARS]).text[:_WHY_CHARS]}
        # The halves are the same on every replay, and so are their tokens.
        middle = size // 2
        left = store_or_refuse(store, table, rows.slice(0, middle), f"{token}/{middle}-", first)
        right = store_or_refuse(
            store, table, rows.slice(middle), f"{token}/-{middle}", first + middle
        )
        return left | right
    return {}
