"""The evaluation: its arithmetic on made data, its marks, its command, its document."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import fisher_exact

from benchmarks import splice, swaps
from benchmarks.evaluate import answers, fleet, languages, marks, report, rivals
from benchmarks.evaluate.__main__ import choose, find_complaint, main
from benchmarks.evaluate.parts import BY_NAME, PARTS, Task
from benchmarks.evaluate.running import PIECES, Runner, load
from benchmarks.rates import BEFORE, CHANGES, FleetDelay, cusum_delay
from benchmarks.swaps import QUIET, SphereSum, Stream
from detectors.bank import Bank, BankConfig
from detectors.bank_packet import read_packet
from schemas.codec import decode_event
from schemas.event import Received

ROOT = Path(__file__).parents[1]
KEYS = [
    "rate_vs_cusum_known_p0",
    "rate_vs_cusum_reference_2000",
    "null_monitors_within_promise",
    "vs_best_river",
    "swap_median_answers",
    "swap_found",
    "swap_tried",
    "swap_null_rate",
    "swap_vs_known_shift",
    "mix_page_rate",
    "mix_page_rate_marginal",
    "refusal_accuracy",
    "japanese_vs_english",
    "rate_updates_per_s",
    "state_mb_5000_monitors",
    "false_pages_per_week",
]


# --- Rivals on rates -----------------------------------------------------------------------------


def test_a_windows_test_is_fishers() -> None:
    test = rivals.WindowTest(size=50, known=400)
    at = np.flatnonzero(test.references == 8)[0]
    table = [[5, 45], [8, 392]]
    assert test.p_value[at, 5] == pytest.approx(fisher_exact(table, "greater").pvalue)


def test_a_windows_level_keeps_the_run_length_and_a_longer_one_is_dearer() -> None:
    test = rivals.WindowTest(size=500, known=2_000)
    levels = [test.level(goal) for goal in (1e4, 1e5)]
    assert [test.run_length(level) for level in levels] == pytest.approx([1e4, 1e5], rel=0.05)
    short, long = map(test.delay, levels)
    assert 250 < short < long


def test_a_windows_delay_is_that_of_drawn_streams() -> None:
    size, known, rng = 200, 2_000, np.random.default_rng(1)
    test = rivals.WindowTest(size, known)
    level, drawn = test.level(1e4), []
    for _ in range(1_500):
        reference = np.clip(rng.binomial(known, BEFORE), test.references[0], test.references[-1])
        alarm = test.p_value[reference - test.references[0]] < level
        quiet = int(rng.integers(0, rivals.OFFSETS)) * size // rivals.OFFSETS
        events = size - quiet
        count = rng.binomial(quiet, BEFORE) + rng.binomial(events, rivals.AFTER)
        while not alarm[min(count, len(alarm) - 1)]:
            count, events = rng.binomial(size, rivals.AFTER), events + size
        drawn.append(events)
    assert np.mean(drawn) == pytest.approx(test.delay(level), rel=0.1)


def test_moving_sums_and_the_alarms_that_come_of_them() -> None:
    values = np.array([1, 0, 1, 1, 0, 0, 1, 1, 0, 0], np.int8)
    assert rivals.moving_sums(values[None, :], 3).tolist() == [[2, 2, 2, 1, 1, 2, 2, 1]]
    # Two of three: at the first window, and again once a new window is full.
    assert rivals.trailing_run_length(values, 3, 2) == len(values) / 2


def test_a_tuned_threshold_is_not_sooner_than_the_optimum_by_more_than_its_start() -> None:
    effort = rivals.RivalEffort((1e4,), 20, 100, (2_000,))
    threshold = rivals.measure_trailing(500, 1e4, effort)
    watching = cusum_delay(BEFORE, CHANGES[0], 1e4)[1]
    assert threshold.delays[2_000] > 0.95 * watching


def test_a_bisection_ends_where_the_goal_is_passed() -> None:
    assert rivals.bisect(lambda x: x**2, 0, 10, 25.0) == pytest.approx(5, abs=0.02)


def test_the_best_of_river_is_told_nothing() -> None:
    found = [
        rivals.Rival("river", name, 1e5, 1.0, 1e5, {2_000: delay})
        for name, delay in (("ADWIN", 900.0), ("Page–Hinkley, told the size", 300.0))
    ]
    found.append(rivals.Rival("windows", "windows of 500", 1e5, 0.1, 1e5, {2_000: 100.0}))
    assert rivals.best_river(found, 1e5, 2_000) == 900.0
    assert rivals.best_river(found, 1e4, 2_000) is None


# --- Answers -------------------------------------------------------------------------------------


def test_statistics_are_small_for_the_same_and_large_for_another() -> None:
    rng = np.random.default_rng(2)
    reference, same = rng.normal(size=(300, 4)), rng.normal(size=(100, 4))
    for statistic in answers.STATISTICS.values():
        distance = statistic(reference)
        assert distance(same + 1.0) > 3 * abs(distance(same))


def test_the_largest_distance_of_distribution_functions() -> None:
    reference, window = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[3.5], [5.0]])
    assert answers.kolmogorov_smirnov(reference)(window) == pytest.approx(0.75)


def test_a_window_finds_a_swap_at_its_end_and_not_before() -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(size=(200, 6))
    stream = Stream(before, before + 3.0, np.zeros(200, np.int64), 100)
    run = answers.draw_run(stream, True, rng)
    paths = answers.watch_windows([run], answers.mean, 100, swap=True)
    (delay,) = answers.window_delays(paths, threshold=4.0, window=100)
    assert 0 < delay <= 200
    quiet = answers.watch_windows([(run[0], run[1][:QUIET])], answers.mean, 100, swap=True)
    assert answers.window_delays(quiet, 4.0, 100).tolist() == [math.inf]


def test_a_threshold_lets_as_many_nulls_alarm_as_the_run_length_says() -> None:
    most = np.random.default_rng(4).exponential(size=20_000)
    share = (most >= answers.threshold_of(most)).mean()
    assert share == pytest.approx(1 - math.exp(-answers.HORIZON / answers.RUN_LENGTH), abs=0.001)


def test_medians_are_over_what_was_not_early_and_never_is_no_number() -> None:
    peer = answers.summarise(
        "x", "raw", 100, np.array([[-5.0, 40.0, 60.0, 80.0], [math.inf, math.inf, math.inf, 9.0]])
    )
    assert (peer.delays, peer.found, peer.median_delay) == ([60.0, None], 1, None)


def test_the_sum_over_all_directions_is_the_mean_of_what_is_told_one() -> None:
    rng, length = np.random.default_rng(5), 0.7
    directions = rng.normal(size=(200_000, 3))
    directions *= length / np.linalg.norm(directions, axis=1, keepdims=True)
    sums = rng.normal(size=(2, 3)) * 3
    told = np.exp(sums @ directions.T - swaps.TOLD_BATCH * length**2 / 2).mean(axis=1)
    found = SphereSum(length, 3, 2).update(sums)
    assert np.exp(found) == pytest.approx(told, rel=0.02)


# --- The fleet -----------------------------------------------------------------------------------


def test_a_fleets_packets_are_packets_and_the_bank_takes_them() -> None:
    company = fleet.Fleet(200, fleet.Material.make(), seed=1)
    bank = Bank(BankConfig())
    for at in range(30):
        packet = company.packet(at)
        view = read_packet(packet)
        assert (view.columns["requests"] > 0).all()
        for name, histogram in view.histograms.items():
            assert (histogram.sum_rows(histogram.counts) == view.columns["answered"]).all(), name
        bank.update(packet)
    assert 150 < bank.monitors <= 200


def test_a_fleet_counts_the_alarms_of_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the weeks would show a false page if there were one."""
    monkeypatch.setattr(fleet, "INTERVALS", 60)
    monkeypatch.setattr(fleet, "PER_HOUR_RANGE", (3_000.0, 5_000.0))
    quiet = fleet.run_weeks(16, 1, fleet.Material.make(), seed=2)
    assert (quiet.alarms, quiet.promised) == (0, 1.0)
    company = fleet.Fleet(16, fleet.Material.make(), 2)
    bank, alarms = Bank(BankConfig()), 0
    for at in range(60):
        if at == 40:
            company.rates["errors"][:] = 0.3
        alarms += len(bank.update(company.packet(at)).alarms)
    assert alarms > 5


