"""The step: a chunk of raw records in, everything that must happen because of it out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress

import numpy as np
import numpy.typing as npt
from msgspec import Struct, structs

from detectors.bank_shifts import FINGERPRINT
from pipeline.core.answers import Answers, Embedding, read_answers
from pipeline.core.chunk import (
    Chunk,
    ChunkCounts,
    ChunkEffects,
    CodedColumn,
    Columns,
    DeadLetter,
    ListColumn,
    MoneyColumn,
    Record,
    code_values,
    number_letters,
    refuse_rows,
    repeat_value,
)
from pipeline.core.dedup import Seen
from pipeline.core.features import (
    TOKEN_FIELDS,
    Features,
    code_attributes,
    extract_features,
)
from pipeline.core.fingerprints import DIRECTIONS, ReferenceSet, select_sample, take_fingerprints
from pipeline.core.monitors import MonitorRegistry, Split, split_events
from pipeline.core.pricing import Pricer
from pipeline.core.redaction import EVERY_KIND, Kind, redact_texts
from pipeline.core.relevance import mark_answers
from pipeline.core.rollup import roll_up
from pipeline.core.signals import Packets, Vectors, pack_signals, pack_signals_in_steps
from pipeline.core.traits import ABSENT
from pipeline.core.users import UserKey, hash_users
from pipeline.core.wire import EVENTS, Wire, decode_records
from schemas.codec import CodecLimits
from schemas.event import Received
from schemas.monitor import DIMENSIONS, Dimension, Grouping
from schemas.rejection import Rejected
from schemas.signal import Source


class StepConfig(Struct, frozen=True):
    """What the step needs to know; `build` state beside it, not in it."""

    groupings: tuple[Grouping, ...]
    limits: CodecLimits
    signals_partitions: int = 1
    #: Without a broker: pack signals for every so many events instead of once for a chunk.
    signals_step: int | None = None
    store_texts: bool = False
    #: Whether the words of an answer are heard as a witness of refusal.
    judge_texts: bool = True
    user_key: UserKey | None = None
    #: What is replaced in texts, attributes and kinds of errors before they are stored.
    redact: frozenset[Kind] = EVERY_KIND
    #: What topics hold that do not hold events.
    wires: Mapping[str, Wire] = {}


class Reading(Struct, frozen=True):
    """How answers are read. References are replaced while the worker runs, by another of these."""

    embedding: Embedding
    references: ReferenceSet
    #: At most so many answers of each model are kept of a chunk.
    samples_per_model: int


class Admission(Struct, frozen=True):
    """A chunk's records, sorted into accepted, refused and seen before."""

    source: Source
    read: int
    records: list[Record]
    received: list[Received]
    deadletters: list[DeadLetter]
    duplicates: int
    skipped: int = 0

    def without(self, refused: Mapping[int, str]) -> Admission:
        """Return the admission with the accepted rows at these indices refused as unstorable.

        `refused` is row index → why.
        """
        kept = [i for i in range(len(self.records)) if i not in refused]
        ids = [each.event.event_id for each in self.received]
        letters = refuse_rows(self.records, ids, refused)
        return structs.replace(
            self,
            records=[self.records[i] for i in kept],
            received=[self.received[i] for i in kept],
            deadletters=number_letters([*self.deadletters, *letters]),
        )


def admit(chunk: Chunk, limits: CodecLimits, seen: Seen, wire: Wire = EVENTS) -> Admission:
    """Decode a chunk and drop repeats; `seen` is asked once, and advanced by what is accepted."""
    records, decoded, skipped = decode_records(chunk.records, wire, limits)
    letters, valid = [], []
    for record, result in zip(records, decoded, strict=True):
        if isinstance(result, Rejected):
            letters.append(DeadLetter(record, result))
        else:
            valid.append((record, result))
    new = seen.add_all([received.event.event_id for _, received in valid])
    kept = valid if all(new) else list(compress(valid, new))
    return Admission(
        source=chunk.source,
        read=len(decoded),
        records=[record for record, _ in kept],
        received=[received for _, received in kept],
        deadletters=number_letters(letters),
        duplicates=len(valid) - len(kept),
        skipped=skipped,
    )


