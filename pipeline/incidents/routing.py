"""Who hears of which incident: the first rule that fits decides. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from schemas.incident import Incident, Severity
from schemas.monitor import Dimension
from schemas.signal import Family


class RouteRule(Struct, frozen=True):
    """What fits, and the destinations that hear of it. A set that is empty fits everything."""

    to: frozenset[str]
    families: frozenset[Family] = frozenset()
    severities: frozenset[Severity] = frozenset()
    tenants: frozenset[str] = frozenset()

    def fits(self, incident: Incident) -> bool:
        """Say whether the incident meets every condition."""
        return (
            (not self.families or incident.family in self.families)
            and (not self.severities or incident.severity in self.severities)
            and (not self.tenants or not self.tenants.isdisjoint(find_tenants(incident)))
        )


def choose_destinations(rules: Sequence[RouteRule], incident: Incident) -> frozenset[str] | None:
    """Return who may hear of the incident; None for everyone, where no rule fits."""
    return next((rule.to for rule in rules if rule.fits(incident)), None)


def find_tenants(incident: Incident) -> frozenset[str]:
    """Return the tenants that its cause and its alarms name."""
    named = [incident.cause.labels, *(alarm.monitor for alarm in incident.alarms)]
    return frozenset(each[Dimension.TENANT] for each in named if Dimension.TENANT in each)
