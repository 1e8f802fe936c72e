"""What must be the same in two questions before the answer to one may answer the other.

Vectors do not see it: "12 + 5" and "12 + 7", "approved" and "rejected", "from Kyoto to Osaka" and
back lie closer together than most paraphrases do (the figures are in docs/gateway.md). So two
questions must also agree to the letter in one of two things:

- `words_of`: all words in their order, but for politeness, ways of asking ("could you tell me
  how to", を教えてください), marks, and words that say next to nothing;
- `facts_of`: numbers, negations, opposites, names, dates, who is asked about, code and what is
  quoted, in order; of Japanese all kanji and katakana.

Pure; linear in the text.
"""

from __future__ import annotations

import re
import unicodedata

#: What is code or quoted stands for itself, to the letter.
_VERBATIM = re.compile(
    r"```.*?```|`[^`]*`|\"[^\"]*\"|“[^”]*”|«[^»]*»|「[^」]*」|『[^』]*』"
    r"|(?<![^\s(])'[^'\n]+'(?![^\s.,!?;:)])",
    re.DOTALL,
)
_APOSTROPHES = str.maketrans("’‘", "''")
_SPACES = re.compile(r"\s+")


def _split(text: str) -> list[str]:
    """Part a text: what is verbatim stands at the odd places."""
    plain = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
    parts, at = [], 0
    for quoted in _VERBATIM.finditer(plain):
        parts += [plain[at : quoted.start()], quoted.group()]
        at = quoted.end()
    return [*parts, plain[at:]]


# --- Words ------------------------------------------------------------------------------------

_SAME_FORM = (
    (re.compile(r"\bcan(?:no|')t\b", re.IGNORECASE), "can not"),
    (re.compile(r"\bwon't\b", re.IGNORECASE), "will not"),
    (re.compile(r"n't\b", re.IGNORECASE), " not"),
    (re.compile(r"\b(what|where|who|how|when|that|there|it)'s\b", re.IGNORECASE), r"\1 is"),
    (re.compile(r"'re\b", re.IGNORECASE), " are"),
    (re.compile(r"\bi'm\b", re.IGNORECASE), "i am"),
    (re.compile(r"\bi'd\b", re.IGNORECASE), "i would"),
    (re.compile(r"\b(how|where) (?:do|can|could|would) i\b", re.IGNORECASE), r"\1 to"),
    (
        re.compile(
            r"([てで])(?:ください|下さい|いただけますか|頂けますか|もらえますか)", re.IGNORECASE
        ),
        r"\1",
    ),
)
#: What asks for one certain thing, or how: with these many beginnings are the same. "What is a
#: haiku" and "give me a haiku" are not.
_CERTAIN = r"(?= (?:the|my|your|our|how|what|why|where|who|when|which)\b)"
_REQUESTS = (
    "tell|explain|give|show|write|help|translate|summari[sz]e|list|describe|suggest|recommend|find"
    "|check|correct|convert|draft|compare|provide|create|make"
)
#: Ways to begin a question that ask for the same.
_LEAD = re.compile(
    r"(?:hi|hello|hey|good (?:morning|afternoon|evening)|excuse me)[,.!]+\s*"
    r"|(?:please|kindly),? +(?!in\b|is\b|means?\b)"
    rf"|(?:can|could|would|will) you +(?=(?:please|kindly|{_REQUESTS})\b)"
    rf"|(?:tell me|let me know|do you know|give me|show me|what (?:is|are)){_CERTAIN} +"
    r"|i (?:want|need|would like) to know +"
    r"|(?:すみません(?:が)?|こんにちは|お忙しいところ|恐れ入りますが)[、。!,\s]+",
    re.IGNORECASE,
)
#: Only behind a mark: "how do you say please" asks for something else.
_TAIL = re.compile(
    r"[,.!?;:]\s*(?:please|thanks|thank you)(?: (?:a lot|so much|very much))?$"
    r"|(?:よろしく|[。!?]\s*)(?:お願い(?:いた|致)?します|おねがいします)$"
    r"|(?:を|について)?(?:教え|おしえ)て$|(?:とは|は|って)(?:何|なん|なに)(?:です|でしょう)か$"
    r"|(?:です|でしょう)か$|です$",
    re.IGNORECASE,
)
_ENDING = " \t\n.,!?;:。、・…"
_PARTICLE = re.compile(r"(?:とは|って|は|を)$")
#: But "a few" is not "few".
_ARTICLES = re.compile(r"\b(?:an?|the) +(?!few\b|little\b)")
#: Marks count where they stand inside of something: 3.5, list.sort, 12:30.
_MARKS = re.compile(r"[,.!?;:…]+(?=\s|$)|[、。]")
_LIGHT = re.compile(r"(?<!\S)(?:is|are|of|also|just|and)(?!\S)")
#: A question has few layers of politeness.
_LAYERS = 6


