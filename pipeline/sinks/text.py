"""Text that came from events, made harmless before a person reads it on a page.

A route, a model name or an event id is whatever a caller wrote. On its way to a
pager or a chat it must not forge a second line, turn the reading direction
round, hide, or become a link. Nothing here does I/O.
"""

from __future__ import annotations

import re
from html import escape
from unicodedata import category

import msgspec

ELLIPSIS = "…"
#: Stands for a character that may not be printed.
HIDDEN = "\ufffd"
#: Control, line-separating and bidirectional characters that JSON lets through.
_UNSEEN = re.compile(
    "[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)

#: ECMA-48 control sequences. Bounded, so that one introducer cannot swallow the text behind it.
_ANSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]{0,32}[ -/]{0,4}[@-~]")
#: Characters that show nothing although their category says that they do: fillers, the blank
#: Braille cell, the grapheme joiner, variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
#: More marks than this on one letter reach into the lines above and below.
_MARKS_MAX = 4
_LINK = re.compile(r"://|\bwww\.", re.IGNORECASE)
#: Every ASCII character that CommonMark lets a backslash escape.
_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")
#: What chats make something of, and what stands for it: mrkdwn knows no escapes but those of
#: its three control characters, so the others are replaced by their likenesses.
_CHAT = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "*": "\u2217",
        "~": "\u223c",
        "`": "\u02cb",
        "@": "\uff20",
        "#": "\uff03",
        "[": "\uff3b",
        "]": "\uff3d",
        "|": "\uff5c",
        "\\": "\uff3c",
    }
)
#: An underscore at the border of a word slants; within one, as in ``prompt_name``, it does not.
_SLANTING = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
#: ``:name:`` becomes a picture; the colons of a time of day do not.
_PICTURE = re.compile(r"(?<!\w):(?=[\w+'-]+:)")


def printable(text: str) -> str:
    """Return `text` with a mark in place of what would move a cursor or hide, one for each."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if category(c) == "Zs" else HIDDEN for c in text)


def json_line(item: object) -> str:
    """Return one line of JSON in which nothing moves a cursor either; it reads as the same data."""
    return _UNSEEN.sub(_escape_json, msgspec.json.encode(item).decode())


def _escape_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def plain(text: str, limit_chars: int) -> str:
    """Return `text` as one line of at most `limit_chars` visible characters.

    Terminal sequences, control, format (bidirectional and zero-width), surrogate,
    private and unassigned characters are dropped; any white space, line and
    paragraph separators included, becomes one space; addresses are broken so
    that nothing turns them into links. What is cut off is replaced by ``…``.
    """
    visible = "".join(filter(_is_visible, " ".join(_ANSI.sub("", text).split())))
    line = " ".join(_INVISIBLE.sub("", visible).split())
    return _cut(_LINK.sub(_break_link, _thin_marks(line)), limit_chars)


def markdown(text: str, limit_chars: int) -> str:
    """Return `plain` text with every character escaped that Markdown could take for its own.

    `limit_chars` counts what a reader sees; the escaped text is up to twice as long.
    """
    return _MARKDOWN.sub(r"\\\1", plain(text, limit_chars))


def mrkdwn(text: str, limit_chars: int) -> str:
    """Return `plain` text for Slack's mrkdwn, or the Markdown of chats that take Slack's messages.

    It mentions nobody, makes no link or picture, and stands as it is. `limit_chars` counts what
    a reader sees; the escaped text is up to five times as long.
    Source: Slack's documentation, "Formatting text for app surfaces".
    """
    line = _PICTURE.sub("\u2236", _SLANTING.sub("\uff3f", plain(text, limit_chars)))
    return line.translate(_CHAT)


def html(text: str, limit_chars: int) -> str:
    """Return `plain` text escaped for HTML, within attributes too.

    `limit_chars` counts what a reader sees; the escaped text is up to six times as long.
    """
    return escape(plain(text, limit_chars), quote=True)


def _is_visible(character: str) -> bool:
    return not category(character).startswith("C")


def _thin_marks(line: str) -> str:
    kept, marks = [], 0
    for character in line:
        marks = marks + 1 if category(character) in {"Mn", "Me"} else 0
        if marks <= _MARKS_MAX:
            kept.append(character)
    return "".join(kept)


def _break_link(found: re.Match[str]) -> str:
    return "[:]//" if found[0] == "://" else found[0][:-1] + "[.]"


def _cut(line: str, limit_chars: int) -> str:
    if len(line) <= limit_chars:
        return line
    return line[: max(0, limit_chars - 1)].rstrip() + ELLIPSIS[:limit_chars]
