"""Draws the plots of a report: ``python -m benchmarks.evaluate.plots REPORT.json FOLDER``.

Runs in an environment of its own, which has matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

_OURS, _OPTIMUM, _THEIRS = "#2f6f8f", "#1b1b1b", "#b8bec4"
_RATES, _SWAPS = "detection-rates.svg", "detection-swaps.svg"
#: What is compared with, by the start of its name.
_RIVALS = {
    "ADWIN": "s",
    "Page–Hinkley": "v",
    "KSWIN": "^",
    "windows of 500": "D",
    "windows of 1,000": "d",
}
_QUIET = "2000"


def main() -> None:
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["found"]
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    mpl.rcParams |= {"svg.hashsalt": "kizashi", "svg.fonttype": "none", "font.size": 9}
    for name, draw in ((_RATES, draw_rates), (_SWAPS, draw_swaps)):
        figure = draw(found)
        figure.savefig(folder / name, metadata={"Date": None, "Creator": None})


def draw_rates(found: dict[str, Any]) -> Any:
    """Events to the alarm for a doubling, against the run length to a false one."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    known = [d for d in found["known"] if d["after"] == 0.04]
    lengths = [d["run_length"] for d in known]
    axis.plot(lengths, [d["cusum"] for d in known], "--", color=_OPTIMUM, label="CUSUM, told both")
    axis.plot(
        lengths,
        [d["cusum"] * d["matched"] for d in known],
        "o-",
        color=_OURS,
        label="ours, told .02",
    )
    fleet = next(f for f in found["reference"] if f["events"] == int(_QUIET))
    delays = [d for d in fleet["delays"] if d["after"] == 0.04]
    axis.plot(
        lengths,
        [d["cusum"] * d["matched"] for d in delays],
        "o:",
        color=_OURS,
        label="ours, reference of 2,000",
    )
    for name, marker in _RIVALS.items():
        rivals = [r for r in found["rivals"] if r["name"] == name or r["name"] == f"{name} of 25s"]
        points = [(r["goal"], r["delays"][_QUIET]) for r in rivals if _QUIET in r["delays"]]
        if points:
            axis.plot(*zip(*points, strict=True), marker + "-", color=_THEIRS, label=name, zorder=1)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("events between false alarms, measured")
    axis.set_ylabel("events from .02 → .04 to the alarm")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure


def draw_swaps(found: dict[str, Any]) -> Any:
    """Median and quartiles of each swap."""
    swaps = found["swaps"]["swaps"][::-1]
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for at, swap in enumerate(swaps):
        low, high = (3_008 if q is None else q for q in swap["quartiles"])
        axis.plot([low, high], [at, at], color=_THEIRS, linewidth=5, solid_capstyle="round")
        if swap["median"] is not None:
            axis.plot(swap["median"], at, "o", color=_OURS)
    axis.set_yticks(range(len(swaps)), [f"{s['before']} → {s['after']}" for s in swaps])
    axis.set_xscale("log")
    axis.set_xlabel("answers from the swap to the alarm: quartiles and median")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
