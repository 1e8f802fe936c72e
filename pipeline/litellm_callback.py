"""A callback for LiteLLM: every request that its proxy or library makes becomes an event in Kafka.

It imports nothing of ours, so that this one file beside the proxy's configuration and
kafka-python are all that is needed::

    litellm_settings:
      callbacks: ["litellm_callback.kizashi"]

Its settings are the worker's, from the environment: ``KIZASHI_KAFKA__BOOTSTRAP_SERVERS``,
``…EVENTS_TOPIC``, ``…SECURITY_PROTOCOL``, ``…SASL_MECHANISM``, ``…USERNAME``, ``…PASSWORD``,
``…CA_FILE``, ``…CERT_FILE``, ``…KEY_FILE``, ``…ALLOW_PLAINTEXT``; and
``LITELLM_KIZASHI_TEXTS=false`` leaves prompts and answers out.

Delivery: at most once. Nothing waits for Kafka: events are handed to a thread that holds at
most `HELD_BYTES_MAX` of them, sent or not yet; what comes beyond, or is not delivered within
`DELIVERY_TIMEOUT_S`, is lost, counted in `lost`, and logged. An event's id is made of the
call's, so what is sent twice counts once.
"""

from __future__ import annotations

import atexit
import ipaddress
import json
import logging
import os
import queue
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import litellm
from kafka import KafkaProducer
from kafka.errors import KafkaError
from litellm.integrations.custom_logger import CustomLogger

logger = logging.getLogger("kizashi")

HELD_BYTES_MAX = 64 * 1024 * 1024
DELIVERY_TIMEOUT_S = 120.0
_RECONNECT_S = 5.0
_SAY_AGAIN_S = 60.0
_LABEL_CHARS = 256
_PREFIX = "KIZASHI_KAFKA__"
#: What LiteLLM puts in place of a text that it was told not to log.
_REDACTED = "redacted-by-litellm"
_OPERATIONS = {
    "completion": "chat",
    "anthropic_messages": "chat",
    "responses": "chat",
    "embedding": "embeddings",
    "text_completion": "text_completion",
    "generate_content": "generate_content",
}
Json = dict[str, Any]


# --- From LiteLLM's payload to an event ---------------------------------------------------------


def translate(payload: Mapping[str, Any], *, texts: bool = True, caches: bool = False) -> Json:
    """Return a StandardLoggingPayload as an event on the wire.

    `caches`: the gateway has a cache, so that no hit is a miss. LiteLLM's own `prompt_tokens`
    hold the cached ones for every provider, as ours do.
    """
    metadata = payload.get("metadata") or {}
    requested = metadata.get("requester_metadata") or {}
    start, end = payload.get("startTime"), payload.get("endTime")
    response = payload.get("response")
    event = {
        "event.id": f"{payload.get('litellm_call_id') or payload.get('id')}-{_micros(start)}",
        "event.time": end,
        "gen_ai.operation.name": _operation(str(payload.get("call_type") or "")),
        "gen_ai.provider.name": payload.get("custom_llm_provider"),
        "gen_ai.request.model": payload.get("model_group") or payload.get("model"),
        "gen_ai.request.stream": bool(payload.get("stream")),
        "gen_ai.prompt.name": _prompt(metadata, requested).get("name"),
        "gen_ai.prompt.version": _prompt(metadata, requested).get("version"),
        "gateway.route": requested.get("route") or metadata.get("user_api_key_alias"),
        "gateway.tenant": requested.get("tenant")
        or metadata.get("user_api_key_team_alias")
        or metadata.get("user_api_key_team_id")
        or metadata.get("user_api_key_org_id"),
        "gateway.user": payload.get("end_user") or metadata.get("user_api_key_user_id"),
        "gateway.region": requested.get("region"),
        "gateway.guardrail": _guardrail(payload.get("guardrail_information")),
        **_read_parameters(payload.get("model_parameters") or {}),
    }
    if start is not None and end is not None:
        event["gen_ai.client.operation.duration"] = max(0.0, end - start)
    if payload.get("status") == "failure":
        event["error.type"] = _error(payload.get("error_information") or {})
    else:
        event |= _read_answer(payload, response if isinstance(response, dict) else {})
        event["gateway.cache"] = _cache(payload.get("cache_hit"), caches)
    if texts:
        event |= _read_texts(payload.get("messages"), response)
    return {key: _clip(key, value) for key, value in event.items() if value not in (None, "")}


def _micros(start: Any) -> int:
    return round(start * 1e6) if isinstance(start, int | float) else 0


def _operation(call_type: str) -> str:
    name = call_type.removeprefix("a") if call_type != "anthropic_messages" else call_type
    return _OPERATIONS.get(name, name)


