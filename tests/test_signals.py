"""Packed signals against a loop over events: nothing lost, in order, each in its partition."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from detectors.bank_packet import read_packet
from pipeline.core import signals
from pipeline.core.features import Features, extract_features
from pipeline.core.monitors import MonitorRegistry, Split, split_events
from pipeline.core.pricing import Pricer
from pipeline.core.signals import (
    INTERVAL_MS,
    Vectors,
    assign_partition,
    pack_signals,
    pack_signals_in_steps,
)
from schemas.event import Received
from schemas.monitor import (
    DEFAULT_GROUPINGS,
    Dimension,
    Monitor,
    grouping_name,
    parse_grouping,
)
from schemas.signal import (
    COUNTED,
    FIRST_TIME_MS,
    LAST_TIME_MS,
    MEASURED,
    REQUESTS,
    SignalPacket,
    Source,
    decode_packet,
    encode_packet,
)
from tests.support.events import (
    NOW_MS,
    PRICES,
    Facts,
    count_buckets,
    find_monitors,
    make_event,
    make_traffic,
    read_facts,
    receive,
)
from tests.support.packets import make_packet

SOURCE = Source("events", "1", 0, 100, 499)
Sums = dict[Monitor, Any]


def prepare(received: Sequence[Received], cap: int = 10_000) -> tuple[Features, list[Split]]:
    features = extract_features(received, Pricer(PRICES))
    return features, split_events(features.dimensions, DEFAULT_GROUPINGS, MonitorRegistry(cap))


def monitors_of(packet: SignalPacket) -> list[Monitor]:
    return [Monitor(parse_grouping(packet.groupings[c.grouping]), c.values) for c in packet.counts]


def add_up(packets: Iterable[SignalPacket]) -> Sums:
    """Sum what the packets say about each monitor."""
    sums: Sums = defaultdict(Counter)
    for packet in packets:
        for monitor, c in zip(monitors_of(packet), packet.counts, strict=True):
            for name in c.columns.keys() - {FIRST_TIME_MS, LAST_TIME_MS}:
                sums[monitor][name] += c.columns[name]
            for name, buckets in c.histograms.items():
                for bucket, n in buckets.items():
                    sums[monitor][name, bucket] += n
    return {monitor: +counter for monitor, counter in sums.items()}


def add_up_by_hand(received: Iterable[Received]) -> Sums:
    gathered: dict[Monitor, list[Facts]] = defaultdict(list)
    for each in received:
        for monitor in find_monitors(each, DEFAULT_GROUPINGS):
            gathered[monitor].append(read_facts(each))
    return {monitor: count(facts) for monitor, facts in gathered.items()}


def count(facts: Sequence[Facts]) -> Counter[Any]:
    counter = Counter(
        requests=len(facts),
        errors=sum(f.error for f in facts),
        answered=sum(not f.error for f in facts),
        refusals=sum(f.refusal for f in facts),
        truncations=sum(f.truncation for f in facts),
        cache_hits=sum(f.cache_hit for f in facts),
    )
    counter.update(flag for f in facts for flag in f.flags)
    for name in set(MEASURED.values()):
        buckets = count_buckets(getattr(f, name) for f in facts)
        counter.update({(name, bucket): n for bucket, n in buckets.items()})
    return +counter


def test_what_the_detectors_count_is_packed() -> None:
    event = make_event(cache="hit")
    (packets,) = pack_signals(
        SOURCE,
        *prepare(
            receive(
                [
                    event,
                    make_event(
                        "e-2", prompt_text="Is it paid already?", response_text="Yes, it is paid."
                    ),
                    make_event("e-3", canary="refund", canary_passed=False),
                ]
            )
        ),
        1,
    ).values()
    needed = {column for pair in COUNTED.values() for column in pair}
    # What a reference says of answers comes later: `tests/test_signals_stored.py`.
    needed -= {"marked", "off_prompts", "novel_prompts"}
    # Feedback has packets of its own.
    needed -= {"feedbacks", "negative_feedbacks"}
    times = {FIRST_TIME_MS, LAST_TIME_MS}
    for packet in packets:
        assert packet.columns.keys() == needed | {REQUESTS} | times
        assert packet.histograms.keys() == set(MEASURED.values())
        assert packet.sums == {}


def test_what_a_gateway_does_not_tell_has_no_place_in_a_packet() -> None:
    (packets,) = pack_signals(SOURCE, *prepare(receive([make_event()])), 1).values()
    for packet in packets:
        assert not {"cache_lookups", "cache_hits", "contents"} & packet.columns.keys()
        assert {"guardrails", "partial_refusals"} <= packet.columns.keys()


# --- Sums ------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 3, 16])
def test_packets_add_up_to_the_events(partitions: int) -> None:
    received = receive(make_traffic(1, 500))
    packed = pack_signals(SOURCE, *prepare(received), partitions)
    assert add_up(p for part in packed.values() for p in part) == add_up_by_hand(received)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 10**7), st.integers(1, 5))
def test_whatever_the_size_the_span_and_the_partitions(
    seed: int, size: int, span_ms: int, partitions: int
) -> None:
    received = receive(make_traffic(seed, size, span_ms))
    packed = pack_signals(SOURCE, *prepare(received), partitions)
    assert add_up(p for part in packed.values() for p in part) == add_up_by_hand(received)


@pytest.mark.parametrize("step", [1, 7, 64, 500, 10_000])
def test_steps_add_up_to_the_same(step: int) -> None:
    received = receive(make_traffic(2, 500))
    packets = pack_signals_in_steps(SOURCE, range(500), *prepare(received), step)
    assert add_up(packets) == add_up_by_hand(received)
    assert len(packets) == -(-500 // step)


def test_over_the_cap_the_sums_are_kept() -> None:
    received = receive(make_traffic(3, 300))
    packed = pack_signals(SOURCE, *prepare(received, cap=1), 2)
    sums = add_up(p for part in packed.values() for p in part)
    by_hand = add_up_by_hand(received)
    for grouping in DEFAULT_GROUPINGS:
        mine = [m for m in sums if m.grouping == grouping]
        assert len(mine) <= 2
        total = sum((sums[m] for m in mine), Counter())
        assert total == sum((c for m, c in by_hand.items() if m.grouping == grouping), Counter())


# --- Order -----------------------------------------------------------------------------------


def shuffled_traffic(seed: int, size: int) -> list[Received]:
    """Events that arrive out of order, as from several gateways."""
    received = receive(make_traffic(seed, size))
    np.random.default_rng(seed).shuffle(received)  # type: ignore[arg-type]
    return received


def test_packets_are_in_order_of_event_time() -> None:
    packed = pack_signals(SOURCE, *prepare(shuffled_traffic(4, 400)), 3)
    for packets in packed.values():
        assert [p.part for p in packets] == list(range(len(packets)))
        spans = [span_of(p) for p in packets]
        assert all(last // INTERVAL_MS == first // INTERVAL_MS for first, last in spans)
        for (_, earlier), (later, _) in pairwise(spans):
            assert earlier // INTERVAL_MS < later // INTERVAL_MS


def span_of(packet: SignalPacket) -> tuple[int, int]:
    return (
        min(c.first_time_ms for c in packet.counts),
        max(c.last_time_ms for c in packet.counts),
    )


def test_the_times_of_a_monitor_are_those_of_its_events() -> None:
    received = shuffled_traffic(5, 300)
    (packets,) = pack_signals(SOURCE, *prepare(received), 1).values()
    times: dict[tuple[Monitor, int], list[int]] = defaultdict(list)
    for each in received:
        for monitor in find_monitors(each, DEFAULT_GROUPINGS):
            times[monitor, each.time_ms // INTERVAL_MS].append(each.time_ms)
    for packet in packets:
        for monitor, c in zip(monitors_of(packet), packet.counts, strict=True):
            mine = times.pop((monitor, c.first_time_ms // INTERVAL_MS))
            assert (c.first_time_ms, c.last_time_ms) == (min(mine), max(mine))
    assert not times


def test_steps_name_the_offsets_that_they_cover() -> None:
    """Offsets have gaps where records were refused."""
    received = receive(make_traffic(6, 10))
    offsets = [100, 101, 105, 106, 107, 110, 111, 112, 120, 121]
    packets = pack_signals_in_steps(SOURCE, offsets, *prepare(received), 4)
    ranges = [(p.source.first_offset, p.source.last_offset) for p in packets]
    assert ranges == [(100, 106), (107, 112), (120, 121)]


def test_a_position_never_goes_back() -> None:
    received = shuffled_traffic(7, 200)
    for packets in (
        *pack_signals(SOURCE, *prepare(received), 2).values(),
        pack_signals_in_steps(SOURCE, range(200), *prepare(received), 16),
    ):
        positions = [(p.source.last_offset, p.part) for p in packets]
        assert positions == sorted(set(positions))


# --- Partitions ------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_a_monitor_is_always_in_its_partition(partitions: int) -> None:
    owner: dict[Monitor, int] = {}
    for seed in (8, 9):
        packed = pack_signals(SOURCE, *prepare(receive(make_traffic(seed, 200))), partitions)
        assert list(packed) == sorted(packed)
        for partition, packets in packed.items():
            assert packets
            for packet in packets:
                for monitor in monitors_of(packet):
                    assert assign_partition(monitor, partitions) == partition
                    assert owner.setdefault(monitor, partition) == partition


def test_the_partition_of_a_monitor_is_for_ever() -> None:
    """Changing it would leave every detector's state behind: these figures may not change."""
    route, pair = (Dimension.ROUTE,), (Dimension.ROUTE, Dimension.TENANT)
    monitors = (Monitor(route, ("support",)), Monitor(pair, ("support", "日本商事")))
    assert [assign_partition(m, 16) for m in monitors] == [7, 12]


