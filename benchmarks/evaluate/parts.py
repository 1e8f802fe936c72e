"""The one list of what is asked: a part for each question, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import rates, refusal, swaps
from benchmarks.evaluate import alibi, answers, fleet, languages, rivals

Figures = Any

ALPACA, SHABERI = "alpaca_eval.ndjson.gz", "ja_shaberi.ndjson.gz"
XSTEST, DO_NOT_ANSWER = "refusal_xstest.ndjson.gz", "refusal_do_not_answer.ndjson.gz"
COCONOT = "coconot_pairs.ndjson.gz"
LATENCIES = "llmperf.ndjson.gz"


@dataclass(frozen=True)
class Task:
    """How much of it, and on what; `data` is None for a part that needs none."""

    quick: bool
    data: Path | None

    @property
    def splits(self) -> int:
        return swaps.SPLITS // 2 if self.quick else swaps.SPLITS

    @property
    def effort(self) -> rates.Effort:
        return rates.QUICK if self.quick else rates.Effort()

    @property
    def directory(self) -> Path:
        assert self.data is not None, "this part names the files that it needs"
        return self.data


@dataclass(frozen=True)
class Cut:
    """A long measurement in so many pieces, side by side; what they find is put together."""

    pieces: Callable[[Task], int]
    measure: Callable[[Task, int], Figures]
    join: Callable[[list[Figures]], Figures] = list


@dataclass(frozen=True)
class Part:
    """A question. `files` are those of the evaluation data without which it cannot be asked."""

    name: str
    question: str
    measure: Callable[[Task], Figures] | Cut
    files: tuple[str, ...] = ()
    #: Asked in a quick run as well.
    quick: bool = True
    #: Measured with nothing beside it: a matter of speed.
    alone: bool = False
    #: Asked only by those who ask for it: it needs an environment of its own.
    environment: str | None = None

    def count_pieces(self, task: Task) -> int:
        return self.measure.pieces(task) if isinstance(self.measure, Cut) else 1

    def measure_piece(self, task: Task, piece: int) -> Figures:
        """Run one of the pieces; in whatever process."""
        if isinstance(self.measure, Cut):
            return self.measure.measure(task, piece)
        return self.measure(task)

    def join(self, pieces: list[Figures]) -> Figures:
        """The part's figures, of those of all its pieces in their order."""
        return self.measure.join(pieces) if isinstance(self.measure, Cut) else pieces[0]


def _known(task: Task) -> Figures:
    return [asdict(each) for each in rates.measure_delays(task.effort)]


def _references(task: Task) -> tuple[int, ...]:
    return (rates.REFERENCE_EVENTS,) if task.quick else rivals.RivalEffort().quiet


def _reference(task: Task, piece: int) -> Figures:
    return asdict(rates.measure_fleet(task.effort, _references(task)[piece], rates.MISS))


def _nulls(task: Task) -> Figures:
    return asdict(rates.measure_nulls(task.effort))


def _rivals_effort(task: Task) -> rivals.RivalEffort:
    return rivals.QUICK_RIVALS if task.quick else rivals.RivalEffort()


def _rivals(task: Task, piece: int) -> Figures:
    effort = _rivals_effort(task)
    return [asdict(each) for each in rivals.measure_rivals(effort, effort.run_lengths[piece])]


def _flatten(pieces: list[Figures]) -> Figures:
    return [each for piece in pieces for each in piece]


def _speed(task: Task) -> Figures:
    return asdict(rates.measure_speed())


def _swaps(task: Task) -> Figures:
    english = swaps.English.read(task.directory)
    found = swaps.measure_swaps(english, task.splits)
    return found if task.quick else {**found, **swaps.measure_settings(english, task.splits)}


def _mix(task: Task) -> Figures:
    # It is rare, so it takes all the runs to be seen at all.
    return swaps.measure_mix(swaps.English.read(task.directory), swaps.SPLITS)