def wording_of(text: str) -> str:
    """Return a text without politeness, ways of asking, articles and marks: what is compared."""
    parts = _peel(text)
    parts[0::2] = [_MARKS.sub("", _ARTICLES.sub("", part.casefold())) for part in parts[0::2]]
    return _SPACES.sub(" ", "".join(parts)).strip()


def words_of(wording: str) -> str:
    """Return the words of a `wording_of` that count, in order."""
    parts = _split(wording)
    parts[0::2] = [_LIGHT.sub("", part) for part in parts[0::2]]
    return _SPACES.sub(" ", "".join(parts)).strip()


def _peel(text: str) -> list[str]:
    """Part a text as `_split` does, without what is politeness at its ends."""
    parts = _split(text)
    for at in range(0, len(parts), 2):
        for pattern, full in _SAME_FORM:
            parts[at] = pattern.sub(full, parts[at])
    parts[0] = _peel_front(parts[0].lstrip())
    parts[-1] = _peel_back(parts[-1])
    return parts


def _peel_front(text: str) -> str:
    for _ in range(_LAYERS):
        match = _LEAD.match(text)
        if match is None:
            break
        text = text[match.end() :]
    return text


def _peel_back(text: str) -> str:
    for _ in range(_LAYERS):
        shorter = _TAIL.sub("", text.rstrip(_ENDING))
        if shorter == text:
            break
        text = shorter
    return _PARTICLE.sub("", text)


# --- Facts ------------------------------------------------------------------------------------

_FACT = re.compile(
    r"[A-Za-zÀ-ɏ]*\d[0-9A-Za-zÀ-ɏ.,:/%°_-]*"
    r"|[A-Za-zÀ-ɏ]+(?:['._-][A-Za-zÀ-ɏ]+)*[+#]*"
    r"|[ァ-ヴー]{2,}|[㐀-鿿々]+|[ぁ-ゖ]+"
    r"|[+*/=<>^%$€£¥!|&~#-]+"
)
_LINES = (
    # Numbers
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety",
    "hundred thousand million billion half quarter double triple once twice first second third",
    "fourth fifth last next dozen",
    # Negations
    "no never none nobody nothing neither nor without except excluding unless",
    # Opposites
    "more less fewer most least before after above below over under up down in out on off from to",
    "into open close max min maximum minimum highest lowest best worst largest smallest increase",
    "decrease enable disable allow deny approve reject approved rejected accept decline pros cons",
    "advantages disadvantages cheapest expensive hot cold left right start stop buy sell",
    "lend borrow win lose faster slower older newer true false or",
    # Dates
    "today tomorrow yesterday tonight monday tuesday wednesday thursday friday saturday sunday",
    "january february march april june july august september october november december",
    "spring summer autumn fall winter week month year morning evening night noon",
    # Who, when, and whose
    "who whom whose which when where why how my mine your yours his her hers its our",
    "their was were did will should must may",
)
_TOLD = frozenset(word for line in _LINES for word in line.split())
_JA_NEGATION = re.compile(r"ない|ません|なく|なかっ|ずに|いけ|ぬ$")
_BEFORE_BEGINNING = ".!?:\n"


def facts_of(text: str) -> str:
    """Return the facts of a text, in order.

    A name is a word with a capital that begins no sentence; katakana; a word with a digit or
    a mark within. Names in small letters, and nouns, are not seen.
    """
    facts = []
    for at, part in enumerate(_peel(text)):
        facts += [part] if at % 2 else _facts(part)
    return " ".join(facts)


def _facts(text: str) -> list[str]:
    return [
        fact
        for match in _FACT.finditer(text)
        for fact in _tell(match.group(), begins=_begins(text, match.start()))
    ]


def _begins(text: str, at: int) -> bool:
    before = text[:at].rstrip(" \t\"'(")
    return not before or before[-1] in _BEFORE_BEGINNING


def _tell(token: str, *, begins: bool) -> list[str]:
    """Return what a token adds to the facts."""
    lower = token.lower()
    if "ぁ" <= token[0] <= "ゖ":
        return ["not"] * bool(_JA_NEGATION.search(token))
    if lower.endswith("n't") or lower in {"cannot", "not"}:
        return ["not"]
    if lower.endswith("'s"):
        return _tell(token[:-2], begins=begins)
    if not (token.isalpha() and token.isascii()):
        return [lower.rstrip(".,:")]
    is_name = token[1:] != lower[1:] or (token[0].isupper() and not begins)
    return [lower] if lower in _TOLD or (is_name and lower != "i") else []


_ANOTHER = re.compile(
    r"\b(?:another|again|once more|random(?:ly)?|shuffled?|surprise me|something else|regenerate)\b"
    r"|ランダム|無作為|もう一度|もう一つ|もうひとつ|もう1つ|別の|ほかの|他の例",
    re.IGNORECASE,
)


def wants_another(text: str) -> bool:
    """Whether the same answer again is just what a text does not want."""
    return _ANOTHER.search(unicodedata.normalize("NFKC", text)) is not None
