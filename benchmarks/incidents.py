"""How often an incident's true cause is named first, and its symptom rightly.

    python -m benchmarks.incidents               # 500 incidents of known cause, a few minutes
    python -m benchmarks.incidents --quick       # 60 of them
    python -m benchmarks.incidents --json
    python -m benchmarks.incidents --misses      # and say what was named instead

Each incident is an hour and twenty minutes of the demo's company, with rates that differ
by provider, prompt, route, tenant and model. Something goes wrong in one slice: a value of one
dimension, of two, or all traffic; errors, refusals, truncation, latency, or answers of another
kind; a new prompt version or model version, or what has long been there. In every second
incident traffic shifts beside it, within minutes of the change: a tenant, a route, a model
or a region takes over up to half of it.

The first default monitor whose evidence since the change passes the threshold raises the
alarm, and dates the change with an error. What is measured is the code that runs in
production: the counting in SQL, on the embedded engine, and what is made of it. A cause is
right when it names the very requests that were touched, by whatever name: here a route and
its prompt are the same requests. It is judged at the page, when little is known, and two
minutes later, when an alarm that merges would have it looked at again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import ClickHouseSettings
from pipeline.demo.cast import MODELS, REGIONS, ROUTES, TENANTS
from pipeline.incidents.diagnosis import Diagnosis, diagnose
from pipeline.incidents.explain import (
    CANDIDATES,
    LINEAGE,
    MIX_DIMENSIONS,
    ErrorType,
    Investigation,
    Slice,
)
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.incidents import OWN_EVENTS, IncidentStore
from schemas.alarm import Alarm, Direction, Rate, Transition
from schemas.incident import Symptom
from schemas.monitor import DEFAULT_GROUPINGS
from schemas.signal import FAMILY_OF, Signal

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Texts = npt.NDArray[np.str_]
Labels = dict[str, str]

START_MS = 1_790_000_000_000
BEFORE_S, AFTER_S, EVENTS_PER_S = 3_600, 1_200, 3
#: A promise of one false page a week among some hundreds of monitors asks for about as much.
THRESHOLD_NATS = math.log(5e4)
LEARNED = 300
STEP_S = 5
SETTLED_MS = 120_000
WIDTH = 24
#: Standard deviation of the estimated change point around the true one.
DATING_S = 15.0
#: A cause of fewer requests than this in the hour is nobody's incident.
LEAST_TOUCHED = 150

MIX = {
    Signal.ERROR: 0.30,
    Signal.REFUSAL: 0.25,
    Signal.SLOW_OUTPUT: 0.12,
    Signal.SLOW_FIRST_CHUNK: 0.08,
    Signal.TRUNCATION: 0.10,
    Signal.FINGERPRINT: 0.15,
}
#: What the slice is made of → how often. New versions come with their own past: none.
SHAPES: dict[tuple[str, ...], float] = {
    ("new prompt",): 0.13,
    ("new model",): 0.09,
    ("provider",): 0.10,
    ("request_model",): 0.08,
    ("region",): 0.06,
    ("route",): 0.07,
    ("tenant",): 0.08,
    ("guardrail",): 0.03,
    (): 0.03,
    ("provider", "region"): 0.09,
    ("request_model", "route"): 0.06,
    ("request_model", "tenant"): 0.04,
    ("route", "tenant"): 0.04,
    ("route", "region"): 0.03,
    ("request_model", "region"): 0.04,
    ("new prompt", "request_model"): 0.03,
}
COLUMNS = (
    "provider", "request_model", "response_model", "route", "tenant",
    "prompt_name", "prompt_version", "region", "guardrail",
)  # fmt: skip
ERRORS = ("server_error", "timeout", "rate_limit")


@dataclass
class Incident:
    """n requests in order of time, and what went wrong with which of them."""

    number: int
    signal: Signal
    shape: tuple[str, ...]
    time_ms: npt.NDArray[np.int64]
    columns: dict[str, Texts]
    touched: Bools
    symptom: Symptom
    shifted: str
    error_type: Texts
    refused: Bools
    truncated: Bools
    first_chunk_s: Floats
    token_s: Floats
    residual: Floats
    direction: Floats
    change_ms: int = START_MS

    _codes: dict[str, tuple[Texts, npt.NDArray[np.int64]]] = field(default_factory=dict)

    def coded(self, dimension: str) -> tuple[Texts, npt.NDArray[np.int64]]:
        """Return the dimension's values, fewer than 64, and of each request which it is."""
        if dimension not in self._codes:
            values, codes = np.unique(self.columns[dimension], return_inverse=True)
            self._codes[dimension] = values, codes
        return self._codes[dimension]

    def select(self, labels: Mapping[str, str]) -> Bools:
        """Return which requests have all of these labels."""
        chosen = np.ones(len(self.time_ms), np.bool_)
        for dimension, value in labels.items():
            values, codes = self.coded(dimension)
            chosen &= codes == np.searchsorted(values, value) if value in values else False
        return chosen

    @property
    def failed(self) -> Bools:
        failed: Bools = self.error_type != ""
        return failed


