"""The jobs: what is run for each mark, in which order and on which topic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.wire.environments import install
from benchmarks.wire.running import MONITORS, Bench, Run, Topic, tell
from benchmarks.wire.table import (
    AGGREGATE,
    ENCODE,
    LOADER,
    READ,
    WHOLE,
    Program,
    Size,
    programs_of,
)

NO_TOPIC = Topic("", 0, 0)
PARTITIONS = 4
MONITORS_MOST = 5_000
#: Before memory and latency are looked at: caches fill, detectors learn.
WARM_UP_S = 20.0
#: The pace at which memory is watched, if half the full rate is not less.
MEMORY_PER_S = 2_000.0


def read(bench: Bench, size: Size) -> None:
    """Read and decode, all programs on one topic of four partitions."""
    topic = bench.topic(PARTITIONS, size.read_events)
    compete(bench, size, READ, topic)
    bench.drop(topic)


def aggregate(bench: Bench, size: Size) -> None:
    """Read, aggregate by three groupings and store.

    One partition: with more, Quix would have to write every event to Kafka
    again for each grouping.
    """
    topic = bench.topic(1, size.aggregate_events)
    compete(bench, size, AGGREGATE, topic)
    bench.drop(topic)


def encode(bench: Bench, size: Size) -> float | None:
    """Encode texts on one core; returns the smallest cosine between ours and model2vec's."""
    saved = {p.name: bench.directory / f"{p.name}.npy" for p in programs_of(ENCODE)[:2]}
    compete(bench, size, ENCODE, NO_TOPIC, saved)
    if not all(file.is_file() for file in saved.values()):
        return None
    ours, theirs = (np.load(file).astype(np.float64) for file in saved.values())
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float((np.einsum("ij,ij->i", ours, theirs) / lengths).min())


def whole(bench: Bench, size: Size) -> None:
    """The whole job, all programs on one topic of four partitions."""
    topic = bench.topic(PARTITIONS, size.whole_events)
    compete(bench, size, WHOLE, topic)
    bench.drop(topic)


def compete(
    bench: Bench, size: Size, job: str, topic: Topic, saved: dict[str, Path] | None = None
) -> None:
    """Run a job's programs one after the other, in several rounds."""
    for program in programs_of(job):
        if program.environment is not None:
            install(program.environment)
    for number in range(size.rounds):
        for program in programs_of(job):
            if program.slow and number:
                continue
            options: dict[str, object] = {"texts": size.texts}
            if number == 0 and saved and program.name in saved:
                options["save"] = str(saved[program.name])
            seconds = size.seconds * (program.slow or 1.0)
            bench.measure(program, topic, seconds, number, options)


def scaling(bench: Bench, size: Size) -> list[tuple[int, Run]]:
    """Our worker on as many events of ever more monitors."""
    found: list[tuple[int, Run]] = []
    for monitors in size.monitors:
        topic = bench.topic(PARTITIONS, size.scaling_events, monitors)
        program = replace(_worker(), job="scaling", label=f"{monitors:,} monitors")
        rounds = range(min(3, size.rounds))
        found += [(monitors, bench.measure(program, topic, 60.0, r)) for r in rounds]
        bench.drop(topic)
    return found


def latency(bench: Bench, size: Size, per_s: float) -> Run:
    """Our worker beside a producer at `per_s` events a second: event to verdict."""
    return paced(bench, "latency", per_s, size.latency_s, MONITORS)


def memory(bench: Bench, size: Size, per_s: float) -> Run:
    """Our worker at 5,000 monitors and a steady pace: resident memory."""
    return paced(bench, "memory", min(per_s, MEMORY_PER_S), size.memory_s, MONITORS_MOST)


def paced(bench: Bench, job: str, per_s: float, seconds: float, monitors: int) -> Run:
    """Run our worker while a producer sends events as their time comes."""
    tell(f"{job}: {per_s:,.0f} events/s for {seconds:.0f} s …")
    # The worker needs some seconds to come up, and the pace must not end before it.
    topic = bench.empty_topic(PARTITIONS, int(per_s * (seconds + 30.0)))
    options = {"monitors": monitors, "rate_per_s": per_s, "paced": True}
    producer = bench.start(LOADER, topic, 0.0, options)
    try:
        program = replace(_worker(), job=job)
        watched = {"mode": "paced", "warm_up_s": WARM_UP_S}
        return bench.measure(program, topic, seconds, 0, watched)
    finally:
        producer.process.kill()
        producer.process.communicate()
        bench.drop(topic)


def _worker() -> Program:
    return programs_of(WHOLE)[0]
