"""The configuration: one TOML file, then environment variables over it. Read once, then frozen.

``KIZASHI_<SECTION>__<KEY>`` overrides ``[section] key``. An unknown key or an
impossible value stops the start with a ConfigError that names it. Secrets are
`SecretStr` and never appear in `shown()`.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import tomllib
import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AnyHttpUrl,
    AwareDatetime,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.errors import ConfigError
from pipeline.gateway_settings import GatewaySettings
from pipeline.section import Section
from schemas.event import EVENT_KEYS
from schemas.monitor import DEFAULT_GROUPINGS, Dimension, Grouping, grouping_name, parse_grouping
from schemas.sensitive import Kind
from schemas.signal import Family, Signal
from schemas.wire import WireFormat

ENV_PREFIX = "KIZASHI_"
#: Variables with our prefix that are not settings.
_NOT_SETTINGS = {"KIZASHI_CONFIG"}


class TopicSettings(Section):
    """How `kizashi init` creates the topics."""

    partitions: Annotated[int, Field(ge=1, le=10_000)] = 8
    signals_partitions: Annotated[int, Field(ge=1, le=1_000)] = 4
    replication: Annotated[int, Field(ge=1, le=15)] = 1
    retention_hours: Annotated[float, Field(gt=0)] = 72.0
    compression: Literal["producer", "zstd", "lz4", "snappy", "gzip", "uncompressed"] = "producer"


class InputSettings(Section):
    """A topic that is read beside the events topic, and what its records hold."""

    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    format: WireFormat = WireFormat.OTLP_PROTO
    #: What further attributes of spans mean: attribute → key of an event.
    names: dict[str, str] = Field(default_factory=dict)
    #: Attributes of spans that are kept beside what an event has; all others are left behind.
    keep: Annotated[tuple[str, ...], Field(max_length=32)] = ()

    @field_validator("names")
    @classmethod
    def _check_names(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(set(value.values()) - EVENT_KEYS):
            raise ValueError(f"no keys of an event: {', '.join(unknown)}")
        return value


class FeedbackInputSettings(Section):
    """A topic of OpenTelemetry's log records that is read beside the feedback topic."""

    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    format: Literal[WireFormat.OTLP_PROTO, WireFormat.OTLP_JSON] = WireFormat.OTLP_PROTO


class KafkaSettings(Section):
    bootstrap_servers: str = "127.0.0.1:9092"
    group_id: str = "kizashi"
    events_topic: str = "llm.gateway.events"
    feedback_topic: str = "llm.gateway.feedback"
    signals_topic: str = "llm.signals"
    alarms_topic: str = "llm.alarms"
    deadletter_topic: str = "llm.deadletter"
    #: Each a ``[[kafka.inputs]]``.
    inputs: Annotated[tuple[InputSettings, ...], Field(max_length=50)] = ()
    #: Each a ``[[kafka.feedback_inputs]]``.
    feedback_inputs: Annotated[tuple[FeedbackInputSettings, ...], Field(max_length=50)] = ()
    session_timeout_s: Annotated[float, Field(ge=1, le=300)] = 10.0
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str | None = None
    password: SecretStr | None = None
    #: Without this, plain text is only spoken to this machine.
    allow_plaintext: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    topics: TopicSettings = TopicSettings()

    @model_validator(mode="after")
    def _check_inputs(self) -> KafkaSettings:
        ours = [self.signals_topic, self.alarms_topic, self.deadletter_topic]
        read = [*self.input_topics, *self.feedback_topics]
        if len({*read, *ours}) < len(read) + len(ours):
            raise ValueError("inputs: a topic stands there twice, or is one of ours")
        return self

    @property
    def input_topics(self) -> tuple[str, ...]:
        """The topics from which events come."""
        return (self.events_topic, *(each.topic for each in self.inputs))

    @property
    def feedback_topics(self) -> tuple[str, ...]:
        """The topics from which feedback comes."""
        return (self.feedback_topic, *(each.topic for each in self.feedback_inputs))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class EndpointSettings(Section):
    """ClickHouse's HTTP interface over the embedded engine, read-only: for Grafana and clients."""

    enabled: bool = False
    host: str = "127.0.0.1"
    #: ClickHouse's own: with the embedded engine no server has it.
    port: Annotated[int, Field(ge=0, le=65_535)] = 8123
    username: str = "default"
    password: SecretStr | None = None

    @model_validator(mode="after")
    def _check_reach(self) -> EndpointSettings:
        if not is_loopback(self.host) and self.password is None:
            raise ValueError("whoever reaches it may read everything: set a password")
        return self


