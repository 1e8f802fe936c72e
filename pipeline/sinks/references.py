"""References and the samples they are fitted to, in ClickHouse.

Delivery guarantee: saving the same reference or order again changes nothing. Which
reference of a model counts is a function of what is stored (`core.reference_history`).
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from detectors.fingerprint import FingerprintReference, from_bytes, to_bytes
from pipeline.core.answers import ANSWER_WIDTH, PROMPT_WIDTH
from pipeline.core.fingerprints import FIT
from pipeline.core.reference_history import Action, Order, Standing, find_standing
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime, to_rfc3339
from schemas.alarm import Rate
from schemas.signal import Family

logger = logging.getLogger(__name__)

Floats32 = npt.NDArray[np.float32]

#: Reference models beyond these, by how many answers they have, get no reference.
MAX_MODELS = 500
#: Versions that are listed.
MAX_LISTED = 10_000
#: Far more orders than people give.
MAX_ORDERS = 100_000
#: The end of the year 2200, and before everything that is stored.
LAST_MS, FIRST_MS = 7_289_654_399_999, 0
#: An alarm that never cleared keeps its time out of references for so long.
ALARM_MS = 7 * 86_400_000


class StoredReference(NamedTuple):
    """A reference, and when it was fitted to answers of what time; milliseconds."""

    request_model: str
    fitted_ms: int
    first_ms: int
    last_ms: int
    reference: FingerprintReference


class Stamp(NamedTuple):
    """The latest reference and the latest order, milliseconds; and how many orders there are."""

    fitted_ms: int = 0
    ordered_ms: int = 0
    orders: int = 0

    @property
    def next_ms(self) -> int:
        """The first millisecond after both."""
        return max(self.fitted_ms, self.ordered_ms) + 1


class Samples(NamedTuple):
    """n whole answers of one model, oldest first."""

    time_ms: npt.NDArray[np.int64]
    prompts: Floats32
    answers: Floats32


class Fitted(NamedTuple):
    """A version of a model's reference without the reference itself; times in milliseconds."""

    embedding: str
    request_model: str
    fitted_ms: int
    answers: int
    first_ms: int
    last_ms: int


class StoredEffect(Struct, frozen=True):
    """What a planned change did to one rate of one monitor; times as RFC 3339."""

    order_id: str
    ordered_at: str
    note: str
    time: str
    monitor: dict[str, str]
    signal: str
    before: Rate
    after: Rate


class Period(NamedTuple):
    """Of which time answers are taken, milliseconds, both ends included."""

    since_ms: int = FIRST_MS
    until_ms: int = LAST_MS
    #: Also those from times of alarm.
    with_alarms: bool = False


#: All that is kept, but for times of alarm.
EVER = Period()


class ReferenceStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def count_samples(self, embedding: str) -> dict[str, int]:
        """Return how many answers of each request model are kept, of the models with most.

        Those from before a planned change are not counted.
        """
        rows = self._store.rows(
            "SELECT request_model, count() FROM answer_samples AS samples"
            " LEFT JOIN (SELECT request_model, max(ordered_at) AS reset_at FROM reference_orders"
            " WHERE action = 'reset' GROUP BY request_model) AS resets USING (request_model)"
            " WHERE embedding = {embedding:String} AND event_time >= reset_at"
            " GROUP BY request_model"
            " ORDER BY count() DESC, request_model LIMIT {limit:UInt32}",
            {"embedding": embedding, "limit": MAX_MODELS},
        )
        return {str(model): int(count) for model, count in rows}

    def read_samples(
        self, embedding: str, model: str, limit: int, period: Period = EVER
    ) -> Samples:
        """Return the latest answers of a model in the period."""
        table = self._store.table(
            f"""
            SELECT toUnixTimestamp64Milli(event_time) AS time_ms, prompt, answer
            FROM answer_samples AS samples FINAL
            WHERE embedding = {{embedding:String}} AND request_model = {{model:String}}
              AND length(prompt) = {PROMPT_WIDTH} AND length(answer) = {ANSWER_WIDTH}
              AND event_time BETWEEN fromUnixTimestamp64Milli({{since:Int64}}, 'UTC')
                             AND fromUnixTimestamp64Milli({{until:Int64}}, 'UTC')
              AND NOT ({{alarms:UInt8}} = 0 AND arrayExists(
                  span -> event_time BETWEEN span.1 AND span.2,
                  (SELECT groupArray((since, until)) FROM (
                      SELECT min(change_time) AS since,
                             if(countIf(transition = 'cleared') > 0, max(time),
                                min(time) + toIntervalMillisecond({ALARM_MS})) AS until
                      FROM alarms
                      WHERE monitor['request_model'] IN ('', {{model:String}})
                      GROUP BY alarm_id))))
            ORDER BY event_time DESC, event_id LIMIT {{limit:UInt32}}
            """,  # noqa: S608 — the parts are constants
            {
                "embedding": embedding,
                "model": model,
                "limit": limit,
                "since": period.since_ms,
                "until": period.until_ms,
                "alarms": int(period.with_alarms),
            },
        )
        table = table.take(pa.array(range(len(table) - 1, -1, -1), pa.int64()))
        return Samples(
            table["time_ms"].to_numpy().astype(np.int64),
            _vectors(table["prompt"], PROMPT_WIDTH),
            _vectors(table["answer"], ANSWER_WIDTH),
        )

    def has_open_alarm(self, now_ms: int) -> bool:
        """Return whether a fingerprint stands alarmed, and not for longer than `ALARM_MS`."""
        rows = self._store.rows(
            "SELECT count() FROM (SELECT alarm_id FROM alarms"
            " WHERE family = {family:String} AND time >= {since:DateTime64(3, 'UTC')}"
            " GROUP BY alarm_id HAVING countIf(transition = 'cleared') = 0)",
            {"family": Family.FINGERPRINT.value, "since": to_datetime(now_ms - ALARM_MS)},
        )
        return bool(rows[0][0])

    def save(self, embedding: str, references: Sequence[StoredReference]) -> None:
        """Store references, all of them or none."""
        self._store.insert_rows("references", [_to_row(embedding, each) for each in references])

    def order(self, order_id: str, model: str, order: Order, note: str = "") -> None:
        """Store an order about the references of a model."""
        row = {
            "order_id": order_id,
            "ordered_at": to_datetime(order.ordered_ms),
            "action": order.action.value,
            "request_model": model,
            "version": to_datetime(order.version_ms),
            "note": note,
        }
        self._store.insert_rows("reference_orders", [row])

    def read_standings(self, embedding: str) -> dict[str, Standing]:
        """Return how each model stands that has a reference or was ordered about."""
        versions, orders = defaultdict(list), defaultdict(list)
        for model, fitted_ms in self._store.rows(
            "SELECT request_model, toUnixTimestamp64Milli(fitted_at) FROM references"
            " WHERE embedding = {embedding:String}",
            {"embedding": embedding},
        ):
            versions[model].append(int(fitted_ms))
        for model, ordered_ms, action, version_ms in self._store.rows(
            "SELECT request_model, toUnixTimestamp64Milli(ordered_at), action,"
            " toUnixTimestamp64Milli(version) FROM reference_orders WHERE request_model != ''"
            " ORDER BY ordered_at DESC LIMIT {limit:UInt32}",
            {"limit": MAX_ORDERS},
        ):
            orders[model].append(Order(int(ordered_ms), Action(action), int(version_ms)))
        models = versions.keys() | orders.keys()
        return {m: find_standing(versions[m], orders[m]) for m in sorted(models)}

    def load(self, embedding: str, standings: Mapping[str, Standing]) -> list[StoredReference]:
        """Return the references that are in force.

        One that another version of Kizashi fitted, to other features, is passed over.
        """
        wanted = [(m, s.version_ms) for m, s in standings.items() if s.version_ms]
        if not wanted:
            return []
        rows = self._store.rows(
            "SELECT request_model, toUnixTimestamp64Milli(fitted_at) AS version,"
            " toUnixTimestamp64Milli(first_time), toUnixTimestamp64Milli(last_time), reference"
            " FROM references FINAL WHERE embedding = {embedding:String}"
            " AND has(arrayZip({models:Array(String)}, {versions:Array(Int64)}),"
            " (toString(request_model), version)) ORDER BY request_model",
            {
                "embedding": embedding,
                "models": [model for model, _ in wanted],
                "versions": [version for _, version in wanted],
            },
        )
        return [
            StoredReference(model, fitted_ms, first_ms, last_ms, reference)
            for model, fitted_ms, first_ms, last_ms, raw in rows
            if (reference := read_reference(model, raw)) is not None
        ]

    def list_fitted(self, model: str | None = None) -> list[Fitted]:
        """Return the versions of all models or of one, newest first, at most `MAX_LISTED`."""
        rows = self._store.rows(
            "SELECT embedding, request_model, toUnixTimestamp64Milli(fitted_at), answers,"
            " toUnixTimestamp64Milli(first_time), toUnixTimestamp64Milli(last_time)"
            " FROM references FINAL WHERE {every:UInt8} OR request_model = {model:String}"
            " ORDER BY fitted_at DESC, embedding, request_model LIMIT {limit:UInt32}",
            {"every": int(model is None), "model": model or "", "limit": MAX_LISTED},
        )
        return [Fitted(*row) for row in rows]

    def read_version(self, version: Fitted) -> StoredReference | None:
        """Return one version; None when another version of Kizashi fitted it."""
        standing = Standing(version_ms=version.fitted_ms)
        found = self.load(version.embedding, {version.request_model: standing})
        return found[0] if found else None

    def list_effects(self) -> list[StoredEffect]:
        """Return what planned changes did, the latest first, at most `MAX_LISTED`."""
        rows = self._store.rows(
            "SELECT order_id, toUnixTimestamp64Milli(ordered_at), note,"
            " toUnixTimestamp64Milli(time), monitor, signal,"
            " before_count, before_total, after_count, after_total"
            " FROM planned_effects AS effects FINAL LEFT JOIN"
            " (SELECT order_id, any(ordered_at) AS ordered_at, any(note) AS note"
            " FROM reference_orders GROUP BY order_id) AS orders USING (order_id)"
            " ORDER BY time DESC, order_id, grouping, toString(monitor), signal"
            " LIMIT {limit:UInt32}",
            {"limit": MAX_LISTED},
        )
        return [
            StoredEffect(
                order_id,
                to_rfc3339(ordered_ms),
                note,
                to_rfc3339(time_ms),
                dict(monitor),
                signal,
                Rate(before_count, before_total),
                Rate(after_count, after_total),
            )
            for (
                order_id, ordered_ms, note, time_ms, monitor, signal,
                before_count, before_total, after_count, after_total,
            ) in rows
        ]  # fmt: skip

    def latest(self, embedding: str) -> Stamp:
        """Return what tells whether anything has changed; zeros when there is nothing."""
        rows = self._store.rows(
            "SELECT (SELECT toUnixTimestamp64Milli(max(fitted_at)) FROM references"
            " WHERE embedding = {embedding:String}),"
            " toUnixTimestamp64Milli(max(ordered_at)), count() FROM reference_orders",
            {"embedding": embedding},
        )
        return Stamp(*(int(each) for each in rows[0]))