def test_partitions_share_the_monitors_out() -> None:
    monitors = [Monitor((Dimension.ROUTE,), (f"route-{i}",)) for i in range(4_000)]
    counts = Counter(assign_partition(m, 4) for m in monitors)
    assert all(850 < counts[p] < 1_150 for p in range(4))


# --- Packets ---------------------------------------------------------------------------------


def test_a_packet_comes_through_its_topic() -> None:
    (packets,) = pack_signals(SOURCE, *prepare(receive(make_traffic(10, 100))), 1).values()
    for packet in packets:
        assert packet.source == SOURCE
        assert packet.groupings == tuple(grouping_name(g) for g in DEFAULT_GROUPINGS)
        assert decode_packet(encode_packet(packet)) == packet


@pytest.mark.parametrize("raw", [b"", b"{}", b"\x93\x01\x02\x03", b"\xc1"])
def test_what_is_no_packet(raw: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_packet(raw)


def test_very_many_monitors_are_split_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "MAX_MONITORS_PER_PACKET", 10)
    received = receive(make_event(str(i), time_ms=NOW_MS, tenant=f"t{i}") for i in range(57))
    (packets,) = pack_signals(SOURCE, *prepare(received), 1).values()
    assert [len(p.counts) for p in packets] == [10] * 5 + [9]
    assert [p.part for p in packets] == list(range(6))
    assert add_up(packets) == add_up_by_hand(received)


