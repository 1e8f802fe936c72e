"""The bytes of dead letters: found again where they lie, and sent once more.

They are looked for where they came from, for there they are as they were written; and where
retention has taken them, on the dead-letter topic, where personal data is replaced.

Delivery guarantee: a replay returns when the broker has all of it. It may be run again: an
event that is stored by then is a repeat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from pipeline.config import KafkaSettings
from pipeline.errors import PermanentError, SinkUnavailable
from pipeline.producers import open_producer
from pipeline.sinks.deadletters import Letter
from pipeline.topics import client_settings, mapped_errors, topic_epochs

#: A broker that has a record hands it over in milliseconds.
POLL_MS = 5_000
SEND_S = 60.0
#: The header that tells a replayed event from others: which letter it was.
REPLAY_HEADER = "kizashi-replay-of"


class NoBytes(PermanentError):
    """The bytes of a dead letter are kept nowhere."""


class Found(NamedTuple):
    """A letter's bytes, and whether they are the ones that were refused, to the bit."""

    raw: bytes
    exact: bool


def find_bytes(kafka: KafkaSettings, letters: Sequence[Letter]) -> dict[Letter, Found]:
    """Return the bytes of those letters that can still be had.

    Raises:
        ConfigError: the settings cannot be used.
        SinkUnavailable: the broker does not answer.
    """
    with mapped_errors(kafka), _consumer(kafka) as consumer:
        epochs = topic_epochs(kafka, {letter.topic for letter in letters})
        found = {}
        for letter in sorted(letters, key=lambda each: (each.topic, each.partition, each.offset)):
            if epochs.get(letter.topic) == letter.epoch:
                raw = _read_source(consumer, letter)
                if raw is not None and _digest(raw) == letter.sha256:
                    found[letter] = Found(raw, exact=True)
        missing = [letter for letter in letters if letter not in found]
        if missing:
            found |= _scan(consumer, kafka.deadletter_topic, missing)
        return found


def _read_source(consumer: KafkaConsumer, letter: Letter) -> bytes | None:
    """The record where it was first written; None when retention has taken it."""
    place = TopicPartition(letter.topic, letter.partition)
    consumer.assign([place])
    if not consumer.beginning_offsets([place])[place] <= letter.offset:
        return None
    consumer.seek(place, letter.offset)
    for record in consumer.poll(timeout_ms=POLL_MS, max_records=1).get(place, []):
        if record.offset == letter.offset:
            return record.value or b""
    return None


def _scan(consumer: KafkaConsumer, topic: str, letters: Sequence[Letter]) -> dict[Letter, Found]:
    """Read the dead-letter topic from when the first of them was written."""
    wanted = {(each.topic, each.partition, each.offset, each.item): each for each in letters}
    places = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
    if not places:
        return {}
    consumer.assign(places)
    since_ms = min(letter.written_ms for letter in letters)
    starts = consumer.offsets_for_times(dict.fromkeys(places, since_ms))
    ends = consumer.end_offsets(places)
    for place in places:
        start = starts.get(place)
        consumer.seek(place, start.offset if start is not None else ends[place])
    found: dict[Letter, Found] = {}
    while len(found) < len(letters) and any(consumer.position(p) < ends[p] for p in places):
        batches = consumer.poll(timeout_ms=POLL_MS)
        if not batches:
            raise SinkUnavailable(f"{topic} ends before its end")
        for record in (each for batch in batches.values() for each in batch):
            letter = wanted.get(_read_place(dict(record.headers)))
            if letter is not None:
                raw = record.value or b""
                found[letter] = Found(raw, exact=_digest(raw) == letter.sha256)
    return found


def _read_place(headers: Mapping[str, bytes]) -> tuple[str, int, int, int]:
    def number(name: str) -> int:
        return int(headers.get(name, b"0"))

    topic = headers.get("topic", b"").decode()
    return topic, number("partition"), number("offset"), number("item")


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def send_again(kafka: KafkaSettings, records: Sequence[tuple[Letter, bytes]]) -> None:
    """Send bytes to the topic that each letter came from, marked with the letter's place.

    Raises:
        ConfigError: the settings cannot be used.
        SinkUnavailable: the broker does not take them.
    """
    with mapped_errors(kafka):
        producer = open_producer(kafka)
        try:
            waiting = [producer.send(t.topic, raw, headers=_mark(t)) for t, raw in records]
            for future in waiting:
                future.get(timeout=SEND_S)
        finally:
            producer.close(SEND_S)


def _mark(letter: Letter) -> list[tuple[str, bytes]]:
    return [(REPLAY_HEADER, f"{letter.topic}/{letter.name}".encode())]


@contextmanager
def _consumer(kafka: KafkaSettings) -> Iterator[KafkaConsumer]:
    settings: dict[str, Any] = {"group_id": None, "enable_auto_commit": False}
    consumer = KafkaConsumer(**client_settings(kafka), **settings, auto_offset_reset="latest")
    try:
        yield consumer
    finally:
        consumer.close(autocommit=False)
