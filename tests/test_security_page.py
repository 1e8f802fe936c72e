"""SECURITY.md names a test for each line of its checklist, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def named(page: str) -> list[tuple[str, list[str]]]:
    """Each line of the checklist and the tests that it names."""
    body = page.partition("## The checklist")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", body, re.MULTILINE)
    return [(what, re.findall(r"`([^`]+)`", tests)) for what, tests in rows if what != "what holds"]


def test_every_line_names_tests_that_exist() -> None:
    lines = named(PAGE)
    assert len(lines) > 15
    for what, tests in lines:
        assert tests, what
        for test in tests:
            text = (ROOT / test).read_text(encoding="utf-8")
            assert re.search(r"^(?:async )?def test_", text, re.MULTILINE), test


def test_a_line_without_a_test_would_be_seen() -> None:
    assert named("## The checklist\n| all is well | somewhere |\n") == [("all is well", [])]


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)", PAGE):
        assert (ROOT / target).exists(), target
