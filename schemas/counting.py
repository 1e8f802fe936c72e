"""How each signal is found again in what is stored: the same counts, as SQL.

All are counted over `requests`, and only feedback over a table of its own: `RATINGS`.
"""

from __future__ import annotations

from schemas.signal import FIRST_CLASS, INPUT_CLASSES, Signal

#: A model answered, and not the gateway's cache.
_FRESH = "error_type = '' AND cache != 'hit'"
#: Tokens that can be read; without usage a quarter of the characters.
_ANSWER_SIZE = (
    "if(output_tokens IS NULL, output_chars / 4,"
    " greatest(toFloat64(ifNull(output_tokens, 0)) - ifNull(reasoning_tokens, 0), 0))"
)
_WHOLE = f"{_FRESH} AND NOT refused AND NOT truncated AND {_ANSWER_SIZE} IS NOT NULL"
#: Which class of input size a request is in, from 1.
_CLASS = (
    f"(1 + toInt64(least({INPUT_CLASSES - 1}, greatest(0,"
    f" floor(2 * log2(greatest(ifNull(input_tokens, 0), 1))) - {FIRST_CLASS}))))"
)


#: Of the rows of `feedback` with a request: which are counted over, and which count.
RATINGS = ("negative IS NOT NULL", "ifNull(negative, 0)")


def predicates(edge: str, edges: str) -> dict[Signal, tuple[str, str]]:
    """Return signal → which requests it is counted over, and which of them count.

    `edge` and `edges` are SQL for what the alarm says of them (see `Alarm`). Of what is
    summed and not counted nothing is said here.
    """
    own = f"arrayElement({edges}, {_CLASS})"
    return {
        Signal.REFUSAL: ("error_type = ''", "refused"),
        Signal.ERROR: ("1", "error_type != ''"),
        Signal.TRUNCATION: ("error_type = ''", "truncated"),
        Signal.SLOW_FIRST_CHUNK: (
            f"{_FRESH} AND time_to_first_chunk_s IS NOT NULL",
            f"time_to_first_chunk_s * 1e3 > {edge}",
        ),
        Signal.SLOW_OUTPUT: (
            "time_per_token_s IS NOT NULL",
            f"time_per_token_s * 1e6 > {edge}",
        ),
        Signal.LONG_ANSWER: (f"{_WHOLE} AND {own} >= 0", f"{_ANSWER_SIZE} > {own}"),
        Signal.SHORT_ANSWER: (f"{_WHOLE} AND {own} >= 0", f"{_ANSWER_SIZE} <= {own}"),
        Signal.COSTLY: (
            f"{_FRESH} AND cost_usd IS NOT NULL AND {own} >= 0",
            f"toFloat64(cost_usd) * 1e6 > {own}",
        ),
        Signal.PARTIAL_REFUSAL: ("error_type = ''", "partly_refused"),
        Signal.EMPTY_ANSWER: _known("empty"),
        Signal.GUARDRAIL: ("1", "guardrail != ''"),
        Signal.CACHE_HIT: ("cache IN ('hit', 'miss')", "cache = 'hit'"),
        Signal.OFF_PROMPT: _known("off_prompt"),
        Signal.NOVEL_PROMPT: _known("novel_prompt"),
        Signal.REPETITION: _known("repetitive"),
        Signal.LANGUAGE_MISMATCH: _known("language_mismatch"),
        Signal.CANARY_FAILURE: (
            "canary != '' AND canary_passed IS NOT NULL",
            "NOT ifNull(canary_passed, true)",
        ),
    }


def _known(column: str) -> tuple[str, str]:
    """A column that is NULL where nothing is known."""
    return f"{column} IS NOT NULL", f"ifNull({column}, 0)"
