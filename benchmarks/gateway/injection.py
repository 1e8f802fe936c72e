"""How many prompt injections the guard finds, and how often it stops what is harmless.

    python -m benchmarks.gateway.injection [--data DIR] [--others FILE.csv ...] [--faults]

Over the three parts of the corpus beside it. The patterns were written with ``injection_dev.txt``;
the other parts were written before them, and before they were mended, and only then looked at:
docs/gateway.md has what was found of each at that time.
`--data` adds the prompts of real people, which are all counted as harmless; `--others` texts
with the columns ``text`` and ``label`` (1 is an attack) that others have collected.
"""

from __future__ import annotations

import argparse
import base64
import codecs
import csv
import gzip
import json
import re
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from scipy.stats import beta

from gateway.injection import weigh

PARTS = {
    half: Path(__file__).with_name(f"injection_{half}.txt") for half in ("dev", "held", "fresh")
}
#: Files of real prompts, and the key of the prompt in their lines.
PROMPTS = {
    "alpaca_eval": "prompt",
    "ja_shaberi": "prompt",
    "refusal_xstest": "prompt",
    "refusal_do_not_answer": "prompt",
    "coconot_pairs": "prompt",
}
_DISGUISE = re.compile(r"\{(\w+)\|([^|{}]+)\}")
_LEET = str.maketrans("aeiost", "431057")
_ALIKE = str.maketrans("aeopcyxi", "аеорсухі")
_HALF_WIDTH = dict(
    zip(
        "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲンー",
        "ｱｲｳｴｵｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾅﾆﾇﾈﾉﾊﾋﾌﾍﾎﾏﾐﾑﾒﾓﾔﾕﾖﾗﾘﾙﾚﾛﾜｦﾝｰ",
        strict=True,
    )
)
_BOLD = 0x1D41A - ord("a")


def _to_half_width(text: str) -> str:
    apart = unicodedata.normalize("NFD", text)
    return "".join({"\u3099": "ﾞ", "\u309a": "ﾟ"}.get(c, _HALF_WIDTH.get(c, c)) for c in apart)


DISGUISES: dict[str, Callable[[str], str]] = {
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "reverse": lambda text: text[::-1],
    "leet": lambda text: text.translate(_LEET),
    "full": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "half": _to_half_width,
    "zero": "\u200b".join,
    "homo": lambda text: text.translate(_ALIKE),
    "spaced": lambda text: " ".join(text.replace(" ", "")),
    "dashed": lambda text: " ".join("-".join(word) for word in text.split()),
    "bold": lambda text: "".join(chr(ord(c) + _BOLD) if "a" <= c <= "z" else c for c in text),
}


class Text(NamedTuple):
    language: str
    is_attack: bool
    kind: str
    text: str


class Score(NamedTuple):
    """Counts over texts."""

    attacks: int
    found: int
    benign: int
    stopped: int

    @property
    def recall(self) -> float:
        return self.found / self.attacks if self.attacks else 1.0

    @property
    def precision(self) -> float:
        told = self.found + self.stopped
        return self.found / told if told else 1.0

    @property
    def stopped_share(self) -> float:
        return self.stopped / self.benign if self.benign else 0.0

    def __str__(self) -> str:
        said = f"recall {self.recall:6.1%} ({self.found}/{self.attacks})"
        said += f", precision {self.precision:6.1%}"
        return f"{said}, harmless stopped {self.stopped_share:6.2%} ({self.stopped}/{self.benign})"


def read_corpus(file: Path) -> Iterator[Text]:
    """Yield the texts of one half, with their disguises on."""
    language = verdict = kind = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            language, verdict, kind = line.removeprefix("== ").split()
        elif line and language:
            text = _DISGUISE.sub(lambda m: DISGUISES[m[1]](m[2]), line.replace("\\n", "\n"))
            yield Text(language, verdict == "attack", kind, text)


