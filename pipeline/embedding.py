"""From the configuration to what makes vectors of texts, apart from what only a worker needs.

An encoder's libraries are slow to load, and a worker leaves encoding to its preparers: so each is
imported where it is built.
"""

from __future__ import annotations

from pipeline.config import EncoderSettings
from pipeline.core.answers import Embedding
from pipeline.encoders.embedding import CarriedVectors, EncodedTexts


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
            from pipeline.encoders.transformer import TransformerEncoder

            model = TransformerEncoder.load(encoder.model, encoder.device, encoder.batch_size)
            return EncodedTexts(model, encoder.share)
        case "static":
            from pipeline.encoders.static import StaticEncoder

            return EncodedTexts(StaticEncoder.load(), encoder.share)
