"""Pages about Kizashi itself while the outbox cannot be reached: without ClickHouse, or Kafka.

Delivery guarantee: at least once to each destination while this process lives, under the key that
the incident has everywhere; nothing of it is stored. When the outbox is back, the incident is
opened there under the same key, which whoever knows keys takes for the same, and is resolved
from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from msgspec import structs

from pipeline.errors import PermanentError, RetryableError
from pipeline.incidents.routing import RouteRule, choose_destinations
from pipeline.sinks.destination import Destination
from schemas.incident import Action, Incident, Notification, Severity

logger = logging.getLogger(__name__)


class LastResort:
    """Remembers whom it has told what, for as long as that stands."""

    def __init__(
        self, build: Callable[[], Sequence[Destination]], rules: Sequence[RouteRule]
    ) -> None:
        """`build` makes the destinations; they are closed again after each use."""
        self._build = build
        self._rules = tuple(rules)
        #: Incident → destination → the severity that it was told of.
        self._told: dict[str, dict[str, Severity]] = {}

    async def page(self, incidents: Sequence[Incident]) -> int:
        """Tell of those that nobody was told of; returns how many messages were taken."""
        self._told = {i.incident_id: self._told.get(i.incident_id, {}) for i in incidents}
        destinations = self._build()
        taken = 0
        try:
            for incident in incidents:
                for destination in destinations:
                    if self._is_due(incident, destination):
                        taken += await self._tell(incident, destination)
        finally:
            for destination in destinations:
                await destination.close()
        return taken

    def _is_due(self, incident: Incident, destination: Destination) -> bool:
        chosen = choose_destinations(self._rules, incident)
        if chosen is not None and destination.name not in chosen:
            return False
        told = self._told[incident.incident_id].get(destination.name)
        if told is not None:
            return incident.severity.rank > told.rank
        return incident.severity.rank >= destination.min_severity.rank

    async def _tell(self, incident: Incident, destination: Destination) -> bool:
        notification = Notification(
            incident_id=incident.incident_id,
            destination=destination.name,
            sequence=1,
            action=Action.TRIGGER,
            incident=structs.replace(incident, version=1),
        )
        try:
            await destination.send(notification)
        except RetryableError as error:
            logger.warning("%s: not told yet: %s", destination.name, error)
            return False
        except PermanentError:
            logger.warning("%s: refused %s", destination.name, incident.incident_id)
        self._told[incident.incident_id][destination.name] = incident.severity
        return True