def _prompt(metadata: Mapping[str, Any], requested: Mapping[str, Any]) -> Json:
    managed = metadata.get("prompt_management_metadata") or {}
    return {
        "name": requested.get("prompt_name") or managed.get("prompt_id"),
        "version": requested.get("prompt_version") or managed.get("prompt_version"),
    }


def _guardrail(information: Any) -> str | None:
    """The first guardrail that stepped in."""
    for each in information if isinstance(information, list) else [information]:
        if isinstance(each, dict) and each.get("guardrail_status") not in (
            None,
            "success",
            "not_run",
        ):
            return str(each.get("guardrail_name") or "guardrail")
    return None


def _read_parameters(parameters: Mapping[str, Any]) -> Json:
    found: Json = {}
    if isinstance(temperature := parameters.get("temperature"), int | float):
        found["gen_ai.request.temperature"] = temperature
    limit = parameters.get("max_tokens") or parameters.get("max_completion_tokens")
    if isinstance(limit, int):
        found["gen_ai.request.max_tokens"] = limit
    return found


def _error(information: Mapping[str, Any]) -> str:
    return str(information.get("error_class") or information.get("error_code") or "_OTHER")


def _cache(hit: Any, caches: bool) -> str | None:
    if hit is True:
        return "hit"
    return "miss" if caches else None


def _read_answer(payload: Mapping[str, Any], response: Mapping[str, Any]) -> Json:
    usage = (payload.get("metadata") or {}).get("usage_object") or response.get("usage") or {}
    asked = usage.get("prompt_tokens_details") or {}
    answered = usage.get("completion_tokens_details") or {}
    choices = _choices(response)
    first = choices[0].get("message") or {} if choices else {}
    found: Json = {
        "gen_ai.response.id": response.get("id"),
        "gen_ai.response.model": response.get("model"),
        "gen_ai.response.finish_reasons": [
            str(c["finish_reason"]) for c in choices if c.get("finish_reason")
        ]
        or None,
        "gen_ai.usage.input_tokens": payload.get("prompt_tokens"),
        "gen_ai.usage.output_tokens": payload.get("completion_tokens"),
        "gen_ai.usage.cache_read.input_tokens": asked.get("cached_tokens"),
        "gen_ai.usage.cache_creation.input_tokens": usage.get("cache_creation_input_tokens")
        or asked.get("cache_creation_tokens"),
        "gen_ai.usage.reasoning.output_tokens": answered.get("reasoning_tokens"),
        "gateway.refusal": True if first.get("refusal") else None,
    }
    begun = payload.get("completionStartTime")
    if payload.get("stream") and begun and payload.get("startTime"):
        found["gen_ai.response.time_to_first_chunk"] = max(0.0, begun - payload["startTime"])
    return found


def _choices(response: Any) -> list[Json]:
    held = response.get("choices") if isinstance(response, dict) else None
    return [c for c in held if isinstance(c, dict)] if isinstance(held, list) else []


def _read_texts(messages: Any, response: Any) -> Json:
    choices = _choices(response)
    answer = (choices[0].get("message") or {}).get("content") if choices else None
    return {"prompt.text": _plain(_last_user(messages)), "response.text": _plain(answer)}


def _last_user(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    users = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    return users[-1].get("content") if users else None


def _plain(content: Any) -> str | None:
    """The text of a message, or those of its parts that are text."""
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict)]
        content = "\n".join(p for p in parts if isinstance(p, str)) or None
    if not isinstance(content, str) or _REDACTED in content:
        return None
    return content


def _clip(key: str, value: Any) -> Any:
    """Names are at most so long; a text is as long as it is."""
    return value[:_LABEL_CHARS] if isinstance(value, str) and ".text" not in key else value


# --- To Kafka, in the background ----------------------------------------------------------------