def admit_chunk(chunk: Chunk, config: StepConfig, seen: Seen) -> Admission:
    """`admit` by what the chunk's topic is said to hold."""
    return admit(chunk, config.limits, seen, config.wires.get(chunk.source.topic, EVENTS))


def derive_effects(
    admission: Admission,
    config: StepConfig,
    pricer: Pricer,
    registry: MonitorRegistry,
    reading: Reading | None = None,
) -> ChunkEffects:
    """Price, judge, read and count what was admitted.

    Deterministic: the same admission against the same `registry` and `reading` has
    the same effects, to the byte. After a crash the references may be newer. Then
    fingerprints differ, and count only where the first ones never arrived.
    """
    source, letters = admission.source, tuple(admission.deadletters)
    counts = ChunkCounts(
        read=admission.read,
        stored=len(admission.received),
        deadlettered=len(letters),
        duplicates=admission.duplicates,
        skipped=admission.skipped,
    )
    if not admission.received:
        return ChunkEffects(source, counts, {}, None, None, {}, letters, {})
    features = _redact(extract_features(admission.received, pricer, config.judge_texts), config)
    splits = split_events(features.dimensions, config.groupings, registry)
    answers = read_answers(features, reading.embedding) if reading else None
    fingerprints = _take_fingerprints(features, answers, reading)
    features = _mark_answers(features, answers, reading, fingerprints)
    return ChunkEffects(
        source=source,
        counts=counts,
        requests=_request_rows(admission, features, fingerprints, config),
        texts=_text_rows(admission, config) if config.store_texts else None,
        samples=_sample_rows(admission, features, answers, reading),
        rollups=roll_up(features, splits, admission.records[-1].written_ms),
        deadletters=letters,
        packets=_pack(admission, features, splits, fingerprints, config),
    )


def _redact(features: Features, config: StepConfig) -> Features:
    """Kinds of errors are names, but some gateways put the provider's whole message there."""
    errors = features.error_types
    values = redact_texts(errors.values, config.redact)
    if values == errors.values:
        return features
    kinds = code_values(values)
    column = CodedColumn(kinds.codes[errors.codes], kinds.values)
    return structs.replace(features, error_types=column)


def _take_fingerprints(
    features: Features, answers: Answers | None, reading: Reading | None
) -> Vectors | None:
    if answers is None or reading is None or not reading.references.by_model:
        return None
    models = features.dimensions[Dimension.REQUEST_MODEL]
    return take_fingerprints(answers, models, reading.references, len(features))


def _mark_answers(
    features: Features,
    answers: Answers | None,
    reading: Reading | None,
    fingerprints: Vectors | None,
) -> Features:
    if answers is None or reading is None or fingerprints is None:
        return features
    models = features.dimensions[Dimension.REQUEST_MODEL]
    known, off, novel = mark_answers(answers, models, reading.references, fingerprints)
    traits = structs.replace(features.traits, marked=known, off_prompts=off, novel_prompts=novel)
    return structs.replace(features, traits=traits)


def _pack(
    admission: Admission,
    features: Features,
    splits: list[Split],
    fingerprints: Vectors | None,
    config: StepConfig,
) -> Packets:
    source, sums = admission.source, {FINGERPRINT: fingerprints} if fingerprints else {}
    if config.signals_step is None:
        return pack_signals(source, features, splits, config.signals_partitions, sums)
    offsets = [r.offset for r in admission.records]
    return {0: pack_signals_in_steps(source, offsets, features, splits, config.signals_step, sums)}


