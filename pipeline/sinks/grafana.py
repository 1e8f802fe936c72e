"""Annotations in Grafana: an incident is a region, from its change to its end.

Source: Grafana's documentation, "Annotations HTTP API".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from html import escape
from typing import Any
from urllib.parse import quote, urlencode

from grafana_api.grafana_api import GrafanaException
from grafana_api.grafana_face import GrafanaFace
from pydantic import AnyHttpUrl

from pipeline.config import GrafanaSettings
from pipeline.errors import ConfigError, DeliveryDeferred, DeliveryRefused
from pipeline.sinks import text
from pipeline.sinks.pagerduty import dedup_key
from pipeline.sinks.webhook import asks_again, parse_retry_after
from schemas.incident import Action, Incident, Notification, Severity

SECTION = "notify.grafana"
TAG = "kizashi"
_SUMMARY_CHARS = 1_000
_MESSAGE_CHARS = 300
_NAME_CHARS = 200
_FOUND_MAX = 10
_LOOPBACK = frozenset({"127.0.0.1", "[::1]", "localhost"})


class GrafanaAnnotations:
    """Keeps one annotation for each incident, found again by the tag that names it.

    Delivery guarantee: at least once under the notifier, and once in effect: before anything is
    made, the tag is looked for, so a repeat finds what is there and writes the same again.
    Two workers never send at once: one owns the incidents.
    """

    name = "grafana"
    every_update = True
    acknowledges = False
    repeat_s = None

    def __init__(
        self,
        settings: GrafanaSettings,
        timeout_s: float,
        link: str = "",
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Build it from settings that have `url` and `token`; `link` may hold ``{incident_id}``.

        Raises:
            ConfigError: one of them is missing, or the token would travel in clear text.
        """
        if settings.url is None or settings.token is None:
            raise ConfigError(f"{SECTION}: url and token belong together; one is missing")
        local = settings.url.host in _LOOPBACK
        if settings.url.scheme != "https" and not (settings.allow_plaintext or local):
            raise ConfigError(f"{SECTION}.url: plain http would show the token")
        self.min_severity = Severity(settings.min_severity)
        self._link = link
        self._clock = clock
        self._token = settings.token
        self._face = _connect(settings.url, settings.token.get_secret_value(), timeout_s)
        self._retry_after: str | None = None
        # The library's errors do not tell what the headers said.
        self._face.api.s.hooks["response"].append(self._note_headers)

    async def send(self, notification: Notification) -> None:
        """Make or change the annotation; raises DeliveryDeferred or DeliveryRefused."""
        await asyncio.to_thread(self._send, notification)

    async def close(self) -> None:
        """Release connections."""
        self._face.api.s.close()

    def _send(self, notification: Notification) -> None:
        wanted = build_annotation(notification, self._link)
        tags = [("tags", TAG), ("tags", wanted["tags"][1])]
        named = urlencode([("type", "annotation"), ("limit", str(_FOUND_MAX)), *tags])
        found = self._call("GET", f"/annotations?{named}")
        if not isinstance(found, list):
            raise DeliveryRefused("the answer is no list of annotations: is this a Grafana?")
        if not found:
            self._call("POST", "/annotations", wanted)
            return
        first, *others = sorted(int(each["id"]) for each in found)
        self._call("PATCH", f"/annotations/{first}", wanted)
        for other in others:
            # An attempt that was given up, and came through after all.
            self._call("DELETE", f"/annotations/{other}")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        self._retry_after = None
        try:
            return getattr(self._face.api, method)(path, json=body)
        except GrafanaException as error:
            if asks_again(error.status_code):
                after_s = parse_retry_after(self._retry_after, self._clock())
                raise DeliveryDeferred(f"answered {error.status_code}", after_s) from None
            said = str(error.message).replace(self._token.get_secret_value(), "[token]")
            raise DeliveryRefused(
                f"answered {error.status_code}: {text.plain(said, _MESSAGE_CHARS)}"
            ) from None
        except OSError as error:  # what `requests` raises derives from it
            raise DeliveryDeferred(f"no answer ({type(error).__name__})") from None
        except (TypeError, ValueError):
            # What is no JSON, or an error without a message, comes from something in between.
            raise DeliveryDeferred("no usable answer") from None

    def _note_headers(self, response: Any, *_: Any, **__: Any) -> None:
        self._retry_after = response.headers.get("Retry-After")


def build_annotation(notification: Notification, link: str = "") -> dict[str, Any]:
    """Return the annotation as the API takes it. Pure. Grafana shows its text as HTML."""
    incident = notification.incident
    end_ms = incident.updated_ms
    if notification.action is Action.RESOLVE:
        end_ms = incident.resolved_ms or end_ms
    return {
        "time": incident.change_time_ms,
        "timeEnd": max(end_ms, incident.change_time_ms),
        "tags": [TAG, dedup_key(incident.incident_id), incident.family, incident.severity],
        "text": "<br>".join(_build_lines(notification.action, incident, link)),
    }


def _build_lines(action: Action, incident: Incident, link: str) -> list[str]:
    state = "over" if action is Action.RESOLVE else "open"
    name = text.html(incident.incident_id, _NAME_CHARS)
    if link:
        href = link.replace("{incident_id}", quote(incident.incident_id, safe=""))
        name = f'<a href="{escape(href, quote=True)}">{name}</a>'
    lines = [f"{name} ({state})", text.html(incident.summary, _SUMMARY_CHARS)]
    if incident.suggestion:
        lines.append(f"Try first: {text.html(incident.suggestion, _SUMMARY_CHARS)}")
    return lines


def _connect(url: AnyHttpUrl, token: str, timeout_s: float) -> GrafanaFace:
    prefix = (url.path or "").strip("/")
    face = GrafanaFace(
        auth=token,
        host=url.host,
        port=url.port,
        url_path_prefix=f"{prefix}/" if prefix else "",
        protocol=url.scheme,
        timeout=timeout_s,
    )
    # `requests` would follow a redirect of a POST with a GET, which changes nothing and succeeds.
    face.api.s.max_redirects = 0
    return face
