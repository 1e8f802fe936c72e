"""The Kafka topics: what they should be, making them, and how every kafka-python client connects.

Making topics is idempotent and never destroys: a topic that stands is left as
it is, and where it differs from the plan the report says so, with what mends it.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import shlex
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from pipeline.config import KafkaSettings
from pipeline.errors import ConfigError, SinkUnavailable

MIB = 1024 * 1024
_HOUR_MS = 3_600_000
#: Alarms and dead letters are few, and are read when someone comes back from holiday.
_LONG_RETENTION_HOURS = 30 * 24.0
_DEFAULT_PORT = 9092
#: Kafka's own default of max.message.bytes.
_MESSAGE_BYTES_DEFAULT = MIB + 12
_CONNECT_TIMEOUT_S = 10.0
_PROBE_TIMEOUT_S = 2.0
_METADATA_TIMEOUT_S = 30.0
_POLL_S = 0.05
#: What a broker that is too old for topic ids (KIP-516) answers.
_NO_TOPIC_ID = uuid.UUID(int=0)
_REFUSALS = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.AuthorizationError,
)


_PASSWORD_HINT = "perhaps it hangs up on a wrong kafka.username or kafka.password"  # noqa: S105


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic as it should be. `config` holds Kafka's own names and values."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]
    #: Whether partitions may be added later. Not where keys are assigned to partitions by hash
    #: and have state there, nor where one partition is what gives the order.
    growable: bool
    #: Somebody else's, who makes it as they like; we make it where it is missing.
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class StandingTopic:
    """A topic as it is. `config` holds the values of the planned keys."""

    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a standing topic is not as planned, and the command or setting that mends it."""

    topic: str
    what: str
    standing: str
    planned: str
    remedy: str


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What `create_topics` did; each topic is in exactly one of the first three."""

    created: tuple[str, ...] = ()
    grown: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()


def plan_topics(settings: KafkaSettings) -> tuple[TopicPlan, ...]:
    """Return the topics that `settings` ask for. Pure."""
    topics = settings.topics
    short_hours = topics.retention_hours
    long_hours = max(short_hours, _LONG_RETENTION_HOURS)

    def plan(
        name: str, partitions: int, retention_hours: float, message_mib: int, *, growable: bool
    ) -> TopicPlan:
        config = {
            "cleanup.policy": "delete",
            "compression.type": topics.compression,
            "max.message.bytes": str(message_mib * MIB),
            # Acknowledged means on two machines, wherever there are three to choose from.
            "min.insync.replicas": str(max(1, topics.replication - 1)),
            "retention.ms": str(round(retention_hours * _HOUR_MS)),
        }
        return TopicPlan(name, partitions, topics.replication, config, growable)

    foreign = [each.topic for each in settings.inputs]
    foreign += [each.topic for each in settings.feedback_inputs]
    inputs = (
        replace(plan(name, topics.partitions, short_hours, 2, growable=True), foreign=True)
        for name in foreign
    )
    return (
        plan(settings.events_topic, topics.partitions, short_hours, 2, growable=True),
        plan(settings.feedback_topic, topics.partitions, short_hours, 1, growable=True),
        plan(settings.signals_topic, topics.signals_partitions, short_hours, 4, growable=False),
        plan(settings.alarms_topic, 1, long_hours, 1, growable=False),
        # Wider than the events: a dead letter carries the record and the reason.
        plan(settings.deadletter_topic, topics.partitions, long_hours, 4, growable=True),
        *inputs,
    )


def find_differences(
    plan: TopicPlan, standing: StandingTopic, bootstrap_servers: str
) -> tuple[Difference, ...]:
    """Return where `standing` is not as `plan` says. Pure.

    More partitions than planned are no difference where partitions may grow, and nothing is
    where the topic is foreign.
    """
    found: list[Difference] = []
    if plan.foreign:
        return ()

    def note(what: str, is_now: object, should_be: object, remedy: str) -> None:
        found.append(Difference(plan.name, what, str(is_now), str(should_be), remedy))

    too_few = standing.partitions < plan.partitions
    if too_few or (standing.partitions != plan.partitions and not plan.growable):
        remedy = (
            "kizashi init --grow"
            if plan.growable
            else "keep the partitions that stand: set the configured number to "
            f"{standing.partitions}; or stop the workers, let them drain, delete the topic and "
            "run kizashi init"
        )
        note("partitions", standing.partitions, plan.partitions, remedy)
    if standing.replication != plan.replication:
        remedy = "move its replicas with kafka-reassign-partitions.sh, or set topics.replication"
        note("replication", standing.replication, plan.replication, remedy)
    for key, value in plan.config.items():
        if key in standing.config and standing.config[key] != value:
            command = _alter_command(plan.name, key, value, bootstrap_servers)
            note(key, standing.config[key], value, command)
    return tuple(found)


def create_topics(settings: KafkaSettings, *, grow: bool = False) -> TopicReport:
    """Create the topics that do not exist yet, and report where those that do differ.

    With `grow`, partitions are added to the events, feedback and dead-letter topics. A
    key's events go to another partition from then on, so a repeat of an event
    sent before may be counted twice; signals never grow, because a monitor's
    state lives where its hash says.

    Raises:
        ConfigError: the settings cannot be used, or the broker refuses them.
        SinkUnavailable: the broker does not answer.
    """
    plans = plan_topics(settings)
    with connect_admin(settings) as admin, mapped_errors(settings):
        created = _create_missing(admin, plans)
        stood = tuple(p for p in plans if p.name not in created)
        standing = _describe_planned(admin, stood)
        few = [
            p
            for p in stood
            if p.growable and not p.foreign and standing[p.name].partitions < p.partitions
        ]
        grown = _add_partitions(admin, few) if grow else ()
        standing |= _describe_planned(admin, [p for p in few if p.name in grown])
    return TopicReport(
        created=created,
        grown=grown,
        kept=tuple(p.name for p in stood if p.name not in grown),
        differences=tuple(
            difference
            for p in stood
            for difference in find_differences(p, standing[p.name], settings.bootstrap_servers)
        ),
    )


def examine_topics(settings: KafkaSettings) -> tuple[tuple[str, ...], tuple[Difference, ...]]:
    """Return the planned topics that are missing, and where the others differ. Changes nothing.

    Raises:
        ConfigError: the settings cannot be used, or the broker refuses them.
        SinkUnavailable: the broker does not answer.
    """
    plans = plan_topics(settings)
    standing = topic_epochs(settings, [plan.name for plan in plans])
    with connect_admin(settings) as admin, mapped_errors(settings):
        found = _describe_planned(admin, [p for p in plans if p.name in standing])
    servers = settings.bootstrap_servers
    missing = tuple(p.name for p in plans if p.name not in found)
    differences = (
        d for p in plans if p.name in found for d in find_differences(p, found[p.name], servers)
    )
    return missing, tuple(differences)


def topic_epochs(settings: KafkaSettings, names: Iterable[str]) -> dict[str, str]:
    """Return the topic id of each topic that exists, in Kafka's own base64 form.

    The id (KIP-516) is drawn anew whenever a topic is created, so it tells
    offset 7 of this topic from offset 7 of the one that stood here before.

    Raises:
        ConfigError: the settings cannot be used, or the broker is older than Kafka 2.8.
        SinkUnavailable: the broker does not answer.
    """
    with connect_admin(settings) as admin, mapped_errors(settings):
        found = {t["name"]: t for t in admin.describe_topics(list(names)) if _exists(t)}
    return {name: _topic_id(topic) for name, topic in found.items()}


def message_bytes_max(settings: KafkaSettings, topic: str) -> int | None:
    """Return the largest batch, as compressed, that `topic` takes; None without such a topic.

    Raises:
        ConfigError: the settings cannot be used.
        SinkUnavailable: the broker does not answer.
    """
    key = "max.message.bytes"
    with connect_admin(settings) as admin, mapped_errors(settings):
        found = _describe(admin, {topic: (key,)}).get(topic)
    # Who may write to a topic may not always see its configuration.
    return None if found is None else int(found.config.get(key, _MESSAGE_BYTES_DEFAULT))


def client_settings(settings: KafkaSettings) -> dict[str, Any]:
    """Return the connection part of a kafka-python client's arguments: admin, producer, consumer.

    The password does not show when the dictionary is printed.

    Raises:
        ConfigError: plaintext off loopback, missing credentials or files.
    """
    check_transport(settings)
    common = {
        "bootstrap_servers": [_join(h, p) for h, p in bootstrap_addresses(settings)],
        "client_id": "kizashi",
        "security_protocol": settings.security_protocol,
    }
    return common | sasl_settings(settings) | {"ssl_context": tls_context(settings)}


def check_transport(settings: KafkaSettings) -> None:
    """Refuse to send events, or a password, unencrypted over a network.

    Names are not resolved: only ``localhost`` and loopback addresses are loopback.

    Raises:
        ConfigError: no TLS, a broker that is not on loopback, and `allow_plaintext` not set.
    """
    if _encrypts(settings) or settings.allow_plaintext:
        return
    for host, _ in bootstrap_addresses(settings):
        if not _is_loopback(host):
            raise ConfigError(
                f"kafka.security_protocol: {settings.security_protocol} to {host} would send "
                "events in the clear: use SSL or SASL_SSL, or set kafka.allow_plaintext"
            )


def bootstrap_addresses(settings: KafkaSettings) -> tuple[tuple[str, int], ...]:
    """Return (host, port) of each bootstrap server.

    Raises:
        ConfigError: there is none, or one is not ``host:port``.
    """
    entries = [e.strip() for e in settings.bootstrap_servers.split(",") if e.strip()]
    if not entries:
        raise ConfigError("kafka.bootstrap_servers: names no broker")
    return tuple(_parse_address(entry) for entry in entries)


def tls_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """Return what verifies the broker and shows our certificate; None where TLS is off.

    Raises:
        ConfigError: a file is missing or holds no certificate or key.
    """
    if not _encrypts(settings):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except OSError as error:
        raise ConfigError(f"kafka.ca_file, cert_file or key_file cannot be used: {error}") from None
    return context


@contextlib.contextmanager
def connect_admin(
    settings: KafkaSettings, timeout_s: float = _CONNECT_TIMEOUT_S
) -> Iterator[KafkaAdminClient]:
    """Give a connected admin client, closed at the end.

    Raises:
        ConfigError: the settings cannot be used, the credentials or certificates are refused.
        SinkUnavailable: no broker answers within `timeout_s`.
    """
    with contextlib.ExitStack() as until_connected:

        def open_client(**config: Any) -> KafkaNetClient:
            net = NetworkSelector(**config)
            client = KafkaNetClient(net, _StrictManager(net, **config), **config)
            # A KafkaAdminClient that cannot connect leaves its thread and sockets behind.
            until_connected.callback(client.close)
            return client

        with mapped_errors(settings):
            admin = KafkaAdminClient(
                **client_settings(settings),
                bootstrap_timeout_ms=round(timeout_s * 1000),
                kafka_client=open_client,
            )
        until_connected.pop_all()
    with contextlib.closing(admin):
        yield admin


@contextlib.contextmanager
def mapped_errors(settings: KafkaSettings) -> Iterator[None]:
    """Raise kafka-python's errors as ours: SinkUnavailable for what can pass, else ConfigError."""
    try:
        yield
    except kafka_errors.KafkaError as error:
        if not error.retriable:
            raise ConfigError(f"Kafka at {settings.bootstrap_servers} refuses: {error}") from error
        _check_certificates(settings)
        # A broker says that it refuses a password and hangs up; kafka-python (3.0) reads both at
        # once more often than not, and then knows of the second alone.
        hint = f"; {_PASSWORD_HINT}" if sasl_settings(settings) else ""
        raise SinkUnavailable(f"Kafka at {settings.bootstrap_servers}: {error}{hint}") from error


