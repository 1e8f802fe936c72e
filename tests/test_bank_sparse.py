"""Families that few monitors have: the same as for all, and no cost for those without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detectors.bank import Bank, BankConfig
from detectors.bank_sparse import SparseFamilies
from schemas.alarm import Alarm, Direction, Transition
from schemas.control import Reset
from schemas.monitor import Dimension
from schemas.signal import Family, Signal, SignalPacket, Source
from tests.support.packets import make_counts, make_packet

START_MS = 1_750_000_000_000
STEP_MS = 60_000
CASES = ("canary/refund", "canary/poison")
ROUTES = ("support", "search", "billing")


def sparse_of(bank: Bank) -> SparseFamilies:
    group = bank._groups["rare"]
    assert isinstance(group, SparseFamilies)
    return group


def make_packets(
    seed: int, steps: Sequence[float], routes: Sequence[str] = (*ROUTES, *CASES)
) -> list[SignalPacket]:
    """A packet a minute: canaries fail at the step's rate, and users' traffic has none."""
    rng = np.random.default_rng(seed)
    packets = []
    for at, rate in enumerate(steps):
        rows = []
        for route in routes:
            asked = 20 if route in CASES else 0
            rows.append(
                make_counts(
                    (route,),
                    20,
                    START_MS + at * STEP_MS,
                    canaries=asked,
                    canary_failures=int(rng.binomial(asked, rate)),
                    refusals=int(rng.binomial(20, 0.02)),
                )
            )
        packets.append(make_packet(Source("events", "e", 0, at, at), 0, ("route",), rows))
    return packets


CHANGE = [0.05] * 40 + [0.6] * 15 + [0.05] * 30


def feed(bank: Bank, packets: Sequence[SignalPacket]) -> tuple[list[Any], list[Alarm]]:
    verdicts: list[Any] = []
    alarms: list[Alarm] = []
    for packet in packets:
        findings = bank.update(packet)
        verdicts += [v for table in findings.verdicts for v in table.verdicts()]
        alarms += findings.alarms
    return verdicts, alarms


def test_a_canary_that_fails_raises_an_alarm_and_its_recovery_clears_it() -> None:
    _, alarms = feed(Bank(BankConfig()), make_packets(1, CHANGE))
    told = [(a.transition, a.family, a.signal, a.monitor["route"]) for a in alarms]
    raised = [(Transition.RAISED, Family.CANARY, Signal.CANARY_FAILURE, case) for case in CASES]
    cleared = [(Transition.CLEARED, *rest) for _, *rest in raised]
    assert sorted(map(str, told)) == sorted(map(str, raised + cleared))
    assert all(alarm.direction is Direction.RISE for alarm in alarms)


def test_while_nothing_changes_nothing_is_told() -> None:
    for seed in range(2):
        assert feed(Bank(BankConfig()), make_packets(seed, [0.05] * 120))[1] == []


def test_a_fall_of_failures_is_no_news() -> None:
    assert feed(Bank(BankConfig()), make_packets(1, [0.5] * 30 + [0.0] * 30))[1] == []


def test_monitors_without_canaries_have_no_state_for_them() -> None:
    bank = Bank(BankConfig())
    many = [f"route-{i}" for i in range(500)]
    feed(bank, make_packets(1, [0.0] * 3, many))
    assert (bank.monitors, sparse_of(bank).rows) == (500, 0)
    held = sum(a.nbytes for _, arrays in sparse_of(bank).snapshot() for a in arrays.values())
    assert held / bank.monitors < 32
    (packet,) = make_packets(1, [0.0], CASES)
    bank.update(replace_source(packet, 9))
    assert sparse_of(bank).rows == len(CASES)


def replace_source(packet: SignalPacket, at: int) -> SignalPacket:
    return make_packet(Source("events", "e", 0, at, at), 0, packet.groupings, packet.counts)


def test_it_says_what_a_group_with_a_row_for_everyone_says(monkeypatch: pytest.MonkeyPatch) -> None:
    packets = make_packets(2, CHANGE)
    sparse = feed(Bank(BankConfig()), packets)
    monkeypatch.setattr("detectors.bank.SparseFamilies", lambda rates: rates)
    dense = feed(Bank(BankConfig()), packets)
    assert sparse[1] == dense[1] != []
    assert sparse[0] == dense[0]


@pytest.mark.parametrize("at", [0, 44, 70])
def test_a_snapshot_goes_on_bit_for_bit(at: int) -> None:
    packets = make_packets(3, CHANGE)
    whole, first = Bank(BankConfig()), Bank(BankConfig())
    expected = feed(whole, packets)
    before = feed(first, packets[:at])
    after = feed(Bank.restore(BankConfig(), first.snapshot()), packets[at:])
    assert (before[0] + after[0], before[1] + after[1]) == expected
    resumed = Bank.restore(BankConfig(), whole.snapshot())
    assert resumed.snapshot() == whole.snapshot()


def test_a_row_that_is_given_back_begins_anew() -> None:
    bank = Bank(BankConfig())
    feed(bank, make_packets(4, [0.05] * 30))
    order = Reset(
        reset_id="r", time_ms=START_MS, slices=({Dimension.ROUTE: CASES[0]},), note="new model"
    )
    bank.reset(order)
    assert sparse_of(bank).rows == 1
    _, alarms = feed(bank, [replace_source(p, 1_000 + i) for i, p in enumerate(later())])
    assert [a for a in alarms if a.monitor["route"] == CASES[0]] == [], "it learns anew"
    assert sparse_of(bank).rows == 2


def later() -> list[SignalPacket]:
    return make_packets(5, [0.6] * 30, CASES[:1])


def test_the_longest_silent_make_room() -> None:
    bank = Bank(replace(BankConfig(), monitors=3))
    for at in range(8):
        packets = make_packets(at, [0.05] * 2, (f"canary/{at}", *CASES))
        feed(bank, [replace_source(p, 10 * at + i) for i, p in enumerate(packets)])
    assert bank.monitors == 3
    assert sparse_of(bank).rows == 2
