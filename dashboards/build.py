"""From panels to the JSON that Grafana's ClickHouse data source plugin shows.

The same boards always give the same bytes: keys are sorted, and a panel's id
follows from its title, so that adding one changes no other.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import barchart, common, dashboard, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from dashboards.boards import BOARDS
from dashboards.panels import (
    INCIDENTS_SQL,
    OPENED_BY,
    Board,
    Colour,
    Column,
    Kind,
    Panel,
    Row,
    Subject,
    Threshold,
    Unit,
    Variable,
)
from dashboards.sql import ALL, variable_options
from schemas.monitor import Dimension

T = TypeVar("T", covariant=True)
AnyPanel: TypeAlias = barchart.Panel | stat.Panel | table.Panel | timeseries.Panel

GENERATED = Path(__file__).parent / "generated"
DATASOURCE_TYPE = "grafana-clickhouse-datasource"
DATASOURCE_UID = "kizashi"
TAG = "kizashi"
#: The form of the plugin's queries. It changes those that it takes for older than version 4.
QUERY_VERSION = "4.0.0"
#: Rollups are of a minute each: a finer step would show one minute as a spike among gaps.
SMALLEST_STEP = "1m"
REQUESTS_URL = "/d/kizashi-requests/?${__url_time_range}"
#: Grafana makes a range of a moment and a width in milliseconds.
POINT_URL = "/d/kizashi-requests/?time=${__value.time}&time.window=300000&${__all_variables}"

_TIME_SERIES_FORMAT = 0
_TABLE_FORMAT = 1


def build_all() -> dict[str, str]:
    """Return the JSON of every dashboard by the name of its file."""
    return {f"{board.uid}.json": render(build(board)) for board in BOARDS}


def write_all(directory: Path = GENERATED) -> list[Path]:
    """Write every dashboard and remove those that are no more; returns the files that changed."""
    directory.mkdir(parents=True, exist_ok=True)
    changed = []
    wanted = {directory / name: text for name, text in build_all().items()}
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    for path in sorted(set(directory.glob("*.json")) - set(wanted)):
        path.unlink()
        changed.append(path)
    return changed


def render(built: models.Dashboard) -> str:
    """Return the dashboard as JSON with sorted keys."""
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(built) + "\n"


def build(board: Board) -> models.Dashboard:
    """Return the dashboard in the SDK's types."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .time(f"now-{board.span}", "now")
        .refresh("1m")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .annotation(_Built(_marks(board)))
        .link(_Built(_navigation()))
    )
    for variable in board.variables:
        builder = builder.with_variable(_variable(variable))
    for row in board.rows:
        builder = builder.with_row(_row(board, row))
        for panel in row.panels:
            builder = builder.with_panel(build_panel(board, panel))
    return builder.build()


def build_panel(board: Board, panel: Panel) -> AnyPanel:
    """Return the panel in the SDK's types, as yet without a place."""
    builder = (
        _SHAPES[panel.kind](panel)
        .id(panel_id(board.uid, panel.title))
        .title(panel.title)
        .description(panel.description)
        .datasource(_datasource())
        .with_target(_Built(_Query(panel.sql, panel.kind)))
        .span(panel.width)
        .height(panel.height)
        .unit(panel.unit)
        .no_value("–")
        .thresholds(_thresholds(panel.thresholds))
    )
    if not any(isinstance(v, Dimension) for v in board.variables) or panel.kind is Kind.TABLE:
        return builder
    if panel.kind is Kind.TIME_SERIES:
        # A click on a point: the requests of the minutes around it.
        builder = builder.data_links([_Built(_link_to_point())])
    return builder.links([_Built(_link_to_requests())])


def panel_id(board_uid: str, title: str) -> int:
    """Return a positive 31-bit number; titles are unique within a board."""
    return zlib.crc32(f"{board_uid}/{title}".encode()) >> 1 or 1


# --- Kinds of panels -------------------------------------------------------------------------


def _stat(panel: Panel) -> stat.Panel:
    coloured = common_models.BigValueColorMode.VALUE if panel.thresholds else None
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .color_mode(coloured or common_models.BigValueColorMode.NONE)
    )


def _time_series(panel: Panel) -> timeseries.Panel:
    mode = common_models.StackingMode.NORMAL if panel.stacked else common_models.StackingMode.NONE
    style = "line" if panel.thresholds else "off"
    builder = (
        timeseries.Panel()
        .interval(SMALLEST_STEP)
        .stacking(common.StackingConfig().mode(mode))
        .fill_opacity(30 if panel.stacked else 0)
        .axis_soft_min(0)
        .thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode(style))
        )
        .override_by_regexp(_dashed(panel), _DASHED)
    )
    return _with_band(builder, panel.band) if panel.band else builder


_DASHED = [
    models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
    models.DynamicConfigValue("custom.lineInterpolation", "stepAfter"),
]


def _dashed(panel: Panel) -> str:
    return f"/^({'|'.join(panel.dashed)})$/" if panel.dashed else "/ · baseline$/"


