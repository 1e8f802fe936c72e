"""From the frozen configuration to the mutable state that both shells run on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from pydantic import SecretStr

from detectors.bank import BankConfig, Material
from detectors.bank_extra import ExtraConfig
from detectors.reference import ReferenceConfig
from detectors.river_rates import RiverConfig, RiverKind
from pipeline.channel import Setup
from pipeline.config import (
    Config,
    EvaluationSettings,
    ExtraSettings,
    FeedbackSettings,
    NotifySettings,
    PrivacySettings,
    WatchSettings,
    read_key_file,
)
from pipeline.core.feedback import FeedbackConfig, Rule, fold_label
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.redaction import RecordPolicy
from pipeline.core.step import Reading, StepConfig
from pipeline.core.users import UserKey
from pipeline.core.wire import Wire
from pipeline.embedding import build_embedding
from pipeline.errors import ConfigError
from pipeline.event_door import Door
from pipeline.feedback import BEHIND_S
from pipeline.incidents.vitals import STILL_MS, VitalsConfig
from pipeline.prices import configured_table
from pipeline.receiving import Judge, build_limits, judge_event, judge_feedback
from pipeline.references import ReferenceKeeper
from pipeline.sending import TopicSender
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.feedback import FeedbackStore
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.last_resort import LastResort
from pipeline.sinks.notifier import Notifier, Prove, build_destinations, build_rule
from pipeline.sinks.outbox import ClickHouseOutbox
from pipeline.sinks.references import ReferenceStore
from pipeline.sinks.requests import RequestStore
from schemas.codec import CodecLimits

if TYPE_CHECKING:
    from pipeline.sinks.heartbeat import Heartbeat


def build_step_config(config: Config, signals_partitions: int) -> StepConfig:
    """What the chunk step needs of the configuration."""
    ingest = config.ingest
    keys = read_user_keys(config.privacy)
    return StepConfig(
        groupings=ingest.groupings,
        limits=build_limits(ingest),
        signals_partitions=signals_partitions,
        store_texts=ingest.store_texts,
        judge_texts=ingest.judge_texts,
        user_key=keys[-1] if keys else None,
        redact=frozenset(config.privacy.redact),
        wires={
            each.topic: Wire(each.format, each.names, each.keep, ingest.store_texts)
            for each in config.kafka.inputs
        },
    )


def read_user_keys(privacy: PrivacySettings) -> list[UserKey]:
    """Return the keys of user ids, from the oldest version to the newest.

    Raises:
        ConfigError: the file cannot be read, or a version has two keys.
    """
    keys = {name: each.get_secret_value() for name, each in privacy.user_keys.items()}
    if privacy.user_keys_file is not None:
        read = read_key_file(privacy.user_keys_file)
        if twice := keys.keys() & read.keys():
            raise ConfigError(f"privacy.user_keys: {', '.join(sorted(twice))} has two keys")
        keys |= read
    ordered = sorted(keys, key=lambda version: int(version[1:]))
    return [UserKey(version, keys[version].encode()) for version in ordered]


def build_letter_policy(config: Config) -> RecordPolicy:
    """What of a refused record may be kept."""
    return RecordPolicy(frozenset(config.privacy.redact), config.ingest.store_texts)


def build_doors(config: Config, clock: Callable[[], float]) -> list[Door]:
    """`/v1/events` and `/v1/feedback`, each if somebody has a key. `clock` gives unix seconds."""
    kafka, web = config.kafka, config.web
    doors = (
        ("/v1/events", web.event_keys, kafka.events_topic, judge_event),
        ("/v1/feedback", web.feedback_keys, kafka.feedback_topic, judge_feedback),
    )
    return [_build_door(config, clock, *door) for door in doors if door[1]]


def _build_door(
    config: Config,
    clock: Callable[[], float],
    path: str,
    keys: Sequence[SecretStr],
    topic: str,
    judge: Callable[[int, CodecLimits], Judge],
) -> Door:
    sender, limits = TopicSender(config.kafka, topic), build_limits(config.ingest)
    return Door(
        path,
        [key.get_secret_value().encode() for key in keys],
        config.web.event_body_bytes,
        lambda: judge(round(clock() * 1000), limits),
        sender.send,
        sender.close,
    )


def build_feedback_config(config: Config, signals_partitions: int) -> FeedbackConfig:
    """What is done with feedback, of the configuration."""
    keys = read_user_keys(config.privacy)
    return FeedbackConfig(
        groupings=config.ingest.groupings,
        limits=build_limits(config.ingest),
        signals_partitions=signals_partitions,
        rules={each.name: _build_rule(each) for each in config.feedback.evaluations},
        store_explanations=config.feedback.store_explanations,
        wires={
            each.topic: Wire(each.format, keep_unread=config.ingest.store_texts)
            for each in config.kafka.feedback_inputs
        },
        user_key=keys[-1] if keys else None,
        redact=frozenset(config.privacy.redact),
    )


def _build_rule(settings: EvaluationSettings) -> Rule:
    return Rule(
        frozenset(map(fold_label, settings.negative_labels)),
        frozenset(map(fold_label, settings.positive_labels)),
        settings.negative_below,
        settings.negative_above,
    )


def build_feedback_registry(config: Config, store: FeedbackStore) -> MonitorRegistry:
    """The monitors of feedback that are watched already."""
    cap = config.feedback.monitors_per_grouping
    return MonitorRegistry(cap, store.read_monitors(config.ingest.groupings, cap))


def build_bank_config(config: Config, signals_partitions: int) -> BankConfig:
    """What the detectors of one signals partition need of the configuration.

    Raises:
        ConfigError: an extra detector has parameters or signals that it cannot have.
    """
    detection = config.detection
    return BankConfig(
        false_alarms_per_week=detection.false_pages_per_week,
        false_notices_per_week=detection.false_notices_per_week,
        share=1 / signals_partitions,
        monitors=max(1, detection.monitors // signals_partitions),
        reference=ReferenceConfig(
            learn=detection.learn_events,
            full=detection.reference_events,
            miss=detection.reference_miss,
            swing=detection.reference_swing,
        ),
        materiality={
            family: Material(m.ratio, m.difference, round(1_000 * m.lasting_s))
            for family, m in detection.materiality.items()
        },
        recovery_ratio=detection.recovery_ratio,
        no_traffic_ms=round(detection.no_traffic_s * 1000),
        extra=tuple(_build_extra(each) for each in detection.extra),
    )


def _build_extra(settings: ExtraSettings) -> ExtraConfig:
    try:
        river = RiverConfig(
            RiverKind(settings.detector),
            settings.parameters,
            events_per_value=settings.events_per_value,
        )
        return ExtraConfig(
            river,
            settings.signals,
            frozenset(settings.groupings),
            settings.severity,
            settings.streams,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"detection.extra ({settings.detector}): {error}") from None


def build_pricer(config: Config) -> Pricer:
    """The built-in prices with the user's own laid over them."""
    return Pricer(configured_table(config.prices.file))


