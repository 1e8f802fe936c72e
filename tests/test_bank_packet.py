"""A packet as arrays: whatever another program wrote, it is read whole or refused whole."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from detectors.bank import Bank, BankConfig
from detectors.bank_packet import HistogramView, read_packet
from schemas.signal import (
    COUNTED,
    FAMILY_OF,
    MEASURED,
    Histograms,
    Signal,
    SignalPacket,
    Source,
    Sums,
    decode_packet,
    encode_packet,
)
from tests.support.packets import make_counts, make_packet, pack_buckets, to_bytes

START_MS = 1_750_000_000_000
GROUPINGS = ("route", "tenant")


def good_packet(last: int = 1) -> SignalPacket:
    counts = [
        make_counts(("a",), 40, START_MS, refusals=3, histograms={"first_chunk_ms": {7: 20, 9: 1}}),
        make_counts(("b",), 9, START_MS, errors=2),
        make_counts(("日本",), 5, START_MS, grouping=1, histograms={"output_token_us": {-3: 5}}),
    ]
    packet = make_packet(Source("events", "e", 0, last, last), 0, GROUPINGS, counts)
    matrix = np.arange(6, dtype="<f4").tobytes()
    sums = Sums(7, 500, 2, np.array([1, 0, 2], "<i8").tobytes(), matrix)
    return structs.replace(packet, sums={"style": sums})


def test_every_signal_is_counted_or_measured_and_has_a_family() -> None:
    assert set(COUNTED) | set(MEASURED) | {Signal.FINGERPRINT} == set(Signal) == set(FAMILY_OF)
    assert not set(COUNTED) & set(MEASURED)


def test_the_view_says_what_the_packet_says() -> None:
    view = read_packet(good_packet())
    assert len(view) == 3
    assert view.columns["requests"].tolist() == [40, 9, 5]
    assert view.columns["answered"].tolist() == [40, 7, 5]
    chunk = view.histograms["first_chunk_ms"]
    assert chunk.sum_rows(chunk.counts).tolist() == [21, 0, 0]
    assert view.sums["style"].matrix.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert view.sums["style"].version == 7


def test_some_monitors_of_a_view() -> None:
    view = read_packet(good_packet()).take(np.array([2, 0]))
    assert view.values == (("日本",), ("a",))
    assert view.grouping.tolist() == [1, 0]
    assert view.columns["requests"].tolist() == [5, 40]
    assert view.histograms["first_chunk_ms"].offsets.tolist() == [0, 0, 2]
    assert view.histograms["output_token_us"].buckets.tolist() == [-3]
    assert view.sums["style"].matrix.tolist() == [[4, 5], [0, 1]]


@given(
    st.lists(st.dictionaries(st.integers(-99, 99), st.integers(0, 99), max_size=5), max_size=8),
    st.data(),
)
def test_taking_rows_of_histograms(rows: list[dict[int, int]], data: st.DataObject) -> None:
    packed = pack_buckets(rows)
    view = HistogramView(
        np.frombuffer(packed.offsets, "<i4").astype(np.int64),
        np.frombuffer(packed.buckets, "<i2").astype(np.int64),
        np.frombuffer(packed.counts, "<i4").astype(np.int64),
    )
    at = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)) if rows else []
    taken = view.take(np.array(at, np.int64))
    assert taken.sum_rows(taken.counts).tolist() == [sum(rows[i].values()) for i in at]
    entries = zip(taken.buckets.tolist(), taken.counts.tolist(), strict=True)
    assert list(entries) == [pair for i in at for pair in rows[i].items()]


def test_a_signal_that_a_packet_was_made_without_is_not_taken_for_one_that_never_happens() -> None:
    """Workers of two versions may write to one topic."""
    bank = Bank(BankConfig())
    for at in range(1, 11):
        packet = good_packet(at)
        fewer = {name: raw for name, raw in packet.columns.items() if name != "refusals"}
        bank.update(structs.replace(packet, columns=fewer, histograms={}))
    (table,) = bank.update(make_later(11)).verdicts
    ready = dict(zip(table.signals, table.ready.any(axis=0).tolist(), strict=True))
    assert ready[Signal.ERROR]
    assert not ready[Signal.REFUSAL]
    assert not ready[Signal.SLOW_FIRST_CHUNK]


def make_later(last: int) -> SignalPacket:
    counts = [make_counts(("a",), 40, START_MS + 60_000, refusals=3)]
    return make_packet(Source("events", "e", 0, last, last), 0, GROUPINGS, counts)


def column(name: str, *values: int) -> dict[str, Any]:
    return {"columns": {**good_packet().columns, name: to_bytes(values, "<i8")}}


def histogram(offsets: list[int], buckets: list[int], counts: list[int]) -> dict[str, Any]:
    packed = Histograms(to_bytes(offsets, "<i4"), to_bytes(buckets, "<i2"), to_bytes(counts, "<i4"))
    return {"histograms": {"first_chunk_ms": packed}}


def sums(width: int, counts: list[int], matrix: list[float]) -> dict[str, Any]:
    raw = np.array(matrix, "<f4").tobytes()
    return {"sums": {"style": Sums(7, 500, width, to_bytes(counts, "<i8"), raw)}}


WRONG: dict[str, dict[str, Any]] = {
    "a column too short": column("errors", 0, 0),
    "a column too long": column("errors", 0, 0, 0, 0),
    "half a number": {"columns": {**good_packet().columns, "errors": bytes(23)}},
    "no requests": {"columns": {k: v for k, v in good_packet().columns.items() if k != "requests"}},
    "no times": {
        "columns": {k: v for k, v in good_packet().columns.items() if k != "last_time_ms"}
    },
    "more errors than requests": column("errors", 41, 0, 0),
    "a negative count": column("refusals", -1, 0, 0),
    "more refusals than answers": column("refusals", 0, 8, 0),
    "more of something new than requests": column("guardrails", 0, 10, 0),
    "so many requests that sums overflow": column("requests", 2**41, 9, 5),
    "a time before the epoch": column("first_time_ms", -1, 1, 1),
    "a time beyond all clocks": column("last_time_ms", 2**62, START_MS, START_MS),
    "an end before its beginning": column("last_time_ms", 5, START_MS, START_MS),
    "a grouping too few": {"groupings": ("route",)},
    "no such dimension": {"groupings": ("route", "colour")},
    "a dimension twice": {"groupings": ("route", "tenant,tenant")},
    "a negative grouping": {"grouping": to_bytes([0, 0, -1], "<i2")},
    "values of another grouping": {"values": (("a",), ("b", "c"), ("d",))},
    "a value too few": {"values": (("a",), ("b",))},
    "offsets that begin late": histogram([1, 1, 1, 1], [5], [1]),
    "offsets that go back": histogram([0, 2, 1, 2], [5, 6], [1, 1]),
    "offsets beyond the buckets": histogram([0, 1, 2, 2**30], [5], [1]),
    "a monitor without an offset": histogram([0, 1, 1], [5], [1]),
    "no offsets at all": histogram([], [], []),
    "a negative number of slow ones": histogram([0, 1, 1, 1], [5], [-1]),
    "sums that are no numbers": sums(1, [1, 1, 1], [0.0, np.nan, 1.0]),
    "sums without end": sums(1, [1, 1, 1], [0.0, np.inf, 1.0]),
    "sums of no width": sums(0, [1, 1, 1], []),
    "sums of a negative width": sums(-1, [1, 1, 1], [0.0]),
    "sums too wide to hold": sums(2**40, [1, 1, 1], [0.0]),
    "sums too short": sums(2, [1, 1, 1], [0.0] * 5),
    "sums of fewer than no vectors": sums(1, [1, -1, 1], [0.0] * 3),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_and_changes_nothing(wrong: dict[str, Any]) -> None:
    bank = Bank(BankConfig())
    bank.update(good_packet())
    before = bank.snapshot()
    packet = structs.replace(good_packet(last=2), **wrong)
    with pytest.raises(ValueError, match=r".+"):
        bank.update(decode_packet(encode_packet(packet)))
    assert bank.snapshot() == before
    bank.update(good_packet(last=2))
    assert bank.snapshot() != before


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damaged_packet_does_worse_than_be_refused(data: st.DataObject) -> None:
    raw = bytearray(encode_packet(good_packet(last=2)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    bank = Bank(BankConfig())
    bank.update(good_packet())
    before = bank.snapshot()
    try:
        bank.update(decode_packet(bytes(raw)))
    except (msgspec.MsgspecError, ValueError):
        assert bank.snapshot() == before
    else:
        assert Bank.restore(BankConfig(), bank.snapshot()).snapshot() == bank.snapshot()
    bank.update(good_packet(last=2**40))
