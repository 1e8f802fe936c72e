"""Who is let in at the broker's door, and whom our clients take for the broker.

One real broker with three listeners: plain text for its own start, SASL over TLS, and
TLS that asks for a certificate. Both clients that we have, kafka-python and aiokafka
as Faust sets it up, must come in with the right credentials and fail closed with
any that are wrong.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from pydantic import SecretStr

from pipeline.app import build_faust
from pipeline.broker import Broker, free_ports
from pipeline.config import KafkaSettings
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.producing import produce
from pipeline.topics import client_settings, connect_admin, create_topics
from tests.support.kafka import consume, require_jars, settings_for, unique_prefix
from tests.support.tls import Authority, Identity

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).parents[1]
PASSWORD = "right-and-canary-90d1"
#: A refused client tries again until its time is up.
TIMEOUT_S = 1.5


class Secured(NamedTuple):
    """The broker's doors, and what opens them."""

    plain: int
    sasl: int
    mutual: int
    authority: Authority
    stranger: Authority
    client: Identity
    topics: str

    def settings(self, port: int, **changes: Any) -> KafkaSettings:
        given = {"allow_plaintext": False, "ca_file": self.authority.file} | changes
        return settings_for(f"127.0.0.1:{port}", self.topics, **given)

    def with_password(self, **changes: Any) -> KafkaSettings:
        given = {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "username": "kizashi",
            "password": SecretStr(PASSWORD),
        }
        return self.settings(self.sasl, **(given | changes))

    def with_certificate(self, **changes: Any) -> KafkaSettings:
        files = {"cert_file": self.client.certificate, "key_file": self.client.key}
        return self.settings(self.mutual, **({"security_protocol": "SSL"} | files | changes))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    require_jars()
    directory: Path = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority(directory, "ours"), Authority(directory, "stranger")
    ports, (sasl, mutual) = free_ports(), free_ports()
    made = Secured(
        ports[0], sasl, mutual, authority, stranger, authority.issue("client"), unique_prefix()
    )
    properties = broker_properties(made, ports[1], authority.issue("127.0.0.1"))
    with Broker(ports=ports, properties=properties):
        create_topics(made.with_password())
        yield made


def broker_properties(secured: Secured, controller: int, identity: Identity) -> dict[str, str]:
    doors = {"PLAINTEXT": secured.plain, "SASL_SSL": secured.sasl, "SSL": secured.mutual}
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in doors.items())
    protocols = ",".join(f"{name}:{name}" for name in doors)
    login = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": f"{protocols},CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": (
            f'{login} required user_kizashi="{PASSWORD}";'
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(identity.both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(secured.authority.file),
        "listener.name.ssl.ssl.client.auth": "required",
    }


def auth_of_worker(settings: KafkaSettings) -> dict[str, Any]:
    """What Faust hands to aiokafka in a worker."""
    app = build_faust(settings)
    return dict(credentials_to_aiokafka_auth(app.conf.broker_credentials))


async def send_as_worker(settings: KafkaSettings, value: bytes) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        request_timeout_ms=round(TIMEOUT_S * 1000),
        **auth_of_worker(settings),
    )
    try:
        async with asyncio.timeout(10 * TIMEOUT_S):
            await producer.start()
            await producer.send_and_wait(settings.events_topic, value)
    finally:
        await producer.stop()


async def read_as_worker(settings: KafkaSettings) -> bytes:
    consumer = AIOKafkaConsumer(
        settings.events_topic,
        bootstrap_servers=settings.bootstrap_servers,
        auto_offset_reset="earliest",
        **auth_of_worker(settings),
    )
    try:
        async with asyncio.timeout(20 * TIMEOUT_S):
            await consumer.start()
            return (await consumer.getone()).value
    finally:
        await consumer.stop()


async def test_who_has_the_credentials_comes_in_by_both_doors(secured: Secured) -> None:
    by_password, by_certificate = secured.with_password(), secured.with_certificate()
    await send_as_worker(by_password, b'{"event.id": "1"}')
    assert produce(by_certificate, [b'{"event.id": "2"}']).sent == 1
    assert len(consume(by_password, by_password.events_topic)) == 2
    assert await read_as_worker(by_certificate) in {b'{"event.id": "1"}', b'{"event.id": "2"}'}


def wrong_settings(secured: Secured) -> dict[str, tuple[KafkaSettings, type[Exception], str]]:
    """What is wrong → the settings, and what kafka-python's clients say of them."""
    by_name = {"bootstrap_servers": f"localhost:{secured.sasl}"}
    unknown = secured.stranger.issue("client")
    strangers = {"cert_file": unknown.certificate, "key_file": unknown.key}
    nothing = {"cert_file": None, "key_file": None}
    password, certificate = secured.with_password, secured.with_certificate
    return {
        "wrong CA": (password(ca_file=secured.stranger.file), ConfigError, "verify failed"),
        "the system's CAs": (password(ca_file=None), ConfigError, "verify failed"),
        "wrong name": (renamed(password(), **by_name), ConfigError, "(?i)hostname mismatch"),
        "wrong CA, by certificate": (
            certificate(ca_file=secured.stranger.file),
            ConfigError,
            "verify failed",
        ),
        "no certificate": (certificate(**nothing), ConfigError, "no TLS"),
        "a stranger's certificate": (certificate(**strangers), ConfigError, "no TLS"),
        "TLS at the plain door": (
            renamed(password(), bootstrap_servers=f"127.0.0.1:{secured.plain}"),
            ConfigError,
            "no TLS",
        ),
        "plain text at the TLS door": (
            password(security_protocol="SASL_PLAINTEXT"),
            SinkUnavailable,
            "bootstrap",
        ),
    }