def _told(task: Task, piece: int) -> Figures:
    return swaps.measure_told(swaps.English.read(task.directory), swaps.ENGLISH[piece::TOLD_PIECES])


def _join_told(pieces: list[Figures]) -> Figures:
    """The swaps in their order again."""
    return [pieces[at % TOLD_PIECES][at // TOLD_PIECES] for at in range(len(swaps.ENGLISH))]


def _japanese(task: Task) -> Figures:
    english = swaps.English.read(task.directory).corpus
    return swaps.measure_japanese(task.directory, task.splits, english)


def _answers(task: Task) -> Figures:
    return answers.measure(swaps.English.read(task.directory), task.splits // 2)


def _alibi(task: Task) -> Figures:
    return alibi.measure(swaps.English.read(task.directory))


def _languages(task: Task) -> Figures:
    return languages.measure(
        [row["response"] for row in refusal.read(task.directory, "alpaca_eval")],
        [row["response"] for row in refusal.read(task.directory, "ja_shaberi")],
    )


def _refusal(task: Task) -> Figures:
    return refusal.measure_accuracy(task.directory)


def _state(task: Task) -> Figures:
    return fleet.measure_state()


def _weeks(task: Task, piece: int) -> Figures:
    # Without the data the same, of made samples.
    whole = task.data is not None and (task.data / ALPACA).is_file()
    whole = whole and task.data is not None and (task.data / LATENCIES).is_file()
    material = fleet.Material.read(task.directory) if whole else fleet.Material.make()
    size = (2_000, 1) if task.quick else (5_000, 2)
    return {"real": whole, **asdict(fleet.run_weeks(*size, material, seed=piece))}


def _join_weeks(runs: list[Figures]) -> Figures:
    weeks = sum(run["weeks"] for run in runs)
    return {
        "false_pages_per_week": sum(run["alarms"] for run in runs) / weeks,
        "weeks": weeks,
        "runs": runs,
    }


#: Pieces of what is told the shift: each reads the data, which takes a while.
TOLD_PIECES = 3

_WEEKS = Cut(lambda task: 1 if task.quick else 2, _weeks, _join_weeks)
_TOLD = Cut(lambda _: TOLD_PIECES, _told, _join_told)
_RIVALS = Cut(lambda task: len(_rivals_effort(task).run_lengths), _rivals, _flatten)
_REFERENCE = Cut(lambda task: len(_references(task)), _reference)

#: The longest first, so that all processes end at about the same time.
PARTS: tuple[Part, ...] = (
    Part("speed", "How many rate updates a second?", _speed, alone=True),
    Part("weeks", "How many false pages a week, of a whole fleet?", _WEEKS),
    Part("known", "How soon is a rate's change found whose past is known?", _known),
    Part("told", "How soon a swap, against what is told the shift?", _TOLD, (ALPACA,)),
    Part("rivals", "How soon do others find a rate's change?", _RIVALS),
    Part("swaps", "How soon is a silent swap found, and what of none?", _swaps, (ALPACA,)),
    Part("japanese", "Are swaps found as well in Japanese?", _japanese, (ALPACA, SHABERI)),
    Part("mix", "Does other traffic pass for another model?", _mix, (ALPACA,)),
    Part("reference", "How soon, when the past is a reference?", _REFERENCE),
    Part("answers", "How soon do others find a swap?", _answers, (ALPACA,), quick=False),
    Part(
        "alibi",
        "How soon does alibi-detect find a swap?",
        _alibi,
        (ALPACA,),
        quick=False,
        environment=alibi.ENVIRONMENT,
    ),
    Part("refusal", "Are refusals recognised?", _refusal, (XSTEST, DO_NOT_ANSWER)),
    Part("nulls", "Does each monitor keep its own promise?", _nulls),
    Part("languages", "Are refusals found as well in Japanese?", _languages, (ALPACA, SHABERI)),
    Part("state", "How much memory do 5,000 monitors take?", _state),
)
BY_NAME = {part.name: part for part in PARTS}
