"""Asking an OpenAI-compatible endpoint: the gateway's, or a provider's own.

Nothing is retried: a canary sees what a user would have seen. An endpoint that does not
answer is a fault of the sample, never an error of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from pipeline.canary.cases import Case
from pipeline.canary.judging import Answer
from pipeline.config import CanarySettings, is_loopback
from pipeline.errors import ConfigError

#: Tells a gateway that this is no user's request.
CANARY_HEADER = "X-Kizashi-Canary"
_ANSWER_BYTES_MAX = 4 * 1024 * 1024


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(Struct):
    message: _Message = msgspec.field(default_factory=_Message)
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(Struct):
    choices: list[_Choice]
    id: str = ""
    model: str = ""
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Completion).decode


class Endpoint:
    """Where cases are asked. May be called from several threads."""

    def __init__(
        self,
        settings: CanarySettings,
        transport: httpx.BaseTransport | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`transport` stands in for the network in tests.

        Raises:
            ConfigError: nothing to ask, or a key that would travel in the clear.
        """
        if settings.base_url is None:
            raise ConfigError("canary.base_url: whom to ask? (up to and without /chat/completions)")
        key = settings.api_key
        plain = settings.base_url.scheme != "https" and not is_loopback(
            settings.base_url.host or ""
        )
        if key is not None and plain and not settings.allow_plaintext:
            raise ConfigError("canary.base_url: the key would travel in the clear: use https")
        headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        self._settings = settings
        self._now_s = now_s
        self._client = httpx.Client(
            base_url=str(settings.base_url).rstrip("/"),
            headers=headers,
            timeout=settings.timeout_s,
            transport=transport,
        )

    def model_of(self, case: Case) -> str:
        """Return the model that the case asks.

        Raises:
            ConfigError: none is configured.
        """
        model = case.model or self._settings.model
        if model is None:
            raise ConfigError(f"{case.name}: which model? set canary.model, or the case's own")
        return model

    def ask(self, case: Case) -> Answer:
        """Return one sample's answer, or why there is none."""
        turns = [message.model_dump() for message in case.messages]
        turns.append({"role": "user", "content": case.input})
        body: dict[str, Any] = {"model": self.model_of(case), "messages": turns}
        body |= {
            name: value
            for name in ("temperature", "max_tokens")
            if (value := getattr(case, name)) is not None
        }
        start_s = self._now_s()
        try:
            response = self._client.post(
                "/chat/completions", json=body, headers={CANARY_HEADER: case.name}
            )
        except httpx.TimeoutException:
            return Answer(error="timeout", duration_s=self._now_s() - start_s)
        except httpx.HTTPError as error:
            return Answer(error=type(error).__name__, duration_s=self._now_s() - start_s)
        return _read(response, self._now_s() - start_s)

    def close(self) -> None:
        self._client.close()


def _read(response: httpx.Response, duration_s: float) -> Answer:
    if response.status_code != httpx.codes.OK:
        return Answer(error=str(response.status_code), duration_s=duration_s)
    try:
        completion = _decode(response.content[: _ANSWER_BYTES_MAX + 1])
        choice = completion.choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError):
        return Answer(error="not_a_completion", duration_s=duration_s)
    usage = completion.usage or _Usage()
    return Answer(
        text=choice.message.content or choice.message.refusal or "",
        finish_reasons=(choice.finish_reason,) if choice.finish_reason else (),
        refusal=True if choice.message.refusal else None,
        duration_s=duration_s,
        response_id=completion.id,
        response_model=completion.model,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
    )
