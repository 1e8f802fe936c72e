"""Quality objectives: how much of an error budget is spent, and how fast. Pure.

Source: Google's SRE workbook, chapter 5, "Alerting on SLOs": several windows, several burn rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

MINUTE_S = 60
HOUR_S = 3_600
DAY_S = 86_400


class Urgency(StrEnum):
    """What a burn rate asks for."""

    NONE = "none"
    TICKET = "ticket"
    PAGE = "page"


class BurnRule(NamedTuple):
    """The budget burns `factor` times too fast over both windows, the short one so that it ends."""

    factor: float
    long_s: int
    short_s: int
    urgency: Urgency


#: 2 %, 5 % and 10 % of the budget of 30 days in the long window; the most urgent first.
BURN_RULES = (
    BurnRule(14.4, HOUR_S, 5 * MINUTE_S, Urgency.PAGE),
    BurnRule(6.0, 6 * HOUR_S, 30 * MINUTE_S, Urgency.PAGE),
    BurnRule(1.0, 3 * DAY_S, 6 * HOUR_S, Urgency.TICKET),
)
#: Every window that a rule looks at, the shortest first.
WINDOWS_S = tuple(sorted({w for rule in BURN_RULES for w in (rule.long_s, rule.short_s)}))


class Tally(NamedTuple):
    """Of `total` requests `bad` were not good."""

    bad: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        return self.bad / self.total if self.total else 0.0


class Objective(Struct, frozen=True):
    name: str
    #: The share of requests that have to be good, above 0 and below 1.
    target: float
    #: The time that the budget is for.
    window_s: int
    #: With fewer bad requests in its long window no rule fires: one of three says little.
    least_bad: int


class Standing(Struct, frozen=True):
    """How an objective stands at a time."""

    name: str
    target: float
    time_ms: int
    urgency: Urgency
    #: Over the whole window.
    good_share: float
    requests: int
    #: Share of the budget that is left; below 0 it is overspent.
    budget_left: float
    #: Seconds of a window → how many times too fast the budget burns over it.
    burn: dict[int, float]


def assess(objective: Objective, tallies: Mapping[int, Tally], time_ms: int) -> Standing:
    """Return how the objective stands.

    `tallies` has one for each of `WINDOWS_S`, and one for the objective's own window.
    """
    whole = tallies[objective.window_s]
    burn = {w: measure_burn(objective, tallies[w]) for w in WINDOWS_S}
    return Standing(
        objective.name,
        objective.target,
        time_ms,
        _find_urgency(objective, tallies, burn),
        1.0 - whole.share,
        whole.total,
        1.0 - measure_burn(objective, whole),
        burn,
    )


def measure_burn(objective: Objective, tally: Tally) -> float:
    """Return how many times as many were bad as the target allows; 0 without traffic."""
    return tally.share / (1.0 - objective.target)


def _find_urgency(
    objective: Objective, tallies: Mapping[int, Tally], burn: Mapping[int, float]
) -> Urgency:
    for rule in BURN_RULES:
        enough = tallies[rule.long_s].bad >= objective.least_bad
        if enough and min(burn[rule.long_s], burn[rule.short_s]) >= rule.factor:
            return rule.urgency
    return Urgency.NONE
