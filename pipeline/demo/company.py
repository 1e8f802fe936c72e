"""A simulated company: every request of one hour, as its gateway would report it.

Arrivals and token counts are those of a real service (`pipeline.demo.trace`).
The rest is drawn from constant rates, so that outside the scripted incidents
nothing changes but the amount of traffic, and a correct detector stays silent.

Pure: the same seed, start and script give the same bytes. Another start moves
the times and the ids, which begin with a time as UUIDv7 has it, and nothing else.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from enum import IntEnum, StrEnum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from pipeline.demo.malformed import MALFORMATIONS
from pipeline.demo.script import SCRIPT, Outage, PromptRollout, ScriptedIncident, Slowdown
from pipeline.demo.texts import (
    Draws,
    choose_topic,
    cut_off,
    write_answer,
    write_prompt,
    write_refusal,
)
from pipeline.demo.trace import HOUR_MS, Trace, load_trace

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DEFAULT_SEED = 7


# --- Who is who ---------------------------------------------------------------------


class Provider(Struct, frozen=True):
    name: str
    #: Its words for an answer that ended, was cut off, or was withheld.
    stop: str
    length: str
    withheld: str
    #: How it tells a refusal: shares of a flag of its own and of the finish reason. The rest
    #: are only in the words of the answer.
    flag_share: float = 0.0
    withheld_share: float = 0.0
    id_prefix: str = ""


class Model(Struct, frozen=True):
    provider: Provider
    name: str
    snapshot: str
    #: Medians of log-normal times.
    first_chunk_s: float
    token_s: float
    #: Share of the output tokens that are spent on reasoning.
    reasoning_share: float = 0.0


class Route(Struct, frozen=True):
    name: str
    #: Share of the conversations; the code trace has a route to itself.
    share: float
    prompt_name: str
    prompt_version: str
    #: Request model → share.
    models: dict[str, float]
    cache_share: float
    temperature: float
    stream: bool = True


class Tenant(Struct, frozen=True):
    name: str
    share: float
    language: str
    home: str


OPENAI = Provider("openai", "stop", "length", "content_filter", 0.4, 0.25, "chatcmpl-")
ANTHROPIC = Provider("anthropic", "end_turn", "max_tokens", "refusal", 0.0, 0.5, "msg_")
VLLM = Provider("vllm", "stop", "length", "stop", id_prefix="cmpl-")

MODELS = (
    Model(OPENAI, "gpt-5.4", "gpt-5.4-2026-03-05", 0.65, 0.014, 0.2),
    Model(OPENAI, "gpt-5.4-mini", "gpt-5.4-mini-2026-03-17", 0.38, 0.008, 0.1),
    Model(ANTHROPIC, "claude-sonnet-4-5", "claude-sonnet-4-5-20250929", 0.80, 0.016),
    Model(ANTHROPIC, "claude-haiku-4-5", "claude-haiku-4-5-20251001", 0.42, 0.009),
    Model(VLLM, "llama-3.3-70b-instruct", "llama-3.3-70b-instruct", 0.30, 0.020),
    Model(VLLM, "qwen3-32b", "qwen3-32b", 0.22, 0.013),
)
ROUTES = (
    Route(
        "support",
        0.34,
        "support-answer",
        "v6",
        {"gpt-5.4-mini": 0.45, "claude-haiku-4-5": 0.38, "qwen3-32b": 0.17},
        cache_share=0.12,
        temperature=0.3,
    ),
    Route(
        "search",
        0.26,
        "search-rag",
        "v12",
        {"gpt-5.4-mini": 0.40, "claude-haiku-4-5": 0.25, "llama-3.3-70b-instruct": 0.35},
        cache_share=0.09,
        temperature=0.0,
    ),
    Route(
        "summarise",
        0.20,
        "summarise",
        "v4",
        {"gpt-5.4": 0.40, "claude-sonnet-4-5": 0.35, "llama-3.3-70b-instruct": 0.25},
        cache_share=0.03,
        temperature=0.2,
    ),
    Route(
        "translate",
        0.20,
        "translate",
        "v9",
        {"gpt-5.4-mini": 0.45, "claude-haiku-4-5": 0.25, "qwen3-32b": 0.30},
        cache_share=0.06,
        temperature=0.0,
        stream=False,
    ),
    Route(
        "code-review",
        0.0,
        "code-review",
        "v3",
        {"gpt-5.4": 0.40, "claude-sonnet-4-5": 0.45, "qwen3-32b": 0.15},
        cache_share=0.02,
        temperature=0.1,
    ),
)
TENANTS = (
    Tenant("brightcart", 0.28, "en", "eu-west"),
    Tenant("hikari-denki", 0.20, "ja", "ap-northeast"),
    Tenant("meridian-bank", 0.15, "en", "us-east"),
    Tenant("polar-freight", 0.12, "en", "eu-west"),
    Tenant("aozora-travel", 0.09, "ja", "ap-northeast"),
    Tenant("fernwood-health", 0.07, "en", "us-east"),
    Tenant("quill-studio", 0.05, "en", "us-east"),
    Tenant("tsubame-books", 0.04, "ja", "ap-northeast"),
)
REGIONS = ("us-east", "eu-west", "ap-northeast")
#: The rest of a tenant's traffic is spread over the other regions.
HOME_SHARE = 0.85

# --- What is normal -----------------------------------------------------------------

#: An attempt fails. A quarter of the failures are rescued, which leaves errors at 0.5 %.
FAILURE_RATE = 0.0067
RESCUED_SHARE = 0.25
REFUSAL_RATE = 0.010
TRUNCATION_RATE = 0.020
FIRST_CHUNK_SIGMA = 0.35
TOKEN_SIGMA = 0.22
INPUT_TOKENS_PER_S = 30_000
#: A refusal is short, however long an answer would have been.
REFUSAL_TOKENS_MAX = 40
MAX_TOKENS = 4_096
CACHED_PROMPT_SHARE = 0.4
#: Providers cache prompts from so many tokens on, in blocks.
CACHED_PROMPT_MIN = 1_024
CACHED_PROMPT_BLOCK = 128
USERS_PER_TENANT = 400

#: `error.type` → share of the failures, and the median time until it is known.
FAILURES = (("rate_limit", 0.35, 0.12), ("server_error", 0.40, 0.9), ("timeout", 0.25, 30.0))
#: In an outage a provider does not answer "slow down".
OUTAGE_FAILURES = (("rate_limit", 0.0, 0.12), ("server_error", 0.75, 0.9), ("timeout", 0.25, 30.0))

MALFORMED = 40
DUPLICATES = 60


class Outcome(IntEnum):
    ANSWERED = 0
    REFUSED = 1
    TRUNCATED = 2
    FAILED = 3
    CACHED = 4


class RecordKind(StrEnum):
    EVENT = "event"
    MALFORMED = "malformed"
    DUPLICATE = "duplicate"


class Record(Struct, frozen=True):
    """One record as the gateway sends it."""

    #: When it is sent: for an event its `event.time`.
    time_ms: int
    kind: RecordKind
    raw: bytes


# --- The plan -----------------------------------------------------------------------


class Plan(Struct, frozen=True):
    """All that happens to n requests, in order of arrival; every array has shape (n,).

    Times are milliseconds since the start of the hour, durations seconds.
    Indices point into `ROUTES`, `MODELS`, `TENANTS`, `REGIONS` and `FAILURES`.
    """

    arrival_ms: Ints
    end_ms: Ints
    route: Ints
    #: The model that served, and the one that was tried first.
    model: Ints
    first_model: Ints
    tenant: Ints
    region: Ints
    #: Index into `versions`; the route's own where it is -1.
    rollout: Ints
    versions: tuple[str, ...]
    outcome: Ints
    failure: Ints
    #: 0 to 1: by which witness a refusal is told.
    witness: Floats
    input_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    #: Of the attempt that counts; a rescued request waited for the failed one before.
    duration_s: Floats
    first_chunk_s: Floats
    #: Shape (n, k): random integers for ids, users and texts.
    words: Ints

    def __len__(self) -> int:
        return len(self.arrival_ms)


class _Dice:
    """Named draws for n requests. Each is made for all of them, so no draw shifts another."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self._rng = rng
        self._n = n

    def chance(self) -> Floats:
        """Uniform in [0, 1)."""
        return self._rng.random(self._n)

    def noise(self, sigma: float) -> Floats:
        """Log-normal with median 1."""
        return np.exp(sigma * self._rng.standard_normal(self._n))

    def choose(self, shares: Sequence[float]) -> Ints:
        """Index of a choice with these shares."""
        return _find_share(shares, self.chance())


