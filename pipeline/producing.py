"""What `kizashi produce FILE` does: the lines of a file, sent to the events topic as they are.

Delivery: every line that is counted as sent is on all in-sync replicas, once
per run (acks=all, idempotent producer). Running again sends again: a line's
``event.id`` is its key, so the repeats come to the same partition and the
pipeline drops them there. Lines that are no valid events are sent too, without
a key; the pipeline dead-letters them with the reason.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from pipeline.config import KafkaSettings
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.inputs import LINE_BYTES_MAX, read_lines, size_known_bytes
from pipeline.producers import open_producer
from pipeline.topics import message_bytes_max

#: What may be on its way at once. kafka-python itself puts no bound on it.
IN_FLIGHT_BYTES_MAX = 32 * 1024 * 1024
_BATCH_BYTES = 256 * 1024
_LINGER_MS = 20
#: Room for a batch's and a record's header, the key, and what a codec adds to random bytes.
_RECORD_OVERHEAD_BYTES = 64 * 1024
_DELIVERY_TIMEOUT_S = 120.0
#: Beyond the client's own deadline nothing more will come.
_ANSWER_TIMEOUT_S = _DELIVERY_TIMEOUT_S + 30.0
_CLOSE_TIMEOUT_S = 5.0
_PROGRESS_LINES = 200
#: `event.id` may not be longer (schemas.event.Identifier).
_ID_LENGTH_MAX = 256
_LONGEST_STEP_S = 3_600.0
TOO_LONG = "LineTooLong"
UNANSWERED = "Unanswered"


@dataclass(frozen=True, slots=True)
class ProduceReport:
    """How it went. Every line that was read is in `sent` or in `failed`."""

    #: Lines that the broker acknowledged.
    sent: int
    #: Lines that it did not, or that were never offered because they are too long.
    failed: int
    #: Bytes of the lines that were sent.
    bytes: int
    seconds: float
    #: Why lines failed: the name of the error, and how many.
    errors: Mapping[str, int] = field(default_factory=dict)


class Pacer:
    """Decides how long to wait before each event, so that a file plays at `speed`.

    1 is the pace of the recording, 60 plays an hour in a minute, None waits for
    nothing. The first event sets the pace. A step in event time that would take
    longer than `longest_step_s` to play, forwards or backwards, is jumped over,
    and the pace is set anew: a stray time of the year 2099 must not stop the file.
    """

    def __init__(self, speed: float | None, longest_step_s: float = _LONGEST_STEP_S) -> None:
        if speed is not None and not (math.isfinite(speed) and speed > 0):
            raise ConfigError(f"speed: {speed} is not a number above zero")
        self._speed = speed
        self._longest_step_s = longest_step_s
        self._start_ms = self._last_ms = math.nan
        self._start_s = math.nan

    def delay_s(self, event_time_ms: float, now_s: float) -> float:
        """Return in how many seconds this event is due, at least 0. `now_s`: any steady clock."""
        if self._speed is None:
            return 0.0
        step_s = (event_time_ms - self._last_ms) / 1000 / self._speed
        self._last_ms = event_time_ms
        if not abs(step_s) <= self._longest_step_s:  # also true of the first step, which is NaN
            self._start_ms, self._start_s = event_time_ms, now_s
        due_s = self._start_s + (event_time_ms - self._start_ms) / 1000 / self._speed
        return max(0.0, due_s - now_s)


class Head(msgspec.Struct, frozen=True):
    """The two fields of a line that producing looks at; the rest is skipped over."""

    event_id: str | None = msgspec.field(name="event.id", default=None)
    event_time: msgspec.Raw = msgspec.field(name="event.time", default=msgspec.Raw(b"null"))

    @property
    def key(self) -> bytes | None:
        """The record's key; None for an id that the codec will refuse anyway."""
        if not self.event_id or len(self.event_id) > _ID_LENGTH_MAX:
            return None
        return self.event_id.encode(errors="replace")

    @property
    def time_ms(self) -> float | None:
        """Milliseconds since the epoch; None when the event bears no usable time."""
        try:
            time = _decode_time(self.event_time)
            return 1000.0 * (time.timestamp() if isinstance(time, dt.datetime) else time)
        except (msgspec.MsgspecError, OverflowError):
            return None


_NO_HEAD = Head()
_decode_head = msgspec.json.Decoder(Head).decode
_AwareTime = Annotated[dt.datetime, msgspec.Meta(tz=True)]
_decode_time: Callable[[msgspec.Raw], dt.datetime | float] = msgspec.json.Decoder(
    _AwareTime | float | int
).decode


