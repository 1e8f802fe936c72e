"""What a page says, word for word, and how loud it is."""

from __future__ import annotations

import pytest

from pipeline.incidents.wording import rate_severity, suggest, summarise, summarise_mix_shift
from schemas.alarm import Direction, Rate
from schemas.incident import Cause, Severity
from schemas.signal import Family, Signal
from tests.support.alarms import make_alarm

ROUTE = {"route": "support"}
VERSION = {"prompt_name": "support", "prompt_version": "v7"}
SURE = "By chance a monitor shows this less than once in 52,340 weeks (a page needs 96)."


def test_a_rise_in_a_slice_with_a_past() -> None:
    cause = Cause({"provider": "openai", "region": "eu"}, 0.93, Rate(9, 1_000), Rate(170, 500))
    assert summarise(make_alarm(1, ROUTE), cause) == (
        "Refusals rose from 0.9% to 34% for provider=openai, region=eu"
        " since 2025-06-15 15:06:40 UTC: 170 of 500, before 9 of 1,000."
        " This explains 93% of the rise on route=support, where it was first seen. " + SURE
    )


def test_a_slice_that_is_new_is_compared_with_what_was_watched() -> None:
    cause = Cause(VERSION, 0.98, Rate(0, 0), Rate(170, 500))
    assert summarise(make_alarm(1, ROUTE), cause) == (
        "Refusals are at 34% (170 of 500) for prompt_name=support, prompt_version=v7,"
        " which is new, since 2025-06-15 15:06:40 UTC; route=support was at 0.9% (22 of 2,498)."
        " This explains 98% of the rise on route=support, where it was first seen. " + SURE
    )


def test_a_slice_with_hardly_a_past_has_no_rate_to_rise_from() -> None:
    cause = Cause(VERSION, 0.98, Rate(1, 5), Rate(170, 500))
    assert "which is all but new (1 of 5 before), since" in summarise(make_alarm(1, ROUTE), cause)
    assert "rose" not in summarise(make_alarm(1, ROUTE), cause)


def test_a_monitor_that_was_quiet_for_an_hour_is_not_new() -> None:
    cause = Cause(ROUTE, 1.0, Rate(0, 0), Rate(100, 500))
    assert summarise(make_alarm(1, ROUTE), cause) == (
        "Refusals rose from 0.9% to 20% for route=support since 2025-06-15 15:06:40 UTC:"
        " 100 of 500, before 22 of 2,498. " + SURE
    )


def test_all_traffic() -> None:
    cause = Cause({}, 1.0, Rate(50, 10_000), Rate(4_000, 5_000))
    alarm = make_alarm(1, ROUTE, family=Family.ERROR, signal=Signal.ERROR)
    assert summarise(alarm, cause) == (
        "Errors rose from 0.5% to 80% for all traffic since 2025-06-15 15:06:40 UTC:"
        " 4,000 of 5,000, before 50 of 10,000."
        " First seen on route=support, but no part of the traffic stands out. " + SURE
    )


def test_a_fall() -> None:
    cause = Cause({"tenant": "acme"}, 0.91, Rate(60, 200), Rate(1, 150))
    alarm = make_alarm(1, ROUTE, direction=Direction.FALL)
    assert summarise(alarm, cause).startswith(
        "Refusals fell from 30% to 0.7% for tenant=acme since 2025-06-15 15:06:40 UTC:"
        " 1 of 150, before 60 of 200. This explains 91% of the fall on route=support"
    )


@pytest.mark.parametrize(
    ("signal", "edge", "text"),
    [
        (Signal.SLOW_FIRST_CHUNK, 623.7, "Slow first chunks rose from 10% to 60% for"),
        (Signal.SLOW_FIRST_CHUNK, 623.7, "UTC (above 0.624 s): 60 of 100, before 10 of 100."),
        (Signal.SLOW_OUTPUT, 31_250.0, "Slow output rose from 10% to 60% for"),
        (Signal.SLOW_OUTPUT, 31_250.0, "UTC (above 31.2 ms per token): 60 of 100"),
    ],
)
def test_what_is_slow_is_said(signal: Signal, edge: float, text: str) -> None:
    alarm = make_alarm(1, ROUTE, family=Family.LATENCY, signal=signal, edge=edge)
    assert text in summarise(alarm, Cause(ROUTE, 1.0, Rate(10, 100), Rate(60, 100)))


