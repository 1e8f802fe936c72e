"""The benchmark over a broker: its events, its arithmetic, its document and its environments."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.wire import jobs
from benchmarks.wire.__main__ import JOBS, QUICK_JOBS, parse, size_of
from benchmarks.wire.events import (
    EVENT_BYTES,
    Cast,
    cast_for,
    cut_texts,
    generate,
    read_prose,
)
from benchmarks.wire.machine import describe
from benchmarks.wire.programs.minutes import (
    GRACE_S,
    GROUPINGS,
    MINUTE_S,
    Minutes,
    add_event,
    empty_sums,
    merge_sums,
)
from benchmarks.wire.report import (
    BEGIN,
    END,
    PLOTS,
    RATIOS,
    costs_us,
    insert,
    lines_of,
    memory_marks,
    summarize,
    to_markdown,
)
from benchmarks.wire.running import Bench, Run, Topic
from benchmarks.wire.table import FULL, LOADER, PROGRAMS, QUICK, programs_of
from benchmarks.wire.task import Meter, Task
from schemas.codec import decode_event
from schemas.event import Received
from schemas.monitor import DEFAULT_GROUPINGS

ROOT = Path(__file__).parents[1]
WIRE = ROOT / "benchmarks" / "wire"
LOCKS = ROOT / "requirements" / "rivals"
START_MS = 1_760_000_000_000
RATE_PER_S = 1_000.0


@pytest.fixture(scope="module")
def prose() -> str:
    return read_prose()


def make(prose: str, count: int, *, monitors: int = 200, seed: int = 0) -> list[tuple[int, bytes]]:
    cast = cast_for(monitors)
    events = generate(cast, prose, count, start_ms=START_MS, rate_per_s=RATE_PER_S, seed=seed)
    return list(events)


# --- Events ----------------------------------------------------------------------------------


def test_every_event_is_valid_about_1_kb_and_has_the_time_it_is_said_to_have(prose: str) -> None:
    events = make(prose, 3_000)
    for time_ms, raw in events:
        received = decode_event(raw, time_ms)
        assert isinstance(received, Received), received
        assert received.time_ms == time_ms
        assert not received.attributes
        assert len(raw) <= EVENT_BYTES
    assert sum(len(raw) for _, raw in events) / len(events) > 0.95 * EVENT_BYTES
    assert events[-1][0] - events[0][0] == 2_999


def test_events_are_the_same_for_the_same_seed_and_others_for_another(prose: str) -> None:
    assert make(prose, 200, seed=1) == make(prose, 200, seed=1)
    assert make(prose, 200, seed=1) != make(prose, 200, seed=2)


def test_event_ids_are_distinct_and_traffic_looks_like_traffic(prose: str) -> None:
    decoded = [decode_event(raw, time_ms) for time_ms, raw in make(prose, 5_000)]
    events = [d.event for d in decoded if isinstance(d, Received)]
    assert len({e.event_id for e in events}) == 5_000
    assert 0.003 < sum(e.error_type is not None for e in events) / 5_000 < 0.03
    refused = sum("I'm sorry" in (e.response_text or "") for e in events)
    assert 0.01 < refused / 5_000 < 0.035
    assert all(e.response_text for e in events if e.error_type is None)


@pytest.mark.parametrize("monitors", [10, 12, 25, 99, 100, 500, 1_000, 5_000])
def test_a_cast_has_as_many_monitors_as_asked_for(monitors: int) -> None:
    cast = cast_for(monitors)
    assert cast.monitors == monitors
    assert min(asdict(cast).values()) >= 1


def test_fewer_than_ten_monitors_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        cast_for(9)


@pytest.mark.parametrize("monitors", [10, 150])
def test_the_default_groupings_find_so_many_monitors_in_the_events(
    prose: str, monitors: int
) -> None:
    decoded = [decode_event(raw, ms) for ms, raw in make(prose, 6_000, monitors=monitors)]
    events = [d.event for d in decoded if isinstance(d, Received)]
    found = {
        (grouping, tuple(getattr(event, dimension.value) for dimension in grouping))
        for grouping in DEFAULT_GROUPINGS
        for event in events
    }
    assert len(found) == monitors


def test_texts_begin_with_a_word_and_have_the_length(prose: str) -> None:
    texts = cut_texts(prose, 50)
    assert texts == cut_texts(prose, 50)
    assert len(set(texts)) == 50
    assert all(900 <= len(text) <= 1_100 and text[0] != " " for text in texts)


def test_a_window_of_prose_that_is_all_escapes_still_fits() -> None:
    for _, raw in make('" “x” \\ ' * 5_000, 50):
        assert len(raw) <= EVENT_BYTES


def test_a_cast_counts_its_default_groupings() -> None:
    cast = Cast(models=2, routes=3, tenants=5, prompts=4, versions=2, regions=2)
    assert cast.monitors == 2 + 2 + 3 + 6 + 5 + 4 + 8 + 4


# --- The rivals' sums ------------------------------------------------------------------------


def test_minutes_close_when_they_are_over_and_count_every_event(prose: str) -> None:
    events = [json.loads(raw) for _, raw in make(prose, 400)]
    for i, event in enumerate(events):
        event["event.time"] = START_MS / 1000 + i
    minutes, closed = Minutes(), []
    for event in events:
        minutes.add(event)
        closed += minutes.take_closed()
    over_s = START_MS / 1000 + len(events) - MINUTE_S - GRACE_S
    assert closed
    assert all(row[2].timestamp() <= over_s for row in closed)
    rows = closed + minutes.take_all()
    assert minutes.take_all() == []
    for grouping in GROUPINGS:
        assert sum(row[3] for row in rows if row[0] == grouping) == len(events)


def test_sums_merge_as_if_they_had_been_one(prose: str) -> None:
    events = [json.loads(raw) for _, raw in make(prose, 100)]
    parts = [empty_sums(), empty_sums(), empty_sums()]
    for i, event in enumerate(events):
        add_event(parts[i % 2], event)
        add_event(parts[2], event)
    assert merge_sums(parts[0], parts[1]) == pytest.approx(parts[2])
    assert parts[2][4] > 0


# --- Arithmetic ------------------------------------------------------------------------------


def run(job: str, name: str, per_s: float, number: int = 0, cpu_us: float = 10.0) -> dict[str, Any]:
    result = {"events": 1_000, "seconds": 1_000 / per_s, "cpu_s": cpu_us / 1_000, "embeds": True}
    return asdict(Run(job, name, name, number, result))


def test_rates_are_medians_over_the_rounds_and_ratios_are_ours_over_theirs() -> None:
    runs = [run("read", "ours", r) for r in (100.0, 400.0, 200.0)]
    runs += [run("read", "faust", r) for r in (10.0, 30.0, 20.0)]
    ours, faust = lines_of(runs)
    assert ours.per_s == pytest.approx(200)
    assert (ours.lowest_per_s, ours.highest_per_s) == (pytest.approx(100), pytest.approx(400))
    assert ours.ratio == 1
    assert faust.ratio == pytest.approx(10)
    assert faust.cpu_us == pytest.approx(10)


def test_the_best_rival_is_the_one_that_counts() -> None:
    rates = {"ours": 300.0, "quix": 50.0, "confluent": 100.0}
    marks = summarize(lines_of([run("aggregate", n, r) for n, r in rates.items()]), {})
    assert marks == {"aggregate_vs_best_rival": pytest.approx(3)}


def test_a_failed_run_is_no_line_and_gives_no_mark() -> None:
    failed = asdict(Run("read", "quix", "Quix", 0, {}, "status 1"))
    lines = lines_of([run("read", "ours", 10.0), failed])
    assert [line.name for line in lines] == ["ours"]
    assert summarize(lines, {"latency": {}, "memory": {}, "encode_cosine_min": None}) == {}


def test_a_worker_without_an_encoder_is_not_compared_on_the_whole_job() -> None:
    runs = [run("whole", "ours", 100.0), run("whole", "quix_minilm", 1.0)]
    assert summarize(lines_of(runs), {})["whole_vs_quix_minilm"] == pytest.approx(100)
    runs[0]["result"]["embeds"] = False
    lines = lines_of(runs)
    assert summarize(lines, {}) == {}
    assert "nan" not in to_markdown(lines, {}, {}, "images")


def test_without_ours_there_is_no_ratio() -> None:
    assert summarize(lines_of([run("read", "quix", 10.0)]), {}) == {}


def test_all_marks_are_taken_from_what_was_measured() -> None:
    runs = [run(p.job, p.name, 100.0 if p.name == "ours" else 10.0) for p in PROGRAMS]
    scaling = [(10, {"events": 100, "cpu_s": 1.0}), (5_000, {"events": 100, "cpu_s": 1.2})]
    measured = {
        "encode_cosine_min": 0.99999,
        "latency": {"latency_s": {"p99": 1.5}},
        "scaling": scaling,
        "memory": {"rss_mb": [(float(i), 400.0 + i) for i in range(10)]},
    }
    marks = summarize(lines_of(runs), measured)
    assert set(marks) == {
        *RATIOS,
        "aggregate_vs_best_rival",
        "whole_events_per_s",
        "encode_cosine_min",
        "event_to_verdict_p99_s",
        "cost_5000_vs_10_monitors",
        "rss_mb_5000_monitors",
        "rss_growth_mb_5000_monitors",
    }
    assert marks["whole_vs_quix_minilm"] == pytest.approx(10)
    assert marks["cost_5000_vs_10_monitors"] == pytest.approx(1.2)
    json.dumps(marks, allow_nan=False)


def test_costs_are_medians_of_processor_time_and_pass_over_failures() -> None:
    seconds = (1.0, 3.0, 2.0)
    scaling = [(10, {"events": 1_000_000, "cpu_s": s}) for s in seconds] + [(10, {}), (50, {})]
    assert costs_us(scaling) == {10: pytest.approx(2.0)}


def test_memory_is_its_peak_and_growth_is_told_apart_from_the_start() -> None:
    start, steady = [100.0, 300.0], [400.0] * 8
    samples = [(float(i), mb) for i, mb in enumerate(start + steady)]
    flat = memory_marks(samples)
    assert flat == {"rss_mb_5000_monitors": 400.0, "rss_growth_mb_5000_monitors": 0.0}
    growing = memory_marks([(float(i), 100.0 + i) for i in range(100)])
    assert growing["rss_growth_mb_5000_monitors"] == pytest.approx(60)


def test_the_clock_runs_from_the_end_of_the_first_batch() -> None:
    meter = Meter(events=30, seconds=60.0)
    assert not meter.add(10)
    assert not meter.add(10)
    assert not meter.drained
    assert meter.add(10)
    assert meter.drained
    assert meter.events == 20


def test_the_time_can_be_up_before_the_topic_ends() -> None:
    meter = Meter(events=1_000, seconds=0.0)
    assert not meter.add(1)
    assert meter.add(1)
    assert not meter.drained


# --- The document ----------------------------------------------------------------------------


def test_the_section_goes_between_the_markers_and_nothing_else_is_touched() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = insert(document, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert insert(once, "new") == once


@pytest.mark.parametrize(
    "document", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{END}", f"{BEGIN}{BEGIN}{END}"]
)
def test_a_document_without_its_markers_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="needs"):
        insert(document, "new")


def test_the_documentation_has_the_markers() -> None:
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "new" in insert(document, "new")


def test_the_tables_name_every_program_every_mark_and_the_machine() -> None:
    lines = lines_of([run(p.job, p.name, 1234.5) for p in PROGRAMS])
    section = to_markdown(lines, {"whole_events_per_s": 1234.5}, {"cores": "2"}, "images")
    assert section.count("1,234") >= len(PROGRAMS)
    assert "cores: 2" in section
    assert "`whole_events_per_s`" in section
    assert all(f"(images/{name})" in section for name in PLOTS)


def test_the_machine_is_named() -> None:
    described = describe()
    assert {"processor", "cores", "memory", "kernel", "Python", "chdb"} <= described.keys()
    assert all(described.values())


# --- Programs and environments ---------------------------------------------------------------

MODULES = sorted((WIRE / "programs").glob("[!_]*.py"))


def foreign_imports(source: str) -> set[str]:
    """Packages of ours that a program imports beside the benchmark's own modules."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    tops = {name.partition(".")[0] for name in names}
    return tops & {"pipeline", "schemas", "detectors"}


