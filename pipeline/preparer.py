"""A process that prepares chunks for a worker: started by `pipeline.preparing`, ends with it.

What a chunk's effects depend on beside the chunk (the ids seen before, the monitors that are
watched, the references) is the worker's. It is asked, or tells; nothing here outlives a restart
but what was told once and cannot change.

Delivery guarantee: none needed: preparing has no effect outside.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from detectors.fingerprint import from_bytes
from pipeline.channel import (
    Body,
    Channel,
    Done,
    Ends,
    Failed,
    Flags,
    Ids,
    Letter,
    Message,
    Ready,
    References,
    Setup,
    Task,
    Wanted,
)
from pipeline.config import EncoderSettings
from pipeline.core.answers import Embedding
from pipeline.core.chunk import Chunk, ChunkEffects, DeadLetter, Record
from pipeline.core.fingerprints import ReferenceSet
from pipeline.core.monitors import MonitorRegistry, name_other
from pipeline.core.pricing import Pricer, PriceTable
from pipeline.core.step import Reading, admit_chunk, derive_effects
from pipeline.embedding import build_embedding
from pipeline.errors import ConfigError, ProcessLost
from pipeline.process import settle_process
from pipeline.sinks.arrow import to_table
from schemas.monitor import Grouping, Monitor

#: Field of `ChunkEffects` → the table that its columns are rows of.
TABLES = {
    "requests": "requests",
    "texts": "request_texts",
    "samples": "answer_samples",
    "rollups": "rollup_1m",
}


class AskedIds(NamedTuple):
    """The worker's window of seen ids."""

    channel: Channel

    def add_all(self, event_ids: Sequence[str]) -> list[bool]:
        return _ask(self.channel, Ids(list(event_ids)))


class AskedRegistry(MonitorRegistry):
    """The worker's registry, of which it remembers what was admitted: that never changes.

    Memory: as many monitors as the worker's own holds at most.
    """

    def __init__(self, channel: Channel, groupings: Sequence[Grouping]) -> None:
        super().__init__(sys.maxsize)
        self._channel = channel
        self._places = {grouping: place for place, grouping in enumerate(groupings)}

    def admit_all(self, grouping: Grouping, values: Sequence[tuple[str, ...]]) -> list[Monitor]:
        known = self.values_of(grouping)
        unknown = [each for each in values if each not in known]
        if not unknown:
            return [Monitor(grouping, each) for each in values]
        flags = _ask(self._channel, Wanted(self._places[grouping], unknown))
        over = {each for each, flag in zip(unknown, flags, strict=True) if not flag}
        super().admit_all(grouping, [each for each in unknown if each not in over])
        other = name_other(grouping)
        return [other if each in over else Monitor(grouping, each) for each in values]


def _ask(channel: Channel, question: Message) -> list[bool]:
    channel.send(question)
    answer, _ = channel.receive()
    if not isinstance(answer, Flags):
        raise TypeError(f"{type(answer).__name__} is no answer")
    return answer.each


class Preparing:
    """Prepares one chunk after the other. Memory: a chunk, its effects, and the encoder's cache."""

    def __init__(self, channel: Channel, setup: Setup, embedding: Embedding | None) -> None:
        self._channel = channel
        self._setup = setup
        self._embedding = embedding
        self._pricer = Pricer(PriceTable(setup.prices))
        self._registry = AskedRegistry(channel, setup.step.groupings)
        self._references = ReferenceSet(embedding.name if embedding else "", 0, {})

    def run(self) -> None:
        """Do what the worker asks for.

        Raises:
            ProcessLost: the worker has ended, or wants no more.
        """
        while True:
            message, body = self._channel.receive()
            if isinstance(message, References):
                by_model = {name: from_bytes(raw) for name, raw in message.by_model.items()}
                self._references = ReferenceSet(message.embedding, message.version, by_model)
            elif isinstance(message, Task):
                chunk = _read_chunk(message, body)
                self._answer(chunk, self._prepare(chunk, message.refused))
            else:
                raise TypeError(f"{type(message).__name__} is no task")

    def _prepare(self, chunk: Chunk, refused: Mapping[int, str]) -> ChunkEffects:
        step = self._setup.step
        admission = admit_chunk(chunk, step, AskedIds(self._channel))
        if refused:
            admission = admission.without(refused)
        return derive_effects(admission, step, self._pricer, self._registry, self._reading())

    def _reading(self) -> Reading | None:
        if self._embedding is None:
            return None
        return Reading(self._embedding, self._references, self._setup.samples_per_model)

    def _answer(self, chunk: Chunk, effects: ChunkEffects) -> None:
        tables = {
            field: _to_arrow(table, columns)
            for field, table in TABLES.items()
            if (columns := getattr(effects, field))
        }
        own = {r.offset: r for r in chunk.records} if effects.deadletters else {}
        letters = [_shorten(each, own) for each in effects.deadletters]
        sizes = {field: each.size for field, each in tables.items()}
        done = Done(effects.counts, sizes, letters, effects.packets)
        self._channel.send(done, [memoryview(each) for each in tables.values()])


def _shorten(letter: DeadLetter, own: Mapping[int, Record]) -> Letter:
    record, rejected = letter.record, letter.rejected
    return Letter(
        offset=record.offset,
        reason=rejected.reason,
        detail=rejected.detail,
        item=letter.item,
        event_id=letter.event_id,
        record=None if record is own[record.offset] else record,
        raw=None if rejected.raw == (record.value or b"") else rejected.raw,
    )


def _read_chunk(task: Task, body: Body) -> Chunk:
    offsets, written_ms, sizes = (
        np.frombuffer(each, np.int64).tolist()
        for each in (task.offsets, task.written_ms, task.sizes)
    )
    values: list[bytes | None] = list(body.split([max(size, 0) for size in sizes]))
    if -1 in sizes:
        values = [None if s < 0 else value for s, value in zip(sizes, values, strict=True)]
    return Chunk(task.source, list(map(Record, offsets, written_ms, values)))


def _to_arrow(table: str, columns: dict[str, object]) -> pa.Buffer:
    rows = to_table(table, columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue()


def main() -> None:
    """Prepare chunks until the worker closes its end."""
    # The worker decides when it is over, also when a signal goes to all of its group.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    channel = Channel(Ends(*map(int, sys.argv[1:])))
    try:
        setup, _ = channel.receive()
        embedding = build_embedding(EncoderSettings(**setup.encoder))
        preparing = Preparing(channel, setup, embedding)
        settle_process()
        channel.send(Ready(embedding.name if embedding else None))
        preparing.run()
    except ProcessLost:
        return
    except ConfigError as error:
        channel.send(Failed(str(error)))
    except Exception:
        channel.send(Failed(traceback.format_exc()))


if __name__ == "__main__":
    main()
