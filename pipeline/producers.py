"""Producers, opened alike wherever records are sent.

Delivery guarantee: a record whose future succeeds is on all in-sync replicas; no topic comes
into being by the way. Whether it may be there twice is said by who opens the producer.
"""

from __future__ import annotations

from typing import Any

from kafka import KafkaProducer, codec

from pipeline.config import KafkaSettings
from pipeline.topics import client_settings, mapped_errors


def open_producer(
    settings: KafkaSettings, *, patience_s: float | None = None, **options: Any
) -> KafkaProducer:
    """Connect to the broker; `options` are kafka-python's own, and the last word.

    Within `patience_s` a record is acknowledged or its future fails, and one request, or the
    wait for room or for the topic, takes half of it; without, the client's own times hold.

    Raises:
        ConfigError: the settings cannot be used.
        SinkUnavailable: the broker does not answer.
    """
    common: dict[str, Any] = {
        "acks": "all",
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
    }
    common |= {"compression_type": pick_compression()} | _timeouts(patience_s)
    with mapped_errors(settings):
        return KafkaProducer(**client_settings(settings), **(common | options))


def pick_compression() -> str | None:
    """Return the best codec that kafka-python can write with what is installed."""
    # Not gzip: kafka-python writes it at level 9, which costs more than the bytes are worth.
    if codec.has_zstd():
        return "zstd"
    return "lz4" if codec.has_lz4() else None


def _timeouts(patience_s: float | None) -> dict[str, int]:
    if patience_s is None:
        return {}
    half_ms = round(patience_s * 500)
    return {
        "delivery_timeout_ms": 2 * half_ms,
        "request_timeout_ms": half_ms,
        "max_block_ms": half_ms,
    }
