"""Who hears of which incident, and that whoever heard of it hears how it ends."""

from __future__ import annotations

import asyncio
import random

import pytest
from msgspec import structs
from pydantic import ValidationError

from pipeline.config import MatchSettings, NotifySettings
from pipeline.errors import ConfigError
from pipeline.incidents.routing import RouteRule, choose_destinations
from pipeline.sinks.notifier import MemoryOutbox, Notifier, build_destinations
from schemas.incident import Action, Incident, Severity, Silenced, Status
from schemas.signal import Family
from tests.support.pagerduty import make_incident
from tests.test_notifier import Receiver

ACME = make_incident(
    cause=structs.replace(make_incident().cause, labels={"tenant": "acme"}),
)


@pytest.mark.parametrize(
    ("severity", "meant"),
    [
        (">=warning", ("warning", "error", "critical")),
        ("<=warning", ("info", "warning")),
        ("critical", ("critical",)),
        (">=info", ("info", "warning", "error", "critical")),
    ],
)
def test_a_severity_means_itself_or_those_on_one_side(
    severity: str, meant: tuple[str, ...]
) -> None:
    assert MatchSettings(severity=severity).severities == meant


def test_an_unknown_severity_or_destination_is_no_route() -> None:
    with pytest.raises(ValidationError):
        MatchSettings(severity=">warning")
    with pytest.raises(ValidationError):
        NotifySettings.model_validate({"routes": [{"to": ["fax"]}]})


def test_a_route_to_what_is_not_configured_stops_the_start() -> None:
    settings = NotifySettings.model_validate({"routes": [{"to": ["slack"]}]})
    with pytest.raises(ConfigError, match="slack is not configured"):
        build_destinations(settings)


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        (RouteRule(frozenset()), True),
        (RouteRule(frozenset(), families=frozenset({Family.REFUSAL})), True),
        (RouteRule(frozenset(), families=frozenset({Family.LATENCY})), False),
        (RouteRule(frozenset(), severities=frozenset({Severity.ERROR})), True),
        (RouteRule(frozenset(), severities=frozenset({Severity.CRITICAL})), False),
        (RouteRule(frozenset(), tenants=frozenset({"acme", "umbrella"})), True),
        (RouteRule(frozenset(), tenants=frozenset({"umbrella"})), False),
    ],
)
def test_a_rule_fits_when_every_condition_holds(rule: RouteRule, fits: bool) -> None:
    assert rule.fits(ACME) is fits


def test_the_first_rule_that_fits_decides_and_none_means_everyone() -> None:
    first = RouteRule(frozenset({"slack"}), tenants=frozenset({"acme"}))
    second = RouteRule(frozenset({"pagerduty"}))
    assert choose_destinations([first, second], ACME) == {"slack"}
    assert choose_destinations([second, first], ACME) == {"pagerduty"}
    assert choose_destinations([first], make_incident()) is None


def make_notifier(routes: list[dict[str, object]], *receivers: Receiver) -> Notifier:
    return Notifier(
        receivers,
        MemoryOutbox(),
        NotifySettings.model_validate({"routes": routes}),
        clock=lambda: 1_760_000_000.0,
        sleep=asyncio.sleep,
        rng=random.Random(1),
    )


async def tell(notifier: Notifier, *changes: tuple[Incident, Action]) -> None:
    await notifier.start()
    for incident, action in changes:
        await notifier.notify(incident, action)
        assert await notifier.drain(10.0)
    await notifier.close()


async def test_who_was_told_hears_how_it_ends_though_the_route_has_changed() -> None:
    slack, pagerduty = Receiver("slack"), Receiver("pagerduty", every_update=False)
    routes = [
        {"match": {"severity": "critical"}, "to": ["pagerduty"]},
        {"match": {"family": ["refusal"]}, "to": ["slack"]},
    ]
    await tell(
        make_notifier(routes, slack, pagerduty),
        (make_incident(version=1), Action.TRIGGER),
        (make_incident(version=2, severity=Severity.CRITICAL), Action.UPDATE),
        (make_incident(version=3, status=Status.RESOLVED), Action.RESOLVE),
    )
    assert slack.told() == [(1, "trigger"), (2, "update"), (3, "resolve")]
    assert pagerduty.told() == [(2, "trigger"), (3, "resolve")]


async def test_a_route_to_nobody_tells_nobody() -> None:
    slack = Receiver("slack")
    opened = make_incident(version=1), Action.TRIGGER
    await tell(make_notifier([{"to": []}], slack), opened)
    assert slack.told() == []


async def test_what_is_silenced_is_told_when_it_no_longer_is() -> None:
    slack = Receiver("slack")
    silenced = Silenced("s-1", "deploy", "aiko", 0)
    await tell(
        make_notifier([], slack),
        (make_incident(version=1, silenced=silenced), Action.TRIGGER),
        (make_incident(version=2, silenced=silenced), Action.UPDATE),
        (make_incident(version=3), Action.UPDATE),
        (make_incident(version=4, silenced=silenced), Action.UPDATE),
        (make_incident(version=5, silenced=silenced, status=Status.RESOLVED), Action.RESOLVE),
    )
    assert slack.told() == [(3, "trigger"), (5, "resolve")]
