"""`kizashi reference`: what is normal, fitted, shown, pinned and reset by people.

Delivery guarantee: a reference or an order counts once it is stored, on every worker
within one refresh. A reset is a record of `llm.signals`, acknowledged by all replicas
on every partition before this returns; given twice, it counts twice, which changes
nothing but what was learned in between.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from detectors.fingerprint import FingerprintReference
from pipeline.config import Config, KafkaSettings
from pipeline.core.answers import ANSWER_NAMES
from pipeline.core.reference_history import Action, Order, Standing
from pipeline.embedding import build_embedding
from pipeline.errors import ConfigError, Unfittable
from pipeline.producers import open_producer
from pipeline.references import fit_model
from pipeline.sinks.clickhouse import open_store
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.references import (
    LAST_MS,
    Fitted,
    Floats32,
    Period,
    ReferenceStore,
    StoredEffect,
)
from pipeline.sinks.text import json_line, printable
from pipeline.sinks.times import to_rfc3339
from pipeline.topics import mapped_errors, topic_epochs
from schemas.control import MAX_SLICES, Reset, encode_reset
from schemas.incident import Incident
from schemas.monitor import Dimension, parse_grouping

_ANSWER_TIMEOUT_S = 30.0


class Line(Struct, frozen=True):
    """One version of a model's reference, or a model that learns."""

    request_model: str
    embedding: str
    #: RFC 3339, like all times; empty for a model that has none in force.
    version: str
    version_ms: int
    answers: int
    first_time: str
    last_time: str
    in_force: bool
    pinned: bool
    #: Since when this is in force, or since when the model learns anew; empty otherwise.
    since: str


class Feature(Struct, frozen=True):
    """One feature of the answers on its own scale (`core.style`).

    Its mean, and the standard deviation that the prompt leaves open.
    """

    name: str
    mean: float
    spread: float
    #: Share of the variance that the prompt explains; None where the answers are gone.
    explained: float | None


class Description(Struct, frozen=True):
    """A reference in figures that people can read."""

    line: Line
    #: For how many answers the mean counts.
    known: int
    #: Residuals are clipped at so many standard deviations.
    clip: float
    directions: int
    prompt_directions: int
    #: Of the variance that the prompt leaves open, the share inside the directions.
    kept: float
    #: Of the variance of all features, the share that the prompt explains.
    explained: float | None
    #: Those that the prompt explains best come first.
    features: tuple[Feature, ...]


class Outcome(Struct, frozen=True):
    """What came of fitting one model: the new version, or why there is none."""

    line: Line | None
    request_model: str
    reason: str


class Span(NamedTuple):
    """Which answers somebody wants a reference fitted to; milliseconds, None where open."""

    since_ms: int | None = None
    until_ms: int | None = None
    with_alarms: bool = False

    def after(self, reset_ms: int) -> Period:
        """Return the period; an open beginning is the last planned change."""
        since_ms = reset_ms if self.since_ms is None else self.since_ms
        return Period(since_ms, self.until_ms or LAST_MS, self.with_alarms)


@contextmanager
def open_desk(config: Config) -> Iterator[ReferenceStore]:
    """Give the store of the references.

    Raises:
        SinkUnavailable: there is no ClickHouse, or an old schema in it.
    """
    with open_store(config.clickhouse) as store:
        yield ReferenceStore(store)


# --- Fitting -------------------------------------------------------------------------------


def fit_now(
    config: Config,
    desk: ReferenceStore,
    models: Sequence[str],
    now_ms: int,
    span: Span,
) -> list[Outcome]:
    """Fit references to stored answers and store them; of all models where none is named.

    A pinned version stays in force.

    Raises:
        ConfigError: no texts are read, so there is nothing to fit.
        SinkUnavailable: ClickHouse is away; nothing is stored.
    """
    embedding = build_embedding(config.encoder)
    if embedding is None:
        raise ConfigError("encoder.kind is none: there are no answers to fit a reference to")
    name = embedding.name
    standings = desk.read_standings(name)
    version = max(now_ms, desk.latest(name).next_ms)
    fitted, failed = [], []
    for model in models or list(desk.count_samples(name)):
        period = span.after(standings.get(model, Standing()).reset_ms)
        try:
            fitted.append(fit_model(desk, config.references, name, model, version, period))
        except Unfittable as error:
            failed.append(Outcome(None, model, str(error)))
    desk.save(name, fitted)
    lines = {e.request_model: e for e in list_lines(desk) if e.version_ms == version}
    done = [Outcome(lines[f.request_model], f.request_model, "") for f in fitted]
    return done + failed


