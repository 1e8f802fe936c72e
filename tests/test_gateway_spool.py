"""The spool: what is taken is sent, waits, or is counted as lost, whatever happens in between."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.shipping import FeedbackShipping, Shipping, events_courier, feedback_courier
from gateway.spool import Loss, Slot, Spool
from pipeline.broker import Broker
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.gateway_settings import EventSettings, FeedbackSettings
from pipeline.topics import create_topics
from tests.support.feedback import feedback_raw
from tests.support.kafka import consume, own_broker, settings_for, unique_prefix

__all__ = ["own_broker"]
MIB = 1024 * 1024


def open_spool(directory: Path, bytes_max: int = 64 * MIB, segment_bytes: int = MIB) -> Spool:
    return Spool(directory, bytes_max, segment_bytes)


def drain(spool: Spool) -> list[bytes]:
    found: list[bytes] = []
    while (batch := spool.read()).raws:
        found += batch.raws
        spool.release(batch, 0)
    return found


def account(spool: Spool) -> dict[Loss, int]:
    return {loss: number for loss, number in spool.ledger.lost.items() if number}


class Keeping:
    """A courier that keeps what it gets; away as long as it is told."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.away = False
        self.refuses: set[bytes] = set()

    def deliver(self, raws: Sequence[bytes]) -> tuple[list[bytes], int]:
        if self.away:
            raise SinkUnavailable("away")
        self.got += [raw for raw in raws if raw not in self.refuses]
        return [], sum(raw in self.refuses for raw in raws)

    def close(self) -> None:
        self.away = True


def until(done: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s, "nothing came of it"
        time.sleep(0.005)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=300), max_size=8), max_size=12), st.integers(0, 11))
def test_what_is_appended_is_read_once_in_order_across_restarts(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[bytes]], restart: int
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    spool = open_spool(directory, segment_bytes=500)
    found: list[bytes] = []
    for number, block in enumerate(blocks):
        if number == restart:
            spool.close()
            spool = open_spool(directory, segment_bytes=500)
        spool.ledger.add(Slot.TAKEN, len(block))
        spool.append(block)
        if number % 3 == 0:
            found += drain(spool)
    found += drain(spool)
    assert found == [raw for block in blocks for raw in block]
    assert account(spool) == {}
    spool.close()
    assert list(directory.glob("*.segment")) == []


