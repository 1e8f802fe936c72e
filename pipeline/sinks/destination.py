"""The one interface behind which every place that hears of incidents stands."""

from __future__ import annotations

from typing import Protocol

from schemas.incident import Notification, Severity


class Destination(Protocol):
    """Tells one outside system about an incident.

    Delivery guarantee: none of its own. The notifier calls `send` again after
    a RetryableError, for ever, and never again after a PermanentError; so a
    destination must pass on a key by which the other side can drop repeats.
    """

    @property
    def name(self) -> str:
        """The name under which it is configured; also the key of its outbox."""
        ...

    @property
    def min_severity(self) -> Severity:
        """Incidents below this severity are not told here."""
        ...

    @property
    def every_update(self) -> bool:
        """Whether it hears of each change, or only when the severity rises."""
        ...

    @property
    def acknowledges(self) -> bool:
        """Whether it can be told that somebody works on an incident."""
        ...

    @property
    def repeat_s(self) -> float | None:
        """How often it has to hear again of what stands open, lest it take it for over."""
        ...

    async def send(self, notification: Notification) -> None:
        """Deliver one notification.

        Raises:
            DeliveryDeferred: it failed in passing.
            DeliveryRefused: it will never be taken.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