# --- Looking -------------------------------------------------------------------------------


def list_lines(desk: ReferenceStore, model: str | None = None) -> list[Line]:
    """Return every version of every model, the newest first, and the models that learn anew."""
    fitted = desk.list_fitted(model)
    standings = {e: desk.read_standings(e) for e in sorted({f.embedding for f in fitted})}
    lines = [_make_line(f, standings[f.embedding][f.request_model]) for f in fitted]
    for embedding, by_model in standings.items():
        lines += [
            _learning(name, embedding, standing)
            for name, standing in by_model.items()
            if not standing.version_ms and model in (None, name)
        ]
    return sorted(lines, key=lambda e: (e.request_model, e.embedding, bool(e.version)))


def _make_line(fitted: Fitted, standing: Standing) -> Line:
    in_force = fitted.fitted_ms == standing.version_ms
    return Line(
        request_model=fitted.request_model,
        embedding=fitted.embedding,
        version=to_rfc3339(fitted.fitted_ms),
        version_ms=fitted.fitted_ms,
        answers=fitted.answers,
        first_time=to_rfc3339(fitted.first_ms),
        last_time=to_rfc3339(fitted.last_ms),
        in_force=in_force,
        pinned=in_force and standing.pinned,
        since=to_rfc3339(standing.since_ms) if in_force else "",
    )


def _learning(model: str, embedding: str, standing: Standing) -> Line:
    return Line(model, embedding, "", 0, 0, "", "", False, False, to_rfc3339(standing.reset_ms))


def describe(desk: ReferenceStore, model: str, version: str | None) -> Description:
    """Describe one version, or the one in force.

    Raises:
        ConfigError: there is no such version, or this version of Kizashi cannot read it.
    """
    line = find_line(desk, model, version)
    versions = {(f.embedding, f.fitted_ms): f for f in desk.list_fitted(model)}
    found = desk.read_version(versions[line.embedding, line.version_ms])
    if found is None:
        raise ConfigError(f"another version of Kizashi fitted {line.version} of {model}")
    period = Period(found.first_ms, found.last_ms, with_alarms=True)
    answers = desk.read_samples(line.embedding, model, found.reference.n, period).answers
    return _describe(line, found.reference, answers)


def _describe(line: Line, reference: FingerprintReference, answers: Floats32) -> Description:
    # With few of them left, the variance says more about the few than about the reference.
    enough = len(answers) >= reference.n / 2
    variance = answers.astype(np.float64).var(axis=0) if enough else None
    left = reference.spread.astype(np.float64) ** 2
    shares = None if variance is None else 1 - left / np.maximum(variance, left)
    order = np.argsort(left if shares is None else -shares, kind="stable").tolist()
    features = [
        Feature(
            ANSWER_NAMES[i],
            float(reference.mean[i]),
            float(reference.spread[i]),
            None if shares is None else float(shares[i]),
        )
        for i in order
    ]
    return Description(
        line=line,
        known=reference.known,
        clip=reference.clip,
        directions=reference.directions,
        prompt_directions=reference.prompt_directions,
        kept=float((reference.unwhitening**2).sum() / np.trace(reference.correlation)),
        explained=None if shares is None else float(shares.mean()),
        features=tuple(features),
    )


def find_line(desk: ReferenceStore, model: str, version: str | None) -> Line:
    """Return a version by its name or the beginning of it; without one, that in force.

    Raises:
        ConfigError: there is none, or there are several.
    """
    lines = [line for line in list_lines(desk, model) if line.version]
    found = [e for e in lines if (e.in_force if version is None else e.version.startswith(version))]
    if len(found) == 1:
        return found[0]
    what = "version in force" if version is None else f"one version {version}"
    has = ", ".join(f"{e.version} ({e.embedding})" for e in lines) or "none at all"
    raise ConfigError(f"{model} has not {what}; it has {has}")