def _with_band(builder: timeseries.Panel, band: tuple[str, str]) -> timeseries.Panel:
    low, high = band
    border = models.DynamicConfigValue("custom.lineWidth", 0)
    filling = [
        border,
        models.DynamicConfigValue("custom.fillBelowTo", low),
        models.DynamicConfigValue("custom.fillOpacity", 15),
    ]
    return builder.override_by_name(low, [border]).override_by_name(high, filling)


def _table(panel: Panel) -> table.Panel:
    builder = table.Panel().filterable(True)
    for column in panel.columns:
        builder = builder.override_by_name(column.name, _column_properties(column))
    return builder


def _bar(panel: Panel) -> barchart.Panel:
    return barchart.Panel().orientation(common_models.VizOrientation.HORIZONTAL).fill_opacity(80)


_SHAPES: Mapping[Kind, Callable[[Panel], AnyPanel]] = {
    Kind.STAT: _stat,
    Kind.TIME_SERIES: _time_series,
    Kind.TABLE: _table,
    Kind.BAR: _bar,
}


def _column_properties(column: Column) -> list[models.DynamicConfigValue]:
    properties = []
    if column.unit is not Unit.NONE:
        properties.append(models.DynamicConfigValue("unit", column.unit))
    if column.leads_to:
        # The values come from events, so they are encoded before they stand in an address.
        chosen = "".join(f"&var-{d}=${{__data.fields.{d}:percentencode}}" for d in column.leads_to)
        link = {"title": "Show these requests", "url": REQUESTS_URL + chosen}
        properties.append(models.DynamicConfigValue("links", [link]))
    if column.opens:
        url = f"/d/kizashi-{column.opens}/?${{__url_time_range}}" + "".join(
            f"&var-{s}=${{__data.fields.{field}:percentencode}}"
            for s, field in OPENED_BY[column.opens].items()
        )
        link = {"title": f"Show the {column.opens}", "url": url}
        properties.append(models.DynamicConfigValue("links", [link]))
    return properties


def _thresholds(thresholds: tuple[Threshold, ...]) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(None, Colour.GREEN)]
    steps += [models.Threshold(t.value, t.colour) for t in thresholds]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


# --- What surrounds the panels ---------------------------------------------------------------


def _row(board: Board, row: Row) -> dashboard.Row:
    return dashboard.Row(row.title).id(panel_id(board.uid, f"row/{row.title}"))


def _variable(variable: Variable) -> dashboard.QueryVariable:
    builder = (
        dashboard.QueryVariable(variable)
        .label(variable.replace("_", " ").capitalize())
        .datasource(_datasource())
        .query(variable_options(variable))
        .refresh(models.VariableRefresh.ON_DASHBOARD_LOAD)
    )
    if isinstance(variable, Subject):
        # A board of one thing: the first that is offered, until another is chosen.
        return builder
    return (
        builder.multi(True)
        .include_all(True)
        .all_value(ALL)
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _marks(board: Board) -> models.AnnotationQuery:
    return models.AnnotationQuery(
        name="Incidents" if board.marks == INCIDENTS_SQL else "Changes",
        datasource=_datasource(),
        enable=True,
        icon_color="red",
        target=_AnnotationTarget(board.marks),
    )


def _navigation() -> models.DashboardLink:
    return models.DashboardLink(
        title="Kizashi",
        type_val=models.DashboardLinkType.DASHBOARDS,
        tags=[TAG],
        include_vars=True,
        keep_time=True,
    )


def _link_to_requests() -> models.DashboardLink:
    return models.DashboardLink(
        title="Show the requests", url=f"{REQUESTS_URL}&${{__all_variables}}"
    )


def _link_to_point() -> models.DashboardLink:
    return models.DashboardLink(title="Show these requests", url=POINT_URL)


def _datasource() -> models.DataSourceRef:
    return models.DataSourceRef(type_val=DATASOURCE_TYPE, uid=DATASOURCE_UID)


# --- What the SDK has no types for -----------------------------------------------------------


class _Built(Builder[T], Generic[T]):
    """Something that needs no building, where the SDK asks for a builder."""

    def __init__(self, built: T) -> None:
        self._built = built

    def build(self) -> T:
        return self._built


class _Query(Dataquery):
    """A query of the ClickHouse plugin (its type ``CHSqlQuery``)."""

    def __init__(self, sql: str, kind: Kind) -> None:
        self._sql = sql.strip()
        self._is_series = kind is Kind.TIME_SERIES

    def to_json(self) -> dict[str, object]:
        return {
            "datasource": _datasource(),
            "editorType": "sql",
            "format": _TIME_SERIES_FORMAT if self._is_series else _TABLE_FORMAT,
            "pluginVersion": QUERY_VERSION,
            "queryType": "timeseries" if self._is_series else "table",
            "rawSql": self._sql,
            "refId": "A",
        }


class _AnnotationTarget(models.AnnotationTarget):
    """The SDK knows annotations of Grafana's own store only; other sources take a query."""

    def __init__(self, sql: str) -> None:
        super().__init__()
        self._sql = sql

    def to_json(self) -> dict[str, object]:
        return {**_Query(self._sql, Kind.TABLE).to_json(), "refId": "Marks"}
