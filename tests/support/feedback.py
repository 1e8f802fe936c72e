"""Builders of feedback as it stands on the wire."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from pipeline.core.chunk import Chunk
from schemas.feedback import Feedback
from tests.support.events import NOW_MS, Json, make_chunk, to_bytes

#: Attribute of `Feedback` → key on the wire.
KEYS = {f.name: f.encode_name for f in msgspec.structs.fields(Feedback)}


def make_feedback(feedback_id: str = "f-1", about: str | None = "e-1", **fields: Any) -> Json:
    """Return a thumb up for the event `about`; `fields` are named as the attributes of `Feedback`.

    None leaves one out. ``time_ms`` may be given for its time.
    """
    time_ms = fields.pop("time_ms", NOW_MS)
    given = {
        "feedback_id": feedback_id,
        "feedback_time": time_ms / 1000,
        "event_id": about,
        "name": "thumbs",
        "score": 1,
    }
    return {KEYS[k]: v for k, v in (given | fields).items() if v is not None}


def feedback_raw(feedback_id: str = "f-1", about: str | None = "e-1", **fields: Any) -> bytes:
    return to_bytes(make_feedback(feedback_id, about, **fields))


def feedback_chunk(values: list[bytes | None], first: int = 0) -> Chunk:
    return make_chunk(values, first, topic="feedback")


_LABELS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=256)
_IDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=256
)


@st.composite
def valid_feedback(draw: st.DrawFn) -> Json:
    """Whatever `decode_feedback` has to take when it was written at `NOW_MS`."""
    about = draw(st.sampled_from([("event_id",), ("response_id",), ("event_id", "response_id")]))
    judged = draw(st.sampled_from([("score",), ("label",), ("score", "label")]))
    values: dict[str, st.SearchStrategy[Any]] = {
        "event_id": _IDS,
        "response_id": _IDS,
        "score": st.floats(-1e12, 1e12) | st.integers(-1000, 1000),
        "label": _IDS,
    }
    more = draw(st.sets(st.sampled_from(["explanation", "source", "user", "tenant"])))
    fields = {name: draw(values[name]) for name in (*about, *judged)}
    fields |= {name: draw(_LABELS) for name in sorted(more)}
    return make_feedback(
        draw(_IDS),
        fields.pop("event_id", None),
        name=draw(
            st.text(
                st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
                min_size=1,
                max_size=64,
            )
        ),
        time_ms=NOW_MS + draw(st.integers(-86_400_000, 3_600_000)),
        **({"score": None} | fields),
    )
