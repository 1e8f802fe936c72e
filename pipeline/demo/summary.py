"""The end of the demo: what was found and how soon, the books, and what to ask next."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from pipeline.demo.run import DemoResult
from pipeline.demo.score import Detection, find_unscripted
from pipeline.demo.view import ACCENT, BAD, FAINT, GOOD, QUIET, format_clock, headline
from schemas.incident import Incident


class Question(Struct, frozen=True):
    """Something to ask with ``kizashi sql``."""

    text: str
    sql: str


QUESTIONS = (
    Question(
        "Which prompt version refuses, and who felt it?",
        "SELECT prompt_version, tenant, count() AS requests,"
        " round(100 * avg(refused), 1) AS refused_pct"
        " FROM requests WHERE route = 'support'"
        " GROUP BY prompt_version, tenant ORDER BY refused_pct DESC LIMIT 8",
    ),
    Question(
        "Did users notice the template that declines?",
        "SELECT route, prompt_version, count() AS ratings,"
        " round(100 * avg(negative), 1) AS thumbs_down_pct"
        " FROM feedback_by_request GROUP BY route, prompt_version"
        " HAVING ratings >= 20 ORDER BY thumbs_down_pct DESC LIMIT 8",
    ),
    Question(
        "What did each minute of the provider's outage look like?",
        "SELECT minute, sum(requests) AS requests, sum(errors) AS errors,"
        " round(histogramQuantile(sumMap(duration_ms), 0.95)) AS p95_ms"
        " FROM rollup_1m WHERE grouping = 'provider,region' AND provider = 'openai'"
        " GROUP BY minute ORDER BY errors DESC LIMIT 10",
    ),
    Question(
        "What was paged, and for how long was it open?",
        "SELECT severity, family, opened_at,"
        " dateDiff('second', opened_at, resolved_at) AS open_s, summary"
        " FROM incidents ORDER BY opened_at",
    ),
)


_DETECTION_COLUMNS = ("  scripted", "began", "found after", "resolved")
#: 78 cells with what is between them.
_DETECTION_WIDTHS = (33, 8, 21, 10)

# --- For people ---------------------------------------------------------------------


def render_summary(result: DemoResult) -> RenderableType:
    """Return the summary for a terminal of any width."""
    return Group(
        Text(),
        Rule(Text.assemble(("兆し", ACCENT), (" Kizashi", "bold")), style=FAINT, align="left"),
        Padding(_render_outcome(result), (0, 1)),
        *_render_detections(result),
        *_render_unscripted(result),
        Padding(_render_accounts(result), (0, 1, 1, 1)),
        *_render_questions(),
    )


def _render_outcome(result: DemoResult) -> Text:
    found = sum(d.incident is not None for d in result.detections)
    besides = len(find_unscripted(result.detections, result.incidents))
    everything = found == len(result.detections)
    return Text.assemble(
        "One hour in ",
        (f"{result.seconds:.0f} s", "bold"),
        ". ",
        (f"{found} of {len(result.detections)}", GOOD if everything else BAD),
        " scripted incidents were found, and ",
        (f"{besides or 'nothing'}", GOOD if not besides else BAD),
        " besides.",
    )


def _render_detections(result: DemoResult) -> list[RenderableType]:
    heading = _make_line(Text(name, QUIET) for name in _DETECTION_COLUMNS)
    blocks: list[RenderableType] = [Padding(heading, (1, 1, 0, 1))]
    for detection in result.detections:
        explanation = Padding(_render_explanation(detection.incident), (0, 0, 1, 2))
        line = _make_line(_detection_cells(detection))
        blocks.append(Padding(Group(line, explanation), (0, 1)))
    return blocks


def _make_line(cells: Iterable[Text]) -> Table:
    line = Table.grid(padding=(0, 2, 0, 0))
    for width in _DETECTION_WIDTHS:
        line.add_column(width=width, no_wrap=True)
    line.add_row(*cells)
    return line


def _detection_cells(detection: Detection) -> tuple[Text, ...]:
    incident, delay_s = detection.incident, detection.delay_s
    mark = ("✗ ", BAD) if incident is None else ("✓ ", GOOD)
    name = Text.assemble(mark, (detection.scripted.name, "bold"))
    began = Text(format_clock(detection.scripted.started_ms))
    if incident is None or delay_s is None:
        return name, began, Text("not found", BAD), Text()
    after = Text.assemble((f"{delay_s:.0f} s", f"bold {GOOD}"))
    if detection.events is not None:
        after.append(f", {detection.events:,} requests")
    resolved = incident.resolved_ms
    ending = Text("still open", BAD) if resolved is None else Text(format_clock(resolved))
    return name, began, after, ending


def _render_explanation(incident: Incident | None) -> Text:
    if incident is None:
        return Text("nothing was said", QUIET)
    text = Text(headline(incident), QUIET)
    return text.append(f"\n→ {incident.suggestion}", ACCENT) if incident.suggestion else text


def _render_unscripted(result: DemoResult) -> list[RenderableType]:
    besides = find_unscripted(result.detections, result.incidents)
    if not besides:
        return []
    lines = Text("Besides these:", QUIET)
    for incident in besides:
        lines.append(f"\n{format_clock(incident.opened_ms)}  {headline(incident)}", "default")
    return [Padding(lines, (0, 1))]


def _render_accounts(result: DemoResult) -> Text:
    a = result.accounts
    return Text.assemble(
        (f"{a.events:,}", "bold"),
        (" events = ", QUIET),
        (f"{a.stored:,}", "bold"),
        (" stored + ", QUIET),
        (f"{a.deadlettered:,}", "bold"),
        (" dead-lettered + ", QUIET),
        (f"{a.duplicates:,}", "bold"),
        (" duplicates", QUIET),
    )


def _render_questions() -> list[RenderableType]:
    blocks: list[RenderableType] = [Padding(Text("Ask for yourself:", "bold"), (0, 1))]
    for question in QUESTIONS:
        command = Syntax(
            f'kizashi sql "{question.sql}"',
            "bash",
            theme="ansi_dark",
            background_color="default",
            word_wrap=True,
        )
        blocks += [
            Padding(Text(f"# {question.text}", QUIET), (1, 1, 0, 1)),
            Padding(command, (0, 1)),
        ]
    return [*blocks, Text()]


# --- For programs -------------------------------------------------------------------


def summarise_as_json(result: DemoResult) -> str:
    """Return the result as one line of JSON.

    ``incidents`` are those that the pipeline opened: ``monitor`` is what
    crossed its threshold first, ``cause`` what explains it; ``ratings`` are those that
    found their request. Times are RFC 3339.
    """
    return msgspec.json.encode(
        {
            **msgspec.structs.asdict(result.accounts),
            "ratings": result.ratings,
            "incidents": [_incident_facts(i) for i in result.incidents],
            "scripted_incidents": [_scripted_facts(d) for d in result.detections],
            "seconds": round(result.seconds, 3),
        }
    ).decode()


def _incident_facts(incident: Incident) -> dict[str, Any]:
    resolved = incident.resolved_ms
    return {
        "incident_id": incident.incident_id,
        "opened_at": _format_time(incident.opened_ms),
        "resolved_at": None if resolved is None else _format_time(resolved),
        "changed_at": _format_time(incident.change_time_ms),
        "status": incident.status,
        "severity": incident.severity,
        "family": incident.family,
        "monitor": incident.alarms[0].monitor,
        "cause": incident.cause.labels,
        "summary": incident.summary,
        "suggestion": incident.suggestion,
    }


def _scripted_facts(detection: Detection) -> dict[str, Any]:
    played = detection.scripted
    return {
        "name": played.name,
        "family": played.family,
        "started_at": _format_time(played.started_ms),
        "ended_at": _format_time(played.ended_ms),
        "where": played.where,
        "incident_id": None if detection.incident is None else detection.incident.incident_id,
        "detected_after_s": detection.delay_s,
        "detected_after_events": detection.events,
    }


def _format_time(time_ms: int) -> str:
    time = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
