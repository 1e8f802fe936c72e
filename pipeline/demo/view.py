"""The demo's view: one snapshot drawn as text, and the places that it is drawn on.

`render` is pure: a snapshot in, a renderable out. Red in the table says that a
detector has spoken and not yet taken it back; the view has no thresholds for that.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.layout import Layout
from rich.live import Live
from rich.padding import Padding
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pipeline.demo.snapshot import Moment, Query, Slice, Snapshot, take_snapshot
from schemas.incident import Incident, Status
from schemas.signal import Family

QUIET = "grey58"
FAINT = "grey39"
ACCENT = "cyan"
BAD = "bold red"
GOOD = "green"

#: Which columns an incident of a family speaks about.
_COLUMNS_OF: dict[Family, frozenset[str]] = {
    Family.REFUSAL: frozenset({"refused"}),
    Family.ERROR: frozenset({"errors"}),
    Family.LATENCY: frozenset({"p50 s", "p95 s", "ttft95"}),
    Family.TRUNCATION: frozenset(),
}
_BARS = "▁▂▃▄▅▆▇█"
#: The sparkline reaches its top at this rate, or at the highest there is.
_BARS_TOP = 0.2
_COLUMNS = ("req/m", "errors", "refused", "p50 s", "p95 s", "ttft95", "tok/m", "$/h")
_COLUMN_WIDTHS = (11, 6, 8, 9, 7, 6, 7, 6, 6)
_TABLE_WIDTH = sum(_COLUMN_WIDTHS)
_SPARK_MAX = 60
HEADER_LINES = 4


def render(snapshot: Snapshot, width: int) -> RenderableType:
    """Return the snapshot as a full screen, `width` cells wide and as high as it is given room.

    From 80 × 24 cells on everything fits; below, the incidents give way first.
    """
    layout = Layout()
    layout.split_column(
        Layout(_render_header(snapshot.moment, width), size=HEADER_LINES, name="header"),
        Layout(_render_slices(snapshot, width), size=_slices_lines(snapshot), name="slices"),
        Layout(IncidentList(snapshot.moment), name="incidents", minimum_size=2),
    )
    return layout


# --- Header -------------------------------------------------------------------------


def _render_header(moment: Moment, width: int) -> RenderableType:
    title = Table.grid(expand=True)
    title.add_column()
    title.add_column(justify="right")
    title.add_row(
        Text.assemble(
            ("兆し", ACCENT), (" Kizashi", "bold"), ("  an hour of a simulated company", QUIET)
        ),
        Text.assemble(
            (format_clock(moment.now_ms), "bold"), (f" UTC · {_format_speed(moment)}", QUIET)
        ),
    )
    return Padding(
        Group(title, _render_progress(moment, width - 2), _render_accounts(moment)), (0, 1)
    )


def _format_speed(moment: Moment) -> str:
    speed = f"{moment.speed:,.0f}×" if moment.speed >= 10 else f"{moment.speed:.1f}×"
    return f"{speed} · {moment.late_s:.0f} s late" if moment.late_s >= 1 else speed


def _render_progress(moment: Moment, width: int) -> Text:
    share = (moment.now_ms - moment.start_ms) / (moment.end_ms - moment.start_ms)
    done = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("━" * done, ACCENT), ("─" * (width - done), FAINT))


def _render_accounts(moment: Moment) -> Text:
    a = moment.accounts
    line = Text(no_wrap=True, overflow="ellipsis")
    for i, (number, word) in enumerate(
        (
            (a.events, "events"),
            (a.stored, "stored"),
            (a.deadlettered, "dead-lettered"),
            (a.duplicates, "duplicates"),
            (moment.alarms, "alarms"),
        )
    ):
        line.append(("", " = ", " + ", " + ", "  ·  ")[i], FAINT)
        line.append(f"{number:,}", "bold").append(f" {word}", QUIET)
    return line


def format_clock(time_ms: int) -> str:
    """Return the time of day, UTC."""
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).strftime("%H:%M:%S")


# --- Slices -------------------------------------------------------------------------


def _slices_lines(snapshot: Snapshot) -> int:
    dimensions = {s.dimension for s in snapshot.slices} or {"route"}
    # A heading and a blank line for each dimension.
    return len(snapshot.slices) + 2 * len(dimensions)


def _render_slices(snapshot: Snapshot, width: int) -> RenderableType:
    spark_width = max(0, min(width - 2 - _TABLE_WIDTH - 2, _SPARK_MAX))
    # Two tables of the same fixed widths, one under the other.
    tables: list[RenderableType] = []
    for dimension in dict.fromkeys(s.dimension for s in snapshot.slices) or ("route",):
        slices = [s for s in snapshot.slices if s.dimension == dimension]
        tables += [_render_table(dimension, slices, snapshot, spark_width), Text()]
    return Padding(Group(*tables), (0, 1))


def _render_table(
    dimension: str, slices: Sequence[Slice], snapshot: Snapshot, spark_width: int
) -> Table:
    table = Table(box=None, pad_edge=False, padding=0, header_style=QUIET)
    table.add_column(f"{dimension}s", width=_COLUMN_WIDTHS[0], no_wrap=True)
    for name, width in zip(_COLUMNS, _COLUMN_WIDTHS[1:], strict=True):
        table.add_column(name, width=width, justify="right", no_wrap=True)
    table.add_column("", width=2)
    heading = "errors + refusals" if spark_width >= 17 else "unanswered"
    table.add_column(heading if dimension == "route" else "", width=spark_width, no_wrap=True)
    top = max((max(s.unanswered, default=0.0) for s in snapshot.slices), default=0.0)
    for s in slices:
        alarmed = _find_alarmed(s, snapshot.moment.incidents)
        cells = zip(_COLUMNS, _format_cells(s), strict=True)
        table.add_row(
            Text(s.name, BAD if _is_cause(s, snapshot.moment.incidents) else ""),
            *(Text(text, BAD if name in alarmed else "") for name, text in cells),
            "",
            draw_sparkline(s.unanswered, spark_width, max(top, _BARS_TOP)),
        )
    return table


def _is_cause(s: Slice, incidents: Iterable[Incident]) -> bool:
    """An open incident is explained by this route or provider."""
    return any(
        i.status is Status.OPEN and i.cause.labels.get(s.dimension) == s.name for i in incidents
    )


def _find_alarmed(s: Slice, incidents: Iterable[Incident]) -> frozenset[str]:
    """Columns that an alarm speaks about here, until it clears."""
    alarmed: frozenset[str] = frozenset()
    for alarm in (a for i in incidents for a in i.alarms if a.alarm_id not in i.cleared):
        if alarm.monitor.get(s.dimension) == s.name:
            alarmed |= _COLUMNS_OF[alarm.family]
    return alarmed


def _format_cells(s: Slice) -> tuple[str, ...]:
    cost = s.cost_usd_per_hour
    return (
        f"{s.requests_per_min:,.0f}",
        f"{s.error_rate:.1%}",
        f"{s.refusal_rate:.1%}",
        _format_seconds(s.duration_s_p50),
        _format_seconds(s.duration_s_p95),
        _format_seconds(s.first_chunk_s_p95),
        _format_thousands(s.tokens_per_min),
        "–" if cost is None else f"{cost:.2f}" if cost < 10 else f"{cost:,.0f}",
    )


def _format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}"


def _format_thousands(number: float) -> str:
    return f"{number:.0f}" if number < 1000 else f"{number / 1000:,.0f}k"


def draw_sparkline(values: Sequence[float], width: int, top: float) -> Text:
    """Draw the last `width` rates as bars, the newest at the right; `top` is a full bar."""
    line = Text(no_wrap=True)
    shown = values[-width:] if width else ()
    for value in shown:
        level = min(int(value / top * len(_BARS)), len(_BARS) - 1)
        line.append(_BARS[level], FAINT if level == 0 else "yellow" if level < 4 else "red")
    return line


# --- Incidents ----------------------------------------------------------------------


class IncidentList:
    """The incidents, open ones first, as far as there is room: a line each, then what they say."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment
        newest_first = sorted(moment.incidents, key=lambda i: -i.opened_ms)
        self._incidents = sorted(newest_first, key=lambda i: i.status is not Status.OPEN)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.height
        lines = self._lines(console, options.update(height=None), height - 1)
        rule = Rule(self._title(), style=FAINT, align="left")
        yield Padding(rule, (0, 1))
        for line in lines[: height - 1]:
            yield from line
            yield Segment.line()

    def _title(self) -> Text:
        still_open = sum(i.status is Status.OPEN for i in self._incidents)
        if not self._incidents:
            return Text("no incidents", QUIET)
        noun = "incident" if len(self._incidents) == 1 else "incidents"
        return Text.assemble(
            (f"{len(self._incidents)} {noun}", "bold"),
            (
                f", {still_open} open" if still_open else ", all resolved",
                BAD if still_open else GOOD,
            ),
        )

    def _lines(self, console: Console, options: ConsoleOptions, room: int) -> list[list[Segment]]:
        blocks = [
            console.render_lines(
                Padding(self._describe(i), (0, 1)), options, pad=False, new_lines=False
            )
            for i in self._incidents
        ]
        kept = [1] * len(blocks)
        spare = room - len(blocks)
        for index, block in enumerate(blocks):
            more = len(block) - 1
            if more <= spare:
                kept[index] += more
                spare -= more
        lines = [line for block, n in zip(blocks, kept, strict=True) for line in block[:n]]
        if len(lines) > room >= 1:
            more_text = Text(f" … and {len(lines) - room + 1} more", QUIET)
            lines = [*lines[: room - 1], *console.render_lines(more_text, options, pad=False)]
        return lines

    def _describe(self, incident: Incident) -> RenderableType:
        return Group(_render_status(incident, self._moment.now_ms), _indent(headline(incident)))


