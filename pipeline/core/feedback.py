"""Feedback as rows and as counts: judged good or bad, and laid on the request that it is about.

Negative feedback is counted in monitors of its own: the values of a request's dimensions get
the prefix ``feedback/NAME/``, as those of canaries get theirs, so that nothing of it is taken
for requests, and every kind of evaluation is held to its own past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

import msgspec
import numpy as np
from msgspec import Struct, structs

from pipeline.core.chunk import (
    Chunk,
    ChunkCounts,
    Columns,
    DeadLetter,
    Record,
    code_values,
    number_letters,
    refuse_rows,
    repeat_value,
)
from pipeline.core.dedup import Seen
from pipeline.core.monitors import MonitorRegistry, split_events
from pipeline.core.redaction import EVERY_KIND, Kind, redact_texts
from pipeline.core.signals import Packets, pack_counts
from pipeline.core.users import UserKey, hash_users
from pipeline.core.wire import EVENTS, Wire, drop_unless
from schemas.codec import DEFAULT_LIMITS, CodecLimits
from schemas.evaluation import translate_evaluation
from schemas.feedback import Feedback, ReceivedFeedback, decode_feedback, name_value
from schemas.monitor import DIMENSIONS, Dimension, Grouping
from schemas.rejection import Reason, Rejected
from schemas.signal import Source
from schemas.span import LogRecord
from schemas.wire import WireFormat

#: What feedback without a source comes from.
DEFAULT_SOURCE = "user"
_TENANT = DIMENSIONS.index(Dimension.TENANT)


class Rule(Struct, frozen=True):
    """When an evaluation is negative: by its label where that is known, else by its score."""

    negative_labels: frozenset[str] = frozenset()
    positive_labels: frozenset[str] = frozenset()
    #: Negative is a score below the one, or above the other.
    below: float | None = None
    above: float | None = None


#: Of evaluations without a rule of their own: thumbs, pass or fail, and scores from 0 to 1 of
#: which more is better.
DEFAULT_RULE = Rule(
    frozenset({"negative", "thumbs_down", "down", "bad", "dislike", "fail", "failed", "incorrect"}),
    frozenset({"positive", "thumbs_up", "up", "good", "like", "pass", "passed", "correct"}),
    below=0.5,
)


class FeedbackConfig(Struct, frozen=True):
    """What is done with feedback; `build` state beside it, not in it."""

    groupings: tuple[Grouping, ...]
    limits: CodecLimits = DEFAULT_LIMITS
    signals_partitions: int = 1
    #: Evaluation → its rule.
    rules: Mapping[str, Rule] = {}
    store_explanations: bool = False
    user_key: UserKey | None = None
    redact: frozenset[Kind] = EVERY_KIND
    #: What topics hold that do not hold feedback of ours.
    wires: Mapping[str, Wire] = {}


class Subject(Struct, frozen=True):
    """The request that feedback is about, as it is stored."""

    event_id: str
    time_ms: int
    #: In the order of `DIMENSIONS`.
    dimensions: tuple[str, ...]
    guardrail: str = ""


class Subjects(Struct, frozen=True):
    """Requests by their own ids and by their responses'."""

    by_event: dict[str, Subject] = {}
    by_response: dict[str, Subject] = {}

    def find(self, feedback: Feedback) -> Subject | None:
        """Return the request that is meant: by its own id where that was given, else by the
        response's. Another tenant's never is.
        """
        if feedback.event_id:
            found = self.by_event.get(feedback.event_id)
        else:
            found = self.by_response.get(feedback.response_id or "")
        if found is None or feedback.tenant in (None, "", found.dimensions[_TENANT]):
            return found
        return None

    def joined_by(self, others: Subjects) -> Subjects:
        """Return these and those."""
        return Subjects(self.by_event | others.by_event, self.by_response | others.by_response)