# --- What happens --------------------------------------------------------------------------------


def draw_incident(number: int, seed: int) -> Incident:
    """Return one incident; the same for the same number and seed."""
    for attempt in range(100):
        rng = np.random.default_rng([seed, number, attempt])
        made = _try_incident(number, rng)
        if made is not None:
            return made
    raise RuntimeError("no slice has enough traffic")


def _try_incident(number: int, rng: np.random.Generator) -> Incident | None:
    n = (BEFORE_S + AFTER_S) * EVENTS_PER_S
    offset_s = np.sort(rng.uniform(-BEFORE_S, AFTER_S, n))
    columns = _draw_traffic(n, rng)
    signal = list(MIX)[rng.choice(len(MIX), p=list(MIX.values()))]
    shares = np.array(list(SHAPES.values()))
    shape = list(SHAPES)[rng.choice(len(SHAPES), p=shares / shares.sum())]
    if signal is Signal.ERROR and "new model" in shape:
        # Requests that fail do not say which model would have answered: nobody can know.
        return None
    shifted = _shift_traffic(columns, offset_s, shape, rng)
    touched = _choose_slice(columns, offset_s, shape, rng)
    if touched[offset_s >= 0].sum() < LEAST_TOUCHED * AFTER_S / BEFORE_S:
        return None
    acting = touched & (offset_s >= 0)
    base = _draw_base(columns, rng)
    is_new = any(part.startswith("new") for part in shape)
    gone = signal is Signal.ERROR and (is_new or rng.random() < 0.2)
    effect = _draw_effect(signal, gone=gone and not is_new, rng=rng)
    made = _act(signal, effect, acting, base, rng)
    # A request that failed has no model that answered.
    columns["response_model"] = np.where(made["error_type"] != "", "", columns["response_model"])
    return Incident(
        number=number,
        signal=signal,
        shape=shape,
        time_ms=START_MS + np.rint(offset_s * 1000).astype(np.int64),
        columns=columns,
        touched=touched,
        symptom=_true_symptom(signal, gone=gone),
        shifted=shifted,
        **made,
    )


def _true_symptom(signal: Signal, *, gone: bool) -> Symptom:
    if signal in {Signal.ERROR, Signal.SLOW_OUTPUT, Signal.SLOW_FIRST_CHUNK}:
        return Symptom.DEPLOYMENT_FAILURE if gone else Symptom.DEGRADED_PERFORMANCE
    return Symptom.INVALID_INFERENCE


def _draw_traffic(n: int, rng: np.random.Generator) -> dict[str, Texts]:
    shares = np.array([r.share or 0.08 for r in ROUTES])
    route = rng.choice(len(ROUTES), n, p=shares / shares.sum())
    tenant = rng.choice(len(TENANTS), n, p=[t.share for t in TENANTS])
    home = np.array([REGIONS.index(t.home) for t in TENANTS])[tenant]
    away = rng.random(n) < 0.25
    region = np.where(away, (home + rng.integers(1, len(REGIONS), n)) % len(REGIONS), home)
    columns = {
        "route": np.array([r.name for r in ROUTES])[route],
        "prompt_name": np.array([r.prompt_name for r in ROUTES])[route],
        "prompt_version": np.array([r.prompt_version for r in ROUTES])[route].astype("<U8"),
        "tenant": np.array([t.name for t in TENANTS])[tenant],
        "region": np.array(REGIONS)[region],
        "guardrail": rng.choice(["", "pii", "jailbreak"], n, p=[0.9, 0.06, 0.04]),
    }
    columns["request_model"] = _draw_models(columns["route"], rng)
    _name_models(columns)
    return columns


