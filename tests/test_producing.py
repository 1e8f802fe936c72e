"""`kizashi produce`: reading lines, keeping time, and what the broker holds at the end."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import KafkaSettings
from pipeline.errors import ConfigError, PermanentError, SinkUnavailable
from pipeline.inputs import LINE_BYTES_MAX, STDIN, InputError, read_lines, size_known_bytes
from pipeline.producing import Pacer, ProduceReport, _Flight, produce, produce_file, read_head
from pipeline.topics import MIB, create_topics
from tests.support.kafka import alter, consume

ODD_LINES = [b'{"a":1}', b"\xff\xfe not UTF-8", b" ", b"nul\x00", b"lone \r here", "é".encode()]


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n\n\r\n"], ids=["lf", "crlf", "blank"])
@pytest.mark.parametrize("last", [b"", b"\n"], ids=["open", "closed"])
def test_lines_come_out_as_they_went_in(tmp_path, pack, ending, last):
    """Nothing is stripped but the line's end; empty lines are no lines; the name says nothing."""
    file = tmp_path / "events.txt"
    file.write_bytes(pack(ending.join(ODD_LINES) + last))
    assert list(read_lines(file)) == ODD_LINES


@given(st.lists(st.binary(min_size=1).filter(lambda b: b"\n" not in b and b[-1:] != b"\r")))
def test_any_bytes_survive(tmp_path_factory, lines):
    file = tmp_path_factory.mktemp("any") / "lines"
    file.write_bytes(gzip.compress(b"\n".join(lines)))
    assert list(read_lines(file)) == lines


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_has_no_lines(tmp_path, content):
    file = tmp_path / "empty"
    file.write_bytes(content)
    assert list(read_lines(file)) == []


def test_several_gzips_in_a_row_are_one_file(tmp_path):
    """As `cat a.gz b.gz` makes them."""
    file = tmp_path / "both"
    file.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert list(read_lines(file)) == [b"one", b"two"]


