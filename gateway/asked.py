"""What a client asks for: the body of a request, checked and frozen.

Only what the gateway itself reads is checked; the rest is the upstream's to judge
and is handed on as it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gateway.errors import Code, GatewayError, Language

Message = dict[str, Any]
MESSAGES_MAX = 10_000
INPUTS_MAX = 10_000
#: Longer ones are no labels, and the event's contract takes none.
LABEL_CHARACTERS = 256


class Asked(Struct, frozen=True, kw_only=True):
    """One request as the stages see it. A stage that changes it returns another."""

    request_id: str
    #: ``chat`` or ``embeddings``: `gen_ai.operation.name`.
    operation: str
    #: Of the key; "" where keys have none.
    tenant: str
    #: The name of the key.
    key: str = ""
    #: The model by the name under which it was asked for.
    model: str
    #: The decoded body, as OpenAI's API has it. Not to be changed in place.
    body: dict[str, Any]
    stream: bool = False
    #: Of messages to the client.
    language: Language = "en"
    route: str | None = None
    user: str | None = None
    prompt_name: str | None = None
    prompt_version: str | None = None
    #: The case that a canary asks; its answers are not counted among users'.
    canary: str | None = None
    #: ``Cache-Control``: the client wants a fresh answer; none of its own kept.
    no_cache: bool = False
    no_store: bool = False

    @property
    def owner(self) -> str:
        """Whose answers these are: nobody else is given them."""
        return f"tenant {self.tenant}" if self.tenant else f"key {self.key}"

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation of a chat; nothing for other operations."""
        messages: Sequence[Message] = self.body.get("messages", ())
        return messages

    def with_messages(self, messages: Sequence[Message]) -> Asked:
        return msgspec.structs.replace(self, body={**self.body, "messages": list(messages)})


def text_of(content: Any) -> str:
    """Return the text of a message's `content`: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def last_user_text(asked: Asked) -> str | None:
    """Return the last user turn, or the text to embed."""
    if asked.operation == "embeddings":
        return _embedded_text(asked.body.get("input"))
    for message in reversed(asked.messages):
        if message.get("role") == "user":
            return text_of(message.get("content"))
    return None


def _embedded_text(given: Any) -> str | None:
    if isinstance(given, str):
        return given
    if isinstance(given, list) and given and isinstance(given[0], str):
        return given[0]
    return None


def read_body(raw: bytes) -> dict[str, Any]:
    """Decode a body and check what chats and embeddings have in common.

    Raises:
        GatewayError: it is not a JSON object with a model.
    """
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GatewayError(Code.INVALID_REQUEST, f"not JSON: {error}") from None
    if not isinstance(body, dict):
        raise GatewayError(Code.INVALID_REQUEST, "not an object")
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= LABEL_CHARACTERS:
        raise GatewayError(Code.INVALID_REQUEST, "no model", param="model")
    return body


def check_chat(body: Mapping[str, Any]) -> None:
    """Check what the gateway reads of a chat's body.

    Raises:
        GatewayError: with the key that is wrong.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= MESSAGES_MAX:
        raise GatewayError(Code.INVALID_REQUEST, "no messages", param="messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise GatewayError(Code.INVALID_REQUEST, "a message has no role", param="messages")
        if not isinstance(message.get("content"), str | list | None):
            raise GatewayError(Code.INVALID_REQUEST, "content is no text", param="messages")
    if not isinstance(body.get("stream"), bool | None):
        raise GatewayError(Code.INVALID_REQUEST, "stream is no truth", param="stream")
    if not isinstance(body.get("stream_options"), dict | None):
        raise GatewayError(Code.INVALID_REQUEST, "no object", param="stream_options")


def check_embeddings(body: Mapping[str, Any]) -> None:
    """Check what the gateway reads of an embedding's body.

    Raises:
        GatewayError: with the key that is wrong.
    """
    given = body.get("input")
    if not isinstance(given, str | list) or not given or len(given) > _most(given):
        raise GatewayError(Code.INVALID_REQUEST, "no input", param="input")


def _most(given: str | list[Any]) -> int:
    return INPUTS_MAX if isinstance(given, list) else len(given)
