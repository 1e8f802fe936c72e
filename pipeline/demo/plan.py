"""The company's hour before it is put into words: who asks what, what it meets, how long it takes.

Every rate is constant, outside the scripted incidents, so that a correct
detector stays silent. All draws come from one seeded generator, and each is
made for every request: a change of the script changes what it touches alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from pipeline.demo.cast import (
    CACHED_PROMPT_BLOCK,
    CACHED_PROMPT_MIN,
    CACHED_PROMPT_SHARE,
    FAILURE_RATE,
    FAILURES,
    FIRST_CHUNK_SIGMA,
    HOME_SHARE,
    INPUT_TOKENS_PER_S,
    MODELS,
    OUTAGE_FAILURES,
    REFUSAL_RATE,
    REFUSAL_TOKENS_MAX,
    REGIONS,
    RESCUED_SHARE,
    ROUTES,
    TENANTS,
    TOKEN_SIGMA,
    TRUNCATION_RATE,
    VLLM,
)
from pipeline.demo.script import Outage, PromptRollout, ScriptedIncident, Slowdown
from pipeline.demo.trace import HOUR_MS, Trace

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Outcome(IntEnum):
    ANSWERED = 0
    REFUSED = 1
    TRUNCATED = 2
    FAILED = 3
    CACHED = 4


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
    # What a template makes the model decline is declined in words, with no flag.
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
