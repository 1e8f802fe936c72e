"""The topics: what is planned, what is made of it, and who is let in at the broker's door."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from pipeline.broker import free_ports
from pipeline.config import KafkaSettings, TopicSettings
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.topics import (
    MIB,
    StandingTopic,
    bootstrap_addresses,
    client_settings,
    connect_admin,
    create_topics,
    find_differences,
    plan_topics,
    tls_context,
    topic_epochs,
)
from tests.support.kafka import alter

DAY_MS = 86_400_000


def test_the_plan_follows_the_settings():
    """Partitions, sizes, retention and compression come from the settings, topic by topic."""
    topics = TopicSettings(
        partitions=12, signals_partitions=3, replication=3, retention_hours=48, compression="zstd"
    )
    events, feedback, signals, alarms, dead = plan_topics(KafkaSettings(topics=topics))
    assert feedback.name == "llm.gateway.feedback"
    assert (feedback.partitions, feedback.growable) == (12, True)
    assert feedback.config["retention.ms"] == events.config["retention.ms"]
    assert [events.name, signals.name] == ["llm.gateway.events", "llm.signals"]
    assert [alarms.name, dead.name] == ["llm.alarms", "llm.deadletter"]
    assert [p.partitions for p in (events, signals, alarms, dead)] == [12, 3, 1, 12]
    assert [p.growable for p in (events, signals, alarms, dead)] == [True, False, False, True]
    assert [int(p.config["retention.ms"]) // DAY_MS for p in (events, signals, alarms, dead)] == [
        2,
        2,
        30,
        30,
    ]
    assert int(events.config["max.message.bytes"]) == 2 * MIB
    assert int(signals.config["max.message.bytes"]) == 4 * MIB
    assert int(dead.config["max.message.bytes"]) == 4 * MIB
    for plan in (events, feedback, signals, alarms, dead):
        assert plan.replication == 3
        assert plan.config["compression.type"] == "zstd"
        assert plan.config["min.insync.replicas"] == "2"


@given(hours=st.floats(0.1, 24 * 400), replication=st.integers(1, 15))
def test_no_plan_contradicts_itself(hours, replication):
    """Alarms and dead letters stay at least as long as the events, and writes stay possible."""
    topics = TopicSettings(retention_hours=hours, replication=replication)
    events, _, _, alarms, dead = plan_topics(KafkaSettings(topics=topics))
    assert int(alarms.config["retention.ms"]) >= int(events.config["retention.ms"]) > 0
    assert int(dead.config["retention.ms"]) >= int(events.config["retention.ms"])
    assert 1 <= int(events.config["min.insync.replicas"]) <= replication
    if replication > 1:
        assert int(events.config["min.insync.replicas"]) < replication


def test_a_topic_as_planned_has_no_differences():
    for plan in plan_topics(KafkaSettings()):
        standing = StandingTopic(plan.partitions, plan.replication, dict(plan.config))
        assert find_differences(plan, standing, "b:9092") == ()


def test_differences_name_what_mends_them():
    """Each difference says what stands, what was planned, and the command or setting."""
    events, _, signals, *_ = plan_topics(KafkaSettings())
    fewer = StandingTopic(2, 1, {**events.config, "retention.ms": "1"})
    partitions, retention = find_differences(events, fewer, "b:9092")
    assert (partitions.standing, partitions.planned) == ("2", "8")
    assert partitions.remedy == "kizashi init --grow"
    assert retention.remedy == (
        "kafka-configs.sh --bootstrap-server b:9092 --alter --entity-type topics "
        "--entity-name llm.gateway.events --add-config retention.ms=259200000"
    )
    more = StandingTopic(9, 1, events.config)
    assert find_differences(events, more, "b:9092") == ()
    for count in (3, 5):  # monitors sit on partitions by hash: neither way is harmless
        (found,) = find_differences(signals, StandingTopic(count, 1, signals.config), "b:9092")
        assert f"configured number to {count}" in found.remedy
        assert "--grow" not in found.remedy


@pytest.mark.parametrize(
    ("servers", "addresses"),
    [
        ("localhost", (("localhost", 9092),)),
        ("a:1, b:65535 ,", (("a", 1), ("b", 65535))),
        ("[::1]:9094,[::1]", (("::1", 9094), ("::1", 9092))),
    ],
)
def test_addresses_are_read(servers, addresses):
    assert bootstrap_addresses(KafkaSettings(bootstrap_servers=servers)) == addresses


@pytest.mark.parametrize("servers", ["", " , ", "a:", ":9092", "a:0", "a:65536", "a:x", "a:９"])
def test_bad_addresses_are_refused(servers):
    with pytest.raises(ConfigError, match=r"kafka\.bootstrap_servers"):
        bootstrap_addresses(KafkaSettings(bootstrap_servers=servers))


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT"])
@pytest.mark.parametrize(
    "servers", ["kafka:9092", "10.0.0.7:9092", "127.0.0.1:1,kafka:2", "localhost.example.com:1"]
)
def test_plaintext_off_loopback_is_refused(servers, protocol):
    """Events hold what users wrote: unencrypted they leave this machine only if someone says so."""
    secrets = {"username": "u", "password": SecretStr("p")}
    settings = KafkaSettings(bootstrap_servers=servers, security_protocol=protocol, **secrets)
    with pytest.raises(ConfigError, match=r"kafka\.security_protocol.*allow_plaintext"):
        client_settings(settings)
    allowed = settings.model_copy(update={"allow_plaintext": True})
    assert client_settings(allowed)["security_protocol"] == protocol


@pytest.mark.parametrize("servers", ["localhost:1", "127.0.0.1:1", "127.8.9.1:1", "[::1]:1"])
def test_plaintext_on_loopback_is_allowed(servers):
    assert client_settings(KafkaSettings(bootstrap_servers=servers))["ssl_context"] is None


def test_credentials_are_handed_on_and_never_shown():
    """kafka-python logs its settings: the password must not show in them."""
    settings = KafkaSettings(
        security_protocol="SASL_SSL", username="u", password=SecretStr("canary-4711")
    )
    arguments = client_settings(settings)
    assert arguments["sasl_plain_password"] == "canary-4711"
    assert "canary-4711" not in f"{arguments}" + repr(list(arguments.items()))
    with pytest.raises(ConfigError, match=r"kafka\.username and kafka\.password"):
        client_settings(settings.model_copy(update={"password": None}))


def test_tls_verifies_the_broker_and_says_which_files_are_wrong(tmp_path):
    context = tls_context(KafkaSettings(security_protocol="SSL"))
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"
    for broken in ({"ca_file": tmp_path / "absent"}, {"cert_file": tmp_path / "absent"}):
        with pytest.raises(ConfigError, match=r"kafka\.ca_file, cert_file or key_file"):
            client_settings(KafkaSettings(security_protocol="SSL", **broken))
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        client_settings(KafkaSettings(security_protocol="SSL", ca_file=tmp_path / "empty.pem"))


def test_a_broker_that_is_not_there_is_a_passing_error():
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_ports()[0]}")
    with pytest.raises(SinkUnavailable, match="127"), connect_admin(settings, timeout_s=0.3):
        pass


@pytest.mark.kafka
def test_topics_are_made_once(kafka_settings):
    """The first call makes them as planned; the second finds nothing to do and nothing to say."""
    plans = plan_topics(kafka_settings)
    names = tuple(p.name for p in plans)
    first = create_topics(kafka_settings)
    assert (first.created, first.kept, first.differences) == (names, (), ())
    epochs = topic_epochs(kafka_settings, names)
    second = create_topics(kafka_settings)
    assert (second.created, second.kept, second.differences) == ((), names, ())
    assert topic_epochs(kafka_settings, names) == epochs
    assert len(set(epochs.values())) == len(names)


@pytest.mark.kafka
def test_what_differs_is_reported_and_left_alone_unless_asked(kafka_settings):
    """`grow` adds partitions to events and dead letters; nothing ever touches the signals."""
    topics = kafka_settings.topics
    small = topics.model_copy(update={"partitions": 1, "signals_partitions": 1})
    create_topics(kafka_settings.model_copy(update={"topics": small}))
    alter(kafka_settings, kafka_settings.alarms_topic, "retention.ms", 12_345)

    events, signals = kafka_settings.events_topic, kafka_settings.signals_topic
    feedback = kafka_settings.feedback_topic
    alarms, dead = kafka_settings.alarms_topic, kafka_settings.deadletter_topic
    report = create_topics(kafka_settings)
    assert {(d.topic, d.what, d.standing) for d in report.differences} == {
        (events, "partitions", "1"),
        (feedback, "partitions", "1"),
        (signals, "partitions", "1"),
        (alarms, "retention.ms", "12345"),
        (dead, "partitions", "1"),
    }
    assert (report.created, report.grown) == ((), ())

    report = create_topics(kafka_settings, grow=True)
    assert report.grown == (events, feedback, dead)
    assert report.kept == (signals, alarms)
    assert {(d.topic, d.what) for d in report.differences} == {
        (signals, "partitions"),
        (alarms, "retention.ms"),
    }
    assert create_topics(kafka_settings, grow=True).grown == ()


@pytest.mark.kafka
def test_a_topic_made_anew_has_another_epoch(kafka_settings):
    """Offsets of the old topic and of the new one must never be taken for each other."""
    name = kafka_settings.events_topic
    assert topic_epochs(kafka_settings, [name]) == {}
    create_topics(kafka_settings)
    before = topic_epochs(kafka_settings, [name, "there-is-no-such-topic"])
    assert list(before) == [name]
    with connect_admin(kafka_settings) as admin:
        admin.delete_topics([name])
    create_topics(kafka_settings)
    after = topic_epochs(kafka_settings, [name])
    assert list(after) == [name]
    assert after != before


@pytest.mark.kafka
def test_settings_that_the_broker_refuses_are_a_configuration_error(kafka_settings):
    """More replicas than brokers will never work: retrying would only hide it."""
    topics = kafka_settings.topics.model_copy(update={"replication": 15})
    with pytest.raises(ConfigError, match="Replication"):
        create_topics(kafka_settings.model_copy(update={"topics": topics}))
