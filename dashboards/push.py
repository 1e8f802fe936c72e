"""Bring the dashboards into a running Grafana over its HTTP API.

Delivery guarantee: each object is brought to the wanted state or reported with
the reason why not; one that fails holds up only what needs it. Pushing again
changes nothing: what is there already is left alone, so that no versions pile up.
A change that someone makes meanwhile is never overwritten unseen.

Uses the legacy HTTP API (Grafana's documentation, "HTTP API"), which version 13
calls deprecated and keeps.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from grafana_api.grafana_api import GrafanaException
from grafana_api.grafana_face import GrafanaFace
from msgspec import Struct

from dashboards.alerts import (
    CONTACT_POINT,
    FOLDER_TITLE,
    FOLDER_UID,
    LABEL,
    build_alerts,
    build_contact_point,
)
from dashboards.build import DATASOURCE_TYPE, DATASOURCE_UID, build_all

#: The first version that knows the format by which values of variables reach the SQL. An older
#: one would put them in as they are.
OLDEST_GRAFANA = (12, 2)
_MAX_REASON = 300
_SECRET_CHARACTERS = re.compile(r"[!-~]+")

Json = dict[str, Any]


class Unusable(ValueError):
    """The settings cannot be used; the message says which and why, and holds no secret."""


class Refused(Exception):
    """Grafana did not do what it was asked; `status` is None when it did not answer."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class ClickHouse(Struct, frozen=True, kw_only=True):
    """How Grafana reaches ClickHouse. `protocol` is ``native`` or ``http``."""

    host: str
    port: int = 9000
    protocol: str = "native"
    secure: bool = False
    username: str = "reader"
    database: str = "kizashi"
    #: None leaves the password that Grafana has.
    password: str | None = None


