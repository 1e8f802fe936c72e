"""Answers that loop: the same piece again and again until the end.

A model that has lost its thread repeats a word, a line or a paragraph until it is cut
off (Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020). So
the end is looked at: three short pieces of it, at distances that no one period lines
up with, must all stand many times in the last part of the text. In ordinary prose the
first of them stands there once, and nothing more is asked. A loop that counts as it goes
("step 41, step 42") is not seen.

Pure and total: of any string at most `WINDOW_CHARS` characters are looked at.
"""

from __future__ import annotations

#: Shorter answers cannot have repeated themselves for long.
LEAST_CHARS = 200
WINDOW_CHARS = 2_048
PIECE_CHARS = 24
#: How far before the end each piece ends.
DISTANCES = (0, 53, 127)
#: So often each piece must stand there, its own place included.
TIMES = 4


def is_repetitive(text: str) -> bool:
    """Return whether the end of a text is the same piece over and over."""
    if len(text) < LEAST_CHARS:
        return False
    # White space at the end is no part of what is repeated.
    window = text[-WINDOW_CHARS:].rstrip()
    if len(window) < LEAST_CHARS:
        return False
    for distance in DISTANCES:
        end = len(window) - distance
        if window.count(window[end - PIECE_CHARS : end]) < TIMES:
            return False
    return True
