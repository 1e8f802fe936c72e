"""Alertmanager, by its API v2: one incident is one alert, which is fired until it is over.

Source: prometheus/alertmanager, ``api/v2/openapi.yaml``; Prometheus' documentation, "Sending
alerts": a client re-sends what is active, and an alert that is no longer sent ends by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from pipeline.config import AlertmanagerSettings
from pipeline.errors import ConfigError
from pipeline.sinks import text
from pipeline.sinks.times import to_rfc3339
from pipeline.sinks.webhook import post
from schemas.incident import Action, Incident, Notification, Severity

SECTION = "notify.alertmanager"
PATH = "api/v2/alerts"
ALERT_NAME = "KizashiIncident"
#: An alert lives for so many repeats: three may be lost before it is taken for over.
LIFE_REPEATS = 4
#: Incidents whose labels are remembered; of one beyond them, a change of labels shows for a
#: while as two alerts.
REMEMBERED = 1_000
_LABEL_CHARS = 200
_PROSE_CHARS = 2_000
_LOOPBACK = frozenset({"127.0.0.1", "[::1]", "localhost"})

Labels = dict[str, str]


class Alertmanager:
    """Fires and resolves one alert for each incident.

    Delivery guarantee: at least once under the notifier, and once in effect: an alert *is* its
    labels, so a repeat changes nothing, and what is open is repeated every `repeat_s` anyway.
    Where the labels change (a severity that rose), the alert with the old ones is ended in the
    same request; where this process has not seen them, it ends by itself after four repeats.
    """

    name = "alertmanager"
    every_update = True
    acknowledges = False

    def __init__(
        self,
        settings: AlertmanagerSettings,
        timeout_s: float,
        link: str = "",
        *,
        clock: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Build it from settings that have a `url`; `link` may hold ``{incident_id}``.

        Raises:
            ConfigError: the URL is missing, or the token would travel in clear text.
        """
        if settings.url is None:
            raise ConfigError(f"{SECTION}.url is missing")
        if settings.token and settings.url.scheme != "https" and not _is_loopback(settings):
            raise ConfigError(f"{SECTION}.url: plain http would show the token")
        self.min_severity = Severity(settings.min_severity)
        self.repeat_s: float | None = settings.repeat_s
        self._life_s = settings.repeat_s * LIFE_REPEATS
        self._url = f"{str(settings.url).rstrip('/')}/{PATH}"
        self._token = settings.token
        self._timeout_s = timeout_s
        self._link = link
        self._clock = clock
        self._transport = transport or httpx.AsyncHTTPTransport()
        self._sent: dict[str, Labels] = {}

    async def send(self, notification: Notification) -> None:
        """Send the alert as it stands; raises DeliveryDeferred or DeliveryRefused."""
        now_s = self._clock()
        known = self._sent.get(notification.incident_id)
        alerts = build_alerts(notification, known, now_s, self._life_s, self._link)
        body, headers = msgspec.json.encode(alerts), {}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        answer = await post(self._transport, self._url, body, headers, self._timeout_s, self._clock)
        answer.check()
        self._remember(notification)

    async def close(self) -> None:
        """Release connections."""
        await self._transport.aclose()

    def _remember(self, notification: Notification) -> None:
        self._sent.pop(notification.incident_id, None)
        if notification.action is Action.RESOLVE:
            return
        while len(self._sent) >= REMEMBERED:
            del self._sent[next(iter(self._sent))]
        self._sent[notification.incident_id] = label(notification.incident)


def build_alerts(
    notification: Notification, known: Labels | None, now_s: float, life_s: float, link: str = ""
) -> list[dict[str, Any]]:
    """Return what to post: the alert, and the end of the one with the labels of before. Pure."""
    incident = notification.incident
    labels = label(incident)
    if notification.action is Action.RESOLVE:
        end_ms = incident.resolved_ms or incident.updated_ms
        # One that was sent a moment ago must not outlive its end; none ends before it began.
        end_ms = max(min(end_ms, round(now_s * 1_000)), incident.change_time_ms)
        return [_build(incident, known or labels, end_ms, link)]
    alerts = [_build(incident, labels, round((now_s + life_s) * 1_000), link)]
    if known is not None and known != labels:
        alerts.append(_build(incident, known, round(now_s * 1_000), link))
    return alerts


def label(incident: Incident) -> Labels:
    """Return the alert's identity: what routes and inhibits it, neutralised."""
    monitor = incident.alarms[0].monitor if incident.alarms else {}
    labels = {
        **monitor,
        "alertname": ALERT_NAME,
        "incident_id": incident.incident_id,
        "family": incident.family.value,
        "severity": incident.severity.value,
    }
    # An empty label is the same as none, and Alertmanager drops it.
    shown = {name: text.plain(value, _LABEL_CHARS) for name, value in labels.items()}
    return {name: value for name, value in shown.items() if value}


def _build(incident: Incident, labels: Labels, end_ms: int, link: str) -> dict[str, Any]:
    causes = (f"{k}={text.plain(v, _LABEL_CHARS)}" for k, v in incident.cause.labels.items())
    annotations = {
        "summary": text.plain(incident.summary, _PROSE_CHARS),
        "suggestion": text.plain(incident.suggestion, _PROSE_CHARS),
        "cause": text.plain(", ".join(causes), _PROSE_CHARS),
    }
    alert: dict[str, Any] = {
        "labels": labels,
        "annotations": {name: said for name, said in annotations.items() if said},
        "startsAt": to_rfc3339(incident.change_time_ms),
        "endsAt": to_rfc3339(end_ms),
    }
    if link:
        alert["generatorURL"] = link.replace("{incident_id}", quote(incident.incident_id, safe=""))
    return alert


def _is_loopback(settings: AlertmanagerSettings) -> bool:
    return settings.url is not None and settings.url.host in _LOOPBACK
