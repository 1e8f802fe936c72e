"""PagerDuty, by its Events API v2: one incident here is one alert there.

Field rules: https://developer.pagerduty.com/docs/events-api-v2/trigger-events/
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import msgspec
from msgspec import Struct

from pipeline.config import PagerDutySettings
from pipeline.errors import ConfigError, DeliveryRefused
from pipeline.incidents.phrases import SUBJECTS, describe_edge
from pipeline.sinks import text
from pipeline.sinks.times import to_rfc3339
from pipeline.sinks.webhook import LOOPBACK, Answer, post
from schemas.alarm import Alarm, Direction, Rate
from schemas.incident import Action, Attribution, Incident, Notification, Severity

CLIENT = "Kizashi"
ROUTING_KEY_CHARS = 32
SUMMARY_CHARS = 1_024
DEDUP_KEY_CHARS = 255
#: What our keys begin with, and nobody else's.
KEY_PREFIX = "kizashi/"
_LABEL_CHARS = 200
_PROSE_CHARS = 2_000
_MESSAGE_CHARS = 300
_ALARMS_MAX = 20
_EXAMPLES_MAX = 10

#: PagerDuty's word that this very event will never do. Any answer that its table does not
#: know comes from something in between, and a page must outlive that.
_REFUSED = 400
_TAME_ID = re.compile(r"[A-Za-z0-9._-]{1,200}")
#: Labels that name the broken part, and those that name whom it serves; the first present counts.
_COMPONENT_LABELS = ("response_model", "request_model", "prompt_name", "provider")
_GROUP_LABELS = ("route", "tenant", "region")


class _Refusal(Struct):
    message: str = ""
    errors: list[str] = []


class PagerDuty:
    """Opens, escalates and resolves one alert for each incident.

    Delivery guarantee: at least once under the notifier, and once in effect:
    every event of an incident carries the same `dedup_key`, so PagerDuty adds a
    repeat to the alert that is open. It hears of an update only when the severity
    rose (`every_update` is False), as another trigger with the same key.
    """

    name = "pagerduty"
    every_update = False
    acknowledges = True
    repeat_s = None

    def __init__(
        self,
        settings: PagerDutySettings,
        timeout_s: float,
        link: str = "",
        *,
        clock: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Build it from settings that have a `routing_key`; `link` may hold ``{incident_id}``.

        Raises:
            ConfigError: the key cannot be one, or it would travel in clear text.
        """
        self._url = str(settings.url)
        if settings.routing_key is None:
            raise ConfigError("notify.pagerduty.routing_key is missing")
        if len(settings.routing_key.get_secret_value()) != ROUTING_KEY_CHARS:
            raise ConfigError(f"notify.pagerduty.routing_key: not {ROUTING_KEY_CHARS} characters")
        if settings.url.scheme != "https" and not _is_loopback(self._url):
            raise ConfigError("notify.pagerduty.url: plain http would show the routing key")
        self.min_severity = Severity(settings.min_severity)
        self._key = settings.routing_key
        self._timeout_s = timeout_s
        self._link = link
        self._clock = clock
        self._transport = transport or httpx.AsyncHTTPTransport(proxy=_find_proxy(self._url))

    async def send(self, notification: Notification) -> None:
        """Send one event; raises DeliveryDeferred or DeliveryRefused, never with the key."""
        event = build_event(notification, self._link)
        body = msgspec.json.encode({"routing_key": self._key.get_secret_value(), **event})
        answer = await post(self._transport, self._url, body, {}, self._timeout_s, self._clock)
        if answer.is_success:
            return
        if answer.status == _REFUSED:
            raise DeliveryRefused(f"answered {answer.status}: {self._quote(answer)}")
        raise answer.deferred()

    async def close(self) -> None:
        """Release connections."""
        await self._transport.aclose()

    def _quote(self, answer: Answer) -> str:
        # The server may quote the request, and the key with it.
        said = _read_message(answer.excerpt).replace(self._key.get_secret_value(), "[routing key]")
        return text.plain(said, _MESSAGE_CHARS)


def dedup_key(incident_id: str) -> str:
    """Return the key, at most 255 characters, that every event of the incident carries."""
    if _TAME_ID.fullmatch(incident_id):
        return f"{KEY_PREFIX}{incident_id}"
    return f"{KEY_PREFIX}sha256:{hashlib.sha256(incident_id.encode()).hexdigest()}"


def build_event(notification: Notification, link: str = "") -> dict[str, Any]:
    """Return the event, all but its routing key. Pure.

    A resolve and an acknowledgement need no more than the key; a trigger and an update
    say everything.
    """
    incident = notification.incident
    key = dedup_key(notification.incident_id)
    if notification.action in {Action.ACKNOWLEDGE, Action.RESOLVE}:
        return {"event_action": notification.action.value, "dedup_key": key}
    event: dict[str, Any] = {
        "event_action": "trigger",
        "dedup_key": key,
        "payload": _build_payload(incident),
        "client": CLIENT,
    }
    if link:
        href = link.replace("{incident_id}", quote(incident.incident_id, safe=""))
        event["client_url"] = href
        event["links"] = [{"href": href, "text": f"The incident in {CLIENT}"}]
    return event


