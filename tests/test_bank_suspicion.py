"""A monitor near an alarmed one learns nothing: what it sees may be the incident itself."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.bank import SUSPICION_MS, Bank, BankConfig
from schemas.alarm import Alarm, Direction
from schemas.signal import MonitorCounts, Source
from tests.support.packets import make_counts, make_packet

START_MS = 1_750_000_000_000
STEP_MS = 10_000
GROUPINGS = ("route", "tenant")


class Traffic:
    """One route of two tenants; the second tenant comes when the incident is under way."""

    def __init__(self) -> None:
        self.bank = Bank(BankConfig())
        self.rng = np.random.default_rng(5)
        self.at = 0

    def run(self, steps: int, rate: float, *tenants: str, route: str = "support") -> list[Alarm]:
        alarms: list[Alarm] = []
        for _ in range(steps):
            self.at += 1
            each = [self.count(0, route, rate), *(self.count(1, t, rate) for t in tenants)]
            source = Source("events", "e", 0, self.at, self.at)
            alarms += self.bank.update(make_packet(source, 0, GROUPINGS, each)).alarms
        return alarms

    def count(self, grouping: int, value: str, rate: float) -> MonitorCounts:
        time_ms = START_MS + self.at * STEP_MS
        refusals = int(self.rng.binomial(50, rate))
        return make_counts((value,), 50, time_ms, grouping=grouping, refusals=refusals)


def falls(alarms: list[Alarm]) -> list[Alarm]:
    return [a for a in alarms if a.direction is Direction.FALL]


def test_a_monitor_that_comes_during_an_incident_does_not_learn_it() -> None:
    traffic = Traffic()
    traffic.run(60, 0.01, "acme")
    assert traffic.run(5, 0.4, "acme"), "the incident"
    traffic.run(30, 0.4, "acme", "globex")
    after = traffic.run(400, 0.01, "acme", "globex")
    assert not falls(after), "globex took the incident for normal"
    assert not traffic.bank.open_alarms


def test_it_is_watched_once_the_incident_is_over() -> None:
    traffic = Traffic()
    traffic.run(60, 0.01, "acme")
    traffic.run(35, 0.4, "acme", "globex")
    traffic.run(100, 0.01, "acme", "globex")
    again = traffic.run(10, 0.4, "acme", "globex")
    assert {"tenant": "globex"} in [a.monitor for a in again]


def test_traffic_that_differs_in_a_dimension_goes_on_learning() -> None:
    traffic = Traffic()
    traffic.run(60, 0.01)
    traffic.run(10, 0.4)
    traffic.run(40, 0.01, route="search")
    assert {"route": "search"} in [a.monitor for a in traffic.run(10, 0.4, route="search")]


@pytest.mark.parametrize(("open_ms", "learned"), [(0, False), (SUSPICION_MS, True)])
def test_after_some_hours_an_alarm_is_the_new_normal(open_ms: int, learned: bool) -> None:
    traffic = Traffic()
    traffic.run(60, 0.01)
    assert traffic.run(5, 0.4)
    traffic.at += open_ms // STEP_MS
    traffic.run(60, 0.4, "globex")
    assert bool(falls(traffic.run(100, 0.01, "globex"))) is learned