def plan_hour(trace: Trace, incidents: Sequence[ScriptedIncident], seed: int) -> Plan:
    """Decide everything about the hour but its wording."""
    rng = np.random.default_rng(seed)
    dice = _Dice(rng, len(trace))
    route = np.where(trace.is_code, len(ROUTES) - 1, dice.choose([r.share for r in ROUTES]))
    first_model = _choose_by_route(route, dice.chance())
    tenant = dice.choose([t.share for t in TENANTS])
    region = _choose_region(tenant, dice)
    traffic = _Traffic(trace.arrival_ms / HOUR_MS, route, first_model, region)

    hit = dice.chance() < np.array([r.cache_share for r in ROUTES])[route]
    outage, failure_rate = _failure_rates(traffic, incidents)
    failed = ~hit & (dice.chance() < failure_rate)
    failure, failure_s = _plan_failures(outage, dice)
    rescued = failed & (dice.chance() < RESCUED_SHARE)
    model = np.where(rescued, _FALLBACKS[route, first_model], first_model)
    served = traffic.served_by(model)

    rollout, versions, refusal_rate = _roll_out(served, incidents)
    outcome = _plan_outcomes(hit, failed & ~rescued, refusal_rate, dice.chance())
    # A template has no flag: what it makes the model decline is declined in words.
    witness = np.where(rollout >= 0, 1.0, dice.chance())
    output_tokens = _plan_output(trace.output_tokens, outcome)
    slow = _slow_down(served, incidents)
    first_chunk_s, duration_s = _plan_times(model, trace.input_tokens, output_tokens, slow, dice)
    duration_s = np.where(outcome == Outcome.FAILED, failure_s, duration_s)
    duration_s = np.where(hit, 0.006 * dice.noise(0.4), duration_s)
    waited_s = np.where(rescued, failure_s, 0.0)
    return Plan(
        arrival_ms=trace.arrival_ms,
        end_ms=trace.arrival_ms + np.rint((waited_s + duration_s) * 1000).astype(np.int64),
        route=route,
        model=model,
        first_model=first_model,
        tenant=tenant,
        region=region,
        rollout=rollout,
        versions=versions,
        outcome=outcome,
        failure=failure,
        witness=witness,
        input_tokens=trace.input_tokens,
        output_tokens=output_tokens,
        cached_tokens=_plan_cached_tokens(trace.input_tokens, model, dice),
        duration_s=duration_s,
        first_chunk_s=first_chunk_s,
        words=rng.integers(0, 2**62, size=(len(trace), 24)),
    )


