"""The Faust shell: four agents, thin. What they do is in ingest, feedback, detect and respond.

Delivery guarantee: Faust neither tracks nor commits our topics; each agent
commits by itself, when the effects of what it commits are stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import faust

from pipeline.build import build_letter_policy
from pipeline.config import Config, KafkaSettings
from pipeline.core.chunk import DeadLetter
from pipeline.core.redaction import RecordPolicy, redact_record
from pipeline.errors import SinkUnavailable
from pipeline.process import settle_process
from pipeline.topics import bootstrap_addresses, check_transport, sasl_settings, tls_context
from pipeline.worker import WorkerState
from schemas.alarm import Alarm, encode_alarm
from schemas.command import Command, encode_command
from schemas.signal import SignalPacket, Source, encode_packet

logger = logging.getLogger(__name__)

FETCH_BYTES = 8 * 1024 * 1024
MESSAGE_BYTES = 4 * 1024 * 1024
#: Partitions that are added have readers so soon; by itself the client looks every five minutes.
METADATA_MS = 30_000
#: Chunks that wait between Faust and an agent; their bytes are capped by the ingestor.
BUFFERED_CHUNKS = 4
TICK_S = 5.0
WATCH_S = 30.0
REFERENCES_S = 10.0
OBJECTIVES_S = 60.0
RECONCILE_S = 3_600.0
RELEASE_S = 10.0


def build_faust(settings: KafkaSettings) -> faust.App:
    """Return a Faust app that speaks our transport and has everything off that we do not use."""
    check_transport(settings)
    servers = [f"kizashi://{host}:{port}" for host, port in bootstrap_addresses(settings)]
    return faust.App(
        settings.group_id,
        broker=servers,
        broker_credentials=_credentials(settings),
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 4,
        broker_request_timeout=max(30.0, settings.session_timeout_s * 2),
        broker_max_poll_records=None,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES,
        consumer_metadata_max_age_ms=METADATA_MS,
        producer_acks=-1,
        producer_compression_type="lz4",
        producer_max_request_size=MESSAGE_BYTES,
        stream_buffer_maxsize=BUFFERED_CHUNKS,
        stream_wait_empty=False,
        store="memory://",
        # It has no tables to keep there, and makes the folders all the same.
        datadir=Path(tempfile.gettempdir()) / f"kizashi-{os.getuid()}",
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
    )


def _credentials(settings: KafkaSettings) -> Any:
    context = tls_context(settings)
    sasl = sasl_settings(settings)
    if not sasl:
        return faust.SSLCredentials(context=context) if context else None
    return faust.SASLCredentials(
        username=sasl["sasl_plain_username"],
        password=sasl["sasl_plain_password"],
        mechanism=sasl["sasl_mechanism"],
        ssl_context=context,
    )


@dataclass
class TopicPublisher:
    """Sends on Faust's producer and waits until the broker has it (acks from all replicas)."""

    app: faust.App
    kafka: KafkaSettings
    policy: RecordPolicy

    async def publish_signals(self, partition: int, packets: Sequence[SignalPacket]) -> None:
        topic = self.kafka.signals_topic
        await self._send_all(topic, [(encode_packet(p), partition, {}) for p in packets])

    async def publish_deadletters(self, source: Source, deadletters: Sequence[DeadLetter]) -> None:
        messages = [
            (redact_record(d.rejected.raw, self.policy), None, _headers(source, d))
            for d in deadletters
        ]
        await self._send_all(self.kafka.deadletter_topic, messages)

    async def publish_alarms(self, alarms: Sequence[Alarm]) -> None:
        await self._send_all(self.kafka.alarms_topic, [(encode_alarm(a), 0, {}) for a in alarms])

    async def publish_commands(self, commands: Sequence[Command]) -> None:
        topic = self.kafka.alarms_topic
        await self._send_all(topic, [(encode_command(c), 0, {}) for c in commands])

    async def _send_all(
        self, topic: str, messages: Sequence[tuple[bytes, int | None, dict[str, bytes]]]
    ) -> None:
        try:
            waiting = [
                await self.app.producer.send(topic, None, value, partition, None, headers)
                for value, partition, headers in messages
            ]
            await asyncio.gather(*waiting)
        except Exception as error:
            # Faust wraps some of aiokafka's errors and passes others through; whatever
            # kept a message from the broker, the message is still ours to send.
            raise SinkUnavailable(f"cannot publish on {topic}: {error!r}") from error


