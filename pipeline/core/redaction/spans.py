"""What is found in a text: a kind, and from where to where."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What can be recognised. Where two overlap, the one that comes first here names them both."""

    PRIVATE_KEY = "private_key"
    JWT = "jwt"
    #: A key or token of a vendor, known by its form.
    API_KEY = "api_key"
    #: What a label calls a password, a secret or a token, and the credentials of an address.
    PASSWORD = "password"  # noqa: S105 - a name, not a secret
    EMAIL = "email"
    IBAN = "iban"
    #: A payment card.
    CARD = "card"
    #: An account at a Japanese bank.
    BANK_ACCOUNT = "bank_account"
    MY_NUMBER = "my_number"
    US_SSN = "us_ssn"
    PHONE = "phone"
    JP_POSTAL_CODE = "jp_postal_code"
    #: A person's name, where a label says that it is one.
    NAME = "name"


class Span(NamedTuple):
    """``text[start:end]`` is of this kind."""

    kind: Kind
    start: int
    end: int


_RANKS = {kind: rank for rank, kind in enumerate(Kind)}


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Return them in order of place, those that overlap made one: nothing of either is left."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            kind = min(last.kind, span.kind, key=_RANKS.__getitem__)
            merged[-1] = Span(kind, last.start, max(last.end, span.end))
        else:
            merged.append(span)
    return merged
