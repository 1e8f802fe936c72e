"""What is alerted on, before anything of Grafana's is known: a query, a limit, and what to do."""

from __future__ import annotations

from msgspec import Struct


class Rule(Struct, frozen=True, kw_only=True):
    """Fires when the query's one number has been above `above` for `for_s` seconds."""

    #: Never changes, or the rule's history is lost.
    uid: str
    title: str
    sql: str
    above: float
    for_s: int
    severity: str
    summary: str
    remedy: str
    #: No row is as bad as too high a number.
    fires_without_data: bool = False


#: How many objectives ask for something now; a worker that is away asks for nothing.
URGENCY_SQL = (
    "SELECT count() AS objectives FROM ("
    "SELECT objective, argMax(urgency, time) AS urgency FROM objective_standings"
    " WHERE time >= now() - INTERVAL 5 MINUTE GROUP BY objective) WHERE 1"
)

RULES = (
    Rule(
        uid="kizashi-open-incidents",
        title="Kizashi: incidents are open",
        sql="SELECT count() AS open FROM incidents"
        " WHERE status != 'resolved' AND severity IN ('critical', 'error', 'warning')"
        " AND family != 'pipeline'",
        above=0,
        for_s=0,
        severity="error",
        summary="The quality of the gateway's answers has changed.",
        remedy="The dashboard Kizashi: Incidents says what, where, since when and what to try.",
    ),
    Rule(
        uid="kizashi-own-incidents",
        title="Kizashi: something ails Kizashi itself",
        sql="SELECT count() AS open FROM incidents WHERE status != 'resolved'"
        " AND family = 'pipeline'",
        above=0,
        for_s=0,
        severity="critical",
        summary="Kizashi is blind, behind, without input, or its books do not balance.",
        remedy="`kizashi incident list` says which; `kizashi doctor` what is away.",
    ),
    Rule(
        uid="kizashi-budget-page",
        title="Kizashi: an error budget burns fast",
        sql=f"{URGENCY_SQL} AND urgency = 'page'",
        above=0,
        for_s=0,
        severity="critical",
        summary="At this rate the error budget of an objective is gone within days.",
        remedy="`kizashi slo` says which; the dashboard Kizashi: Objectives shows how fast.",
    ),
    Rule(
        uid="kizashi-budget-ticket",
        title="Kizashi: an error budget will not last",
        sql=f"{URGENCY_SQL} AND urgency = 'ticket'",
        above=0,
        for_s=0,
        severity="warning",
        summary="An objective has spent its budget faster than allowed for three days.",
        remedy="`kizashi slo` says which; the dashboard Kizashi: Objectives shows how fast.",
    ),
    Rule(
        uid="kizashi-blind",
        title="Kizashi: no events arrive",
        sql="SELECT dateDiff('second', max(record_time), now64(3)) AS age_s FROM rollup_1m"
        " WHERE minute >= now() - INTERVAL 2 DAY HAVING count() > 0",
        above=600,
        for_s=120,
        severity="critical",
        fires_without_data=True,
        summary="Nothing has been stored for ten minutes: nothing is watched.",
        remedy="`kizashi doctor` says whether Kafka, ClickHouse or the workers are away.",
    ),
    Rule(
        uid="kizashi-notifications-stuck",
        title="Kizashi: pages are not delivered",
        sql="SELECT count() AS stuck FROM notifications FINAL WHERE failure != '' OR (sent_at"
        " IS NULL AND fromUnixTimestamp64Milli(JSONExtractInt(notification, 'incident',"
        " 'updated_ms')) < now64(3) - INTERVAL 10 MINUTE)",
        above=0,
        for_s=60,
        severity="critical",
        summary="A destination refuses notifications or has not taken them for ten minutes.",
        remedy="The dashboard Kizashi: Pipeline health lists them with the reason.",
    ),
    Rule(
        uid="kizashi-deadletters",
        title="Kizashi: records are refused",
        sql="SELECT count() AS letters FROM deadletters FINAL"
        " WHERE record_time >= now() - INTERVAL 10 MINUTE",
        above=1_000,
        for_s=300,
        severity="warning",
        summary="More than a thousand records in ten minutes were no events.",
        remedy="The dashboard Kizashi: Pipeline health shows the reasons; the bytes are on the"
        " dead-letter topic.",
    ),
    Rule(
        uid="kizashi-books",
        title="Kizashi: the books do not balance",
        sql="SELECT sum(differing) AS differing FROM reconciliations FINAL"
        " WHERE checked_at >= now() - INTERVAL 2 HOUR",
        above=0,
        for_s=60,
        severity="error",
        summary="Rollups of closed minutes are not what the stored requests add up to.",
        remedy="`kizashi reconcile` names the minutes and the sums.",
    ),
    Rule(
        uid="kizashi-snapshots-old",
        title="Kizashi: the detectors stand still",
        sql="SELECT max(age) AS age_s FROM (SELECT dateDiff('second', max(written_at), now64(3))"
        " AS age FROM detector_snapshots GROUP BY topic, partition)",
        above=1_800,
        for_s=300,
        severity="error",
        summary="A partition's detectors have saved nothing for half an hour.",
        remedy="A worker may be stuck or missing: see its log and `kizashi doctor`.",
    ),
)
