"""What a fingerprint's alarm is about: where answers are odd, which features moved, in words."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from pipeline.config import ClickHouseSettings
from pipeline.core.answers import ANSWER_WIDTH, PROMPT_WIDTH
from pipeline.core.chunk import ListColumn
from pipeline.core.fingerprints import DIRECTIONS
from pipeline.core.style import STYLE_FEATURES, Scale
from pipeline.incidents.book import BookConfig, IncidentBook
from pipeline.incidents.explain import Investigation, Moved, Slice
from pipeline.incidents.wording import describe_moved, rate_severity, suggest, summarise
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.incidents import BEFORE_MS, MOVED_FEATURES, IncidentStore
from pipeline.sinks.times import to_datetime
from schemas.alarm import Alarm, Direction, Rate
from schemas.incident import Cause, Severity, decode_incident, encode_incident
from schemas.monitor import OTHER
from schemas.signal import Family, Signal
from tests.support.alarms import CHANGE_MS, make_alarm

MODEL = "gpt-4o"
NAMES = [f.name for f in STYLE_FEATURES]
#: Far into the first direction, and not into any other.
SHIFT = (2.0, *(0.0,) * (DIRECTIONS - 1))
STEP_MS = 1_000
PAST, SINCE = 200, 60


def make_fingerprint_alarm(monitor: dict[str, str] | None = None, **named: Any) -> Alarm:
    known: dict[str, Any] = {
        "family": Family.FINGERPRINT,
        "signal": Signal.FINGERPRINT,
        "time_ms": CHANGE_MS + SINCE * STEP_MS,
        "baseline": Rate(20, 200),
        "current": Rate(40, 60),
        "shift": SHIFT,
    }
    return make_alarm(1, {"request_model": MODEL} if monitor is None else monitor, **known | named)


@pytest.fixture(scope="module")
def migrated(embedded_path: Path) -> Iterator[Store]:
    database = f"t{uuid.uuid4().hex[:12]}"
    # The events are of a fixed day, and must outlive it.
    days = {"requests_ttl_days": 10_000, "samples_ttl_days": 10_000}
    store = Store(ClickHouseSettings(path=embedded_path, database=database, **days))
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def store(migrated: Store) -> Store:
    migrated.empty()
    return migrated


class Answered:
    """Requests with their samples, one a second: `PAST` before the change, `SINCE` after it."""

    def __init__(self, seed: int = 1) -> None:
        self.n = PAST + SINCE
        rng = np.random.default_rng(seed)
        self.time_ms = CHANGE_MS + (np.arange(self.n) - PAST) * STEP_MS
        self.since = self.time_ms >= CHANGE_MS
        self.ids = [f"e{seed}-{i}" for i in range(self.n)]
        self.models = [MODEL] * self.n
        self.routes = [("support", "api")[i % 2] for i in range(self.n)]
        self.fingerprints = rng.standard_normal((self.n, DIRECTIONS)).astype(np.float32)
        self.answers = np.abs(rng.normal(0.5, 0.05, (self.n, ANSWER_WIDTH))).astype(np.float32)

    def put(self, store: Store) -> None:
        when = [to_datetime(int(t)) for t in self.time_ms]
        store.insert_rows(
            "requests",
            [
                {
                    "event_time": when[i],
                    "event_id": self.ids[i],
                    "request_model": self.models[i],
                    "route": self.routes[i],
                    "fingerprint": self.fingerprints[i].tolist(),
                    "record_time": when[i],
                }
                for i in range(self.n)
            ],
        )
        zeros = np.zeros((self.n, PROMPT_WIDTH), np.float32)
        store.insert(
            "answer_samples",
            {
                "event_time": self.time_ms,
                "event_id": self.ids,
                "request_model": self.models,
                "embedding": ["ours-1"] * self.n,
                "prompt": as_lists(zeros),
                "answer": as_lists(self.answers),
                "record_time": self.time_ms,
            },
        )


def as_lists(vectors: Any) -> ListColumn:
    n, width = vectors.shape
    return ListColumn((np.arange(n + 1) * width).astype(np.int32), vectors.ravel())


def investigate(store: Store, alarm: Alarm) -> Investigation:
    return IncidentStore(store).investigate(alarm, alarm.time_ms)


def slice_of(found: Investigation, **labels: str) -> Slice:
    return next(s for s in found.slices if dict(s.labels) == labels)


def column(name: str) -> int:
    return NAMES.index(name)


# --- Where answers are odd -------------------------------------------------------------------


def test_one_in_ten_lay_beyond_before_and_many_more_do_now(store: Store) -> None:
    answered = Answered()
    answered.fingerprints[answered.since, 0] += 2.0
    answered.put(store)
    whole = investigate(store, make_fingerprint_alarm()).whole
    along = answered.fingerprints.astype(np.float64) @ np.array(SHIFT)
    past, now = along[~answered.since], along[answered.since]
    beyond = sorted(past)[round(0.9 * PAST)]
    assert whole.before == Rate(int((past > beyond).sum()), PAST)
    assert whole.after == Rate(int((now > beyond).sum()), SINCE)
    assert 0.05 < whole.before.value <= 0.1
    assert whole.after.value > 0.6


def test_the_slice_that_is_odd_is_the_cause(store: Store) -> None:
    answered = Answered()
    support = np.array([r == "support" for r in answered.routes])
    answered.fingerprints[answered.since & support, 0] += 3.0
    answered.put(store)
    alarm = make_fingerprint_alarm()
    found = investigate(store, alarm)
    assert slice_of(found, route="support").after.value > 0.8
    assert slice_of(found, route="api").after.value < 0.25
    cause = found.explain(alarm).cause
    assert cause.labels == {"route": "support"}
    examples = IncidentStore(store).find_examples(alarm, cause)
    assert len(examples) == 5
    odd = answered.fingerprints[:, 0] > 1.2
    expected = [
        answered.ids[i] for i in range(answered.n) if answered.since[i] and support[i] and odd[i]
    ]
    assert set(examples) <= set(expected)


def test_requests_without_a_fingerprint_are_not_counted(store: Store) -> None:
    answered = Answered()
    answered.put(store)
    store.insert_rows(
        "requests",
        [
            {
                "event_time": to_datetime(CHANGE_MS + offset_ms),
                "event_id": f"{offset_ms}",
                "request_model": MODEL,
                "record_time": to_datetime(CHANGE_MS),
            }
            for offset_ms in (-5, 5)
        ],
    )
    whole = investigate(store, make_fingerprint_alarm()).whole
    assert (whole.before.total, whole.after.total) == (PAST, SINCE)


def test_what_is_odd_is_measured_against_the_monitors_own_past(store: Store) -> None:
    """Another model may always have lain that way."""
    answered = Answered()
    answered.models = [MODEL if i % 4 else "another" for i in range(answered.n)]
    mine = np.array([m == MODEL for m in answered.models])
    answered.fingerprints[~mine, 0] += 5.0
    answered.fingerprints[mine & answered.since, 0] += 2.0
    answered.put(store)
    whole = investigate(store, make_fingerprint_alarm()).whole
    assert whole.before_inside.total == int((mine & ~answered.since).sum())
    assert 0.05 < whole.before_inside.value <= 0.1
    assert whole.after_inside.value > 0.6


def test_without_a_past_nothing_fails(store: Store) -> None:
    alarm = make_fingerprint_alarm()
    empty = investigate(store, alarm)
    assert (empty.whole.before.total, empty.whole.after.total, empty.moved) == (0, 0, ())
    answered = Answered()
    answered.time_ms = answered.time_ms + PAST * STEP_MS
    answered.put(store)
    found = investigate(store, structs.replace(alarm, time_ms=int(answered.time_ms[-1])))
    assert (found.whole.before.total, found.whole.after.total) == (0, PAST + SINCE)
    assert found.moved == ()


# --- What moved ------------------------------------------------------------------------------


def test_the_features_that_moved_most_come_first(store: Store) -> None:
    answered = Answered()
    for name, by in (("dash bullets", 2.0), ("capitals", 0.3), ("kana", 0.2), ("bold", 0.1)):
        answered.answers[answered.since, column(name)] += by
    answered.put(store)
    moved = investigate(store, make_fingerprint_alarm()).moved
    assert len(moved) == MOVED_FEATURES == 3
    phrases = [STYLE_FEATURES[column(n)].phrase for n in ("dash bullets", "capitals", "kana")]
    assert [m.phrase for m in moved] == phrases
    assert [m.is_share for m in moved] == [False, True, True]
    at = column("dash bullets")
    means = [float(answered.answers[s, at].mean()) for s in (~answered.since, answered.since)]
    assert (moved[0].before, moved[0].after) == pytest.approx([Scale.LOG.undo(m) for m in means])
    at = column("capitals")
    means = [float(answered.answers[s, at].mean()) for s in (~answered.since, answered.since)]
    assert (moved[1].before, moved[1].after) == pytest.approx([m**2 for m in means])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_where_nothing_moved_nothing_is_named(store: Store, seed: int) -> None:
    Answered(seed).put(store)
    assert investigate(store, make_fingerprint_alarm()).moved == ()


def test_what_never_varied_has_moved_for_certain(store: Store) -> None:
    """No answer opened with "Sure", and now every answer does."""
    answered = Answered()
    answered.answers[:, column("opens with assent")] = answered.since
    answered.put(store)
    (moved,) = investigate(store, make_fingerprint_alarm()).moved
    assert moved.phrase == "answers that open with “Sure” or the like"
    assert (moved.before, moved.after) == (0, 1)


def test_what_hardly_varies_and_hardly_moved_is_not_named(store: Store) -> None:
    answered = Answered()
    answered.answers[:, column("emoji")] = np.where(answered.since, 0.002, 0.001)
    answered.put(store)
    assert investigate(store, make_fingerprint_alarm()).moved == ()


def test_only_the_monitors_own_answers_of_the_last_hour_are_compared(store: Store) -> None:
    quiet, other, older = Answered(1), Answered(2), Answered(3)
    other.routes = ["search"] * other.n
    other.answers[other.since, column("bold")] += 2.0
    older.time_ms = older.time_ms - BEFORE_MS - 2 * PAST * STEP_MS
    older.answers[:, column("kana")] += 2.0
    for each in (quiet, other, older):
        each.put(store)
    alarm = make_fingerprint_alarm({"request_model": MODEL, "route": "support"})
    assert investigate(store, alarm).moved == ()
    (moved,) = investigate(store, make_fingerprint_alarm()).moved
    assert moved.phrase == "bold marks per answer"


def test_a_monitor_of_all_others_is_looked_at_over_all(store: Store) -> None:
    answered = Answered()
    answered.answers[answered.since, column("bold")] += 2.0
    answered.put(store)
    (moved,) = investigate(store, make_fingerprint_alarm({"route": OTHER})).moved
    assert moved.phrase == "bold marks per answer"


def test_other_families_are_not_looked_into(store: Store) -> None:
    answered = Answered()
    answered.answers[answered.since, column("bold")] += 2.0
    answered.put(store)
    alarm = make_alarm(1, {"request_model": MODEL}, time_ms=CHANGE_MS + SINCE * STEP_MS)
    assert investigate(store, alarm).moved == ()


# --- In words --------------------------------------------------------------------------------


def test_nothing_that_moved_is_no_sentence() -> None:
    assert describe_moved(()) == ""
    assert describe_moved([Moved("share of curly quotes", True, 0.0001, 0.0004)]) == ""


def test_a_sentence_names_what_moved() -> None:
    moved = (
        Moved("characters per answer", False, 1_204.4, 602.2),
        Moved("bullets with a dash per answer", False, 0.04, 3.12),
        Moved("share of capitals", True, 0.0312, 0.08),
    )
    assert describe_moved(moved) == (
        "What moved most: characters per answer from 1,204 to 602 (-50%);"
        " bullets with a dash per answer from 0.0 to 3.1;"
        " share of capitals from 3.1% to 8.0%."
    )


def test_a_multiple_of_nothing_is_not_given() -> None:
    assert "(" not in describe_moved([Moved("headings per answer", False, 0.0, 2.0)])
    assert "(+100%)" in describe_moved([Moved("headings per answer", False, 1.0, 2.0)])


VERSION = {"prompt_name": "a", "prompt_version": "2"}
CAUSE = Cause({"request_model": MODEL}, 1.0, Rate(20, 200), Rate(40, 60))


def test_a_page_says_what_moved_behind_where() -> None:
    said = summarise(make_fingerprint_alarm(), CAUSE, "What moved most: length.")
    assert said.startswith("Answers unlike before rose from 10% to 67% for request_model=gpt-4o")
    assert "before 20 of 200. What moved most: length. By chance" in said
    assert summarise(make_fingerprint_alarm(), CAUSE) == said.replace(
        " What moved most: length.", ""
    )


@pytest.mark.parametrize(
    ("labels", "before", "suggestion"),
    [
        ({}, CAUSE.before, "Ask whether the model behind this name was changed"),
        ({"request_model": MODEL}, CAUSE.before, "pin its previous snapshot"),
        ({"route": "support"}, CAUSE.before, "fit the reference anew"),
        (VERSION, CAUSE.before, "pin its previous snapshot"),
        (VERSION, Rate(0, 3), "Roll the prompt template back"),
    ],
    ids=str,
)
def test_what_to_try_first(labels: dict[str, str], before: Rate, suggestion: str) -> None:
    cause = structs.replace(CAUSE, labels=labels, before=before)
    assert suggestion in suggest(make_fingerprint_alarm(), cause)


@pytest.mark.parametrize(
    ("after", "severity"), [(Rate(20, 60), Severity.WARNING), (Rate(40, 60), Severity.ERROR)]
)
def test_how_many_answers_are_odd_says_how_loud_it_is(after: Rate, severity: Severity) -> None:
    alarm = make_fingerprint_alarm(current=after)
    assert alarm.direction is Direction.RISE
    assert rate_severity(alarm, structs.replace(CAUSE, after=after)) is severity


def test_the_incident_keeps_what_moved(store: Store) -> None:
    answered = Answered()
    answered.fingerprints[answered.since, 0] += 2.0
    answered.answers[answered.since, column("bold")] += 2.0
    answered.put(store)
    incidents = IncidentStore(store)
    book = IncidentBook(BookConfig())
    alarm = make_fingerprint_alarm()
    ((opened, _),) = book.handle(alarm, incidents.investigate, incidents.find_examples)
    assert opened.moved.startswith("What moved most: bold marks per answer from 0.")
    assert opened.moved in opened.summary
    assert decode_incident(encode_incident(opened)) == opened
    # Another monitor of the same cause adds its alarm, and takes nothing of what was said away.
    again = make_alarm(
        2,
        {"route": "support"},
        **{f: getattr(alarm, f) for f in ("family", "signal", "shift")},
        time_ms=alarm.time_ms,
        baseline=Rate(10, 100),
        current=Rate(20, 30),
    )
    ((merged, _),) = book.handle(again, incidents.investigate, incidents.find_examples)
    assert merged.incident_id == opened.incident_id
    assert len(merged.alarms) == 2
    assert merged.moved == opened.moved
    assert opened.moved in merged.summary
