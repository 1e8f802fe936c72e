"""Feedback as a key may give it: of its own tenant, and about nobody else's requests.

Pure. Where feedback names a tenant, only a request of this tenant's is ever found for it
(`pipeline.core.feedback`); so a key that has a tenant never leaves it to the body.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct, field

from pipeline.receiving import Judge, judge_feedback
from schemas.codec import DECODE_ERRORS, CodecLimits, explain_error
from schemas.rejection import Rejected

_ID = "feedback.id"
_TENANT = "gateway.tenant"
_decode = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode


class _Head(Struct):
    feedback_id: str = field(name=_ID)


_decode_head = msgspec.json.Decoder(_Head).decode


def judge_of(tenant: str, now_ms: int, limits: CodecLimits) -> Judge:
    """Return what judges the feedback of a tenant; of a key without one it is taken as it came."""
    judge = judge_feedback(now_ms, limits)
    if not tenant:
        return judge

    def judge_own(raw: bytes) -> tuple[bytes, bytes] | Rejected:
        owned = own(raw, tenant)
        return owned if isinstance(owned, Rejected) else judge(owned)

    return judge_own


def own(raw: bytes, tenant: str) -> bytes | Rejected:
    """Return feedback as the tenant's, whatever it says of itself; Rejected if it is no object.

    Its id gets the tenant before it: an id counts once among all, and one tenant's must not
    take another's for a repeat. All else stays as it came.
    """
    try:
        fields = _decode(raw)
    except DECODE_ERRORS as error:
        return explain_error(error, raw)
    fields[_TENANT] = Raw(_encode(tenant))
    if (given := _read_text(fields.get(_ID))) is not None:
        fields[_ID] = Raw(_encode(f"{_escape(tenant)}/{given}" if given else ""))
    return _encode(fields)


def _read_text(value: Raw | None) -> str | None:
    try:
        return None if value is None else msgspec.json.decode(value, type=str)
    except DECODE_ERRORS:
        return None  # the judge says what is wrong with it


def _escape(tenant: str) -> str:
    """Without the slash, so that no two pairs of tenant and id read the same."""
    return tenant.replace("%", "%25").replace("/", "%2F")


def read_key(raw: bytes) -> bytes:
    """Return the key under which feedback that was judged goes to Kafka."""
    return _decode_head(raw).feedback_id.encode()