def read_head(line: bytes) -> Head:
    """Return what can be read of a line, which may be any bytes at all."""
    try:
        return _decode_head(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _NO_HEAD


def produce_file(
    settings: KafkaSettings, path: Path, *, speed: float | None = None, show_progress: bool = True
) -> ProduceReport:
    """Send the lines of `path` (``-``: standard input) with a progress bar on stderr.

    Raises:
        InputError: the file cannot be read to its end; what came before was sent.
        ConfigError: the settings cannot be used, or the events topic does not exist.
        SinkUnavailable: the broker does not answer.
    """
    total_bytes = size_known_bytes(path)
    with _progress(path.name, total_bytes, shown=show_progress) as advance:
        return produce(settings, read_lines(path), speed=speed, advance=advance)


def produce(
    settings: KafkaSettings,
    lines: Iterable[bytes],
    *,
    speed: float | None = None,
    advance: Callable[[int], None] = lambda _: None,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ProduceReport:
    """Send `lines` to the events topic and wait until every one is answered for.

    `advance` is told the bytes taken from `lines`, some hundred lines at a
    time. Should `lines` raise, what came before is still delivered.

    Raises:
        ConfigError: the settings cannot be used, or the events topic does not exist.
        SinkUnavailable: the broker does not answer.
    """
    pacer = Pacer(speed)
    flight = _Flight(IN_FLIGHT_BYTES_MAX)
    begin_s = now_s()
    line_bytes_max = _line_bytes_max(settings)
    with _producer(settings, flight, line_bytes_max) as producer:
        for line in _counted(lines, advance):
            if len(line) > line_bytes_max:
                flight.refuse(TOO_LONG)
                continue
            head = read_head(line)
            if speed is not None and (time_ms := head.time_ms) is not None:
                sleep(pacer.delay_s(time_ms, now_s()))
            _send(producer, settings.events_topic, line, head.key, flight)
    return flight.report(now_s() - begin_s)


class _Flight:
    """The lines that are under way, capped in bytes, and what became of the others.

    Shared by the sending thread and the client's own, which settles.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._changed = threading.Condition()
        self._held = 0
        self._held_bytes = 0
        self._sent = 0
        self._sent_bytes = 0
        self._errors: Counter[str] = Counter()

    def take_off(self, size: int) -> None:
        """Wait until there is room for a line of `size` bytes.

        Raises:
            SinkUnavailable: the client answers for nothing any more.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(size), _ANSWER_TIMEOUT_S):
                raise SinkUnavailable(f"Kafka: no answer for {_ANSWER_TIMEOUT_S:g} s")
            self._held += 1
            self._held_bytes += size

    def land(self, timeout_s: float) -> None:
        """Wait until nothing is under way. What still is after `timeout_s` the report counts."""
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0, timeout_s)

    def settle(self, size: int, error: str | None) -> None:
        with self._changed:
            self._held -= 1
            self._held_bytes -= size
            if error is None:
                self._sent += 1
                self._sent_bytes += size
            else:
                self._errors[error] += 1
            self._changed.notify()

    def refuse(self, error: str) -> None:
        """Count a line that never took off."""
        with self._changed:
            self._errors[error] += 1

    def report(self, seconds: float) -> ProduceReport:
        with self._changed:
            errors = self._errors + Counter({UNANSWERED: self._held})
            return ProduceReport(
                sent=self._sent,
                failed=errors.total(),
                bytes=self._sent_bytes,
                seconds=seconds,
                errors=dict(errors),
            )

    def _has_room(self, size: int) -> bool:
        return self._held == 0 or self._held_bytes + size <= self._bytes_max


def _send(
    producer: KafkaProducer, topic: str, line: bytes, key: bytes | None, flight: _Flight
) -> None:
    size = len(line)
    flight.take_off(size)
    try:
        future = producer.send(topic, line, key)
    except KafkaError as error:
        flight.settle(size, type(error).__name__)
        return
    future.add_callback(lambda _: flight.settle(size, None))
    future.add_errback(lambda error: flight.settle(size, type(error).__name__))


def _line_bytes_max(settings: KafkaSettings) -> int:
    """The longest line that the events topic takes even if it does not compress.

    Sending a longer one to see is no way: one batch that the broker refuses
    puts kafka-python's idempotent producer (3.0) into a final state in which
    every line after it fails too.
    """
    topic_bytes_max = message_bytes_max(settings, settings.events_topic)
    if topic_bytes_max is None:
        raise ConfigError(f"there is no topic {settings.events_topic}: run kizashi init")
    return min(LINE_BYTES_MAX, topic_bytes_max - _RECORD_OVERHEAD_BYTES)


@contextmanager
def _producer(
    settings: KafkaSettings, flight: _Flight, line_bytes_max: int
) -> Iterator[KafkaProducer]:
    """Give a producer; at the end wait until all has landed, also when the lines raised."""
    producer = open_producer(
        settings,
        batch_size=min(_BATCH_BYTES, line_bytes_max),
        linger_ms=_LINGER_MS,
        max_request_size=LINE_BYTES_MAX + _RECORD_OVERHEAD_BYTES,
        delivery_timeout_ms=round(_DELIVERY_TIMEOUT_S * 1000),
    )
    patience_s = _ANSWER_TIMEOUT_S
    try:
        yield producer
    except KeyboardInterrupt:
        patience_s = _CLOSE_TIMEOUT_S
        raise
    finally:
        # Not the client's own flush(): that raises when a batch is split while it waits.
        flight.land(patience_s)
        with suppress(KafkaError):  # it says again what is not answered for; the report has it
            producer.close(_CLOSE_TIMEOUT_S)


def _counted(lines: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    """Pass the lines through and tell `advance` of their bytes, now and then."""
    pending_bytes = 0
    for number, line in enumerate(lines, 1):
        yield line
        pending_bytes += len(line) + 1
        if number % _PROGRESS_LINES == 0:
            advance(pending_bytes)
            pending_bytes = 0
    advance(pending_bytes)


@contextmanager
def _progress(
    name: str, total_bytes: int | None, *, shown: bool
) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(escape(name), total=total_bytes)
        yield partial(progress.advance, task)
