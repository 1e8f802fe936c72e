"""A stream of real answers in which one model silently takes another's place, as gateway events.

    python -m benchmarks.splice DATA_DIR --swap gpt-4o:gpt-4o-mini > swap.ndjson
    kizashi replay swap.ndjson

DATA_DIR holds ``alpaca_eval.ndjson.gz``. Callers ask for the first model all along, and for
another one beside it; from event `--at` on the second model answers in the first one's place.
With the same model twice nothing changes, and nothing should be said. Times are the last hours,
up to now; prompts come in random order, each as often as the others.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILE = "alpaca_eval.ndjson.gz"
#: Prompt → answer.
Answers = Mapping[str, str]
Json = dict[str, Any]

STEP_S = 1.0
CHARS_PER_TOKEN = 4
TOKENS_PER_S = 60.0
ROUTES = ("support", "search", "api")
TENANTS = ("acme", "globex", "initech", "umbrella")
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True)
class Splice:
    """Two of three events ask for `before`, the others for `beside`; from `at` on `after` answers.

    `end_s` is the time of the last event, seconds since the epoch.
    """

    before: str
    after: str
    beside: str
    events: int
    at: int
    end_s: float
    seed: int = 0


def find_model(name: str, models: Sequence[str]) -> str:
    """The model of that name, with or without its date, or the only one whose name has it.

    Raises:
        ValueError: none or several have it.
    """
    exact = [m for m in models if name in (m, _DATE.sub("", m))]
    found = exact or [m for m in models if name in m]
    if len(found) != 1:
        raise ValueError(f"{name!r} is not one of {', '.join(sorted(models))}")
    return found[0]


def make_events(splice: Splice, answers: Mapping[str, Answers]) -> Iterator[Json]:
    """Events of the contract, in order of time; the same seed gives the same stream."""
    rng = np.random.default_rng(splice.seed)
    drawn = {
        model: _draw(sorted(answers[model]), splice.events, rng)
        for model in (splice.before, splice.beside)
    }
    other = rng.random(splice.events) < 1 / 3
    for at in range(splice.events):
        asked = splice.beside if other[at] else splice.before
        swapped = asked == splice.before and at >= splice.at
        answering = splice.after if swapped else asked
        prompt = drawn[asked][at]
        if prompt in answers[answering]:
            answer = answers[answering][prompt]
            time_s = splice.end_s - (splice.events - 1 - at) * STEP_S
            yield _make_event(f"s{splice.seed}-{at}", time_s, asked, prompt, answer, rng)


def _draw(prompts: Sequence[str], size: int, rng: np.random.Generator) -> list[str]:
    """Every prompt once in random order, then again in another."""
    rounds = -(-size // len(prompts))
    return [prompts[i] for _ in range(rounds) for i in rng.permutation(len(prompts))][:size]


def _make_event(
    event_id: str, time_s: float, model: str, prompt: str, answer: str, rng: np.random.Generator
) -> Json:
    tokens = 1 + len(answer) // CHARS_PER_TOKEN
    first_chunk_s = 0.4 * float(np.exp(rng.normal(0, 0.3)))
    return {
        "event.id": event_id,
        "event.time": round(time_s, 3),
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gateway",
        "gen_ai.request.model": model,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 1 + len(prompt) // CHARS_PER_TOKEN,
        "gen_ai.usage.output_tokens": tokens,
        "gen_ai.response.time_to_first_chunk": round(first_chunk_s, 3),
        "gen_ai.client.operation.duration": round(first_chunk_s + tokens / TOKENS_PER_S, 3),
        "gateway.route": str(rng.choice(ROUTES)),
        "gateway.tenant": str(rng.choice(TENANTS)),
        "prompt.text": prompt,
        "response.text": answer,
    }


def read_answers(file: Path) -> dict[str, dict[str, str]]:
    """Model → prompt → answer."""
    answers: dict[str, dict[str, str]] = {}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            answers.setdefault(row["model"], {})[row["prompt"]] = row["response"]
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the evaluation data")
    parser.add_argument("--swap", required=True, metavar="BEFORE:AFTER", help="names of two models")
    parser.add_argument("--beside", default="mistral-large-2402", help="other traffic all along")
    parser.add_argument("--events", type=int, default=6_000)
    parser.add_argument("--at", type=int, default=3_600, help="the first event of the swap")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    file, names = given.data / FILE, given.swap.split(":")
    if not file.is_file() or len(names) != 2:
        parser.error(f"{file} is missing" if len(names) == 2 else "--swap takes BEFORE:AFTER")
    answers = read_answers(file)
    try:
        before, after, beside = (find_model(n, list(answers)) for n in (*names, given.beside))
    except ValueError as error:
        parser.error(str(error))
    splice = Splice(before, after, beside, given.events, given.at, time.time(), given.seed)
    for event in make_events(splice, answers):
        sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