def _draw_models(route: Texts, rng: np.random.Generator) -> Texts:
    model = np.empty(len(route), "<U40")
    for each in ROUTES:
        here = route == each.name
        names, shares = list(each.models), np.array(list(each.models.values()))
        model[here] = rng.choice(names, int(here.sum()), p=shares / shares.sum())
    return model


def _name_models(columns: dict[str, Texts]) -> None:
    model = columns["request_model"]
    for column, named in (
        ("provider", {m.name: m.provider.name for m in MODELS}),
        ("response_model", {m.name: m.snapshot for m in MODELS}),
    ):
        columns[column] = np.array([named[m] for m in model.tolist()], "<U40")


def _shift_traffic(
    columns: dict[str, Texts], offset_s: Floats, shape: tuple[str, ...], rng: np.random.Generator
) -> str:
    """Let one value of a dimension that is no part of the cause take over some of the traffic."""
    used = {"new prompt": "route", "new model": "request_model"}
    taken = {used.get(part, part) for part in shape}
    free = [d for d in ("tenant", "route", "region", "request_model") if d not in taken]
    if rng.random() < 0.5 or not free:
        return ""
    dimension = str(rng.choice(free))
    when = offset_s >= rng.uniform(-300, 300)
    moved = when & (rng.random(len(offset_s)) < rng.uniform(0.15, 0.5))
    value = str(rng.choice(np.unique(columns[dimension])))
    columns[dimension] = np.where(moved, value, columns[dimension])
    if dimension == "route":
        route = next(r for r in ROUTES if r.name == value)
        columns["prompt_name"] = np.where(moved, route.prompt_name, columns["prompt_name"])
        columns["prompt_version"] = np.where(moved, route.prompt_version, columns["prompt_version"])
        columns["request_model"] = np.where(
            moved, _draw_models(columns["route"], rng), columns["request_model"]
        )
    _name_models(columns)
    return f"{dimension}={value}"


def _choose_slice(
    columns: dict[str, Texts], offset_s: Floats, shape: tuple[str, ...], rng: np.random.Generator
) -> Bools:
    """Return which requests are of the slice, before the change as well; deploys what is new."""
    touched = np.ones(len(offset_s), np.bool_)
    since = offset_s >= 0
    row = int(rng.integers(len(offset_s)))
    for part in shape:
        if part == "new prompt":
            here = columns["route"] == columns["route"][row]
            out = here & since & (rng.random(len(since)) < rng.choice([0.3, 1.0]))
            columns["prompt_version"] = np.where(out, "v99", columns["prompt_version"])
            touched = touched & out
        elif part == "new model":
            model = columns["request_model"][row]
            out = (columns["request_model"] == model) & since
            out &= rng.random(len(since)) < rng.choice([0.3, 1.0])
            columns["response_model"] = np.where(out, f"{model}-new", columns["response_model"])
            touched = touched & out
        else:
            candidates = np.unique(columns[part][columns[part] != ""])
            touched = touched & (columns[part] == rng.choice(candidates))
    return touched


@dataclass
class _Base:
    """What is normal, for each request."""

    error: Floats
    refusal: Floats
    truncation: Floats
    first_chunk_s: Floats
    token_s: Floats
    residual: Floats = field(default_factory=lambda: np.empty(0))


def _draw_base(columns: Mapping[str, Texts], rng: np.random.Generator) -> _Base:
    n = len(columns["route"])

    def factors(dimension: str, spread: float) -> Floats:
        names = np.unique(columns[dimension])
        drawn = dict(
            zip(names.tolist(), np.exp(spread * rng.standard_normal(len(names))), strict=True)
        )
        return np.array([drawn[v] for v in columns[dimension].tolist()])

    model = columns["request_model"].tolist()
    chunk = {m.name: m.first_chunk_s for m in MODELS}
    token = {m.name: m.token_s for m in MODELS}
    return _Base(
        error=np.minimum(0.006 * factors("provider", 0.5) * factors("region", 0.3), 0.05),
        refusal=np.minimum(0.012 * factors("prompt_name", 0.6) * factors("tenant", 0.4), 0.1),
        truncation=np.minimum(0.02 * factors("route", 0.5) * factors("tenant", 0.2), 0.1),
        first_chunk_s=np.array([chunk[m] for m in model]) * np.exp(0.35 * rng.standard_normal(n)),
        token_s=np.array([token[m] for m in model]) * np.exp(0.22 * rng.standard_normal(n)),
        residual=rng.standard_normal((n, WIDTH)),
    )


