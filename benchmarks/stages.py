"""What is done to every event's bytes and texts, stage by stage: processor time for an event.

    python -m benchmarks.stages
    python -m benchmarks.stages --data FILE --rounds 15 --json

The events are those of the benchmark over the wire (`benchmarks/wire/events.py`), 1 KB each, as
one chunk. The stages take turns; each is timed over the whole chunk by its own thread's
processor time, after one round that warms the caches. Medians in microseconds for one event.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.wire.events import cast_for, generate, read_prose
from pipeline.core.chunk import code_values
from pipeline.core.refusal import decide_refusals
from pipeline.core.style import measure_layout, measure_style
from pipeline.encoders.embedding import EncodedTexts
from pipeline.encoders.static import StaticEncoder
from schemas.codec import decode_events
from schemas.event import Event, Received

EVENTS = 8_000
ROUNDS = 9
MONITORS = 200
START_MS = 1_750_000_000_000
RATE_PER_S = 1_000.0
Stage = Callable[[], object]


def make_chunk(data: Path | None, count: int) -> list[tuple[int, bytes]]:
    """Return (time written in ms, JSON) of `count` events."""
    cast, prose = cast_for(MONITORS), read_prose(data)
    return list(generate(cast, prose, count, start_ms=START_MS, rate_per_s=RATE_PER_S))


def make_stages(chunk: list[tuple[int, bytes]]) -> dict[str, Stage]:
    """Everything that is done to the texts of a chunk, by name."""
    written_ms, raws = [at for at, _ in chunk], [raw for _, raw in chunk]
    decoded = decode_events(raws, written_ms)
    events = [r.event for r in decoded if isinstance(r, Received)]
    read = [e for e in events if e.response_text]
    embedding = EncodedTexts(StaticEncoder.load())
    return {
        "decode": lambda: decode_events(raws, written_ms),
        "refusals": lambda: _decide(events),
        "style of answers": lambda: measure_style([e.response_text or "" for e in read]),
        "layout of prompts": lambda: measure_layout([e.prompt_text or "" for e in read]),
        "embedding": lambda: embedding.embed(read),
    }


def _decide(events: list[Event]) -> object:
    return decide_refusals(
        [e.refusal for e in events],
        code_values([tuple(e.finish_reasons or ()) for e in events]),
        [e.response_text for e in events],
    )


def measure(stages: dict[str, Stage], rounds: int, count: int) -> dict[str, float]:
    """Microseconds of processor time for one event, the median of `rounds`."""
    took: dict[str, list[float]] = {name: [] for name in stages}
    for turn in range(rounds + 1):
        for name, stage in stages.items():
            began_ns = time.thread_time_ns()
            stage()
            if turn:
                took[name].append((time.thread_time_ns() - began_ns) / 1_000 / count)
    return {name: median(each) for name, each in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="prose: gzipped JSON lines with a response")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    stages = make_stages(make_chunk(options.data, options.events))
    found = measure(stages, options.rounds, options.events)
    if options.json:
        print(json.dumps(found))
        return
    print("| stage | µs an event |\n|---|---:|")
    for name, cost in found.items():
        print(f"| {name} | {cost:.2f} |")
    print(f"| together | {sum(found.values()):.2f} |")


if __name__ == "__main__":
    main()
