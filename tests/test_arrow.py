"""Columns of the core as Arrow tables: every value, every type, to the byte."""

from __future__ import annotations

import io
import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.chunk import Columns, MapColumn, MoneyColumn
from pipeline.core.dedup import SeenIds
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import StepConfig, admit, derive_effects
from pipeline.core.users import UserKey
from pipeline.sinks.arrow import SCHEMAS, to_array, to_table
from schemas.clickhouse import read_migrations
from schemas.codec import CodecLimits
from schemas.monitor import DEFAULT_GROUPINGS
from tests.support.events import PRICES, make_chunk, make_traffic, to_bytes

INT64 = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(INT64, st.booleans()), max_size=40))
def test_money_is_exact(values: list[tuple[int, bool]]) -> None:
    column = MoneyColumn(
        np.array([v for v, _ in values], np.int64), np.array([k for _, k in values], np.bool_)
    )
    array = to_array(column, pa.null())
    array.validate(full=True)
    assert array.type == pa.decimal128(38, 12)
    assert array.to_pylist() == [Decimal(v).scaleb(-12) if known else None for v, known in values]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.integers(-320, 992), st.integers(1, 2**63)), max_size=10))
def test_maps_of_counts(maps: list[dict[int, int]]) -> None:
    column = MapColumn(
        np.cumsum([0, *map(len, maps)]).astype(np.int32),
        np.array([k for each in maps for k in each], np.int64),
        np.array([v for each in maps for v in each.values()], np.uint64),
    )
    array = to_array(column, SCHEMAS["rollup_1m"]["duration_ms"])
    array.validate(full=True)
    assert [dict(each) for each in array.to_pylist()] == maps


def test_maps_of_text_keep_the_order_of_their_keys() -> None:
    column = [{"b": "日本", "a": ""}, {}, {"": "x"}]
    array = to_array(column, SCHEMAS["requests"]["attributes"])
    assert array.to_pylist() == [[("b", "日本"), ("a", "")], [], [("", "x")]]


def test_what_is_masked_is_null_even_where_it_does_not_fit() -> None:
    column = np.ma.masked_equal(np.array([-1, 0, 2**31]), -1)
    assert to_array(column, pa.uint32()).to_pylist() == [None, 0, 2**31]
    floats = np.ma.masked_invalid(np.array([np.nan, 0.5, np.inf]))
    assert to_array(floats, pa.float64()).to_pylist() == [None, 0.5, None]
    unmasked = np.ma.masked_equal(np.array([1, 2]), -1)
    assert to_array(unmasked, pa.uint32()).to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, None, False], pa.bool_()),
        (["あ", None, ""], pa.string()),
        ([["stop", "長さ"], []], pa.list_(pa.string())),
        ([b"\x00\xff" * 16], pa.binary(32)),
        ([0, 2**64 - 1], pa.uint64()),
    ],
)
def test_plain_lists(values: list[object], kind: pa.DataType) -> None:
    assert to_array(values, kind).to_pylist() == values


def test_a_value_that_no_column_can_hold_is_an_error_and_not_another_value() -> None:
    with pytest.raises((pa.ArrowInvalid, OverflowError)):
        to_array([2**16], pa.uint16())
    with pytest.raises((pa.ArrowInvalid, OverflowError)):
        to_array(np.array([-1]), pa.uint32())


# --- The tables ------------------------------------------------------------------------------


def effects_tables(seed: int) -> dict[str, pa.Table]:
    config = StepConfig(
        DEFAULT_GROUPINGS, CodecLimits(), store_texts=True, user_key=UserKey("k1", b"k")
    )
    chunk = make_chunk([to_bytes(e) for e in make_traffic(seed, 300)])
    admission = admit(chunk, config.limits, SeenIds(1_000))
    effects = derive_effects(admission, config, Pricer(PRICES), MonitorRegistry(1_000))
    tables: dict[str, Columns | None] = {
        "requests": effects.requests,
        "request_texts": effects.texts,
        "rollup_1m": effects.rollups,
    }
    assert all(tables.values())
    return {name: to_table(name, columns or {}) for name, columns in tables.items()}


def to_ipc(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_the_same_chunk_gives_the_same_bytes() -> None:
    """ClickHouse drops a repeat by its token: it must be a repeat to the byte."""
    first, second = effects_tables(1), effects_tables(1)
    assert {n: to_ipc(t) for n, t in first.items()} == {n: to_ipc(t) for n, t in second.items()}
    assert to_ipc(first["requests"]) != to_ipc(effects_tables(2)["requests"])


def test_the_tables_are_sound() -> None:
    for table in effects_tables(3).values():
        table.validate(full=True)
        assert table.num_rows > 0


@pytest.mark.parametrize("table", sorted(SCHEMAS))
def test_the_columns_are_those_of_the_table(table: str) -> None:
    """In name; the engine checks the types."""
    statements = [s for migration in read_migrations() for s in migration.statements]
    ddl = next(s for s in statements if re.search(rf"CREATE TABLE IF NOT EXISTS {table}\n", s))
    added = rf"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS\s+(\w+)"
    body = ddl[ddl.index("\n(\n") : ddl.index("\n)\nENGINE")]
    stated = set(re.findall(r"^    ([a-z]\w+) ", body, re.MULTILINE))
    stated |= {name for s in statements for name in re.findall(added, s)}
    assert set(SCHEMAS[table]) <= stated
    if table in {"requests", "request_texts", "rollup_1m"}:
        assert set(effects_tables(4)[table].column_names) == stated
