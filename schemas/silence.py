"""Silences: for a time, nobody is told of what happens in a slice of traffic."""

from __future__ import annotations

from msgspec import Struct

from schemas.signal import Family


class Silence(Struct, frozen=True, kw_only=True):
    """From `starts_ms` on, up to but without `ends_ms`. Incidents are recorded all the same."""

    silence_id: str
    starts_ms: int
    ends_ms: int
    #: Dimension → value; empty for all traffic.
    labels: dict[str, str] = {}
    #: Empty for all families.
    families: tuple[Family, ...] = ()
    by: str = ""
    why: str = ""