def test_a_monitor_that_is_no_model_has_prompts_of_its_own() -> None:
    rng = np.random.default_rng(1)
    samples = fleet.Samples.of([np.arange(50), np.arange(100, 180)], np.array([0, 1, 1]))
    samples.own(np.array([2]), 10, rng)
    drawn = samples.draw(np.repeat([0, 1, 2], 500), rng).reshape(3, 500)
    assert (set(drawn[0]), set(drawn[1])) == (set(range(50)), set(range(100, 180)))
    assert len(set(drawn[2])) == 10
    assert set(drawn[2]) < set(range(100, 180))


# --- Languages -----------------------------------------------------------------------------------


def test_every_refusal_is_written_in_both_languages() -> None:
    assert len({english for english, _ in languages.PAIRS}) == len(languages.PAIRS)
    assert all(english.isascii() and not ja.isascii() for english, ja in languages.PAIRS)


def test_a_language_whose_refusals_are_missed_is_slower() -> None:
    ordinary = ["The bridge was built in 1932."] * 200
    good = languages.measure_language([pair[0] for pair in languages.PAIRS], ordinary)
    bad = languages.measure_language(["Blue is a colour."] * 30, ordinary)
    assert good.found > 20
    assert bad.found == 0
    assert bad.delay > 1.5 * good.delay