def renamed(settings: KafkaSettings, **changes: Any) -> KafkaSettings:
    return settings.model_copy(update=changes)


WRONG = (
    "wrong CA",
    "the system's CAs",
    "wrong name",
    "wrong CA, by certificate",
    "no certificate",
    "a stranger's certificate",
    "TLS at the plain door",
    "plain text at the TLS door",
)


def test_the_list_of_what_is_wrong_is_whole(secured: Secured) -> None:
    assert set(wrong_settings(secured)) == set(WRONG)


@pytest.mark.parametrize("what", WRONG)
def test_kafka_python_fails_closed_and_says_why(secured: Secured, what: str) -> None:
    settings, kind, says = wrong_settings(secured)[what]
    with pytest.raises(kind, match=says) as refused, connect_admin(settings, TIMEOUT_S):
        pass
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize("what", WRONG)
async def test_aiokafka_fails_closed(secured: Secured, what: str) -> None:
    settings, _, _ = wrong_settings(secured)[what]
    with pytest.raises((KafkaError, TimeoutError)) as refused:
        await send_as_worker(settings, b"must not arrive")
    assert PASSWORD not in repr(refused.value)


async def test_a_wrong_password_is_refused_to_both(secured: Secured) -> None:
    settings = secured.with_password(password=SecretStr("wrong-and-canary-11ab"))
    refuse_password(settings)
    with pytest.raises(KafkaError) as refused:
        await send_as_worker(settings, b"must not arrive")
    assert "canary" not in repr(refused.value)


def refuse_password(settings: KafkaSettings) -> None:
    """The broker refuses and hangs up; when kafka-python sees the latter alone, we say what for."""
    with (
        pytest.raises((ConfigError, SinkUnavailable)) as refused,
        connect_admin(settings, 2 * TIMEOUT_S),
    ):
        pass
    assert "canary" not in str(refused.value)
    assert refused.match(r"Authentication|wrong kafka\.username or kafka\.password")


def test_nothing_of_the_refused_has_arrived(secured: Secured) -> None:
    settings = secured.with_password()
    records = consume(settings, settings.events_topic)
    assert all(b"must not" not in (record.value or b"") for record in records)


# --- No broker needed ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT"])
@pytest.mark.parametrize("connect", [client_settings, build_faust])
def test_plain_text_off_this_machine_is_refused_to_every_client(
    protocol: str, connect: Any
) -> None:
    given = {"username": "u", "password": SecretStr("p"), "security_protocol": protocol}
    settings = KafkaSettings(bootstrap_servers="kafka.example.com:9092", **given)
    with pytest.raises(ConfigError, match=r"allow_plaintext"):
        connect(settings)
    connect(renamed(settings, allow_plaintext=True))


@pytest.mark.parametrize("connect", [client_settings, build_faust])
@pytest.mark.parametrize("missing", ["username", "password"])
def test_sasl_without_credentials_never_becomes_something_weaker(
    connect: Any, missing: str
) -> None:
    given = {"username": "u", "password": SecretStr("p"), missing: None}
    settings = KafkaSettings(security_protocol="SASL_SSL", **given)
    with pytest.raises(ConfigError, match=r"SASL needs both"):
        connect(settings)


def test_a_user_name_does_not_turn_tls_into_sasl() -> None:
    settings = KafkaSettings(security_protocol="SSL", username="u", password=SecretStr("p"))
    assert auth_of_worker(settings)["security_protocol"] == "SSL"
    assert client_settings(settings)["security_protocol"] == "SSL"


def test_both_clients_check_the_broker_s_name_and_certificate() -> None:
    settings = KafkaSettings(security_protocol="SSL")
    for arguments in (auth_of_worker(settings), client_settings(settings)):
        context = arguments["ssl_context"]
        assert context.check_hostname
        assert context.verify_mode.name == "CERT_REQUIRED"
        assert context.minimum_version >= 0x0303


CLIENTS = {
    "KafkaProducer",
    "KafkaConsumer",
    "KafkaAdminClient",
    "AIOKafkaProducer",
    "AIOKafkaConsumer",
}
#: Imports nothing of ours, and has its own check: `test_litellm.py`.
ON_ITS_OWN = {"pipeline/litellm_callback.py"}


def bare_clients(source: str) -> list[str]:
    """Clients that are made of anything but the checked settings."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    made = [c for c in calls if ast.unparse(c.func).rpartition(".")[2] in CLIENTS]
    return [ast.unparse(call.func) for call in made if not has_checked_settings(call)]


def has_checked_settings(call: ast.Call) -> bool:
    given = (ast.unparse(each.value) for each in call.keywords if each.arg is None)
    return any("client_settings(" in each for each in given)


def test_no_client_is_made_without_the_check() -> None:
    files = [file for folder in ("pipeline", "gateway") for file in (ROOT / folder).rglob("*.py")]
    bare = {
        str(file.relative_to(ROOT)): found
        for file in files
        if (found := bare_clients(file.read_text(encoding="utf-8")))
    }
    assert bare.keys() == ON_ITS_OWN
    assert bare_clients("KafkaProducer(bootstrap_servers='b')")
    assert not bare_clients("KafkaProducer(**client_settings(settings), acks='all')")
