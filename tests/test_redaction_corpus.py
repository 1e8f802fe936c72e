"""What is promised about redaction is what the corpus says, and the page says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.redaction import Text, read_corpus, score, score_kinds
from pipeline.core.redaction import Kind

PAGE = Path(__file__).parents[1] / "SECURITY.md"
TEXTS = list(read_corpus())
PARTS = ("seen en", "seen ja", "held out en", "held out ja", "clean en", "clean ja")
#: What has a form: none of these may be missed.
FORMED = (Kind.JWT, Kind.API_KEY, Kind.IBAN, Kind.CARD, Kind.US_SSN, Kind.JP_POSTAL_CODE)


def of(*parts: str) -> list[Text]:
    return [each for each in TEXTS if each.part in parts]


def test_the_corpus_has_its_parts() -> None:
    assert tuple(dict.fromkeys(each.part for each in TEXTS)) == PARTS
    assert {kind for each in TEXTS for kind, _, _ in each.marks} >= {*Kind} - {Kind.PRIVATE_KEY}
    assert score(of(*PARTS[2:4])).marks > 60
    assert all(len(of(part)) >= 15 for part in PARTS)


@pytest.mark.parametrize("part", PARTS[:4])
def test_most_is_found_in_both_languages(part: str) -> None:
    assert score(of(part)).recall >= 0.85
    assert score(of(part)).precision >= 0.97


def test_what_has_a_form_is_always_found() -> None:
    kinds = score_kinds(TEXTS)
    for kind in FORMED:
        found, total = kinds[kind]
        assert found == total > 0, kind


def test_little_is_found_where_nothing_is() -> None:
    clean = of("clean en", "clean ja")
    assert score(clean).spans <= 1
    assert len(clean) > 40


def test_the_page_says_what_is_measured() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ((?:seen|held out|clean) \w+) \| (.+?) \|$", page, re.MULTILINE))
    measured = {part: score(of(part)) for part in PARTS}
    assert rows == {
        part: f"{s.found} of {s.marks} | {s.right} of {s.spans}" for part, s in measured.items()
    }