def test_great_evidence_is_said_in_short() -> None:
    alarm = make_alarm(1, e_value=1.0142320547350045e304, threshold=2.5e6)
    text = summarise(alarm, Cause(ROUTE, 1.0, Rate(10, 100), Rate(60, 100)))
    assert text.endswith("less than once in 1.0e+304 weeks (a page needs 2.5e+06).")


def test_traffic_that_moved() -> None:
    assert summarise_mix_shift(make_alarm(1, ROUTE)) == (
        "Refusals rose from 0.9% to 20% for route=support since 2025-06-15 15:06:40 UTC,"
        " because traffic moved: no model, route or tenant behaves differently from before."
    )


@pytest.mark.parametrize(
    ("labels", "suggestion"),
    [
        (VERSION, "Roll the prompt template back to the version before this one."),
        (
            {"response_model": "gpt-4o-2024-08-06"},
            "Pin the model's previous snapshot, or route around this one.",
        ),
        (
            {"provider": "openai"},
            "Fail over to another provider or region, and check the provider's status page.",
        ),
        (
            {"provider": "openai", "region": "eu"},
            "Fail over to another provider or region, and check the provider's status page.",
        ),
        ({"request_model": "gpt-4o"}, "Route this model's traffic to its fallback."),
        ({"tenant": "acme"}, "Look at what changed for tenant=acme at that time."),
        ({}, "Look at what all traffic shares: the gateway, its network, a sole provider."),
    ],
)
def test_what_to_try_first(labels: dict[str, str], suggestion: str) -> None:
    assert suggest(make_alarm(1), Cause(labels, 1.0, Rate(1, 9), Rate(5, 9))) == suggestion


def test_a_version_that_has_long_been_there_is_not_rolled_back() -> None:
    """It does not change: something else has, for what it is asked."""
    cause = Cause(VERSION, 1.0, Rate(10, 1_000), Rate(50, 90))
    assert suggest(make_alarm(1), cause) == (
        "Look at what changed for prompt_name=support, prompt_version=v7 at that time."
    )


def test_a_fall_is_looked_into_and_not_repaired() -> None:
    cause = Cause({"provider": "openai"}, 1.0, Rate(5, 9), Rate(0, 9))
    refusals = make_alarm(1, direction=Direction.FALL)
    errors = make_alarm(1, direction=Direction.FALL, family=Family.ERROR, signal=Signal.ERROR)
    assert suggest(refusals, cause) == "Check whether a guardrail or a filter was switched off."
    assert suggest(errors, cause) == (
        "Check that this is an improvement, and not requests that are no longer measured."
    )


@pytest.mark.parametrize(
    ("family", "current", "inside", "severity"),
    [
        (Family.REFUSAL, Rate(4, 100), Rate(4, 100), Severity.WARNING),
        (Family.REFUSAL, Rate(5, 100), Rate(4, 100), Severity.ERROR),
        (Family.REFUSAL, Rate(5, 100), Rate(25, 100), Severity.CRITICAL),
        (Family.ERROR, Rate(25, 100), Rate(0, 0), Severity.CRITICAL),
        (Family.TRUNCATION, Rate(29, 100), Rate(0, 0), Severity.WARNING),
        (Family.TRUNCATION, Rate(100, 100), Rate(100, 100), Severity.ERROR),
        (Family.LATENCY, Rate(10, 100), Rate(30, 100), Severity.ERROR),
    ],
)
def test_a_page_is_as_loud_as_it_is_where_it_is_worst(
    family: Family, current: Rate, inside: Rate, severity: Severity
) -> None:
    cause = Cause(VERSION, 0.9, Rate(1, 100), inside)
    assert rate_severity(make_alarm(1, family=family, current=current), cause) is severity


def test_a_fall_only_informs() -> None:
    alarm = make_alarm(1, direction=Direction.FALL, current=Rate(90, 100))
    assert rate_severity(alarm, Cause(VERSION, 1.0, Rate(0, 0), Rate(0, 0))) is Severity.INFO