def _draw_effect(signal: Signal, *, gone: bool, rng: np.random.Generator) -> float:
    """Return the rate in the slice, or the factor, or the shift in standard deviations."""
    low, high = {
        Signal.ERROR: (0.95, 1.0) if gone else (0.08, 0.6),
        Signal.REFUSAL: (0.12, 0.6),
        Signal.TRUNCATION: (0.15, 0.7),
        Signal.SLOW_OUTPUT: (1.6, 3.5),
        Signal.SLOW_FIRST_CHUNK: (1.8, 4.0),
        Signal.FINGERPRINT: (0.8, 2.0),
    }[signal]
    return float(rng.uniform(low, high))


def _act(
    signal: Signal, effect: float, acting: Bools, base: _Base, rng: np.random.Generator
) -> dict[str, Any]:
    n = len(acting)

    def happens(which: Signal, usual: Floats) -> Bools:
        rate = np.where(acting, effect, usual) if which is signal else usual
        hit: Bools = rng.random(n) < rate
        return hit

    failed = happens(Signal.ERROR, base.error)
    refused = happens(Signal.REFUSAL, base.refusal) & ~failed
    truncated = happens(Signal.TRUNCATION, base.truncation) & ~failed & ~refused
    direction = rng.standard_normal(WIDTH)
    direction /= np.linalg.norm(direction)
    residual = base.residual
    if signal is Signal.FINGERPRINT:
        residual = residual + np.outer(np.where(acting, effect, 0.0), direction)
    slower = {s: np.where(acting & (signal is s), effect, 1.0) for s in Signal}
    return {
        "error_type": np.where(failed, rng.choice(ERRORS, n, p=[0.6, 0.3, 0.1]), ""),
        "refused": refused,
        "truncated": truncated,
        "first_chunk_s": base.first_chunk_s * slower[Signal.SLOW_FIRST_CHUNK],
        "token_s": base.token_s * slower[Signal.SLOW_OUTPUT],
        "residual": residual,
        "direction": direction,
    }


# --- Who sees it first ---------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """The signal as one monitor counts it: over which requests, and which of them count."""

    over: Bools
    hit: Bools
    slow_above: float | None = None


def view(incident: Incident, inside: Bools, before: Bools, shift: Floats) -> View:
    """Return how a monitor of these requests counts, by its own past where that matters."""
    answered = ~incident.failed
    match incident.signal:
        case Signal.ERROR:
            return View(np.ones(len(inside), np.bool_), incident.failed)
        case Signal.REFUSAL:
            return View(answered, incident.refused)
        case Signal.TRUNCATION:
            return View(answered, incident.truncated)
        case Signal.SLOW_OUTPUT:
            micros = incident.token_s * 1e6
            edge = float(np.quantile(micros[inside & before & answered], 0.9))
            return View(answered, micros > edge, edge)
        case Signal.SLOW_FIRST_CHUNK:
            millis = incident.first_chunk_s * 1e3
            edge = float(np.quantile(millis[inside & before & answered], 0.9))
            return View(answered, millis > edge, edge)
    whole = answered & ~incident.refused & ~incident.truncated
    along = incident.residual @ shift
    return View(whole, along > np.quantile(along[inside & before & whole], 0.9))


def raise_alarm(incident: Incident, seed: int) -> Alarm | None:
    """Return the alarm of the monitor that is sure first; None when none is within the time."""
    rng = np.random.default_rng([seed, incident.number, 1_000])
    shift = incident.direction + 0.05 * rng.standard_normal(WIDTH)
    shift /= np.linalg.norm(shift)
    change_ms = incident.change_ms + round(float(rng.normal(0.0, DATING_S)) * 1000)
    alarms = (_watch(incident, monitor, shift, change_ms) for monitor in monitors_of(incident))
    return min(filter(None, alarms), key=lambda a: (a.time_ms, a.alarm_id), default=None)


