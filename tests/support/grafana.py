"""Grafana for tests: what it does to a query before it is run, and its HTTP API on loopback.

`expand` does what Grafana's templating (grafana/scenes, ``formatRegistry.ts``) and then the
ClickHouse plugin (grafana/clickhouse-datasource, ``pkg/macros/macros.go``) do to a panel's SQL.

`FakeGrafana` holds requests to the rules of the legacy HTTP API (Grafana's documentation, "HTTP
API": folder, data source, dashboard, dashboard versions, health, alerting provisioning): bearer
tokens, unique uids, optimistic locking by version, provisioned objects that cannot be saved.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from tests.support.loopback import LoopbackHandler, LoopbackServer

__all__ = ["FakeGrafana", "TimeRange", "expand", "grafana_fixture"]

Json = dict[str, Any]
TOKEN = "glsa_" + "k" * 40

# --- Queries ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimeRange:
    """The dashboard's time range in unix seconds, and the step of a time series."""

    start_s: int
    end_s: int
    step_s: int = 60


_VARIABLE = re.compile(r"\$\{(\w+):(\w+)(?::(\w*))?(?::(\w*))?\}")
_MACRO = re.compile(r"\$__(\w+)(?:\(([\w.]+)\))?")


def expand(sql: str, span: TimeRange, chosen: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return the SQL as it reaches ClickHouse.

    `chosen` are the values of variables; one that is not named there stands at "All", whose
    custom value Grafana puts in as it is, without formatting it.
    """
    filled = _VARIABLE.sub(lambda m: _fill(m, chosen or {}), sql)
    return _MACRO.sub(lambda m: _expand_macro(m, span), filled)


def _fill(match: re.Match[str], chosen: Mapping[str, Sequence[str]]) -> str:
    name, style, *arguments = match.groups()
    if name not in chosen:
        return "all"
    if style == "sqlstring":
        return ",".join(_sql_string(value) for value in chosen[name])
    assert style == "customqueryparam", f"no such format here: {style}"
    parameter, prefix = quote(arguments[0] or name, safe=""), quote(arguments[1] or "", safe="")
    # JavaScript's encodeURIComponent, and !'()* on top: what stays is what Python lets stay.
    return "&".join(f"{parameter}={prefix}{quote(value, safe='')}" for value in chosen[name])


def _sql_string(value: str) -> str:
    escaped = value.replace("'", "''").replace('"', '\\"')
    return f"'{escaped}'"


def _expand_macro(match: re.Match[str], span: TimeRange) -> str:
    name, argument = match.groups()
    start, end = f"toDateTime({span.start_s})", f"toDateTime({span.end_s})"
    macros = {
        ("fromTime", False): start,
        ("toTime", False): end,
        ("interval_s", False): str(span.step_s),
        ("timeFilter", True): f"{argument} >= {start} AND {argument} <= {end}",
        ("timeInterval", True): (
            f"toStartOfInterval(toDateTime({argument}), INTERVAL {span.step_s} second)"
        ),
    }
    assert (name, bool(argument)) in macros, f"no such macro: {match[0]}"
    return macros[name, bool(argument)]


# --- The server ------------------------------------------------------------------------------


@dataclass
class Saved:
    """A dashboard and where it is kept."""

    model: Json
    folder_uid: str
    provisioned: bool = False
    #: Version → message.
    messages: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """Answer this to the requests that it fits, instead of handling them."""

    method: str
    path: re.Pattern[str]
    status: int
    body: bytes


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, code: int, message: str, status: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.body = {"message": message} | ({"status": status} if status else {})


class FakeGrafana(LoopbackServer):
    """Use as a context manager; what it holds may be read between requests."""

    def __init__(self, version: str = "13.2.3", prefix: str = "") -> None:
        super().__init__(_Handler)
        self.version = version
        self.prefix = prefix
        self.folders: dict[str, Json] = {}
        self.datasources: dict[str, Json] = {}
        self.secrets: dict[str, Json] = {}
        self.dashboards: dict[str, Saved] = {}
        self.rules: dict[str, Json] = {}
        self.contact_points: dict[str, Json] = {}
        self.policies: Json = {"receiver": "grafana-default-email", "routes": []}
        #: Method and path of every request, in order.
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._faults: list[Fault] = []
        self._ahead: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"{self.origin}{self.prefix}"

    def fail(self, status: int, method: str = ".*", path: str = ".*", body: Any = None) -> None:
        """Answer `status` to requests whose method and path fit, until `recover`."""
        raw = body if isinstance(body, bytes) else json.dumps(body or _words(status)).encode()
        self._faults.append(Fault(method, re.compile(path), status, raw))

    def before(self, request: str, act: Callable[[], None]) -> None:
        """Act once, before the next such request is handled: someone else was quicker."""
        self._ahead[request] = act

    def recover(self) -> None:
        self._faults.clear()

    def edit(self, uid: str, **changes: Any) -> None:
        """Save a dashboard as a person would in the browser."""
        saved = self.dashboards[uid]
        self._save(saved.model | changes, saved.folder_uid, "", saved)

    @property
    def writes(self) -> list[str]:
        return [r for r in self.requests if not r.startswith("GET ")]

    @property
    def state(self) -> Json:
        """Everything a person would see."""
        return deepcopy(
            {
                "folders": self.folders,
                "datasources": self.datasources,
                "rules": self.rules,
                "contact points": self.contact_points,
                "policies": self.policies,
                "dashboards": {
                    uid: (saved.model, saved.folder_uid, dict(saved.messages))
                    for uid, saved in self.dashboards.items()
                },
            }
        )

    # How it handles a request.

    def answer(
        self, method: str, path: str, headers: dict[str, str], raw: bytes
    ) -> tuple[int, Any]:
        """Return the status and the body, as JSON or as bytes."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            self.headers.append(headers)
            try:
                return self._handle(method, path, headers, raw)
            except Refused as refusal:
                return refusal.code, refusal.body

    def _handle(
        self, method: str, path: str, headers: dict[str, str], raw: bytes
    ) -> tuple[int, Any]:
        if (act := self._ahead.pop(f"{method} {path}", None)) is not None:
            act()
        for fault in self._faults:
            if re.fullmatch(fault.method, method) and fault.path.search(path):
                return fault.status, fault.body
        parts = urlsplit(path)
        if parts.path == f"{self.prefix}/api/health":
            return 200, {"database": "ok", "version": self.version, "commit": "abc"}
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid API key")
        body = json.loads(raw) if raw else {}
        for verb, pattern, handle in _ROUTES:
            route = re.fullmatch(re.escape(self.prefix) + "/api" + pattern, parts.path)
            if verb == method and route:
                return 200, handle(self, *route.groups(), body, parse_qs(parts.query))
        raise Refused(404, "Not found")

    def _get_folder(self, uid: str, *_: Any) -> Json:
        if uid not in self.folders:
            raise Refused(404, "folder not found", status="not-found")
        return self.folders[uid]

    def _create_folder(self, body: Json, _: Any) -> Json:
        uid = body.get("uid") or f"f{len(self.folders)}"
        if uid in self.folders:
            raise Refused(409, "a folder with the same uid already exists")
        self.folders[uid] = {"uid": uid, "title": body["title"], "version": 1}
        return self.folders[uid]

    def _update_folder(self, uid: str, body: Json, _: Any) -> Json:
        folder = self._get_folder(uid)
        if not body.get("overwrite") and body.get("version") != folder["version"]:
            raise Refused(
                412, "the folder has been changed by someone else", status="version-mismatch"
            )
        folder |= {"title": body["title"], "version": folder["version"] + 1}
        return folder

    def _get_datasource(self, uid: str, *_: Any) -> Json:
        if uid not in self.datasources:
            raise Refused(404, "Data source not found")
        return self.datasources[uid]

    def _create_datasource(self, body: Json, _: Any) -> Json:
        _check_datasource(body)
        taken = [d["name"] for d in self.datasources.values()]
        if body.get("uid") in self.datasources or body["name"] in taken:
            raise Refused(409, "data source with the same name already exists")
        return self._store_datasource(body | {"id": len(self.datasources) + 1, "readOnly": False})

    def _update_datasource(self, uid: str, body: Json, _: Any) -> Json:
        _check_datasource(body)
        standing = self._get_datasource(uid)
        if standing["readOnly"]:
            raise Refused(403, "Cannot update read-only data source")
        return self._store_datasource(
            body | {"uid": uid, "id": standing["id"], "readOnly": standing["readOnly"]}
        )

    def _store_datasource(self, body: Json) -> Json:
        uid = body["uid"]
        self.secrets.setdefault(uid, {}).update(body.pop("secureJsonData", {}))
        body["secureJsonFields"] = dict.fromkeys(self.secrets[uid], True)
        self.datasources[uid] = body
        return {"message": "Datasource added", "datasource": body, "name": body["name"]}

    def _get_dashboard(self, uid: str, *_: Any) -> Json:
        if uid not in self.dashboards:
            raise Refused(404, "Dashboard not found")
        saved = self.dashboards[uid]
        meta = {"folderUid": saved.folder_uid, "provisioned": saved.provisioned}
        return {"dashboard": saved.model, "meta": meta}

    def _list_versions(self, uid: str, _: Any, query: dict[str, list[str]]) -> Json:
        self._get_dashboard(uid)
        limit = int(query.get("limit", ["1000"])[0])
        newest = sorted(self.dashboards[uid].messages.items(), reverse=True)[:limit]
        return {"versions": [{"version": v, "message": m} for v, m in newest]}

    def _post_dashboard(self, body: Json, _: Any) -> Json:
        model, folder = body["dashboard"], body.get("folderUid", "")
        if not model.get("title"):
            raise Refused(400, "Dashboard title cannot be empty", status="empty-name")
        if folder and folder not in self.folders:
            raise Refused(400, "folder not found", status="not-found")
        standing = self.dashboards.get(model["uid"])
        if standing is None and model.get("id"):
            raise Refused(404, "Dashboard not found", status="not-found")
        if standing is not None:
            self._check_save(model, standing, bool(body.get("overwrite")))
        return self._save(model, folder, body.get("message", ""), standing)

    @staticmethod
    def _check_save(model: Json, standing: Saved, overwrite: bool) -> None:
        if standing.provisioned:
            raise Refused(400, "Cannot save provisioned dashboard")
        if overwrite:
            return
        if not model.get("id"):
            raise Refused(412, "A dashboard with the same uid already exists", status="name-exists")
        if model.get("version") != standing.model["version"]:
            raise Refused(
                412, "The dashboard has been changed by someone else", status="version-mismatch"
            )

    def _get_rule(self, uid: str, *_: Any) -> Json:
        if uid not in self.rules:
            raise Refused(404, "")
        return self.rules[uid]

    def _create_rule(self, body: Json, _: Any) -> Json:
        if body["uid"] in self.rules:
            raise Refused(409, "rule uid already exists")
        return self._store_rule(body)

    def _update_rule(self, uid: str, body: Json, _: Any) -> Json:
        self._get_rule(uid)
        return self._store_rule(body)

    def _store_rule(self, body: Json) -> Json:
        """Keep it as Grafana does: durations in its own form, queries with its defaults."""
        if body["folderUID"] not in self.folders:
            raise Refused(400, "folder does not exist")
        if not {body["condition"]} <= {query["refId"] for query in body["data"]}:
            raise Refused(400, "invalid alert rule: condition does not exist")
        seconds = int(body["for"].removesuffix("s"))
        data = [
            {**query, "model": {"intervalMs": 1000, "maxDataPoints": 43200, **query["model"]}}
            for query in body["data"]
        ]
        kept = {"for": f"{seconds // 60}m{seconds % 60}s" if seconds >= 60 else f"{seconds}s"}
        self.rules[body["uid"]] = {**body, **kept, "data": data, "id": 1, "orgID": 7}
        return self.rules[body["uid"]]

    def _list_contact_points(self, *_: Any) -> list[Json]:
        hidden = {"integrationKey": "[REDACTED]"}
        return [
            {**point, "settings": {**point["settings"], **hidden}}
            for point in self.contact_points.values()
        ]

    def _create_contact_point(self, body: Json, _: Any) -> Json:
        self.contact_points[body["uid"]] = body
        return body

    def _update_contact_point(self, uid: str, body: Json, _: Any) -> Json:
        if uid not in self.contact_points:
            raise Refused(404, "contact point not found")
        self.contact_points[uid] = body
        return {"message": "contactpoint updated"}

    def _get_policies(self, *_: Any) -> Json:
        return self.policies

    def _put_policies(self, body: Json, _: Any) -> Json:
        known = {point["name"] for point in self.contact_points.values()}
        if not {route["receiver"] for route in body["routes"]} <= known | {"other team"}:
            raise Refused(400, "receiver does not exist")
        self.policies = body
        return {"message": "policies updated"}

    def _save(self, model: Json, folder: str, message: str, standing: Saved | None) -> Json:
        version = standing.model["version"] + 1 if standing else 1
        number = standing.model["id"] if standing else len(self.dashboards) + 1
        messages = {**(standing.messages if standing else {}), version: message}
        stored = {**model, "id": number, "version": version}
        self.dashboards[model["uid"]] = Saved(stored, folder, messages=messages)
        return {"status": "success", "uid": model["uid"], "id": number, "version": version}


def _check_datasource(body: Json) -> None:
    if (
        not body.get("name")
        or not body.get("type")
        or body.get("access") not in {"proxy", "direct"}
    ):
        raise Refused(400, "bad request data")


def _words(status: int) -> Json:
    words = {403: "You'll need additional permissions to perform this action", 412: "conflict"}
    return {"message": words.get(status, "Internal server error")}


_UID = r"([\w-]{1,40})"
_ROUTES = (
    ("GET", rf"/folders/{_UID}", FakeGrafana._get_folder),
    ("POST", "/folders", FakeGrafana._create_folder),
    ("PUT", rf"/folders/{_UID}", FakeGrafana._update_folder),
    ("GET", rf"/datasources/uid/{_UID}", FakeGrafana._get_datasource),
    ("POST", "/datasources", FakeGrafana._create_datasource),
    ("PUT", rf"/datasources/uid/{_UID}", FakeGrafana._update_datasource),
    ("GET", rf"/dashboards/uid/{_UID}", FakeGrafana._get_dashboard),
    ("GET", rf"/dashboards/uid/{_UID}/versions", FakeGrafana._list_versions),
    ("POST", "/dashboards/db", FakeGrafana._post_dashboard),
    ("GET", rf"/v1/provisioning/alert-rules/{_UID}", FakeGrafana._get_rule),
    ("POST", "/v1/provisioning/alert-rules", FakeGrafana._create_rule),
    ("PUT", rf"/v1/provisioning/alert-rules/{_UID}", FakeGrafana._update_rule),
    ("GET", "/v1/provisioning/contact-points", FakeGrafana._list_contact_points),
    ("POST", "/v1/provisioning/contact-points", FakeGrafana._create_contact_point),
    ("PUT", rf"/v1/provisioning/contact-points/{_UID}", FakeGrafana._update_contact_point),
    ("GET", "/v1/provisioning/policies", FakeGrafana._get_policies),
    ("PUT", "/v1/provisioning/policies", FakeGrafana._put_policies),
)


class _Handler(LoopbackHandler):
    fake: FakeGrafana

    def respond(self) -> None:
        raw = self.read_body()
        status, body = self.fake.answer(self.command, self.path, dict(self.headers.items()), raw)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [("Content-Type", "application/json")]
        if status in {301, 302, 307}:
            headers.append(("Location", self.path))
        self.answer(status, data, *headers)


@pytest.fixture(name="grafana")
def grafana_fixture() -> Iterator[FakeGrafana]:
    """An empty Grafana that works until a test tells it otherwise."""
    with FakeGrafana() as grafana:
        yield grafana
