"""Fragments of SQL that panels share: filters by variable, groupings, rates, names of monitors.

Macros are those of Grafana's ClickHouse data source plugin (its documentation,
"ClickHouse query editor", section Macros): ``$__timeFilter(column)``,
``$__timeInterval(column)``, ``$__interval_s``, ``$__fromTime`` and ``$__toTime``.
"""

from __future__ import annotations

from schemas.monitor import DIMENSIONS, OTHER, Dimension, Grouping, grouping_name

#: What a variable's "All" becomes: no chosen value can be mistaken for it, for each has a prefix.
ALL = "all"
_PREFIX = "v="


def variable_reference(dimension: Dimension) -> str:
    """Return the variable as Grafana fills it in: ``v=one&v=two``, or ``all``.

    The format percent-encodes every character that is neither a letter, a digit
    nor one of ``-_.~``. Grafana's ``sqlstring`` and ``singlequote`` will not do:
    neither escapes the backslash, which is an escape character in ClickHouse's
    strings, so that the value ``\\' OR 1 --`` ends the string it stands in.
    """
    return f"${{{dimension}:customqueryparam:{_PREFIX[0]}}}"


def chosen(*dimensions: Dimension) -> str:
    """Return a condition that holds for rows with a chosen value in each dimension."""
    return " AND ".join(_is_chosen(d) for d in dimensions)


def _is_chosen(dimension: Dimension) -> str:
    reference = variable_reference(dimension)
    values = (
        f"arrayMap(v -> decodeURLComponent(substring(v, {len(_PREFIX) + 1})),"
        f" splitByChar('&', '{reference}'))"
    )
    return f"('{reference}' = '{ALL}' OR has({values}, {dimension}))"


def variable_options(dimension: Dimension) -> str:
    """Return the query for the values that a variable offers: those seen in the last 30 days."""
    return (
        f"SELECT DISTINCT toString({dimension}) FROM rollup_1m"  # noqa: S608 — a constant's name
        f" WHERE minute >= now() - INTERVAL 30 DAY AND {dimension} NOT IN ('', '{OTHER}')"
        f" ORDER BY 1 LIMIT 1000"
    )


def rollups(grouping: Grouping, *filters: Dimension) -> str:
    """Return ``FROM`` and ``WHERE`` for one grouping's rollups in the dashboard's time range."""
    conditions = [f"grouping = '{grouping_name(grouping)}'", "$__timeFilter(minute)"]
    return "FROM rollup_1m WHERE " + " AND ".join([*conditions, *map(_is_chosen, filters)])


def share(part: str, whole: str) -> str:
    """Return a quotient of sums that is NULL, not NaN, where there is nothing to divide by."""
    return f"sum({part}) / nullIf(sum({whole}), 0)"


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