def _headers(source: Source, letter: DeadLetter) -> dict[str, bytes]:
    return {
        "reason": letter.rejected.reason.value.encode(),
        "detail": letter.rejected.detail.encode(),
        "topic": source.topic.encode(),
        "partition": str(source.partition).encode(),
        "offset": str(letter.record.offset).encode(),
        "bytes": str(len(letter.rejected.raw)).encode(),
        "sha256": hashlib.sha256(letter.rejected.raw).hexdigest().encode(),
        "item": str(letter.item).encode(),
        "written_ms": str(letter.record.written_ms).encode(),
    }


async def run_or_crash(app: faust.App, work: Awaitable[None]) -> None:
    """Await the work; what was not planned for ends the worker.

    Faust would start a failed agent again with the *next* message. The successor
    of a worker that ended does the same chunk again.
    """
    try:
        await work
    except Exception as error:
        logger.critical("the worker cannot go on", exc_info=error)
        await app.crash(error)
        raise


async def consume(app: faust.App, stream: Any, handle: Callable[[Any], Awaitable[None]]) -> None:
    """Hand every chunk of the stream on, without acknowledging any."""
    async for event in stream.noack().events():
        await run_or_crash(app, handle(event.message))


def build_app(app: faust.App, state: WorkerState) -> faust.App:
    """Hang the four agents on the app."""
    kafka = state.kafka

    def declare(*names: str) -> Any:
        return app.topic(*names, value_type=bytes, value_serializer="raw", acks=False)

    @app.agent(declare(*kafka.input_topics), name="ingest")
    async def ingest(stream: Any) -> None:
        await consume(app, stream, state.ingest)

    @app.agent(declare(*kafka.feedback_topics), name="feedback")
    async def feedback(stream: Any) -> None:
        await consume(app, stream, state.take_feedback)

    @app.agent(declare(kafka.signals_topic), name="detect")
    async def detect(stream: Any) -> None:
        await consume(app, stream, state.detect)

    @app.agent(declare(kafka.alarms_topic), name="respond")
    async def respond(stream: Any) -> None:
        await consume(app, stream, state.respond)

    async def work() -> None:
        await run_or_crash(app, state.work())

    async def stop_notifying(*_: Any, **__: Any) -> None:
        await state.front.stop()
        await state.lookout.close()
        await state.responder.hand_over()

    app.task(state.front.start)
    app.task(work)
    app.timer(TICK_S)(state.tick)
    app.timer(WATCH_S)(state.watch)
    app.timer(REFERENCES_S)(state.keep_references)
    app.timer(OBJECTIVES_S)(state.measure_objectives)
    app.timer(RECONCILE_S)(state.reconcile)
    app.timer(state.config.watch.every_s)(state.look_out)
    app.timer(RELEASE_S)(state.release_memory)
    app.on_before_shutdown.connect(stop_notifying)
    return app


def run_worker(config: Config, patience_s: float) -> NoReturn:
    """Run a worker until a signal stops it; the exit status is 0 only then.

    Raises:
        ConfigError: something is missing that `kizashi init` makes.
        SinkUnavailable: Kafka or ClickHouse has not answered for `patience_s`.
    """
    app = build_faust(config.kafka)
    publisher = TopicPublisher(app, config.kafka, build_letter_policy(config))
    state = WorkerState(config, app, publisher, patience_s=patience_s)
    # Faust would set up logging of its own, in which a message may have several lines.
    logging.getLogger().setLevel(logging.INFO)
    worker = faust.Worker(
        build_app(app, state),
        loglevel="INFO",
        override_logging=False,
        redirect_stdouts=False,
        stdout=sys.stderr,
    )
    settle_process()
    try:
        worker.execute_from_commandline()
    finally:
        state.close()