# --- Ordering ------------------------------------------------------------------------------


def pin(desk: ReferenceStore, model: str, version: str | None, now_ms: int) -> Line:
    """Keep one version of a model in force until it is unpinned or reset; returns it.

    Raises:
        ConfigError: there is no such version.
    """
    line = find_line(desk, model, version)
    order = Order(_next_ms(desk, line, now_ms), Action.PIN, line.version_ms)
    desk.order(uuid.uuid4().hex, model, order)
    return find_line(desk, model, line.version)


def unpin(desk: ReferenceStore, model: str, now_ms: int) -> list[Line]:
    """Let the newest version count again; returns those in force.

    Raises:
        ConfigError: no version of the model is pinned.
    """
    pinned = [line for line in list_lines(desk, model) if line.pinned]
    if not pinned:
        raise ConfigError(f"no version of {model} is pinned")
    ordered_ms = max(_next_ms(desk, line, now_ms) for line in pinned)
    desk.order(uuid.uuid4().hex, model, Order(ordered_ms, Action.UNPIN))
    return [line for line in list_lines(desk, model) if line.in_force]


def _next_ms(desk: ReferenceStore, line: Line, now_ms: int) -> int:
    # An order by a slow clock would come before what it speaks of.
    return max(now_ms, desk.latest(line.embedding).next_ms)


def make_slice(grouping: str, values: Sequence[str]) -> dict[Dimension, str]:
    """Return the slice of traffic that has these values.

    Raises:
        ConfigError: an unknown dimension, or not one value for each.
    """
    try:
        dimensions = parse_grouping(grouping)
        return dict(zip(dimensions, values, strict=True))
    except ValueError as error:
        raise ConfigError(f"--grouping {grouping} with {len(values)} values: {error}") from None


def slices_of(incident: Incident) -> list[dict[Dimension, str]]:
    """Return the slices of traffic that an incident's alarms are about, each once."""
    slices = [{Dimension(d): v for d, v in alarm.monitor.items()} for alarm in incident.alarms]
    return [each for at, each in enumerate(slices) if each not in slices[:at]]


def choose_slices(
    config: Config,
    models: Sequence[str],
    grouping: str | None,
    values: Sequence[str],
    incident: str | None,
) -> list[dict[Dimension, str]]:
    """Return the slices that the options of `kizashi reference reset` name.

    Raises:
        ConfigError: none is named, or there is no such incident.
        SinkUnavailable: the incident cannot be looked up.
    """
    slices = [{Dimension.REQUEST_MODEL: model} for model in models]
    if grouping is not None or values:
        slices.append(make_slice(grouping or "", values))
    if incident is not None:
        slices += slices_of(_find_incident(config, incident))
    if not slices:
        raise ConfigError("name what changes: --model, --grouping and --value, or --incident")
    return slices


def _find_incident(config: Config, incident_id: str) -> Incident:
    with open_store(config.clickhouse) as store:
        for each in IncidentStore(store).load_recent():
            if each.incident_id == incident_id:
                return each
    raise ConfigError(f"there is no incident {incident_id}")


def reset(
    settings: KafkaSettings, slices: Sequence[Mapping[Dimension, str]], note: str, now_ms: int
) -> Reset:
    """Announce a planned change to every detector; returns the order as it was sent.

    Raises:
        ConfigError: no slice or too many, or Kafka's settings cannot be used.
        SinkUnavailable: the broker did not acknowledge it everywhere: give it again.
    """
    if not 0 < len(slices) <= MAX_SLICES:
        raise ConfigError(f"{len(slices)} slices: at least 1 and at most {MAX_SLICES} are reset")
    order = Reset(
        reset_id=uuid.uuid4().hex, time_ms=now_ms, slices=tuple(map(dict, slices)), note=note
    )
    # The monitors that a slice covers live in every partition.
    raw, topic = encode_reset(order), settings.signals_topic
    if topic not in topic_epochs(settings, [topic]):
        raise ConfigError(f"there is no topic {topic}: run kizashi init")
    with mapped_errors(settings):
        producer = open_producer(settings, patience_s=_ANSWER_TIMEOUT_S)
        try:
            partitions = sorted(producer.partitions_for(topic))
            sent = [producer.send(topic, raw, partition=p) for p in partitions]
            for each in sent:
                each.get(timeout=_ANSWER_TIMEOUT_S)
        finally:
            producer.close(_ANSWER_TIMEOUT_S)
    return order