def monitors_of(incident: Incident) -> Iterator[Labels]:
    """Yield the labels of every monitor that the default groupings make of the traffic."""
    for grouping in DEFAULT_GROUPINGS:
        codes = np.zeros(len(incident.time_ms), np.int64)
        for dimension in grouping:
            codes = codes * 64 + incident.coded(dimension)[1]
        for row in np.unique(codes, return_index=True)[1].tolist():
            labels = {d.value: str(incident.columns[d][row]) for d in grouping}
            if all(labels.values()):
                yield labels


def _watch(incident: Incident, monitor: Labels, shift: Floats, change_ms: int) -> Alarm | None:
    inside = incident.select(monitor)
    before = incident.time_ms < incident.change_ms
    if (inside & before).sum() < LEARNED + 50:
        return None
    seen = view(incident, inside, before, shift)
    counted, hits = inside & seen.over, inside & seen.over & seen.hit
    baseline = Rate(int((hits & before).sum()), int((counted & before).sum()))
    if baseline.total < LEARNED:
        return None
    usual = (baseline.count + 0.5) / (baseline.total + 1)
    bound = usual + 3 * math.sqrt(usual / baseline.total)
    times = incident.change_ms + 1_000 * np.arange(STEP_S, AFTER_S, STEP_S)
    at = np.searchsorted(incident.time_ms, times, side="right") - 1
    since = ~before
    n, k = np.cumsum(counted & since)[at], np.cumsum(hits & since)[at]
    rate = k / np.maximum(n, 1)
    slow = seen.slow_above is not None or incident.signal is Signal.FINGERPRINT
    material = (rate >= (2.0 if slow else 1.5) * usual) & (rate - usual >= (0.1 if slow else 0.01))
    sure = (n * _divergence(rate, bound) >= THRESHOLD_NATS) & (rate > bound) & material
    if not sure.any():
        return None
    first = int(np.argmax(sure))
    return Alarm(
        alarm_id=f"{incident.number}:{','.join(monitor.values())}",
        transition=Transition.RAISED,
        event_index=int(at[first]),
        time_ms=int(incident.time_ms[at[first]]),
        grouping=",".join(monitor),
        monitor=monitor,
        family=FAMILY_OF[incident.signal],
        signal=incident.signal,
        direction=Direction.RISE,
        e_value=math.exp(THRESHOLD_NATS),
        threshold=math.exp(THRESHOLD_NATS),
        baseline=baseline,
        current=Rate(int(k[first]), int(n[first])),
        change_time_ms=min(change_ms, int(incident.time_ms[at[first]])),
        edge=seen.slow_above,
        shift=tuple(shift.tolist()) if incident.signal is Signal.FINGERPRINT else (),
    )


def _divergence(rate: Floats, expected: float) -> Floats:
    q = np.clip(rate, 1e-9, 1 - 1e-9)
    found: Floats = q * np.log(q / expected) + (1 - q) * np.log((1 - q) / (1 - expected))
    return found


# --- What is made of it --------------------------------------------------------------------------


def count_slices(incident: Incident, alarm: Alarm, now_ms: int) -> Investigation:
    """Count as the SQL does, without an engine: for tests."""
    inside = incident.select(alarm.monitor)
    past = incident.time_ms < alarm.change_time_ms
    seen = view(incident, inside, past, np.array(alarm.shift or [0.0] * WIDTH))
    kept = seen.over & (incident.time_ms >= alarm.change_time_ms - BEFORE_S * 1_000)
    kept &= incident.time_ms <= now_ms
    hit, as_alarmed = seen.hit, None
    if alarm.edge is not None:
        value = _measure(incident)
        (as_alarmed,) = _count_dimensions(incident, (), kept, past, value > alarm.edge, inside)
        hit = value > _own_edges(incident, value, kept & past, alarm.edge)
    slices = []
    for dimensions in ((), *sorted({*CANDIDATES, LINEAGE, *((d,) for d in MIX_DIMENSIONS)})):
        slices += _count_dimensions(incident, dimensions, kept, past, hit, inside)
    errors = _count_errors(incident, alarm, inside, past, now_ms)
    return Investigation(tuple(slices), (), errors, as_alarmed)


def _measure(incident: Incident) -> Floats:
    if incident.signal is Signal.SLOW_FIRST_CHUNK:
        return incident.first_chunk_s * 1e3
    return incident.token_s * 1e6