class Action(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    FAILED = "failed"


class Outcome(Struct, frozen=True):
    """What became of one object."""

    kind: str
    name: str
    action: Action
    #: Why it failed.
    reason: str = ""

    def __str__(self) -> str:
        end = f": {self.reason}" if self.reason else ""
        return f"{self.kind} {self.name}: {self.action}{end}"


def push(
    url: str,
    token: str,
    clickhouse: ClickHouse | None = None,
    *,
    alerts: bool = True,
    pagerduty_key: str = "",
    allow_plaintext: bool = False,
    timeout_s: float = 10.0,
) -> Iterator[Outcome]:
    """Bring folder, dashboards and alert rules to Grafana at `url`.

    The data source comes too when `clickhouse` is given, and contact point and notification
    policy when there is a PagerDuty integration key. Yields one outcome per object, as it
    comes.

    Raises:
        Unusable: the address or the token cannot be used; nothing was sent.
    """
    api = _Api(_connect(url, token, allow_plaintext, timeout_s), (token, pagerduty_key))
    return _push(api, clickhouse, pagerduty_key if alerts else "", alerts=alerts)


def _push(
    api: _Api, clickhouse: ClickHouse | None, pagerduty_key: str, *, alerts: bool
) -> Iterator[Outcome]:
    if (problem := _check_version(api)) is not None:
        yield Outcome("Grafana", "itself", Action.FAILED, problem)
        return
    folder = _attempt("folder", FOLDER_UID, partial(_push_folder, api))
    yield folder
    if clickhouse is not None:
        yield _attempt("data source", DATASOURCE_UID, partial(_push_datasource, api, clickhouse))
    for model in map(json.loads, build_all().values()):
        if folder.action is Action.FAILED:
            yield Outcome("dashboard", model["uid"], Action.FAILED, "its folder is not there")
        else:
            yield _attempt("dashboard", model["uid"], partial(_push_dashboard, api, model))
    if alerts:
        yield from _push_alerts(api, pagerduty_key, folder)


def _push_alerts(api: _Api, pagerduty_key: str, folder: Outcome) -> Iterator[Outcome]:
    built = build_alerts()
    for rule in built.rules:
        name = str(rule["uid"])
        if folder.action is Action.FAILED:
            yield Outcome("alert rule", name, Action.FAILED, "its folder is not there")
        else:
            yield _attempt("alert rule", name, partial(_push_rule, api, rule))
    if not pagerduty_key:
        return
    point = _attempt("contact point", CONTACT_POINT, partial(_push_contact, api, pagerduty_key))
    yield point
    if point.action is Action.FAILED:
        reason = "its contact point is not there"
        yield Outcome("notification policy", CONTACT_POINT, Action.FAILED, reason)
        return
    yield _attempt("notification policy", CONTACT_POINT, partial(_push_policy, api, built.policy))


def _attempt(kind: str, name: str, bring: Callable[[], Action]) -> Outcome:
    try:
        return Outcome(kind, name, bring())
    except Refused as refusal:
        return Outcome(kind, name, Action.FAILED, str(refusal))


# --- Objects ---------------------------------------------------------------------------------


def _check_version(api: _Api) -> str | None:
    try:
        version = str(api.call("GET", "/health").get("version", ""))
    except Refused as refusal:
        return str(refusal)
    # A Grafana may be told to keep its version to itself.
    if (numbers := re.match(r"(\d+)\.(\d+)", version)) is None:
        return None
    if (int(numbers[1]), int(numbers[2])) < OLDEST_GRAFANA:
        oldest = ".".join(map(str, OLDEST_GRAFANA))
        return f"version {version} is too old: from {oldest} on, variables reach SQL unharmed"
    return None


def _push_folder(api: _Api) -> Action:
    standing = api.find(f"/folders/{FOLDER_UID}")
    if standing is None:
        api.call("POST", "/folders", {"uid": FOLDER_UID, "title": FOLDER_TITLE})
        return Action.CREATED
    if standing.get("title") == FOLDER_TITLE:
        return Action.UNCHANGED
    renamed = {"title": FOLDER_TITLE, "version": standing.get("version")}
    api.call("PUT", f"/folders/{FOLDER_UID}", renamed)
    return Action.UPDATED


def _push_datasource(api: _Api, clickhouse: ClickHouse) -> Action:
    wanted = datasource_model(clickhouse)
    standing = api.find(f"/datasources/uid/{DATASOURCE_UID}")
    if standing is None:
        api.call("POST", "/datasources", wanted)
        return Action.CREATED
    # A password can be written but not read, so a given one is always written.
    if clickhouse.password is None and all(standing.get(k) == v for k, v in wanted.items()):
        return Action.UNCHANGED
    # Whether it is the default is for those who look at Grafana to choose.
    wanted["isDefault"] = standing.get("isDefault", False)
    api.call("PUT", f"/datasources/uid/{DATASOURCE_UID}", wanted)
    return Action.UPDATED


def datasource_model(clickhouse: ClickHouse) -> Json:
    """Return the data source as the API takes it, with the password if there is one."""
    model: Json = {
        "name": "Kizashi",
        "uid": DATASOURCE_UID,
        "type": DATASOURCE_TYPE,
        "access": "proxy",
        "jsonData": {
            "host": clickhouse.host,
            "port": clickhouse.port,
            "protocol": clickhouse.protocol,
            "secure": clickhouse.secure,
            "username": clickhouse.username,
            "defaultDatabase": clickhouse.database,
            "dialTimeout": "10",
            "queryTimeout": "30",
        },
    }
    if clickhouse.password is not None:
        model["secureJsonData"] = {"password": clickhouse.password}
    return model


def _push_dashboard(api: _Api, model: Json) -> Action:
    path = f"/dashboards/uid/{model['uid']}"
    message = _describe(model)
    standing = api.find(path)
    body: Json = {"dashboard": model, "folderUid": FOLDER_UID, "message": message}
    if standing is None:
        api.call("POST", "/dashboards/db", body)
        return Action.CREATED
    is_home = standing["meta"].get("folderUid") == FOLDER_UID
    if is_home and _read_last_message(api, path) == message:
        return Action.UNCHANGED
    # With the version that was read: a change since then is a conflict, and not overwritten.
    stored = standing["dashboard"]
    body["dashboard"] = model | {"id": stored["id"], "version": stored["version"]}
    api.call("POST", "/dashboards/db", body)
    return Action.UPDATED


def _describe(model: Json) -> str:
    """The message under which a dashboard is saved. It tells what was saved.

    Grafana may rewrite what it stores, so comparing models would find a
    difference for ever; the message stays, and an edit by hand has another.
    """
    digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()
    return f"kizashi dashboards push {digest[:16]}"


def _read_last_message(api: _Api, path: str) -> str:
    answer = api.call("GET", f"{path}/versions?limit=1")
    versions = answer.get("versions") or [{}]
    return str(max(versions, key=lambda v: v.get("version", 0)).get("message", ""))


def _push_rule(api: _Api, rule: Json) -> Action:
    path = f"/v1/provisioning/alert-rules/{rule['uid']}"
    standing = api.find(path)
    if standing is None:
        api.call("POST", "/v1/provisioning/alert-rules", rule)
        return Action.CREATED
    # Whose organisation it is follows from the token.
    if _covers(standing, {k: v for k, v in rule.items() if k != "orgID"}):
        return Action.UNCHANGED
    api.call("PUT", path, rule)
    return Action.UPDATED


def _push_contact(api: _Api, pagerduty_key: str) -> Action:
    wanted = build_contact_point(pagerduty_key)
    points = api.call_list("/v1/provisioning/contact-points")
    if not any(point.get("uid") == wanted["uid"] for point in points):
        api.call("POST", "/v1/provisioning/contact-points", wanted)
        return Action.CREATED
    # The key can be written but not read, so it is always written.
    api.call("PUT", f"/v1/provisioning/contact-points/{wanted['uid']}", wanted)
    return Action.UPDATED


def _push_policy(api: _Api, wanted: Json) -> Action:
    """Put our route first in the tree, and leave everybody else's as they are.

    The tree has no version: a change that someone makes between our reading and our writing
    is lost.
    """
    tree = api.call("GET", "/v1/provisioning/policies")
    routes = tree.get("routes") or []
    ours = [route for route in routes if _is_ours(route)]
    if len(ours) == 1 and _covers(ours[0], wanted):
        return Action.UNCHANGED
    others = [route for route in routes if not _is_ours(route)]
    api.call("PUT", "/v1/provisioning/policies", {**tree, "routes": [wanted, *others]})
    return Action.UPDATED if ours else Action.CREATED


def _is_ours(route: Json) -> bool:
    name, value = LABEL
    return route.get("object_matchers") == [[name, "=", value]]


_DURATION_PARTS = re.compile(r"(\d+)([smhdw])")
_SECONDS_OF = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def _covers(standing: Any, wanted: Any) -> bool:
    """Whether everything wanted stands there; Grafana adds fields, and rewrites durations."""
    if isinstance(wanted, dict):
        return isinstance(standing, dict) and all(
            key in standing and _covers(standing[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(standing, list)
            and len(standing) == len(wanted)
            and all(map(_covers, standing, wanted))
        )
    if isinstance(wanted, str) and isinstance(standing, str):
        seconds = _read_duration(wanted)
        return standing == wanted or (seconds is not None and _read_duration(standing) == seconds)
    return bool(standing == wanted)


def _read_duration(text: str) -> int | None:
    """Seconds of ``2m0s`` and its like; None for what is none."""
    if not re.fullmatch(rf"(?:{_DURATION_PARTS.pattern})+", text):
        return None
    return sum(int(n) * _SECONDS_OF[unit] for n, unit in _DURATION_PARTS.findall(text))


# --- The wire --------------------------------------------------------------------------------


class _Api:
    """The library's access to every endpoint, with its failures told in one way."""

    def __init__(self, face: GrafanaFace, secrets: tuple[str, ...]) -> None:
        self._api = face.api
        self._secrets = tuple(filter(None, secrets))

    def find(self, path: str) -> Json | None:
        """Return the object, or None when there is none."""
        try:
            return self.call("GET", path)
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """Return the answer, a JSON object.

        Raises:
            Refused: an answer of 400 and up, none at all, or one that is no object.
        """
        answer = self._send(method, path, body)
        if not isinstance(answer, dict):
            raise Refused("the answer is not a JSON object: is this a Grafana?")
        return answer

    def call_list(self, path: str) -> list[Json]:
        """Return the answer, a list of JSON objects; raises as `call` does."""
        answer = self._send("GET", path)
        if not isinstance(answer, list) or not all(isinstance(each, dict) for each in answer):
            raise Refused("the answer is not a list of JSON objects: is this a Grafana?")
        return answer

    def _send(self, method: str, path: str, body: Json | None = None) -> Any:
        try:
            return getattr(self._api, method)(path, json=body)
        except GrafanaException as error:
            raise Refused(self._clean(error.message), error.status_code) from None
        except OSError as error:  # what `requests` raises derives from it
            raise Refused(self._clean(f"no usable answer: {error}")) from None
        except TypeError:
            # The library looks for a message in every error's body, also in one that is no object.
            raise Refused("an error without a message") from None

    def _clean(self, reason: str) -> str:
        """Whatever a server says: one line of bounded length, and never a secret."""
        for secret in self._secrets:
            reason = reason.replace(secret, "…")
        line = " ".join(reason.split())
        return "".join(c if c.isprintable() else "�" for c in line)[:_MAX_REASON]


def _connect(url: str, token: str, allow_plaintext: bool, timeout_s: float) -> GrafanaFace:
    if not _SECRET_CHARACTERS.fullmatch(token):
        raise Unusable("the token is empty, or has characters that no token has")
    parts = urlsplit(url)
    host = _check_address(url, allow_plaintext)
    face = GrafanaFace(
        auth=token,
        host=f"[{host}]" if ":" in host else host,
        port=parts.port,
        url_path_prefix=f"{prefix}/" if (prefix := parts.path.strip("/")) else "",
        protocol=parts.scheme,
        timeout=timeout_s,
    )
    # `requests` would follow a redirect of a POST with a GET, which changes nothing and succeeds.
    face.api.s.max_redirects = 0
    # What is pushed can still be changed in the browser; the next push puts it right.
    face.api.s.headers["X-Disable-Provenance"] = "true"
    return face


def _check_address(url: str, allow_plaintext: bool) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise Unusable("the address of Grafana is no URL") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise Unusable("the address of Grafana has to begin with https:// or http:// and a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise Unusable("the address of Grafana may have a path, but neither a user nor a query")
    if parts.scheme == "http" and not allow_plaintext and not _is_loopback(host):
        raise Unusable(f"the token would travel to {host} in the clear: use https://")
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