class ClickHouseSettings(Section):
    """`embedded` keeps everything in a directory of this machine; `http` talks to a server."""

    mode: Literal["embedded", "http"] = "embedded"
    path: Path = Path("kizashi-data")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 8123
    secure: bool = False
    #: Without this, plain text is only spoken to this machine.
    allow_plaintext: bool = False
    ca_file: Path | None = None
    username: str = "default"
    password: SecretStr = SecretStr("")
    database: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")] = "kizashi"
    timeout_s: Annotated[float, Field(gt=0, le=3_600)] = 30.0
    requests_ttl_days: Annotated[int, Field(ge=1, le=10_000)] = 90
    rollups_ttl_days: Annotated[int, Field(ge=1, le=10_000)] = 400
    texts_ttl_days: Annotated[int, Field(ge=1, le=10_000)] = 7
    samples_ttl_days: Annotated[int, Field(ge=1, le=10_000)] = 30
    endpoint: EndpointSettings = EndpointSettings()

    @model_validator(mode="after")
    def _check_transport(self) -> ClickHouseSettings:
        encrypted = self.secure or self.allow_plaintext or self.mode == "embedded"
        if not (encrypted or is_loopback(self.host)):
            raise ValueError(
                "the password and what is stored would travel in the clear: set secure,"
                " or allow_plaintext"
            )
        return self

    @model_validator(mode="after")
    def _check_endpoint(self) -> ClickHouseSettings:
        if self.endpoint.enabled and self.mode != "embedded":
            raise ValueError("the endpoint is for the embedded engine; a server has its own")
        return self


