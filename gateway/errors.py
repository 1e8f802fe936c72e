"""What a client may be told of an error: a stable code, a sentence in its language, a request id.

Nothing else leaves: no key, host, prompt or stack trace. What happened is in
`GatewayError.detail`, which is for the log alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import msgspec

from pipeline.errors import KizashiError

Language = Literal["en", "ja"]
#: Of an Accept-Language header; what is longer is cut.
_HEADER_CHARACTERS = 256


class Code(StrEnum):
    """Stable: clients may tell errors apart by it."""

    INVALID_API_KEY = "invalid_api_key"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    INVALID_REQUEST = "invalid_request"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_TYPE = "unsupported_media_type"
    FEEDBACK_REFUSED = "feedback_refused"
    FEEDBACK_UNAVAILABLE = "feedback_unavailable"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INPUT_BLOCKED = "input_blocked"
    ANSWER_BLOCKED = "answer_blocked"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    UPSTREAM_REFUSED = "upstream_refused_request"
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    STREAM_BROKEN = "stream_broken"
    OVERLOADED = "gateway_overloaded"
    INTERNAL = "internal_error"
    #: Never sent: nobody is there to hear it. It is the event's `error.type`.
    CLIENT_DISCONNECTED = "client_disconnected"


class Wording(NamedTuple):
    """How a code is told: HTTP status, OpenAI's error type, and the sentence."""

    status: int
    type: str
    en: str
    ja: str


_INVALID, _RATE, _SERVER = "invalid_request_error", "rate_limit_error", "server_error"
WORDINGS: dict[Code, Wording] = {
    Code.INVALID_API_KEY: Wording(
        401, "authentication_error", "The API key is not valid.", "APIキーが正しくありません。"
    ),
    Code.MODEL_NOT_ALLOWED: Wording(
        403,
        "permission_error",
        "This API key may not use this model.",
        "このAPIキーではこのモデルを利用できません。",
    ),
    Code.MODEL_NOT_FOUND: Wording(
        404, _INVALID, "There is no such model here.", "指定されたモデルは存在しません。"
    ),
    Code.NOT_FOUND: Wording(
        404, _INVALID, "There is nothing at this address.", "このURLには何もありません。"
    ),
    Code.METHOD_NOT_ALLOWED: Wording(
        405,
        _INVALID,
        "This address does not take this method.",
        "このURLではこのメソッドを利用できません。",
    ),
    Code.INVALID_REQUEST: Wording(
        400, _INVALID, "The request could not be read.", "リクエストの形式が正しくありません。"
    ),
    Code.REQUEST_TOO_LARGE: Wording(
        413, _INVALID, "The request is too large.", "リクエストが大きすぎます。"
    ),
    Code.UNSUPPORTED_TYPE: Wording(
        415,
        _INVALID,
        "The body must be JSON or JSON lines, as it is or packed with gzip.",
        "本文はJSONまたはJSON Lines(gzip圧縮可)で送信してください。",
    ),
    Code.FEEDBACK_REFUSED: Wording(
        422,
        _INVALID,
        "None of the feedback is valid; `refusals` says why.",
        "有効なフィードバックがありません。理由は`refusals`にあります。",
    ),
    Code.FEEDBACK_UNAVAILABLE: Wording(
        503,
        _SERVER,
        "The feedback was not taken. Please send the same again later.",
        "フィードバックを受け付けられませんでした。しばらくしてから同じ内容を再送してください。",
    ),
    Code.CONTEXT_LENGTH_EXCEEDED: Wording(
        400,
        _INVALID,
        "The conversation is longer than the model's context.",
        "会話がモデルのコンテキスト長を超えています。",
    ),
    Code.INPUT_BLOCKED: Wording(
        400,
        _INVALID,
        "The request was stopped by a safety rule.",
        "安全規則によりリクエストは受け付けられませんでした。",
    ),
    Code.ANSWER_BLOCKED: Wording(
        502,
        _SERVER,
        "The answer was stopped by a safety rule.",
        "安全規則により回答は表示できません。",
    ),
    Code.RATE_LIMIT_EXCEEDED: Wording(
        429,
        _RATE,
        "Too many requests or tokens. Please try again later.",
        "リクエスト数またはトークン数の上限に達しました。しばらくしてからお試しください。",
    ),
    Code.UPSTREAM_RATE_LIMITED: Wording(
        429,
        _RATE,
        "The model is busy. Please try again later.",
        "モデルが混み合っています。しばらくしてからお試しください。",
    ),
    Code.UPSTREAM_REFUSED: Wording(
        400,
        _INVALID,
        "The model did not accept the request.",
        "モデルがリクエストを受け付けませんでした。",
    ),
    Code.UPSTREAM_UNAVAILABLE: Wording(
        503,
        _SERVER,
        "The model is not available. Please try again later.",
        "モデルを利用できません。しばらくしてからお試しください。",
    ),
    Code.UPSTREAM_TIMEOUT: Wording(
        504,
        _SERVER,
        "The model did not answer in time.",
        "モデルの応答が時間内に得られませんでした。",
    ),
    Code.STREAM_BROKEN: Wording(
        502, _SERVER, "The answer broke off.", "回答が途中で途切れました。"
    ),
    Code.OVERLOADED: Wording(
        503,
        _SERVER,
        "The gateway is busy. Please try again shortly.",
        "ゲートウェイが混み合っています。しばらくしてからお試しください。",
    ),
    Code.INTERNAL: Wording(
        500, _SERVER, "Something went wrong.", "内部エラーが発生しました。"
    ),
    Code.CLIENT_DISCONNECTED: Wording(
        499, _INVALID, "The client went away.", "クライアントが切断しました。"
    ),
}  # fmt: skip


class GatewayError(KizashiError):
    """A request that ends in an error. `detail` goes to the log and never to the client."""

    def __init__(
        self,
        code: Code,
        detail: str = "",
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}" if detail else str(code))
        self.code = code
        self.detail = detail
        #: The key of the request's body that is wrong.
        self.param = param
        self.retry_after_s = retry_after_s
        #: What the client is told beside the error, under keys of its own.
        self.told = told or {}

    @property
    def status(self) -> int:
        return WORDINGS[self.code].status

    @property
    def retry_after(self) -> str | None:
        """The header Retry-After: whole seconds."""
        if self.retry_after_s is None:
            return None
        return str(max(1, round(self.retry_after_s + 0.5)))


def render_error(error: GatewayError, language: Language, request_id: str) -> bytes:
    """Return OpenAI's error object as JSON, with the request id in it."""
    wording = WORDINGS[error.code]
    body = {
        "message": wording.ja if language == "ja" else wording.en,
        "type": wording.type,
        "param": error.param,
        "code": error.code.value,
        "request_id": request_id,
    }
    return msgspec.json.encode({"error": body, **error.told})


def choose_language(accept_language: str, default: Language) -> Language:
    """Return which of our languages an Accept-Language header (RFC 9110) likes best."""
    best: Language = default
    best_quality = 0.0
    for part in accept_language[:_HEADER_CHARACTERS].split(","):
        tag, _, parameters = part.strip().partition(";")
        name = tag.strip().lower().partition("-")[0]
        quality = _quality(parameters)
        if name in {"en", "ja"} and quality > best_quality:
            best, best_quality = ("ja" if name == "ja" else "en"), quality
    return best


def _quality(parameters: str) -> float:
    key, _, value = parameters.strip().partition("=")
    if key.strip() != "q":
        return 1.0
    try:
        quality = float(value)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
