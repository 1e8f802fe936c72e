"""Which answers of a chunk have to be read closely, decided for all of them at once.

Few answers refuse. What refusals have in common is looked for by RE2, an automaton that goes
over a whole column in one sweep and outside Python's lock: who speaks before a negation,
wording of policy, a sermon; and for an objection, classes of words whose weights could add up.
What is passed over could not have been judged anything but `NONE` by `english.judge` and
`japanese.judge`, whose words and patterns these are. The reverse does not hold.

Pure, and nothing is kept. Working memory: some ten times the openings, 420 characters each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.refusal import english, japanese, objection
from pipeline.core.refusal.text import OPENING_CHARS, OTHER_VOICES, SCARE_QUOTES

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def may_refuse(bodies: Sequence[str]) -> Bools:
    """Say of n answers, each from its start, which may be refusals, shape (n,)."""
    openings = [body[:OPENING_CHARS] for body in bodies]
    try:
        column = pa.array(openings, pa.string())
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot say
        return np.ones(len(bodies), np.bool_)
    may = np.zeros(len(bodies), np.bool_)
    wide = np.flatnonzero([not o.isascii() for o in openings])
    if len(wide):
        may[wide] = _matches(column.take(wide), _UNUSUAL)
        column = _simplify(column, wide)
    column = pc.ascii_lower(column)
    rows = np.flatnonzero(_matches(column, _GATES) & ~may)
    words = _read_openings(column.take(rows))
    found = _may_decline(words)
    lengths = np.fromiter((len(bodies[i]) for i in rows.tolist()), np.int64, len(rows))
    others = np.flatnonzero(~found & (lengths < english.OBJECTION_CHARS))
    found[others] = _may_object(words.take(others), lengths[others])
    may[rows] = found
    return may


def _matches(column: pa.StringArray, pattern: str) -> Bools:
    found: Bools = pc.match_substring_regex(column, pattern).to_numpy(zero_copy_only=False)
    return found


def _any_of(literals: Iterable[str]) -> str:
    return "|".join(map(re.escape, literals))


# --- The opening words --------------------------------------------------------------

_GATES = _any_of((*english.GATES, *english.OBJECTION_GATES))
#: What Japanese is judged by, and letters of full width, which only NFKC makes English.
_UNUSUAL = f"[ＥＯｅｏ]|{_any_of((*japanese.GATES, *japanese.OBJECTION_GATES))}"
#: What `text.plain` does.
_SIMPLER = (
    ("[’‘ʼ´`′＇]| \u0301", "'"),
    ("[“”„«»]", '"'),
    ("[\u00a0\u202f]", " "),
    ("[\u200b\u200c\u200d\u2060\ufeff\u00ad]+", ""),
)
#: White space as `str.split` has it, where there is more of it than one space.
_WHITE = r"\t-\r\x1c-\x1f\x{85}\p{Z}"
_SPACES = rf"[{_WHITE}]{{2,}}|[\t-\r\x1c-\x1f\x{{85}}]|[^\x00-\x7f\PZ]"


def _simplify(column: pa.StringArray, wide: Ints) -> pa.StringArray:
    """Spell the rows beyond ASCII in lower case and with plain signs."""
    simple = pc.utf8_lower(column.take(wide))
    for fancy, plain in _SIMPLER:
        simple = pc.replace_substring_regex(simple, fancy, plain)
    mask = np.zeros(len(column), np.bool_)
    mask[wide] = True
    return pc.replace_with_mask(column, mask, simple)


def _read_openings(column: pa.StringArray) -> pa.StringArray:
    """The answers' own words, as `english.read_opening` has them."""
    own = pc.replace_substring_regex(column, SCARE_QUOTES, r"\1")
    own = pc.replace_substring_regex(_between(own, "\n", ""), OTHER_VOICES, " ")
    own = pc.replace_substring_regex(own, "[*_#]+", "")
    own = pc.ascii_trim_whitespace(pc.replace_substring_regex(own, _SPACES, " "))
    return _between(own, " ", " ")


def _between(column: pa.StringArray, before: str, after: str) -> pa.StringArray:
    return pc.binary_join_element_wise(before, column, after, "")


# --- Declines -----------------------------------------------------------------------

_NEGATION = f" (?:{english.NEGATION})[ .,!;]"
#: RE2's \w is ASCII.
_WORDING = "|".join(
    wording.pattern.replace(r"\w", "[^ ]")
    for wording in (english.POLICY, english.SERMON, english.UNINFORMED)
)
#: Who may speak right before the negation …
_SPEAKER = f"^| (?:{_any_of(sorted(english.SPEAKER | english.SELF | {'we', 'we are'}))})"
_SPOKEN = f"(?:{_SPEAKER}){_NEGATION}|{_WORDING}"
#: … and what carries on who spoke before; then the answer names itself, or has only begun.
_CARRIER = f" (?:{_any_of(sorted(english.CARRIERS))})|{_any_of(english.CLAUSE_ENDS)}"
_CARRIED = f"(?:{_CARRIER}){_NEGATION}"
_CARRIED_EARLY = f"(?s)^.{{0,{english.START_CHARS}}}{_CARRIED}"
_OWN = _any_of(english.OWN)


def _may_decline(words: pa.StringArray) -> Bools:
    """Whether `english.score_declines` could say anything but 0."""
    found = _matches(words, f"{_NEGATION}|{_WORDING}")
    rows = np.flatnonzero(found)
    found[rows] = _may_be_own(words.take(rows))
    return found


