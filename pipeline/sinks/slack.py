"""Slack, by an incoming webhook: a short message when an incident opens, rises or is over.

Mattermost and Rocket.Chat take the same messages; they show the text where Slack shows blocks.
Source: Slack's documentation, "Sending messages using incoming webhooks".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from pipeline.config import SlackSettings
from pipeline.errors import ConfigError
from pipeline.sinks import text
from pipeline.sinks.times import to_datetime
from pipeline.sinks.webhook import PinnedTransport, check_secret_url, post
from schemas.incident import Action, Incident, Notification, Severity

SECTION = "notify.slack"
#: Slack takes 3,000 characters in a block; escaped, these are at most that.
_SUMMARY_CHARS = 400
_PROSE_CHARS = 120
_NAME_CHARS = 60
_LABELS_MAX = 4
_MARKS = {
    Severity.CRITICAL: "\N{LARGE RED CIRCLE}",
    Severity.ERROR: "\N{LARGE RED CIRCLE}",
    Severity.WARNING: "\N{LARGE YELLOW CIRCLE}",
    Severity.INFO: "\N{LARGE BLUE CIRCLE}",
}


class Slack:
    """Posts into one channel.

    Delivery guarantee: at least once under the notifier. An incoming webhook knows no key by
    which to drop repeats, so a message whose answer was lost stands there twice; both carry
    the incident's id. It hears of an update only when the severity rose.
    """

    name = "slack"
    every_update = False
    acknowledges = True
    repeat_s = None

    def __init__(
        self,
        settings: SlackSettings,
        timeout_s: float,
        link: str = "",
        *,
        clock: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Build it from settings that have a `url`; `link` may hold ``{incident_id}``.

        Raises:
            ConfigError: the URL is none, would travel in clear text, or leads inside.
        """
        if settings.url is None:
            raise ConfigError(f"{SECTION}.url is missing")
        self._url = settings.url
        check_secret_url(settings.url, SECTION, allow_private=settings.allow_private)
        self.min_severity = Severity(settings.min_severity)
        self._timeout_s = timeout_s
        self._link = link
        self._clock = clock
        self._transport = transport or PinnedTransport(
            allow_private=settings.allow_private, section=SECTION
        )

    async def send(self, notification: Notification) -> None:
        """Post one message; raises DeliveryDeferred or DeliveryRefused, never with the URL."""
        body = msgspec.json.encode(build_message(notification, self._link))
        url = self._url.get_secret_value()
        answer = await post(self._transport, url, body, {}, self._timeout_s, self._clock)
        answer.check()

    async def close(self) -> None:
        """Release connections."""
        await self._transport.aclose()


def build_message(notification: Notification, link: str = "") -> dict[str, Any]:
    """Return the message. Pure. `verbatim` keeps Slack from looking for names and addresses."""
    said = "\n".join(_build_lines(notification.action, notification.incident, link))
    block = {"type": "section", "text": {"type": "mrkdwn", "text": said, "verbatim": True}}
    return {"text": said, "blocks": [block], "unfurl_links": False, "unfurl_media": False}


def _build_lines(action: Action, incident: Incident, link: str) -> list[str]:
    name = text.mrkdwn(incident.incident_id, _NAME_CHARS)
    if link:
        href = link.replace("{incident_id}", quote(incident.incident_id, safe=""))
        name = f"<{href.translate(_IN_LINK)}|{name}>"
    if action is Action.ACKNOWLEDGE:
        by = text.mrkdwn(incident.acknowledged_by, _NAME_CHARS) or "somebody"
        return [f"\N{EYES} {by} is on it: {name}"]
    summary = text.mrkdwn(incident.summary, _SUMMARY_CHARS) or f"{incident.family} changed"
    if action is Action.RESOLVE:
        at = to_datetime(incident.resolved_ms or incident.updated_ms)
        over = f"\N{WHITE HEAVY CHECK MARK} *Over since {at:%H:%M} UTC:* {name}"
        return [over, summary]
    head = f"{_MARKS[incident.severity]} *{incident.severity.capitalize()}: {incident.family}*"
    where = ", ".join(_show_labels(incident)) or "all traffic"
    advice = text.mrkdwn(incident.suggestion, _PROSE_CHARS)
    return [f"{head} · {where} · {name}", summary, *([f"Try first: {advice}"] if advice else [])]


#: What would end a link or begin another; the address is the operator's own.
_IN_LINK = str.maketrans({"&": "&amp;", "<": "%3C", ">": "%3E", "|": "%7C"})


def _show_labels(incident: Incident) -> list[str]:
    labels = list(incident.cause.labels.items())[:_LABELS_MAX]
    return [f"{text.mrkdwn(k, _NAME_CHARS)}={text.mrkdwn(v, _NAME_CHARS)}" for k, v in labels]
