"""Processes that prepare chunks beside the worker: Python of their own, and a core of their own.

The worker keeps all state. A process gets a chunk's bytes and answers with its effects; what it
must know beside the chunk it asks for. So any of them may take any chunk, and one that is gone
is replaced.

Delivery guarantee: none needed: preparing has no effect outside. A chunk whose process is gone
is prepared again, and its ids are not taken for repeats: `pipeline.effects.Window` remembers.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from detectors.fingerprint import to_bytes
from pipeline.channel import (
    Body,
    Channel,
    Done,
    Failed,
    Flags,
    Ids,
    Letter,
    Ready,
    References,
    Setup,
    Task,
    Wanted,
    open_ends,
)
from pipeline.core.chunk import Chunk, ChunkEffects, Columns, DeadLetter, Record
from pipeline.core.fingerprints import ReferenceSet
from pipeline.core.monitors import MonitorRegistry
from pipeline.effects import Prepared, Window
from pipeline.errors import PreparingFailed
from schemas.rejection import Rejected

logger = logging.getLogger(__name__)

#: For a process that was told to end: it may have a chunk in hand.
_END_S = 5.0
_SOURCES = str(Path(__file__).parents[1])


class PreparerProcess:
    """One process, from its start to its end. Calls block."""

    def __init__(self, setup: Setup) -> None:
        ours, theirs = open_ends()
        self.channel = Channel(ours)
        #: What it takes fingerprints against.
        self.references: ReferenceSet | None = None
        path = os.pathsep.join(filter(None, [_SOURCES, os.environ.get("PYTHONPATH")]))
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "pipeline.preparer", *map(str, theirs)],
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        finally:
            for each in theirs:
                os.close(each)
        self.channel.send(setup)

    @property
    def pid(self) -> int:
        return self._process.pid

    def receive(self) -> tuple[Any, Body]:
        """Wait for its next message.

        Raises:
            ProcessLost: it is gone.
            PreparingFailed: it came to an error that no repeat will mend.
        """
        message, body = self.channel.receive()
        if isinstance(message, Failed):
            raise PreparingFailed(message.error)
        return message, body

    def wait_ready(self) -> Ready:
        """Wait until it is up, and return what it says of itself. Raises as `receive`."""
        ready: Ready = self.receive()[0]
        return ready

    def end(self) -> None:
        """Let go of it; it ends by itself when it finds the channel closed."""
        self.channel.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            logger.warning("the process %d does not end", self.pid)
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        self.channel.close()
        self._process.kill()
        self._process.wait()


class PreparerPool:
    """`pipeline.effects.Preparer` on processes. Safe from so many threads as it has processes.

    Memory, in each process: one chunk with its effects, and what the encoder holds; here, the
    effects of a chunk as they come.
    """

    def __init__(self, count: int, setup: Setup) -> None:
        """Start the processes.

        Raises:
            ProcessLost, PreparingFailed: one did not come up.
        """
        self._setup = setup
        started = [PreparerProcess(setup) for _ in range(count)]
        #: Whose vectors they make; None when they read no texts.
        self.embedding = [each.wait_ready().embedding for each in started].pop()
        self._registry = MonitorRegistry(0)
        self._references: Callable[[], ReferenceSet | None] = lambda: None
        self._asking = Lock()
        #: None stands for one that is gone.
        self._idle: SimpleQueue[PreparerProcess | None] = SimpleQueue()
        for each in started:
            self._idle.put(each)

    def serve(
        self, registry: MonitorRegistry, references: Callable[[], ReferenceSet | None]
    ) -> None:
        """Answer the processes' questions from these; to be called before the first chunk."""
        self._registry, self._references = registry, references

    def prepare(self, chunk: Chunk, window: Window) -> Prepared:
        found: list[list[bool]] = []

        def find_new(event_ids: list[str]) -> list[bool]:
            found.append(window.at(chunk.source).add_all(event_ids))
            return found[-1]

        effects = self._prepare(chunk, {}, find_new)
        return Prepared((chunk, found[-1]), effects)

    def prepare_without(self, prepared: Prepared, refused: Mapping[int, str]) -> ChunkEffects:
        chunk, new = prepared.admitted
        return self._prepare(chunk, refused, lambda _: new)

    def close(self) -> None:
        """End the processes; nothing may be in hand."""
        while not self._idle.empty():
            if (process := self._idle.get()) is not None:
                process.end()

    def _prepare(
        self,
        chunk: Chunk,
        refused: Mapping[int, str],
        find_new: Callable[[list[str]], list[bool]],
    ) -> ChunkEffects:
        process = self._idle.get()
        try:
            if process is None:
                process = PreparerProcess(self._setup)
                process.wait_ready()
            self._tell_references(process)
            _send_chunk(process.channel, chunk, refused)
            done, body = self._answer(process, find_new)
            return _read_effects(chunk, done, body.read())
        except BaseException as error:
            # Whatever it was, nobody knows what the process will say next.
            if process is not None:
                logger.warning("the process %d prepares no more: %r", process.pid, error)
                process.kill()
                process = None
            raise
        finally:
            self._idle.put(process)

    def _tell_references(self, process: PreparerProcess) -> None:
        references = self._references()
        if references is None or references is process.references:
            return
        by_model = {name: to_bytes(each) for name, each in references.by_model.items()}
        process.channel.send(References(references.embedding, references.version, by_model))
        process.references = references

    def _answer(
        self, process: PreparerProcess, find_new: Callable[[list[str]], list[bool]]
    ) -> tuple[Done, Body]:
        """Answer what it asks until it is done."""
        while True:
            message, body = process.receive()
            if isinstance(message, Done):
                return message, body
            flags = (
                find_new(message.event_ids) if isinstance(message, Ids) else self._admit(message)
            )
            process.channel.send(Flags(flags))

    def _admit(self, wanted: Wanted) -> list[bool]:
        grouping = self._setup.step.groupings[wanted.grouping]
        with self._asking:
            admitted = self._registry.admit_all(grouping, wanted.values)
        return [m.values == v for m, v in zip(admitted, wanted.values, strict=True)]