class _StrictManager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python is untyped
    """Gives up once it is told that it may not come in.

    kafka-python's own tries the refused password again until time is up, which
    locks accounts, and then reports a time-out.
    """

    _refusal: Exception | None = None

    def get_connection(self, node_id: Any, **options: Any) -> Any:
        if self._refusal is not None:
            raise self._refusal
        connection = super().get_connection(node_id, **options)
        connection.close_future.add_errback(self._note)
        return connection

    def _note(self, error: Exception) -> None:
        if isinstance(error, _REFUSALS):
            self._refusal = error


def _check_certificates(settings: KafkaSettings) -> None:
    """Find out whether TLS is why nothing answers: kafka-python tries again until time is up."""
    context = tls_context(settings)
    if context is None:
        return
    host, port = bootstrap_addresses(settings)[0]
    try:
        with (
            socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            tls.recv(1)  # with TLS 1.3 the refusal of our own certificate comes after the handshake
    except ssl.SSLError as error:
        raise ConfigError(f"kafka: no TLS with {host}:{port}: {error}") from error
    except OSError:
        return  # it does not answer at all, which is what the caller reports


def _encrypts(settings: KafkaSettings) -> bool:
    return settings.security_protocol in {"SSL", "SASL_SSL"}


def sasl_settings(settings: KafkaSettings) -> dict[str, Any]:
    """Return how to log in, under kafka-python's names; nothing where SASL is off.

    Raises:
        ConfigError: there is no user or no password.
    """
    if not settings.security_protocol.startswith("SASL_"):
        return {}
    if settings.username is None or settings.password is None:
        raise ConfigError("kafka.username and kafka.password: SASL needs both")
    return {
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.username,
        "sasl_plain_password": _Hidden(settings.password.get_secret_value()),
    }


class _Hidden(str):
    """A string that does not show in a printed dictionary; kafka-python logs its settings."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**********'"


def _parse_address(entry: str) -> tuple[str, int]:
    """Split ``host:port``, ``host`` or ``[v6]:port``."""
    host, colon, port = entry.rpartition(":")
    if not colon or entry.endswith("]"):
        host, port = entry, str(_DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ConfigError(f"kafka.bootstrap_servers: {entry!r} is not host:port")
    return host, int(port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _create_missing(admin: KafkaAdminClient, plans: Iterable[TopicPlan]) -> tuple[str, ...]:
    # The controller is asked for all of them and says which exist. A broker's metadata may lag,
    # and would count a topic as standing that was deleted a moment ago.
    wanted = {
        plan.name: {
            "num_partitions": plan.partitions,
            "replication_factor": plan.replication,
            "configs": dict(plan.config),
        }
        for plan in plans
    }
    answer = admin.create_topics(wanted, raise_errors=False)
    created = {t["name"]: _topic_id(t) for t in answer["topics"] if _was_created(t)}
    _await_metadata(admin, created)
    return tuple(created)


def _was_created(topic: Mapping[str, Any]) -> bool:
    error = kafka_errors.for_code(topic["error_code"])
    if error is kafka_errors.NoError:
        return True
    if error is kafka_errors.TopicAlreadyExistsError:
        return False
    raise error(f"{topic['name']}: {topic.get('error_message')}")


def _await_metadata(admin: KafkaAdminClient, ids: Mapping[str, str]) -> None:
    """Wait until the brokers know the new topics, and not only their namesakes before them."""
    is_new = {name: lambda t, new=new: _topic_id(t) == new for name, new in ids.items()}
    _await_topics(admin, is_new)


def _await_topics(
    admin: KafkaAdminClient, wanted: Mapping[str, Callable[[Mapping[str, Any]], bool]]
) -> None:
    """Wait until each topic is as it should be by what a broker says of it: the controller knows
    it first.
    """
    deadline_s = time.monotonic() + _METADATA_TIMEOUT_S
    while wanted:
        admin.wait_for_topics(list(wanted))
        found = {t["name"]: t for t in admin.describe_topics(list(wanted)) if _exists(t)}
        missing = [n for n, is_so in wanted.items() if n not in found or not is_so(found[n])]
        if not missing:
            return
        if time.monotonic() > deadline_s:
            raise kafka_errors.KafkaTimeoutError(f"not visible yet: {', '.join(missing)}")
        time.sleep(_POLL_S)


def _describe_planned(
    admin: KafkaAdminClient, plans: Iterable[TopicPlan]
) -> dict[str, StandingTopic]:
    return _describe(admin, {plan.name: tuple(plan.config) for plan in plans})


def _describe(
    admin: KafkaAdminClient, keys: Mapping[str, tuple[str, ...]]
) -> dict[str, StandingTopic]:
    """Describe the topics of `keys` that exist, with the values of those configuration keys."""
    if not keys:
        return {}
    topics = {t["name"]: t["partitions"] for t in admin.describe_topics(list(keys)) if _exists(t)}
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, name, configs=dict.fromkeys(keys[name]))
        for name in topics
    ]
    configs = admin.describe_configs(resources, config_filter="all") if resources else {}
    return {
        name: StandingTopic(
            partitions=len(partitions),
            replication=len(partitions[0]["replica_nodes"]),
            config={key: entry["value"] for key, entry in configs["topic"][name].items()},
        )
        for name, partitions in topics.items()
    }


def _add_partitions(admin: KafkaAdminClient, plans: Iterable[TopicPlan]) -> tuple[str, ...]:
    counts = {plan.name: plan.partitions for plan in plans}
    if counts:
        admin.create_partitions(counts)
        has_grown = {n: lambda t, m=m: len(t["partitions"]) >= m for n, m in counts.items()}
        _await_topics(admin, has_grown)
    return tuple(counts)


def _exists(topic: Mapping[str, Any]) -> bool:
    error = kafka_errors.for_code(topic["error_code"])
    if error is kafka_errors.UnknownTopicOrPartitionError:
        return False
    if error in (kafka_errors.NoError, kafka_errors.LeaderNotAvailableError):
        return True
    raise error(topic["name"])


def _topic_id(topic: Mapping[str, Any]) -> str:
    """The 22 characters by which Kafka's own tools show a topic id."""
    known = uuid.UUID(str(topic["topic_id"] or _NO_TOPIC_ID))
    if known == _NO_TOPIC_ID:
        raise ConfigError("the broker gives topics no ids: Kafka 2.8 or newer is needed")
    return base64.urlsafe_b64encode(known.bytes).decode().rstrip("=")


def _alter_command(topic: str, key: str, value: str, servers: str) -> str:
    return (
        f"kafka-configs.sh --bootstrap-server {shlex.quote(servers)} --alter "
        f"--entity-type topics --entity-name {shlex.quote(topic)} --add-config {key}={value}"
    )
