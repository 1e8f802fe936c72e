"""The one list of what is measured: jobs, programs, and how much of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: Ours run in the project's own environment.
OURS = None


@dataclass(frozen=True)
class Program:
    """A module of `benchmarks.wire.programs`, and where and how it runs."""

    name: str
    label: str
    job: str
    module: str
    #: Name of the requirement file and of the environment made of it; `OURS` for our own.
    environment: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Measured so many times as long as the others, and in the first round only.
    slow: float = 0.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    #: A program is measured to the topic's end, or for so long.
    seconds: float
    read_events: int
    aggregate_events: int
    whole_events: int
    texts: int
    #: Monitors of each step of the scaling run, and its events; none: not run.
    monitors: tuple[int, ...] = ()
    scaling_events: int = 0
    latency_s: float = 0.0
    memory_s: float = 0.0

    def at_most(self, events: int) -> Size:
        """The same with no topic above so many events."""
        return replace(
            self,
            read_events=min(self.read_events, events),
            aggregate_events=min(self.aggregate_events, events),
            whole_events=min(self.whole_events, events),
            scaling_events=min(self.scaling_events, events),
        )


FULL = Size(
    rounds=5,
    seconds=10.0,
    read_events=500_000,
    aggregate_events=300_000,
    whole_events=300_000,
    texts=60_000,
    monitors=(10, 100, 1_000, 5_000),
    scaling_events=200_000,
    latency_s=90.0,
    memory_s=600.0,
)
QUICK = Size(
    rounds=1,
    seconds=4.0,
    read_events=120_000,
    aggregate_events=0,
    whole_events=100_000,
    texts=40_000,
)

READ, AGGREGATE, ENCODE, WHOLE = "read", "aggregate", "encode", "whole"
#: With the rivals' three groupings, and like theirs without reading texts: neither embedded nor
#: judged for refusal.
AGGREGATE_CONFIG = {
    "encoder": {"kind": "none"},
    "ingest": {"groupings": ["request_model", "route", "tenant"], "judge_texts": False},
}

PROGRAMS = (
    Program("ours", "Kizashi's transport", READ, "read_ours", OURS),
    Program("faust", "stock Faust", READ, "read_faust", "faust"),
    Program("quix", "Quix Streams", READ, "read_quix", "quix"),
    Program("bytewax", "Bytewax", READ, "read_bytewax", "bytewax"),
    Program("aiokafka", "aiokafka", READ, "read_aiokafka", "aiokafka"),
    Program("confluent", "confluent-kafka", READ, "read_confluent", "confluent"),
    Program(
        "ours", "Kizashi", AGGREGATE, "worker_ours", OURS, {"config": AGGREGATE_CONFIG}
    ),
    Program("faust", "stock Faust", AGGREGATE, "aggregate_faust", "faust"),
    Program("quix", "Quix Streams", AGGREGATE, "aggregate_quix", "quix"),
    Program("bytewax", "Bytewax", AGGREGATE, "aggregate_bytewax", "bytewax"),
    Program("aiokafka", "aiokafka", AGGREGATE, "aggregate_aiokafka", "aiokafka"),
    Program("confluent", "confluent-kafka", AGGREGATE, "aggregate_confluent", "confluent"),
    Program("ours", "Kizashi", ENCODE, "encode_ours", OURS),
    Program("model2vec", "model2vec", ENCODE, "encode_model2vec", "model2vec"),
    Program("static", "sentence-transformers, static", ENCODE, "encode_static", "minilm"),
    Program("minilm", "MiniLM", ENCODE, "encode_minilm", "minilm", slow=2.0),
    Program("ours", "Kizashi", WHOLE, "worker_ours", OURS),
    Program(
        "quix_model2vec", "Quix Streams + model2vec + river", WHOLE, "whole_quix", "model2vec",
        {"encoder": "model2vec", "batch": 1_024},
    ),
    Program(
        "quix_minilm", "Quix Streams + MiniLM + river", WHOLE, "whole_quix", "minilm",
        {"encoder": "minilm", "batch": 64}, slow=2.0,
    ),
)  # fmt: skip
LOADER = Program("load", "loader", "load", "load", "confluent")
#: Draws the plots.
PLOTS = "plots"


def programs_of(job: str) -> tuple[Program, ...]:
    """Return a job's programs, ours first."""
    return tuple(p for p in PROGRAMS if p.job == job)
