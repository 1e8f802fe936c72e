"""Per-minute aggregates of one chunk: rows for `rollup_1m` that add to those already there."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from pipeline.core.chunk import CodedColumn, Coder, Columns, MapColumn, code_values
from pipeline.core.features import TOKEN_FIELDS, Features
from pipeline.core.histogram import find_measured_buckets
from pipeline.core.monitors import Split
from pipeline.core.sums import count_maps, sum_by_key
from pipeline.core.traits import ABSENT
from schemas.monitor import DIMENSIONS, grouping_name

Ints = npt.NDArray[np.int64]
MINUTE_MS = 60_000
PICODOLLARS_PER_MICRODOLLAR = 1_000_000

SUM_COLUMNS = (
    "requests",
    "errors",
    "answered",
    "refusals",
    "truncations",
    "cache_hits",
    "fallbacks",
    *TOKEN_FIELDS,
    "unpriced",
    "cost_microdollars",
    "cost_picodollars",
)
HISTOGRAMS = {
    "duration_ms": ("duration_s", 1e3),
    "first_chunk_ms": ("first_chunk_s", 1e3),
    "output_token_us": ("token_s", 1e6),
}


def roll_up(features: Features, splits: Sequence[Split], record_ms: int) -> Columns:
    """Count and sum n events per (minute, monitor), for every grouping."""
    minute, first_minute = _minutes(features.time_ms)
    minutes = int(minute.max(initial=0)) + 1
    sums = _sum_matrix(features)
    buckets = {name: _buckets_of(features, name) for name in HISTOGRAMS}
    errors = _error_codes(features)
    parts: list[Columns] = []
    monitors, before = [], 0
    for split in splits:
        inside = split.code >= 0
        key = split.code * minutes + minute
        keys, totals = sum_by_key(key[inside], sums[inside])
        monitors.append(keys // minutes + before)
        before += len(split.monitors)
        columns: Columns = {"minute": (keys % minutes + first_minute) * 60}
        columns |= {name: totals[:, column] for column, name in enumerate(SUM_COLUMNS)}
        row = np.searchsorted(keys, key)
        columns |= {name: _histogram(row, inside, *b, len(keys)) for name, b in buckets.items()}
        columns["error_types"] = _error_map(row, inside, errors, len(keys))
        parts.append(columns)
    return _name_monitors(splits, np.concatenate(monitors)) | _concatenate(parts, record_ms)


def _name_monitors(splits: Sequence[Split], monitor: Ints) -> Columns:
    """Grouping and dimensions of each row, from the place of its monitor among all of them.

    Every monitor is looked at once for each of its dimensions, however many rows it has.
    """
    sizes = [len(split.monitors) for split in splits]
    of_split = np.repeat(np.arange(len(splits)), sizes)
    names = [grouping_name(split.grouping) for split in splits]
    columns: Columns = {"grouping": _pick(code_values(names), of_split[monitor])}
    ends = np.cumsum(sizes).tolist()
    for dimension in DIMENSIONS:
        coder, codes = Coder(), np.zeros(sum(sizes), np.int32)
        coder[""] = 0
        for split, size, end in zip(splits, sizes, ends, strict=True):
            if dimension in split.grouping:
                place = split.grouping.index(dimension)
                numbers = map(coder.__getitem__, [m.values[place] for m in split.monitors])
                codes[end - size : end] = np.fromiter(numbers, np.int32, size)
        columns[dimension.value] = CodedColumn(codes[monitor], list(coder))
    return columns


def _pick(column: CodedColumn, rows: Ints) -> CodedColumn:
    return CodedColumn(column.codes[rows], column.values)


def _minutes(time_ms: Ints) -> tuple[Ints, int]:
    minute = time_ms // MINUTE_MS
    first = int(minute.min(initial=np.iinfo(np.int64).max)) if len(minute) else 0
    return minute - first, first


def _sum_matrix(features: Features) -> Ints:
    """Shape (n, len(SUM_COLUMNS))."""
    tokens = [np.where(features.tokens[t] == ABSENT, 0, features.tokens[t]) for t in TOKEN_FIELDS]
    columns = [
        np.ones(len(features), np.int64),
        features.errors,
        ~features.errors,
        features.refusals,
        features.truncations,
        features.cache_hits,
        features.fallbacks,
        *tokens,
        ~features.costs.priced,
        # In two parts: a handful of absurd token counts must not overflow the sum of the rest.
        *np.divmod(
            np.where(features.costs.priced, features.costs.picodollars, 0),
            PICODOLLARS_PER_MICRODOLLAR,
        ),
    ]
    return np.stack([np.asarray(c, np.int64) for c in columns], axis=1)


def _buckets_of(features: Features, name: str) -> tuple[npt.NDArray[np.bool_], Ints]:
    attribute, scale = HISTOGRAMS[name]
    return find_measured_buckets(getattr(features, attribute) * scale)


def _histogram(
    row: Ints,
    inside: npt.NDArray[np.bool_],
    measured: npt.NDArray[np.bool_],
    buckets: Ints,
    rows: int,
) -> MapColumn:
    use = inside & measured
    return count_maps(row[use], buckets[use], rows)


def _error_codes(features: Features) -> tuple[Ints, list[str]]:
    names = sorted(name for name in features.error_types.values if name)
    place = {name: code for code, name in enumerate(names)}
    codes = np.array([place.get(name, -1) for name in features.error_types.values], np.int64)
    return codes[features.error_types.codes], names


def _error_map(
    row: Ints, inside: npt.NDArray[np.bool_], errors: tuple[Ints, list[str]], rows: int
) -> MapColumn:
    codes, names = errors
    use = inside & (codes >= 0)
    counted = count_maps(row[use], codes[use], rows)
    return counted._replace(keys=[names[code] for code in np.asarray(counted.keys)])


def _concatenate(parts: Sequence[Columns], record_ms: int) -> Columns:
    joined: Columns = {name: _join([part[name] for part in parts]) for name in parts[0]}
    high, low = (np.asarray(joined.pop(name)).tolist() for name in SUM_COLUMNS[-2:])
    joined["cost_usd"] = [
        Decimal(h * PICODOLLARS_PER_MICRODOLLAR + rest).scaleb(-12)
        for h, rest in zip(high, low, strict=True)
    ]
    joined["record_time"] = np.full(len(high), record_ms, np.int64)
    return joined


def _join(columns: Sequence[object]) -> object:
    if isinstance(columns[0], MapColumn):
        return _join_maps([c for c in columns if isinstance(c, MapColumn)])
    if isinstance(columns[0], list):
        return [value for column in columns if isinstance(column, list) for value in column]
    return np.concatenate([np.asarray(column) for column in columns])


def _join_maps(columns: Sequence[MapColumn]) -> MapColumn:
    offsets, end = [columns[0].offsets[:1]], 0
    for column in columns:
        offsets.append(column.offsets[1:] + end)
        end += int(column.offsets[-1])
    values = np.concatenate([c.values for c in columns])
    return MapColumn(
        np.concatenate(offsets).astype(np.int32), _join([c.keys for c in columns]), values
    )
