"""A simulated company: every request of one hour, as its gateway would report it.

Arrivals and token counts are those of a real service (`pipeline.demo.trace`).

Pure: the same seed, start and script give the same bytes. Another start moves
the times and the ids, which begin with a time as UUIDv7 has it, and nothing else.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from pipeline.demo.cast import (
    DISLIKED,
    DISLIKED_REFUSALS,
    DISLIKED_TRUNCATIONS,
    FAILURES,
    MAX_TOKENS,
    MODELS,
    RATED_SHARE,
    RATING_S,
    RATING_SIGMA,
    REGIONS,
    ROUTES,
    TENANTS,
    USERS_PER_TENANT,
)
from pipeline.demo.malformed import MALFORMATIONS
from pipeline.demo.plan import Outcome, Plan, plan_hour
from pipeline.demo.script import SCRIPT, ScriptedIncident
from pipeline.demo.texts import (
    Draws,
    choose_topic,
    cut_off,
    write_answer,
    write_prompt,
    write_refusal,
)
from pipeline.demo.trace import HOUR_MS, load_trace

DEFAULT_SEED = 7
MALFORMED = 40
DUPLICATES = 60


class RecordKind(StrEnum):
    EVENT = "event"
    MALFORMED = "malformed"
    DUPLICATE = "duplicate"
    #: What somebody thinks of an answer; it has a topic of its own.
    RATING = "rating"


class Record(Struct, frozen=True):
    """One record as the gateway sends it."""

    #: When it is sent: for an event its `event.time`.
    time_ms: int
    kind: RecordKind
    raw: bytes


class Company(Struct, frozen=True):
    """One hour of the company, from `start_ms` (milliseconds since the epoch) on."""

    start_ms: int
    seed: int = DEFAULT_SEED
    script: tuple[ScriptedIncident, ...] = SCRIPT

    @property
    def end_ms(self) -> int:
        return self.start_ms + HOUR_MS

    def records(self) -> Iterator[Record]:
        """Yield the hour's records in the order in which they are sent.

        About 28,000: every request of the trace once, in the order of
        `event.time`; `DUPLICATES` of them once more, up to half a minute
        later; and between them `MALFORMED` that no one can read.
        """
        plan = plan_hour(load_trace(), self.script, self.seed)
        for time_ms, kind, index, detail in _schedule(plan, self.seed):
            event = build_event(plan, index, self.start_ms)
            if kind is RecordKind.MALFORMED:
                raw = MALFORMATIONS[detail](event)
            else:
                raw = msgspec.json.encode(event)
            yield Record(self.start_ms + time_ms, kind, raw)

    def ratings(self) -> Iterator[Record]:
        """Yield the hour's thumbs in the order in which they are given, about 1,100.

        They go by the answer alone: users notice what the detectors are to find.
        """
        plan = plan_hour(load_trace(), self.script, self.seed)
        for time_ms, index, dislikes in _rate(plan, self.seed):
            raw = msgspec.json.encode(_build_rating(plan, index, self.start_ms, time_ms, dislikes))
            yield Record(self.start_ms + time_ms, RecordKind.RATING, raw)


def _rate(plan: Plan, seed: int) -> list[tuple[int, int, bool]]:
    """When a thumb is given within the hour, to which request, and whether it points down."""
    rng = np.random.default_rng([seed, 2])
    n = len(plan)
    rated = (rng.random(n) < RATED_SHARE) & (plan.outcome != Outcome.FAILED)
    delay_ms = 1000 * RATING_S * np.exp(RATING_SIGMA * rng.standard_normal(n))
    time_ms = plan.end_ms + np.rint(delay_ms).astype(np.int64)
    disliked = np.full(n, DISLIKED)
    disliked[plan.outcome == Outcome.REFUSED] = DISLIKED_REFUSALS
    disliked[plan.outcome == Outcome.TRUNCATED] = DISLIKED_TRUNCATIONS
    dislikes = rng.random(n) < disliked
    given = np.flatnonzero(rated & (time_ms < HOUR_MS)).tolist()
    return sorted((int(time_ms[i]), i, bool(dislikes[i])) for i in given)


def _build_rating(
    plan: Plan, index: int, start_ms: int, time_ms: int, dislikes: bool
) -> dict[str, Any]:
    request = _describe_request(plan, index, start_ms, Draws(plan.words[index].tolist()))
    return {
        "feedback.id": f"thumb-{request['event.id']}",
        "feedback.time": _format_time(start_ms + time_ms),
        "event.id": request["event.id"],
        "gen_ai.evaluation.name": "thumbs",
        "gen_ai.evaluation.score.value": 0 if dislikes else 1,
        "gateway.tenant": request["gateway.tenant"],
        "gateway.user": request["gateway.user"],
    }


def _schedule(plan: Plan, seed: int) -> list[tuple[int, RecordKind, int, int]]:
    """When sent, what kind, which request, and for a malformed one which way."""
    rng = np.random.default_rng([seed, 1])
    chosen = rng.choice(len(plan), MALFORMED + DUPLICATES, replace=False).tolist()
    delays = rng.integers(200, 30_000, DUPLICATES).tolist()
    end_ms = plan.end_ms.tolist()
    entries = [(end_ms[i], RecordKind.EVENT, i, 0) for i in range(len(plan))]
    entries += [
        (end_ms[i], RecordKind.MALFORMED, i, way % len(MALFORMATIONS))
        for way, i in enumerate(chosen[:MALFORMED])
    ]
    entries += [
        (end_ms[i] + delay, RecordKind.DUPLICATE, i, 0)
        for i, delay in zip(chosen[MALFORMED:], delays, strict=True)
    ]
    return sorted(entries, key=lambda e: (e[0], e[2]))


def build_event(plan: Plan, index: int, start_ms: int) -> dict[str, Any]:
    """Return one request as the gateway reports it, in the contract of `schemas.event`."""
    outcome = Outcome(int(plan.outcome[index]))
    draws = Draws(plan.words[index].tolist())
    event = _describe_request(plan, index, start_ms, draws)
    event |= _describe_timing(plan, index, outcome)
    if outcome is Outcome.FAILED:
        event["error.type"] = FAILURES[plan.failure[index]][0]
    else:
        event |= _describe_response(plan, index, outcome, draws)
    return event | _write_texts(plan, index, outcome, event, draws)


def _describe_request(plan: Plan, index: int, start_ms: int, draws: Draws) -> dict[str, Any]:
    route = ROUTES[plan.route[index]]
    model = MODELS[plan.model[index]]
    tenant = TENANTS[plan.tenant[index]]
    rollout = plan.rollout[index]
    event: dict[str, Any] = {
        "event.id": _make_id(start_ms + int(plan.arrival_ms[index]), draws),
        "event.time": _format_time(start_ms + int(plan.end_ms[index])),
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": model.provider.name,
        "gen_ai.request.model": model.name,
        "gen_ai.request.stream": route.stream,
        "gen_ai.request.temperature": route.temperature,
        "gen_ai.request.max_tokens": MAX_TOKENS,
        "gen_ai.prompt.name": route.prompt_name,
        "gen_ai.prompt.version": plan.versions[rollout] if rollout >= 0 else route.prompt_version,
        "gateway.route": route.name,
        "gateway.tenant": tenant.name,
        "gateway.user": f"{tenant.name}/{draws.take() % USERS_PER_TENANT:03}",
        "gateway.region": REGIONS[plan.region[index]],
        "gateway.cache": "hit" if plan.outcome[index] == Outcome.CACHED else "miss",
        "gateway.attempts": 1,
    }
    if plan.first_model[index] != plan.model[index]:
        event["gateway.attempts"] = 2
        event["gateway.fallback_from"] = MODELS[plan.first_model[index]].provider.name
    return event


def _make_id(arrival_ms: int, draws: Draws) -> str:
    """UUIDv7 (RFC 9562): 48 bits of time, 74 of chance."""
    bits = arrival_ms << 80 | 7 << 76 | (draws.take() & 0xFFF) << 64 | 2 << 62
    return str(uuid.UUID(int=bits | draws.take()))


def _format_time(time_ms: int) -> str:
    time = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _describe_timing(plan: Plan, index: int, outcome: Outcome) -> dict[str, Any]:
    timing = {"gen_ai.client.operation.duration": round(float(plan.duration_s[index]), 4)}
    answered = outcome not in {Outcome.FAILED, Outcome.CACHED}
    if answered and ROUTES[plan.route[index]].stream:
        first_chunk_s = round(float(plan.first_chunk_s[index]), 4)
        timing["gen_ai.response.time_to_first_chunk"] = first_chunk_s
    return timing


def _describe_response(plan: Plan, index: int, outcome: Outcome, draws: Draws) -> dict[str, Any]:
    model = MODELS[plan.model[index]]
    response: dict[str, Any] = {
        "gen_ai.response.model": model.snapshot,
        "gen_ai.response.id": f"{model.provider.id_prefix}{draws.take():016x}",
        "gen_ai.response.finish_reasons": [_finish_reason(plan, index, outcome)],
    }
    if outcome is Outcome.CACHED:
        return response
    output_tokens = int(plan.output_tokens[index])
    response["gen_ai.usage.input_tokens"] = int(plan.input_tokens[index])
    response["gen_ai.usage.output_tokens"] = output_tokens
    if cached := int(plan.cached_tokens[index]):
        response["gen_ai.usage.cache_read.input_tokens"] = cached
    if model.reasoning_share:
        reasoning = int(output_tokens * model.reasoning_share)
        response["gen_ai.usage.reasoning.output_tokens"] = reasoning
    if outcome is Outcome.TRUNCATED:
        response["gen_ai.request.max_tokens"] = output_tokens
    if outcome is Outcome.REFUSED and plan.witness[index] < model.provider.flag_share:
        response["gateway.refusal"] = True
    return response


def _finish_reason(plan: Plan, index: int, outcome: Outcome) -> str:
    provider = MODELS[plan.model[index]].provider
    if outcome is Outcome.TRUNCATED:
        return provider.length
    return provider.withheld if _is_withheld(plan, index, outcome) else provider.stop


def _is_withheld(plan: Plan, index: int, outcome: Outcome) -> bool:
    """Told by the finish reason, with no text at all."""
    provider = MODELS[plan.model[index]].provider
    low, high = provider.flag_share, provider.flag_share + provider.withheld_share
    return outcome is Outcome.REFUSED and low <= float(plan.witness[index]) < high


def _write_texts(
    plan: Plan, index: int, outcome: Outcome, event: dict[str, Any], draws: Draws
) -> dict[str, str]:
    language = TENANTS[plan.tenant[index]].language
    topic = choose_topic(event["gateway.route"], language, draws)
    texts = {"prompt.text": write_prompt(topic, draws)}
    if outcome is Outcome.FAILED:
        return texts
    if _is_withheld(plan, index, outcome):
        texts["response.text"] = ""
    elif outcome is Outcome.REFUSED:
        texts["response.text"] = write_refusal(topic, draws)
    else:
        answer = write_answer(topic, draws)
        texts["response.text"] = cut_off(answer) if outcome is Outcome.TRUNCATED else answer
    return texts
