"""Whether a linear classifier over embeddings is worth having beside the patterns.

    python -m benchmarks.gateway.injection_fit --data DIR [--others FILE.csv ...]

Logistic regression with a quadratic penalty over the built-in encoder's vectors, fitted to the
half of the corpus for it and to every other prompt of real people; the threshold is where one
in two hundred of those, left out in turn, would be stopped. Told of the other half, of the
other real prompts, and of others' tables: what the patterns find, what it finds, what both do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from benchmarks.gateway.injection import PARTS, Text, read_corpus, read_others, read_prompts
from gateway.disguise import to_plain
from gateway.injection import weigh
from pipeline.encoders.static import StaticEncoder

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Encode = Callable[[list[Text]], Floats]
STOPPED_SHARE = 0.005
FOLDS = 10
PENALTIES = (1e-4, 1e-3, 1e-2)


def encode_with(encoder: StaticEncoder) -> Encode:
    """Return texts → features: their vectors, and a column of ones."""

    def encode(texts: list[Text]) -> Floats:
        plain = [to_plain(t.text).encode("utf-8", "replace").decode() for t in texts]
        vectors = encoder.encode(plain).astype(np.float64)
        return np.hstack([vectors, np.ones((len(vectors), 1))])

    return encode


def fit(x: Floats, attacks: Bools, penalty: float) -> Floats:
    """Maximise the penalised likelihood; attacks and harmless texts weigh the same together."""
    sides = np.where(attacks, 1.0, -1.0)
    share = np.where(attacks, 0.5 / attacks.sum(), 0.5 / (~attacks).sum())
    shrunk = np.r_[np.full(x.shape[1] - 1, penalty), 0.0]

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = sides * (x @ w)
        slope = -share * sides * np.exp(-np.logaddexp(0.0, margin))
        value = share @ np.logaddexp(0.0, -margin) + 0.5 * shrunk @ (w * w)
        return float(value), x.T @ slope + shrunk * w

    return np.asarray(minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x)


def leave_out(x: Floats, attacks: Bools, penalty: float) -> Floats:
    """Return the score of each text by a fit that has not seen its fold."""
    fold, scores = np.arange(len(x)) % FOLDS, np.zeros(len(x))
    for number in range(FOLDS):
        seen = fold != number
        scores[~seen] = x[~seen] @ fit(x[seen], attacks[seen], penalty)
    return scores


def choose(x: Floats, attacks: Bools) -> tuple[Floats, float, float]:
    """Return weights, threshold and penalty: of the penalties the one with the best recall."""
    found = []
    for penalty in PENALTIES:
        scores = leave_out(x, attacks, penalty)
        threshold = float(np.quantile(scores[~attacks], 1 - STOPPED_SHARE))
        found.append((float((scores[attacks] > threshold).mean()), threshold, penalty))
    _, threshold, penalty = max(found)
    return fit(x, attacks, penalty), threshold, penalty


def tell(name: str, texts: list[Text], judged: Bools) -> None:
    """Print recall and what is stopped for nothing, of patterns, classifier and both."""
    attacks = np.array([t.is_attack for t in texts])
    matched = np.array([weigh(t.text).is_found for t in texts])
    shares = []
    for who, told in (("patterns", matched), ("alone", judged), ("both", matched | judged)):
        recall = f"{told[attacks].mean():6.1%}" if attacks.any() else "     –"
        stopped = f"{told[~attacks].mean():6.2%}" if (~attacks).any() else "     –"
        shares.append(f"{who} {recall} / {stopped}")
    print(f"{name:24} {', '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of real prompts")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="tables of texts")
    given = parser.parse_args()
    prompts = [p for found in read_prompts(given.data).values() for p in found]
    real = [Text("", False, "real", prompt) for prompt in dict.fromkeys(prompts)]
    encode = encode_with(StaticEncoder.load())
    known = [*read_corpus(PARTS["dev"]), *real[::2]]
    attacks = np.array([t.is_attack for t in known])
    order = np.random.default_rng(1).permutation(len(known))
    weights, threshold, penalty = choose(encode(known)[order], attacks[order])
    print(f"penalty {penalty}, threshold {threshold:.2f}; recall / harmless stopped")
    held = list(read_corpus(PARTS["held"]))
    parts = {f"held out, {ln}": [t for t in held if t.language == ln] for ln in ("en", "ja")}
    parts |= {"real prompts": real[1::2]} | {f.stem: read_others(f) for f in given.others}
    for name, texts in parts.items():
        tell(name, texts, encode(texts) @ weights > threshold)


if __name__ == "__main__":
    main()
