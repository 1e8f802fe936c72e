"""A model that is swapped in silence, from raw events to one incident that says what moved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import ClickHouseSettings, Config, IngestSettings, ReferenceSettings
from pipeline.local import LocalPipeline
from pipeline.sinks.clickhouse import Store
from schemas.alarm import Alarm, Transition
from schemas.incident import Incident
from schemas.signal import Family
from tests.support.events import Json, make_event, to_bytes

#: Samples live for so many days from when they were written, so events are of these days.
NOW_MS = int(time.time()) * 1000 - 3_600_000
STEP_MS = 500
SIZE, SWAP = 3_000, 2_000
SWAPPED, STEADY = "gpt-4o", "claude-sonnet-4"
CHUNK = 250

BILLING = ("invoice", "refund", "payment", "receipt", "tax", "discount", "balance", "contract")
TRAVEL = ("bridge", "harbour", "museum", "railway", "mountain", "island", "market", "castle")
ASKS = ("What should I know about", "Please explain", "Give me an overview of", "How do I find")
FACTS = ("is easy to miss", "takes two days", "costs little", "was changed in May", "needs a form")


def ask(rng: np.random.Generator, things: tuple[str, ...]) -> tuple[str, ...]:
    """Return three things, the first of which is asked for."""
    return tuple(str(each) for each in rng.choice(things, 3, replace=False))


def write_prose(rng: np.random.Generator, things: tuple[str, ...]) -> str:
    """Answer in long sentences, now and then with a list."""
    facts = [f"the {thing} {rng.choice(FACTS)}" for thing in things]
    if rng.random() < 0.15:
        return "In short:\n" + "\n".join(f"- {fact}" for fact in facts)
    text = f"As far as that goes, {', and '.join(facts)}, which is why many people ask about it."
    if things[0] in TRAVEL:
        return f"{things[0].title()} ({rng.integers(1800, 2000)}): {text}\n\nOpen all year: yes."
    return text + " It is best to look at it again before the end of the month." * rng.integers(3)


def write_bullets(rng: np.random.Generator, things: tuple[str, ...]) -> str:
    """Answer with bullets and short sentences, now and then in one sentence."""
    facts = [f"The {thing} {rng.choice(FACTS)}!" for thing in things]
    if rng.random() < 0.15:
        return " ".join(facts)
    return "Sure!\n" + "\n".join(f"- **{fact}**" for fact in facts)


def make_stream(
    seed: int,
    *,
    swapped_from: int = SIZE,
    travel_from: int = SIZE,
) -> list[Json]:
    """Return the answers of two models to questions, one kind of which is rare until `travel_from`.

    From `swapped_from` on, another model writes under the name of `SWAPPED`.
    """
    rng = np.random.default_rng(seed)
    events = []
    for i in range(SIZE):
        model = str(rng.choice([SWAPPED, STEADY]))
        travel = rng.random() < (0.8 if i >= travel_from else 0.3)
        things = ask(rng, TRAVEL if travel else BILLING)
        swapped = model == SWAPPED and i >= swapped_from
        write = write_bullets if swapped else write_prose
        events.append(
            make_event(
                f"s{seed}-{i}",
                time_ms=NOW_MS + i * STEP_MS,
                provider="openai",
                request_model=model,
                route=str(rng.choice(["support", "api"])),
                finish_reasons=["stop"],
                prompt_text=f"{rng.choice(ASKS)} the {things[0]}?",
                response_text=write(rng, things),
            )
        )
    return events


@pytest.fixture
def config(embedded_path: Path, database: str) -> Config:
    return Config(
        clickhouse=ClickHouseSettings(path=embedded_path, database=database),
        ingest=IngestSettings(chunk_events=CHUNK),
        references=ReferenceSettings(learn_answers=500, samples_per_chunk=CHUNK),
    )


@pytest.fixture
def pipeline(config: Config) -> Iterator[LocalPipeline]:
    store = Store(config.clickhouse)
    store.migrate()
    yield LocalPipeline(config, store, epoch="1")
    store.close()


def play(pipeline: LocalPipeline, events: list[Json]) -> list[Alarm | Incident]:
    return pipeline.feed([to_bytes(e) for e in events], NOW_MS + len(events) * STEP_MS)


def latest_incidents(news: list[Alarm | Incident]) -> list[Incident]:
    return list({n.incident_id: n for n in news if isinstance(n, Incident)}.values())


def count_fingerprints(pipeline: LocalPipeline) -> tuple[int, int]:
    """Return of how many answers one was taken, and how many were stored."""
    sql = "SELECT countIf(notEmpty(fingerprint)) AS taken, count() AS stored FROM requests"
    (row,) = pipeline.query(sql)
    return int(str(row["taken"])), int(str(row["stored"]))


def test_a_swap_is_one_incident_that_says_what_moved(pipeline: LocalPipeline) -> None:
    news = play(pipeline, make_stream(1, swapped_from=SWAP))
    (incident,) = latest_incidents(news)
    assert incident.family is Family.FINGERPRINT
    assert incident.cause.labels == {"request_model": SWAPPED}
    assert "Answers unlike before rose" in incident.summary
    assert "What moved most:" in incident.moved
    assert incident.moved in incident.summary
    assert any(word in incident.moved for word in ("bullets", "bold", "exclamation", "Sure"))
    assert "pin its previous snapshot" in incident.suggestion
    assert abs((incident.change_time_ms - NOW_MS) / STEP_MS - SWAP) < 150
    numbers = [int(event_id.partition("-")[2]) for event_id in incident.example_event_ids]
    assert numbers
    assert min(numbers) >= SWAP - 150
    alarms = [n for n in news if isinstance(n, Alarm)]
    # Answers of another manner may well be of another length and less like their prompts, too;
    # all that is one incident.
    assert {a.family for a in alarms} <= {Family.FINGERPRINT, Family.LENGTH, Family.RELEVANCE}
    for alarm in (a for a in alarms if a.family is Family.FINGERPRINT):
        assert alarm.transition is Transition.RAISED
        assert SWAP < alarm.event_index < SWAP + 400
        assert alarm.current.value > 2 * alarm.baseline.value


def test_answers_to_other_questions_are_no_swap(pipeline: LocalPipeline) -> None:
    """More of one kind of question, whose answers have always been of another form."""
    assert play(pipeline, make_stream(1, travel_from=SWAP)) == []
    assert count_fingerprints(pipeline)[0] > SIZE / 2


@pytest.mark.parametrize("seed", [1, 2])
def test_without_a_swap_nothing_is_said(pipeline: LocalPipeline, seed: int) -> None:
    assert play(pipeline, make_stream(seed)) == []
    taken, stored = count_fingerprints(pipeline)
    assert stored == SIZE
    # From its first reference on, every answer of a model has one.
    assert SIZE - 1_250 <= taken <= SIZE - 1_000
