"""River's detectors beside the bank: they inform, and change nothing for anybody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from detectors.bank import Bank, BankConfig
from detectors.bank_extra import ExtraConfig
from detectors.river_rates import RiverConfig, RiverKind
from pipeline.build import build_bank_config
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.incidents.wording import rate_severity, summarise
from pipeline.sinks.detections import _signal_name
from schemas.alarm import Alarm, Rate, Transition
from schemas.control import Reset
from schemas.incident import Cause, Severity
from schemas.monitor import Dimension
from schemas.signal import Family, Signal, SignalPacket, Source
from tests.support.packets import make_counts, make_packet

START_MS = 1_750_000_000_000
ADWIN = ExtraConfig(
    RiverConfig(RiverKind.ADWIN, {"delta": 0.002}, events_per_value=10),
    (Signal.REFUSAL,),
    frozenset({(Dimension.ROUTE,)}),
)
CONFIG = BankConfig(extra=(ADWIN,))
GROUPINGS = ("route", "tenant")


def packets(steps: int, refused: float, first: int = 0, routes: int = 1) -> list[SignalPacket]:
    """Ten seconds each of some routes and a tenant that refuse so often."""
    rng, made = np.random.default_rng([first, steps]), []
    for at in range(first, first + steps):
        names = [(0, f"r{i}") for i in range(routes)] + [(1, "acme")]
        counts = [
            make_counts(
                *((name,), 50, START_MS + at * 10_000),
                grouping=g,
                refusals=int(rng.binomial(50, refused)),
            )
            for g, name in names
        ]
        made.append(make_packet(Source("e", "e", 0, at, at), 0, GROUPINGS, counts))
    return made


def feed(bank: Bank, some: list[SignalPacket]) -> list[Alarm]:
    return [alarm for each in some for alarm in bank.update(each).alarms]


def of_adwin(alarms: list[Alarm]) -> list[Alarm]:
    return [a for a in alarms if a.detector]


def test_it_alarms_and_recovers_and_promises_nothing() -> None:
    bank = Bank(CONFIG)
    assert feed(bank, packets(100, 0.02)) == []
    alarms = of_adwin(feed(bank, packets(50, 0.3, 100)))
    assert [(a.detector, a.monitor, a.severity) for a in alarms] == [
        ("adwin", {"route": "r0"}, "info")
    ]
    (raised,) = alarms
    assert (raised.e_value, raised.threshold) == (0.0, 0.0)
    assert raised.baseline.value == pytest.approx(0.02, abs=0.02)
    assert raised.current.value == pytest.approx(0.3, abs=0.1)
    assert abs(raised.change_time_ms - START_MS - 100 * 10_000) <= 30_000
    (cleared,) = of_adwin(feed(bank, packets(100, 0.02, 150)))
    assert (cleared.alarm_id, cleared.clear_reason) == (raised.alarm_id, "recovered")
    assert of_adwin(feed(bank, packets(50, 0.3, 250)))[0].alarm_id != raised.alarm_id


def test_nobody_else_is_touched() -> None:
    """Same threshold, same evidence, same alarms of the bank's own."""
    with_it, without = Bank(CONFIG), Bank(BankConfig())
    for some in (packets(80, 0.02), packets(40, 0.3, 80), packets(60, 0.02, 120)):
        for each in some:
            found, plain = with_it.update(each), without.update(each)
            assert [a for a in found.alarms if not a.detector] == plain.alarms
            ours = [v for t in found.verdicts for v in t.verdicts() if not v.detector]
            assert ours == [v for t in plain.verdicts for v in t.verdicts()]
    assert with_it.log_thresholds.tolist() == without.log_thresholds.tolist()


def test_its_verdicts_stand_beside_ours() -> None:
    bank = Bank(CONFIG)
    tables = [t for each in packets(100, 0.02) for t in bank.update(each).verdicts]
    for each in packets(30, 0.3, 100):
        tables += bank.update(each).verdicts
    theirs = [v for t in tables for v in t.verdicts() if v.detector]
    assert {v.grouping for v in theirs} == {"route"}
    assert [v.state for v in theirs][-1] == "alarmed"
    assert theirs[0].state == "quiet"
    assert {_signal_name(s, t) for t in tables for s in t.signals} >= {"refusal", "refusal/adwin"}


def test_streams_are_capped_and_the_others_are_not_watched() -> None:
    capped = ExtraConfig(ADWIN.river, ADWIN.signals, ADWIN.groupings, streams=2)
    bank = Bank(BankConfig(extra=(capped,)))
    feed(bank, packets(100, 0.02, routes=5))
    alarms = of_adwin(feed(bank, packets(50, 0.3, 100, routes=5)))
    assert len({a.monitor["route"] for a in alarms}) == 2


