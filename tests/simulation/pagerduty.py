"""A fake PagerDuty: an incident is open or not, by its key, and a repeat changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pipeline.errors import DeliveryDeferred
from schemas.incident import Action, Notification, Severity

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World


class PagerDuty:
    """What a person with a pager sees of it."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.pages: Counter[str] = Counter()
        self.resolves: Counter[str] = Counter()

    def take(self, key: str, action: Action) -> None:
        if action is Action.TRIGGER and key not in self.open:
            self.open.add(key)
            self.pages[key] += 1
        elif action is Action.RESOLVE and key in self.open:
            self.open.remove(key)
            self.resolves[key] += 1


class Pager:
    """The destination (`pipeline.sinks.destination.Destination`)."""

    name = "pagerduty"
    min_severity = Severity.INFO
    every_update = False
    acknowledges = True
    repeat_s = None

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    async def send(self, notification: Notification) -> None:
        key, action = notification.incident_id, notification.action
        what = f"tell {action} {key} {notification.sequence}"
        async with self._world.calling(self._process, "pagerduty", what, DeliveryDeferred):
            if self._process.woke_s > self._process.proven_s:
                # It slept from the proof that the alarms were its own until now. That one instant
                # is left out (docs/reliability.md says what it can do): the page got lost.
                raise DeliveryDeferred("timed out")
            self._world.pagerduty.take(key, action)
            self._world.check_pages()

    async def close(self) -> None:
        """Nothing is held."""