# --- Saying --------------------------------------------------------------------------------


def render_outcomes(outcomes: Sequence[Outcome], *, as_json: bool) -> str:
    """What came of fitting, a line for each model."""
    if as_json:
        return _as_json(outcomes)
    if not outcomes:
        return "there are no stored answers to fit a reference to\n"
    return "".join(
        f"{printable(o.request_model)}: {o.line.answers} answers, {o.line.first_time} to"
        f" {o.line.last_time},"
        f" version {o.line.version}{'' if o.line.in_force else ', not in force: one is pinned'}\n"
        if o.line is not None
        else f"{printable(o.request_model)}: no reference: {printable(o.reason)}\n"
        for o in outcomes
    )


def render_lines(lines: Sequence[Line], *, as_json: bool) -> str:
    """Versions as a table, or one object each."""
    if as_json:
        return _as_json(lines)
    return _table(
        ("model", "version", "answers", "from", "to", "", "encoder"),
        [
            (
                e.request_model,
                e.version or "-",
                str(e.answers),
                *(e.first_time[:16], e.last_time[:16]),
                _state(e),
                e.embedding,
            )
            for e in lines
        ],
    )


def _state(line: Line) -> str:
    if not line.version:
        return f"learns anew since {line.since[:16]}"
    return "pinned" if line.pinned else "in force" if line.in_force else ""


def render_description(description: Description, *, as_json: bool) -> str:
    """A reference in words and a table of its features."""
    if as_json:
        return _as_json([description])
    line, explained = description.line, _share(description.explained)
    head = (
        f"{printable(line.request_model)}, version {line.version} {_state(line)}\n"
        f"{line.answers} answers, {line.first_time} to {line.last_time}, encoder {line.embedding}\n"
        f"the mean counts for {description.known} answers; residuals are clipped at"
        f" {description.clip:g} standard deviations\n"
        f"{description.directions} directions keep {_share(description.kept)} of what the prompt"
        f" leaves open; {description.prompt_directions} of the prompt tell other traffic\n"
        f"the prompt explains {explained} of the variance\n\n"
    )
    rows = [
        (f.name, f"{f.mean:.3g}", f"{f.spread:.3g}", _share(f.explained))
        for f in description.features
    ]
    return head + _table(("feature", "mean", "left open", "explained"), rows)


def render_reset(order: Reset, *, as_json: bool) -> str:
    """What was announced."""
    if as_json:
        return _as_json([order])
    where = "; ".join(", ".join(f"{d}={printable(v)}" for d, v in e.items()) for e in order.slices)
    return f"announced to every worker: {where} learn anew from {to_rfc3339(order.time_ms)}\n"


def render_effects(effects: Sequence[StoredEffect], *, as_json: bool) -> str:
    """What planned changes did: a line for each rate."""
    if as_json:
        return _as_json(effects)
    return _table(
        ("learned", "monitor", "signal", "before", "after", "note"),
        [
            (
                e.time[:16],
                ", ".join(f"{d}={v}" for d, v in e.monitor.items()),
                e.signal,
                f"{e.before.value:.2%} of {e.before.total}",
                f"{e.after.value:.2%} of {e.after.total}",
                e.note,
            )
            for e in effects
        ],
    )


def _share(share: float | None) -> str:
    return "an unknown share" if share is None else f"{share:.0%}"


def _as_json(items: Sequence[object]) -> str:
    return "".join(json_line(each) + "\n" for each in items)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines) + "\n"
