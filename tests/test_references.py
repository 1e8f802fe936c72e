"""References on a real ClickHouse: when one is fitted, to which answers, and who reads it."""

from __future__ import annotations

import logging
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from detectors.fingerprint import (
    FingerprintReference,
    fit_reference,
    to_bytes,
)
from pipeline.build import Reader
from pipeline.config import ClickHouseSettings, Config, EncoderSettings, ReferenceSettings
from pipeline.core.answers import ANSWER_WIDTH, PROMPT_WIDTH
from pipeline.core.chunk import ListColumn
from pipeline.core.fingerprints import FIT
from pipeline.errors import SinkUnavailable
from pipeline.references import FIRST_RETRY_MS, HOUR_MS, ReferenceKeeper
from pipeline.sinks import clickhouse
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.detections import DetectionStore
from pipeline.sinks.references import ALARM_MS, ReferenceStore, Stamp, StoredReference
from schemas.clickhouse import read_migrations
from schemas.signal import Family, Signal
from tests.support.alarms import clear, make_alarm
from tests.support.clickhouse import ClickHouseServer

#: Samples live for so many days from when they were written.
NOW_MS = int(time.time()) * 1000
FIRST_MS = NOW_MS - HOUR_MS
STEP_MS = 1_000
EMBEDDING = "ours-1"
SETTINGS = ReferenceSettings(learn_answers=200, full_answers=300, refit_hours=24)
MODEL = "gpt-4o"

Floats32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def migrated(embedded_path: Path) -> Iterator[Store]:
    database = f"t{uuid.uuid4().hex[:12]}"
    store = Store(ClickHouseSettings(path=embedded_path, database=database))
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def store(migrated: Store) -> Store:
    """An empty store. To empty one takes a tenth of the time that it takes to make one."""
    migrated.empty()
    return migrated


@pytest.fixture
def references(store: Store) -> ReferenceStore:
    return ReferenceStore(store)


@pytest.fixture
def keeper(references: ReferenceStore) -> ReferenceKeeper:
    return ReferenceKeeper(SETTINGS, references, EMBEDDING)


def draw(seed: int, n: int) -> tuple[Floats32, Floats32]:
    rng = np.random.default_rng(seed)
    prompts = rng.standard_normal((n, PROMPT_WIDTH)).astype(np.float32)
    return prompts, rng.standard_normal((n, ANSWER_WIDTH)).astype(np.float32)


def add_samples(
    store: Store,
    n: int,
    model: str = MODEL,
    *,
    first_ms: int = FIRST_MS,
    embedding: str = EMBEDDING,
    seed: int = 1,
    alike: bool = False,
) -> tuple[Floats32, Floats32]:
    """Store n answers, one every `STEP_MS`; returns their prompts and themselves."""
    prompts, answers = draw(seed, n)
    if alike:
        prompts[:] = prompts[0]
    store.insert(
        "answer_samples",
        {
            "event_time": first_ms + np.arange(n) * STEP_MS,
            "event_id": [f"{model}-{seed}-{i}" for i in range(n)],
            "request_model": [model] * n,
            "embedding": [embedding] * n,
            "prompt": as_lists(prompts),
            "answer": as_lists(answers),
            "record_time": np.full(n, NOW_MS),
        },
    )
    return prompts, answers


def as_lists(vectors: Floats32) -> ListColumn:
    n, width = vectors.shape
    return ListColumn((np.arange(n + 1) * width).astype(np.int32), vectors.ravel())


def fit(seed: int, n: int = 60, **changed: int) -> FingerprintReference:
    return fit_reference(*draw(seed, n), replace(FIT, **changed))


def stored_at(fitted_ms: int, model: str = MODEL, seed: int = 5) -> StoredReference:
    return StoredReference(model, fitted_ms, FIRST_MS, FIRST_MS + 7, fit(seed))


def in_force(references: ReferenceStore) -> list[StoredReference]:
    return references.load(EMBEDDING, references.read_standings(EMBEDDING))


def assert_same(one: FingerprintReference, other: FingerprintReference) -> None:
    assert to_bytes(one) == to_bytes(other)


