"""What Grafana does to a panel's SQL before it is run, done here for the built-in page.

Templating (``${name:customqueryparam:v}``) and the macros of the ClickHouse plugin are
those that `dashboards.sql` names. Values arrive percent-encoded, so none can leave the
string it stands in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from msgspec import Struct

from dashboards.sql import ALL

#: A time series has about so many points.
POINTS = 180
_STEPS_S = (60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400)
_VARIABLE = re.compile(r"\$\{(\w+):customqueryparam:(\w*)\}")
_MACRO = re.compile(r"\$__(\w+)(?:\(([\w.]+)\))?")


class Span(Struct, frozen=True):
    """A time range in unix seconds, and the step of its time series."""

    start_s: int
    end_s: int
    step_s: int

    @classmethod
    def ending(cls, end_s: int, length_s: int) -> Span:
        """Return the range of `length_s` up to `end_s`, and what is missing of its first step."""
        wanted = length_s / POINTS
        step = next((s for s in _STEPS_S if s >= wanted), _STEPS_S[-1])
        return cls((end_s - length_s) // step * step, end_s, step)


def fill(sql: str, span: Span, chosen: Mapping[str, Sequence[str]]) -> str:
    """Return the SQL as ClickHouse takes it; a variable that is not in `chosen` stands at "All".

    Raises:
        ValueError: the SQL has a macro that is not known here.
    """
    filled = _VARIABLE.sub(lambda m: _values(m[1], m[2], chosen), sql)
    return _MACRO.sub(lambda m: _macro(m, span), filled)


def _values(name: str, parameter: str, chosen: Mapping[str, Sequence[str]]) -> str:
    if name not in chosen:
        return ALL
    return "&".join(f"{parameter}={quote(value, safe='')}" for value in chosen[name])


def _macro(match: re.Match[str], span: Span) -> str:
    name, column = match.groups()
    start, end = f"toDateTime({span.start_s})", f"toDateTime({span.end_s})"
    match (name, bool(column)):
        case ("fromTime", False):
            return start
        case ("toTime", False):
            return end
        case ("interval_s", False):
            return str(span.step_s)
        case ("timeFilter", True):
            return f"{column} >= {start} AND {column} <= {end}"
        case ("timeInterval", True):
            return f"toStartOfInterval(toDateTime({column}), INTERVAL {span.step_s} second)"
    raise ValueError(f"no such macro: {match[0]}")
