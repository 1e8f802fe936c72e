"""From runs to medians, ratios and marks; to a table, and into the documentation. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.wire.table import AGGREGATE, ENCODE, READ, WHOLE

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
#: Key of the summary → job and rival: ours over theirs.
RATIOS = {
    "read_vs_stock_faust": (READ, "faust"),
    "read_vs_quix": (READ, "quix"),
    "read_vs_bytewax": (READ, "bytewax"),
    "read_vs_aiokafka": (READ, "aiokafka"),
    "read_vs_confluent": (READ, "confluent"),
    "encode_vs_model2vec": (ENCODE, "model2vec"),
    "encode_vs_static": (ENCODE, "static"),
    "encode_vs_minilm": (ENCODE, "minilm"),
    "whole_vs_quix_minilm": (WHOLE, "quix_minilm"),
    "whole_vs_quix_model2vec": (WHOLE, "quix_model2vec"),
}
#: What the table says of each job.
TITLES = {
    READ: "read and decode, events/s",
    AGGREGATE: "read, aggregate and store, events/s",
    ENCODE: "encode 1,100-character texts on one core, texts/s",
    WHOLE: "the whole job, events/s",
}


@dataclass(frozen=True)
class Line:
    """One program in the table. Rates are medians over the rounds."""

    job: str
    name: str
    label: str
    per_s: float
    lowest_per_s: float
    highest_per_s: float
    #: Processor time for an event (or text), in microseconds, all threads.
    cpu_us: float
    #: Ours over this one, 1 for ours; NaN where there is nothing to compare with.
    ratio: float


def lines_of(runs: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Return a line for every program that has a result, in the order of its first run."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["job"] in TITLES and run["result"]:
            grouped.setdefault((run["job"], run["name"]), []).append(run["result"])
    labels = {(run["job"], run["name"]): run["label"] for run in runs}
    middle = {key: median(map(rate, results)) for key, results in grouped.items()}
    ours = {job: middle[job, name] for job, name in grouped if name == "ours"}
    if not all(result.get("embeds") for result in grouped.get((WHOLE, "ours"), ())):
        # A worker without an encoder does not do the whole job: there is nothing to compare.
        ours.pop(WHOLE, None)
    return [
        Line(
            job=job,
            name=name,
            label=labels[job, name],
            per_s=middle[job, name],
            lowest_per_s=min(map(rate, results)),
            highest_per_s=max(map(rate, results)),
            cpu_us=median(cpu_us(r) for r in results),
            ratio=ours.get(job, math.nan) / middle[job, name],
        )
        for (job, name), results in grouped.items()
    ]


def rate(result: Mapping[str, Any]) -> float:
    """Events a second of one result."""
    return float(result["events"] / result["seconds"])


def cpu_us(result: Mapping[str, Any]) -> float:
    """Microseconds of processor time for an event of one result."""
    return float(result.get("cpu_s", math.nan) / result["events"] * 1e6)


def summarize(lines: Sequence[Line], measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the marks that could be taken: ratios, rates, and what was measured beside them.

    `measured` may have ``encode_cosine_min``, ``latency`` and ``memory`` (results of
    the paced runs) and ``scaling`` (pairs of monitors and result).
    """
    found = {(line.job, line.name): line for line in lines}
    marks = {key: found[at].ratio for key, at in RATIOS.items() if at in found}
    rivals = [line for line in lines if line.job == AGGREGATE and line.name != "ours"]
    if rivals:
        marks["aggregate_vs_best_rival"] = min(line.ratio for line in rivals)
    if (WHOLE, "ours") in found and not math.isnan(found[WHOLE, "ours"].ratio):
        marks["whole_events_per_s"] = found[WHOLE, "ours"].per_s
    if measured.get("encode_cosine_min") is not None:
        marks["encode_cosine_min"] = measured["encode_cosine_min"]
    if latency_s := measured.get("latency", {}).get("latency_s"):
        marks["event_to_verdict_p99_s"] = latency_s["p99"]
    costs = costs_us(measured.get("scaling", ()))
    if {10, 5_000} <= costs.keys():
        marks["cost_5000_vs_10_monitors"] = costs[5_000] / costs[10]
    if memory := measured.get("memory"):
        marks |= memory_marks(memory["rss_mb"])
    return {key: float(f"{value:.8g}") for key, value in marks.items() if not math.isnan(value)}


def costs_us(scaling: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[int, float]:
    """Return monitors → processor time of an event in microseconds, median over the rounds."""
    found: dict[int, list[float]] = {}
    for monitors, result in scaling:
        if result:
            found.setdefault(monitors, []).append(cpu_us(result))
    return {monitors: median(values) for monitors, values in found.items()}


def memory_marks(samples: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the highest memory, and how much it grew: the last fifth over the second.

    `samples` are (seconds, MB). The first fifth is the worker finding its size.
    """
    sizes = [size for _, size in samples]
    fifth = max(1, len(sizes) // 5)
    second = sizes[fifth : 2 * fifth] or sizes
    return {
        "rss_mb_5000_monitors": max(sizes),
        "rss_growth_mb_5000_monitors": median(sizes[-fifth:]) - median(second),
    }


def to_markdown(
    lines: Sequence[Line], marks: Mapping[str, float], machine: Mapping[str, str], images: str
) -> str:
    """Return the section of the documentation that is made by the benchmark."""
    parts = ["Measured on " + "; ".join(f"{k}: {v}" for k, v in machine.items()) + "."]
    for job, title in TITLES.items():
        rows = [line for line in lines if line.job == job]
        if rows:
            parts.append(_table(title, rows))
    listed = "\n".join(f"| `{key}` | {value:,.8g} |" for key, value in sorted(marks.items()))
    parts.append(f"| mark | value |\n|---|---:|\n{listed}")
    parts += [f"![{alt}]({images}/{file})" for file, alt in PLOTS.items()]
    return "\n\n".join(parts)


#: Files that `plots` draws, and what they show.
PLOTS = {
    "bench-rates.svg": "Rates of every program, by job",
    "bench-monitors.svg": "Processor time for an event against the number of monitors",
    "bench-memory.svg": "Resident memory over ten minutes at 5,000 monitors",
    "bench-latency.svg": "Time from an event to its stored verdict",
}


def _table(title: str, rows: Sequence[Line]) -> str:
    head = (
        f"| {title} | median | lowest–highest | CPU µs each | ours is |\n|---|---:|---:|---:|---:|"
    )
    body = [
        f"| {line.label} | {line.per_s:,.0f} | {line.lowest_per_s:,.0f}–{line.highest_per_s:,.0f}"
        f" | {line.cpu_us:,.1f} | {ratio_of(line)} |"
        for line in rows
    ]
    return "\n".join([head, *body])


def ratio_of(line: Line) -> str:
    """Return the ratio as it stands in a table; empty for ours and where there is none."""
    return "" if line.name == "ours" or math.isnan(line.ratio) else f"{line.ratio:,.2f} ×"


def insert(document: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """Put `section` between the markers of a document.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    before, has_begin, rest = document.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end or begin in rest or end in after:
        raise ValueError(f"the document needs {begin} and {end}, once each and in this order")
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"
