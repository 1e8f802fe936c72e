"""What happened to a request → its event, by the contract of `schemas.event`.

Every request that bears a valid key and names a model makes one event, success or not,
cached or not. Pure: the time is a parameter.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import msgspec

from gateway.asked import Asked, last_user_text
from gateway.exchange import Exchange
from gateway.stages import hardest

_LABEL_CHARACTERS = 256
_REASON_CHARACTERS = 64
_REASONS_MAX = 64
_DURATION_S_MAX = 86_400.0
_TEMPERATURE_MAX = 100
_TOKENS_MAX = 2**31 - 1


def write_event(exchange: Exchange, now: dt.datetime, text_characters: int | None) -> bytes:
    """Return the event as JSON. `text_characters` of each text go along; None: no texts."""
    asked = exchange.asked
    event: dict[str, Any] = {
        "event.id": asked.request_id,
        "event.time": now,
        "gen_ai.operation.name": asked.operation,
        "gen_ai.provider.name": exchange.provider,
        "gen_ai.request.model": exchange.model,
        "gen_ai.client.operation.duration": _seconds(exchange.duration_s),
        "gen_ai.prompt.name": _label(asked.prompt_name),
        "gen_ai.prompt.version": _label(asked.prompt_version),
        "error.type": exchange.error_type,
        "gateway.route": _label(asked.route),
        "gateway.tenant": _label(asked.tenant) or None,
        "gateway.user": _label(asked.user),
        "gateway.region": exchange.region,
        "gateway.cache": exchange.cache,
        "gateway.fallback_from": exchange.fallback_from,
        "gateway.attempts": exchange.attempts,
        "gateway.canary": _label(asked.canary),
        **_describe_request(asked),
        **_describe_answer(exchange),
        **_describe_texts(exchange, text_characters),
    }
    if (verdict := hardest(exchange.verdicts)) is not None:
        event["gateway.guardrail"] = _label(str(verdict))
    return msgspec.json.encode({key: value for key, value in event.items() if value is not None})


def _describe_request(asked: Asked) -> dict[str, Any]:
    body = asked.body
    described: dict[str, Any] = {}
    if asked.operation == "chat":
        described["gen_ai.request.stream"] = asked.stream
    temperature = body.get("temperature")
    if isinstance(temperature, int | float) and 0 <= temperature <= _TEMPERATURE_MAX:
        described["gen_ai.request.temperature"] = float(temperature)
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(most, int) and 0 <= most <= _TOKENS_MAX:
        described["gen_ai.request.max_tokens"] = most
    return described


def _describe_answer(exchange: Exchange) -> dict[str, Any]:
    answer, usage = exchange.answer, exchange.usage
    reasons = [reason[:_REASON_CHARACTERS] for reason in answer.reasons[:_REASONS_MAX]]
    first_s = exchange.first_chunk_s
    return {
        "gen_ai.response.model": _label(answer.response_model),
        "gen_ai.response.id": _label(answer.response_id),
        "gen_ai.response.finish_reasons": reasons or None,
        "gen_ai.response.time_to_first_chunk": None if first_s is None else _seconds(first_s),
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cache_read_tokens,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_creation_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        "gateway.refusal": True if answer.refused else None,
    }


def _describe_texts(exchange: Exchange, characters: int | None) -> dict[str, str | None]:
    if characters is None:
        return {}
    prompt = last_user_text(exchange.asked)
    texts = {"prompt.text": None if prompt is None else _writable(prompt[:characters])}
    if exchange.error is None and exchange.asked.operation == "chat":
        texts["response.text"] = _writable(exchange.answer.text[:characters])
    return texts


def _label(text: str | None) -> str | None:
    return None if text is None else _writable(text[:_LABEL_CHARACTERS])


def _writable(text: str) -> str:
    """A NUL is no text to the pipeline's codec, and a lone surrogate none to anybody."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _seconds(value: float) -> float:
    return round(min(value, _DURATION_S_MAX), 6) if math.isfinite(value) else 0.0