def _request_rows(
    admission: Admission,
    features: Features,
    fingerprints: Vectors | None,
    config: StepConfig,
) -> Columns:
    source, n, read = admission.source, len(features), features.fields
    traits = features.traits
    return {
        "event_time": features.time_ms,
        "event_id": read["event_id"],
        **{d.value: features.dimensions[d] for d in DIMENSIONS},
        "operation": features.labels["operation"],
        "response_id": [each or "" for each in read["response_id"]],
        "finish_reasons": features.finish_reasons,
        "stream": read["stream"],
        "temperature": read["temperature"],
        "max_tokens": read["max_tokens"],
        "error_type": features.error_types,
        "refused": features.refusals,
        "partly_refused": features.partial_refusals,
        "refusal_source": features.refusal_sources,
        "truncated": features.truncations,
        "empty": _known(traits.empty_answers, traits.contents),
        "off_prompt": _known(traits.off_prompts, traits.marked),
        "novel_prompt": _known(traits.novel_prompts, traits.marked),
        "repetitive": _known(traits.repetitions, traits.texts),
        "language_mismatch": _known(traits.language_mismatches, traits.languages),
        "cache": features.labels["cache"],
        "fallback_from": features.labels["fallback_from"],
        "attempts": read["attempts"],
        "guardrail": features.labels["guardrail"],
        "canary": features.labels["canary"],
        "canary_passed": read["canary_passed"],
        **{t: np.ma.masked_equal(features.tokens[t], ABSENT) for t in TOKEN_FIELDS},
        "output_chars": np.ma.masked_equal(traits.answer_chars, ABSENT),
        "cost_usd": MoneyColumn(features.costs.picodollars, features.costs.priced),
        "duration_s": np.ma.masked_invalid(features.duration_s),
        "time_to_first_chunk_s": read["time_to_first_chunk_s"],
        "time_per_token_s": np.ma.masked_invalid(features.token_s),
        "fingerprint": _fingerprint_column(fingerprints, n),
        "user_hash": hash_users(read["user"], config.user_key),
        "attributes": code_attributes([r.attributes for r in admission.received], config.redact),
        "record_time": [r.written_ms for r in admission.records],
        "topic": repeat_value(source.topic, n),
        "epoch": repeat_value(source.epoch, n),
        "partition": np.full(n, source.partition, np.uint32),
        "offset": [r.offset for r in admission.records],
    }


def _known(flag: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> object:
    """NULL where it is not known."""
    return np.ma.masked_array(flag, ~known)


def _fingerprint_column(fingerprints: Vectors | None, n: int) -> ListColumn:
    """Empty where there is none."""
    if fingerprints is None:
        return ListColumn(np.zeros(n + 1, np.int32), np.zeros(0, np.float32))
    has = fingerprints.has
    residuals = fingerprints.values[has, :DIRECTIONS]
    offsets = np.concatenate([[0], np.cumsum(has)]) * DIRECTIONS
    return ListColumn(offsets.astype(np.int32), residuals.ravel())


def _sample_rows(
    admission: Admission, features: Features, answers: Answers | None, reading: Reading | None
) -> Columns | None:
    if answers is None or reading is None or not len(answers.rows):
        return None
    models = features.dimensions[Dimension.REQUEST_MODEL]
    ids = features.fields["event_id"]
    chosen = select_sample(answers, models, ids, reading.samples_per_model)
    rows = answers.rows[chosen]
    at = rows.tolist()
    return {
        "event_time": features.time_ms[rows],
        "event_id": [ids[i] for i in at],
        "request_model": CodedColumn(models.codes[rows], models.values),
        "embedding": repeat_value(answers.embedding, len(at)),
        "prompt": _vector_column(answers.prompts[chosen]),
        "answer": _vector_column(answers.answers[chosen]),
        "record_time": [admission.records[i].written_ms for i in at],
    }


def _vector_column(vectors: npt.NDArray[np.float32]) -> ListColumn:
    n, width = vectors.shape
    return ListColumn(np.arange(n + 1, dtype=np.int32) * width, vectors.ravel())


def _text_rows(admission: Admission, config: StepConfig) -> Columns | None:
    kept = [
        (record, r)
        for record, r in zip(admission.records, admission.received, strict=True)
        if r.event.prompt_text is not None or r.event.response_text is not None
    ]
    if not kept:
        return None
    return {
        "event_time": [r.time_ms for _, r in kept],
        "event_id": [r.event.event_id for _, r in kept],
        "prompt_text": redact_texts([r.event.prompt_text or "" for _, r in kept], config.redact),
        "response_text": redact_texts(
            [r.event.response_text or "" for _, r in kept], config.redact
        ),
        "record_time": [record.written_ms for record, _ in kept],
    }
