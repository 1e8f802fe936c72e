"""Milliseconds since the epoch as the datetimes that drivers and people want."""

from __future__ import annotations

import datetime as dt


def to_datetime(time_ms: int) -> dt.datetime:
    """Return the moment as a datetime in UTC."""
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)


def to_rfc3339(time_ms: int) -> str:
    """Return the moment as RFC 3339 text in UTC, with milliseconds."""
    return to_datetime(time_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")
