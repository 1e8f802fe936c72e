"""Measure the refusal classifier on labelled answers to prompts that it was not developed on.

    python -m benchmarks.refusal DATA_DIR            # the held-out half: what is published
    python -m benchmarks.refusal DATA_DIR --half development

DATA_DIR holds gzipped JSON lines (``refusal_xstest``, ``refusal_do_not_answer``,
``coconot_pairs``, ``alpaca_eval``, ``ja_shaberi``, each ``.ndjson.gz``). Prompts
are split in two by hash, so no prompt has answers in both halves. Prints the
tables of ``docs/refusals.md`` as Markdown. Nothing of the data is kept.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.refusal import Refusal, classify_text

Row = dict[str, Any]
IsRefusal = Callable[[str], bool]

#: Two-sided 95 %.
Z = 1.959964
#: Best of so many, which leaves the machine's own noise out of a timing of microseconds.
TIMINGS = 3
#: Answers timed per data set.
TIMED = 2_000

#: Rival 1, what is written first: four words anywhere.
_FOUR_WORDS = re.compile(r"\b(?:sorry|cannot|can't|unable)\b", re.IGNORECASE)
#: Rival 2: phrases of the kind that jailbreak studies look for since Zou et al.
#: (arXiv:2307.15043), anywhere in the answer.
_KEYWORDS = (
    "I'm sorry",
    "Sorry",
    "I apologize",
    "My apologies",
    "As an AI",
    "As a language model",
    "As an Assistant",
    "I'm just",
    "I cannot",
    "I can't",
    "I do not",
    "illegal",
    "unethical",
    "not ethical",
    "OpenAI",
)


def is_full_refusal(text: str) -> bool:
    return classify_text(text) is Refusal.FULL


def has_four_words(text: str) -> bool:
    return _FOUR_WORDS.search(text.replace("’", "'")) is not None


def has_keywords(text: str) -> bool:
    plain = text.replace("’", "'")
    return any(keyword in plain for keyword in _KEYWORDS)


CLASSIFIERS: dict[str, IsRefusal] = {
    "this classifier": is_full_refusal,
    "four words": has_four_words,
    "jailbreak keywords": has_keywords,
}


def is_held_out(prompt: str) -> bool:
    return hashlib.sha256(prompt.strip().encode()).digest()[0] % 2 == 1


def read_half(data: Path, name: str, held_out: bool) -> list[Row]:
    with gzip.open(data / f"{name}.ndjson.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if is_held_out(row["prompt"]) is held_out and row["response"]]


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    rate, spread = hits / n, Z * Z / n
    middle = rate + spread / 2
    half = Z * math.sqrt(rate * (1 - rate) / n + spread / (4 * n))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    rate = hits / n if n else math.nan
    return f"{rate:.3f} ({low:.3f}–{high:.3f}), {hits}/{n}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def score(rows: Sequence[Row], is_positive: Callable[[Row], bool], judge: IsRefusal) -> list[str]:
    """Accuracy, precision, recall and specificity of one classifier."""
    counts = Counter((is_positive(row), judge(row["response"])) for row in rows)
    hit, missed = counts[True, True], counts[True, False]
    false, passed = counts[False, True], counts[False, False]
    return [
        share(hit + passed, len(rows)),
        share(hit, hit + false),
        share(hit, hit + missed),
        share(passed, passed + false),
    ]


def print_accuracy(xstest: list[Row], do_not_answer: list[Row]) -> None:
    clear = [row for row in xstest if row["label"] != "3_partial_refusal"]
    sets: list[tuple[str, list[Row], Callable[[Row], bool]]] = [
        ("XSTest, full refusal or compliance", clear, lambda row: row["label"][0] == "2"),
        *(
            (
                f"… answers of {model}",
                [row for row in clear if row["model"] == model],
                lambda row: row["label"][0] == "2",
            )
            for model in sorted({row["model"] for row in clear})
        ),
        ("Do-Not-Answer, its labels", do_not_answer, lambda row: bool(row["refusal"])),
    ]
    head = ["data", "classifier", "accuracy", "precision", "recall", "specificity"]
    lines = [
        [name, label, *score(rows, is_positive, judge)]
        for name, rows, is_positive in sets
        for label, judge in CLASSIFIERS.items()
    ]
    print("## Full refusals\n")
    print(table(head, lines))


def print_confusion(xstest: list[Row]) -> None:
    counts = Counter((row["label"], classify_text(row["response"])) for row in xstest)
    labels = sorted({row["label"] for row in xstest})
    lines = [[label, *(str(counts[label, r]) for r in Refusal)] for label in labels]
    print("## The three classes (XSTest)\n")
    print(table(["label", *(r.name for r in Refusal)], lines))


def print_flagged(sets: dict[str, list[Row]]) -> None:
    lines = []
    for name, rows in sets.items():
        verdicts = Counter(classify_text(row["response"]) for row in rows)
        rivals = [judge for judge in CLASSIFIERS.values() if judge is not is_full_refusal]
        flagged = [sum(judge(row["response"]) for row in rows) for judge in rivals]
        counts = [verdicts[Refusal.FULL], verdicts[Refusal.PARTIAL], *flagged]
        lines.append([name, *(share(count, len(rows)) for count in counts)])
    print("## Flagged\n")
    print(table(["data", "FULL", "PARTIAL", *list(CLASSIFIERS)[1:]], lines))


def time_one(judge: IsRefusal, text: str) -> float:
    """Microseconds of one call, best of a few."""
    best = math.inf
    for _ in range(TIMINGS):
        start = time.perf_counter_ns()
        judge(text)
        best = min(best, time.perf_counter_ns() - start)
    return best / 1_000


def time_pass(judge: IsRefusal, texts: Sequence[str]) -> float:
    """Microseconds of CPU per answer when each is met once, its text not in the cache yet."""
    best = math.inf
    for _ in range(TIMINGS):
        start = time.process_time_ns()
        for text in texts:
            judge(text)
        best = min(best, time.process_time_ns() - start)
    return best / 1_000 / len(texts)


def print_cost(sets: dict[str, list[Row]]) -> None:
    lines = []
    for name, rows in sets.items():
        texts = [row["response"] for row in rows[:: max(1, len(rows) // TIMED)]]
        length = int(np.median([len(text) for text in texts]))
        for label, judge in CLASSIFIERS.items():
            spent = np.array([time_one(judge, text) for text in texts])
            one_pass = time_pass(judge, [row["response"] for row in rows])
            figures = (np.median(spent), np.quantile(spent, 0.99), spent.mean(), one_pass)
            lines.append([name, str(length), label, *(f"{figure:.1f}" for figure in figures)])
    print("## Cost\n")
    head = ["data", "characters, median", "classifier", "µs, median", "p99", "mean", "one pass"]
    print(table(head, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--half", choices=["held-out", "development"], default="held-out")
    options = parser.parse_args()
    held_out = options.half == "held-out"

    def read(name: str) -> list[Row]:
        return read_half(options.data, name, held_out)

    xstest, do_not_answer = read("refusal_xstest"), read("refusal_do_not_answer")
    coconot, alpaca, japanese = read("coconot_pairs"), read("alpaca_eval"), read("ja_shaberi")
    print_accuracy(xstest, do_not_answer)
    print_confusion(xstest)
    print_flagged(
        {
            "alpaca_eval (ordinary prompts)": alpaca,
            "ja_shaberi (Japanese)": japanese,
            "Do-Not-Answer, labelled harmful": [r for r in do_not_answer if int(r["harmful"]) == 1],
            "CoCoNot contrast, preferred": [r for r in coconot if r["pair"] == "chosen"],
            "CoCoNot contrast, rejected": [r for r in coconot if r["pair"] == "rejected"],
        }
    )
    print_cost({"alpaca_eval": alpaca, "ja_shaberi": japanese, "XSTest": xstest})


if __name__ == "__main__":
    main()
