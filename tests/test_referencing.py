"""`kizashi reference`: on a real ClickHouse, over real Kafka, and what a reset does."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from detectors.bank import Bank, BankConfig
from pipeline.config import (
    ClickHouseSettings,
    Config,
    EncoderSettings,
    ReferenceSettings,
    TopicSettings,
)
from pipeline.errors import ConfigError
from pipeline.references import ReferenceKeeper
from pipeline.referencing import (
    Span,
    choose_slices,
    describe,
    find_line,
    fit_now,
    list_lines,
    pin,
    render_description,
    render_effects,
    render_lines,
    render_outcomes,
    render_reset,
    reset,
    unpin,
)
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.detections import DetectionStore
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.references import ReferenceStore
from pipeline.topics import create_topics
from schemas.alarm import Rate
from schemas.control import Effect, Reset, decode_signals
from schemas.monitor import Dimension
from schemas.signal import Family, MonitorCounts, Signal, Source
from tests.support.alarms import make_alarm
from tests.support.kafka import KafkaServer, consume, settings_for
from tests.support.packets import make_counts, make_packet
from tests.support.pagerduty import make_incident
from tests.test_references import (
    EMBEDDING,
    FIRST_MS,
    MODEL,
    NOW_MS,
    STEP_MS,
    add_samples,
    raise_alarm,
)

HOUR_MS = 3_600_000
SETTINGS = ReferenceSettings(learn_answers=200, full_answers=300, refit_hours=24)


@pytest.fixture(scope="module")
def clickhouse(embedded_path: Path) -> ClickHouseSettings:
    return ClickHouseSettings(path=embedded_path, database=f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="module")
def migrated(clickhouse: ClickHouseSettings) -> Iterator[Store]:
    store = Store(clickhouse)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def store(migrated: Store) -> Store:
    migrated.empty()
    return migrated


@pytest.fixture
def desk(store: Store) -> ReferenceStore:
    return ReferenceStore(store)


@pytest.fixture
def config(clickhouse: ClickHouseSettings) -> Config:
    encoder = EncoderSettings(kind="carried", model="ours", dimensions=1)
    return Config(clickhouse=clickhouse, encoder=encoder, references=SETTINGS)


@pytest.fixture
def keeper(desk: ReferenceStore) -> ReferenceKeeper:
    return ReferenceKeeper(SETTINGS, desk, EMBEDDING)


def announce(store: Store, at_ms: int, model: str = MODEL) -> None:
    order = Reset(reset_id="r1", time_ms=at_ms, slices=({Dimension.REQUEST_MODEL: model},))
    DetectionStore(store).store_resets([order])


# --- Fitting now -------------------------------------------------------------------------------


def test_fitting_now_says_what_it_rests_on(
    store: Store, desk: ReferenceStore, config: Config
) -> None:
    add_samples(store, 250)
    add_samples(store, 40, "thin", seed=2)
    fitted, failed = fit_now(config, desk, (), NOW_MS, Span())
    assert fitted.line is not None
    assert (fitted.line.request_model, fitted.line.answers, fitted.line.in_force) == (
        MODEL,
        250,
        True,
    )
    assert fitted.line.version_ms == NOW_MS
    assert (failed.request_model, failed.line) == ("thin", None)
    said = render_outcomes([fitted, failed], as_json=False)
    assert f"{MODEL}: 250 answers, " in said
    assert "thin: no reference: 40 answers, and it takes 200 outside times of alarm" in said
    objects = [json.loads(e) for e in render_outcomes([fitted, failed], as_json=True).splitlines()]
    assert [o["request_model"] for o in objects] == [MODEL, "thin"]


def test_a_period_is_kept_to(store: Store, desk: ReferenceStore, config: Config) -> None:
    add_samples(store, 600)
    span = Span(FIRST_MS + 100 * STEP_MS, FIRST_MS + 319 * STEP_MS)
    (fitted,) = fit_now(config, desk, (MODEL,), NOW_MS, span)
    assert fitted.line is not None
    assert fitted.line.answers == 220
    (failed,) = fit_now(config, desk, (MODEL,), NOW_MS, Span(FIRST_MS + 500 * STEP_MS))
    assert failed.reason.startswith("100 answers")


def test_a_swap_that_is_permanent_is_fitted_to_when_somebody_says_so(
    store: Store, desk: ReferenceStore, config: Config, keeper: ReferenceKeeper
) -> None:
    """It stands alarmed: by itself nothing may take its answers for normal."""
    add_samples(store, 250)
    raise_alarm(store, 1, {"request_model": MODEL}, change_time_ms=FIRST_MS, time_ms=FIRST_MS + 1)
    assert keeper.fit_due(NOW_MS) == []
    (failed,) = fit_now(config, desk, (MODEL,), NOW_MS, Span(FIRST_MS))
    assert failed.reason.startswith("0 answers")
    (fitted,) = fit_now(config, desk, (MODEL,), NOW_MS, Span(FIRST_MS, with_alarms=True))
    assert fitted.line is not None
    assert fitted.line.answers == 250
    keeper.refresh()
    assert keeper.references.by_model.keys() == {MODEL}


def test_without_an_encoder_there_is_nothing_to_fit(desk: ReferenceStore) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.kind"):
        fit_now(Config(encoder=EncoderSettings(kind="none")), desk, (), NOW_MS, Span())


# --- Looking -----------------------------------------------------------------------------------


def test_every_version_is_listed_and_one_is_in_force(
    store: Store, desk: ReferenceStore, config: Config
) -> None:
    add_samples(store, 250)
    for at in range(3):
        fit_now(config, desk, (MODEL,), NOW_MS + at, Span())
    lines = list_lines(desk)
    assert [e.version_ms - NOW_MS for e in lines] == [2, 1, 0]
    assert [e.in_force for e in lines] == [True, False, False]
    table = render_lines(lines, as_json=False).splitlines()
    assert len(table) == 4
    assert "in force" in table[1]
    assert json.loads(render_lines(lines, as_json=True).splitlines()[0])["in_force"] is True
    assert list_lines(desk, "another") == []


def test_a_reference_is_shown_in_figures(
    store: Store, desk: ReferenceStore, config: Config
) -> None:
    add_samples(store, 250)
    fit_now(config, desk, (MODEL,), NOW_MS, Span())
    shown = describe(desk, MODEL, None)
    assert (shown.known, shown.directions, len(shown.features)) == (125, 24, 50)
    # These answers are noise: the prompt explains nothing, and no direction carries more.
    assert shown.explained == pytest.approx(0.0, abs=0.1)
    assert 0.4 < shown.kept < 0.8
    assert "the mean counts for 125 answers" in render_description(shown, as_json=False)
    assert json.loads(render_description(shown, as_json=True))["line"]["answers"] == 250
    store.truncate("answer_samples")
    assert describe(desk, MODEL, None).explained is None, "the answers are gone"
    with pytest.raises(ConfigError, match=f"{MODEL} has not one version 1999"):
        describe(desk, MODEL, "1999")


# --- Pinning -----------------------------------------------------------------------------------


def test_a_pinned_version_stays_until_it_is_unpinned(
    store: Store, desk: ReferenceStore, config: Config, keeper: ReferenceKeeper
) -> None:
    add_samples(store, 250)
    keeper.fit_due(NOW_MS)
    line = pin(desk, MODEL, None, NOW_MS + 1)
    assert (line.version_ms, line.pinned) == (NOW_MS, True)
    keeper.refresh()
    assert keeper.references.version == NOW_MS, "detectors go on: nothing has changed for them"
    assert keeper.fit_due(NOW_MS + 1_000 * HOUR_MS) == []
    (newer,) = fit_now(config, desk, (MODEL,), NOW_MS + 2, Span())
    assert newer.line is not None
    assert not newer.line.in_force
    keeper.refresh()
    assert keeper.references.version == NOW_MS
    (line,) = unpin(desk, MODEL, NOW_MS + 9)
    assert line.version_ms == NOW_MS + 2
    keeper.refresh()
    assert keeper.references.version == NOW_MS + 9, "since then another counts"
    with pytest.raises(ConfigError, match="no version"):
        unpin(desk, MODEL, NOW_MS)


def test_an_earlier_version_can_come_back(
    store: Store, desk: ReferenceStore, config: Config, keeper: ReferenceKeeper
) -> None:
    add_samples(store, 250)
    for at in (0, 60_000):
        fit_now(config, desk, (MODEL,), NOW_MS + at, Span())
    earlier = list_lines(desk)[1]
    # By a clock that is behind.
    pin(desk, MODEL, earlier.version, NOW_MS - HOUR_MS)
    assert find_line(desk, MODEL, None).version == earlier.version
    keeper.refresh()
    assert keeper.references.version > NOW_MS + 60_000


# --- Resetting ---------------------------------------------------------------------------------


def test_after_a_reset_a_model_learns_from_what_comes_after_it(
    store: Store, desk: ReferenceStore, config: Config, keeper: ReferenceKeeper
) -> None:
    add_samples(store, 250)
    add_samples(store, 250, "another", seed=2)
    keeper.fit_due(NOW_MS - HOUR_MS)
    pin(desk, MODEL, None, NOW_MS - HOUR_MS)
    at_ms = FIRST_MS + 240 * STEP_MS
    announce(store, NOW_MS)
    for _ in range(2):
        keeper.refresh()
        assert keeper.references.by_model.keys() == {"another"}
        assert keeper.references.version == NOW_MS
        assert keeper.fit_due(NOW_MS + 1) == []
    assert render_lines(list_lines(desk, MODEL), as_json=False).count("learns anew since") == 1
    assert desk.count_samples(EMBEDDING) == {"another": 250}
    add_samples(store, 210, first_ms=NOW_MS, seed=3)
    (fitted,) = keeper.fit_due(NOW_MS + HOUR_MS)
    assert (fitted.request_model, fitted.reference.n, fitted.first_ms) == (MODEL, 210, NOW_MS)
    assert keeper.references.by_model.keys() == {MODEL, "another"}
    assert at_ms < NOW_MS


def test_slices_are_chosen_by_model_by_values_or_by_incident(store: Store, config: Config) -> None:
    alarms = tuple(
        make_alarm(i, monitor)
        for i, monitor in enumerate(({"route": "support"}, {"tenant": "a"}, {"route": "support"}))
    )
    incident = make_incident("inc-1", alarms=alarms)
    IncidentStore(store).save(incident)
    chosen = choose_slices(config, ("gpt-4o",), "route,tenant", ("x", "a, b"), "inc-1")
    assert chosen == [
        {Dimension.REQUEST_MODEL: "gpt-4o"},
        {Dimension.ROUTE: "x", Dimension.TENANT: "a, b"},
        {Dimension.ROUTE: "support"},
        {Dimension.TENANT: "a"},
    ]
    for models, grouping, values, incident_id, why in (
        ((), None, (), None, "name what changes"),
        ((), "route", (), None, "0 values"),
        ((), "rout", ("x",), None, "rout"),
        ((), None, ("x",), None, "1 values"),
        ((), None, (), "inc-2", "no incident inc-2"),
    ):
        with pytest.raises(ConfigError, match=why):
            choose_slices(config, models, grouping, values, incident_id)


def test_what_planned_changes_did_is_told(store: Store, desk: ReferenceStore) -> None:
    assert desk.list_effects() == []
    order = Reset(
        reset_id="r1",
        time_ms=NOW_MS,
        slices=({Dimension.ROUTE: "support"}, {Dimension.REQUEST_MODEL: MODEL}),
        note="stricter prompt",
    )
    effect = Effect(
        reset_id="r1",
        time_ms=NOW_MS + 60_000,
        grouping="route",
        monitor={"route": "support"},
        family=Family.REFUSAL,
        signal=Signal.REFUSAL,
        before=Rate(20, 2_000),
        after=Rate(45, 300),
    )
    for _ in range(2):
        DetectionStore(store).store_resets([order])
        DetectionStore(store).store_effects([effect])
    (told,) = desk.list_effects()
    assert (told.order_id, told.note, told.monitor) == ("r1", "stricter prompt", effect.monitor)
    said = render_effects([told], as_json=False)
    assert "1.00% of 2000" in said
    assert "15.00% of 300" in said
    assert json.loads(render_effects([told], as_json=True))["after"] == {"count": 45, "total": 300}


@pytest.mark.kafka
def test_a_reset_reaches_every_partition(kafka: KafkaServer, topic_prefix: str) -> None:
    settings = settings_for(
        kafka.bootstrap_servers, topic_prefix, topics=TopicSettings(signals_partitions=3)
    )
    with pytest.raises(ConfigError, match="kizashi init"):
        reset(settings, [{Dimension.ROUTE: "support"}], "", NOW_MS)
    create_topics(settings)
    order = reset(settings, [{Dimension.ROUTE: "support"}], "planned", round(time.time() * 1000))
    found = consume(settings, settings.signals_topic)
    assert sorted(r.partition for r in found) == [0, 1, 2]
    assert all(decode_signals(r.value) == order for r in found)
    assert "route=support learn anew" in render_reset(order, as_json=False)
    assert json.loads(render_reset(order, as_json=True))["note"] == "planned"
    with pytest.raises(ConfigError, match="slices"):
        reset(settings, [], "", NOW_MS)


# --- The bank ----------------------------------------------------------------------------------

ROUTES = ("support", "search")


def feed(bank: Bank, steps: int, first: int, refused: float, seed: int = 1) -> list[str]:
    """Packets of two routes of which one is refused so often; returns what alarms did."""
    rng, news = np.random.default_rng(seed), []
    for at in range(first, first + steps):
        counts: list[MonitorCounts] = [
            make_counts((route,), 50, NOW_MS + at * 10_000, refusals=int(rng.binomial(50, rate)))
            for route, rate in zip(ROUTES, (refused, 0.02), strict=True)
        ]
        found = bank.update(make_packet(Source("e", "e", 0, at, at), 0, ("route",), counts))
        news += [f"{a.monitor['route']} {a.transition}" for a in found.alarms]
        news += [f"{e.monitor['route']} {e.signal}" for e in found.effects]
    return news


def test_a_reset_touches_nobody_else_and_survives_a_crash() -> None:
    order = Reset(reset_id="r", time_ms=NOW_MS, slices=({Dimension.ROUTE: "support"},))
    bank = Bank(BankConfig())
    assert feed(bank, 60, 0, 0.02) == []
    assert feed(bank, 10, 60, 0.4) == ["support raised"]
    before = {e.signal: e for e in bank.open_alarms}
    (cleared,) = bank.reset(order).alarms
    assert cleared.alarm_id == before[Signal.REFUSAL].alarm_id
    assert (cleared.transition, cleared.clear_reason) == ("cleared", "planned")
    assert bank.open_alarms == []
    resumed = Bank.restore(BankConfig(), bank.snapshot())
    for each in (bank, resumed):
        news = feed(each, 60, 70, 0.4)
        assert news == ["support refusal", "support error", "support truncation"]
    assert bank.snapshot() == resumed.snapshot()
    # It is watched again, by what is normal now.
    assert "support raised" in feed(bank, 60, 130, 0.9)
    assert "search raised" in feed_search(bank)


def feed_search(bank: Bank) -> list[str]:
    """The other route has kept what it had learned: one packet in a thousand is enough to see."""
    rng, news = np.random.default_rng(2), []
    for at in range(300, 310):
        counts = [
            make_counts(("search",), 50, NOW_MS + at * 10_000, refusals=rng.binomial(50, 0.5))
        ]
        found = bank.update(make_packet(Source("e", "e", 0, at, at), 0, ("route",), counts))
        news += [f"{a.monitor['route']} {a.transition}" for a in found.alarms]
    return news


@pytest.mark.parametrize("announced", [59, 75], ids=["before it is seen", "after"])
def test_what_others_see_of_a_planned_change_does_not_keep_it_from_being_learned(
    announced: int,
) -> None:
    """A tenant that saw the change as well stands alarmed, and is not in the slice."""
    bank = Bank(BankConfig())
    groupings = ("route", "tenant")

    def run(steps: range, refused: float) -> list[str]:
        rng, news = np.random.default_rng(1), []
        for at in steps:
            count = int(rng.binomial(50, refused))
            counts = [
                make_counts((v,), 50, NOW_MS + at * 10_000, grouping=g, refusals=count)
                for g, v in enumerate(("support", "acme"))
            ]
            found = bank.update(make_packet(Source("e", "e", 0, at, at), 0, groupings, counts))
            news += [f"{dict(a.monitor)} {a.transition}" for a in found.alarms]
            news += [e.signal for e in found.effects]
        return news

    run(range(60), 0.02)
    run(range(60, announced), 0.4)
    bank.reset(Reset(reset_id="r", time_ms=NOW_MS, slices=({Dimension.ROUTE: "support"},)))
    news = run(range(announced, 100), 0.4)
    assert [each for each in news if "raised" not in each] == ["refusal", "error", "truncation"]
    assert [a.monitor for a in bank.open_alarms] == [{"tenant": "acme"}]


def test_a_reset_of_what_nobody_has_seen_changes_nothing() -> None:
    bank = Bank(BankConfig())
    feed(bank, 20, 0, 0.02)
    before = bank.snapshot()
    found = bank.reset(Reset(reset_id="r", time_ms=1, slices=({Dimension.TENANT: "nobody"},)))
    assert found == ([], [], [])
    assert bank.snapshot() == before