def _find_share(shares: Sequence[float], chance: Floats) -> Ints:
    found = np.searchsorted(np.cumsum(shares), chance, side="right")
    return np.minimum(found, len(shares) - 1).astype(np.int64)


def _model_index(name: str) -> int:
    return next(i for i, model in enumerate(MODELS) if model.name == name)


def _find_fallbacks() -> Ints:
    """Shape (routes, models): the model of the route's mix that another provider serves."""
    return np.array(
        [
            [
                next(
                    _model_index(name)
                    for name in route.models
                    if MODELS[_model_index(name)].provider != model.provider
                )
                for model in MODELS
            ]
            for route in ROUTES
        ]
    )


_FALLBACKS = _find_fallbacks()


def _choose_by_route(route: Ints, chance: Floats) -> Ints:
    model = np.zeros(len(route), np.int64)
    for index, r in enumerate(ROUTES):
        names = np.array([_model_index(name) for name in r.models])
        here = route == index
        model[here] = names[_find_share(list(r.models.values()), chance[here])]
    return model


def _choose_region(tenant: Ints, dice: _Dice) -> Ints:
    home = np.array([REGIONS.index(t.home) for t in TENANTS])[tenant]
    elsewhere = 1 + dice.choose([1 / (len(REGIONS) - 1)] * (len(REGIONS) - 1))
    away = dice.chance() >= HOME_SHARE
    return np.where(away, (home + elsewhere) % len(REGIONS), home)


class _Traffic(Struct, frozen=True):
    """What an incident's `where` can be held against; `elapsed` is the fraction of the hour."""

    elapsed: Floats
    route: Ints
    model: Ints
    region: Ints

    def served_by(self, model: Ints) -> _Traffic:
        return _Traffic(self.elapsed, self.route, model, self.region)

    def touched_by(self, incident: ScriptedIncident) -> Bools:
        touched = (incident.starts <= self.elapsed) & (self.elapsed < incident.ends)
        for dimension, value in incident.where.items():
            touched = touched & (self._values(dimension) == value)
        return touched

    def _values(self, dimension: str) -> npt.NDArray[np.str_]:
        if dimension == "route":
            return np.array([r.name for r in ROUTES])[self.route]
        if dimension == "region":
            return np.array(REGIONS)[self.region]
        if dimension == "provider":
            return np.array([m.provider.name for m in MODELS])[self.model]
        if dimension == "request_model":
            return np.array([m.name for m in MODELS])[self.model]
        raise ValueError(f"the script cannot select by {dimension!r}")


