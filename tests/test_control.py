"""Orders among the packets: told from them by their first byte, and what they cover."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.control import MAX_SLICES, Reset, decode_signals, encode_reset
from schemas.monitor import DIMENSIONS, Dimension, Monitor
from schemas.signal import Source, encode_packet
from tests.support.packets import make_counts, make_packet

SLICES = st.dictionaries(st.sampled_from(DIMENSIONS), st.text(max_size=5), min_size=1)


@given(st.lists(SLICES, min_size=1, max_size=20), st.text(), st.integers(0, 2**53))
def test_an_order_comes_back_as_it_was_given(
    slices: list[dict[Dimension, str]], note: str, time_ms: int
) -> None:
    order = Reset(reset_id="1", time_ms=time_ms, slices=tuple(slices), note=note)
    assert decode_signals(encode_reset(order)) == order


@pytest.mark.parametrize("monitors", [0, 1, 20])
def test_a_packet_is_no_order(monitors: int) -> None:
    counts = [make_counts((f"r{i}",), 5, 1_000) for i in range(monitors)]
    packet = make_packet(Source("events", "e", 0, 1, 2), 0, ("route",), counts)
    assert decode_signals(encode_packet(packet)) == packet


@pytest.mark.parametrize("slices", [(), ({},), ({Dimension.ROUTE: "a"},) * (MAX_SLICES + 1)])
def test_an_order_about_nothing_or_everything_is_refused(
    slices: tuple[dict[Dimension, str], ...],
) -> None:
    raw = encode_reset(Reset(reset_id="1", time_ms=0, slices=slices))
    with pytest.raises(ValueError, match="slices"):
        decode_signals(raw)


@pytest.mark.parametrize("raw", [b"", b"junk", b"\x81\xa4type\xa3hum", b"\xde", b"\x80"])
def test_what_is_neither_is_refused(raw: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_signals(raw)


def test_a_slice_covers_what_lies_in_it_as_a_whole() -> None:
    route, model, tenant = Dimension.ROUTE, Dimension.REQUEST_MODEL, Dimension.TENANT
    order = Reset(
        reset_id="1", time_ms=0, slices=({route: "checkout"}, {model: "gpt-4o", tenant: "acme"})
    )
    covered = [
        Monitor((route,), ("checkout",)),
        Monitor((model, route), ("gpt-4o", "checkout")),
        Monitor((model, tenant), ("gpt-4o", "acme")),
    ]
    others = [
        Monitor((route,), ("support",)),
        Monitor((model,), ("gpt-4o",)),
        Monitor((tenant,), ("acme",)),
        Monitor((model, tenant), ("gpt-4o", "globex")),
    ]
    assert all(map(order.covers, covered))
    assert not any(map(order.covers, others))
    assert order.models == ()
    whole = Reset(reset_id="2", time_ms=0, slices=({model: "gpt-4o"}, {route: "checkout"}))
    assert whole.models == ("gpt-4o",)