def test_what_is_large_is_split_before_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka refuses a message over its limit for ever."""
    monkeypatch.setattr(signals, "MAX_BYTES_PER_PACKET", 20_000)
    received = receive(
        make_event(
            str(i), time_ms=NOW_MS, tenant=f"{i:02}" + "社" * (i % 250), time_to_first_chunk_s=i / 9
        )
        for i in range(300)
    )
    vectors = Vectors(1, 500, np.ones(300, np.bool_), np.ones((300, 16), np.float32))
    (packets,) = pack_signals(SOURCE, *prepare(received), 1, {"style": vectors}).values()
    sizes = [len(encode_packet(p)) for p in packets]
    assert 5 <= len(sizes) <= 40
    assert max(sizes) <= 21_000
    assert [p.part for p in packets] == list(range(len(packets)))
    assert add_up(packets) == add_up_by_hand(received)


def test_reading_a_packet_row_by_row_is_the_inverse_of_packing() -> None:
    (packets,) = pack_signals(SOURCE, *prepare(receive(make_traffic(12, 200))), 1).values()
    for packet in packets:
        again = make_packet(packet.source, packet.part, packet.groupings, packet.counts)
        assert again == packet
        assert packet.last_time_ms == max(c.last_time_ms for c in packet.counts)


def test_columns_that_do_not_fit_together_cannot_be_read_row_by_row() -> None:
    (packets,) = pack_signals(SOURCE, *prepare(receive([make_event()])), 1).values()
    for raw in (b"", bytes(7), bytes(8 * 100)):
        wrong = structs.replace(packets[0], columns={**packets[0].columns, "errors": raw})
        with pytest.raises(ValueError, match="column"):
            _ = wrong.counts


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 10**9))
def test_far_apart_intervals_are_counted_like_near_ones(seed: int, size: int, span_ms: int) -> None:
    """Where most cells would be empty, cells are sorted and not given a place each."""
    prepared = prepare(receive(make_traffic(seed, size, span_ms)))
    whole = pack_signals(SOURCE, *prepared, 3)
    before, signals.PLACES_PER_EVENT = signals.PLACES_PER_EVENT, 0
    try:
        assert pack_signals(SOURCE, *prepared, 3) == whole
    finally:
        signals.PLACES_PER_EVENT = before


def test_no_events_make_no_packets() -> None:
    prepared = prepare([])
    assert pack_signals(SOURCE, *prepared, 4) == {}
    assert pack_signals_in_steps(SOURCE, [], *prepared, 64) == ()


# --- Sums of vectors ---------------------------------------------------------------------------


def sums_by_hand(
    received: Sequence[Received], vectors: Vectors, usable: Sequence[bool]
) -> dict[Monitor, tuple[int, list[float]]]:
    expected: dict[Monitor, tuple[int, list[float]]] = {}
    for each, vector, use in zip(received, vectors.values.tolist(), usable, strict=True):
        for monitor in find_monitors(each, DEFAULT_GROUPINGS):
            n, total = expected.get(monitor, (0, [0.0] * len(vector)))
            if use:
                n, total = n + 1, [a + b for a, b in zip(total, vector, strict=True)]
            expected[monitor] = (n, total)
    return expected


def read_sums(packets: Iterable[SignalPacket], name: str) -> dict[Monitor, tuple[int, list[float]]]:
    found: dict[Monitor, tuple[int, list[float]]] = {}
    for packet in packets:
        view = read_packet(packet).sums[name]
        for monitor, n, row in zip(monitors_of(packet), view.counts, view.matrix, strict=True):
            before, total = found.get(monitor, (0, [0.0] * len(row)))
            found[monitor] = (before + int(n), (np.array(total) + row).tolist())
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 5), st.integers(1, 3))
def test_vectors_are_summed_for_every_monitor(
    seed: int, size: int, width: int, partitions: int
) -> None:
    rng = np.random.default_rng(seed)
    received = receive(make_traffic(seed, size))
    # Whole numbers, so that sums are exact in whatever order.
    values = rng.integers(-99, 99, (size, width)).astype(np.float32)
    vectors = Vectors(7, 500, rng.random(size) < 0.7, values)
    packed = pack_signals(SOURCE, *prepare(received), partitions, {"style": vectors})
    packets = [p for part in packed.values() for p in part]
    assert {p.sums["style"].version for p in packets} == {7}
    assert read_sums(packets, "style") == sums_by_hand(received, vectors, vectors.has.tolist())
    steps = pack_signals_in_steps(SOURCE, range(size), *prepare(received), 7, {"style": vectors})
    assert read_sums(steps, "style") == read_sums(packets, "style")
    assert all(decode_packet(encode_packet(p)) == p for p in packets)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_vector_that_is_no_measurement_is_not_summed(bad: float) -> None:
    received = receive(make_traffic(13, 20))
    vectors = Vectors(7, 500, np.ones(20, np.bool_), np.ones((20, 3), np.float32))
    vectors.values[4, 1] = bad
    (packets,) = pack_signals(SOURCE, *prepare(received), 1, {"style": vectors}).values()
    usable = [i != 4 for i in range(20)]
    assert read_sums(packets, "style") == sums_by_hand(received, vectors, usable)


def test_events_without_any_dimension_but_their_model() -> None:
    received = receive([make_event()])
    (packets,) = pack_signals(SOURCE, *prepare(received), 1).values()
    assert {m.labels()["request_model"] for p in packets for m in monitors_of(p)} == {"gpt-4o"}