def _to_row(embedding: str, stored: StoredReference) -> dict[str, Any]:
    return {
        "request_model": stored.request_model,
        "embedding": embedding,
        "fitted_at": to_datetime(stored.fitted_ms),
        "answers": stored.reference.n,
        "first_time": to_datetime(stored.first_ms),
        "last_time": to_datetime(stored.last_ms),
        "reference": b64encode(to_bytes(stored.reference)).decode(),
    }


def read_reference(model: str, raw: str) -> FingerprintReference | None:
    """Return a reference as it was stored; None for one that does not fit this version."""
    try:
        reference = from_bytes(b64decode(raw))
    except ValueError as error:
        logger.warning("the reference of %s is fitted anew: %s", model, error)
        return None
    directions = (reference.directions, reference.prompt_directions)
    shape = (*reference.coefficients.shape, *directions)
    if shape != (PROMPT_WIDTH, ANSWER_WIDTH, FIT.directions, FIT.prompt_directions):
        logger.warning("the reference of %s is fitted anew: it is of shape %s", model, shape)
        return None
    return reference


def _vectors(column: object, width: int) -> Floats32:
    flat = column.combine_chunks().flatten()  # type: ignore[attr-defined]  # an Arrow column
    vectors: Floats32 = flat.to_numpy().astype(np.float32).reshape(-1, width)
    return vectors