def test_a_truncated_gzip_gives_what_it_has_and_then_an_error(tmp_path):
    """Whole lines before the cut are given; the cut line is not, and the error says so."""
    lines = [random_bytes(i, 300).hex().encode() for i in range(2_000)]
    packed = gzip.compress(b"\n".join(lines))
    file = tmp_path / "cut.gz"
    file.write_bytes(packed[: len(packed) // 2])
    got = []
    with pytest.raises(InputError, match=r"cut\.gz: the gzip data end too early"):
        got.extend(read_lines(file))
    assert 800 < len(got) < 1_200
    assert got == lines[: len(got)]


def test_damaged_gzip_data_are_an_error(tmp_path):
    packed = bytearray(gzip.compress(b"line\n" * 1_000))
    packed[-6] ^= 0xFF  # in the checksum
    file = tmp_path / "bad.gz"
    file.write_bytes(packed)
    with pytest.raises(InputError, match="damaged"):
        list(read_lines(file))


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent: No such file"):
        list(read_lines(tmp_path / "absent"))
    with pytest.raises(InputError, match="Is a directory"):
        list(read_lines(tmp_path))
    with pytest.raises(InputError, match=r"absent: No such file"):
        size_known_bytes(tmp_path / "absent")
    assert issubclass(InputError, PermanentError)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_line_that_is_too_long_is_cut_and_costs_no_memory(tmp_path, pack):
    """One byte over the limit tells it apart; the lines around it are whole."""
    fits, long = b"y" * LINE_BYTES_MAX, b"x" * (3 * LINE_BYTES_MAX)
    file = tmp_path / "long"
    file.write_bytes(pack(b"\n".join([b"before", long, b"after", fits + b"\r", fits + b"z", long])))
    got = list(read_lines(file))
    cut = LINE_BYTES_MAX + 1
    assert [len(line) for line in got] == [6, cut, 5, LINE_BYTES_MAX, cut, cut]
    assert (got[0], got[2]) == (b"before", b"after")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_standard_input_is_read_from_a_pipe(monkeypatch, pack):
    """A pipe cannot be rewound, and may hand over a byte at a time."""
    read, write = os.pipe()

    def drip() -> None:
        with open(write, "wb", buffering=0) as pipe:  # noqa: PTH123
            for byte in pack(b"one\ntwo\n"):
                pipe.write(bytes([byte]))

    thread = threading.Thread(target=drip)
    with open(read, encoding="utf-8") as stdin:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", stdin)
        thread.start()
        assert list(read_lines(STDIN)) == [b"one", b"two"]
        assert not stdin.closed
    thread.join()


def test_a_line_from_a_pipe_comes_out_before_the_next_goes_in(monkeypatch):
    """`tail -f events | kizashi produce -` must not wait for a full buffer."""
    read, write = os.pipe()
    with open(read, encoding="utf-8") as stdin, open(write, "wb", buffering=0) as pipe:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", stdin)
        lines = read_lines(STDIN)
        pipe.write(b"first\n")
        assert next(lines) == b"first"
        pipe.write(b"second\n")
        assert next(lines) == b"second"


def test_the_size_is_known_for_plain_files_only(tmp_path):
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(b"12345\n")
    packed.write_bytes(gzip.compress(b"12345\n"))
    assert size_known_bytes(plain) == 6
    assert size_known_bytes(packed) is None
    assert size_known_bytes(STDIN) is None


# --- keys and times ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "key", "time_ms"),
    [
        (b'{"event.id":"e-1","event.time":1.5}', b"e-1", 1_500.0),
        (
            b'{"event.time":"2024-01-01T00:00:00.250Z","event.id":"\xc3\xa9"}',
            b"\xc3\xa9",
            1704067200250.0,
        ),
        (b'{"event.time":"2024-01-01T00:00:00","event.id":"naive"}', b"naive", None),
        (b'{"event.time":"soon","event.id":"e"}', b"e", None),
        (b'{"event.time":1e400,"event.id":"e"}', b"e", None),
        (b'{"event.time":' + b"9" * 400 + b',"event.id":"e"}', b"e", None),
        (b'{"event.id":"' + b"x" * 257 + b'"}', None, None),
        (b'{"event.id":""}', None, None),
        (b'{"event.id":7,"event.time":1}', None, None),
        (b'{"event.id":"\xff"}', None, None),
        (b'{"event.id":"\\ud800"}', None, None),
        (b'{"a":' + b"[" * 100_000, None, None),
        (b"[]", None, None),
        (b"\x00", None, None),
    ],
)
def test_a_head_is_what_can_be_read(line, key, time_ms):
    head = read_head(line)
    assert head.key == key
    assert head.time_ms == time_ms


@given(st.binary() | st.text().map(lambda t: json.dumps({"event.id": t}).encode()))
def test_no_line_has_a_head_that_raises(line):
    head = read_head(line)
    assert head.key is None or isinstance(head.key, bytes)
    assert head.time_ms is None or isinstance(head.time_ms, float)


def test_the_pacer_keeps_the_pace_of_the_file():
    """At speed 10, an event 5 s after the first is due half a second after it."""
    pacer = Pacer(10)
    assert pacer.delay_s(1_000_000, now_s=50.0) == 0
    assert pacer.delay_s(1_005_000, now_s=50.0) == pytest.approx(0.5)
    assert pacer.delay_s(1_005_000, now_s=50.5) == 0
    assert pacer.delay_s(1_004_000, now_s=50.5) == 0  # late events do not wait
    assert pacer.delay_s(1_010_000, now_s=50.9) == pytest.approx(0.1)
    assert pacer.delay_s(1_011_000, now_s=99.0) == 0  # behind: catch up, do not sleep


def test_the_pacer_jumps_over_what_no_one_would_wait_for():
    """A stray time, ahead or behind, is passed over, and the pace found again after it."""
    pacer = Pacer(1, longest_step_s=60)
    assert pacer.delay_s(1_000, now_s=0.0) == 0
    assert pacer.delay_s(4e12, now_s=0.0) == 0
    assert pacer.delay_s(2_000, now_s=0.0) == 0
    assert pacer.delay_s(3_000, now_s=0.0) == pytest.approx(1.0)


def test_without_a_speed_nothing_waits():
    pacer = Pacer(None)
    assert [pacer.delay_s(t, now_s=0.0) for t in (0, 1e12, 5)] == [0, 0, 0]


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf")])
def test_an_impossible_speed_is_refused(speed):
    with pytest.raises(ConfigError, match="speed"):
        Pacer(speed)


@given(st.lists(st.floats(0, 1e15), min_size=1), st.floats(0.01, 1e4))
def test_a_wait_is_never_negative_or_endless(times_ms, speed):
    """Whatever the times say, a single wait stays within the steps taken since the last jump."""
    pacer, now_s = Pacer(speed, longest_step_s=10), 0.0
    for time_ms in times_ms:
        delay_s = pacer.delay_s(time_ms, now_s)
        assert 0 <= delay_s <= 10 * len(times_ms)
        now_s += delay_s


# --- what is under way ---------------------------------------------------------------------------


def test_what_is_under_way_is_capped_in_bytes():
    """A line waits for room; a line larger than the whole room goes alone."""
    flight, through = _Flight(bytes_max=10), threading.Event()
    flight.take_off(6)

    def second() -> None:
        flight.take_off(20)
        through.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not through.wait(0.05)
    flight.settle(6, None)
    assert through.wait(5)
    thread.join()
    flight.land(timeout_s=0.01)
    report = flight.report(1.0)
    assert (report.sent, report.failed, report.errors) == (1, 1, {"Unanswered": 1})


def test_a_client_that_answers_no_more_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("pipeline.producing._ANSWER_TIMEOUT_S", 0.01)
    flight = _Flight(bytes_max=10)
    flight.take_off(10)
    with pytest.raises(SinkUnavailable, match="no answer"):
        flight.take_off(1)


# --- the real broker -----------------------------------------------------------------------------


@pytest.mark.kafka
def test_what_was_read_is_what_the_broker_holds(kafka_settings, tmp_path, capsys):
    """Byte for byte, with the event's id as key and without one where there is none."""
    create_topics(kafka_settings)
    events = [f'{{"event.id":"e{i}","event.time":{i}}}'.encode() for i in range(500)]
    file = tmp_path / "events.ndjson.gz"
    file.write_bytes(gzip.compress(b"\n".join(events + ODD_LINES)))

    report = produce_file(kafka_settings, file, show_progress=False)

    total = sum(map(len, events + ODD_LINES))
    assert report == ProduceReport(len(events) + len(ODD_LINES), 0, total, report.seconds, {})
    held = {r.value: r.key for r in consume(kafka_settings, kafka_settings.events_topic)}
    assert held == {e: f"e{i}".encode() for i, e in enumerate(events)} | dict.fromkeys(ODD_LINES)
    assert capsys.readouterr() == ("", "")


@pytest.mark.kafka
def test_a_file_sent_twice_lands_on_the_same_partitions(kafka_settings, tmp_path, capsys):
    """Which is where the pipeline can drop the repeats. The progress bar keeps to stderr."""
    create_topics(kafka_settings)
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"\n".join(b'{"event.id":"%d"}' % i for i in range(50)))
    for _ in range(2):
        assert produce_file(kafka_settings, file).sent == 50
    where: dict[bytes, list[int]] = {}
    for record in consume(kafka_settings, kafka_settings.events_topic):
        where.setdefault(record.key, []).append(record.partition)
    assert len(where) == 50
    assert all(len(p) == 2 and len(set(p)) == 1 for p in where.values())
    assert len({p[0] for p in where.values()}) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "events.ndjson" in shown.err