def raise_alarm(store: Store, number: int, monitor: dict[str, str], **named: Any) -> Any:
    alarm = make_alarm(number, monitor, **named)
    DetectionStore(store).store_alarms([alarm])
    return alarm


def fingerprint_alarm(store: Store, number: int, monitor: dict[str, str], **named: Any) -> Any:
    family = {"family": Family.FINGERPRINT, "signal": Signal.FINGERPRINT}
    times = {"time_ms": NOW_MS, "change_time_ms": NOW_MS - 1_000}
    return raise_alarm(store, number, monitor, **{**family, **times, **named})


# --- The schema ------------------------------------------------------------------------------


def test_a_schema_without_answers_is_brought_up_to_date(
    embedded_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(ClickHouseSettings(path=embedded_path, database=database))
    every = read_migrations()
    older = [m for m in every if m.number < 4]
    monkeypatch.setattr(clickhouse, "read_migrations", lambda: older)
    assert len(store.migrate()) == len(older) == 3
    row = "INSERT INTO requests (event_time, event_id, record_time) SELECT now(), '{}', now()"
    store.rows(row.format("old"))
    monkeypatch.setattr(clickhouse, "read_migrations", lambda: every)
    with pytest.raises(SinkUnavailable, match="kizashi init"):
        store.use_database()
    assert len(store.migrate()) == len(every) - 3
    assert store.rows("SELECT event_id, fingerprint FROM requests") == [("old", [])]
    fresh = Store(ClickHouseSettings(path=embedded_path, database=f"{database}_new"))
    fresh.migrate()
    names = "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = "
    for table in ("requests", "answer_samples", "references"):
        assert store.rows(f"{names}'{table}'") == fresh.rows(f"{names}'{table}'") != []
    assert ReferenceStore(store).latest(EMBEDDING) == Stamp()
    fresh.close()
    store.close()


# --- The store -------------------------------------------------------------------------------


def test_samples_come_back_oldest_first_and_the_latest_of_them(
    store: Store, references: ReferenceStore
) -> None:
    prompts, answers = add_samples(store, 40)
    add_samples(store, 5, "another", seed=2)
    add_samples(store, 5, embedding="theirs", seed=3)
    samples = references.read_samples(EMBEDDING, MODEL, 30)
    assert samples.time_ms.tolist() == [FIRST_MS + i * STEP_MS for i in range(10, 40)]
    assert np.array_equal(samples.prompts, prompts[10:])
    assert np.array_equal(samples.answers, answers[10:])
    assert references.count_samples(EMBEDDING) == {MODEL: 40, "another": 5}


def test_where_nothing_is_stored_nothing_is_found(references: ReferenceStore) -> None:
    samples = references.read_samples(EMBEDDING, MODEL, 30)
    assert samples.time_ms.shape == (0,)
    assert samples.prompts.shape == (0, PROMPT_WIDTH)
    assert samples.answers.shape == (0, ANSWER_WIDTH)
    assert references.count_samples(EMBEDDING) == {}
    assert references.latest(EMBEDDING) == Stamp()
    assert in_force(references) == []
    assert not references.has_open_alarm(NOW_MS)


def test_samples_of_another_shape_are_passed_over(store: Store, references: ReferenceStore) -> None:
    add_samples(store, 3)
    store.rows(
        "INSERT INTO answer_samples SELECT event_time, 'x', request_model, embedding,"
        " [1, 2], answer, record_time FROM answer_samples LIMIT 1"
    )
    assert len(references.read_samples(EMBEDDING, MODEL, 30).time_ms) == 3


def test_answers_from_times_of_alarm_are_left_out(store: Store, references: ReferenceStore) -> None:
    add_samples(store, 100)

    def at(i: int) -> int:
        return FIRST_MS + i * STEP_MS

    one = raise_alarm(store, 1, {"request_model": MODEL}, change_time_ms=at(10), time_ms=at(15))
    DetectionStore(store).store_alarms([clear(one, at(20))])
    # Of no model in particular, and open still.
    raise_alarm(store, 2, {"route": "support"}, change_time_ms=at(90), time_ms=at(95))
    raise_alarm(store, 3, {"request_model": "another"}, change_time_ms=at(40), time_ms=at(45))
    samples = references.read_samples(EMBEDDING, MODEL, 1_000)
    kept = [*range(10), *range(21, 90)]
    assert samples.time_ms.tolist() == [at(i) for i in kept]


def test_an_alarm_that_never_cleared_does_not_count_for_ever(
    store: Store, references: ReferenceStore
) -> None:
    add_samples(store, 20)
    long_ago = FIRST_MS - 8 * 86_400_000
    raise_alarm(store, 1, {}, change_time_ms=long_ago, time_ms=long_ago + 1)
    assert len(references.read_samples(EMBEDDING, MODEL, 100).time_ms) == 20


def test_a_reference_comes_back_as_it_was_saved(references: ReferenceStore) -> None:
    old, new = stored_at(NOW_MS - 5, seed=5), stored_at(NOW_MS, seed=6)
    other = stored_at(NOW_MS - 3, "another", seed=7)
    for some in ([new, other], [old], [new]):
        references.save(EMBEDDING, some)
    references.save("theirs", [stored_at(NOW_MS + 9)])
    loaded = {s.request_model: s for s in in_force(references)}
    assert loaded.keys() == {MODEL, "another"}
    for expected in (new, other):
        found = loaded[expected.request_model]
        assert found[:4] == expected[:4]
        assert_same(found.reference, expected.reference)
    assert references.latest(EMBEDDING) == Stamp(fitted_ms=NOW_MS)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        to_bytes(fit(1))[:-1],
        to_bytes(fit(1, directions=3)),
        to_bytes(fit(1, prompt_directions=3)),
    ],
    ids=["empty", "no MessagePack", "cut off", "other directions", "other prompts"],
)
def test_a_reference_that_cannot_be_used_is_passed_over(
    store: Store, references: ReferenceStore, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an update that measures other features: it must not keep a worker from starting."""
    references.save(EMBEDDING, [stored_at(NOW_MS, "another")])
    row = "INSERT INTO references (request_model, embedding, fitted_at, reference)"
    text = b64encode(raw).decode()
    store.rows(f"{row} SELECT '{MODEL}', '{EMBEDDING}', now64(3), '{text}'")
    assert [s.request_model for s in in_force(references)] == ["another"]
    assert f"the reference of {MODEL} is fitted anew" in caplog.text


def test_an_open_fingerprint_alarm_is_seen(store: Store, references: ReferenceStore) -> None:
    raise_alarm(store, 1, {"request_model": MODEL})
    assert not references.has_open_alarm(NOW_MS)
    for number, monitor in enumerate(({"request_model": MODEL}, {"route": "support"}), 3):
        alarm = fingerprint_alarm(store, number, monitor)
        assert references.has_open_alarm(NOW_MS)
        assert not references.has_open_alarm(NOW_MS + ALARM_MS + 1), "a clear may have been lost"
        DetectionStore(store).store_alarms([clear(alarm, NOW_MS + 1)])
        assert not references.has_open_alarm(NOW_MS)


def test_when_clickhouse_is_away_it_is_said(
    clickhouse_server: ClickHouseServer, database: str
) -> None:
    settings = ClickHouseSettings(
        mode="http", port=clickhouse_server.port, database=database, timeout_s=5.0
    )
    store = Store(settings)
    store.migrate()
    add_samples(store, 200)
    references = ReferenceStore(store)
    keeper = ReferenceKeeper(SETTINGS, references, EMBEDDING)
    assert len(keeper.fit_due(NOW_MS)) == 1
    before = keeper.references
    clickhouse_server.stop()
    calls = (
        keeper.refresh,
        lambda: keeper.fit_due(NOW_MS + 25 * HOUR_MS),
        lambda: references.read_samples(EMBEDDING, MODEL, 1),
        lambda: references.save(EMBEDDING, [stored_at(NOW_MS)]),
    )
    for call in calls:
        with pytest.raises(SinkUnavailable):
            call()
    assert keeper.references is before
    clickhouse_server.start()
    keeper.refresh()
    assert len(keeper.fit_due(NOW_MS + 25 * HOUR_MS)) == 1
    store.close()


# --- The keeper ------------------------------------------------------------------------------


def test_nothing_is_fitted_to_too_few_answers(store: Store, keeper: ReferenceKeeper) -> None:
    add_samples(store, 199)
    assert keeper.fit_due(NOW_MS) == []
    assert keeper.references.by_model == {}
    assert keeper.references.version == 0


def test_the_first_reference_is_fitted_to_what_is_there(
    store: Store, keeper: ReferenceKeeper
) -> None:
    prompts, answers = add_samples(store, 200)
    add_samples(store, 150, "another", seed=2)
    (fitted,) = keeper.fit_due(NOW_MS)
    assert fitted[:4] == (MODEL, NOW_MS, FIRST_MS, FIRST_MS + 199 * STEP_MS)
    assert_same(fitted.reference, fit_reference(prompts, answers, FIT))
    assert keeper.references.embedding == EMBEDDING
    assert keeper.references.version == NOW_MS
    assert keeper.references.by_model.keys() == {MODEL}
    assert keeper.references.known == fitted.reference.known == 100


class NotingStore(ReferenceStore):
    """Notes how many references are saved at a time."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.saved: list[int] = []

    def save(self, embedding: str, references: Sequence[StoredReference]) -> None:
        self.saved.append(len(references))
        super().save(embedding, references)


def test_references_that_are_due_together_are_one_version(store: Store) -> None:
    """Whoever reads the set in between must not take a part of it for the whole."""
    noting = NotingStore(store)
    keeper = ReferenceKeeper(SETTINGS, noting, EMBEDDING)
    add_samples(store, 200)
    add_samples(store, 200, "another", seed=2)
    assert len(keeper.fit_due(NOW_MS)) == 2
    assert noting.saved == [2]
    assert keeper.references.by_model.keys() == {MODEL, "another"}


@pytest.mark.parametrize("later_ms", [0, -5_000], ids=["at the same time", "by a slower clock"])
def test_every_set_has_a_version_of_its_own(
    store: Store, references: ReferenceStore, keeper: ReferenceKeeper, later_ms: int
) -> None:
    """Otherwise those who have the one before would not read it."""
    add_samples(store, 200)
    keeper.fit_due(NOW_MS)
    other = ReferenceKeeper(SETTINGS, references, EMBEDDING)
    other.refresh()
    add_samples(store, 200, "another", seed=2)
    assert len(other.fit_due(NOW_MS + later_ms)) == 1
    keeper.refresh()
    for each in (keeper, other):
        assert each.references.by_model.keys() == {MODEL, "another"}
        assert each.references.version > NOW_MS


def test_a_reference_is_fitted_anew_when_it_is_due_and_not_before(
    store: Store, keeper: ReferenceKeeper
) -> None:
    add_samples(store, 200)
    assert len(keeper.fit_due(NOW_MS)) == 1
    add_samples(store, 150, first_ms=FIRST_MS + 200 * STEP_MS, seed=2)
    due_ms = NOW_MS + 24 * HOUR_MS
    assert keeper.fit_due(due_ms - 1) == []
    assert keeper.references.version == NOW_MS
    (again,) = keeper.fit_due(due_ms)
    # To the latest `full_answers` of them.
    assert again.reference.n == 300
    assert again.first_ms == FIRST_MS + 50 * STEP_MS
    assert keeper.references.version == due_ms
    assert keeper.fit_due(due_ms) == []


def test_nothing_is_fitted_anew_while_a_fingerprint_stands_alarmed(
    store: Store, keeper: ReferenceKeeper
) -> None:
    add_samples(store, 200)
    add_samples(store, 200, "another", seed=2)
    assert len(keeper.fit_due(NOW_MS)) == 2
    alarm = fingerprint_alarm(store, 1, {"request_model": MODEL, "route": "support"})
    due_ms = NOW_MS + 24 * HOUR_MS
    assert keeper.fit_due(due_ms) == [], "a new set would end the alarm, whosever it is"
    DetectionStore(store).store_alarms([clear(alarm, NOW_MS + 1)])
    assert {f.request_model for f in keeper.fit_due(due_ms)} == {MODEL, "another"}


def test_too_few_answers_outside_alarms_are_too_few(store: Store, keeper: ReferenceKeeper) -> None:
    add_samples(store, 250)
    from_ms = FIRST_MS + 190 * STEP_MS
    alarm = raise_alarm(store, 1, {}, change_time_ms=from_ms, time_ms=from_ms + 1)
    assert keeper.fit_due(NOW_MS) == []
    DetectionStore(store).store_alarms([clear(alarm, from_ms + 10 * STEP_MS)])
    assert keeper.fit_due(NOW_MS + FIRST_RETRY_MS - 1) == [], "it costs a read of all its answers"
    (fitted,) = keeper.fit_due(NOW_MS + FIRST_RETRY_MS)
    assert fitted.reference.n == 250 - 11


def test_what_cannot_be_fitted_is_tried_ever_less_often(
    store: Store, keeper: ReferenceKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    add_samples(store, 200, alike=True)
    with caplog.at_level(logging.WARNING):
        for minutes in range(0, 60 * 48, 5):
            keeper.fit_due(NOW_MS + minutes * 60_000)
    # After 10, 20, 40, 80, 160, 320 minutes, and then every 12 hours; not 576 times.
    assert 7 <= caplog.text.count(f"no reference of {MODEL}") <= 11


def test_a_model_that_cannot_be_fitted_is_a_warning(
    store: Store, keeper: ReferenceKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    add_samples(store, 200, alike=True)
    add_samples(store, 200, "another", seed=2)
    with caplog.at_level(logging.WARNING):
        assert [f.request_model for f in keeper.fit_due(NOW_MS)] == ["another"]
    assert f"no reference of {MODEL}" in caplog.text
    assert keeper.references.by_model.keys() == {"another"}


def test_what_one_worker_fits_another_picks_up(
    store: Store, references: ReferenceStore, keeper: ReferenceKeeper
) -> None:
    other = ReferenceKeeper(SETTINGS, references, EMBEDDING)
    stranger = ReferenceKeeper(SETTINGS, references, "theirs")
    other.refresh()
    assert other.references.version == 0
    add_samples(store, 200)
    (fitted,) = keeper.fit_due(NOW_MS)
    for each in (other, stranger):
        each.refresh()
    assert other.references.version == NOW_MS
    assert_same(other.references.by_model[MODEL], fitted.reference)
    # It knows when that was, and does not fit it again.
    assert other.fit_due(NOW_MS + 1) == []
    assert stranger.references.by_model == {}


def test_the_set_is_as_new_as_its_newest_reference(
    references: ReferenceStore, keeper: ReferenceKeeper
) -> None:
    references.save(EMBEDDING, [stored_at(NOW_MS - 9), stored_at(NOW_MS - 4, "another", seed=6)])
    keeper.refresh()
    assert keeper.references.version == NOW_MS - 4
    held = keeper.references
    keeper.refresh()
    assert keeper.references is held
    references.save(EMBEDDING, [stored_at(NOW_MS, seed=8)])
    keeper.refresh()
    assert keeper.references.version == NOW_MS
    assert_same(keeper.references.by_model[MODEL], fit(8))
    assert_same(keeper.references.by_model["another"], fit(6))


# --- The reader ------------------------------------------------------------------------------


def test_the_reader_hands_out_the_references_of_the_moment(
    store: Store, references: ReferenceStore
) -> None:
    encoder = EncoderSettings(kind="carried", model="ours", dimensions=1)
    settings = SETTINGS.model_copy(update={"samples_per_chunk": 7})
    reader = Reader(Config(encoder=encoder, references=settings), store)
    before = reader.reading()
    assert before is not None
    assert (before.embedding.name, before.samples_per_model) == ("ours-1", 7)
    assert before.references.by_model == {}
    references.save(EMBEDDING, [stored_at(NOW_MS)])
    assert reader.keeper is not None
    reader.keeper.refresh()
    after = reader.reading()
    assert after is not None
    assert after.references.by_model.keys() == {MODEL}
    # A reading that was handed out stays as it was: a chunk is read with one set.
    assert before.references.by_model == {}


def test_without_an_encoder_nothing_is_read(store: Store) -> None:
    reader = Reader(Config(encoder=EncoderSettings(kind="none")), store)
    assert reader.keeper is None
    assert reader.reading() is None
