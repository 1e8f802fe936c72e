"""Fragments of SQL that panels share: filters by variable, groupings, rates, names of monitors.

Macros are those of Grafana's ClickHouse data source plugin (its documentation,
"ClickHouse query editor", section Macros): ``$__timeFilter(column)``,
``$__timeInterval(column)``, ``$__interval_s``, ``$__fromTime`` and ``$__toTime``.
"""

from __future__ import annotations

from dashboards.panels import Subject, Variable
from schemas.monitor import DIMENSIONS, OTHER, Dimension, Grouping, grouping_name

#: What a variable's "All" becomes: no chosen value can be mistaken for it, for each has a prefix.
ALL = "all"
_PREFIX = "v="


def variable_reference(variable: Variable) -> str:
    """Return the variable as Grafana fills it in: ``v=one&v=two``, or ``all``.

    The format percent-encodes every character that is neither a letter, a digit
    nor one of ``-_.~``. Grafana's ``sqlstring`` and ``singlequote`` will not do:
    neither escapes the backslash, which is an escape character in ClickHouse's
    strings, so that the value ``\\' OR 1 --`` ends the string it stands in.
    """
    return f"${{{variable}:customqueryparam:{_PREFIX[0]}}}"


def chosen(*dimensions: Dimension) -> str:
    """Return a condition that holds for rows with a chosen value in each dimension."""
    return " AND ".join(is_chosen(d, d) for d in dimensions)


def is_chosen(variable: Variable, expression: str) -> str:
    """Return a condition that holds where the expression is a chosen value of the variable."""
    reference = variable_reference(variable)
    values = (
        f"arrayMap(v -> decodeURLComponent(substring(v, {len(_PREFIX) + 1})),"
        f" splitByChar('&', '{reference}'))"
    )
    return f"('{reference}' = '{ALL}' OR has({values}, {expression}))"


def variable_options(variable: Variable) -> str:
    """Return the query for the values that a variable offers: those seen in the last 30 days."""
    if variable is Subject.INCIDENT:
        return "SELECT incident_id FROM incidents ORDER BY opened_at DESC, incident_id LIMIT 1000"
    if isinstance(variable, Subject):
        name = MONITOR_NAME if variable is Subject.MONITOR else "toString(signal)"
        # The one that came closest to its threshold is offered first.
        return (
            f"SELECT {name} AS value FROM verdicts"  # noqa: S608 — constants
            f" WHERE time >= now() - INTERVAL 30 DAY GROUP BY value"
            f" ORDER BY max(log_evidence / log_threshold) DESC, value LIMIT 1000"
        )
    return (
        f"SELECT DISTINCT toString({variable}) FROM rollup_1m"  # noqa: S608 — a constant's name
        f" WHERE minute >= now() - INTERVAL 30 DAY AND {variable} NOT IN ('', '{OTHER}')"
        f" ORDER BY 1 LIMIT 1000"
    )


def rollups(grouping: Grouping, *filters: Dimension) -> str:
    """Return ``FROM`` and ``WHERE`` for one grouping's rollups in the dashboard's time range."""
    conditions = [f"grouping = '{grouping_name(grouping)}'", "$__timeFilter(minute)"]
    return "FROM rollup_1m WHERE " + " AND ".join(
        [*conditions, *(is_chosen(f, f) for f in filters)]
    )


def share(part: str, whole: str) -> str:
    """Return a quotient of sums that is NULL, not NaN, where there is nothing to divide by."""
    return rate_of(f"sum({part})", f"sum({whole})")


def rate_of(part: str, whole: str) -> str:
    """Return a quotient that is NULL, not NaN, where there is nothing to divide by."""
    return f"{part} / nullIf({whole}, 0)"


#: Turns a sum over a bucket of a time series into a rate.
PER_MINUTE = "* 60 / $__interval_s"
PER_HOUR = "* 3600 / $__interval_s"
#: The length of the dashboard's time range.
RANGE_S = "greatest(1, dateDiff('second', $__fromTime, $__toTime))"

#: A monitor in words, as `schemas.monitor.Monitor` puts it: ``request_model=gpt-4o, route=faq``.
MONITOR_NAME = (
    "arrayStringConcat(arrayMap(name -> concat(name, '=', map("
    + ", ".join(f"'{d}', toString({d})" for d in DIMENSIONS)
    + ")[name]), splitByChar(',', toString(grouping))), ', ')"
)
#: An incident's cause in words.
CAUSE_NAME = (
    "if(empty(cause), 'all traffic', arrayStringConcat("
    "arrayMap((k, v) -> concat(k, '=', v), mapKeys(cause), mapValues(cause)), ', '))"
)
