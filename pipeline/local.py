"""The same steps without a broker: for the demo, for replays, for tests.

Delivery guarantee: everything handed to `feed` is stored, dead-lettered or
counted as a repeat before it returns. There is no position to come back to: a
process that dies starts its input again, under a new epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import structs

from detectors.bank import Bank, Findings
from pipeline.build import (
    Reader,
    build_bank_config,
    build_feedback_config,
    build_feedback_registry,
    build_pricer,
    build_registry,
    build_step_config,
)
from pipeline.config import Config
from pipeline.core.chunk import Chunk, ChunkCounts, ChunkEffects, Record
from pipeline.core.dedup import SeenIds
from pipeline.core.feedback import (
    Joined,
    admit_feedback,
    feedback_rows,
    pack_feedback,
    wanted_ids,
)
from pipeline.core.step import Admission, admit, derive_effects
from pipeline.incidents.book import BookConfig, Entry, IncidentBook
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.detections import DetectionStore
from pipeline.sinks.feedback import FeedbackStore
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.requests import RequestStore
from schemas.alarm import Alarm
from schemas.command import Command
from schemas.control import Reset
from schemas.incident import Incident
from schemas.signal import SignalPacket, Source

#: The detectors look again after so many events.
SIGNALS_STEP = 64
#: A replay cannot wait for its last alarms to stay clear: it asks a day later.
END_MS = DAY_MS = 86_400_000
#: A chunk of the first events is no larger: of each model a chunk keeps a sample, and the first
#: references would wait for many large ones.
FIRST_CHUNK_EVENTS, FIRST_EVENTS = 128, 16_384
#: References are looked after for every so many answers that were kept.
REFERENCES_STEP = 250
#: Books are stored so often.
BOOKS_MS = 60_000


class Counts(NamedTuple):
    """The books so far: ``events == stored + deadlettered + duplicates``."""

    events: int
    stored: int
    deadlettered: int
    duplicates: int


class LocalPipeline:
    """Ingest, detect and respond in one process, one after the other.

    `store` must have been migrated. `epoch` names this run: two runs over the
    same input are two sets of rows.
    """

    def __init__(self, config: Config, store: Store, epoch: str, topic: str = "local") -> None:
        self._config = config
        self._store = store
        self._requests = RequestStore(store)
        self._detections = DetectionStore(store)
        self._incidents = IncidentStore(store)
        self._step = structs.replace(
            build_step_config(config, signals_partitions=1), signals_step=SIGNALS_STEP
        )
        self._pricer = build_pricer(config)
        self._reader = Reader(config, store)
        self._sampled = 0
        self._registry = build_registry(config, self._requests)
        self._seen = SeenIds(config.ingest.dedup_window)
        self._bank = Bank(build_bank_config(config, signals_partitions=1))
        self._book = IncidentBook(BookConfig())
        self._source = Source(topic, epoch, 0, 0, -1)
        self._feedback = FeedbackStore(store)
        self._feedback_config = build_feedback_config(config, signals_partitions=1)
        self._feedback_registry = build_feedback_registry(config, self._feedback)
        self._feedback_seen = SeenIds(config.ingest.dedup_window)
        self._feedback_source = Source(f"{topic}.feedback", epoch, 0, 0, -1)
        self._counts = ChunkCounts()
        #: What the books do not hold yet: from which offset on, and since when.
        self._unbooked, self._unbooked_from, self._booked_ms = ChunkCounts(), 0, 0
        self._watermark_ms = 0

    @property
    def counts(self) -> Counts:
        return Counts(*self._counts[:4])

    def feed(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        """Take in records, written at `now_ms`; returns alarms and changed incidents in order."""
        news: list[Alarm | Incident] = []
        start = 0
        while start < len(records):
            end = start + self._chunk_size()
            news += self._feed_chunk(records[start:end], now_ms)
            start = end
        return news

    def feed_feedback(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        """Take in feedback, written at `now_ms`, about requests that were fed before it."""
        self._feedback_source, chunk = _next_chunk(self._feedback_source, records, now_ms)
        admission = admit_feedback(chunk, self._feedback_config, self._feedback_seen)
        since_ms = round(now_ms - self._config.feedback.lookback_days * DAY_MS)
        subjects = self._feedback.find_subjects(*wanted_ids(admission.received), max(0, since_ms))
        joined = Joined(admission, [subjects.find(r.feedback) for r in admission.received])
        rows = feedback_rows(joined, self._feedback_config)
        if refused := self._feedback.store(chunk.source, rows):
            joined = joined.without(refused)
        letters, counts = joined.admission.deadletters, joined.admission.counts
        self._feedback.store_rest(chunk.source, letters, counts, now_ms)
        packets = pack_feedback(joined, self._feedback_config, self._feedback_registry)
        return self._detect(packets.get(0, ()))

    def reset(self, order: Reset) -> list[Alarm | Incident]:
        """Take a planned change for normal from here on; returns the alarms that it ends."""
        self._detections.store_resets([order])
        if self._reader.keeper is not None:
            self._reader.keeper.refresh()
        return self._note_findings(self._bank.reset(order))

    def _chunk_size(self) -> int:
        size = self._config.ingest.chunk_events
        learns = self._reader.keeper is not None and self.counts.events < FIRST_EVENTS
        return min(size, FIRST_CHUNK_EVENTS) if learns else size

    def finish(self, now_ms: int) -> list[Alarm | Incident]:
        """Resolve what has been clear; call it once, at the end of the input."""
        self._store_books(now_ms)
        return [e.incident for e in self._note(self._book.tick(self._watermark_ms + END_MS))]

    def carry_out(self, command: Command) -> list[Incident]:
        """Do what a person wants done with an incident; returns it if it has changed."""
        return [e.incident for e in self._note(self._book.carry_out(command))]

    def query(self, sql: str) -> list[dict[str, object]]:
        """Run a query over what has been stored so far."""
        names, rows = self._store.query(sql)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _feed_chunk(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        self._source, chunk = _next_chunk(self._source, records, now_ms)
        effects = self._store_chunk(chunk)
        self._counts = self._counts.plus(effects.counts)
        self._enter(effects.counts, now_ms)
        self._keep_references(effects, now_ms)
        return self._detect(effects.packets.get(0, ()))

    def _store_chunk(self, chunk: Chunk) -> ChunkEffects:
        admission = admit(chunk, self._step.limits, self._seen)
        effects = self._derive(admission)
        if refused := self._requests.find_unstorable(effects):
            effects = self._derive(admission.without(refused))
        self._requests.store_effects(effects)
        return effects

    def _enter(self, counts: ChunkCounts, now_ms: int) -> None:
        """Chunks are small here, so their books are stored together, a minute's at once."""
        self._unbooked = self._unbooked.plus(counts)
        if now_ms - self._booked_ms >= BOOKS_MS:
            self._store_books(now_ms)

    def _store_books(self, now_ms: int) -> None:
        source = structs.replace(self._source, first_offset=self._unbooked_from)
        self._requests.store_books(source, self._unbooked, now_ms)
        self._unbooked, self._unbooked_from = ChunkCounts(), source.last_offset + 1
        self._booked_ms = now_ms

    def _derive(self, admission: Admission) -> ChunkEffects:
        reading = self._reader.reading()
        return derive_effects(admission, self._step, self._pricer, self._registry, reading)

    def _keep_references(self, effects: ChunkEffects, now_ms: int) -> None:
        """Fit what is due, once for every so many answers that were kept."""
        keeper = self._reader.keeper
        if keeper is None or not effects.samples:
            return
        self._sampled += len(effects.samples["record_time"])  # type: ignore[arg-type]  # a list
        if self._sampled >= REFERENCES_STEP:
            self._sampled = 0
            keeper.refresh()
            keeper.fit_due(self._watermark_ms or now_ms)

    def _detect(self, packets: Sequence[SignalPacket]) -> list[Alarm | Incident]:
        news: list[Alarm | Incident] = []
        verdicts = []
        for packet in packets:
            findings = self._bank.update(packet)
            verdicts += findings.verdicts
            news += self._note_findings(findings)
            self._watermark_ms = max(self._watermark_ms, packet.last_time_ms)
            news += self._look_after(self._watermark_ms)
        self._detections.store_verdicts(verdicts)
        return news

    def _note_findings(self, findings: Findings) -> list[Alarm | Incident]:
        self._detections.store_alarms(findings.alarms)
        self._detections.store_effects(findings.effects)
        news: list[Alarm | Incident] = []
        for alarm in findings.alarms:
            news += [alarm, *self._respond(alarm)]
        return news

    def _look_after(self, now_ms: int) -> list[Incident]:
        store = self._incidents
        entries = self._book.review(now_ms, store.investigate, store.find_examples)
        entries += self._book.tick(now_ms)
        return [entry.incident for entry in self._note(entries)]

    def _respond(self, alarm: Alarm) -> list[Incident]:
        entries = self._book.handle(
            alarm, self._incidents.investigate, self._incidents.find_examples
        )
        return [entry.incident for entry in self._note(entries)]

    def _note(self, entries: list[Entry]) -> list[Entry]:
        self._incidents.save(*(entry.incident for entry in entries))
        return entries


def _next_chunk(before: Source, records: Sequence[bytes], now_ms: int) -> tuple[Source, Chunk]:
    """Return the records as the chunk behind the last one, and its place."""
    first = before.last_offset + 1
    source = structs.replace(before, first_offset=first, last_offset=first + len(records) - 1)
    return source, Chunk(
        source, [Record(first + i, now_ms, value) for i, value in enumerate(records)]
    )