def _send_chunk(channel: Channel, chunk: Chunk, refused: Mapping[int, str]) -> None:
    records = chunk.records
    values = [r.value for r in records]
    sizes = [-1 if value is None else len(value) for value in values]
    offsets, written_ms = [r.offset for r in records], [r.written_ms for r in records]
    task = Task(
        source=chunk.source,
        offsets=_pack(offsets),
        written_ms=_pack(written_ms),
        sizes=_pack(sizes),
        refused=dict(refused),
    )
    channel.send(task, [value for value in values if value])


def _pack(column: Sequence[int]) -> bytes:
    return np.array(column, np.int64).tobytes()


def _read_effects(chunk: Chunk, done: Done, body: bytearray) -> ChunkEffects:
    tables, at = {}, 0
    for field, size in done.tables.items():
        tables[field] = _read_table(memoryview(body)[at : at + size])
        at += size
    return ChunkEffects(
        source=chunk.source,
        counts=done.counts,
        requests=tables.get("requests", {}),
        texts=tables.get("texts"),
        samples=tables.get("samples"),
        rollups=tables.get("rollups", {}),
        deadletters=_read_letters(chunk, done),
        packets=done.packets,
    )


def _read_table(raw: memoryview) -> Columns:
    """The columns as arrays that lie where they came."""
    with pa.ipc.open_stream(pa.py_buffer(raw)) as reader:
        batch = reader.read_next_batch()
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _read_letters(chunk: Chunk, done: Done) -> tuple[DeadLetter, ...]:
    own = {r.offset: r for r in chunk.records} if done.letters else {}
    return tuple(_complete(letter, letter.record or own[letter.offset]) for letter in done.letters)


def _complete(letter: Letter, record: Record) -> DeadLetter:
    raw = (record.value or b"") if letter.raw is None else letter.raw
    return DeadLetter(
        record, Rejected(letter.reason, letter.detail, raw), letter.item, letter.event_id
    )
