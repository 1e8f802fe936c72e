"""Fingerprint: how an answer differs from what its prompt lets one expect.

A reference is fitted to n answers with features y (style, meaning) to prompts with
features x. A ridge regression predicts y from x; what it leaves over is divided by
its spread, clipped, centred and whitened. Of the whitened directions the `p` with the
most variance are kept: they are those in which features move together, so they are
known best, and most of what a change of model does lies in them. While nothing
changes, the residuals have mean 0 and covariance at most 1, so that their sums are
all that a `ShiftDetector` needs.

Spread, centre and whitening come from residuals of answers that the regression was
not fitted to (cross-fitting). Those of its own answers are too small, and with them
every quiet stream would look like a change. Answers to the same prompt stay together.

What is poorly known is drawn towards something safe, with the weight of so many
answers: coefficients towards 0 and correlations towards none, or both towards those
of a `parent` reference, fitted to more answers of a wider kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.base import Floats, Ints

Floats32 = npt.NDArray[np.float32]

#: The layout of `to_bytes`.
VERSION = 1


@dataclass(frozen=True)
class FingerprintConfig:
    """How a reference is fitted.

    `ridge` and `shrinkage` are counted in answers. `clip` is in standard deviations.
    `least_spread` is added to every spread, in the unit of the features, so that one
    that never varied in the reference does not weigh without bound when it does.
    """

    directions: int = 24
    prompt_directions: int = 16
    ridge: float = 100.0
    shrinkage: float = 50.0
    clip: float = 3.0
    least_spread: float = 0.02
    folds: int = 5

    def __post_init__(self) -> None:
        if self.directions < 1 or self.prompt_directions < 0 or self.folds < 2:
            raise ValueError("at least 1 direction and 2 folds are needed")
        positive = (self.ridge, self.shrinkage, self.clip, self.least_spread)
        if not all(0 < value < math.inf for value in positive):
            raise ValueError("ridge, shrinkage, clip and spread must be positive and finite")


@dataclass(frozen=True)
class FingerprintReference:
    """What `residuals` needs, fitted to `n` answers; dx, dy features, q, p directions."""

    n: int
    clip: float
    #: Prediction of y: intercept + x @ coefficients; shapes (dy,) and (dx, dy).
    intercept: Floats32
    coefficients: Floats32
    #: Mean of y in the reference, and standard deviation of what x does not predict, (dy,).
    mean: Floats32
    spread: Floats32
    #: Mean of the clipped residuals, (dy,), and their correlations, shrunk, (dy, dy).
    centre: Floats32
    correlation: Floats32
    #: Clipped and centred residuals to whitened ones, (dy, p), and back, (p, dy).
    whitening: Floats32
    unwhitening: Floats32
    #: Mean and standard deviation of x, and mean of x once clipped, all (dx,).
    prompt_mean: Floats32
    prompt_spread: Floats32
    prompt_centre: Floats32
    #: The same, clipped and centred, to its whitened leading directions, (dx, q).
    prompt_whitening: Floats32

    @property
    def prompt_directions(self) -> int:
        return int(self.prompt_whitening.shape[1])

    @property
    def directions(self) -> int:
        return len(self.unwhitening)

    @property
    def known(self) -> int:
        """How many answers the mean counts for: half of those it was taken from.

        Their prompts are not the stream's. On those the regression's own error comes on
        top; with 190 answers and 84 features of the prompt it doubled the variance.
        """
        return max(self.n // 2, 1)


@dataclass(frozen=True)
class FeatureShift:
    """What a feature was on average, and what it is since the change."""

    feature: int
    before: float
    after: float
    #: The difference in units of what the prompt leaves open.
    spreads: float


def fit_reference(
    x: npt.NDArray[np.floating],
    y: npt.NDArray[np.floating],
    config: FingerprintConfig,
    parent: FingerprintReference | None = None,
) -> FingerprintReference:
    """Fit a reference to n answers: x (n, dx) of their prompts, y (n, dy) of themselves.

    The same input gives the same reference, and the order of the answers plays no part
    beyond rounding.

    Raises:
        ValueError: shapes that do not fit each other or the parent; fewer distinct
            prompts than folds; values that are not finite.
    """
    _check_features(x, y)
    _check_parent(x.shape[1], y.shape[1], parent)
    return _fit(x.astype(np.float64), y.astype(np.float64), config, parent)


def residuals(
    reference: FingerprintReference,
    x: npt.NDArray[np.floating],
    y: npt.NDArray[np.floating],
) -> Floats32:
    """Return the whitened residuals of n answers and, behind them, their prompts: (n, p + q).

    Raises:
        ValueError: a shape that is not the reference's, or a value that is not finite.
    """
    dx, dy = reference.coefficients.shape
    if x.shape != (len(x), dx) or y.shape != (len(x), dy):
        raise ValueError(f"features must have the shapes (n, {dx}) and (n, {dy})")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features must be finite")
    x, left = x.astype(np.float32), y.astype(np.float32)
    left -= x @ reference.coefficients
    left -= reference.intercept
    left /= reference.spread
    np.clip(left, -reference.clip, reference.clip, out=left)
    left -= reference.centre
    x -= reference.prompt_mean
    x /= reference.prompt_spread
    np.clip(x, -reference.clip, reference.clip, out=x)
    x -= reference.prompt_centre
    return np.concatenate([left @ reference.whitening, x @ reference.prompt_whitening], axis=1)


def describe_shift(
    reference: FingerprintReference, mean_shift: Floats, most: int
) -> list[FeatureShift]:
    """Say which features moved, the one that moved furthest first, at most `most`.

    `mean_shift` (p,) is in whitened units, as `ShiftDetector.change` gives it. What
    moved outside the directions that are kept is not seen.
    """
    spreads = mean_shift @ reference.unwhitening.astype(np.float64)
    order = np.argsort(-np.abs(spreads), kind="stable")[:most]
    after = reference.mean + spreads * reference.spread
    return [
        FeatureShift(int(i), float(reference.mean[i]), float(after[i]), float(spreads[i]))
        for i in order
    ]


# --- Fitting -------------------------------------------------------------------------------


def _fit(
    x: Floats, y: Floats, config: FingerprintConfig, parent: FingerprintReference | None
) -> FingerprintReference:
    left = _cross_fit(x, y, config, parent)
    spread = np.sqrt(left.var(axis=0) + config.least_spread**2)
    clipped = np.clip(left / spread, -config.clip, config.clip)
    centre = clipped.mean(axis=0)
    centred = clipped - centre
    correlation = _shrink(centred.T @ centred / len(x), len(x), config.shrinkage, parent)
    whitening, unwhitening = _whiten(correlation, config.directions)
    intercept, coefficients = _regress(x, y, config.ridge, parent)
    arrays: tuple[Floats, ...]
    arrays = (intercept, coefficients, y.mean(axis=0), spread, centre, correlation)
    arrays += (whitening, unwhitening, *_fit_prompts(x, config))
    return FingerprintReference(len(x), config.clip, *(a.astype(np.float32) for a in arrays))


def _fit_prompts(x: Floats, config: FingerprintConfig) -> tuple[Floats, ...]:
    """Mean, spread, centre and whitening of the prompts' features."""
    mean, spread = x.mean(axis=0), np.sqrt(x.var(axis=0) + config.least_spread**2)
    clipped = np.clip((x - mean) / spread, -config.clip, config.clip)
    centre = clipped.mean(axis=0)
    correlation = (clipped - centre).T @ (clipped - centre) / len(x)
    shrunk = _shrink(correlation, len(x), config.shrinkage, None)
    return mean, spread, centre, _whiten(shrunk, config.prompt_directions)[0]