def headline(incident: Incident) -> str:
    """Return the first sentence of the summary: what, where, since when, how much."""
    first, stop, _ = incident.summary.partition(". ")
    return first + stop.strip()


def describe_labels(incident: Incident) -> str:
    """Return the cause as words, e.g. ``prompt_name=search, prompt_version=v7``."""
    labels = incident.cause.labels
    return ", ".join(f"{name}={value}" for name, value in labels.items()) or "all traffic"


def _render_status(incident: Incident, now_ms: int) -> Text:
    is_open = incident.status is Status.OPEN
    opened = format_clock(incident.opened_ms)
    if is_open:
        times = f"{opened}, {max(0, now_ms - incident.opened_ms) // 60_000} min"
    else:
        times = f"{opened} – {format_clock(incident.resolved_ms or incident.updated_ms)}"
    style = BAD if is_open else GOOD
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("● " if is_open else "✓ ", style).append(f"{incident.family.value:<9}", style)
    return line.append(f"{times}  ", QUIET).append(describe_labels(incident), "bold")


def _indent(text: str) -> Padding:
    return Padding(Text(text, QUIET), (0, 0, 0, 2))


# --- Where it is drawn --------------------------------------------------------------


class View(Protocol):
    """Follows a running demo; a context manager around the run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    def update(self, moment: Moment, query: Query) -> None:
        """Show where the demo stands; called after every batch."""
        ...

    def announce(self, incident: Incident) -> None:
        """A new version of an incident."""
        ...


class LiveView:
    """Draws over the whole terminal, and gives it back when it is closed."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, screen=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, moment: Moment, query: Query) -> None:
        snapshot = take_snapshot(moment, query)
        self._live.update(render(snapshot, self._live.console.width), refresh=True)

    def announce(self, incident: Incident) -> None:
        """The next update shows it."""


