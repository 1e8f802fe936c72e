"""Signals: what one chunk counted for every monitor in it, packed for `llm.signals`.

Counts and sums add, so a packet says all that the detectors need about
thousands of events, and its size depends on the number of monitors alone. It is
columns, not records: whoever packs and whoever reads it works on arrays.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")


class Family(StrEnum):
    """Signals that speak about the same thing share a family, and one e-value."""

    REFUSAL = "refusal"
    ERROR = "error"
    TRUNCATION = "truncation"
    LATENCY = "latency"
    #: How answers are written and what they say, given what was asked.
    FINGERPRINT = "fingerprint"
    #: Whole answers longer or shorter than this monitor's used to be.
    LENGTH = "length"
    #: Requests dearer than this monitor's used to be.
    COST = "cost"
    #: Answers that decline a part of what was asked.
    PARTIAL_REFUSAL = "partial_refusal"
    EMPTY = "empty"
    GUARDRAIL = "guardrail"
    CACHE = "cache"
    #: Answers that loop.
    REPETITION = "repetition"
    #: Answers in another language than their prompts, as far as scripts tell.
    LANGUAGE = "language"
    #: Answers that do not keep to their prompts.
    RELEVANCE = "relevance"
    #: What is asked.
    TOPIC = "topic"
    #: Answers to questions whose answers are known: `kizashi canary`.
    CANARY = "canary"
    #: What users and evaluators think of answers: `llm.gateway.feedback`.
    FEEDBACK = "feedback"
    #: Kizashi itself: no signal of any monitor is of it, and no detector watches it.
    PIPELINE = "pipeline"


class Signal(StrEnum):
    """One counted property: k of n events had it."""

    REFUSAL = "refusal"
    ERROR = "error"
    TRUNCATION = "truncation"
    #: Time to first chunk above the monitor's reference q90.
    SLOW_FIRST_CHUNK = "slow_first_chunk"
    #: Time per output token above the monitor's reference q90.
    SLOW_OUTPUT = "slow_output"
    #: Summed and not counted: residuals of answers against the reference of their model.
    FINGERPRINT = "fingerprint"
    #: Size of a whole answer above the monitor's reference q90 for prompts of that size, and
    #: below its q10.
    LONG_ANSWER = "long_answer"
    SHORT_ANSWER = "short_answer"
    #: Cost of a request above the monitor's reference q90 for prompts of that size.
    COSTLY = "costly"
    PARTIAL_REFUSAL = "partial_refusal"
    EMPTY_ANSWER = "empty_answer"
    #: A guardrail of the gateway stepped in.
    GUARDRAIL = "guardrail"
    #: Of the requests for which the gateway's cache was asked.
    CACHE_HIT = "cache_hit"
    REPETITION = "repetition"
    LANGUAGE_MISMATCH = "language_mismatch"
    #: Likeness of answer and prompt below the q10 of what the prompt lets one expect.
    OFF_PROMPT = "off_prompt"
    #: A prompt unlike those of its model's reference.
    NOVEL_PROMPT = "novel_prompt"
    #: A canary's answer that was not as expected.
    CANARY_FAILURE = "canary_failure"
    #: Feedback that says an answer was bad.
    NEGATIVE_FEEDBACK = "negative_feedback"


FAMILY_OF: dict[Signal, Family] = {
    Signal.REFUSAL: Family.REFUSAL,
    Signal.ERROR: Family.ERROR,
    Signal.TRUNCATION: Family.TRUNCATION,
    Signal.SLOW_FIRST_CHUNK: Family.LATENCY,
    Signal.SLOW_OUTPUT: Family.LATENCY,
    Signal.FINGERPRINT: Family.FINGERPRINT,
    Signal.LONG_ANSWER: Family.LENGTH,
    Signal.SHORT_ANSWER: Family.LENGTH,
    Signal.COSTLY: Family.COST,
    Signal.PARTIAL_REFUSAL: Family.PARTIAL_REFUSAL,
    Signal.EMPTY_ANSWER: Family.EMPTY,
    Signal.GUARDRAIL: Family.GUARDRAIL,
    Signal.CACHE_HIT: Family.CACHE,
    Signal.REPETITION: Family.REPETITION,
    Signal.LANGUAGE_MISMATCH: Family.LANGUAGE,
    Signal.OFF_PROMPT: Family.RELEVANCE,
    Signal.NOVEL_PROMPT: Family.TOPIC,
    Signal.CANARY_FAILURE: Family.CANARY,
    Signal.NEGATIVE_FEEDBACK: Family.FEEDBACK,
}
#: Families that never page: what they say is news, not damage.
INFORMING: frozenset[Family] = frozenset({Family.CACHE, Family.LENGTH, Family.TOPIC})
#: Signals that are watched for rises alone: their fall is nobody's concern, or is told by
#: another signal of the family.
RISING: frozenset[Signal] = frozenset(
    {
        Signal.LONG_ANSWER,
        Signal.SHORT_ANSWER,
        Signal.PARTIAL_REFUSAL,
        Signal.EMPTY_ANSWER,
        Signal.REPETITION,
        Signal.LANGUAGE_MISMATCH,
        Signal.OFF_PROMPT,
        Signal.NOVEL_PROMPT,
        Signal.CANARY_FAILURE,
        Signal.NEGATIVE_FEEDBACK,
    }
)
#: Signals of which most monitors never see an event: those that do not have no state for them.
RARE: frozenset[Signal] = frozenset({Signal.CANARY_FAILURE, Signal.NEGATIVE_FEEDBACK})
#: Signals that are counted where the event is: the columns of their k and their n.
COUNTED: dict[Signal, tuple[str, str]] = {
    Signal.REFUSAL: ("refusals", "answered"),
    Signal.ERROR: ("errors", "requests"),
    Signal.TRUNCATION: ("truncations", "answered"),
    Signal.PARTIAL_REFUSAL: ("partial_refusals", "answered"),
    Signal.EMPTY_ANSWER: ("empty_answers", "contents"),
    Signal.GUARDRAIL: ("guardrails", "requests"),
    Signal.CACHE_HIT: ("cache_hits", "cache_lookups"),
    Signal.REPETITION: ("repetitions", "texts"),
    Signal.LANGUAGE_MISMATCH: ("language_mismatches", "languages"),
    Signal.OFF_PROMPT: ("off_prompts", "marked"),
    Signal.NOVEL_PROMPT: ("novel_prompts", "marked"),
    Signal.CANARY_FAILURE: ("canary_failures", "canaries"),
    Signal.NEGATIVE_FEEDBACK: ("negative_feedbacks", "feedbacks"),
}
#: Signals that count what lies beyond a quantile of the monitor's own past: their histogram.
MEASURED: dict[Signal, str] = {
    Signal.SLOW_FIRST_CHUNK: "first_chunk_ms",
    Signal.SLOW_OUTPUT: "output_token_us",
    Signal.LONG_ANSWER: "answer_size",
    Signal.SHORT_ANSWER: "answer_size",
    Signal.COSTLY: "cost_microdollars",
}
#: Of those, the ones that count what lies below its q10; the others, above its q90.
LOWER_TAIL: frozenset[Signal] = frozenset({Signal.SHORT_ANSWER})
#: Of those, the ones that have a quantile for each class of input size. How long answers are
#: follows what is asked: in the public hour of a real service the share of long ones went from
#: 13 % to 55 % by itself, and from 6 % to 10 % once prompts of one size were compared.
CLASSED: frozenset[Signal] = frozenset({Signal.LONG_ANSWER, Signal.SHORT_ANSWER, Signal.COSTLY})
#: Half-octaves of input tokens; the first begins at 0, the second at 46, the last at 23,170.
INPUT_CLASSES = 20
#: The first class ends where half-octaves number this and one more.
FIRST_CLASS = 10
#: A classed histogram has the bucket ``class · CLASS_SPAN + (coarse - LOWEST_COARSE)``, where
#: coarse bucket ``i`` holds values in ``(2^(i/4), 2^((i+1)/4)]``.
CLASS_SPAN, LOWEST_COARSE = 256, -40
#: The columns that no packet can do without.
REQUESTS, FIRST_TIME_MS, LAST_TIME_MS = "requests", "first_time_ms", "last_time_ms"

# How the arrays lie in their bytes, as numpy spells it: little-endian on every machine.
COUNT_TYPE = "<i8"
GROUPING_TYPE = "<i2"
OFFSET_TYPE = "<i4"
BUCKET_TYPE = "<i2"
BUCKET_COUNT_TYPE = "<i4"
SUM_TYPE = "<f4"

#: Bucket index → count, a base-2 exponential histogram (see `pipeline.core.histogram`).
Buckets = dict[int, int]


class Source(Struct, frozen=True, array_like=True):
    """The range of input that a packet speaks for; both offsets are inclusive."""

    topic: str
    #: Changes when the topic is created anew, so that old offsets cannot be mistaken for new ones.
    epoch: str
    partition: int
    first_offset: int
    last_offset: int


class Histograms(Struct, frozen=True, array_like=True):
    """m histograms in one: row ``i`` holds ``buckets[offsets[i]:offsets[i+1]]`` and its counts."""

    #: `OFFSET_TYPE`, shape (m + 1,).
    offsets: bytes
    #: `BUCKET_TYPE` and `BUCKET_COUNT_TYPE`, shape (offsets[m],).
    buckets: bytes
    counts: bytes


class Sums(Struct, frozen=True, array_like=True):
    """For m monitors, the sum of the vectors of those of their events that have one."""

    #: Of the references that the vectors were taken against; a later one is greater. Sums of
    #: different versions do not add.
    version: int
    #: How many answers the poorest known of those references rests on.
    known: int
    width: int
    #: How many vectors each sum is made of: `COUNT_TYPE`, shape (m,).
    counts: bytes
    #: `SUM_TYPE`, shape (m, width).
    matrix: bytes


class MonitorCounts(Struct, frozen=True):
    """What a packet says about one monitor, for reading one by one."""

    #: Index into the packet's `groupings`.
    grouping: int
    values: tuple[str, ...]
    #: Column → count or time.
    columns: dict[str, int]
    histograms: dict[str, Buckets]

    @property
    def requests(self) -> int:
        return self.columns[REQUESTS]

    @property
    def first_time_ms(self) -> int:
        return self.columns[FIRST_TIME_MS]

    @property
    def last_time_ms(self) -> int:
        return self.columns[LAST_TIME_MS]


class SignalPacket(Struct, frozen=True, array_like=True):
    """The signals of one chunk that belong to one partition of `llm.signals`: m monitors.

    A chunk that spans much event time, or has very many monitors, is split into
    parts, sent in order; (last_offset, part) never goes back for one (topic,
    epoch, partition).
    """

    source: Source
    part: int
    groupings: tuple[str, ...]
    #: Index into `groupings` of each monitor: `GROUPING_TYPE`, shape (m,).
    grouping: bytes
    #: The monitors' values, one for each dimension of their grouping.
    values: tuple[tuple[str, ...], ...]
    #: Name → counts and times of the monitors: `COUNT_TYPE`, shape (m,).
    columns: dict[str, bytes]
    histograms: dict[str, Histograms]
    sums: dict[str, Sums] = {}

    @property
    def last_time_ms(self) -> int:
        """The time of the latest event in it; 0 for a packet of no monitors."""
        return max(_unpack("q", self.columns[LAST_TIME_MS]), default=0)

    @property
    def counts(self) -> tuple[MonitorCounts, ...]:
        """Return the monitors one by one; what computes takes the columns.

        Raises:
            ValueError: the columns are not of one length.
        """
        columns = {name: _unpack("q", raw) for name, raw in self.columns.items()}
        histograms = {name: _read_histograms(each) for name, each in self.histograms.items()}
        rows = zip(
            _unpack("h", self.grouping),
            self.values,
            _transpose(columns, len(self.values)),
            _transpose(histograms, len(self.values)),
            strict=True,
        )
        return tuple(MonitorCounts(*row) for row in rows)


def _unpack(kind: str, raw: bytes) -> tuple[int, ...]:
    size = struct.calcsize(f"<{kind}")
    if len(raw) % size:
        raise ValueError(f"{len(raw)} bytes are no column")
    return struct.unpack(f"<{len(raw) // size}{kind}", raw)


def _read_histograms(histograms: Histograms) -> list[Buckets]:
    buckets, counts = _unpack("h", histograms.buckets), _unpack("i", histograms.counts)
    return [
        dict(zip(buckets[a:b], counts[a:b], strict=True))
        for a, b in pairwise(_unpack("i", histograms.offsets))
    ]


def _transpose(columns: Mapping[str, Sequence[T]], rows: int) -> list[dict[str, T]]:
    if any(len(column) != rows for column in columns.values()):
        raise ValueError(f"the columns of {rows} monitors are not all of that length")
    return [{name: column[row] for name, column in columns.items()} for row in range(rows)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SignalPacket)


def encode_packet(packet: SignalPacket) -> bytes:
    """Return the packet as MessagePack."""
    return _encoder.encode(packet)


def decode_packet(raw: bytes) -> SignalPacket:
    """Inverse of `encode_packet`; raises msgspec.MsgspecError for anything else.

    That the columns are of one length, and what is in them, is not looked at.
    """
    return _decoder.decode(raw)
