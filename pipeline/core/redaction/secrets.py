"""Keys, tokens, passwords and addresses of mail: what can be known by its form.

The forms are those that the vendors document for secret scanning. Patterns are RE2's
(Cox, "Regular Expression Matching in the Wild", 2010): their time is linear in the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import re2

from pipeline.core.redaction.spans import Kind, Span

#: Keys that begin with what only such a key begins with. Left of each stands a word's border.
_VENDORS = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",  # AWS
    r"sk-(?:ant-|or-|proj-|svcacct-|admin-|live-|test-)?[A-Za-z0-9_-]{20,}",  # OpenAI and others
    r"gh[pousr]_[A-Za-z0-9]{30,}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"gl(?:pat|dt|rt|cbt|ptt|ft|oas|soat)-[A-Za-z0-9_-]{20,}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",  # Slack
    r"xapp-[A-Za-z0-9-]{20,}",
    r"(?:sk|rk|pk|whsec)_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"whsec_[A-Za-z0-9+/=]{24,}",
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"GOCSPX-[A-Za-z0-9_-]{20,}",
    r"ya29\.[A-Za-z0-9_-]{20,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{30,}",  # SendGrid
    r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{50,}",
    r"dop_v1_[a-f0-9]{64}",  # DigitalOcean
    r"shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}",  # Shopify
    r"sq0(?:atp|csp)-[A-Za-z0-9_-]{22,}",  # Square
    r"dapi[a-f0-9]{32}",  # Databricks
    r"gsk_[A-Za-z0-9]{40,}",  # Groq
    r"xai-[A-Za-z0-9]{60,}",
    r"pplx-[A-Za-z0-9]{40,}",
    r"r8_[A-Za-z0-9]{30,}",  # Replicate
    r"nvapi-[A-Za-z0-9_-]{50,}",
    r"key-[a-f0-9]{32}",  # Mailgun
    r"lin_api_[A-Za-z0-9]{32,}",  # Linear
    r"glc_[A-Za-z0-9+/=]{32,}",  # Grafana
    r"glsa_[A-Za-z0-9]{32}_[a-f0-9]{8}",
    r"hv[sb]\.[A-Za-z0-9_-]{24,}",  # Vault
    r"AC[a-f0-9]{32}",  # Twilio
    r"SK[a-f0-9]{32}",
    r"\d{8,}:AA[A-Za-z0-9_-]{33}",  # Telegram
    r"[MN][A-Za-z0-9_-]{23,}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}",  # Discord
)
_ADDRESSED = r"https://hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_+-]{16,}"
_LABELS = (
    r"pass(?:word|wd|phrase|code)|pwd|secret|api[ _-]?(?:key|secret|token)|apikey|pin ?code"
    r"|secret[ _-]?(?:access[ _-]?)?key|access[ _-]?(?:key|token)|account[ _-]?key|private[ _-]?key"
    r"|(?:auth|access|refresh|bearer|session|id|client|api)[ _-]?(?:token|secret)|token"
    r"|shared[ _-]?(?:access[ _-]?)?(?:key|signature)|x-api-key|credentials?"
)


class _Form(NamedTuple):
    kind: Kind
    #: Without one of these in the text there is nothing to look for.
    needs: tuple[bytes, ...]
    pattern: Any
    #: The group that is the secret.
    group: int


def _form(kind: Kind, needs: tuple[bytes, ...], pattern: str, group: int = 0) -> _Form:
    return _Form(kind, needs, re2.compile(pattern.encode()), group)


_FORMS = (
    _form(
        Kind.PRIVATE_KEY,
        (b"-----BEGIN",),
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)",
    ),
    # The first part is an object in base64, so it begins like this.
    _form(
        Kind.JWT,
        (b"eyJ",),
        r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){1,3}",
    ),
    _form(Kind.API_KEY, (), r"\b(?:" + "|".join(_VENDORS) + ")"),
    _form(Kind.API_KEY, (b"hooks.slack",), _ADDRESSED),
    # ``scheme://user:password@host``
    _form(Kind.PASSWORD, (b"://",), r"://([^\s/:@\"'<>]*:[^\s/@\"'<>]+)@", 1),
    _form(
        Kind.PASSWORD,
        (b"earer", b"asic", b"EARER", b"ASIC"),
        r"(?i:\b(?:bearer|basic)[ ]+)([A-Za-z0-9._~+/-]*[0-9=][A-Za-z0-9._~+/=-]*)",
        1,
    ),
    _form(
        Kind.EMAIL,
        (b"@",),
        r"[A-Za-z0-9_%+'][A-Za-z0-9._%+'-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
        r"|[A-Za-z0-9_%+'][A-Za-z0-9._%+'-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+xn--[A-Za-z0-9-]{1,59}",
    ),
)
_LABELLED = re2.compile(
    (
        rf"(?i:(?:\b|_)(?:{_LABELS})(?:\b|_[a-z]+))[\"'`*]{{0,3}}\s{{0,4}}"
        r"(=>|:=|=|:|\bis\b)\s{0,4}([\"'`]{0,3})([^\s\"'`,;<>]{4,})"
    ).encode()
)
_LABEL_HINTS = (b"ass", b"pwd", b"ecret", b"oken", b"key", b"code", b"redential")
#: Shorter, a bearer's token is a word.
_BEARER_MIN = 12
_BARE_MIN = 6


def find_secrets(plain: bytes) -> Iterator[Span]:
    """Find what is known by its form. `plain` is one byte for each character."""
    for form in _FORMS:
        if form.needs and not any(need in plain for need in form.needs):
            continue
        for match in form.pattern.finditer(plain):
            start, end = match.span(form.group)
            if form.needs[:1] != (b"earer",) or end - start >= _BEARER_MIN:
                yield Span(form.kind, start, end)
    lower = plain.lower()
    if any(hint in lower for hint in _LABEL_HINTS):
        yield from _find_labelled(plain)


def _find_labelled(plain: bytes) -> Iterator[Span]:
    for match in _LABELLED.finditer(plain):
        relation, quote, value = match.group(1), match.group(2), match.group(3)
        if _is_secret(relation, quote, value):
            yield Span(Kind.PASSWORD, *match.span(3))


def _is_secret(relation: bytes, quote: bytes, value: bytes) -> bool:
    """Whether it is a value and not the next word of a sentence."""
    if value.startswith((b"[", b"(", b"{", b"$", b"%", b"*")):
        return False  # a placeholder, a call, or redacted already
    if quote:
        return not value.isdigit() or len(value) >= _BARE_MIN
    mixed = not value.rstrip(b".!?)").isalpha()
    return mixed if relation in {b":", b"is"} else len(value) >= _BARE_MIN or mixed
