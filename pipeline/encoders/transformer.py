"""Any sentence-transformers model as an encoder: dearer and finer than the static one."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pipeline.encoders.base import Vectors, normalize
from pipeline.errors import ConfigError

INSTALL = "uv pip install --require-hashes -r requirements/transformers.txt"


class Model(Protocol):
    """What is used of `sentence_transformers.SentenceTransformer`."""

    def encode(self, sentences: list[str], **options: Any) -> Any: ...

    def state_dict(self) -> Mapping[str, Any]: ...


class TransformerEncoder:
    """Vectors of a sentence-transformers model; texts longer than it reads are cut by it.

    Keeps nothing between calls. Not thread-safe.
    """

    def __init__(self, model: Model, name: str, batch_size: int = 64) -> None:
        """`model` is loaded already; `name` is what it is called, without the version."""
        if batch_size < 1:
            raise ValueError("a batch holds one text at least")
        self.name = f"{name}-{fingerprint(model.state_dict())}"
        self._model = model
        self._batch_size = batch_size
        self.dimensions = self._vectors(["dimensions"]).shape[1]

    @classmethod
    def load(
        cls, model: str, device: str | None = None, batch_size: int = 64
    ) -> TransformerEncoder:
        """Load a model by its name or folder; without a device the library chooses one.

        Raises:
            ConfigError: the extra `transformers` is not installed, or there is no such model.
        """
        try:
            library = importlib.import_module("sentence_transformers")
        except ImportError as error:
            raise ConfigError(f"the encoder {model!r} needs more packages: {INSTALL}") from error
        try:
            loaded = library.SentenceTransformer(model, device=device)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the encoder {model!r} cannot be loaded: {error}") from error
        return cls(loaded, model.rstrip("/").rpartition("/")[2], batch_size)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return shape (n, d), rows of length 1; a zero row where a text is blank.

        Raises:
            ValueError: the model gave something that is not finite.
        """
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        written = [number for number, text in enumerate(texts) if text.strip()]
        if written:
            vectors[written] = self._vectors([texts[number] for number in written])
        return normalize(vectors)

    def _vectors(self, texts: list[str]) -> Vectors:
        options = {"convert_to_numpy": True, "show_progress_bar": False}
        found = self._model.encode(texts, batch_size=self._batch_size, **options)
        vectors: Vectors = np.asarray(found, np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError(f"the encoder {self.name!r} gave vectors that are not finite")
        return vectors


def fingerprint(weights: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that change with the weights.

    The name, the shape and the first numbers of every tensor are looked at: enough to
    tell two trainings apart, and cheap also where there are billions of weights.
    """
    digest = hashlib.sha256()
    for key in sorted(weights):
        numbers = weights[key].reshape(-1)[:16].tolist()
        digest.update(f"{key} {tuple(weights[key].shape)} {numbers}\n".encode())
    return digest.hexdigest()[:12]
