"""Feedback finds its request, early or late; is stored once; and a rise of bad ratings is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from pipeline.config import (
    ClickHouseSettings,
    Config,
    EncoderSettings,
    EvaluationSettings,
    FeedbackSettings,
)
from pipeline.core.chunk import Chunk, ChunkCounts, DeadLetter
from pipeline.core.dedup import SeenIds
from pipeline.core.feedback import (
    DEFAULT_RULE,
    FeedbackConfig,
    Joined,
    Rule,
    Subject,
    Subjects,
    admit_feedback,
    judge,
    pack_feedback,
)
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import StepConfig, admit, derive_effects
from pipeline.core.users import UserKey, hash_user
from pipeline.errors import SinkUnavailable
from pipeline.feedback import BEHIND_S, FeedbackRunner, PartitionFeedback, Patience
from pipeline.local import LocalPipeline
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.feedback import FeedbackStore
from pipeline.sinks.requests import RequestStore
from schemas.alarm import Alarm, Transition
from schemas.codec import CodecLimits
from schemas.feedback import Feedback, name_value
from schemas.incident import Incident, Severity
from schemas.monitor import DIMENSIONS, Dimension
from schemas.rejection import Reason
from schemas.signal import Family, Signal, SignalPacket, Source
from tests.support.events import NOW_MS, PRICES, make_chunk, make_raw
from tests.support.feedback import feedback_chunk, feedback_raw

MODEL, ROUTE = (Dimension.REQUEST_MODEL,), (Dimension.ROUTE,)
CONFIG = FeedbackConfig((MODEL, ROUTE), user_key=UserKey("k1", b"a key of sixteen and more"))
WAIT_S, POLL_S = 10.0, 1.0
WEEK_MS = 7 * 86_400_000


# --- Judging and counting ----------------------------------------------------------------------


def given_feedback(**fields: Any) -> Feedback:
    about = {"feedback_id": "f", "feedback_time": NOW_MS / 1000, "event_id": "e"}
    return Feedback(**{**about, "name": "thumbs", **fields})


LOW = Rule(below=3.0)
HIGH = Rule(above=0.5)
ONLY_BAD = Rule(negative_labels=frozenset({"irrelevant"}))
ONLY_GOOD = Rule(positive_labels=frozenset({"on_topic"}))


@pytest.mark.parametrize(
    ("rule", "label", "score", "negative"),
    [
        (DEFAULT_RULE, "thumbs_down", None, True),
        (DEFAULT_RULE, "Thumbs-Down", None, True),
        (DEFAULT_RULE, " thumbs up ", None, False),
        (DEFAULT_RULE, None, -1.0, True),
        (DEFAULT_RULE, None, 0.0, True),
        (DEFAULT_RULE, None, 0.5, False),
        (DEFAULT_RULE, "pass", 0.1, False),
        (DEFAULT_RULE, "so-so", 0.1, True),
        (DEFAULT_RULE, "so-so", None, None),
        (LOW, None, 2.0, True),
        (LOW, None, 3.0, False),
        (LOW, "thumbs_down", None, None),
        (HIGH, None, 0.9, True),
        (HIGH, None, 0.1, False),
        (ONLY_BAD, "irrelevant", None, True),
        (ONLY_BAD, "relevant", None, False),
        (ONLY_BAD, None, 0.0, None),
        (ONLY_GOOD, "on topic", None, False),
        (ONLY_GOOD, "off topic", None, True),
    ],
)
def test_what_is_negative(
    rule: Rule, label: str | None, score: float | None, negative: bool | None
) -> None:
    config = structs.replace(CONFIG, rules={"thumbs": rule})
    assert judge(given_feedback(label=label, score=score), config) is negative


def make_subject(event_id: str = "e-1", **values: str) -> Subject:
    return Subject(event_id, NOW_MS, tuple(values.get(d.value, "") for d in DIMENSIONS))


_PIECES = st.lists(
    st.tuples(
        st.sampled_from(["thumbs", "a/b"]),
        st.sampled_from(["m1", "m2", ""]),
        st.sampled_from([0.0, 1.0, None]),
        st.booleans(),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(_PIECES)
def test_what_was_joined_and_judged_is_counted_and_nothing_else(
    pieces: list[tuple[str, str, float | None, bool]],
) -> None:
    values: list[bytes | None] = [
        feedback_raw(f"f-{i}", name=name, score=score, label=None if score is not None else "?")
        for i, (name, _, score, _) in enumerate(pieces)
    ]
    admission = admit_feedback(feedback_chunk(values), CONFIG, SeenIds(100))
    subjects = [make_subject(request_model=m) if found else None for _, m, _, found in pieces]
    packets = pack_feedback(Joined(admission, subjects), CONFIG, MonitorRegistry(10))
    expected: Counter[tuple[str, bool]] = Counter()
    for name, model, score, found in pieces:
        if found and model and score is not None:
            expected[name_value(name, model), True] += score < 0.5
            expected[name_value(name, model), False] += 1
    counted: Counter[tuple[str, bool]] = Counter()
    for packet in packets.get(0, ()):
        for row in packet.counts:
            counted[row.values[0], True] += row.columns["negative_feedbacks"]
            counted[row.values[0], False] += row.columns["feedbacks"]
            assert row.requests == row.columns["feedbacks"]
    assert counted == expected


# --- Joining and storing -----------------------------------------------------------------------


class Here(Executor):
    """Runs what it is given at once, in the thread that asks."""

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Topics:
    """What is published."""

    def __init__(self) -> None:
        self.packets: list[SignalPacket] = []
        self.letters: list[DeadLetter] = []
        self.away = 0

    async def publish_signals(self, partition: int, packets: Sequence[SignalPacket]) -> None:
        if self.away:
            self.away -= 1
            raise SinkUnavailable("no broker")
        self.packets += packets

    async def publish_deadletters(self, source: Source, deadletters: Sequence[DeadLetter]) -> None:
        self.letters += deadletters

    def count(self) -> dict[str, tuple[int, int]]:
        """Model → negative, all; a range that comes again counts once, as its readers have it."""
        counted: dict[str, tuple[int, int]] = {}
        for source, part, packet in {(p.source, p.part): (p.source, p.part, p)
                                     for p in reversed(self.packets)}.values():  # fmt: skip
            assert source.topic == "feedback"
            assert part >= 0
            for row in packet.counts:
                if packet.groupings[row.grouping] == "request_model":
                    k, n = counted.get(row.values[0], (0, 0))
                    columns = row.columns
                    counted[row.values[0]] = (
                        k + columns["negative_feedbacks"],
                        n + columns["feedbacks"],
                    )
        return counted


class World:
    """A store, topics, and a clock that goes when somebody sleeps."""

    def __init__(self, store: Store) -> None:
        self.store, self.topics = store, Topics()
        self.requests, self.feedback = RequestStore(store), FeedbackStore(store)
        self.now_s = 0.0
        self.held_since_ms: int | None = None
        self.due: list[tuple[float, Chunk]] = []
        self.counts = ChunkCounts()

    def store_requests(self, chunk: Chunk) -> None:
        config = StepConfig((MODEL,), CodecLimits())
        admission = admit(chunk, config.limits, SeenIds(1_000))
        effects = derive_effects(admission, config, Pricer(PRICES), MonitorRegistry(100))
        assert self.requests.find_unstorable(effects) == {}

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for each in [each for each in self.due if each[0] <= self.now_s]:
            self.due.remove(each)
            self.store_requests(each[1])

    def note(self, _: Source, counts: ChunkCounts) -> None:
        self.counts = self.counts.plus(counts)

    def open_partition(self, config: FeedbackConfig = CONFIG) -> PartitionFeedback:
        """As a worker would that has just come up."""
        patience = Patience(
            WAIT_S, POLL_S, lambda: self.now_s, self.sleep, lambda: self.held_since_ms
        )
        registry = MonitorRegistry(100, self.feedback.read_monitors(config.groupings, 100))
        return FeedbackRunner(
            config, self.feedback, registry, self.topics, Here(), Here(), 1_000, WEEK_MS, patience,
            self.note,
        ).open_partition("feedback", 0)  # fmt: skip

    def rows(self, columns: str, table: str = "feedback FINAL") -> list[tuple[Any, ...]]:
        return self.store.rows(f"SELECT {columns} FROM {table} ORDER BY feedback_id")


@pytest.fixture
def world(embedded_path: Path, database: str) -> Iterator[World]:
    store = Store(
        ClickHouseSettings(path=embedded_path, database=database, requests_ttl_days=10_000)
    )
    try:
        store.migrate()
        yield World(store)
    finally:
        store.close()


async def see_through(partition: PartitionFeedback, chunk: Chunk) -> None:
    await partition.store(await partition.prepare(chunk))


def requests_chunk(*ids: str, first: int = 0, **fields: Any) -> Chunk:
    raws = [make_raw(i, **{"route": "faq", "response_id": f"r-{i}", **fields}) for i in ids]
    return make_chunk(raws, first)


async def test_feedback_finds_its_request_by_either_id(world: World) -> None:
    world.store_requests(requests_chunk("e-1", "e-2", tenant="acme", guardrail="pii"))
    values: list[bytes | None] = [
        feedback_raw("f-1", "e-1", user="ada", source="user", score=0),
        feedback_raw("f-2", None, response_id="r-e-2", label="thumbs_up", score=None),
    ]
    await see_through(world.open_partition(), feedback_chunk(values))
    assert world.now_s == 0
    columns = "event_id, request_model, route, tenant, guardrail, negative, source, label"
    assert world.rows(columns) == [
        ("e-1", "gpt-4o", "faq", "acme", "pii", True, "user", ""),
        ("e-2", "gpt-4o", "faq", "acme", "pii", False, "user", "thumbs_up"),
    ]
    key = CONFIG.user_key
    assert key is not None
    assert world.rows("user_hash") == [(hash_user("ada", key),), ("",)]
    assert world.topics.count() == {"feedback/thumbs/gpt-4o": (1, 2)}
    assert world.counts == ChunkCounts(2, 2, 0, 0)


async def test_feedback_that_is_early_waits_for_its_request(world: World) -> None:
    world.due.append((3.5, requests_chunk("e-1")))
    await see_through(world.open_partition(), feedback_chunk([feedback_raw("f-1", "e-1")]))
    assert 3.5 <= world.now_s < WAIT_S
    assert world.rows("event_id") == [("e-1",)]
    assert world.topics.count() == {"feedback/thumbs/gpt-4o": (0, 1)}


async def test_what_finds_no_request_in_time_is_stored_and_joined_when_it_is_asked_for(
    world: World,
) -> None:
    """The analyst sees it joined; it was counted in no monitor, and is never counted later."""
    partition = world.open_partition()
    values: list[bytes | None] = [
        feedback_raw("f-1", "e-late", score=0),
        feedback_raw("f-2", None, response_id="r-e-late"),
        feedback_raw("f-3", "never"),
    ]
    await see_through(partition, feedback_chunk(values))
    assert WAIT_S <= world.now_s < WAIT_S + 2 * POLL_S
    assert world.rows("event_id, request_time") == [("", None)] * 3
    assert world.topics.packets == []
    view = ("feedback_id, event_id, request_model, negative", "feedback_by_request")
    assert world.rows(*view)[0] == ("f-1", "", "", True)
    world.store_requests(requests_chunk("e-late"))
    # Two of one source and user about one request: the last word counts, and both are as old.
    found = {row[1:3] for row in world.rows(*view)}
    assert found == {("e-late", "gpt-4o"), ("", "")}
    assert world.topics.packets == []


async def test_an_event_of_long_ago_that_comes_late_is_found_at_last(world: World) -> None:
    world.due.append((3.5, requests_chunk("e-1", time_ms=NOW_MS - WEEK_MS // 2)))
    await see_through(world.open_partition(), feedback_chunk([feedback_raw("f-1", "e-1")]))
    assert WAIT_S <= world.now_s < WAIT_S + 2 * POLL_S
    assert world.rows("event_id") == [("e-1",)]


async def test_while_this_worker_is_behind_feedback_waits_longer(world: World) -> None:
    world.held_since_ms = NOW_MS - 60_000
    world.due.append((5 * WAIT_S, requests_chunk("e-1")))
    await see_through(world.open_partition(), feedback_chunk([feedback_raw("f-1", "e-1")]))
    assert world.rows("event_id") == [("e-1",)]
    await see_through(world.open_partition(), feedback_chunk([feedback_raw("f-2", "never")], 1))
    assert world.now_s < 5 * WAIT_S + BEHIND_S + 3 * POLL_S


async def test_newer_events_that_are_held_make_no_feedback_wait(world: World) -> None:
    world.held_since_ms = NOW_MS + 60_000
    await see_through(world.open_partition(), feedback_chunk([feedback_raw("f-2", "never")]))
    assert world.now_s < WAIT_S + 2 * POLL_S


async def test_a_request_of_long_ago_is_found_at_once(world: World) -> None:
    world.store_requests(requests_chunk("old", time_ms=NOW_MS - WEEK_MS + 60_000))
    world.store_requests(requests_chunk("older", first=1, time_ms=NOW_MS - WEEK_MS - 60_000))
    values: list[bytes | None] = [feedback_raw("f-1", "old"), feedback_raw("f-2", "older")]
    partition = world.open_partition()
    await see_through(partition, feedback_chunk(values[:1]))
    assert world.now_s == 0
    await see_through(partition, feedback_chunk(values[1:], 1))
    assert world.rows("event_id") == [("old",), ("",)]


async def test_nobody_rates_the_requests_of_another_tenant(world: World) -> None:
    world.store_requests(requests_chunk("e-1", tenant="acme"))
    values: list[bytes | None] = [
        feedback_raw("f-1", "e-1", tenant="globex", score=0),
        feedback_raw("f-2", "e-1", tenant="acme", score=0),
    ]
    await see_through(world.open_partition(), feedback_chunk(values))
    assert world.rows("event_id") == [("",), ("e-1",)]
    assert world.topics.count() == {"feedback/thumbs/gpt-4o": (1, 1)}
    assert world.rows("feedback_id, tenant", "feedback_by_request") == [
        ("f-1", ""), ("f-2", "acme"),
    ]  # fmt: skip


async def test_a_repeat_counts_once_also_after_a_restart(world: World) -> None:
    world.store_requests(requests_chunk("e-1"))
    partition = world.open_partition()
    await see_through(partition, feedback_chunk([feedback_raw("f-1"), feedback_raw("f-1")]))
    await see_through(partition, feedback_chunk([feedback_raw("f-1")], 2))
    again = world.open_partition()
    await see_through(again, feedback_chunk([feedback_raw("f-1"), feedback_raw("f-2")], 3))
    assert world.rows("feedback_id", "feedback") == [("f-1",), ("f-2",)]
    assert world.topics.count() == {"feedback/thumbs/gpt-4o": (0, 2)}
    assert world.counts == ChunkCounts(5, 2, 0, 3)


async def test_a_replay_counts_what_was_counted_whatever_has_been_stored_since(
    world: World,
) -> None:
    """A worker stores feedback without its request, and dies before it has published."""
    world.store_requests(requests_chunk("e-1"))
    chunk = feedback_chunk([feedback_raw("f-1", "e-1"), feedback_raw("f-2", "e-2")])
    world.topics.away = 1
    first = world.open_partition()
    prepared = await first.prepare(chunk)
    with pytest.raises(SinkUnavailable):
        await first.store(prepared)
    world.store_requests(requests_chunk("e-2", first=1))
    world.now_s = 0.0
    await see_through(world.open_partition(), chunk)
    assert world.now_s == 0
    assert world.rows("event_id", "feedback") == [("e-1",), ("",)]
    assert world.topics.count() == {"feedback/thumbs/gpt-4o": (0, 1)}


async def test_bad_records_are_dead_letters_with_true_reasons(world: World) -> None:
    world.store_requests(requests_chunk("e-1"))
    values: list[bytes | None] = [
        b"not json", feedback_raw("f-1"), feedback_raw(about=None), None,
        feedback_raw(name="x" * 65),
    ]  # fmt: skip
    await see_through(world.open_partition(), feedback_chunk(values))
    reasons = [Reason.INVALID_JSON, Reason.MISSING_FIELD, Reason.TOMBSTONE, Reason.INVALID_FIELD]
    assert [letter.rejected.reason for letter in world.topics.letters] == reasons
    stored = world.store.rows("SELECT topic, offset, reason FROM deadletters ORDER BY offset")
    assert stored == [
        ("feedback", at, reason.value) for at, reason in zip([0, 2, 3, 4], reasons, strict=True)
    ]
    assert world.counts == ChunkCounts(5, 1, 4, 0)


async def test_the_last_word_of_each_is_what_an_analyst_sees(world: World) -> None:
    world.store_requests(requests_chunk("e-1"))
    values: list[bytes | None] = [
        feedback_raw("f-1", score=0, user="ada"),
        feedback_raw("f-2", score=1, user="ada", time_ms=NOW_MS + 5_000),
        feedback_raw("f-3", score=0, user="bob"),
        feedback_raw("f-4", score=0.2, source="evaluator", user="ada"),
        feedback_raw("f-5", score=0.2, name="relevance", user="ada"),
    ]
    await see_through(world.open_partition(), feedback_chunk(values))
    seen = world.rows("feedback_id, negative", "feedback_by_request")
    assert seen == [("f-2", False), ("f-3", True), ("f-4", True), ("f-5", True)]


@pytest.mark.parametrize("kept", [False, True])
async def test_explanations_are_kept_only_where_that_is_asked_for_and_redacted(
    world: World, kept: bool
) -> None:
    config = structs.replace(CONFIG, store_explanations=kept)
    raw = feedback_raw(explanation="Wrong. Write to ada@example.com", label="ada@example.com")
    await see_through(world.open_partition(config), feedback_chunk([raw]))
    ((explanation, label),) = world.rows("explanation, label")
    assert explanation == ("Wrong. Write to [email]" if kept else "")
    assert label == "[email]"


async def test_the_monitors_that_are_watched_are_read_back(world: World) -> None:
    world.store_requests(requests_chunk("e-1", "e-2", request_model="m/1"))
    values: list[bytes | None] = [feedback_raw("f-1", "e-1", name="a/b"), feedback_raw("f-2")]
    await see_through(world.open_partition(), feedback_chunk(values))
    read = world.feedback.read_monitors(CONFIG.groupings, 100)
    counted = {
        (packet.groupings[row.grouping], row.values)
        for packet in world.topics.packets
        for row in packet.counts
    }
    assert {(m.grouping[0].value, m.values) for m in read} == counted
    assert len(read) == 4
    assert len(world.feedback.read_monitors(CONFIG.groupings, 1)) == 2


# --- Detection ---------------------------------------------------------------------------------

START_MS, STEP_MS = NOW_MS, 500
BEFORE, AFTER = 4_000, 2_400
MODELS = ("gpt-4o", "claude-sonnet-4")


def rate_of(i: int) -> float:
    return 0.09 if i >= BEFORE and MODELS[i % 2] == "gpt-4o" else 0.02


def rate_answers(local: LocalPipeline, seed: int = 1) -> list[Alarm | Incident]:
    """Every answer is rated five seconds later; from `BEFORE` on gpt-4o is liked less."""
    luck = np.random.default_rng(seed).random(BEFORE + AFTER)
    news: list[Alarm | Incident] = []
    for start in range(0, BEFORE + AFTER, 200):
        span = range(start, start + 200)
        now_ms = START_MS + span[-1] * STEP_MS + 5_000
        local.feed(
            [
                make_raw(
                    f"e-{i}",
                    time_ms=START_MS + i * STEP_MS,
                    request_model=MODELS[i % 2],
                    route=("faq", "search", "mail")[i % 3],
                )
                for i in span
            ],
            now_ms,
        )
        rated: list[bytes] = [
            feedback_raw(
                f"f-{i}",
                f"e-{i}",
                score=int(luck[i] >= rate_of(i)),
                time_ms=START_MS + i * STEP_MS + 5_000,
            )
            for i in span
        ]
        news += local.feed_feedback(rated, now_ms)
    return news


def test_a_rise_of_thumbs_down_is_one_incident_that_names_the_model_and_requests(
    embedded_path: Path, database: str
) -> None:
    config = Config(
        clickhouse=ClickHouseSettings(
            path=embedded_path, database=database, requests_ttl_days=10_000
        ),
        encoder=EncoderSettings(kind="none"),
    )
    store = Store(config.clickhouse)
    try:
        store.migrate()
        local = LocalPipeline(config, store, "t")
        news = rate_answers(local)
        raised = [
            each
            for each in news
            if isinstance(each, Alarm) and each.transition is Transition.RAISED
        ]
        assert {alarm.family for alarm in raised} == {Family.FEEDBACK}
        assert raised[0].signal is Signal.NEGATIVE_FEEDBACK
        assert raised[0].monitor["request_model"] == "feedback/thumbs/gpt-4o"
        changed_ms = START_MS + BEFORE * STEP_MS
        since_ms = raised[0].change_time_ms - changed_ms
        assert -200 * STEP_MS < since_ms < 1_000 * STEP_MS
        incidents = {each.incident_id: each for each in news if isinstance(each, Incident)}
        (incident,) = incidents.values()
        assert incident.cause.labels == {"request_model": "gpt-4o"}
        assert incident.severity is Severity.WARNING
        assert incident.summary.startswith("Negative ratings rose from ")
        assert " for request_model=gpt-4o since " in incident.summary
        assert len(incident.example_event_ids) == 5
        bad = {row[0] for row in store.rows("SELECT event_id FROM feedback WHERE negative")}
        assert bad.issuperset(incident.example_event_ids)
        sql = (
            "SELECT request_model, countIf(negative) / count() FROM feedback_by_request"
            " GROUP BY request_model ORDER BY request_model"
        )
        rates = dict(store.rows(sql))
        assert rates["claude-sonnet-4"] < 0.03 < rates["gpt-4o"]
    finally:
        store.close()


def test_settings_of_evaluations_are_checked() -> None:
    with pytest.raises(ValueError, match="nothing would be negative"):
        EvaluationSettings(name="relevance")
    twice = (EvaluationSettings(name="a", negative_below=1.0),) * 2
    with pytest.raises(ValueError, match="twice"):
        FeedbackSettings(evaluations=twice)


def test_the_id_of_the_event_counts_where_both_are_given() -> None:
    subjects = Subjects({"e-1": make_subject("e-1")}, {"r-2": make_subject("e-2")})
    assert subjects.find(given_feedback(event_id="e-1", response_id="r-2")) == make_subject("e-1")
    assert subjects.find(given_feedback(event_id="gone", response_id="r-2")) is None
    assert subjects.find(given_feedback(event_id=None, response_id="r-2")) == make_subject("e-2")
