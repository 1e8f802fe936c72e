"""What stands at the other end of every destination: HTTP servers on loopback, one rule book each.

Each keeps what a person would see there, and can be told how its next requests go wrong.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.loopback import LoopbackHandler, LoopbackServer

Answer = tuple[int, Any]


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


class Receiver(LoopbackServer):
    """A server that is used as a context manager.

    `faults` are used up in order: a status to answer, ``lost`` (take it, and hang up without
    an answer) or ``silent`` (do nothing until the other side gives up).
    """

    #: Whether a repeat of what was taken changes nothing that anybody sees.
    drops_repeats = True

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.calls: list[Call] = []
        self.faults: deque[int | str] = deque()
        self.retry_after = ""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return self.origin

    def take(self, call: Call) -> Answer:
        """Handle a request; returns status and JSON body."""
        raise NotImplementedError

    def visible(self, now_s: float) -> list[str]:
        """Return what a person sees open there: one entry for each thing."""
        raise NotImplementedError


class PagerDutyDesk(Receiver):
    def __init__(self) -> None:
        super().__init__()
        self.alerts: dict[str, str] = {}

    def take(self, call: Call) -> Answer:
        status = {"trigger": "triggered", "acknowledge": "acknowledged", "resolve": "resolved"}
        self.alerts[call.body["dedup_key"]] = status[call.body["event_action"]]
        return 202, {"status": "success"}

    def visible(self, now_s: float) -> list[str]:
        return [key for key, status in self.alerts.items() if status != "resolved"]


class Inbox(Receiver):
    """Somebody's receiver of webhooks, who drops what has come before, as documented."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.open: list[str] = []

    def take(self, call: Call) -> Answer:
        delivery = call.headers["X-Kizashi-Delivery"]
        if delivery not in self.seen:
            self.seen.add(delivery)
            name = call.body["incident"]["incident_id"]
            if call.body["action"] == "trigger":
                self.open.append(name)
            elif call.body["action"] == "resolve":
                self.open.remove(name)
        return 204, None

    def visible(self, now_s: float) -> list[str]:
        return self.open


class ChatRoom(Receiver):
    """A channel behind an incoming webhook: what was posted stands there."""

    drops_repeats = False

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def take(self, call: Call) -> Answer:
        assert set(call.body) <= {"text", "blocks", "unfurl_links", "unfurl_media"}
        assert all(len(b["text"]["text"]) <= 3_000 for b in call.body["blocks"])
        self.messages.append(call.body["text"])
        return 200, "ok"

    def visible(self, now_s: float) -> list[str]:
        over = [m for m in self.messages if "Over since" in m]
        told = [m for m in self.messages if "Over since" not in m and "is on it" not in m]
        # A rise in severity is told as a message of its own.
        first = [m for m in told if "Critical" not in m]
        return first[len(over) :]


class AlertmanagerRoom(Receiver):
    """Alerts by their labels, as `provider/mem` keeps them; what is past its end is over."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}

    def take(self, call: Call) -> Answer:
        if call.path != "/api/v2/alerts":
            return 404, {"message": "no such path"}
        for alert in call.body:
            starts, ends = (datetime.fromisoformat(alert[k]) for k in ("startsAt", "endsAt"))
            if not alert["labels"] or not all(alert["labels"].values()) or ends < starts:
                return 400, {"code": 601, "message": "bad alert"}
            self.alerts[tuple(sorted(alert["labels"].items()))] = alert
        return 200, None

    def visible(self, now_s: float) -> list[str]:
        ends = [datetime.fromisoformat(a["endsAt"]).timestamp() for a in self.alerts.values()]
        alerts = zip(self.alerts.values(), ends, strict=True)
        return [a["labels"]["severity"] for a, end_s in alerts if end_s > now_s]


class AnnotationRoom(Receiver):
    """Grafana's annotations: found by tags that all have to be there."""

    def __init__(self) -> None:
        super().__init__()
        self.annotations: dict[int, dict[str, Any]] = {}

    def take(self, call: Call) -> Answer:
        if call.headers.get("Authorization") != "Bearer glsa_test":
            return 401, {"message": "Invalid API key"}
        name = call.path.removeprefix("/api/annotations").strip("/")
        if call.method == "GET":
            wanted = set(call.query["tags"])
            found = [a for a in self.annotations.values() if wanted <= set(a["tags"])]
            return 200, found[: int(call.query["limit"][0])]
        if call.method == "POST":
            number = len(self.annotations) + 1
            self.annotations[number] = call.body | {"id": number}
            return 200, {"message": "Annotation added", "id": number}
        if int(name) not in self.annotations:
            return 404, {"message": "Annotation not found"}
        if call.method == "DELETE":
            del self.annotations[int(name)]
        else:
            self.annotations[int(name)] |= call.body
        return 200, {"message": "Annotation patched"}

    def visible(self, now_s: float) -> list[str]:
        return [a["text"] for a in self.annotations.values() if "(open)" in a["text"]]


class _Handler(LoopbackHandler):
    fake: Receiver

    def respond(self) -> None:
        raw = self.read_body()
        parts = urlsplit(self.path)
        call = Call(
            self.command,
            parts.path,
            parse_qs(parts.query),
            dict(self.headers.items()),
            json.loads(raw) if raw else None,
        )
        with self.fake.lock:
            fault = self.fake.faults.popleft() if self.fake.faults else None
            self.fake.calls.append(call)
            taken = fault in {None, "lost"}
            status, body = self.fake.take(call) if taken else (fault, {"message": "no"})
        if isinstance(fault, str):
            if fault == "silent":
                self.fake.wait_for_close()
            self.hang_up()
            return
        data = b"" if body is None else json.dumps(body).encode()
        headers = [("Content-Type", "application/json")]
        if fault is not None and self.fake.retry_after:
            headers.append(("Retry-After", self.fake.retry_after))
        self.answer(int(status or 500), data, *headers)
