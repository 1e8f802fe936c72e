"""User ids as they are stored: a keyed hash that says which key made it.

A plain hash of an id is undone by hashing every id there may be; this one only by
whoever has the key. Source: RFC 2104 (HMAC), cut to 128 bits as its section 5 allows.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from msgspec import Struct

from pipeline.core.chunk import CodedColumn, code_values, repeat_value

_HEX_CHARS = 32


class UserKey(Struct, frozen=True):
    """A key and its version, as in ``k2``. Its `repr` says the version alone."""

    version: str
    key: bytes

    def __repr__(self) -> str:
        return f"UserKey({self.version!r})"


def hash_user(user: str, key: UserKey) -> str:
    """Return ``version:hash`` of a user's id; the hash is 32 hexadecimal digits."""
    digest = hmac.new(key.key, user.encode(), hashlib.sha256).hexdigest()
    return f"{key.version}:{digest[:_HEX_CHARS]}"


def hash_users(users: Sequence[str | None], key: UserKey | None) -> CodedColumn:
    """Return each user's hash; empty without a key or a user."""
    if key is None:
        return repeat_value("", len(users))
    known = {user: hash_user(user, key) for user in set(users) if user}
    return code_values([known[user] if user else "" for user in users])
