"""The command: ``python -m benchmarks.wire [--quick] [--json] [--only JOB …]``.

Everything is said on standard error; with ``--json`` the last line of standard
output is one object with the marks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.wire import jobs
from benchmarks.wire.environments import ROOT, install, python_of
from benchmarks.wire.machine import describe
from benchmarks.wire.report import TITLES, Line, insert, lines_of, ratio_of, summarize, to_markdown
from benchmarks.wire.running import Bench, running, tell
from benchmarks.wire.table import FULL, PLOTS, QUICK, Size

REPORT = ROOT / ".cache" / "bench" / "report.json"
IMAGES = ROOT / "docs" / "images"
VECTORS = ROOT / "pipeline" / "encoders" / "static_minilm"
JOBS = ("read", "aggregate", "encode", "whole", "scaling", "latency", "memory")
QUICK_JOBS = ("read", "encode", "whole")
#: What latency and memory are paced by when the whole job is not run.
PACE_PER_S = 2_000.0


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    size = size_of(given)
    with running(given.data, given.vectors) as bench:
        measured = run(bench, size, given.only, given.pace)
        runs = [asdict(each) for each in bench.runs]
    lines = lines_of(runs)
    marks = summarize(lines, measured)
    report = {"marks": marks, "machine": describe(), "measured": measured, "runs": runs}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    show(lines, marks)
    if given.document is not None and set(given.only) < set(JOBS):
        tell(f"{given.document} is left as it is: only a run of all jobs is published")
    elif given.document is not None:
        publish(given.out, given.document, lines, marks, report["machine"])
    if given.json:
        print(json.dumps(marks), flush=True)
    return 1 if any(each["error"] for each in runs) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under three minutes, one round")
    parser.add_argument("--json", action="store_true", help="the marks as the last line of stdout")
    parser.add_argument("--out", type=Path, default=REPORT, help="where the report is written")
    parser.add_argument("--only", nargs="+", choices=JOBS, help="these jobs alone")
    parser.add_argument("--rounds", type=int, help="how often every program is run")
    parser.add_argument("--seconds", type=float, help="the longest a program is measured")
    parser.add_argument("--events", type=int, help="at most so many events in a topic")
    parser.add_argument(
        "--minutes", type=float, help="how long memory is watched, and at most latency"
    )
    parser.add_argument("--pace", type=float, help="events/s of latency, and at most of memory")
    parser.add_argument("--data", type=Path, help="prose: gzipped JSON lines with `response`")
    parser.add_argument("--vectors", type=Path, default=VECTORS, help="the static encoder's files")
    parser.add_argument(
        "--document", type=Path, help="draw the plots and put the tables in this document"
    )
    given = parser.parse_args(arguments)
    given.only = given.only or (QUICK_JOBS if given.quick else JOBS)
    for name in ("data", "vectors", "out"):
        path: Path | None = getattr(given, name)
        setattr(given, name, path.resolve() if path else None)
    return given


def size_of(given: argparse.Namespace) -> Size:
    size = QUICK if given.quick else FULL
    if given.rounds:
        size = replace(size, rounds=given.rounds)
    if given.seconds:
        size = replace(size, seconds=given.seconds)
    if given.events:
        size = size.at_most(given.events)
    if given.minutes:
        watched_s = given.minutes * 60
        size = replace(size, memory_s=watched_s, latency_s=min(size.latency_s, watched_s))
    return size


def run(
    bench: Bench, size: Size, only: Sequence[str], pace_per_s: float | None = None
) -> dict[str, Any]:
    """Run the jobs; returns what is measured beside the rates of the programs.

    `pace_per_s` is that of latency and memory; by default half of what the whole job did.
    """
    measured: dict[str, Any] = {}
    if "read" in only:
        jobs.read(bench, size)
    if "aggregate" in only:
        jobs.aggregate(bench, size)
    if "encode" in only:
        measured["encode_cosine_min"] = jobs.encode(bench, size)
    if "whole" in only:
        jobs.whole(bench, size)
    if "scaling" in only:
        found = jobs.scaling(bench, size)
        measured["scaling"] = [(monitors, dict(each.result)) for monitors, each in found]
    pace = pace_per_s or pace_of(bench)
    if "latency" in only:
        measured["latency"] = dict(jobs.latency(bench, size, pace).result)
    if "memory" in only:
        measured["memory"] = dict(jobs.memory(bench, size, pace).result)
    return measured


def pace_of(bench: Bench) -> float:
    """Half of what our worker does at full speed."""
    marks = summarize(lines_of([asdict(each) for each in bench.runs]), {})
    return marks.get("whole_events_per_s", 2 * PACE_PER_S) / 2


def show(lines: Sequence[Line], marks: dict[str, float]) -> None:
    table = Table("program", "a second", "CPU µs each", "ours is", title="Kizashi and the others")
    for job, title in TITLES.items():
        rows = [line for line in lines if line.job == job]
        if rows:
            table.add_section()
            table.add_row(f"[bold]{title}")
        for line in rows:
            cells = f"{line.per_s:,.0f}", f"{line.cpu_us:,.1f}", ratio_of(line)
            table.add_row(line.label, *cells)
    console = Console(stderr=True)
    console.print(table)
    for key, value in marks.items():
        console.print(f"{key}: {value:,.6g}")


def publish(
    report: Path, document: Path, lines: Sequence[Line], marks: dict[str, float], machine: Any
) -> None:
    """Draw the plots, and put tables and plots between the document's markers."""
    install(PLOTS)
    command = [str(python_of(PLOTS)), "-m", "benchmarks.wire.plots", str(report), str(IMAGES)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)  # noqa: S603 - our own
    text = document.read_text(encoding="utf-8")
    section = to_markdown(lines, marks, machine, "images")
    document.write_text(insert(text, section), encoding="utf-8")
    tell(f"written: {document}")


if __name__ == "__main__":
    sys.exit(main())
