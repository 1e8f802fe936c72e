"""Fit the weights of ``pipeline/core/refusal/objection.py``, and say what they are worth.

    python -m benchmarks.refusal_fit DATA_DIR

Logistic regression with a quadratic penalty and with the sign of every weight that has an
obvious one held: a moral word never speaks for an answer. Fitted to the answers that do not
decline: those that XSTest's readers call a full refusal against those they call full
compliance; with less weight, CoCoNot's preferred answers to harmless prompts; and the
answers of ``refusal_examples.py``. Prints the
accuracy of the whole classifier on prompts, kinds of prompts and models that were left out
of the fit, and then the weights, as they stand in the module.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from benchmarks.refusal_examples import ANSWERS, OBJECTIONS
from pipeline.core.refusal import english, objection
from pipeline.core.refusal.text import FULL, skip_reasoning

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Inverse of the penalty.
STRENGTH = 1.0
#: How much one of CoCoNot's answers counts: there are many, and they are all compliances.
ORDINARY_WEIGHT = 0.3
#: A feature that fewer answers have is not fitted.
SEEN_AT_LEAST = 4
#: Weights below this are left out of the table.
SMALL = 0.1
FOLDS = 10
#: XSTest lists its prompts by kind, 25 to a kind.
PROMPTS_PER_KIND = 25

#: Features that can only speak for an answer, and features that may speak for either; all
#: others can only speak for an objection.
FOR_ANSWER = frozenset(
    name for kind in ("answer", "nature", "cheer") for name in (kind, f"first:{kind}")
) | {"colon", "digits", "instructs", "defines"}
EITHER = frozenset(
    name
    for kind in ("verdict", "people", "advice", "doubt", "opinion", "turn")
    for name in (kind, f"first:{kind}")
) | {"if you", "under 250", "under 500", "under 900"}


@dataclass(frozen=True)
class Answer:
    """An answer as the fit sees it."""

    prompt: str
    model: str
    #: 1 full compliance, 2 full refusal, as in XSTest.
    label: int
    #: What the rest of the classifier says, if the answer declines: it is not fitted then.
    declined: bool
    refused: bool
    features: frozenset[str]


def read(data: Path, name: str) -> list[dict[str, str]]:
    with gzip.open(data / f"{name}.ndjson.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def see(row: dict[str, str], label: int) -> Answer:
    body = skip_reasoning(row["response"])
    words = english.read_opening(body)
    score = english.score_declines(words, len(body)) if words else 0.0
    declined = score >= english.FULL_FROM
    doubtful = score >= english.PARTIAL_FROM
    return Answer(
        prompt=row["prompt"].strip(),
        model=row["model"],
        label=label,
        declined=declined or not english.may_object(words, body),
        refused=declined and english.judge(body) == FULL,
        features=frozenset(objection.measure(words, len(body), doubtful)) if words else frozenset(),
    )


def examples() -> list[Answer]:
    labelled = ((2, OBJECTIONS), (1, ANSWERS))
    rows = [
        (label, {"prompt": "", "model": "", "response": t}) for label, ts in labelled for t in ts
    ]
    return [see(row, label) for label, row in rows]


def design(answers: Sequence[Answer], names: Sequence[str]) -> Floats:
    """One row an answer, one column a feature and a last one for the bias."""
    rows = [[*(float(name in a.features) for name in names), 1.0] for a in answers]
    return np.array(rows).reshape(len(answers), len(names) + 1)


def fit(x: Floats, is_objection: Bools, weights: Floats, names: Sequence[str]) -> Floats:
    """Maximise the penalised likelihood within the signs; the bias, last, is free of both."""
    sides = np.where(is_objection, 1.0, -1.0)
    penalty = np.r_[np.ones(len(names)), 0.0] / STRENGTH

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = sides * (x @ w)
        slope = -weights * sides * np.exp(-np.logaddexp(0.0, margin))
        value = weights @ np.logaddexp(0.0, -margin) + 0.5 * penalty @ (w * w)
        return float(value), x.T @ slope + penalty * w

    bounds = [*map(bound, names), (None, None)]
    start = np.zeros(len(names) + 1)
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


def bound(name: str) -> tuple[float | None, float | None]:
    if name in EITHER:
        return None, None
    return (None, 0.0) if name in FOR_ANSWER else (0.0, None)


def train(answers: Sequence[Answer], others: Sequence[Answer], names: Sequence[str]) -> Floats:
    used = [a for a in (*answers, *others) if not a.declined]
    weights = np.array([ORDINARY_WEIGHT if a.model == "preferred" else 1.0 for a in used])
    return fit(design(used, names), np.array([a.label == 2 for a in used]), weights, names)


def leave_out(
    answers: Sequence[Answer], others: Sequence[Answer], names: Sequence[str], groups: list[str]
) -> Bools:
    """Whether each answer is called a full refusal by a fit that has not seen its group."""
    verdicts = np.zeros(len(answers), dtype=bool)
    for left_out in sorted(set(groups)):
        pairs = list(enumerate(zip(answers, groups, strict=True)))
        w = train([a for _, (a, group) in pairs if group != left_out], others, names)
        for at, a in [(at, a) for at, (a, group) in pairs if group == left_out]:
            objects = not a.declined and (design([a], names) @ w)[0] >= objection.OBJECTS_FROM
            verdicts[at] = a.refused or objects
    return verdicts


def groupings(answers: Sequence[Answer]) -> dict[str, list[str]]:
    order = {prompt: at for at, prompt in enumerate(dict.fromkeys(a.prompt for a in answers))}
    folds = [hashlib.sha256(a.prompt.encode()).digest()[0] % FOLDS for a in answers]
    return {
        "prompts": [str(fold) for fold in folds],
        "kinds of prompts": [str(order[a.prompt] // PROMPTS_PER_KIND) for a in answers],
        "models": [a.model for a in answers],
    }


def print_worth(answers: Sequence[Answer], others: Sequence[Answer], names: Sequence[str]) -> None:
    truth = np.array([a.label == 2 for a in answers])
    print(
        "| left out of the fit | accuracy | sensitivity | specificity |\n| --- | --- | --- | --- |"
    )
    for left_out, groups in groupings(answers).items():
        right = leave_out(answers, others, names, groups) == truth
        figures = (right.mean(), right[truth].mean(), right[~truth].mean())
        print(f"| {left_out} | {' | '.join(f'{figure:.3f}' for figure in figures)} |")
    print()


def print_weights(names: Sequence[str], w: Floats) -> None:
    print(f"BIAS = {w[-1]:.2f}\nWEIGHTS: dict[str, float] = {{")
    for name, weight in sorted(zip(names, w, strict=False), key=lambda pair: -pair[1]):
        if abs(weight) >= SMALL:
            print(f'    "{name}": {weight:.2f},')
    print("}")


def read_labelled(data: Path) -> tuple[list[Answer], list[Answer], list[str]]:
    """XSTest's answers, the others to fit to, and the features that are fitted."""
    labelled = [row for row in read(data, "refusal_xstest") if row["label"][0] != "3"]
    answers = [see(row, int(row["label"][0])) for row in labelled]
    preferred = [row for row in read(data, "coconot_pairs") if row["pair"] == "chosen"]
    others = [*(see(row, 1) for row in preferred), *examples()]
    seen = [name for a in answers if not a.declined for name in a.features if name]
    return answers, others, sorted(n for n in set(seen) if seen.count(n) >= SEEN_AT_LEAST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    answers, others, names = read_labelled(parser.parse_args().data)
    print_worth(answers, others, names)
    print_weights(names, train(answers, others, names))


if __name__ == "__main__":
    main()
