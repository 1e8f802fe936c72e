"""Draws the plots of a report: ``python -m benchmarks.wire.plots REPORT.json FOLDER``.

Runs in an environment of its own, which has matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.wire.report import PLOTS, TITLES, costs_us, lines_of

_OURS, _THEIRS = "#2f6f8f", "#b8bec4"


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    mpl.rcParams |= {"svg.hashsalt": "kizashi", "svg.fonttype": "none", "font.size": 9}
    figures = (draw_rates, draw_monitors, draw_memory, draw_latency)
    for name, draw in zip(PLOTS, figures, strict=True):
        figure = draw(report)
        if figure is not None:
            figure.savefig(folder / name, metadata={"Date": None, "Creator": None})


def draw_rates(report: dict[str, Any]) -> Any:
    lines = lines_of(report["runs"])
    jobs = [job for job in TITLES if any(line.job == job for line in lines)]
    figure, axes = plt.subplots(len(jobs), 1, figsize=(7, 2.1 * len(jobs)), squeeze=False)
    for job, axis in zip(jobs, axes[:, 0], strict=True):
        rows = [line for line in lines if line.job == job][::-1]
        colours = [_OURS if line.name == "ours" else _THEIRS for line in rows]
        bars = axis.barh(
            [line.label for line in rows], [line.per_s for line in rows], color=colours
        )
        axis.bar_label(bars, [f"{line.per_s:,.0f}" for line in rows], padding=3)
        axis.margins(x=0.15)
        axis.set_xticks([])
        axis.set_title(TITLES[job], loc="left", fontsize=9)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.tight_layout()
    return figure


def draw_monitors(report: dict[str, Any]) -> Any:
    costs = costs_us(report["measured"].get("scaling", ()))
    if not costs:
        return None
    figure, axis = _one("monitors", "processor time for an event, µs")
    axis.plot(list(costs), list(costs.values()), "o-", color=_OURS)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    return figure


def draw_memory(report: dict[str, Any]) -> Any:
    memory = report["measured"].get("memory")
    if not memory:
        return None
    figure, axis = _one("seconds", "resident memory, MB")
    axis.plot(*zip(*memory["rss_mb"], strict=True), color=_OURS)
    axis.set_ylim(bottom=0)
    return figure


def draw_latency(report: dict[str, Any]) -> Any:
    found = report["measured"].get("latency", {}).get("latency_s")
    if not found:
        return None
    figure, axis = _one("", "event to stored verdict, s")
    axis.bar_label(axis.bar(list(found), list(found.values()), color=_OURS), fmt="%.2f")
    return figure


def _one(x: str, y: str) -> Any:
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


if __name__ == "__main__":
    main()