def build_registry(config: Config, requests: RequestStore) -> MonitorRegistry:
    """The monitors that are watched already: those that have been counted."""
    cap = config.ingest.monitors_per_grouping
    return MonitorRegistry(cap, requests.read_monitors(config.ingest.groupings, cap))


def build_keeper(config: Config, store: Store, embedding: str | None) -> ReferenceKeeper | None:
    """The references for the vectors of this embedding; None without one."""
    if embedding is None:
        return None
    return ReferenceKeeper(config.references, ReferenceStore(store), embedding)


def build_setup(config: Config, signals_partitions: int) -> Setup:
    """What a process that prepares chunks needs of the configuration."""
    return Setup(
        step=build_step_config(config, signals_partitions),
        prices=configured_table(config.prices.file).entries,
        encoder=config.encoder.model_dump(mode="json"),
        samples_per_model=config.references.samples_per_chunk,
    )


def build_notifier(
    settings: NotifySettings,
    incidents: IncidentStore,
    executor: Executor,
    prove: Prove | None = None,
) -> Notifier:
    """Tells the configured destinations, from an outbox in ClickHouse; nothing runs yet.

    Raises:
        ConfigError: a destination cannot work as configured.
    """
    return Notifier(
        build_destinations(settings),
        ClickHouseOutbox(incidents, executor),
        settings,
        clock=time.time,
        sleep=asyncio.sleep,
        rng=random.Random(),  # noqa: S311 — jitter
        prove=prove,
    )


def build_vitals_config(watch: WatchSettings, feedback: FeedbackSettings) -> VitalsConfig:
    """When Kizashi has an incident of its own."""
    waits_ms = round(max(feedback.join_wait_s, BEHIND_S) * 1000)
    return VitalsConfig(
        behind_ms=round(watch.behind_s * 1000),
        behind_for_ms=round(watch.behind_for_s * 1000),
        feedback_still_ms=STILL_MS + waits_ms,
        silent_ms=round(watch.silent_s * 1000),
        silent_events=watch.silent_events,
    )


def build_last_resort(settings: NotifySettings) -> LastResort:
    """Tells the configured destinations without an outbox."""
    rules = tuple(map(build_rule, settings.routes))
    return LastResort(lambda: build_destinations(settings), rules)


def build_heartbeat(settings: NotifySettings) -> Heartbeat | None:
    """The dead man's switch; None without one.

    Raises:
        ConfigError: it cannot work as configured.
    """
    if not settings.heartbeat.url:
        return None
    # It brings an HTTP client along, which is slow to load.
    from pipeline.sinks.heartbeat import Heartbeat

    return Heartbeat(settings.heartbeat, settings.timeout_s)


class Reader:
    """The embedding, and the references as they stand at the moment."""

    def __init__(self, config: Config, store: Store) -> None:
        self._embedding = build_embedding(config.encoder)
        self._samples = config.references.samples_per_chunk
        name = self._embedding.name if self._embedding else None
        self.keeper = build_keeper(config, store, name)

    def reading(self) -> Reading | None:
        """Return how answers are to be read now."""
        if self._embedding is None or self.keeper is None:
            return None
        return Reading(self._embedding, self.keeper.references, self._samples)
