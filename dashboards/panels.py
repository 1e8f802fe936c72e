"""What a panel and a dashboard are, before anything of Grafana's is known."""

from __future__ import annotations

from enum import StrEnum

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
    width: int = 12
    height: int = 8


class Row(Struct, frozen=True):
    title: str
    panels: tuple[Panel, ...]


class Board(Struct, frozen=True, kw_only=True):
    """One dashboard. Every panel of it that can be filtered is filtered by all its `variables`."""

    #: Part of the dashboard's address, so it never changes.
    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Dimension, ...] = ()
    #: Time range it opens with, back from now.
    span: str = "6h"

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)
