"""From figures to the marks: one number for each promise, and whether it is kept. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.evaluate.rivals import Rival, best_river
from benchmarks.rates import CHANGES, REFERENCE_EVENTS
from benchmarks.swaps import WATCHED

#: Part → what it found.
Found = Mapping[str, Any]

#: At this run length ours and river's are compared, on a doubling.
RIVALS_RUN_LENGTH = 1e5


@dataclass(frozen=True)
class Mark:
    """`of` takes what the parts found; None where one of `parts` is missing."""

    key: str
    parts: tuple[str, ...]
    of: Callable[[Found], Any]
    #: What is asked, in words, and whether a value is that; None for one that asks nothing.
    asked: str = ""
    met: Callable[[Any], bool] | None = None


def take(found: Found) -> dict[str, Any]:
    """Return every mark by its key; None where a part was not run."""
    return {
        mark.key: mark.of(found) if all(part in found for part in mark.parts) else None
        for mark in MARKS
    }


def _known(found: Found) -> float:
    return max(each["matched"] for each in found["known"])


def _reference(found: Found) -> float:
    return max(each["matched"] for each in reference_of(found, REFERENCE_EVENTS)["delays"])


def reference_of(found: Found, events: int) -> Mapping[str, Any]:
    """The figures of monitors with a reference of so many events."""
    fleet: Mapping[str, Any] = next(f for f in found["reference"] if f["events"] == events)
    return fleet


def delay_with_reference(found: Found, events: int, run_length: float) -> float:
    """Ours: mean events to the alarm for a doubling, at the same measured run length."""
    ours = next(
        d
        for d in reference_of(found, events)["delays"]
        if (d["after"], d["run_length"]) == (CHANGES[0], run_length)
    )
    return float(ours["matched"] * ours["cusum"])


def _within(found: Found) -> float:
    nulls = found["nulls"]
    within = reference_of(found, REFERENCE_EVENTS)["within"]
    return min(*within, nulls["steady"], nulls["diurnal"])


def rivals_of(found: Found) -> list[Rival]:
    """What the part `rivals` found, also after a journey through JSON."""
    return [
        Rival(**{**each, "delays": {int(n): d for n, d in each["delays"].items()}})
        for each in found["rivals"]
    ]


def _river(found: Found) -> float | None:
    theirs = best_river(rivals_of(found), RIVALS_RUN_LENGTH, REFERENCE_EVENTS)
    ours = delay_with_reference(found, REFERENCE_EVENTS, RIVALS_RUN_LENGTH)
    return None if theirs is None else theirs / ours


def _swaps_found(found: Found) -> int:
    medians = [each["median"] for each in found["swaps"]["swaps"]]
    return sum(median is not None and median <= WATCHED for median in medians)


def _japanese(found: Found) -> float:
    """The worse of swaps and refusals: delay in Japanese over delay in English."""
    japanese = found["japanese"]
    swaps = japanese["median_delay"] / japanese["english_median_delay"]
    return max(swaps, found["languages"]["refusal_delay_ratio"])


def _told(found: Found) -> float:
    return statistics.median(each["ours"] / each["told"] for each in found["told"])


MARKS: tuple[Mark, ...] = (
    Mark("rate_vs_cusum_known_p0", ("known",), _known, "≤ 1.10", lambda x: x <= 1.10),
    Mark("rate_vs_cusum_reference_2000", ("reference",), _reference, "≤ 1.3", lambda x: x <= 1.3),
    Mark(
        "null_monitors_within_promise",
        ("reference", "nulls"),
        _within,
        "≥ 0.95",
        lambda x: x >= 0.95,
    ),
    Mark("vs_best_river", ("reference", "rivals"), _river, "≥ 1.7", lambda x: x >= 1.7),
    Mark(
        "swap_median_answers",
        ("swaps",),
        lambda found: found["swaps"]["median_delay"],
        "≤ 400",
        lambda x: x <= 400,
    ),
    Mark("swap_found", ("swaps",), _swaps_found, "≥ 7", lambda x: x >= 7),
    Mark("swap_tried", ("swaps",), lambda found: len(found["swaps"]["swaps"])),
    Mark(
        "swap_null_rate",
        ("swaps",),
        lambda found: found["swaps"]["null"],
        "≤ 0.01",
        lambda x: x <= 0.01,
    ),
    Mark("swap_vs_known_shift", ("told",), _told, "≤ 1.5", lambda x: x <= 1.5),
    Mark(
        "mix_page_rate", ("mix",), lambda found: found["mix"]["mix"], "≤ 0.05", lambda x: x <= 0.05
    ),
    Mark("mix_page_rate_marginal", ("mix",), lambda found: found["mix"]["mix_marginal"]),
    Mark(
        "refusal_accuracy",
        ("refusal",),
        lambda found: found["refusal"],
        "≥ 0.97 each",
        lambda x: min(x.values()) >= 0.97,
    ),
    Mark("japanese_vs_english", ("japanese", "languages"), _japanese, "≤ 1.5", lambda x: x <= 1.5),
    Mark(
        "rate_updates_per_s",
        ("speed",),
        lambda found: found["speed"]["rate_updates_per_s"],
        "≥ 20 million",
        lambda x: x >= 20e6,
    ),
    Mark(
        "state_mb_5000_monitors",
        ("state",),
        lambda found: found["state"]["state_mb"],
        "≤ 150",
        lambda x: x <= 150,
    ),
    Mark(
        "false_pages_per_week",
        ("weeks",),
        lambda found: found["weeks"]["false_pages_per_week"],
        "≤ 1",
        lambda x: x <= 1,
    ),
)
