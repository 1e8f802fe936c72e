"""From the configuration to what makes vectors of texts, apart from what only a worker needs."""

from __future__ import annotations

from pipeline.config import EncoderSettings
from pipeline.core.answers import Embedding
from pipeline.encoders.embedding import CarriedVectors, EncodedTexts
from pipeline.encoders.static import StaticEncoder
from pipeline.encoders.transformer import TransformerEncoder


def build_embedding(encoder: EncoderSettings) -> Embedding | None:
    """What makes vectors of texts; None when no texts are to be read.

    Raises:
        ConfigError: the encoder is not installed, or cannot be loaded.
    """
    match encoder.kind:
        case "none":
            return None
        case "carried":
            return CarriedVectors(encoder.model, encoder.dimensions)
        case "transformer":
            model = TransformerEncoder.load(encoder.model, encoder.device, encoder.batch_size)
            return EncodedTexts(model, encoder.share)
        case "static":
            return EncodedTexts(StaticEncoder.load(), encoder.share)
