"""Text from events comes out as one harmless line."""

from __future__ import annotations

import time
import unicodedata
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sinks.text import html, markdown, mrkdwn, plain

_PIECES = (
    *("\n", "\r\n", "\x00", "\x85", "\u2028", "\u2029", "\x1b[31m", "\x9b2J"),
    *("\u202e", "\u2066", "\u200b", "\u3164", "\ufe0f", "\ud800", "\U000e0041"),
    *("://", "www.", "[a](b)", "<b>"),
)
#: Text as an attacker writes it: any code point, and the pieces that do harm.
HOSTILE = st.lists(st.text() | st.sampled_from(_PIECES)).map("".join)


@pytest.mark.parametrize(
    ("hostile", "neutral"),
    [
        ("route\nRESOLVED: all is well", "route RESOLVED: all is well"),
        ("a\r\n\tb\x0b\x0c\x85c\u2028d\u2029e", "a b c d e"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b2Jcleared", "cleared"),
        ("\x1b]0;title\x07text", "]0;titletext"),
        ("abc\u202edef\u202c", "abcdef"),
        ("\u2066hidden\u2069 \u200bzero\u200d width\ufeff", "hidden zero width"),
        ("soft\u00adhyphen", "softhyphen"),
        ("tag\U000e0041\U000e007f", "tag"),
        ("blank\u2800\u3164\uffa0\u115fs", "blanks"),
        ("a\ufe0fb\U000e0100c", "abc"),
        ("nul\x00bell\x07del\x7f", "nulbelldel"),
        ("lone\ud800surrogate", "lonesurrogate"),
        ("wide\u3000space\u00a0here", "wide space here"),
        ("see http://evil.example/x", "see http[:]//evil.example/x"),
        ("JAVASCRIPT://x and WWW.evil.example", "JAVASCRIPT[:]//x and WWW[.]evil.example"),
        ("ht\u200btp:/\u202e/evil.example", "http[:]//evil.example"),
        ("gpt-4o, ルート=サポート", "gpt-4o, ルート=サポート"),
        ("", ""),
        (" \n\u200b ", ""),
    ],
)
def test_plain_neutralises(hostile: str, neutral: str) -> None:
    assert plain(hostile, 100) == neutral


def test_markdown_and_html_show_what_they_would_otherwise_obey() -> None:
    hostile = "[click](javascript:x) <img src=x> **b** `c` & @here | ![i](u)"
    assert "\\[click\\]\\(javascript\\:x\\)" in markdown(hostile, 100)
    assert html(hostile, 100).startswith("[click](javascript:x) &lt;img src=x&gt;")
    assert html("\"'&", 100) == "&quot;&#x27;&amp;"


@pytest.mark.parametrize(
    ("hostile", "neutral"),
    [
        ("<!channel> <@U1> <http://e|x>", "&lt;!channel&gt; &lt;＠U1&gt; &lt;http［:］//e｜x&gt;"),
        ("@here @all", "＠here ＠all"),
        ("*b* ~s~ `c`", "∗b∗ ∼s∼ ˋcˋ"),
        ("_i_ but prompt_name=a_b", "＿i＿ but prompt_name=a_b"),
        ("[a](b) # | \\", "［a］(b) ＃ ｜ ＼"),
        (":skull: at 08:52:20", "∶skull: at 08:52:20"),
        ("&amp;", "&amp;amp;"),
    ],
)
def test_a_chat_makes_nothing_of_it(hostile: str, neutral: str) -> None:
    assert mrkdwn(hostile, 100) == neutral


@given(HOSTILE)
def test_no_text_is_more_than_text_to_a_chat(hostile: str) -> None:
    shown = mrkdwn(hostile, 100)
    assert not set(shown) & set("<>*~`@#[]|\\\n")
    assert len(unescape(shown)) <= 100


def test_marks_cannot_pile_up_over_other_lines() -> None:
    assert plain("e" + "\u0301" * 50 + "x", 100) == "e" + "\u0301" * 4 + "x"


@pytest.mark.parametrize(("limit", "cut"), [(5, "abcd…"), (6, "abcdef"), (1, "…"), (0, "")])
def test_the_cap_counts_the_ellipsis(limit: int, cut: str) -> None:
    assert plain("abcdef", limit) == cut


def test_a_cut_leaves_no_space_before_the_ellipsis() -> None:
    assert plain("ab cdef", 4) == "ab…"


def test_ten_kilobytes_fit_and_take_no_time() -> None:
    started = time.perf_counter()
    for hostile in (
        "\x1b[" * 5_000,
        "\x1b[0;" * 2_500,
        "www." * 2_500,
        "[](" * 3_300,
        "\u0301" * 10_000,
    ):
        assert len(plain(hostile, 1_024)) <= 1_024
        assert len(markdown(hostile, 1_024)) <= 2_048
    assert time.perf_counter() - started < 2.0


@given(HOSTILE, st.integers(0, 300))
def test_any_text_becomes_one_visible_line_within_the_limit(hostile: str, limit: int) -> None:
    line = plain(hostile, limit)
    assert len(line) <= limit
    assert line.isprintable() or any(unicodedata.category(c) == "Zs" for c in line)
    assert not {c for c in line if unicodedata.category(c)[0] == "C"}
    assert len(line.splitlines()) <= 1
    assert "://" not in line
    line.encode()


@given(HOSTILE)
def test_neutral_text_stays_as_it_is(hostile: str) -> None:
    once = plain(hostile, 10_000)
    assert plain(once, 10_000) == once


@given(HOSTILE)
def test_html_loses_nothing(hostile: str) -> None:
    assert unescape(html(hostile, 10_000)) == plain(hostile, 10_000)
    assert not set(html(hostile, 10_000)) & set("<>\"'")


@given(HOSTILE)
def test_markdown_leaves_no_punctuation_bare(hostile: str) -> None:
    escaped = markdown(hostile, 10_000)
    assert escaped.replace("\\\\", "").count("\\") == sum(
        c in "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~" for c in plain(hostile, 10_000)
    )