# --- Marks, report, command ----------------------------------------------------------------------


def found_of_all() -> dict[str, Any]:
    """What the parts would find, small and made up."""
    changes = [(after, n) for after in CHANGES for n in (1e4, 1e5, 1e6)]
    delays = [{"after": a, "run_length": n, "cusum": 700.0, "matched": 2.0} for a, n in changes]
    swap = {"before": "a", "after": "b", "shift": 0.5, "quartiles": [90.0, None], "found": 0.9}
    peer = {"name": "ours", "features": "residuals", "window": 32, "run_length": 1e4}
    run = {"monitors": 9, "weeks": 1, "requests": 10**6, "alarms": 1, "by_family": {"error": 1}}
    language = {"refusals": 30, "found": 27, "ordinary": 100, "flagged": 1, "delay": 9.0}
    return {
        "known": [d | {"matched": 1.05, "nominal": 1.1, "watching": 1.2} for d in delays],
        "reference": [
            {
                "events": 2_000,
                "delays": [asdict(FleetDelay(a, n, 700.0, 2.0, 3.0, 2.0)) for a, n in changes],
                "realised": [0.1, 0.1, 0.1],
                "within": [0.99, 0.98, 0.97],
            }
        ],
        "nulls": {
            "steady": 0.99,
            "diurnal": 0.96,
            "swinging": 0.5,
            "rhythm": {"12": 1.0, "6000": 0.98},
            "rhythm_without": {"12": 1.0, "6000": 0.02},
        },
        "rivals": [
            {
                "kind": "river",
                "name": "ADWIN",
                "goal": 1e5,
                "setting": 1.0,
                "run_length": 1e5,
                "delays": {"2000": 2_800.0},
            }
        ],
        "speed": {"rate_updates_per_s": 4e7},
        "swaps": {
            "swaps": [swap | {"median": 160.0}, swap | {"median": None}],
            "median_delay": 160.0,
            "null": 0.0,
            "null_runs": 216,
        },
        "told": [swap | {"told": 50.0, "told_length": 90.0, "ours": 100.0}],
        "mix": {"mix": 0.014, "mix_blind": 0.2, "mix_marginal": 0.43, "both": 0.7},
        "japanese": {
            "swaps": [swap | {"median": 96.0}],
            "median_delay": 96.0,
            "english_median_delay": 192.0,
            "null": 0.0,
            "english_null": 0.0,
        },
        "languages": {"english": language, "japanese": language, "refusal_delay_ratio": 0.9},
        "answers": [peer | {"median_delay": 96.0, "found": 9, "delays": [1.0] * 9}],
        "refusal": {"XSTest": 0.972, "Do-Not-Answer": 0.96},
        "state": {"monitors": 5_000, "families": 5, "state_mb": 80.0},
        "weeks": {"false_pages_per_week": 1.0, "weeks": 1, "runs": [run]},
    }


def test_the_marks_have_their_names_and_their_directions() -> None:
    taken = marks.take(found_of_all())
    assert list(taken) == KEYS
    assert taken["vs_best_river"] == pytest.approx(2_800 / 1_400)
    assert taken["null_monitors_within_promise"] == 0.96
    assert (taken["swap_found"], taken["swap_tried"]) == (1, 2)
    assert taken["swap_vs_known_shift"] == 2.0
    assert taken["japanese_vs_english"] == 0.9
    judged = {m.key: m.met(taken[m.key]) for m in marks.MARKS if m.met is not None}
    missed = {key for key, met in judged.items() if not met}
    assert missed == {
        "rate_vs_cusum_reference_2000",
        "swap_found",
        "swap_vs_known_shift",
        "refusal_accuracy",
    }


def test_a_mark_whose_part_was_not_run_is_no_number() -> None:
    taken = marks.take({"speed": {"rate_updates_per_s": 4e7}})
    assert {key for key, value in taken.items() if value is not None} == {"rate_updates_per_s"}
    assert list(taken) == KEYS