class LogView:
    """A line now and then, and one when an incident opens or is resolved: for pipes and logs."""

    EVERY_MS = 600_000

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_ms: int | None = None
        self._told: dict[str, Status] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def update(self, moment: Moment, query: Query) -> None:
        if self._next_ms is None:
            self._next_ms = moment.start_ms + self.EVERY_MS
        if moment.now_ms >= self._next_ms:
            self._next_ms += self.EVERY_MS
            self._print(format_clock(moment.now_ms), _render_accounts(moment).plain)

    def announce(self, incident: Incident) -> None:
        if self._told.get(incident.incident_id) is incident.status:
            return
        self._told[incident.incident_id] = incident.status
        if incident.status is Status.OPEN:
            self._print(format_clock(incident.opened_ms), f"opened    {headline(incident)}")
        else:
            when = format_clock(incident.resolved_ms or incident.updated_ms)
            self._print(when, f"resolved  {incident.family.value} {describe_labels(incident)}")

    def _print(self, clock: str, text: str) -> None:
        self._console.print(f"{clock}  {text}", highlight=False, markup=False, soft_wrap=True)


class WatchedView:
    """Another view, and where the demo stands, for the page. Read from other threads."""

    def __init__(self, view: View, start_ms: int) -> None:
        self._view = view
        self._moment: Moment | None = None
        self._start_ms = start_ms

    def __enter__(self) -> Self:
        self._view.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._view.__exit__(kind, error, trace)

    def update(self, moment: Moment, query: Query) -> None:
        self._moment = moment
        self._view.update(moment, query)

    def announce(self, incident: Incident) -> None:
        self._view.announce(incident)

    def now_s(self) -> float:
        """Where the demo stands in its own time, in unix seconds."""
        moment = self._moment
        return (moment.now_ms if moment else self._start_ms) / 1000

    def about(self) -> dict[str, object]:
        """What the page says of the demo."""
        moment = self._moment
        if moment is None:
            return {"demo": {"share": 0.0, "speed": 0.0}}
        share = (moment.now_ms - moment.start_ms) / (moment.end_ms - moment.start_ms)
        return {"demo": {"share": min(1.0, share), "speed": moment.speed}}


def choose_view(stdout: Console, stderr: Console, *, as_json: bool) -> View:
    """Return the live view for a terminal, and lines on stderr for everything else."""
    return LiveView(stdout) if stdout.is_terminal and not as_json else LogView(stderr)
