"""The section of `docs/detection.md` that the evaluation writes: tables, marks, plots. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.evaluate.marks import MARKS, Found, delay_with_reference, rivals_of
from benchmarks.rates import BEFORE, CHANGES, REFERENCE_EVENTS

BEGIN, END = "<!-- evaluation:begin -->", "<!-- evaluation:end -->"
#: Files that `plots` draws, and what they show.
PLOTS = {
    "detection-rates.svg": "Delay against run length for a doubled rate: ours, the optimum, rivals",
    "detection-swaps.svg": "Answers from a silent swap to the alarm, for each of nine swaps",
}
Rows = Sequence[Sequence[str]]


def to_markdown(
    found: Found, marks: Mapping[str, Any], machine: Mapping[str, str], images: str
) -> str:
    """Return the whole section; what was not measured is left out."""
    parts = ["Measured on " + "; ".join(f"{k}: {v}" for k, v in machine.items()) + "."]
    parts += [mark_table(marks)]
    for name, write in SECTIONS.items():
        needed = name.split("+")
        if all(part in found for part in needed):
            parts += write(found)
    parts += [f"![{alt}]({images}/{file})" for file, alt in PLOTS.items()]
    return "\n\n".join(parts)


def mark_table(marks: Mapping[str, Any]) -> str:
    rows = []
    for mark in MARKS:
        value = marks.get(mark.key)
        verdict = "" if mark.met is None or value is None else judge(mark.met(value))
        rows.append([f"`{mark.key}`", mark.asked, write_value(value), verdict])
    return table(["mark", "asked", "measured", ""], rows)


def judge(met: bool) -> str:
    return "met" if met else "**missed**"


def write_value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {write_value(each)}" for name, each in value.items())
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.3g}"


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def change_of(after: float) -> str:
    return f"{BEFORE:.2f} → {after:.2f}".replace("0.", ".")


# --- Rates ---------------------------------------------------------------------------------------


def write_known(found: Found) -> Iterator[str]:
    yield "### A rate whose past is known"
    yield (
        "Mean delay over that of a CUSUM which is told both rates and starts at its worst, at the"
        " same measured run length; beside it at the threshold that promises the run length, and"
        " against a CUSUM that has been watching too."
    )
    yield table(
        ["change, at a run length of", "CUSUM, events", "matched", "nominal", "both watching"],
        [
            [
                f"{change_of(d['after'])}, {d['run_length']:,.0f}",
                f"{d['cusum']:,.0f}",
                *(f"{d[k]:.2f} ×" for k in ("matched", "nominal", "watching")),
            ]
            for d in found["known"]
        ],
    )


def write_reference(found: Found) -> Iterator[str]:
    yield "### A rate whose past is a reference"
    yield (
        "The same of monitors that have a reference and are told nothing, each with the bound that"
        " its own reference bears. *Floor* is what a CUSUM would need that is told the new rate"
        " and keeps the promise in 95 % of all monitors: compare it with *nominal*."
    )
    rows = [
        [
            f"{fleet['events']:,}",
            f"{change_of(d['after'])}, {d['run_length']:,.0f}",
            *(f"{d[k]:.2f} ×" for k in ("matched", "nominal", "floor")),
        ]
        for fleet in found["reference"]
        for d in fleet["delays"]
    ]
    yield table(
        ["reference, events", "change, at a run length of", "matched", "nominal", "floor"], rows
    )
    yield from write_promise(found)


def write_promise(found: Found) -> Iterator[str]:
    rows = [
        [f"{fleet['events']:,}", f"{d['run_length']:,.0f}", f"{realised:.2f}", f"{within:.1%}"]
        for fleet in found["reference"]
        for d, realised, within in zip(
            fleet["delays"], fleet["realised"], fleet["within"], strict=False
        )
    ]
    yield "False alarms of 1,000 monitors without a change, over those promised:"
    yield table(["reference, events", "promised once in", "mean", "monitors within"], rows)
    if nulls := found.get("nulls"):
        fixed = {name: share for name, share in nulls.items() if isinstance(share, float)}
        shares = ", ".join(f"{share:.1%} ({name})" for name, share in fixed.items())
        yield (
            f"By the hour over weeks, with a reference of {REFERENCE_EVENTS:,} events, so many"
            f" monitors stay within their promise: {shares}."
        )
        hourly = list(nulls["rhythm"])
        rows = [
            [name, *(f"{nulls[key][each]:.1%}" for each in hourly)]
            for name, key in (("by the time of day", "rhythm"), ("without", "rhythm_without"))
        ]
        yield "The same where the rate doubles from night to day, learning included:"
        yield table(["references, events an hour", *(f"{int(e):,}" for e in hourly)], rows)


def write_rivals(found: Found) -> Iterator[str]:
    yield f"### Others, on a rate ({change_of(CHANGES[0])})"
    yield (
        "Mean events to the alarm, every one tuned to the same measured run length. What they learn"
        " from are the quiet events before the change; ours, like for like, has a reference of as"
        " many. Fixed thresholds are told the rate, by whoever sets them. – : cannot be tuned to"
        " it, or not measured."
    )
    rivals = rivals_of(found)
    quiet = sorted({n for rival in rivals for n in rival.delays})
    head = ["", "run length", *(f"after {n:,} quiet" for n in quiet)]
    for goal in sorted({rival.goal for rival in rivals}):
        rows = [["**ours, with a reference**", f"{goal:,.0f}", *ours_by_quiet(found, quiet, goal)]]
        rows += [
            [r.name, f"{goal:,.0f}", *(number(r.delays.get(n)) for n in quiet)]
            for r in rivals
            if r.goal == goal
        ]
        yield table(head, rows)


def ours_by_quiet(found: Found, quiet: Sequence[int], goal: float) -> Iterator[str]:
    sizes = {fleet["events"] for fleet in found["reference"]}
    for n in quiet:
        yield number(delay_with_reference(found, n, goal) if n in sizes else None)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


# --- Swaps ---------------------------------------------------------------------------------------


def write_swaps(found: Found) -> Iterator[str]:
    swaps = found["swaps"]
    yield "### Silent swaps"
    yield (
        "Answers from the swap to the alarm, on prompts that the reference (500 answers) has not"
        " seen; one false alarm promised in a million answers. *Shift*: how far the mean answer"
        " moves, in standard deviations of what the prompt leaves open."
    )
    yield swap_table(swaps["swaps"])
    yield (
        f"Median of the medians: **{swaps['median_delay']:.0f} answers**. Without a swap"
        f" {swaps['null']:.1%} of {swaps['null_runs']} runs of 3,000 answers alarm."
    )
    if settings := swaps.get("median_delay_by_quiet"):
        words = ", ".join(f"{delay:.0f} after {n} quiet ones" for n, delay in settings.items())
        yield f"With more or less of a quiet time before: {words}."


def swap_table(swaps: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ["swap", "shift", "median", "quartiles", "found in 3,000"],
        [
            [
                f"{each['before']} → {each['after']}",
                f"{each['shift']:.2f}",
                number(each["median"]),
                "–".join(number(q) if q is not None else "∞" for q in each["quartiles"]),
                f"{each['found']:.0%}",
            ]
            for each in swaps
        ],
    )


def write_told(found: Found) -> Iterator[str]:
    yield "### Against what is told the shift"
    yield (
        "A large reference (20,000 answers, drawn again from real ones), all at the threshold where"
        " nulls alarm once in 100,000 answers. Between a CUSUM that is told the exact shift and"
        " ours stands what is told its *length*: in so many directions nothing can be sooner, on"
        " average, that does not know which."
    )
    yield table(
        ["swap", "told the shift", "told its length", "ours", "ours / shift", "ours / length"],
        [
            [
                f"{t['before']} → {t['after']}",
                *(number(t[k]) for k in ("told", "told_length", "ours")),
                f"{t['ours'] / t['told']:.2f} ×",
                f"{t['ours'] / t['told_length']:.2f} ×",
            ]
            for t in found["told"]
        ],
    )


def write_mix(found: Found) -> Iterator[str]:
    mix = found["mix"]
    yield "### Other traffic, the same model"
    yield table(
        ["runs that alarm", ""],
        [
            ["the shares of the prompts' kinds are drawn anew", f"{mix['mix']:.1%}"],
            ["… and the detector does not see the prompts move", f"{mix['mix_blind']:.1%}"],
            ["… nor predicts anything from the prompt (*marginal*)", f"{mix['mix_marginal']:.1%}"],
            ["other traffic **and** another model at once, found", f"{mix['both']:.0%}"],
        ],
    )


def write_japanese(found: Found) -> Iterator[str]:
    japanese, languages = found["japanese"], found["languages"]
    yield "### Japanese"
    yield swap_table(japanese["swaps"])
    yield (
        f"Median of the medians {japanese['median_delay']:.0f} answers, English with as few prompts"
        f" {japanese['english_median_delay']:.0f}; without a swap {japanese['null']:.1%} and"
        f" {japanese['english_null']:.1%} alarm."
    )
    ours, theirs = languages["japanese"], languages["english"]
    yield (
        f"Refusals: of {ours['refusals']} written twice, once in each language, the classifier"
        f" finds {ours['found']} in Japanese and {theirs['found']} in English; of public answers"
        f" to ordinary questions it flags {ours['flagged']:,} of {ours['ordinary']:,} and"
        f" {theirs['flagged']:,} of {theirs['ordinary']:,}. A rise from 2 % to 4 % is so found in"
        f" {languages['refusal_delay_ratio']:.2f} × the time."
    )


def write_answers(found: Found) -> Iterator[str]:
    peers = found["answers"]
    yield "### Others, on answers"
    yield (
        "The same swaps; all at the threshold where their nulls alarm once in"
        f" {peers[0]['run_length']:,.0f} answers. The others compare windows with their reference,"
        " on the raw features or on our residuals."
    )
    yield table(
        ["", "window", "given", "median of medians", "swaps found"],
        [
            [
                f"**{p['name']}**" if p["name"] == "ours" else p["name"],
                number(p["window"]),
                p["features"],
                number(p["median_delay"]),
                f"{p['found']} of {len(p['delays'])}",
            ]
            for p in peers
        ],
    )


def write_weeks(found: Found) -> Iterator[str]:
    weeks, state = found["weeks"], found["state"]
    runs = weeks["runs"]
    requests = sum(run["requests"] for run in runs)
    families = ", ".join(
        f"{name} {count}" for run in runs for name, count in run["by_family"].items()
    )
    yield "### A whole fleet, week after week"
    yield (
        f"{runs[0]['monitors']:,} monitors, {weeks['weeks']} weeks, {requests / 1e6:,.0f} million"
        f" requests by way of packets through the bank, nothing changes:"
        f" **{sum(run['alarms'] for run in runs)} alarms**"
        f"{f' ({families})' if families else ''}, with a budget of one a week. A bank of"
        f" {state['monitors']:,} monitors × {state['families']} families takes"
        f" {state['state_mb']:.0f} MB."
    )


def write_alibi(found: Found) -> Iterator[str]:
    alibi = found["alibi"]
    yield "### alibi-detect's online MMD"
    yield (
        f"Asked for a run length of {alibi['asked']:,} answers, window {alibi['window']}, our"
        f" residuals, reference of {alibi['reference']}. It alarmed without a change every"
        f" {alibi['run_length']:,.0f} answers, took {alibi['configure_s']:.0f} s to configure one"
        f" stream and {alibi['us']:,.0f} µs an answer; ours {alibi['ours_us']:.1f} µs."
    )
    yield table(
        ["", "run length", "median of medians", "swaps found"],
        [
            [
                "alibi-detect",
                number(alibi["run_length"]),
                number(alibi["median_delay"]),
                f"{alibi['found']} of {alibi['tried']}",
            ],
            [
                "ours",
                f"over {alibi['ours_run_length']:,.0f}",
                number(alibi["ours_delay"]),
                f"{alibi['ours_found']} of {alibi['tried']}",
            ],
        ],
    )


#: The parts that a section needs, joined by +, and what writes it.
SECTIONS = {
    "known": write_known,
    "reference": write_reference,
    "reference+rivals": write_rivals,
    "swaps": write_swaps,
    "answers": write_answers,
    "alibi": write_alibi,
    "told": write_told,
    "mix": write_mix,
    "japanese+languages": write_japanese,
    "weeks+state": write_weeks,
}
