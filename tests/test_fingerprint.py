"""The fingerprint: residuals that stay centred and white for answers never seen before."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.fingerprint import (
    FingerprintConfig,
    FingerprintReference,
    describe_shift,
    fit_reference,
    from_bytes,
    residuals,
    to_bytes,
)

CONFIG = FingerprintConfig(directions=6, prompt_directions=4)
P = CONFIG.directions
DX, DY = 10, 8


@dataclasses.dataclass(frozen=True)
class World:
    """Prompts, and answers whose features hang together and depend on the prompt."""

    effect: np.ndarray
    mixing: np.ndarray
    level: np.ndarray

    @classmethod
    def make(cls, seed: int, dx: int = DX, dy: int = DY) -> World:
        rng = np.random.default_rng(seed)
        mixing = np.eye(dy) + 0.4 * rng.normal(size=(dy, dy)) / np.sqrt(dy)
        return cls(rng.normal(size=(dx, dy)) / np.sqrt(dx), mixing, rng.normal(size=dy) * 3)

    def draw(
        self, seed: int, n: int, traffic: float = 0.0, shift: np.ndarray | float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, len(self.effect))) + traffic
        noise = rng.normal(size=(n, len(self.level))) @ self.mixing
        return x, x @ self.effect + noise + self.level + shift


WORLD = World.make(1)


def same(one: FingerprintReference, other: FingerprintReference) -> bool:
    a, b = dataclasses.asdict(one), dataclasses.asdict(other)
    return all(np.array_equal(a[n], b[n]) for n in a)


# --- Residuals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [200, 500, 5_000])
def test_new_answers_are_centred_and_white(n: int) -> None:
    reference = fit_reference(*WORLD.draw(1, n), CONFIG)
    both = residuals(reference, *WORLD.draw(2, 20_000)).astype(np.float64)
    assert both.shape == (20_000, 6 + 4)
    r = both[:, :P]
    # The mean is as far from 0 as n answers leave open, and no further.
    assert (n * (r.mean(axis=0) ** 2)).sum() < 6 + 4 * np.sqrt(12)
    variance = np.linalg.eigvalsh(np.cov(r.T))
    assert variance.min() > 0.65
    assert variance.max() < 1 + 8 / np.sqrt(n)
    assert np.abs(both[:, P:].mean(axis=0)).max() < 5 / np.sqrt(n)
    assert np.abs(both[:, P:].var(axis=0) - 1).max() < 8 / np.sqrt(n)


def test_spread_is_that_of_answers_not_fitted_to() -> None:
    """With half as many prompt features as answers, a fit explains its own answers too well."""
    world = World.make(2, dx=60)
    x, y = world.draw(1, 120)
    config = dataclasses.replace(CONFIG, ridge=1.0)
    reference = fit_reference(x, y, config)
    fresh_x, fresh_y = world.draw(2, 4_000)

    def left(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        spread: np.ndarray = (y - x @ reference.coefficients - reference.intercept).std(axis=0)
        return spread

    assert np.mean(left(x, y) / left(fresh_x, fresh_y)) < 0.75
    # Four fifths of the answers predict a little less well than all: on the safe side.
    assert 1.0 < np.mean(reference.spread / left(fresh_x, fresh_y)) < 1.25


def test_copies_of_a_prompt_do_not_vouch_for_each_other() -> None:
    """Ten answers each to a few prompts, which a regression could learn by heart."""
    world = World.make(3, dx=30)
    rng = np.random.default_rng(1)
    x = np.repeat(rng.normal(size=(60, 30)), 10, axis=0)
    # What a prompt asks for beyond its features is the same in all its answers.
    own = np.repeat(rng.normal(size=(60, DY)), 10, axis=0)
    y = x @ world.effect + own + 0.1 * rng.normal(size=own.shape)
    reference = fit_reference(x, y, dataclasses.replace(CONFIG, ridge=1.0))
    assert np.mean(reference.spread) > 1.0


def test_other_traffic_is_no_other_model() -> None:
    reference = fit_reference(*WORLD.draw(1, 2_000), CONFIG)
    x, y = WORLD.draw(2, 5_000, traffic=0.3)
    moved = residuals(reference, x, y).mean(axis=0)
    assert np.linalg.norm(moved[:P]) < 0.15
    # The prompts do show it.
    assert np.linalg.norm(moved[P:]) > 0.4
    # Without the prompt the same answers look changed.
    blind = fit_reference(*WORLD.draw(1, 2_000), dataclasses.replace(CONFIG, ridge=1e12))
    assert np.linalg.norm(residuals(blind, x, y)[:, :P].mean(axis=0)) > 0.3


def test_one_answer_cannot_do_much() -> None:
    reference = fit_reference(*WORLD.draw(1, 500), CONFIG)
    x, y = WORLD.draw(2, 1)
    wild = residuals(reference, x, y + 1e12)[:, :P]
    limit = np.linalg.norm(reference.clip + np.abs(reference.centre))
    assert np.linalg.norm(wild) <= limit * np.linalg.norm(reference.whitening, 2) * 1.01


def test_features_that_never_vary_are_harmless_until_they_do() -> None:
    x, y = WORLD.draw(1, 500)
    x[:, 0], y[:, 0] = 1.0, 0.0
    reference = fit_reference(x, y, dataclasses.replace(CONFIG, directions=DY))
    fresh_x, fresh_y = WORLD.draw(2, 2_000)
    fresh_x[:, 0], fresh_y[:, 0] = 1.0, 0.0
    assert np.linalg.norm(residuals(reference, fresh_x, fresh_y)[:, :DY].mean(axis=0)) < 0.4
    fresh_y[:, 0] = 1.0
    assert np.linalg.norm(residuals(reference, fresh_x, fresh_y)[:, :DY].mean(axis=0)) > 3


# --- Fitting -----------------------------------------------------------------------------------


def test_the_same_answers_give_the_same_reference_in_any_order() -> None:
    x, y = WORLD.draw(1, 300)
    reference = fit_reference(x, y, CONFIG)
    assert same(reference, fit_reference(x, y, CONFIG))
    order = np.random.default_rng(5).permutation(300)
    shuffled = fit_reference(x[order], y[order], CONFIG)
    assert np.allclose(shuffled.whitening, reference.whitening, atol=1e-4)
    assert np.allclose(shuffled.coefficients, reference.coefficients, atol=1e-5)


def prediction_error(reference: FingerprintReference) -> float:
    x, y = WORLD.draw(77, 5_000)
    left = y - x @ reference.coefficients - reference.intercept
    return float(left.var(axis=0).mean())


def test_a_thin_reference_leans_on_its_parent_and_a_thick_one_stands() -> None:
    parent = fit_reference(*WORLD.draw(1, 20_000), CONFIG)
    thin, thick = WORLD.draw(2, 60), WORLD.draw(3, 20_000)
    alone, led = fit_reference(*thin, CONFIG), fit_reference(*thin, CONFIG, parent)
    assert prediction_error(led) < 0.9 * prediction_error(alone)
    misled = dataclasses.replace(parent, coefficients=-parent.coefficients)
    stands = fit_reference(*thick, CONFIG, misled)
    assert prediction_error(stands) < 1.02 * prediction_error(fit_reference(*thick, CONFIG))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_refused(value: float, which: int) -> None:
    reference = fit_reference(*WORLD.draw(1, 100), CONFIG)
    features = WORLD.draw(2, 50)
    features[which][3, 2] = value
    with pytest.raises(ValueError, match="finite"):
        residuals(reference, *features)
    with pytest.raises(ValueError, match="finite"):
        fit_reference(*features, CONFIG)


def test_what_does_not_fit_is_refused() -> None:
    x, y = WORLD.draw(1, 100)
    reference = fit_reference(x, y, CONFIG)
    with pytest.raises(ValueError, match="shapes"):
        residuals(reference, x[:, 1:], y)
    with pytest.raises(ValueError, match="shapes"):
        residuals(reference, x, y[1:])
    with pytest.raises(ValueError, match="shapes"):
        fit_reference(x, y[1:], CONFIG)
    with pytest.raises(ValueError, match="prompts"):
        fit_reference(x[:4], y[:4], CONFIG)
    with pytest.raises(ValueError, match="answers"):
        fit_reference(x[:0], y[:0], CONFIG)
    with pytest.raises(ValueError, match="parent"):
        fit_reference(x[:, 1:], y, CONFIG, reference)


@pytest.mark.parametrize(
    "named", [{"directions": 0}, {"folds": 1}, {"ridge": 0.0}, {"clip": float("inf")}]
)
def test_an_impossible_configuration_is_refused(named: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"needed|positive"):
        FingerprintConfig(**named)


# --- Saying what moved -------------------------------------------------------------------------


def test_the_feature_that_moved_is_named_with_its_figures() -> None:
    reference = fit_reference(*WORLD.draw(1, 2_000), dataclasses.replace(CONFIG, directions=DY))
    shift = np.zeros(DY)
    shift[5] = -0.8
    r = residuals(reference, *WORLD.draw(2, 5_000, shift=shift))
    first, second = describe_shift(reference, r[:, :DY].mean(axis=0).astype(np.float64), 2)
    assert first.feature == 5
    assert first.before == pytest.approx(WORLD.level[5], abs=0.15)
    # Clipping takes a little off large shifts.
    assert first.after - first.before == pytest.approx(-0.8, abs=0.12)
    assert first.spreads == pytest.approx(-0.8 / reference.spread[5], abs=0.12)
    assert abs(second.spreads) < 0.15


def test_no_more_is_named_than_asked_for() -> None:
    reference = fit_reference(*WORLD.draw(1, 200), CONFIG)
    assert len(describe_shift(reference, np.ones(6), 3)) == 3
    assert len(describe_shift(reference, np.ones(6), 99)) == DY


# --- Publishing --------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dx=st.integers(1, 5),
    dy=st.integers(1, 5),
    directions=st.integers(1, 7),
)
def test_a_reference_survives_its_bytes(seed: int, dx: int, dy: int, directions: int) -> None:
    x, y = World.make(seed, dx, dy).draw(seed, 30)
    reference = fit_reference(x, y, FingerprintConfig(directions=directions))
    assert reference.directions == min(directions, dy)
    assert same(from_bytes(to_bytes(reference)), reference)


def test_damaged_bytes_are_refused() -> None:
    reference = fit_reference(*WORLD.draw(1, 100), CONFIG)
    raw = to_bytes(reference)
    lame = dataclasses.replace(reference, mean=reference.mean * np.float32(np.nan))
    short = dataclasses.replace(reference, mean=reference.mean[1:])
    blunt = dataclasses.replace(reference, clip=0.0)
    empty = dataclasses.replace(reference, n=0)
    for damaged in (raw[:-1], b"", b"\xc1", *map(to_bytes, (lame, short, blunt, empty))):
        with pytest.raises(ValueError, match="not a fingerprint reference"):
            from_bytes(damaged)