class FeedbackAdmission(Struct, frozen=True):
    """A chunk's records, sorted into accepted, refused and seen before."""

    source: Source
    read: int
    records: list[Record]
    received: list[ReceivedFeedback]
    deadletters: list[DeadLetter]
    duplicates: int
    #: Log records that are no evaluation.
    skipped: int = 0
    #: When the chunk's last record was written.
    written_ms: int = 0

    @property
    def counts(self) -> ChunkCounts:
        stored, refused = len(self.records), len(self.deadletters)
        return ChunkCounts(self.read, stored, refused, self.duplicates, self.skipped)


def admit_feedback(chunk: Chunk, config: FeedbackConfig, seen: Seen) -> FeedbackAdmission:
    """Decode a chunk and drop repeats; `seen` is asked once, and advanced by what is accepted."""
    wire = config.wires.get(chunk.source.topic, EVENTS)
    read = [each for record in chunk.records for each in _decode(record, wire, config.limits)]
    letters, valid, skipped = [], [], 0
    for record, result in read:
        if result is None:
            skipped += 1
        elif isinstance(result, Rejected):
            letters.append(DeadLetter(record, result))
        else:
            valid.append((record, result))
    new = seen.add_all([received.feedback.feedback_id for _, received in valid])
    kept = list(compress(valid, new))
    return FeedbackAdmission(
        source=chunk.source,
        read=len(read) - skipped,
        records=[record for record, _ in kept],
        received=[received for _, received in kept],
        deadletters=number_letters(letters),
        duplicates=len(valid) - len(kept),
        skipped=skipped,
        written_ms=chunk.records[-1].written_ms if chunk.records else 0,
    )


#: None for a log record that is no evaluation.
_Result = tuple[Record, ReceivedFeedback | Rejected | None]


def _decode(record: Record, wire: Wire, limits: CodecLimits) -> list[_Result]:
    """What a record holds: of OTLP many log records, by their ids, as they are read back."""
    if wire.format is WireFormat.EVENTS:
        return [(record, decode_feedback(record.value, record.written_ms, limits))]
    # Protobuf is slow to load: only where a topic holds log records.
    from schemas.otlp import read_logs

    logs = read_logs(record.value, wire.format)
    if isinstance(logs, Rejected):
        return [(record, drop_unless(logs, wire.keep_unread))]
    return sorted((_decode_log(log, record, limits) for log in logs), key=_place)


def _decode_log(log: LogRecord | str, record: Record, limits: CodecLimits) -> _Result:
    if isinstance(log, str):
        return record, Rejected(Reason.INVALID_FIELD, log, b"")
    feedback = translate_evaluation(log)
    if feedback is None:
        return record, None
    raw = msgspec.json.encode(feedback)
    alone = Record(record.offset, record.written_ms, raw)
    return alone, decode_feedback(raw, record.written_ms, limits)


def _place(read: _Result) -> tuple[bool, str]:
    result = read[1]
    if isinstance(result, ReceivedFeedback):
        return False, result.feedback.feedback_id
    return True, ""


class Joined(Struct, frozen=True):
    """Accepted feedback, each with the request that it is about; None where none was found."""

    admission: FeedbackAdmission
    subjects: list[Subject | None]

    def without(self, refused: Mapping[int, str]) -> Joined:
        """Return it with the rows at these indices refused as unstorable: index → why."""
        admission = self.admission
        ids = [each.feedback.feedback_id for each in admission.received]
        letters = refuse_rows(admission.records, ids, refused)
        kept = [i for i in range(len(self.subjects)) if i not in refused]
        rest = structs.replace(
            admission,
            records=[admission.records[i] for i in kept],
            received=[admission.received[i] for i in kept],
            deadletters=number_letters([*admission.deadletters, *letters]),
        )
        return Joined(rest, [self.subjects[i] for i in kept])


def judge(feedback: Feedback, config: FeedbackConfig) -> bool | None:
    """Whether the feedback is negative; None when neither its label nor its score says."""
    rule = config.rules.get(feedback.name, DEFAULT_RULE)
    label = fold_label(feedback.label or "")
    if label and (rule.negative_labels or rule.positive_labels):
        if label in rule.negative_labels:
            return True
        if label in rule.positive_labels or not rule.positive_labels:
            return False
        if not rule.negative_labels:
            return True
    score = feedback.score
    if score is None or rule.below is rule.above is None:
        return None
    too_low = rule.below is not None and score < rule.below
    return too_low or (rule.above is not None and score > rule.above)