def _failure_rates(
    traffic: _Traffic, incidents: Sequence[ScriptedIncident]
) -> tuple[Bools, Floats]:
    outage = np.zeros(len(traffic.route), np.bool_)
    rate = np.full(len(traffic.route), FAILURE_RATE)
    for incident in incidents:
        if isinstance(incident.effect, Outage):
            touched = traffic.touched_by(incident)
            outage |= touched
            rate[touched] = incident.effect.failure_rate
    return outage, rate


def _plan_failures(outage: Bools, dice: _Dice) -> tuple[Ints, Floats]:
    """Which failure a failing attempt would meet, and after how many seconds."""
    chance = dice.chance()
    usual = _find_share([share for _, share, _ in FAILURES], chance)
    broken = _find_share([share for _, share, _ in OUTAGE_FAILURES], chance)
    failure = np.where(outage, broken, usual)
    median_s = np.array([seconds for _, _, seconds in FAILURES])[failure]
    is_timeout = np.array([name == "timeout" for name, _, _ in FAILURES])[failure]
    # A time-out is set, not drawn: only the network varies.
    return failure, median_s * np.where(is_timeout, dice.noise(0.002), dice.noise(0.5))


def _roll_out(
    traffic: _Traffic, incidents: Sequence[ScriptedIncident]
) -> tuple[Ints, tuple[str, ...], Floats]:
    rollout = np.full(len(traffic.route), -1)
    rate = np.full(len(traffic.route), REFUSAL_RATE)
    versions: list[str] = []
    for incident in incidents:
        if isinstance(incident.effect, PromptRollout):
            touched = traffic.touched_by(incident)
            rollout[touched] = len(versions)
            rate[touched] = incident.effect.refusal_rate
            versions.append(incident.effect.version)
    return rollout, tuple(versions), rate


def _slow_down(traffic: _Traffic, incidents: Sequence[ScriptedIncident]) -> Floats:
    factor = np.ones(len(traffic.route))
    for incident in incidents:
        if isinstance(incident.effect, Slowdown):
            factor[traffic.touched_by(incident)] *= incident.effect.token_time_factor
    return factor


def _plan_outcomes(hit: Bools, failed: Bools, refusal_rate: Floats, chance: Floats) -> Ints:
    outcome = np.full(len(hit), int(Outcome.ANSWERED))
    outcome[chance < refusal_rate + TRUNCATION_RATE] = Outcome.TRUNCATED
    outcome[chance < refusal_rate] = Outcome.REFUSED
    outcome[failed] = Outcome.FAILED
    # Only good answers are in the cache.
    outcome[hit] = Outcome.CACHED
    return outcome


def _plan_output(tokens: Ints, outcome: Ints) -> Ints:
    short = np.minimum(tokens, REFUSAL_TOKENS_MAX)
    return np.where(outcome == Outcome.REFUSED, short, tokens)


def _plan_times(
    model: Ints, input_tokens: Ints, output_tokens: Ints, slow: Floats, dice: _Dice
) -> tuple[Floats, Floats]:
    """Seconds to the first chunk, and to the last."""
    first_chunk_s = np.array([m.first_chunk_s for m in MODELS])[model]
    first_chunk_s = first_chunk_s * dice.noise(FIRST_CHUNK_SIGMA)
    first_chunk_s += input_tokens / INPUT_TOKENS_PER_S
    token_s = np.array([m.token_s for m in MODELS])[model] * dice.noise(TOKEN_SIGMA) * slow
    return first_chunk_s, first_chunk_s + np.maximum(output_tokens - 1, 0) * token_s


def _plan_cached_tokens(input_tokens: Ints, model: Ints, dice: _Dice) -> Ints:
    blocks = (input_tokens * (0.3 + 0.6 * dice.chance())).astype(np.int64) // CACHED_PROMPT_BLOCK
    known = (input_tokens >= CACHED_PROMPT_MIN) & (dice.chance() < CACHED_PROMPT_SHARE)
    hosted = np.array([m.provider != VLLM for m in MODELS])[model]
    return np.where(known & hosted, blocks * CACHED_PROMPT_BLOCK, 0)


# --- The records --------------------------------------------------------------------


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
    event = {
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
    response = {
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
        answer = write_answer(topic, int(plan.output_tokens[index]), draws)
        texts["response.text"] = cut_off(answer) if outcome is Outcome.TRUNCATED else answer
    return texts