def _cross_fit(
    x: Floats, y: Floats, config: FingerprintConfig, parent: FingerprintReference | None
) -> Floats:
    """What regressions on the other folds leave of each answer, shape (n, dy)."""
    # Equal prompts fall into one fold: to a copy of itself a prompt is no stranger.
    prompt = np.unique(x, axis=0, return_inverse=True)[1].reshape(-1)
    if prompt.max() + 1 < config.folds:
        raise ValueError(f"at least {config.folds} distinct prompts are needed")
    fold: Ints = prompt % config.folds
    left = np.empty_like(y)
    for each in range(config.folds):
        out = fold == each
        intercept, coefficients = _regress(x[~out], y[~out], config.ridge, parent)
        left[out] = y[out] - intercept - x[out] @ coefficients
    return left


def _regress(
    x: Floats, y: Floats, ridge: float, parent: FingerprintReference | None
) -> tuple[Floats, Floats]:
    """Ridge regression on standardised x, drawn towards the parent's coefficients or to 0."""
    prior = np.zeros((x.shape[1], y.shape[1]))
    if parent is not None:
        prior = parent.coefficients.astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    # What does not vary predicts nothing; a scale of 1 leaves its coefficient at the prior.
    scale = np.where(scale > 1e-9, scale, 1.0)
    standard = (x - mean) / scale
    left = y - y.mean(axis=0) - (x - mean) @ prior
    gram = standard.T @ standard + ridge * np.eye(x.shape[1])
    coefficients = prior + np.linalg.solve(gram, standard.T @ left) / scale[:, None]
    return y.mean(axis=0) - mean @ coefficients, coefficients


