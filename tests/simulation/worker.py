"""One worker: the real agents over a connection to the fake world."""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from detectors.bank import BankConfig
from pipeline.agents import DetectAgent, RespondAgent
from pipeline.build import build_pricer, build_step_config
from pipeline.config import Config, NotifySettings
from pipeline.core.chunk import ChunkEffects
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import Admission, StepConfig
from pipeline.effects import EffectRunner, OwnPreparer
from pipeline.incidents.book import BookConfig
from pipeline.ingest import IngestLimits, Ingestor
from pipeline.respond import Responder
from pipeline.retry import Backoff
from pipeline.sinks.notifier import Notifier
from tests.simulation.broker import ALARMS, EVENTS, SIGNALS, Client
from tests.simulation.clickhouse import Detections, Incidents
from tests.simulation.events import GROUPINGS, WINDOW
from tests.simulation.pagerduty import Pager
from tests.simulation.process import Process, Thread

if TYPE_CHECKING:
    from tests.simulation.world import World

LIMITS = IngestLimits(events=7, bytes=2_000, interval_s=3.0, span_ms=60_000, held_bytes=5_000)
BOOK = BookConfig(hold_ms=3_000, review_ms=(1_000, 4_000))
SNAPSHOT_S = 2.0
TICK_S = 1.0
NOTIFY = NotifySettings(retry_initial_s=0.2, retry_max_s=2.0)


@functools.cache
def _step_config() -> StepConfig:
    config = build_step_config(Config(), signals_partitions=1)
    return StepConfig(groupings=GROUPINGS, limits=config.limits, signals_partitions=1)


@functools.cache
def _pricer() -> Pricer:
    return build_pricer(Config())


_effects: dict[object, ChunkEffects] = {}


class RememberingPreparer(OwnPreparer):
    """What a chunk brings about is a function of what was admitted: worked out once for all."""

    def _derive(self, admission: Admission) -> ChunkEffects:
        key = (
            admission.source,
            tuple(r.offset for r in admission.records),
            tuple((d.record.offset, d.rejected.reason) for d in admission.deadletters),
            tuple(r.written_ms for r in admission.records[-1:]),
        )
        if key not in _effects:
            _effects[key] = super()._derive(admission)
        return _effects[key]


class Worker:
    """A process and what runs in it, from its start until it is killed."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.process = Process(name, world.clock, world.rng)
        self.client = Client(world, self.process)
        self.clickhouse, self.preparing = Thread(), Thread()
        self.backoff = Backoff(world.sleep, random.Random(0), initial_s=0.1, max_s=1.0)
        self.ingestor: Ingestor | None = None
        self.process.call_later(world.rng.random() * 0.5, world.broker.join, self.client)
        for agent in world.schedule.agents:
            getattr(self, f"_start_{agent}")()

    def _spawn(self, work: Awaitable[None]) -> None:
        self.process.create_task(work)

    def _start_ingest(self) -> None:
        world = self.world
        effects = EffectRunner(
            RememberingPreparer(_step_config(), _pricer(), MonitorRegistry(cap=100), lambda: None),
            world.protocol.requests(world, self.process),
            self.client,
            self.preparing,  # type: ignore[arg-type]
            self.clickhouse,  # type: ignore[arg-type]
            WINDOW,
            world.count,
        )
        self.ingestor = world.protocol.ingestor(
            LIMITS,
            world.protocol.offsets(self.client),
            world.read_epoch,
            effects.open_partition,
            self.backoff,
            self.process.time,
        )
        self._spawn(self.ingestor.run())
        self._spawn(self._consume(EVENTS, self._offer))

    async def _offer(self, batch: object) -> None:
        assert self.ingestor is not None
        await self.ingestor.offer(batch)  # type: ignore[arg-type]
        self.world.check_held(self.ingestor.held_bytes, LIMITS.held_bytes)

    def _start_detect(self) -> None:
        runner = self.world.protocol.runner(
            BankConfig(),
            Detections(self.world, self.process),  # type: ignore[arg-type]
            SIGNALS,
            "e",
            SNAPSHOT_S,
            self.process.time,
        )
        agent = DetectAgent(
            runner,
            self.client,
            self.clickhouse,  # type: ignore[arg-type]
            self.client,
            self.backoff,
        )
        self._spawn(self._consume(SIGNALS, agent.take))

    def _start_respond(self) -> None:
        incidents = Incidents(self.world, self.process)
        outbox = self.world.protocol.outbox(incidents, self.clickhouse)

        async def prove() -> None:
            if self.world.protocol.proves:
                await agent.prove()

        def make_notifier() -> Notifier:
            return Notifier(
                [Pager(self.world, self.process)],
                outbox,
                NOTIFY,
                clock=self.world.now_s,
                sleep=self.world.sleep,
                rng=random.Random(0),
                capacity=4,
                prove=prove,
            )

        responder = Responder(
            BOOK,
            incidents,  # type: ignore[arg-type]
            make_notifier,
            self.clickhouse,  # type: ignore[arg-type]
            prove=prove,
        )
        agent = RespondAgent(responder, ALARMS, self.world.now_ms, self.client, self.backoff)
        self._spawn(self._consume(ALARMS, agent.take))
        self._spawn(self._tick(agent))

    async def _tick(self, agent: RespondAgent) -> None:
        while True:
            await self.world.sleep(TICK_S)
            await agent.tick(owns=self.client.owns(ALARMS, 0))

    async def _consume(self, topic: str, take: Callable[[object], Awaitable[None]]) -> None:
        while True:
            await take(await self.client.fetch(topic))
