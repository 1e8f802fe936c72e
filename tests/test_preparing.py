"""Processes that prepare: the same effects as in a thread, whatever becomes of the process."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from detectors.fingerprint import fit_reference, from_bytes, to_bytes
from pipeline import channel, preparer, preparing
from pipeline.channel import Setup
from pipeline.config import EncoderSettings
from pipeline.core.answers import ANSWER_WIDTH, PROMPT_WIDTH, Embedding
from pipeline.core.chunk import Chunk, ChunkEffects
from pipeline.core.dedup import SeenIds
from pipeline.core.fingerprints import FIT, ReferenceSet
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import Reading, StepConfig
from pipeline.core.users import UserKey
from pipeline.core.wire import Wire
from pipeline.effects import OwnPreparer, Window
from pipeline.embedding import build_embedding
from pipeline.errors import PreparingFailed, ProcessLost
from pipeline.preparing import PreparerPool
from pipeline.sinks.arrow import to_table
from schemas.codec import CodecLimits
from schemas.monitor import DEFAULT_GROUPINGS
from schemas.signal import encode_packet
from schemas.wire import WireFormat
from tests.support.events import PRICES, make_chunk, make_raw, make_traffic
from tests.support.otlp import CHAT, make_span, to_json

CONFIG = StepConfig(
    DEFAULT_GROUPINGS,
    CodecLimits(),
    signals_partitions=3,
    store_texts=True,
    user_key=UserKey("k1", b"key"),
    wires={"spans": Wire(WireFormat.OTLP_JSON, keep_unread=True)},
)
ENCODER = EncoderSettings()
SETUP = Setup(CONFIG, PRICES.entries, ENCODER.model_dump(mode="json"), 4)
BAD: tuple[bytes | None, ...] = (None, b"", b"[]", b'{"event.id":"x"}', b"\xff", make_raw("t1-3"))
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def started() -> Iterator[PreparerPool]:
    pool = PreparerPool(1, SETUP)
    yield pool
    pool.close()


@pytest.fixture
def pool(started: PreparerPool) -> PreparerPool:
    serve(started)
    return started


def serve(
    pool: PreparerPool, cap: int = 1_000, references: ReferenceSet | None = None
) -> MonitorRegistry:
    registry = MonitorRegistry(cap)
    pool.serve(registry, lambda: references)
    return registry


def renew(pool: PreparerPool) -> None:
    """A process remembers what a registry admitted; another registry needs another process."""
    process = pool._idle.get()
    if process is not None:
        process.end()
    pool._idle.put(None)


@cache
def embedding() -> Embedding:
    made = build_embedding(ENCODER)
    assert made is not None
    return made


def own(cap: int = 1_000, references: ReferenceSet | None = None) -> OwnPreparer:
    reading = Reading(embedding(), references or ReferenceSet(embedding().name, 0, {}), 4)
    return OwnPreparer(CONFIG, Pricer(PRICES), MonitorRegistry(cap), lambda: reading)


def window() -> Window:
    return Window(SeenIds(10_000))


def traffic(seed: int = 1, size: int = 400, first: int = 0) -> Chunk:
    """Events of every kind, with repeats and records that are none."""
    values = [json.dumps(e).encode() for e in make_traffic(seed, size)]
    return make_chunk([*values[: size // 2], *BAD, *values[size // 2 :], values[7]], first)


def plain(effects: ChunkEffects) -> list[Any]:
    """What will be stored and sent, as bytes and plain values."""
    tables = {
        "requests": effects.requests,
        "request_texts": effects.texts,
        "answer_samples": effects.samples,
        "rollup_1m": effects.rollups,
    }
    rows = {n: to_table(n, c).to_pydict() for n, c in tables.items() if c}
    packets = {p: [encode_packet(each) for each in sent] for p, sent in effects.packets.items()}
    return [effects.source, effects.counts, repr(rows), packets, effects.deadletters]


def process_id(pool: PreparerPool) -> int:
    process = pool._idle.get()
    pool._idle.put(process)
    assert process is not None
    return process.pid


# --- The same effects ------------------------------------------------------------------------


def test_a_process_prepares_what_a_thread_does(pool: PreparerPool) -> None:
    here, theirs, ours = own(), window(), window()
    for chunk in (traffic(1), traffic(1, 300, first=1_000), traffic(2, first=2_000)):
        expected = plain(here.prepare(chunk, ours).effects)
        assert plain(pool.prepare(chunk, theirs).effects) == expected


def test_a_chunk_without_a_good_event_is_prepared(pool: PreparerPool) -> None:
    chunk = make_chunk([None, b"[]"])
    found = pool.prepare(chunk, window()).effects
    assert plain(found) == plain(own().prepare(chunk, window()).effects)
    assert not found.requests
    assert [each.rejected.raw for each in found.deadletters] == [b"", b"[]"]


def test_a_chunk_of_spans_is_prepared_with_the_letters_of_each(pool: PreparerPool) -> None:
    wrong = make_span(10, {**CHAT, "gen_ai.usage.input_tokens": -1})
    records = [to_json([make_span(1), wrong, make_span(2), make_span(3, {"a": 1})]), b"{", None]
    chunk, here = make_chunk(records, topic="spans"), own()
    prepared, expected = pool.prepare(chunk, window()), here.prepare(chunk, window())
    assert plain(prepared.effects) == plain(expected.effects)
    assert prepared.effects.counts.skipped == 1
    refused = {0: "too odd"}
    found = pool.prepare_without(prepared, refused)
    assert plain(found) == plain(here.prepare_without(expected, refused))
    at = [(each.record.offset, each.item) for each in found.deadletters]
    assert sorted(at) == [(0, 0), (0, 1), (1, 0), (2, 0)]


def test_what_is_over_the_cap_is_counted_as_other(pool: PreparerPool) -> None:
    renew(pool)
    registry, here = serve(pool, cap=2), own(cap=2)
    for chunk in (traffic(3), traffic(4, first=1_000)):
        expected = plain(here.prepare(chunk, window()).effects)
        assert plain(pool.prepare(chunk, window()).effects) == expected
    assert registry.count(DEFAULT_GROUPINGS[0]) == 2
    renew(pool)


def test_refused_rows_are_left_out_and_the_ids_stay_new(pool: PreparerPool) -> None:
    chunk, here, refused = traffic(5), own(), {3: "out of range", 10: "no"}
    prepared, expected = pool.prepare(chunk, window()), here.prepare(chunk, window())
    found = pool.prepare_without(prepared, refused)
    assert plain(found) == plain(here.prepare_without(expected, refused))
    assert found.counts.stored == prepared.effects.counts.stored - 2


def test_fingerprints_are_taken_against_the_references_of_the_moment(pool: PreparerPool) -> None:
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(600, PROMPT_WIDTH)).astype(np.float32)
    fitted = fit_reference(prompts, rng.normal(size=(600, ANSWER_WIDTH)), FIT)
    # As the store hands it out.
    reference = from_bytes(to_bytes(fitted))
    references = ReferenceSet(embedding().name, 7, {"gpt-4o": reference})
    fields = {"request_model": "gpt-4o", "response_text": "An answer."}
    chunk = make_chunk([make_raw(f"e-{i}", **fields) for i in range(50)])
    before = plain(pool.prepare(chunk, window()).effects)
    serve(pool, references=references)
    found = plain(pool.prepare(chunk, window()).effects)
    assert found == plain(own(references=references).prepare(chunk, window()).effects)
    assert found != before


# --- Processes that go -----------------------------------------------------------------------


def test_a_chunk_whose_process_was_killed_is_prepared_again(pool: PreparerPool) -> None:
    chunk, seen = traffic(6), window()
    expected = plain(own().prepare(chunk, window()).effects)
    os.kill(process_id(pool), signal.SIGKILL)
    with pytest.raises(ProcessLost):
        pool.prepare(chunk, seen)
    assert plain(pool.prepare(chunk, seen).effects) == expected


def test_a_process_killed_in_the_middle_makes_no_repeats(pool: PreparerPool) -> None:
    """When the monitors are asked for, the ids have been taken in already."""

    class Killing(MonitorRegistry):
        def admit_all(self, *question: Any) -> Any:
            os.kill(process_id_before, signal.SIGKILL)
            return super().admit_all(*question)

    chunk, seen = traffic(7), window()
    # It must know no monitor yet.
    renew(pool)
    pool.prepare(make_chunk([b"[]"]), window())
    process_id_before = process_id(pool)
    pool.serve(Killing(1_000), lambda: None)
    with pytest.raises(ProcessLost):
        pool.prepare(chunk, seen)
    serve(pool)
    found = pool.prepare(chunk, seen).effects
    assert plain(found) == plain(own().prepare(chunk, window()).effects)
    assert found.counts.duplicates == 1
    assert process_id(pool) != process_id_before


def test_what_cannot_be_set_up_says_why() -> None:
    nobody = EncoderSettings(kind="transformer", model="./nothing-here")
    with pytest.raises(PreparingFailed, match=r"transformers|nothing-here"):
        PreparerPool(1, structs.replace(SETUP, encoder=nobody.model_dump(mode="json")))


def test_it_does_not_outlive_its_worker(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys\n"
        "from pipeline.preparing import PreparerPool\n"
        "from tests.test_preparing import SETUP, process_id\n"
        "print(process_id(PreparerPool(1, SETUP)), flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = str(Path(preparing.__file__).parents[1])
    worker = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    assert is_alive(pid)
    worker.kill()
    worker.communicate()
    until(lambda: not is_alive(pid))


def test_signals_to_the_group_are_the_workers_to_heed(pool: PreparerPool) -> None:
    pid = process_id(pool)
    for sent in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, sent)
    assert pool.prepare(make_chunk([make_raw()]), window()).effects.counts.stored == 1
    assert process_id(pool) == pid


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def until(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


# --- What crosses ----------------------------------------------------------------------------


@pytest.mark.parametrize("module", [channel, preparer, preparing], ids=lambda m: m.__name__)
def test_nothing_is_pickled(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    names = {
        name.split(".")[0]
        for node in imports
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert "msgspec" in names or "pyarrow" in names
    assert not names & {"pickle", "marshal", "shelve", "multiprocessing", "cloudpickle", "dill"}