def _own_edges(incident: Incident, value: Floats, past: Bools, edge: float) -> Floats:
    edges = np.full(len(value), edge)
    models = incident.columns["request_model"]
    for model in np.unique(models):
        here = models == model
        if (here & past).sum() >= OWN_EVENTS:
            edges[here] = np.quantile(value[here & past], 0.9, method="inverted_cdf")
    return edges


def _count_dimensions(
    incident: Incident,
    dimensions: tuple[str, ...],
    kept: Bools,
    past: Bools,
    hit: Bools,
    inside: Bools,
) -> Iterator[Slice]:
    codes = np.zeros(len(kept), np.int64)
    for dimension in dimensions:
        codes = codes * 64 + incident.coded(dimension)[1]
    values, first, group = np.unique(codes, return_index=True, return_inverse=True)

    def count(which: Bools) -> list[int]:
        return np.bincount(group[kept & which], minlength=len(values)).tolist()

    counts = [
        count(where & when & what)
        for where in (np.ones_like(kept), inside)
        for when in (past, ~past)
        for what in (hit, np.ones_like(kept))
    ]
    for i, row in enumerate(first.tolist()):
        labels = tuple((d, str(incident.columns[d][row])) for d in dimensions)
        if all(value for _, value in labels):
            rates = [Rate(counts[j][i], counts[j + 1][i]) for j in range(0, 8, 2)]
            yield Slice(labels, *rates)


def _count_errors(
    incident: Incident, alarm: Alarm, inside: Bools, past: Bools, now_ms: int
) -> tuple[ErrorType, ...]:
    if alarm.signal is not Signal.ERROR:
        return ()
    when = inside & (incident.time_ms <= now_ms)

    def rate(name: str, period: Bools) -> Rate:
        here = when & period
        return Rate(int((here & (incident.error_type == name)).sum()), int(here.sum()))

    return tuple(ErrorType(name, rate(name, past), rate(name, ~past)) for name in ERRORS)


class Engine:
    """Incidents in an embedded store that is thrown away, one at a time."""

    def __init__(self, directory: Path, database: str = "kizashi") -> None:
        self._store = Store(ClickHouseSettings(path=directory, database=database))
        self._store.migrate()
        self._incidents = IncidentStore(self._store)

    def load(self, incident: Incident) -> None:
        """Store the requests of this incident, and no other's."""
        self._store.truncate("requests")
        n = len(incident.time_ms)
        answered = ~incident.failed
        whole = answered & ~incident.refused & ~incident.truncated
        written = incident.signal is Signal.FINGERPRINT
        vectors = np.repeat(whole & written, WIDTH).reshape(n, WIDTH)
        offsets = np.concatenate([[0], np.cumsum(np.where(whole & written, WIDTH, 0))])
        columns: dict[str, pa.Array] = {
            "event_time": pa.array(incident.time_ms, pa.timestamp("ms", "UTC")),
            "event_id": pa.array([f"{incident.number}-{i}" for i in range(n)]),
            **{c: pa.array(incident.columns[c]).dictionary_encode() for c in COLUMNS},
            "error_type": pa.array(incident.error_type),
            "refused": pa.array(incident.refused),
            "truncated": pa.array(incident.truncated),
            "time_to_first_chunk_s": pa.array(incident.first_chunk_s, mask=incident.failed),
            "time_per_token_s": pa.array(incident.token_s, mask=incident.failed),
            "fingerprint": pa.ListArray.from_arrays(
                offsets, pa.array(incident.residual[vectors], pa.float32())
            ),
            "record_time": pa.array(incident.time_ms, pa.timestamp("ms", "UTC")),
            "offset": pa.array(np.arange(n), pa.int64()),
        }
        self._store.insert("requests", pa.table(columns))

    def investigate(self, alarm: Alarm, now_ms: int) -> Investigation:
        return self._incidents.investigate(alarm, now_ms)

    def compare(
        self, lead: Alarm, labels: Mapping[str, str], alarms: Sequence[Alarm], now_ms: int
    ) -> dict[str, Investigation]:
        return self._incidents.compare(lead, labels, alarms, now_ms)

    def close(self) -> None:
        self._store.close()


# --- Judging -------------------------------------------------------------------------------------


def is_right(incident: Incident, labels: Mapping[str, str]) -> bool:
    """True when the labels name the requests that were touched, before the change and since."""
    if not labels:
        return bool(incident.touched.all())
    touched = incident.touched
    if "response_model" in labels:
        # Whoever failed was of the slice too, without a name.
        touched = touched & ~incident.failed
    return bool((incident.select(labels) == touched).all())