def test_a_planned_change_ends_its_alarm_too() -> None:
    bank = Bank(CONFIG)
    feed(bank, packets(100, 0.02) + packets(30, 0.3, 100))
    order = Reset(reset_id="r", time_ms=0, slices=({Dimension.ROUTE: "r0"},))
    (cleared,) = of_adwin(bank.reset(order).alarms)
    assert cleared.clear_reason == "planned"
    assert of_adwin(feed(bank, packets(100, 0.3, 130))) == []


@pytest.mark.parametrize("cut", [0, 50, 103, 115, 160])
def test_a_restored_bank_goes_on_bit_for_bit(cut: int) -> None:
    every = packets(100, 0.02) + packets(30, 0.3, 100) + packets(60, 0.02, 130)
    whole, resumed = Bank(CONFIG), Bank(CONFIG)
    expected = feed(whole, every[:cut])
    assert feed(resumed, every[:cut]) == expected
    resumed = Bank.restore(CONFIG, resumed.snapshot())
    assert feed(resumed, every[cut:]) == feed(whole, every[cut:])
    assert resumed.snapshot() == whole.snapshot()


def test_another_configuration_starts_anew_and_nobody_else_has_to() -> None:
    bank = Bank(CONFIG)
    feed(bank, packets(100, 0.02))
    river = RiverConfig(RiverKind.PAGE_HINKLEY, {"threshold": 5.0}, events_per_value=10)
    other = BankConfig(extra=(ExtraConfig(river, ADWIN.signals, ADWIN.groupings),))
    resumed = Bank.restore(other, bank.snapshot())
    found = feed(resumed, packets(20, 0.4, 100))
    assert [a.transition for a in found if not a.detector] == [Transition.RAISED] * 2


def test_an_incident_is_told_as_it_was_configured() -> None:
    bank = Bank(CONFIG)
    feed(bank, packets(100, 0.02))
    (alarm, *_) = of_adwin(feed(bank, packets(50, 0.9, 100)))
    cause = Cause({"route": "r0"}, 1.0, Rate(1, 50), Rate(45, 50))
    assert rate_severity(alarm, cause) is Severity.INFO
    louder = structs.replace(alarm, severity="warning")
    assert rate_severity(louder, cause) is Severity.WARNING
    assert "adwin says so; how often it is wrong, nobody promises." in summarise(alarm, cause)


# --- Configuration -------------------------------------------------------------------------------

TOML = """
[[detection.extra]]
detector = "adwin"
signals = ["refusal", "error"]
groupings = ["route", "request_model,route"]
delta = 0.001
severity = "warning"

[[detection.extra]]
detector = "kswin"
signals = ["slow_output"]
groupings = ["request_model"]
"""


def load(tmp_path: Path, text: str) -> BankConfig:
    file = tmp_path / "kizashi.toml"
    file.write_text(text)
    return build_bank_config(load_config(file), 1)


def test_it_is_configured(tmp_path: Path) -> None:
    adwin, kswin = load(tmp_path, TOML).extra
    assert (adwin.river.kind, adwin.river.parameters) == (RiverKind.ADWIN, {"delta": 0.001})
    assert adwin.signals == (Signal.REFUSAL, Signal.ERROR)
    assert (Dimension.REQUEST_MODEL, Dimension.ROUTE) in adwin.groupings
    assert (adwin.severity, kswin.severity) == ("warning", "info")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("detla = 1", "detla"),
        ('delta = "much"', "adwin"),
        ('signals = ["fingerprint"]', "fingerprint is no rate"),
        ('signals = ["refuse"]', "signals"),
        ("streams = 0", "streams"),
    ],
)
def test_what_it_cannot_be_stops_the_start(tmp_path: Path, line: str, why: str) -> None:
    lines = TOML.split("[[detection.extra]]\n")[1].splitlines()
    kept = [each for each in lines if each.split(" ")[0] != line.split(" ")[0]]
    with pytest.raises(ConfigError, match=why):
        load(tmp_path, "\n".join(["[[detection.extra]]", *kept, line]))


def test_who_does_not_ask_for_it_does_not_load_it() -> None:
    code = "import sys, detectors.bank, pipeline.build; sys.exit('river' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_family_of_each_signal() -> None:
    """An alarm joins the incidents of its signal's family."""
    bank = Bank(CONFIG)
    feed(bank, packets(100, 0.02))
    (alarm, *_) = of_adwin(feed(bank, packets(50, 0.9, 100)))
    assert (alarm.family, alarm.signal) == (Family.REFUSAL, Signal.REFUSAL)
