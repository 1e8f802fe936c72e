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

from dashboards.build import DATASOURCE_TYPE, DATASOURCE_UID, build_all

FOLDER_UID = "kizashi"
FOLDER_TITLE = "Kizashi"
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
    allow_plaintext: bool = False,
    timeout_s: float = 10.0,
) -> Iterator[Outcome]:
    """Bring folder, data source (when `clickhouse` is given) and dashboards to Grafana at `url`.

    Yields one outcome per object, as it comes.

    Raises:
        Unusable: the address or the token cannot be used; nothing was sent.
    """
    api = _Api(_connect(url, token, allow_plaintext, timeout_s), token)
    return _push(api, clickhouse)


def _push(api: _Api, clickhouse: ClickHouse | None) -> Iterator[Outcome]:
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


# --- The wire --------------------------------------------------------------------------------


class _Api:
    """The library's access to every endpoint, with its failures told in one way."""

    def __init__(self, face: GrafanaFace, token: str) -> None:
        self._api = face.api
        self._token = token

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
        try:
            answer = getattr(self._api, method)(path, json=body)
        except GrafanaException as error:
            raise Refused(self._clean(error.message), error.status_code) from None
        except OSError as error:  # what `requests` raises derives from it
            raise Refused(self._clean(f"no usable answer: {error}")) from None
        except TypeError:
            # The library looks for a message in every error's body, also in one that is no object.
            raise Refused("an error without a message") from None
        if not isinstance(answer, dict):
            raise Refused("the answer is not a JSON object: is this a Grafana?")
        return answer

    def _clean(self, reason: str) -> str:
        """Whatever a server says: one line of bounded length, and never the token."""
        line = " ".join(reason.replace(self._token, "…").split())
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