class Sender:
    """Sends records from a thread of its own; connects when there is something to send."""

    def __init__(self, connect: Callable[[], KafkaProducer], topic: str) -> None:
        self._connect = connect
        self._topic = topic
        self._waiting: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._held_bytes = 0
        self._said_s = 0.0
        self.sent = 0
        #: Why events were lost → how many.
        self.lost: Counter[str] = Counter()
        self._thread: threading.Thread | None = None

    def offer(self, key: bytes, value: bytes) -> None:
        """Take a record; returns at once."""
        with self._changed:
            if self._held_bytes + len(value) > HELD_BYTES_MAX:
                self._lose("full")
                return
            self._held_bytes += len(value)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kizashi", daemon=True)
                self._thread.start()
        self._waiting.put((key, value))

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is held; False when something still is after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._held_bytes == 0, timeout_s)

    def _run(self) -> None:
        producer = self._reach()
        while (record := self._waiting.get()) is not None:
            key, value = record
            try:
                future = producer.send(self._topic, value, key)
            except KafkaError as error:
                self._settle(len(value), type(error).__name__)
                continue
            size = len(value)
            future.add_callback(lambda _, size=size: self._settle(size, None))
            future.add_errback(lambda error, size=size: self._settle(size, type(error).__name__))

    def _reach(self) -> KafkaProducer:
        while True:
            try:
                return self._connect()
            except (KafkaError, OSError) as error:
                logger.warning("Kafka cannot be reached, events wait: %r", error)
                time.sleep(_RECONNECT_S)

    def _settle(self, size: int, error: str | None) -> None:
        with self._changed:
            self._held_bytes -= size
            if error is None:
                self.sent += 1
            else:
                self._lose(error)
            self._changed.notify_all()

    def _lose(self, why: str) -> None:
        self.lost[why] += 1
        if time.monotonic() - self._said_s > _SAY_AGAIN_S:
            self._said_s = time.monotonic()
            logger.warning("events lost so far, by reason: %s", dict(self.lost))


def check_loopback(servers: Sequence[str]) -> None:
    """Refuse to send events, or a password, unencrypted over a network.

    Raises:
        ValueError: a server is not on this machine by its name or address.
    """
    for server in servers:
        host = server.strip().rpartition(":")[0].strip("[]") or server.strip()
        try:
            here = ipaddress.ip_address(host).is_loopback
        except ValueError:
            here = host == "localhost"
        if not here:
            raise ValueError(f"plain text to {host}: use SSL, or set {_PREFIX}ALLOW_PLAINTEXT")


def read_settings(environment: Mapping[str, str]) -> Json:
    """Return how to connect, by the worker's own settings.

    Raises:
        ValueError: plain text off this machine that nobody has allowed.
    """

    def read(name: str, default: str = "") -> str:
        return environment.get(_PREFIX + name, default)

    settings: Json = {"bootstrap_servers": read("BOOTSTRAP_SERVERS", "127.0.0.1:9092").split(",")}
    protocol = read("SECURITY_PROTOCOL", "PLAINTEXT")
    if protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=read("CA_FILE") or None)
        if certificate := read("CERT_FILE"):
            context.load_cert_chain(certificate, read("KEY_FILE") or None)
        settings["ssl_context"] = context
    elif read("ALLOW_PLAINTEXT").lower() not in {"true", "1"}:
        check_loopback(settings["bootstrap_servers"])
    if protocol.startswith("SASL"):
        settings["sasl_mechanism"] = read("SASL_MECHANISM", "SCRAM-SHA-512")
        settings["sasl_plain_username"] = read("USERNAME")
        settings["sasl_plain_password"] = read("PASSWORD")
    return settings | {"security_protocol": protocol}


def connect(settings: Json) -> KafkaProducer:
    """Return a producer."""
    return KafkaProducer(
        **settings,
        client_id="kizashi-litellm",
        acks="all",
        enable_idempotence=True,
        linger_ms=50,
        max_request_size=2 * 1024 * 1024,
        delivery_timeout_ms=round(DELIVERY_TIMEOUT_S * 1000),
        allow_auto_create_topics=False,
    )


class Kizashi(CustomLogger):  # type: ignore[misc]  # litellm has an environment of its own
    """What LiteLLM calls. `offer` takes a key and an event as bytes, and returns at once."""

    def __init__(self, offer: Callable[[bytes, bytes], None], *, texts: bool = True) -> None:
        super().__init__()
        self._offer = offer
        self._texts = texts

    def log_success_event(
        self, kwargs: Json, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._log(kwargs)

    def log_failure_event(
        self, kwargs: Json, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._log(kwargs)

    async def async_log_success_event(
        self, kwargs: Json, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._log(kwargs)

    async def async_log_failure_event(
        self, kwargs: Json, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._log(kwargs)

    def _log(self, kwargs: Json) -> None:
        payload = kwargs.get("standard_logging_object")
        if payload is None:
            return
        caches = litellm.cache is not None
        event = translate(payload, texts=self._texts, caches=caches)
        raw = json.dumps(event, ensure_ascii=False, default=str).encode(errors="replace")
        self._offer(str(event["event.id"]).encode(errors="replace"), raw)


#: Read at once: what is refused stops the proxy's start, and not a thread behind it.
_settings = read_settings(os.environ)
sender = Sender(
    lambda: connect(_settings), os.environ.get(_PREFIX + "EVENTS_TOPIC", "llm.gateway.events")
)
#: What a proxy's configuration names.
kizashi = Kizashi(
    sender.offer, texts=os.environ.get("LITELLM_KIZASHI_TEXTS", "true").lower() != "false"
)
atexit.register(sender.flush, 5.0)
