"""How often the semantic cache would answer what was not asked, and miss what was.

``python -m benchmarks.gateway.cache_pairs [--missed]`` reads `cache_pairs.tsv`: pairs of
questions that ask for the same, in politer or in other words, and pairs that only look like it:
another number, name, negation, order. For each cosine and each rule of `[gateway.cache] same` it
prints the share of pairs in which one's answer would be given to the other.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gateway.likeness import facts_of, wording_of, words_of
from pipeline.encoders.static import StaticEncoder

FILE = Path(__file__).with_name("cache_pairs.tsv")
SIMILARITIES = (0.85, 0.9, 0.95)
RULES: dict[str, Callable[[str], str]] = {
    "none": lambda _: "",
    "facts": facts_of,
    "words": lambda text: words_of(wording_of(text)),
}


class Pair(NamedTuple):
    """Two questions. `what` is ``near`` or ``same``."""

    what: str
    kind: str
    language: str
    one: str
    other: str


def read_pairs() -> list[Pair]:
    with FILE.open(encoding="utf-8", newline="") as lines:
        return [
            Pair(*row) for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row
        ]


def cosines(pairs: list[Pair]) -> list[float]:
    encoder = StaticEncoder.load()
    ones, others = (
        encoder.encode([wording_of(getattr(p, side)) for p in pairs]) for side in ("one", "other")
    )
    return [float(a @ b) for a, b in zip(ones, others, strict=True)]


def answered(pairs: list[Pair], similarity: float, rule: str) -> list[bool]:
    """Say for each pair whether one's answer would be given to the other."""
    same = RULES[rule]
    return [
        cosine >= similarity and same(p.one) == same(p.other)
        for p, cosine in zip(pairs, cosines(pairs), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.cache_pairs")
    parser.add_argument("--missed", action="store_true", help="also the pairs that went wrong")
    given = parser.parse_args()
    pairs = read_pairs()
    groups = sorted({(p.what, p.kind if p.what == "same" else "", p.language) for p in pairs})
    for similarity in SIMILARITIES:
        for rule in RULES:
            given_to = answered(pairs, similarity, rule)
            for what, kind, language in groups:
                of = [
                    hit
                    for p, hit in zip(pairs, given_to, strict=True)
                    if (p.what, p.language) == (what, language) and kind in {"", p.kind}
                ]
                name = f"{what} {kind} {language}"
                print(f"{similarity:.2f} {rule:8} {name:15} {sum(of):3} of {len(of):3}")
    if given.missed:
        tell_wrong(pairs)


def tell_wrong(pairs: list[Pair]) -> None:
    for rule in ("facts", "words"):
        for p, cosine in zip(pairs, cosines(pairs), strict=True):
            is_same = RULES[rule](p.one) == RULES[rule](p.other)
            if is_same and p.what == "near":
                print(f"{rule} {cosine:.3f} false: {p.one} | {p.other}")
            if p.what == "same" and not (is_same and cosine >= SIMILARITIES[-1]):
                print(f"{rule} {cosine:.3f} missed ({is_same=}): {p.one} | {p.other}")


if __name__ == "__main__":
    main()