def fold_label(label: str) -> str:
    """Return a label as it is compared: ``Thumbs-Down`` is ``thumbs_down``."""
    return label.strip().casefold().replace("-", "_").replace(" ", "_")


def feedback_rows(joined: Joined, config: FeedbackConfig) -> Columns:
    """Return the columns of the table `feedback`; none without rows."""
    admission, subjects, n = joined.admission, joined.subjects, len(joined.subjects)
    if not n:
        return {}
    source, each = admission.source, [r.feedback for r in admission.received]
    told = [f.explanation or "" for f in each] if config.store_explanations else [""] * n
    return {
        "feedback_time": [r.time_ms for r in admission.received],
        "feedback_id": [f.feedback_id for f in each],
        "name": code_values([f.name for f in each]),
        "score": [f.score for f in each],
        "label": code_values(redact_texts([f.label or "" for f in each], config.redact)),
        "explanation": redact_texts(told, config.redact),
        "source": code_values([f.source or DEFAULT_SOURCE for f in each]),
        "negative": [judge(f, config) for f in each],
        "about_event_id": [f.event_id or "" for f in each],
        "about_response_id": [f.response_id or "" for f in each],
        "about_tenant": code_values([f.tenant or "" for f in each]),
        "event_id": [s.event_id if s else "" for s in subjects],
        "request_time": [s.time_ms if s else None for s in subjects],
        **{
            d.value: code_values([s.dimensions[i] if s else "" for s in subjects])
            for i, d in enumerate(DIMENSIONS)
        },
        "guardrail": code_values([s.guardrail if s else "" for s in subjects]),
        "user_hash": hash_users([f.user for f in each], config.user_key),
        "record_time": [r.written_ms for r in admission.records],
        "topic": repeat_value(source.topic, n),
        "epoch": repeat_value(source.epoch, n),
        "partition": np.full(n, source.partition, np.uint32),
        "offset": [r.offset for r in admission.records],
    }


def pack_feedback(joined: Joined, config: FeedbackConfig, registry: MonitorRegistry) -> Packets:
    """Return the packets of each signals partition: how much feedback there was, how much bad.

    Only what was joined and judged is counted. Deterministic, given the same `registry`.
    """
    counted: list[tuple[ReceivedFeedback, Subject, bool]] = []
    for received, subject in zip(joined.admission.received, joined.subjects, strict=True):
        negative = judge(received.feedback, config)
        if subject is not None and negative is not None:
            counted.append((received, subject, negative))
    if not counted:
        return {}
    dimensions = {
        dimension: code_values(
            name_value(received.feedback.name, subject.dimensions[i])
            for received, subject, _ in counted
        )
        for i, dimension in enumerate(DIMENSIONS)
    }
    return pack_counts(
        joined.admission.source,
        np.array([received.time_ms for received, _, _ in counted], np.int64),
        {
            "feedbacks": np.ones(len(counted), np.bool_),
            "negative_feedbacks": np.array([negative for *_, negative in counted], np.bool_),
        },
        split_events(dimensions, config.groupings, registry),
        config.signals_partitions,
    )


def select_missing(
    received: Sequence[ReceivedFeedback], subjects: Subjects
) -> list[ReceivedFeedback]:
    """Return the feedback whose request is not among these."""
    return [each for each in received if subjects.find(each.feedback) is None]


def wanted_ids(received: Sequence[ReceivedFeedback]) -> tuple[list[str], list[str]]:
    """Return the ids of the requests, and of the responses, that feedback is about."""
    each = [r.feedback for r in received]
    events = [f.event_id for f in each if f.event_id]
    return events, [f.response_id for f in each if f.response_id and not f.event_id]