def test_a_directory_has_one_gateway(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    with pytest.raises(ConfigError, match="another gateway"):
        open_spool(tmp_path)
    spool.close()
    open_spool(tmp_path).close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool")
    spool.append([b"secret"])
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    for file in (tmp_path / "spool").iterdir():
        assert file.stat().st_mode & 0o077 == 0
    spool.close()


def test_what_the_spool_has_no_room_for_is_counted(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, bytes_max=2_000, segment_bytes=500)
    spool.ledger.add(Slot.TAKEN, 10)
    for _ in range(10):
        spool.append([b"x" * 400])
    assert account(spool) == {Loss.SPOOL_FULL: 6}
    assert len(drain(spool)) == 4
    spool.append([b"again"])
    assert drain(spool) == [b"again"]
    spool.close()


def test_what_the_pipeline_would_refuse_is_not_written(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.append([b"x" * 1_000_001, b"y"])
    assert account(spool) == {Loss.TOO_LARGE: 1}
    assert drain(spool) == [b"y"]
    spool.close()


def test_a_torn_end_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.ledger.add(Slot.TAKEN, 3)
    spool.append([b"one", b"two", b"three"])
    spool.ledger.close()
    [segment] = tmp_path.glob("*.segment")
    segment.write_bytes(segment.read_bytes()[:-2])
    (tmp_path / "ledger").write_bytes(b"")  # and the machine has forgotten the counters
    (tmp_path / "lock").unlink()
    again = open_spool(tmp_path)
    again.ledger.add(Slot.TAKEN)
    again.append([b"four"])
    assert drain(again) == [b"one", b"two", b"four"]
    again.close()


def test_what_rots_on_disk_is_counted(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_bytes=200)
    for number in range(6):
        spool.ledger.add(Slot.TAKEN)
        spool.append([bytes([number]) * 120])
    first = min(tmp_path.glob("*.segment"))
    first.write_bytes(b"\0" * first.stat().st_size)
    assert len(drain(spool)) == 4
    assert account(spool) == {Loss.CORRUPT: 2}
    spool.close()


def test_a_spool_smaller_than_a_segment_is_emptied_all_the_same(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, bytes_max=4_000, segment_bytes=MIB)
    for _ in range(100):
        spool.append([b"x" * 400])
        drain(spool)
    assert account(spool) == {}
    spool.close()


def test_a_disk_that_refuses_is_counted_and_used_again(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool")
    (tmp_path / "spool").rename(tmp_path / "gone")
    spool.append([b"lost"])
    assert account(spool) == {Loss.DISK_ERROR: 1}
    (tmp_path / "gone").rename(tmp_path / "spool")
    spool.append([b"kept"])
    assert drain(spool) == [b"kept"]
    spool.close()


# --- The way to Kafka ------------------------------------------------------------------------


def test_events_wait_while_kafka_is_away_and_come_in_order(tmp_path: Path) -> None:
    courier = Keeping()
    courier.away = True
    shipping = Shipping(EventSettings(spool=tmp_path), courier)
    sent = [b"%d" % number for number in range(3_000)]
    courier.refuses = {sent[7]}
    for raw in sent:
        shipping.put(raw)
    until(lambda: shipping.spool.ledger[Slot.SPOOLED] == len(sent))
    assert courier.got == []
    courier.away = False
    until(lambda: shipping.waiting == 0)
    assert courier.got == sent[:7] + sent[8:]
    assert account(shipping.spool) == {Loss.REFUSED: 1}
    shipping.stop(1.0)


def test_what_is_not_sent_at_the_end_is_sent_by_the_next_process(tmp_path: Path) -> None:
    courier = Keeping()
    courier.away = True
    shipping = Shipping(EventSettings(spool=tmp_path), courier)
    for number in range(100):
        shipping.put(b"%d" % number)
    shipping.stop(0.01)
    following = Keeping()
    again = Shipping(EventSettings(spool=tmp_path), following)
    until(lambda: again.waiting == 0)
    assert following.got == [b"%d" % number for number in range(100)]
    again.stop(1.0)


KILLED = """
import os, sys
from pathlib import Path
from gateway.shipping import Shipping
from pipeline.errors import SinkUnavailable
from pipeline.gateway_settings import EventSettings
class Away:
    def deliver(self, raws): raise SinkUnavailable("away")
    def close(self): pass
shipping = Shipping(EventSettings(spool=Path(sys.argv[1])), Away())
for number in range(1_000_000):
    shipping.put(b"%d" % number)
    os.write(1, b"%d\\n" % number)
"""


def test_after_a_kill_every_event_is_there_or_counted(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdout is not None
    heard = b""
    while heard.count(b"\n") < 2_000:
        heard += process.stdout.read(4_096)
    process.kill()
    heard += process.stdout.read()
    process.wait()
    told = heard.count(b"\n")
    courier = Keeping()
    shipping = Shipping(EventSettings(spool=tmp_path), courier)
    until(lambda: shipping.waiting == 0)
    arrived = len(courier.got)
    killed = account(shipping.spool).get(Loss.KILLED, 0)
    assert courier.got == [b"%d" % number for number in range(arrived)]
    assert told <= arrived + killed <= told + 1
    shipping.stop(1.0)


def test_records_reach_kafka_through_an_outage(tmp_path: Path, own_broker: Broker) -> None:
    kafka = settings_for(own_broker.bootstrap_servers, unique_prefix())
    create_topics(kafka)
    settings = EventSettings(spool=tmp_path)
    shipping = Shipping(settings, events_courier(kafka))
    raws = [msgspec.json.encode({"event.id": f"e{n}"}) for n in range(300)]
    for raw in raws[:100]:
        shipping.put(raw)
    rating = FeedbackShipping(FeedbackSettings(), settings, feedback_courier(kafka))
    rated = [feedback_raw("before"), feedback_raw("away")]
    assert asyncio.run(rating.keep(rated[:1]))
    until(lambda: shipping.waiting == rating.waiting == 0, 30)
    own_broker.kill()
    assert asyncio.run(rating.keep(rated[1:]))
    for raw in raws[100:]:
        shipping.put(raw)
    until(lambda: shipping.spool.ledger[Slot.SPOOLED] == 300)
    own_broker.restart()
    until(lambda: shipping.waiting == 0, 60)
    until(lambda: rating.waiting == 0, 60)
    for each in (shipping, rating):
        each.stop(1.0)
    assert {record.value for record in consume(kafka, kafka.events_topic)} == set(raws)
    found = {record.key: record.value for record in consume(kafka, kafka.feedback_topic)}
    assert found == {b"before": rated[0], b"away": rated[1]}


def test_a_disk_that_hangs_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events queue up to a cap; what is beyond it is counted, and no `put` waits."""
    monkeypatch.setattr("gateway.shipping.QUEUE_BYTES_MAX", 10_000)
    hanging = threading.Event()
    courier = Keeping()
    shipping = Shipping(EventSettings(spool=tmp_path), courier)
    append = shipping.spool.append

    def hang(raws: Sequence[bytes]) -> None:
        hanging.wait(30)
        append(raws)

    monkeypatch.setattr(shipping.spool, "append", hang)
    for _ in range(100):
        shipping.put(b"x" * 1_000)
    assert account(shipping.spool) == {Loss.OVERRUN: 90}
    hanging.set()
    until(lambda: shipping.waiting == 0)
    assert len(courier.got) == 10
    shipping.stop(1.0)
