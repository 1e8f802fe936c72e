"""What a panel and a dashboard are, before anything of Grafana's is known."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from msgspec import Struct

from schemas.monitor import Dimension


class Kind(StrEnum):
    """How a panel shows its rows."""

    STAT = "stat"
    #: Columns: ``time``, then values; a text column tells series apart. Ordered by time.
    TIME_SERIES = "timeseries"
    TABLE = "table"
    #: Columns: one text, then values.
    BAR = "barchart"


class Unit(StrEnum):
    """Grafana's ids of units."""

    NONE = "none"
    COUNT = "short"
    PER_MINUTE = "cpm"
    #: 0.05 is shown as 5 %.
    SHARE = "percentunit"
    MILLISECONDS = "ms"
    SECONDS = "s"
    USD = "currencyUSD"
    TIME = "dateTimeAsIso"


class Subject(StrEnum):
    """What a board of one thing is about: a variable with one value, from what we stored."""

    #: As `dashboards.sql.MONITOR_NAME` puts it.
    MONITOR = "monitor"
    SIGNAL = "signal"
    #: By its id.
    INCIDENT = "incident"


Variable: TypeAlias = Dimension | Subject


class Colour(StrEnum):
    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


class Threshold(Struct, frozen=True):
    """From this value on, this colour; below the first it is green."""

    value: float
    colour: Colour


class Column(Struct, frozen=True):
    """How one column of a table is shown."""

    name: str
    unit: Unit = Unit.NONE
    #: Dimensions of the row that a click takes along to the table of requests.
    leads_to: tuple[Dimension, ...] = ()
    #: The board of one thing that a click opens, on the row's own: see `OPENED_BY`.
    opens: str = ""


#: Board that a column may open → the columns whose values it is about.
OPENED_BY: dict[str, dict[Subject, str]] = {
    "incident": {Subject.INCIDENT: "incident_id"},
    "monitor": {Subject.MONITOR: "monitor", Subject.SIGNAL: "signal"},
}


class Panel(Struct, frozen=True, kw_only=True):
    """One query and how it is shown. `width` is of 24 columns, `height` of 30 pixels or so."""

    title: str
    description: str
    sql: str
    kind: Kind
    unit: Unit = Unit.NONE
    thresholds: tuple[Threshold, ...] = ()
    columns: tuple[Column, ...] = ()
    stacked: bool = False
    #: Two columns of a time series that are the borders of a band.
    band: tuple[str, str] | None = None
    #: Columns of a time series that others are held against.
    dashed: tuple[str, ...] = ()
    width: int = 12
    height: int = 8


def stat(
    title: str, description: str, sql: str, unit: Unit, *thresholds: Threshold, width: int = 6
) -> Panel:
    """Return a panel of one number, as they stand side by side at the head of a board."""
    return Panel(
        title=title,
        description=description,
        sql=sql,
        kind=Kind.STAT,
        unit=unit,
        thresholds=thresholds,
        width=width,
        height=4,
    )


class Row(Struct, frozen=True):
    title: str
    panels: tuple[Panel, ...]


#: Where an incident is shown as a region; one that is open reaches to the end of the range.
INCIDENTS_SQL = """
SELECT changed_at AS time,
       ifNull(resolved_at, toDateTime64($__toTime, 3)) AS timeEnd,
       concat('Incident: ', family, ' (', severity, ')') AS title,
       summary AS text,
       concat('kizashi,', family, ',', severity) AS tags
FROM incidents
WHERE changed_at <= $__toTime AND (resolved_at IS NULL OR resolved_at >= $__fromTime)
ORDER BY time
LIMIT 500"""


class Board(Struct, frozen=True, kw_only=True):
    """One dashboard. Every panel of it that can be filtered is filtered by all its `variables`."""

    #: Part of the dashboard's address, so it never changes.
    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()
    #: Query for what is marked in its time series: time, timeEnd, title, text, tags.
    marks: str = INCIDENTS_SQL
    #: Time range it opens with, back from now.
    span: str = "6h"

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)
