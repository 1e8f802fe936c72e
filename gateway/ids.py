"""Request ids: UUIDv7 (RFC 9562), so that they sort by time."""

from __future__ import annotations

import os
import uuid


def new_request_id(now_s: float) -> str:
    """Return 48 bits of time and 74 of chance."""
    chance = int.from_bytes(os.urandom(10), "big")
    bits = (int(now_s * 1000) & (2**48 - 1)) << 80 | 7 << 76 | (chance >> 68) << 64
    return str(uuid.UUID(int=bits | 2 << 62 | chance & (2**62 - 1)))