def test_the_section_holds_every_table_and_survives_json() -> None:
    found = json.loads(json.dumps(found_of_all()))
    text = report.to_markdown(found, marks.take(found), {"cores": "2"}, "images")
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert len(titles) == len(report.SECTIONS) - 1  # all but alibi's
    assert "| `swap_found` | ≥ 7 | 1 | **missed** |" in text
    assert "| a → b | 50 | 90 | 100 | 2.00 × | 1.11 × |" in text
    assert all(f"images/{name}" in text for name in report.PLOTS)


def test_the_document_has_a_place_for_the_section() -> None:
    text = (ROOT / "docs" / "detection.md").read_text(encoding="utf-8")
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_without_data_the_parts_that_need_none_are_run_and_the_others_named() -> None:
    asked, missing = choose(None, Task(quick=True, data=None))
    names = {part.name for part in asked}
    assert names == {p.name for p in PARTS if not p.files and p.quick}
    assert "weeks" in names
    assert any(line.startswith("swaps: not measured") and "alpaca" in line for line in missing)


def test_with_data_every_part_is_run_but_what_was_not_asked_for(tmp_path: Path) -> None:
    for name in {name for part in PARTS for name in part.files}:
        (tmp_path / name).touch()
    asked, missing = choose(None, Task(quick=False, data=tmp_path))
    assert missing == []
    assert {p.name for p in PARTS} - {p.name for p in asked} == {"alibi"}
    quick, _ = choose(None, Task(quick=True, data=tmp_path))
    assert {p.name for p in asked} - {p.name for p in quick} == {"answers"}


def test_a_run_that_was_ended_goes_on_with_the_pieces_that_are_missing(tmp_path: Path) -> None:
    task, part = Task(quick=True, data=None), BY_NAME["reference"]
    assert part.count_pieces(task) == 1
    (tmp_path / PIECES).mkdir()
    left = tmp_path / PIECES / "reference-0.json"
    left.write_text('{"events": 2000}')
    going_on = Runner(task, tmp_path, jobs=1, resume=True)
    assert going_on.run([part]) == []
    assert going_on.found == load(tmp_path) == {"reference": [{"events": 2000}]}
    assert not left.exists()


def test_pieces_put_together_are_in_the_order_of_the_whole() -> None:
    told = BY_NAME["told"]
    names = list(range(len(swaps.ENGLISH)))
    pieces = told.count_pieces(Task(quick=False, data=None))
    assert told.join([names[piece::pieces] for piece in range(pieces)]) == names
    one, two = (asdict(fleet.Weeks(5, 2, 9, alarms, 2.0, {})) for alarms in (0, 2))
    assert BY_NAME["weeks"].join([one, two]) == {
        "false_pages_per_week": 0.5,
        "weeks": 4,
        "runs": [one, two],
    }


def test_data_that_are_no_folder_are_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_complaint(tmp_path) is None
    assert main(["--data", str(tmp_path / "missing"), "--quick", "--json"]) == 2
    said = capsys.readouterr()
    assert "no directory" in said.err
    assert said.out == ""


# --- The splice ----------------------------------------------------------------------------------

ANSWERS = {
    model: {f"What is {i}?": f"{model} says {i}." for i in range(40)}
    for model in ("gpt-4o-2024-05-13", "gpt-4o-mini-2024-07-18", "mistral")
}


def test_a_spliced_stream_keeps_the_name_and_changes_the_answers() -> None:
    plan = splice.Splice(*ANSWERS, events=300, at=200, end_s=1_790_000_000.0)
    events = list(splice.make_events(plan, ANSWERS))
    assert len(events) == 300
    received = [decode_event(json.dumps(e).encode(), 1_790_000_000_000) for e in events]
    assert all(isinstance(each, Received) for each in received)
    assert [e["event.time"] for e in events] == [1_790_000_000.0 - 299 + i for i in range(300)]
    asked = {e["gen_ai.request.model"] for e in events}
    assert asked == {"gpt-4o-2024-05-13", "mistral"}
    by_swap = [
        {e["response.text"].split()[0] for e in some if e["gen_ai.request.model"] != "mistral"}
        for some in (events[:200], events[200:])
    ]
    assert by_swap == [{"gpt-4o-2024-05-13"}, {"gpt-4o-mini-2024-07-18"}]


def test_a_model_may_be_named_without_its_date() -> None:
    assert splice.find_model("gpt-4o", list(ANSWERS)) == "gpt-4o-2024-05-13"
    assert splice.find_model("mini", list(ANSWERS)) == "gpt-4o-mini-2024-07-18"
    for name in ("gpt", "claude"):
        with pytest.raises(ValueError, match="is not one of"):
            splice.find_model(name, list(ANSWERS))