def _shrink(
    covariance: Floats, n: int, shrinkage: float, parent: FingerprintReference | None
) -> Floats:
    target = np.eye(len(covariance)) if parent is None else parent.correlation.astype(np.float64)
    shrunk: Floats = (n * covariance + shrinkage * target) / (n + shrinkage)
    return shrunk


def _whiten(correlation: Floats, directions: int) -> tuple[Floats, Floats]:
    """Principal directions scaled to variance 1, (dy, p), and their inverse, (p, dy)."""
    variance, vectors = np.linalg.eigh(correlation)
    kept = np.argsort(-variance, kind="stable")[:directions]
    vectors, deviation = vectors[:, kept], np.sqrt(variance[kept])
    # An eigenvector's sign is arbitrary: its largest part is made positive.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(kept))]
    vectors = vectors * np.sign(largest)
    return vectors / deviation, (vectors * deviation).T


def _check_features(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError("features must have the shapes (n, dx) and (n, dy)")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features must be finite")
    if not len(x):
        raise ValueError("a reference needs answers")


def _check_parent(dx: int, dy: int, parent: FingerprintReference | None) -> None:
    if parent is not None and parent.coefficients.shape != (dx, dy):
        raise ValueError(f"the parent has {parent.coefficients.shape} coefficients, not {(dx, dy)}")


# --- Publishing ----------------------------------------------------------------------------


class _Packed(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    n: int
    clip: float
    dx: int
    dy: int
    p: int
    q: int
    #: Little-endian float32, one after the other.
    arrays: dict[str, bytes]


def _shapes(dx: int, dy: int, p: int, q: int) -> dict[str, tuple[int, ...]]:
    return {
        "intercept": (dy,),
        "coefficients": (dx, dy),
        "mean": (dy,),
        "spread": (dy,),
        "centre": (dy,),
        "correlation": (dy, dy),
        "whitening": (dy, p),
        "unwhitening": (p, dy),
        "prompt_mean": (dx,),
        "prompt_spread": (dx,),
        "prompt_centre": (dx,),
        "prompt_whitening": (dx, q),
    }


def to_bytes(reference: FingerprintReference) -> bytes:
    """Return the reference as MessagePack."""
    dx, dy = reference.coefficients.shape
    p, q = reference.directions, reference.prompt_directions
    arrays = {n: getattr(reference, n).astype("<f4").tobytes() for n in _shapes(dx, dy, p, q)}
    packed = _Packed(VERSION, reference.n, reference.clip, dx, dy, p, q, arrays)
    return msgspec.msgpack.encode(packed)


def from_bytes(raw: bytes) -> FingerprintReference:
    """Return the reference that `to_bytes` made these bytes of.

    Raises:
        ValueError: they are not whole, or of another version.
    """
    try:
        packed = msgspec.msgpack.decode(raw, type=_Packed)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a fingerprint reference: {error}") from None
    if packed.version != VERSION:
        raise ValueError(f"a fingerprint reference of version {packed.version}, not {VERSION}")
    shapes = _shapes(packed.dx, packed.dy, packed.p, packed.q)
    if {n: len(a) for n, a in packed.arrays.items()} != {
        n: 4 * math.prod(shape) for n, shape in shapes.items()
    }:
        raise ValueError("not a fingerprint reference: arrays of the wrong size")
    arrays = {
        name: np.frombuffer(packed.arrays[name], "<f4").astype(np.float32).reshape(shape)
        for name, shape in shapes.items()
    }
    finite = 0 < packed.clip < math.inf and all(np.isfinite(a).all() for a in arrays.values())
    if packed.n < 1 or not finite:
        raise ValueError("not a fingerprint reference: values that are not finite")
    return FingerprintReference(n=packed.n, clip=packed.clip, **arrays)