def judge(incident: Incident, found: Diagnosis) -> dict[str, Any]:
    """Return what was named, and whether it was right."""
    return {
        "cause": is_right(incident, found.cause.labels) and not found.is_mix_shift,
        "symptom": found.symptom is incident.symptom,
        "named": "traffic moved" if found.is_mix_shift else found.cause.labels,
        "share": found.explanation[0].share if found.explanation else None,
    }


def measure(incidents: int, seed: int) -> dict[str, Any]:
    """Draw the incidents, explain each, and count."""
    with tempfile.TemporaryDirectory(prefix="kizashi-incidents-") as directory:
        engine = Engine(Path(directory))
        try:
            rows = [_measure_one(engine, number, seed) for number in range(incidents)]
        finally:
            engine.close()
    return summarise(rows)


def _measure_one(engine: Engine, number: int, seed: int) -> dict[str, Any]:
    incident = draw_incident(number, seed)
    alarm = raise_alarm(incident, seed)
    row: dict[str, Any] = {
        "number": number,
        "signal": incident.signal.value,
        "shape": " × ".join(incident.shape) or "all traffic",
        "shifted": incident.shifted,
        "seen_by": None if alarm is None else alarm.monitor,
    }
    if alarm is None:
        return row
    engine.load(incident)
    for name, now_ms in (
        ("page", alarm.time_ms),
        ("settled", alarm.time_ms + SETTLED_MS),
    ):
        row[name] = judge(incident, diagnose(alarm, engine.investigate(alarm, now_ms)))
    row["delay_s"] = (alarm.time_ms - incident.change_ms) / 1000
    return row


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares over all incidents that were seen at all, and what was missed."""
    seen = [r for r in rows if r["seen_by"] is not None]

    def share(when: str, what: str, some: Sequence[dict[str, Any]]) -> float:
        return sum(r[when][what] for r in some) / len(some) if some else 0.0

    def by(key: str) -> dict[str, Any]:
        groups = Counter(r[key] for r in seen)
        return {
            name: {
                "incidents": count,
                "cause_first": share("page", "cause", [r for r in seen if r[key] == name]),
                "symptom_right": share("page", "symptom", [r for r in seen if r[key] == name]),
            }
            for name, count in sorted(groups.items())
        }

    moved = [r for r in seen if r["shifted"]]
    return {
        "incidents": len(rows),
        "alarmed": len(seen),
        "cause_first": share("page", "cause", seen),
        "cause_first_settled": share("settled", "cause", seen),
        "cause_first_traffic_shifted": share("page", "cause", moved),
        "symptom_right": share("page", "symptom", seen),
        "symptom_right_settled": share("settled", "symptom", seen),
        "delay_s_median": float(np.median([r["delay_s"] for r in seen])) if seen else None,
        "by_signal": by("signal"),
        "by_shape": by("shape"),
        "misses": [r for r in seen if not (r["page"]["cause"] and r["page"]["symptom"])],
    }


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures for reading."""
    lines = [
        f"{figures['alarmed']} of {figures['incidents']} incidents were seen,"
        f" after a median of {figures['delay_s_median']:.0f} s",
        f"cause named first      {figures['cause_first']:.1%} at the page,"
        f" {figures['cause_first_settled']:.1%} two minutes later;"
        f" {figures['cause_first_traffic_shifted']:.1%} where traffic shifted",
        f"symptom class right    {figures['symptom_right']:.1%} at the page,"
        f" {figures['symptom_right_settled']:.1%} two minutes later",
        "",
    ]
    for key in ("by_signal", "by_shape"):
        lines += [
            f"{name:28} {f['incidents']:4}  cause {f['cause_first']:6.1%}"
            f"  symptom {f['symptom_right']:6.1%}"
            for name, f in figures[key].items()
        ]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--incidents", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="60 incidents")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--misses", action="store_true", help="and what was named instead")
    arguments = parser.parse_args()
    figures = measure(60 if arguments.quick else arguments.incidents, arguments.seed)
    print(json.dumps(figures) if arguments.json else table(figures))
    for miss in figures["misses"] if arguments.misses else ():
        print(json.dumps(miss))


if __name__ == "__main__":
    main()