def _build_payload(incident: Incident) -> dict[str, Any]:
    labels = {**(incident.alarms[0].monitor if incident.alarms else {}), **incident.cause.labels}
    payload = {
        # PagerDuty refuses an event without a summary or a source.
        "summary": text.plain(incident.summary, SUMMARY_CHARS) or f"{incident.family} changed",
        "source": _show_labels(incident.cause.labels) or _show_labels(labels) or "LLM gateway",
        "severity": incident.severity.value,
        "timestamp": to_rfc3339(incident.updated_ms),
        "component": _first_label(labels, _COMPONENT_LABELS),
        "group": _first_label(labels, _GROUP_LABELS),
        "class": incident.family.value,
        "custom_details": _build_details(incident),
    }
    return {name: value for name, value in payload.items() if value}


def _build_details(incident: Incident) -> dict[str, Any]:
    opening = incident.alarms[:1]
    details = {
        "incident_id": text.plain(incident.incident_id, _LABEL_CHARS),
        "what_changed": "".join(_describe_change(a) for a in opening),
        "baseline": "".join(_show_rate(a.baseline) for a in opening),
        "current": "".join(_show_rate(a.current) for a in opening),
        "since": to_rfc3339(incident.change_time_ms),
        "evidence": "".join(_describe_evidence(a) for a in opening),
        "cause": _describe_cause(incident),
        "labels": {
            text.plain(k, _LABEL_CHARS): text.plain(v, _LABEL_CHARS)
            for k, v in incident.cause.labels.items()
        },
        "symptom": _show_word(incident.symptom),
        "likely_root_cause": _show_word(incident.root_cause),
        "explanation": [_describe_attribution(a) for a in incident.explanation],
        "suggestion": text.plain(incident.suggestion, _PROSE_CHARS),
        "example_event_ids": [
            text.plain(event_id, _LABEL_CHARS)
            for event_id in incident.example_event_ids[:_EXAMPLES_MAX]
        ],
        "alarms": _list_alarms(incident),
    }
    return {name: value for name, value in details.items() if value}


def _describe_change(alarm: Alarm) -> str:
    verb = "rose" if alarm.direction is Direction.RISE else "fell"
    name = SUBJECTS[alarm.signal] + describe_edge(alarm)
    before, after = _show_share(alarm.baseline.value), _show_share(alarm.current.value)
    return f"{name} {verb} from {before} to {after}"


def _describe_evidence(alarm: Alarm) -> str:
    return (
        f"e-value {_show_magnitude(alarm.e_value)}, over the threshold of "
        f"{_show_magnitude(alarm.threshold)} that keeps false pages within the budget"
    )


def _describe_cause(incident: Incident) -> str:
    cause = incident.cause
    where = _show_labels(cause.labels)
    if not where or not incident.alarms:
        return ""
    return (
        f"{where} carries {cause.share:.0%} of the excess: "
        f"{_show_rate(cause.before)} before, {_show_rate(cause.after)} since"
    )


def _describe_attribution(each: Attribution) -> str:
    return (
        f"{_show_labels(each.labels) or 'all traffic'}: {each.share:.0%} of the excess,"
        f" surprise {each.surprise:.2f};"
        f" {_show_rate(each.before)} before, {_show_rate(each.after)} since"
    )


def _show_word(word: str) -> str:
    return word.replace("_", " ")


def _list_alarms(incident: Incident) -> list[str]:
    shown = [
        f"{_show_labels(a.monitor) or 'all traffic'}: {_describe_change(a)}"
        + (" (cleared)" if a.alarm_id in incident.cleared else "")
        for a in incident.alarms[:_ALARMS_MAX]
    ]
    more = len(incident.alarms) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _show_labels(labels: dict[str, str]) -> str:
    return text.plain(
        ", ".join(f"{k}={text.plain(v, _LABEL_CHARS)}" for k, v in labels.items()), _PROSE_CHARS
    )


def _first_label(labels: dict[str, str], names: tuple[str, ...]) -> str:
    return next((text.plain(labels[n], _LABEL_CHARS) for n in names if labels.get(n)), "")


def _show_rate(rate: Rate) -> str:
    return f"{rate.count:,} of {rate.total:,} ({_show_share(rate.value)})"


def _show_share(share: float) -> str:
    """Two figures are enough to be woken up by."""
    decimals = 0 if share >= 0.1 or not share else 1 if share >= 0.01 else 2
    return f"{share:.{decimals}%}"


def _show_magnitude(value: float) -> str:
    if not math.isfinite(value):
        return "beyond 10^308"
    if value >= 1e15:
        return f"10^{math.floor(math.log10(value))}"
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def _read_message(excerpt: str) -> str:
    try:
        refusal = msgspec.json.decode(excerpt, type=_Refusal)
    except msgspec.MsgspecError:
        return excerpt
    return ": ".join(filter(None, (refusal.message, "; ".join(refusal.errors))))


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK


def _find_proxy(url: str) -> str | None:
    """The proxy that the environment names for this URL (``HTTPS_PROXY``, ``NO_PROXY``)."""
    parts = urlsplit(url)
    if _is_loopback(url) or proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)