@pytest.mark.kafka
def test_lines_that_are_too_long_are_counted_and_hold_up_no_other(kafka_settings):
    """The longest line that is sent is taken by the broker even if it does not compress."""
    create_topics(kafka_settings)
    longest = 2 * MIB - 64 * 1024
    noise = random_bytes(7, 3_000_000)
    lines = [b"a", noise[:longest], noise[: longest + 1], b"b", b"x" * (LINE_BYTES_MAX + 1), b"c"]
    advanced: list[int] = []
    report = produce(kafka_settings, lines, advance=advanced.append)
    assert (report.sent, report.failed, report.errors) == (4, 2, {"LineTooLong": 2})
    assert report.bytes == 3 + longest
    assert sum(advanced) == sum(len(line) + 1 for line in lines)
    held = {r.value for r in consume(kafka_settings, kafka_settings.events_topic)}
    assert held == {b"a", b"b", b"c", noise[:longest]}


@pytest.mark.kafka
def test_a_topic_that_narrows_on_the_way_loses_nothing_unsaid(kafka_settings):
    """Batches that are too large by then are split and sent again, in parts."""
    create_topics(kafka_settings)
    lines = [random_bytes(seed, 30_000) for seed in range(12)]

    def narrowing():
        yield lines[0]
        alter(kafka_settings, kafka_settings.events_topic, "max.message.bytes", 100_000)
        yield from lines[1:]

    report = produce(kafka_settings, narrowing())
    assert (report.sent, report.failed) == (12, 0)
    held = [r.value for r in consume(kafka_settings, kafka_settings.events_topic)]
    assert sorted(held) == sorted(lines)