@pytest.mark.parametrize("file", MODULES, ids=lambda f: f.stem)
def test_every_program_compiles_and_says_what_it_is(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    compile(tree, str(file), "exec")
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("program", [*PROGRAMS, LOADER], ids=lambda p: f"{p.job}-{p.name}")
def test_every_program_of_the_table_has_its_module_and_its_environment(program: Any) -> None:
    source = (WIRE / "programs" / f"{program.module}.py").read_text(encoding="utf-8")
    if program.environment is None:
        assert foreign_imports(source)
    else:
        # A rival's environment has nothing of ours in it.
        assert foreign_imports(source) == set()
        assert (LOCKS / f"{program.environment}.txt").is_file()


def test_an_import_of_ours_in_a_rival_is_found() -> None:
    assert foreign_imports("from pipeline.config import Config") == {"pipeline"}


def test_each_job_begins_with_ours_and_names_are_distinct() -> None:
    for job in ("read", "aggregate", "encode", "whole"):
        assert programs_of(job)[0].name == "ours"
    keys = [(p.job, p.name) for p in PROGRAMS]
    assert len(set(keys)) == len(keys)
    assert set(RATIOS.values()) <= set(keys)


def test_what_every_environment_shares_needs_the_standard_library_alone() -> None:
    shared = [WIRE / "events.py", WIRE / "task.py", WIRE / "programs" / "minutes.py"]
    check = (
        "import sys, runpy\n"
        "for file in sys.argv[1:]: runpy.run_path(file)\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(tops & {'numpy', 'msgspec', 'pipeline', 'schemas', 'rich'}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", check, *map(str, shared)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}(?![0-9a-f])")


def entries(lock: str) -> list[str]:
    """What a lock file asks for, joined with its continuation lines, comments gone."""
    lines = [line for line in lock.splitlines() if not line.lstrip().startswith("#")]
    return re.sub(r" *\\\n *", " ", "\n".join(lines)).splitlines()


def faults(lock: str) -> list[str]:
    return [
        entry
        for entry in entries(lock)
        if entry.startswith("-")
        or "://" in entry
        or not HASH.search(entry)
        or not re.match(r"[\w.\-\[\]]+==[^=\s]", entry)
    ]


NAMES = sorted(file.stem for file in LOCKS.glob("*.in"))


@pytest.mark.parametrize("name", NAMES)
def test_a_rival_is_pinned_by_hash_and_its_lock_names_no_origin(name: str) -> None:
    lock = (LOCKS / f"{name}.txt").read_text(encoding="utf-8")
    assert "#    make lock\n" in lock
    assert "://" not in lock
    assert entries(lock)
    assert faults(lock) == []
    lines = (LOCKS / f"{name}.in").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert wanted
    pinned = {re.split(r"[=\[]", entry)[0] for entry in entries(lock)}
    assert {re.split(r"[\[<>=]", line)[0] for line in wanted} <= pinned


@pytest.mark.parametrize(
    "lock", ["a==1", f"a>=1 --hash=sha256:{'0' * 64}", f"--index-url x\na==1 {'0' * 64}"]
)
def test_a_fault_of_a_lock_is_found(lock: str) -> None:
    assert faults(lock)


def test_rivals_and_ours_run_the_same_engine() -> None:
    pinned = re.compile(r"^(chdb|chdb-core|clickhouse-connect)==(\S+)", re.MULTILINE)
    ours = set(pinned.findall((LOCKS.parent / "runtime.txt").read_text(encoding="utf-8")))
    assert len(ours) == 3
    for name in NAMES:
        theirs = set(pinned.findall((LOCKS / f"{name}.txt").read_text(encoding="utf-8")))
        assert theirs <= ours, name


# --- The command -----------------------------------------------------------------------------


def test_quick_is_a_part_of_the_whole() -> None:
    assert set(QUICK_JOBS) < set(JOBS)
    assert parse(["--quick"]).only == QUICK_JOBS
    assert size_of(parse(["--quick"])) == QUICK
    assert size_of(parse([])) == FULL


def test_options_change_the_size() -> None:
    size = size_of(parse(["--rounds", "2", "--seconds", "3", "--events", "1000", "--minutes", "1"]))
    assert (size.rounds, size.seconds, size.read_events, size.memory_s) == (2, 3.0, 1_000, 60.0)
    assert size.latency_s == 60.0


def test_a_task_survives_the_command_line(tmp_path: Path) -> None:
    task = Task("host:1", "t", 4, 10, 1.0, str(tmp_path), "g", {"config": {"a": {"b": [1]}}})
    assert Task(**json.loads(task.to_json())) == task


class OneAfterAnother(Bench):
    """A bench that measures nothing and remembers what it was asked."""

    def topic(self, partitions: int, events: int, monitors: int = 200) -> Topic:
        return Topic(f"of-{monitors}", partitions, events)

    def drop(self, topic: Topic) -> None:
        assert topic.events

    def measure(self, program: Any, topic: Topic, seconds: float, number: int = 0,
                options: Any = None) -> Run:  # fmt: skip
        self.runs.append(Run(program.job, program.name, topic.name, number, {"seconds": seconds}))
        return self.runs[-1]


@pytest.fixture
def nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "install", lambda name: None)


@pytest.mark.usefixtures("nothing_is_installed")
def test_rounds_take_turns_and_the_slow_are_measured_longer_and_once(tmp_path: Path) -> None:
    bench = OneAfterAnother("", tmp_path, None, tmp_path)
    jobs.whole(bench, FULL)
    names = [r.name for r in bench.runs]
    fast = [p.name for p in programs_of("whole") if not p.slow]
    assert names[: len(fast)] == fast
    assert names.count("quix_minilm") == 1
    assert names.count("ours") == FULL.rounds
    assert all(a <= b for a, b in pairwise(r.round for r in bench.runs))
    [slow] = [r for r in bench.runs if r.name == "quix_minilm"]
    assert slow.result["seconds"] > FULL.seconds


def test_scaling_runs_ours_at_every_number_of_monitors(tmp_path: Path) -> None:
    bench = OneAfterAnother("", tmp_path, None, tmp_path)
    found = jobs.scaling(bench, FULL)
    assert {monitors for monitors, _ in found} == set(FULL.monitors)
    assert {r.label for _, r in found} == {f"of-{m}" for m in FULL.monitors}
