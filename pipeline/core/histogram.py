"""Base-2 exponential histograms: quantiles that add, within 1.1 % of the exact order statistic.

Bucket ``i`` holds values in ``(2^(i/32), 2^((i+1)/32)]``: the exponential
histogram of OpenTelemetry's metrics data model at scale 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from schemas.signal import CLASS_SPAN, FIRST_CLASS, INPUT_CLASSES, LOWEST_COARSE

SCALE = 32
#: What is below 2^-10 (zero too) falls into the first bucket, what is above 2^31 into the last.
MIN_BUCKET = -10 * SCALE
MAX_BUCKET = 31 * SCALE
MAX_COARSE = 31 * 4


def find_buckets(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the bucket index of each value (shape (n,), finite and not negative)."""
    with np.errstate(divide="ignore"):
        index = np.ceil(np.log2(values) * SCALE) - 1
    buckets: npt.NDArray[np.int64] = np.clip(index, MIN_BUCKET, MAX_BUCKET).astype(np.int64)
    return buckets


def find_measured_buckets(
    values: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return which values were measured (are finite), and the bucket of each that was."""
    measured = np.isfinite(values)
    return measured, find_buckets(np.where(measured, values, 0.0))


def find_classed_buckets(
    values: npt.NDArray[np.float64], input_tokens: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """The same in coarse buckets, apart for each class of input size (see `schemas.signal`).

    An input whose size is not known (negative) counts as small.
    """
    measured = np.isfinite(values)
    with np.errstate(divide="ignore"):
        coarse = np.ceil(np.log2(np.where(measured, values, 0.0)) * 4) - 1
    coarse = np.clip(coarse, LOWEST_COARSE, MAX_COARSE).astype(np.int64)
    octaves = np.log2(np.maximum(input_tokens, 1))
    classes = np.clip(np.floor(2 * octaves) - FIRST_CLASS, 0, INPUT_CLASSES - 1).astype(np.int64)
    return measured, classes * CLASS_SPAN + (coarse - LOWEST_COARSE)


def upper_edge(bucket: int) -> float:
    """Return the largest value that the bucket holds."""
    return float(2.0 ** ((bucket + 1) / SCALE))


def quantile(buckets: Mapping[int, int], q: float) -> float | None:
    """Return the geometric middle of the bucket at rank ceil(q·n); None for an empty histogram."""
    bucket = quantile_bucket(buckets, q)
    return None if bucket is None else float(2.0 ** ((bucket + 0.5) / SCALE))


def quantile_bucket(buckets: Mapping[int, int], q: float) -> int | None:
    """Return the index of the bucket at rank ceil(q·n), or None for an empty histogram."""
    rank = max(1, math.ceil(q * sum(buckets.values())))
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return bucket
    return None
