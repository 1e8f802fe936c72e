"""The command: ``python -m benchmarks.evaluate [--data DATA] [--quick] [--json] [--only PART …]``.

Everything is said on standard error; with ``--json`` the last line of standard output is one
object with the marks. Parts run side by side, as many as there are cores or ``--jobs`` says, the
longest of them in pieces; what a piece found is kept under ``.cache/evaluate``, so a run that was
ended goes on with ``--resume``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.evaluate import marks as of
from benchmarks.evaluate.parts import BY_NAME, PARTS, Part, Task
from benchmarks.evaluate.report import BEGIN, END, judge, to_markdown, write_value
from benchmarks.evaluate.running import Runner, load, tell
from benchmarks.wire.environments import ROOT, install, python_of
from benchmarks.wire.machine import describe
from benchmarks.wire.report import insert
from benchmarks.wire.table import PLOTS

KEPT = ROOT / ".cache" / "evaluate"
IMAGES = ROOT / "docs" / "images"
FAILED, USAGE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    if complaint := find_complaint(given.data):
        tell(complaint)
        return USAGE
    task, kept = Task(given.quick, given.data), KEPT / ("quick" if given.quick else "full")
    asked, missing = choose(given.only, task, alibi=given.alibi)
    for line in missing:
        tell(line)
    found = load(kept) if given.resume else {}
    began = time.monotonic()
    runner = Runner(task, kept, given.jobs, given.resume, found)
    failed = runner.run([part for part in asked if part.name not in found])
    values = of.take(found)
    show(values, time.monotonic() - began)
    if given.document is not None:
        publish(found, values, given.document, whole=not (given.quick or failed))
    if given.json:
        print(json.dumps(values), flush=True)
    return FAILED if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the evaluation data")
    parser.add_argument("--quick", action="store_true", help="under five minutes on two cores")
    parser.add_argument("--json", action="store_true", help="the marks as the last line of stdout")
    parser.add_argument("--only", nargs="+", choices=list(BY_NAME), help="these parts alone")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run has found")
    parser.add_argument("--jobs", type=count, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument(
        "--alibi",
        action="store_true",
        help="install alibi-detect (PyTorch; not for production by its licence) and compare",
    )
    parser.add_argument(
        "--document", type=Path, help="a full run puts tables and plots in this document"
    )
    given = parser.parse_args(arguments)
    given.data = given.data.resolve() if given.data else None
    return given


def count(text: str) -> int:
    """A number of processes, from the command line."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def find_complaint(data: Path | None) -> str | None:
    """What is wrong with the folder that was named, if anything."""
    if data is None or data.is_dir():
        return None
    return f"DATA: {data} is no directory; name the folder that holds alpaca_eval.ndjson.gz …"


def choose(
    only: Sequence[str] | None, task: Task, *, alibi: bool = False
) -> tuple[list[Part], list[str]]:
    """The parts that can be run, and a line for each that was asked for and cannot be."""
    wanted = [
        part
        for part in PARTS
        if (part.name in only if only else part.quick or not task.quick)
        and (part.environment is None or alibi or bool(only))
    ]
    asked, missing = [], []
    for part in wanted:
        lacking = [name for name in part.files if not has(task.data, name)]
        if lacking:
            where = "no DATA was given" if task.data is None else f"not in {task.data}"
            missing.append(
                f"{part.name}: not measured, for it needs {', '.join(lacking)} ({where})"
            )
        else:
            asked.append(part)
    return asked, missing


def has(data: Path | None, name: str) -> bool:
    return data is not None and (data / name).is_file()


# --- Saying --------------------------------------------------------------------------------------


def show(values: Mapping[str, Any], seconds: float) -> None:
    shown = Table("mark", "asked", "measured", "", title=f"Evaluation, {seconds:.0f} s")
    for mark in of.MARKS:
        value = values[mark.key]
        verdict = "" if mark.met is None or value is None else judge(mark.met(value))
        shown.add_row(mark.key, mark.asked, write_value(value), verdict.strip("*"))
    Console(stderr=True).print(shown)


def publish(
    found: Mapping[str, Any], values: Mapping[str, Any], document: Path, *, whole: bool
) -> None:
    """Draw the plots, and put tables and plots between the document's markers."""
    needed = [part.name for part in PARTS if part.environment is None]
    if not whole or any(name not in found for name in needed):
        tell(f"{document} is left as it is: only a full run with the data is published")
        return
    report = KEPT / "report.json"
    report.write_text(json.dumps({"marks": values, "found": found}, indent=1), encoding="utf-8")
    install(PLOTS)
    command = [str(python_of(PLOTS)), "-m", "benchmarks.evaluate.plots", str(report), str(IMAGES)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)  # noqa: S603 - our own
    section = to_markdown(found, values, describe(), "images")
    text = document.read_text(encoding="utf-8")
    document.write_text(insert(text, section, BEGIN, END), encoding="utf-8")
    tell(f"written: {document}")


if __name__ == "__main__":
    sys.exit(main())