def _may_be_own(words: pa.StringArray) -> Bools:
    """Whether it could be the answer that speaks."""
    found = _matches(words, _SPOKEN)
    carried = np.flatnonzero(~found)
    carried = carried[_matches(words.take(carried), _CARRIED)]
    rest = words.take(carried)
    found[carried] = _matches(rest, _OWN) | _matches(rest, _CARRIED_EARLY)
    return found


# --- Objections ---------------------------------------------------------------------

_CONTRARY = _any_of((*english.DENIALS, *english.OBJECTION_GATES))
_CLASSES = tuple(objection.CLASSES)
_WORDS = [(word, name) for name in _CLASSES for word in objection.CLASSES[name].split()]
#: Of each, the number of its class.
_CLASS = np.array([_CLASSES.index(name) for _, name in _WORDS])
_DROPPED = np.isin(np.arange(256), [ord(c) for c in ",.;!"])
#: What adds to the odds by being said; each is looked for only where it would tip them.
_PHRASES = {phrase: objection.WEIGHTS[phrase] for phrase in ("if you", "i must")}
#: Sums of the weights are a few rounding errors apart, by the order of adding.
_LEAST = objection.OBJECTS_FROM - 1e-6


@cache
def _vocabulary() -> pa.StringArray:
    """Every word of a class with the space behind it.

    Not at import: for its first array Arrow asks for pandas, which `pipeline.process` keeps out.
    """
    return pa.array([f"{word} " for word, _ in _WORDS])


def _may_object(words: pa.StringArray, lengths: Ints) -> Bools:
    """Whether `objection.weigh` could say that answers object which decline nothing."""
    heads = pc.utf8_slice_codeunits(words, 0, english.OBJECTION_START_CHARS)
    may = _matches(heads, _CONTRARY)
    rows = np.flatnonzero(may)
    odds = _bound_odds(words.take(rows), lengths[rows])
    rows, odds = rows[odds >= _LEAST], odds[odds >= _LEAST]
    may[:] = False
    may[rows] = odds + _weigh_phrases(words.take(rows)) >= _LEAST
    return may


def _bound_odds(words: pa.StringArray, lengths: Ints) -> Floats:
    """At most this does `objection.weigh` give for classes of words and the length.

    A denial counts wherever one could stand.
    """
    row, kind, early = _find_classes(words)
    whole = _presence(row, kind, len(words))
    first = _presence(row[early], kind[early], len(words))
    features = {
        **whole,
        **{f"first:{name}": has for name, has in first.items()},
        "denial": whole["negation"] & whole["verdict"],
        "first:denial": first["negation"] & first["verdict"],
        "protests": first["protest"],
        **_meet(whole, first),
        **{name: lengths < limit for limit, name in objection.BRIEF},
    }
    odds: Floats = np.full(len(words), objection.BIAS + sum(_PHRASES.values()))
    for name in objection.WEIGHTS.keys() & features.keys():
        odds += objection.WEIGHTS[name] * features[name]
    return odds


def _weigh_phrases(words: pa.StringArray) -> Floats:
    """What phrases that are missing, and digits, take off the bound."""
    odds = objection.WEIGHTS["digits"] * _matches(words, "[0-9]")
    for phrase, weight in _PHRASES.items():
        odds -= weight * ~_matches(words, f" {phrase} ")
    return np.asarray(odds)


def _presence(row: Ints, kind: Ints, texts: int) -> dict[str, Bools]:
    """Which of `texts` rows have a word of each class."""
    table = np.zeros((len(_CLASSES), texts), np.bool_)
    table[kind, row] = True
    return dict(zip(_CLASSES, table, strict=True))


def _meet(whole: dict[str, Bools], first: dict[str, Bools]) -> dict[str, Bools]:
    wrongs = np.logical_or.reduce([whole[name] for name in objection.WRONGS])
    morals = np.sum([whole[name] for name in objection.MORALS], axis=0)
    people = whole["people"] & ~whole["nature"]
    return {
        "denied of people": first["negation"] & people,
        "denied of wrongs": first["negation"] & wrongs,
        "rights of people": whole["rights"] & people,
        "lecture": first["urging"] & (wrongs | whole["harm"]),
        **{name: morals >= least for least, name in enumerate(objection.MORAL_STEPS, 1)},
    }


def _find_classes(words: pa.StringArray) -> tuple[Ints, Ints, Bools]:
    """Every word that has a class: its row, its class, and whether it is among the first."""
    offsets = np.frombuffer(words.buffers()[1], np.int32, len(words) + 1)
    utf8 = np.frombuffer(words.buffers()[2] or b"", np.uint8)[: offsets[-1]]
    kept = ~_DROPPED[utf8]
    bounds = np.concatenate([[0], np.cumsum(kept, dtype=np.int32)])[offsets]
    text = utf8[kept]
    spaces = np.flatnonzero(text == ord(" ")).astype(np.int32)
    buffers = [None, pa.py_buffer(spaces + np.int32(1)), pa.py_buffer(text)]
    tokens = pa.Array.from_buffers(pa.string(), max(len(spaces) - 1, 0), buffers)
    found = pc.index_in(tokens, value_set=_vocabulary())
    at = np.flatnonzero(found.is_valid())
    row = np.searchsorted(bounds, spaces[at], "right") - 1
    written = np.concatenate([[0], np.cumsum(np.diff(spaces) > 1)])
    before = written[np.searchsorted(spaces, bounds[:-1])]
    early = written[at] - before[row] < objection.FIRST_TOKENS
    return row, _CLASS[found.drop_null().to_numpy(zero_copy_only=False)], early