def read_prompts(data: Path) -> dict[str, list[str]]:
    """Return the distinct prompts of each file of real ones."""
    found = {}
    for name, key in PROMPTS.items():
        with gzip.open(data / f"{name}.ndjson.gz", "rt", encoding="utf-8") as lines:
            found[name] = list(dict.fromkeys(json.loads(line)[key] for line in lines))
    return found


def read_others(file: Path) -> list[Text]:
    """Read a table of what others have collected."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    distinct = {row["text"]: row for row in rows}
    return [
        Text(row.get("language") or "en", row["label"] == "1", row.get("attack_type") or "", text)
        for text, row in distinct.items()
    ]


def score(texts: Iterable[Text]) -> Score:
    """Ask the guard about each."""
    counted: Counter[tuple[bool, bool]] = Counter()
    for each in texts:
        counted[each.is_attack, weigh(each.text).is_found] += 1
    found, stopped = counted[True, True], counted[False, True]
    return Score(found + counted[True, False], found, stopped + counted[False, False], stopped)


def bound_share(stopped: int, number: int) -> float:
    """Return the upper Clopper-Pearson bound, at 95 %, of a share."""
    return float(beta.ppf(0.95, stopped + 1, number - stopped)) if stopped < number else 1.0


def measure_cost_us(texts: list[str]) -> float:
    """Return microseconds of CPU for a text; what compiles as it goes has been seen before."""
    begin = time.process_time()
    for text in texts:
        weigh(text)
    return (time.process_time() - begin) / len(texts) * 1e6


def list_faults(texts: Iterable[Text]) -> Iterator[str]:
    for each in texts:
        evidence = weigh(each.text)
        if evidence.is_found != each.is_attack:
            what = "missed" if each.is_attack else f"stopped as {evidence.family}"
            yield f"{each.language} {each.kind} {what} ({evidence.score:.1f}): {each.text[:300]!r}"


def print_part(name: str, texts: list[Text]) -> None:
    print(f"{name}:")
    for language in ("en", "ja"):
        mine = [t for t in texts if t.language == language]
        print(f"  {language}: {score(mine)}")
        for verdict in (True, False):
            kinds = dict.fromkeys(t.kind for t in mine if t.is_attack is verdict)
            shares = []
            for kind in kinds:
                part = [t for t in mine if t.kind == kind and t.is_attack is verdict]
                told = sum(weigh(t.text).is_found for t in part)
                shares.append(f"{kind} {told}/{len(part)}")
            print(f"      {'found' if verdict else 'stopped'}: {', '.join(shares)}")
    print(f"  all: {score(texts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of real prompts")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="tables of texts")
    parser.add_argument("--parts", default="dev,held,fresh")
    parser.add_argument("--faults", action="store_true")
    given = parser.parse_args()
    halves = {half: list(read_corpus(PARTS[half])) for half in given.parts.split(",")}
    for half, texts in halves.items():
        print_part(half, texts)
    faults = [fault for texts in halves.values() for fault in list_faults(texts)]
    if given.data is not None:
        prompts = read_prompts(given.data)
        total = Score(0, 0, 0, 0)
        for name, texts in prompts.items():
            mine = [Text("", False, name, text) for text in texts]
            found = score(mine)
            total = Score(*(a + b for a, b in zip(total, found, strict=True)))
            print(f"{name}: {found.stopped} of {found.benign} stopped")
            faults += list_faults(mine)
        real = [text for texts in prompts.values() for text in texts]
        at_most = bound_share(total.stopped, total.benign)
        print(f"real prompts: {total.stopped_share:.2%} stopped, at most {at_most:.2%} (95 %)")
        print(f"{measure_cost_us(real):.0f} µs of CPU for a real prompt")
    for file in given.others:
        texts = read_others(file)
        print(f"{file.stem}: {score(texts)}")
    cost_us = measure_cost_us([t.text for texts in halves.values() for t in texts])
    print(f"{cost_us:.0f} µs of CPU for a text of the corpus")
    if given.faults:
        print(*faults, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
