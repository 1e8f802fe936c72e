"""Alert rules, contact point and notification policy: what Grafana itself wakes people for.

Kizashi pages by itself. Grafana's rules are for what it cannot say: that it is blind,
that it falls behind, that its pages do not arrive; and for whoever wants incidents in
Grafana's own alert list. A rule's query gives one number, and fires above its limit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import alerting
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import alerting as models
from msgspec import Struct

from dashboards.build import DATASOURCE_TYPE, DATASOURCE_UID, QUERY_VERSION
from dashboards.rules import RULES, Rule

GROUP = "Kizashi"
FOLDER_UID = "kizashi"
FOLDER_TITLE = "Kizashi"
#: JSON is YAML too; by the other name, whoever provisions dashboards from here passes it over.
ALERTS_FILE = "kizashi-alerts.yaml"
_OF_A_FILE = (
    "annotations",
    "condition",
    "data",
    "execErrState",
    "for",
    "labels",
    "noDataState",
    "title",
    "uid",
)
CONTACT_POINT = "Kizashi"
#: The label by which the policy knows our rules.
LABEL = ("source", "kizashi")
#: How often the rules are looked at.
INTERVAL_S = 60
#: Grafana's own source for what it computes from other queries.
_EXPRESSIONS = "__expr__"
_RANGE_S = 3_600


Json = dict[str, Any]


class Alerts(Struct, frozen=True):
    """What the provisioning API takes, as plain JSON values."""

    rules: tuple[Json, ...]
    policy: Json


def build_alerts() -> Alerts:
    """Return rules and policy; the same every time."""
    rules = tuple(_plain(_build_rule(rule)) for rule in RULES)
    return Alerts(rules, _plain(_build_policy()))


def build_contact_point(integration_key: str) -> Json:
    """Return the contact point, PagerDuty by its integration key."""
    settings = {"integrationKey": integration_key, "severity": "{{ .CommonLabels.severity }}"}
    point = (
        alerting.ContactPoint()
        .uid("kizashi-pagerduty")
        .name(CONTACT_POINT)
        .type("pagerduty")
        .settings(settings)
    )
    return _plain(point.build())


def render_alerts() -> str:
    """Return the rules in the form of Grafana's file provisioning, as JSON with sorted keys."""
    group = {"folder": FOLDER_TITLE, "interval": f"{INTERVAL_S}s", "name": GROUP, "orgId": 1}
    rules = [{k: v for k, v in rule.items() if k in _OF_A_FILE} for rule in build_alerts().rules]
    body = {"apiVersion": 1, "groups": [{**group, "rules": rules}]}
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(body) + "\n"


def write_alerts(directory: Path) -> list[Path]:
    """Write the rules' file into `directory`; returns it when it has changed."""
    file = directory / ALERTS_FILE
    text = render_alerts()
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return []
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return [file]


def _build_rule(rule: Rule) -> models.Rule:
    name, value = LABEL
    return (
        alerting.Rule(rule.title)
        .uid(rule.uid)
        .folder_uid(FOLDER_UID)
        .rule_group(GROUP)
        .org_id(1)
        .condition("B")
        .with_query(_query("A", DATASOURCE_UID, _Sql(rule.sql)))
        .with_query(_query("B", _EXPRESSIONS, _Above(rule.above)))
        .for_val(f"{rule.for_s}s")
        .no_data_state("Alerting" if rule.fires_without_data else "OK")
        .exec_err_state("Error")
        .labels({name: value, "severity": rule.severity})
        .annotations({"summary": rule.summary, "description": rule.remedy})
        .build()
    )


def _build_policy() -> models.NotificationPolicy:
    name, value = LABEL
    return (
        alerting.NotificationPolicy()
        .receiver(CONTACT_POINT)
        .object_matchers([[name, "=", value]])
        .group_by(["alertname"])
        .group_wait("30s")
        .group_interval("5m")
        .repeat_interval("4h")
        .build()
    )


def _query(ref_id: str, source: str, model: Dataquery) -> alerting.Query:
    return (
        alerting.Query(ref_id)
        .datasource_uid(source)
        .query_type("")
        .relative_time_range(models.RelativeTimeRange(from_val=_RANGE_S, to=0))
        .model(_Given(model))
    )


class _Given(Builder[Dataquery]):
    def __init__(self, query: Dataquery) -> None:
        self._query = query

    def build(self) -> Dataquery:
        return self._query


class _Sql(Dataquery):
    """A query of the ClickHouse plugin that gives one number."""

    def __init__(self, sql: str) -> None:
        self._sql = sql.strip()

    def to_json(self) -> dict[str, object]:
        return {
            "datasource": {"type": DATASOURCE_TYPE, "uid": DATASOURCE_UID},
            "editorType": "sql",
            "format": 1,
            "pluginVersion": QUERY_VERSION,
            "queryType": "table",
            "rawSql": self._sql,
            "refId": "A",
        }


class _Above(Dataquery):
    """The condition: query A is above a limit."""

    def __init__(self, limit: float) -> None:
        self._limit = limit

    def to_json(self) -> dict[str, object]:
        return {
            "conditions": [{"evaluator": {"params": [self._limit], "type": "gt"}}],
            "datasource": {"type": _EXPRESSIONS, "uid": _EXPRESSIONS},
            "expression": "A",
            "refId": "B",
            "type": "threshold",
        }


def _plain(built: object) -> Json:
    plain: Json = json.loads(JSONEncoder(sort_keys=True).encode(built))
    return plain