@pytest.mark.kafka
def test_a_topic_may_be_narrower_than_planned(kafka_settings):
    """Then the topic decides how long a line may be, and batches are made to fit."""
    create_topics(kafka_settings)
    alter(kafka_settings, kafka_settings.events_topic, "max.message.bytes", 100_000)
    lines = [random_bytes(seed, 30_000) for seed in range(12)] + [random_bytes(99, 40_000)]
    report = produce(kafka_settings, lines)
    assert (report.sent, report.errors) == (12, {"LineTooLong": 1})


@pytest.mark.kafka
def test_what_was_read_before_an_error_is_delivered(kafka_settings, tmp_path):
    """A truncated gzip is an error at the end, not a loss of its beginning."""
    create_topics(kafka_settings)
    lines = [random_bytes(i, 200).hex().encode() for i in range(200)]
    packed = gzip.compress(b"\n".join(lines))
    file = tmp_path / "cut.gz"
    file.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError):
        produce_file(kafka_settings, file, show_progress=False)
    held = {r.value for r in consume(kafka_settings, kafka_settings.events_topic)}
    assert 50 < len(held) < 150
    assert held == set(lines[: len(held)])


@pytest.mark.kafka
def test_producing_keeps_the_time_of_the_file(kafka_settings):
    """At speed 60 a minute takes a second; a line without a time goes at once."""
    create_topics(kafka_settings)
    clock = [100.0]

    def sleep(delay_s: float) -> None:
        clock[0] += delay_s

    lines = [b'{"event.time":%d}' % t for t in (0, 30, 30, 60, 120)]
    report = produce(
        kafka_settings, [*lines, b"no time"], speed=60, now_s=lambda: clock[0], sleep=sleep
    )
    assert report.sent == 6
    assert report.seconds == pytest.approx(2.0)


@pytest.mark.kafka
def test_a_topic_that_is_not_there_is_a_configuration_error(kafka_settings):
    """Named, with what makes it; and it is not made by producing to it."""
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"{kafka_settings.events_topic}: run kizashi init"):
            produce(kafka_settings, [b"line"])


@pytest.mark.kafka
def test_a_broker_that_dies_on_the_way_loses_nothing(own_broker, tmp_path):
    """The client tries again until the broker is back: every line is there, and once."""
    settings = KafkaSettings(bootstrap_servers=own_broker.bootstrap_servers)
    create_topics(settings)
    lines = [b'{"event.id":"%d"}' % i for i in range(2_000)]

    def interrupted():
        yield from lines[:1_000]
        own_broker.kill()
        yield from lines[1_000:]
        own_broker.restart()

    report = produce(settings, interrupted())
    assert (report.sent, report.failed) == (2_000, 0)
    held = [r.value for r in consume(settings, settings.events_topic)]
    assert sorted(held) == sorted(lines)


def random_bytes(seed: int, size: int) -> bytes:
    """The same bytes every time, which do not compress and hold no line's end."""
    noise = random.Random(seed).randbytes(size)
    return noise.replace(b"\n", b"n").replace(b"\r", b"r")