class IngestSettings(Section):
    """The unit of work: a chunk is closed by whichever of its limits is reached first."""

    #: A chunk is one part of ClickHouse's tables: what is twice as large is merged half as often.
    chunk_events: Annotated[int, Field(ge=1, le=100_000)] = 20_000
    chunk_bytes: Annotated[int, Field(ge=1_024)] = 24 * 1024 * 1024
    chunk_interval_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    chunk_span_s: Annotated[float, Field(gt=0)] = 60.0
    #: Bytes of records held in memory before the worker stops reading.
    held_bytes: Annotated[int, Field(ge=1_048_576)] = 64 * 1024 * 1024
    event_bytes: Annotated[int, Field(ge=256)] = 1_000_000
    attributes: Annotated[int, Field(ge=0, le=1_000)] = 64
    #: Events older or newer than this, against the time the record was written, are rejected.
    event_age_days: Annotated[float, Field(gt=0)] = 1_826.0
    event_ahead_s: Annotated[float, Field(ge=0)] = 86_400.0
    #: How many stored event ids of a partition are remembered to drop repeats.
    dedup_window: Annotated[int, Field(ge=0, le=10_000_000)] = 100_000
    groupings: tuple[Grouping, ...] = DEFAULT_GROUPINGS
    monitors_per_grouping: Annotated[int, Field(ge=1, le=1_000_000)] = 5_000
    store_texts: bool = False
    #: Whether answers are read for refusals. Without it only `gateway.refusal` and the finish
    #: reasons tell: for gateways that send the one, it is the dearest step spared.
    judge_texts: bool = True
    #: Processes that prepare chunks beside the worker, 0: one of its threads does. `auto` is one
    #: where texts are read and there are two cores; else there is too little to prepare.
    preparers: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = "auto"

    @field_validator("groupings", mode="before")
    @classmethod
    def _parse_groupings(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        groupings = tuple(parse_grouping(v) if isinstance(v, str) else v for v in value)
        if len({frozenset(g) for g in groupings}) != len(groupings):
            raise ValueError("a grouping stands there twice")
        return groupings


class EncoderSettings(Section):
    """What turns prompts and answers into vectors, so that fingerprints can be taken."""

    #: `static` is built in; `transformer` is any sentence-transformers model (the extra
    #: `transformers`); `carried` takes the vectors that events bring along; `none` reads no texts.
    kind: Literal["static", "transformer", "carried", "none"] = "static"
    #: Name or path of the transformer, or the `embedding.model` of the carried vectors.
    model: str = ""
    device: str = "cpu"
    batch_size: Annotated[int, Field(ge=1, le=4_096)] = 64
    #: Of the events, so many are read; the same ones on every worker.
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    #: Of carried vectors.
    dimensions: Annotated[int, Field(ge=1, le=4_096)] = 1_536

    @model_validator(mode="after")
    def _check_model(self) -> EncoderSettings:
        if self.kind in {"transformer", "carried"} and not self.model:
            raise ValueError(f"a {self.kind} encoder needs a model")
        return self


class ReferenceSettings(Section):
    """What answers of a model look like while nothing changes: when that is fitted, and to what."""

    #: Whole answers of a request model before its first reference.
    learn_answers: Annotated[int, Field(ge=200)] = 500
    #: A reference rests on at most so many, the latest.
    full_answers: Annotated[int, Field(ge=200)] = 10_000
    #: It is fitted anew after so long.
    refit_hours: Annotated[float, Field(gt=0)] = 168.0
    #: Of each model, so many answers of a chunk are kept for fitting.
    samples_per_chunk: Annotated[int, Field(ge=1, le=100_000)] = 64


class Materiality(Section):
    """The smallest change worth a page."""

    #: The rate has to change by this factor, up or down …
    ratio: Annotated[float, Field(gt=1)] = 1.5
    #: … and by this much in absolute terms.
    difference: Annotated[float, Field(ge=0, lt=1)] = 0.01
    #: So long has it to stand on average before it is told.
    lasting_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0


class ExtraSettings(Section):
    """A detector of river's on some rates: its alarms inform, and promise nothing.

    Keys that are none of these are the detector's own parameters, by river's names.
    """

    detector: Literal["adwin", "page_hinkley", "kswin"]
    signals: Annotated[tuple[Signal, ...], Field(min_length=1)]
    groupings: Annotated[tuple[Grouping, ...], Field(min_length=1)]
    severity: Literal["critical", "error", "warning", "info"] = "info"
    #: Streams (a signal of a monitor) beyond these are not watched by it.
    streams: Annotated[int, Field(ge=1, le=10_000)] = 200
    #: Events whose rate is one value for it.
    events_per_value: Annotated[int, Field(ge=1, le=65_535)] = 10
    parameters: dict[str, float | int | str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_parameters(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {key: each for key, each in value.items() if key in cls.model_fields}
        rest = {key: each for key, each in value.items() if key not in known}
        return {**known, "parameters": {**known.get("parameters", {}), **rest}}

    @field_validator("groupings", mode="before")
    @classmethod
    def _parse_groupings(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple(parse_grouping(v) if isinstance(v, str) else v for v in value)


#: What is too small to matter unless the user says otherwise, in words: “refusals × 1.5, and at
#: least one more in a hundred answers”.
MATERIALITY: dict[Family, Materiality] = {
    Family.REFUSAL: Materiality(),
    Family.ERROR: Materiality(),
    Family.TRUNCATION: Materiality(difference=0.02),
    # One in ten lies beyond the quantile by its making; twice as many have to.
    Family.LATENCY: Materiality(ratio=2.0, difference=0.1),
    Family.FINGERPRINT: Materiality(ratio=2.0, difference=0.1),
    # In an ordinary hour of a real service the share of short ones tripled; beyond a fifth of
    # all answers more, something else has happened than other questions.
    Family.LENGTH: Materiality(ratio=2.5, difference=0.2),
    Family.COST: Materiality(ratio=2.0, difference=0.1),
    # Words that half decline are common, and told less surely than a refusal.
    Family.PARTIAL_REFUSAL: Materiality(ratio=2.0, difference=0.03),
    # What hardly ever happens matters as soon as one answer in a hundred has it.
    Family.EMPTY: Materiality(ratio=2.0),
    Family.GUARDRAIL: Materiality(ratio=2.0),
    Family.REPETITION: Materiality(ratio=2.0),
    Family.RELEVANCE: Materiality(ratio=2.0, difference=0.1),
    # Questions come in bursts; what is over in minutes is no change of traffic.
    Family.TOPIC: Materiality(ratio=2.0, difference=0.1, lasting_s=900),
    # A canary is asked seldom, and a few of its answers always go astray.
    Family.CANARY: Materiality(ratio=2.0, difference=0.05),
    # Few answers are rated, and some people are never content.
    Family.FEEDBACK: Materiality(ratio=2.0, difference=0.02),
    # Some prompts ask for a translation; the reference knows how many.
    Family.LANGUAGE: Materiality(ratio=2.0, difference=0.02),
    # A tenth of the requests more, or fewer, that the cache answers.
    Family.CACHE: Materiality(difference=0.1),
}


class DetectionSettings(Section):
    #: How many pages a week may be false, over all monitors and families together.
    false_pages_per_week: Annotated[float, Field(gt=0)] = 1.0
    #: The same for what only informs (topics, cache): it pages nobody, and shares nobody's budget.
    false_notices_per_week: Annotated[float, Field(gt=0)] = 1.0
    #: Events a monitor needs before it is watched.
    learn_events: Annotated[int, Field(ge=20)] = 300
    #: The reference stops growing here.
    reference_events: Annotated[int, Field(ge=100)] = 20_000
    #: Probability that a reference's bound is on the wrong side of the true rate.
    reference_miss: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    #: On a monitor's first day its rates may differ so much (as odds) with the time of day.
    reference_swing: Annotated[float, Field(ge=1, le=10)] = 1.5
    monitors: Annotated[int, Field(ge=1)] = 50_000
    #: An alarmed monitor without traffic for this long is cleared.
    no_traffic_s: Annotated[float, Field(gt=0)] = 900.0
    #: Evidence for recovery, as a likelihood ratio, that clears an alarm.
    recovery_ratio: Annotated[float, Field(gt=1)] = 1_000.0
    snapshot_interval_s: Annotated[float, Field(gt=0)] = 30.0
    materiality: dict[Family, Materiality] = Field(default_factory=lambda: dict(MATERIALITY))

    #: Each a ``[[detection.extra]]``.
    extra: Annotated[tuple[ExtraSettings, ...], Field(max_length=20)] = ()

    @field_validator("materiality")
    @classmethod
    def _fill_materiality(cls, value: dict[Family, Materiality]) -> dict[Family, Materiality]:
        if Family.PIPELINE in value:
            raise ValueError("pipeline: no detector watches Kizashi itself; see [watch]")
        return {**MATERIALITY, **value}

    @model_validator(mode="after")
    def _check_sizes(self) -> DetectionSettings:
        if self.reference_events < self.learn_events:
            raise ValueError("reference_events is smaller than learn_events")
        return self


class PagerDutySettings(Section):
    routing_key: SecretStr | None = None
    url: AnyHttpUrl = AnyHttpUrl("https://events.pagerduty.com/v2/enqueue")
    #: Of a V3 webhook subscription. With it, what people do in PagerDuty is taken in at
    #: `/hooks/pagerduty` of the page's server.
    webhook_secret: Annotated[SecretStr, Field(min_length=8)] | None = None
    #: Incidents below this severity are stored but do not page.
    min_severity: Literal["critical", "error", "warning", "info"] = "warning"


class WebhookSettings(Section):
    url: AnyHttpUrl | None = None
    #: Signs the body: HMAC-SHA256 in the header ``X-Kizashi-Signature``.
    secret: SecretStr | None = None
    min_severity: Literal["critical", "error", "warning", "info"] = "info"
    #: Without this, an address inside this machine or its network is refused, also by name.
    allow_private: bool = False


class SlackSettings(Section):
    """An incoming webhook of Slack's, or of a chat that takes the same messages."""

    #: Whoever has it may post: it is the secret.
    url: SecretStr | None = None
    min_severity: Literal["critical", "error", "warning", "info"] = "warning"
    #: Without this, an address inside this machine or its network is refused, also by name.
    allow_private: bool = False


class AlertmanagerSettings(Section):
    """An Alertmanager, by version 2 of its API."""

    #: Up to and without ``/api/v2``.
    url: AnyHttpUrl | None = None
    token: SecretStr | None = None
    min_severity: Literal["critical", "error", "warning", "info"] = "info"
    #: What is open is said again so often, and taken for over after four times as long.
    repeat_s: Annotated[float, Field(ge=5, le=3_600)] = 60.0


class GrafanaSettings(Section):
    """Annotations in Grafana: a region for each incident."""

    url: AnyHttpUrl | None = None
    #: Of a service account that may write annotations.
    token: SecretStr | None = None
    min_severity: Literal["critical", "error", "warning", "info"] = "info"
    #: Without this, the token only travels in the clear to this machine.
    allow_plaintext: bool = False


class HeartbeatSettings(Section):
    """A dead man's switch: asked for as long as Kizashi sees what it should, and then no more."""

    #: Whoever has it may keep the switch quiet: it is a secret.
    url: SecretStr | None = None
    every_s: Annotated[float, Field(ge=30, le=86_400)] = 60.0
    #: Without this, an address inside this machine or its network is refused, also by name.
    allow_private: bool = False


DestinationName = Literal["pagerduty", "webhook", "slack", "alertmanager", "grafana"]
#: From the least on.
SEVERITIES = ("info", "warning", "error", "critical")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class MatchSettings(Section):
    """What an incident has to be; what is left out does not matter."""

    family: tuple[Family, ...] = ()
    #: ``>=warning``, ``<=warning``, or just ``warning``.
    severity: Annotated[str, Field(pattern=r"^(>=|<=)?(info|warning|error|critical)$")] = ">=info"
    #: Of the cause, or of an alarm.
    tenant: tuple[str, ...] = ()

    @property
    def severities(self) -> tuple[str, ...]:
        """Those that are meant."""
        at = SEVERITIES.index(self.severity.lstrip("<>="))
        if self.severity.startswith(">="):
            return SEVERITIES[at:]
        return SEVERITIES[: at + 1] if self.severity.startswith("<=") else SEVERITIES[at : at + 1]


class RouteSettings(Section):
    """Who hears of which incidents: the first route that fits decides."""

    match: MatchSettings = MatchSettings()
    to: tuple[DestinationName, ...]


class WindowSettings(Section):
    """A time in which nobody is told: once (`start`, `end`), or every week (`at`, `hours`)."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    why: str = ""
    #: Dimension → value; without any, all traffic.
    labels: dict[Dimension, str] = Field(default_factory=dict)
    families: tuple[Family, ...] = ()
    start: AwareDatetime | None = None
    end: AwareDatetime | None = None
    #: Without any, every day.
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ()
    at: dt.time | None = None
    hours: Annotated[float, Field(gt=0, le=168)] | None = None
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _check_times(self) -> WindowSettings:
        once = self.start is not None and self.end is not None
        weekly = self.at is not None and self.hours is not None
        if once == weekly or (once and (self.at or self.hours)):
            raise ValueError("a window needs either start and end, or at and hours")
        if weekly and (self.start or self.end):
            raise ValueError("a window needs either start and end, or at and hours")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError("it ends before it starts")
        try:
            zoneinfo.ZoneInfo(self.timezone)
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
            raise ValueError("timezone: not one that this machine knows") from None
        return self


class NotifySettings(Section):
    pagerduty: PagerDutySettings = PagerDutySettings()
    webhook: WebhookSettings = WebhookSettings()
    slack: SlackSettings = SlackSettings()
    alertmanager: AlertmanagerSettings = AlertmanagerSettings()
    grafana: GrafanaSettings = GrafanaSettings()
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    #: Each a ``[[notify.routes]]``; an incident that none fits is told to all that are configured.
    routes: Annotated[tuple[RouteSettings, ...], Field(max_length=200)] = ()
    #: Each a ``[[notify.windows]]``.
    windows: Annotated[tuple[WindowSettings, ...], Field(max_length=200)] = ()
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    retry_initial_s: Annotated[float, Field(gt=0)] = 1.0
    retry_max_s: Annotated[float, Field(gt=0)] = 60.0
    #: Where a page's link leads; ``{incident_id}`` is filled in.
    link: str = ""


class ObjectiveSettings(Section):
    """A share of requests that has to be good: answered, in time, and not refused."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    #: One of `ingest.groupings`; without one, all traffic.
    grouping: Grouping | None = None
    #: One for each dimension.
    values: tuple[str, ...] = ()
    target: Annotated[float, Field(gt=0, lt=1)]
    window_days: Annotated[int, Field(ge=1, le=366)] = 28
    #: A request that takes longer is not good; to 2 %, the width of a histogram's bucket.
    latency_s: Annotated[float, Field(gt=0)] | None = None
    #: What else is not good.
    bad: tuple[Literal["error", "refusal", "truncation"], ...] = ("error", "refusal")
    #: With fewer bad requests in its long window, no burn rate asks for anything.
    least_bad: Annotated[int, Field(ge=1)] = 10

    @field_validator("grouping", mode="before")
    @classmethod
    def _parse_grouping(cls, value: Any) -> Any:
        return parse_grouping(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_slice(self) -> ObjectiveSettings:
        if len(self.grouping or ()) != len(self.values):
            raise ValueError("values: one for each dimension of the grouping")
        if not self.bad and self.latency_s is None:
            raise ValueError("nothing would be bad")
        if len(set(self.bad)) != len(self.bad):
            raise ValueError("bad: something stands there twice")
        return self


#: A token that can be guessed is none.
MIN_TOKEN_CHARACTERS = 16


class WebSettings(Section):
    """The built-in page. What it asks of ClickHouse is read-only and capped."""

    enabled: bool = True
    host: str = "127.0.0.1"
    #: 0 lets the system choose.
    port: Annotated[int, Field(ge=0, le=65_535)] = 8470
    #: Asked for before anything is shown. Without one the page is for this machine alone.
    token: SecretStr | None = None
    #: The user of a ClickHouse server that the page reads as; without one, the worker's own.
    username: str | None = None
    password: SecretStr = SecretStr("")
    query_time_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    query_memory_bytes: Annotated[int, Field(ge=1_048_576)] = 1024 * 1024 * 1024
    result_bytes: Annotated[int, Field(ge=65_536)] = 16 * 1024 * 1024
    #: Rows that the SQL box shows.
    rows: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    #: Whoever has one of them may send events to `/v1/events`; without any, nobody may.
    event_keys: Annotated[tuple[SecretStr, ...], Field(max_length=100)] = ()
    #: The same for `/v1/feedback`.
    feedback_keys: Annotated[tuple[SecretStr, ...], Field(max_length=100)] = ()
    #: Of one request to either, packed and unpacked.
    event_body_bytes: Annotated[int, Field(ge=1_024, le=64 * 1024 * 1024)] = 8 * 1024 * 1024

    @model_validator(mode="after")
    def _check_reach(self) -> WebSettings:
        if self.token is not None and len(self.token.get_secret_value()) < MIN_TOKEN_CHARACTERS:
            raise ValueError(f"the token needs at least {MIN_TOKEN_CHARACTERS} characters")
        for name in ("event_keys", "feedback_keys"):
            if any(len(k.get_secret_value()) < MIN_TOKEN_CHARACTERS for k in getattr(self, name)):
                raise ValueError(f"{name}: each needs at least {MIN_TOKEN_CHARACTERS} characters")
        if not is_loopback(self.host) and self.token is None:
            raise ValueError("whoever reaches the page may read everything: set a token")
        return self


#: Shorter, it can be guessed, and then the hash of every id there may be can be made.
MIN_KEY_CHARACTERS = 16
KeyVersion = Annotated[str, Field(pattern=r"^k[1-9][0-9]{0,5}$")]
UserKeyText = Annotated[SecretStr, Field(min_length=MIN_KEY_CHARACTERS)]


class PrivacySettings(Section):
    """What is stored of people."""

    #: Keys of the HMAC by which user ids are stored, by version: ``k1``, ``k2``, … The newest
    #: hashes; the others are kept so that `kizashi erase` finds what they have hashed. Without
    #: any, user ids are not stored at all.
    user_keys: dict[KeyVersion, UserKeyText] = Field(default_factory=dict)
    #: More of them, as lines of TOML: ``k2 = "…"``.
    user_keys_file: Path | None = None
    #: What is replaced by its kind in texts, attributes, errors and dead letters.
    redact: tuple[Kind, ...] = tuple(Kind)


class CanarySettings(Section):
    """Whom `kizashi canary` asks, and how."""

    #: Of an OpenAI-compatible API, up to and without ``/chat/completions``.
    base_url: AnyHttpUrl | None = None
    api_key: SecretStr | None = None
    #: Without this, the key only travels in the clear to this machine.
    allow_plaintext: bool = False
    #: Asked by cases that name none.
    model: str | None = None
    #: Samples of a case that are asked at once.
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 60.0
    #: A case fails when its pass rate is this surely below what it requires.
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    #: Between two runs on a schedule.
    every_s: Annotated[float, Field(ge=1)] = 900.0


class WatchSettings(Section):
    """When Kizashi has an incident of its own: the family `pipeline`."""

    #: How often is looked.
    every_s: Annotated[float, Field(ge=1, le=60)] = 30.0
    #: A record that was written longer ago than this should have been read.
    behind_s: Annotated[float, Field(ge=30, le=86_400)] = 300.0
    #: Late records page when nothing moves, or when for so long they have not got fewer.
    behind_for_s: Annotated[float, Field(ge=60, le=86_400)] = 300.0
    #: A stream that was steady may be silent for so long …
    silent_s: Annotated[float, Field(ge=60, le=86_400)] = 600.0
    #: … and steady is one that always had so many events in that time.
    silent_events: Annotated[int, Field(ge=1)] = 20


class EvaluationSettings(Section):
    """When an evaluation is negative: by its label where that is known, else by its score.

    Labels are compared in any case, and ``-`` and blanks are as good as ``_``.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    negative_labels: tuple[str, ...] = ()
    #: Without any, every label that is not negative is positive; and the other way round.
    positive_labels: tuple[str, ...] = ()
    negative_below: float | None = None
    negative_above: float | None = None

    @model_validator(mode="after")
    def _check_rule(self) -> EvaluationSettings:
        labels = {*self.negative_labels, *self.positive_labels}
        if not labels and self.negative_below is self.negative_above is None:
            raise ValueError("nothing would be negative")
        return self


class FeedbackSettings(Section):
    """What users and evaluators think of answers: how it finds its request, and what is bad."""

    #: Feedback waits so long for a request that is not stored yet …
    join_wait_s: Annotated[float, Field(ge=0, le=120)] = 10.0
    #: … and one that is older than this is not found.
    lookback_days: Annotated[float, Field(gt=0, le=366)] = 7.0
    #: Whether explanations are stored, redacted.
    store_explanations: bool = False
    monitors_per_grouping: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    #: Each a ``[[feedback.evaluations]]``; one without has the default: see docs/feedback.md.
    evaluations: Annotated[tuple[EvaluationSettings, ...], Field(max_length=1_000)] = ()

    @field_validator("evaluations")
    @classmethod
    def _check_names(cls, value: tuple[EvaluationSettings, ...]) -> tuple[EvaluationSettings, ...]:
        if len({each.name for each in value}) != len(value):
            raise ValueError("a name stands there twice")
        return value


class PriceSettings(Section):
    #: A price table in the form of `kizashi prices list --toml`, used over the built-in one.
    file: Path | None = None


class Config(BaseSettings):
    """Everything that can be configured. Frozen: build mutable state from it, never in it."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__"
    )

    kafka: KafkaSettings = KafkaSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    ingest: IngestSettings = IngestSettings()
    encoder: EncoderSettings = EncoderSettings()
    references: ReferenceSettings = ReferenceSettings()
    detection: DetectionSettings = DetectionSettings()
    notify: NotifySettings = NotifySettings()
    watch: WatchSettings = WatchSettings()
    #: Each an ``[[objectives]]``.
    objectives: Annotated[tuple[ObjectiveSettings, ...], Field(max_length=200)] = ()
    web: WebSettings = WebSettings()
    privacy: PrivacySettings = PrivacySettings()
    prices: PriceSettings = PriceSettings()
    canary: CanarySettings = CanarySettings()
    feedback: FeedbackSettings = FeedbackSettings()
    gateway: GatewaySettings = GatewaySettings()

    @model_validator(mode="after")
    def _check_gateway(self) -> Config:
        if not is_loopback(self.gateway.host) and not self.gateway.keys:
            raise ValueError("gateway.keys: whoever reaches the gateway may use it: set one")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment wins over the file, which arrives as init arguments.
        return env_settings, init_settings

    @model_validator(mode="after")
    def _check_monitors(self) -> Config:
        # With less room, monitors would push each other out and never finish learning.
        each = self.ingest.monitors_per_grouping + self.feedback.monitors_per_grouping + 2
        counted = len(self.ingest.groupings) * each
        if self.detection.monitors < counted:
            raise ValueError(
                f"detection.monitors is {self.detection.monitors}, but"
                f" {len(self.ingest.groupings)} groupings may have {counted} monitors"
            )
        return self

    @model_validator(mode="after")
    def _check_objectives(self) -> Config:
        if len({each.name for each in self.objectives}) != len(self.objectives):
            raise ValueError("objectives: a name stands there twice")
        for each in self.objectives:
            if each.grouping is not None and each.grouping not in self.ingest.groupings:
                raise ValueError(f"objectives.{each.name}: nothing is counted by its grouping")
        return self

    @model_validator(mode="after")
    def _check_webhook(self) -> Config:
        if self.notify.pagerduty.webhook_secret is not None and not self.web.enabled:
            raise ValueError("notify.pagerduty.webhook_secret: nothing listens; set web.enabled")
        for name in ("event_keys", "feedback_keys"):
            if getattr(self.web, name) and not self.web.enabled:
                raise ValueError(f"web.{name}: nothing listens; set web.enabled")
        return self

    def shown(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values, secrets masked."""
        shown = self.model_dump(mode="json")
        shown["ingest"]["groupings"] = [grouping_name(g) for g in self.ingest.groupings]
        for each, objective in zip(shown["objectives"], self.objectives, strict=True):
            each["grouping"] = grouping_name(objective.grouping or ())
        return shown


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read the configuration.

    `path` is the TOML file; without it ``KIZASHI_CONFIG`` and then
    ``./kizashi.toml`` are looked for. `overrides` are sections laid over the file.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, an impossible value.
    """
    data = _read_file(path)
    for section, values in (overrides or {}).items():
        data[section] = {**data.get(section, {}), **values}
    _check_environment()
    try:
        return Config(**data)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _read_file(path: Path | None) -> dict[str, Any]:
    named = path or (Path(p) if (p := os.environ.get("KIZASHI_CONFIG")) else None)
    file = named or Path("kizashi.toml")
    if named is None and not file.exists():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {file}: {error}") from None


_KeyFile = TypeAdapter(dict[KeyVersion, UserKeyText])


def read_key_file(file: Path) -> dict[str, str]:
    """Read a file of keys by their versions.

    Raises:
        ConfigError: it cannot be read, or what it holds are no such keys; none is quoted.
    """
    try:
        keys = _KeyFile.validate_python(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"privacy.user_keys_file: cannot read {file}: {error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError):
        raise ConfigError(
            f'privacy.user_keys_file: {file} needs lines as k1 = "…", with keys of at least'
            f" {MIN_KEY_CHARACTERS} characters"
        ) from None
    return {version: key.get_secret_value() for version, key in keys.items()}


def _check_environment() -> None:
    """pydantic-settings passes over variables that name no section, so a typo would go unseen."""
    for name in sorted(os.environ):
        if not name.startswith(ENV_PREFIX) or name in _NOT_SETTINGS:
            continue
        section = name.removeprefix(ENV_PREFIX).split("__")[0].lower()
        if section not in Config.model_fields:
            raise ConfigError(f"unknown environment variable {name}: no section {section!r}")


def _explain(error: ValidationError) -> str:
    """One line per problem: the key and what is wrong, never the value (it may be a secret)."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        key = ".".join(str(part) for part in problem["loc"])
        what = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"{key}: {what}")
    return "impossible configuration: " + "; ".join(lines)
