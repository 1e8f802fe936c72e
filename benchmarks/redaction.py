"""How much of what must not be stored is found, and how much of what is found had to be.

``python -m benchmarks.redaction``: recall by kind and language over the corpus beside it,
precision over all of it, and what a text costs. A mark is found when every character of it
is within a span, whatever its kind; a span is right when it touches a mark.
"""

from __future__ import annotations

import json
import random
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.core.redaction import Kind, find

CORPUS = Path(__file__).with_name("redaction_corpus.txt")
_MARK = re.compile(r"<<(\w+)\|(.+?)>>")
_FILLER = re.compile(r"\{([adh])(\d+)\}")
_LETTERS = {
    "a": string.ascii_letters + string.digits,
    "d": string.digits,
    "h": "0123456789abcdef",
}


class Text(NamedTuple):
    part: str
    text: str
    marks: tuple[tuple[Kind, int, int], ...]


class Score(NamedTuple):
    marks: int
    found: int
    spans: int
    right: int

    @property
    def recall(self) -> float:
        return self.found / self.marks if self.marks else 1.0

    @property
    def precision(self) -> float:
        return self.right / self.spans if self.spans else 1.0


def read_corpus() -> Iterator[Text]:
    """Yield the texts with their marks taken out and fillers put in, the same ones every time."""
    rng, part = random.Random(4), ""  # noqa: S311 - no secrets, only their forms
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            part = line.removeprefix("== ")
        elif line and not line.startswith("#"):
            yield _read_line(part, _FILLER.sub(lambda m: _fill(m, rng), line))


def _fill(match: re.Match[str], rng: random.Random) -> str:
    return "".join(rng.choice(_LETTERS[match[1]]) for _ in range(int(match[2])))


def _read_line(part: str, line: str) -> Text:
    text, marks, end = "", [], 0
    for match in _MARK.finditer(line):
        text += line[end : match.start()]
        marks.append((Kind(match[1]), len(text), len(text) + len(match[2])))
        text += match[2]
        end = match.end()
    return Text(part, text + line[end:], tuple(marks))


def score(texts: list[Text]) -> Score:
    """Count over texts."""
    marks = found = spans = right = 0
    for each in texts:
        seen = find(each.text)
        covered = {i for span in seen for i in range(span.start, span.end)}
        wanted = {i for _, start, end in each.marks for i in range(start, end)}
        marks += len(each.marks)
        found += sum(covered.issuperset(range(start, end)) for _, start, end in each.marks)
        spans += len(seen)
        right += sum(not wanted.isdisjoint(range(s.start, s.end)) for s in seen)
    return Score(marks, found, spans, right)


def score_kinds(texts: list[Text]) -> dict[Kind, tuple[int, int]]:
    """Kind → how many of its marks were found, of how many."""
    found: Counter[Kind] = Counter()
    total: Counter[Kind] = Counter()
    for each in texts:
        covered = {i for span in find(each.text) for i in range(span.start, span.end)}
        for kind, start, end in each.marks:
            total[kind] += 1
            found[kind] += covered.issuperset(range(start, end))
    return {kind: (found[kind], total[kind]) for kind in Kind if total[kind]}


def list_faults(texts: list[Text]) -> Iterator[str]:
    """Say what was missed, and what was found for nothing."""
    for each in texts:
        seen = find(each.text)
        covered = {i for span in seen for i in range(span.start, span.end)}
        wanted = {i for _, start, end in each.marks for i in range(start, end)}
        for kind, start, end in each.marks:
            if not covered.issuperset(range(start, end)):
                yield f"missed {kind}: {each.text[start:end]!r} in {each.text!r}"
        for span in seen:
            if wanted.isdisjoint(range(span.start, span.end)):
                yield f"for nothing {span.kind}: {each.text[span.start : span.end]!r}"


def measure_cost(texts: list[Text]) -> float:
    """Return microseconds of CPU for a thousand characters of the corpus."""
    joined, rounds = [each.text for each in texts], 20
    begin = time.process_time()
    for _ in range(rounds):
        for text in joined:
            find(text)
    characters = rounds * sum(map(len, joined))
    return (time.process_time() - begin) / characters * 1e9


def main() -> None:
    texts = list(read_corpus())
    parts = list(dict.fromkeys(each.part for each in texts))
    table = {part: score([t for t in texts if t.part == part]) for part in parts}
    held = [t for t in texts if t.part.startswith("held")]
    clean = [t for t in texts if t.part.startswith("clean")]
    if "--json" in sys.argv:
        print(json.dumps({part: each._asdict() for part, each in table.items()}))
        return
    for part, each in table.items():
        print(f"{part:12} {each.found}/{each.marks} found, {each.right}/{each.spans} spans right")
    print("held out, by kind:")
    for kind, (found, total) in score_kinds(held).items():
        print(f"  {kind:16} {found}/{total}")
    print(f"held out and clean: precision {score(held + clean).precision:.3f}")
    print(f"{measure_cost(texts):.0f} µs of CPU for 1,000 characters")
    if "--faults" in sys.argv:
        print(*list_faults(texts), sep="\n")


if __name__ == "__main__":
    main()
