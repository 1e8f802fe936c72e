"""A request on its way through the stages; what answers it is written to the client here.

    key → limits → guardrails in → cache → route and fallback → upstream → guardrails out → event

Delivery: one event for every request with a valid key and a model, handed over before the
answer's last byte. A stream that broke after its first chunk is not begun again: the client
gets an error event. A client that goes away cancels the request, and that its upstream.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from gateway import sse
from gateway.answer import Answer, Completion, chunks_of
from gateway.asked import (
    Asked,
    check_chat,
    check_embeddings,
    read_body,
)
from gateway.errors import Code, GatewayError, Language, choose_language, render_error
from gateway.exchange import Exchange
from gateway.feedback_door import FeedbackDoor
from gateway.ids import new_request_id
from gateway.keys import Keyring
from gateway.metrics import Metrics
from gateway.relay import Relay, completion_of, wants_usage
from gateway.routing import Attempts, Breaker, Candidate, UpstreamFailure, candidates
from gateway.stages import Action, AnswerGuards, Looked, Stages
from gateway.upstream import Upstream, UpstreamStream
from pipeline.gateway_settings import GatewaySettings, KeySettings, ModelSettings

logger = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would wait for the whole answer.
    (b"x-accel-buffering", b"no"),
)
#: Bodies above this are looked through in a thread: of so much, all guards and a tokenizer
#: together hold the loop for some milliseconds.
LONG_BYTES = 8_192
#: Of an answer, for a cache: longer ones are not kept.
_CACHED_CHARACTERS = 200_000


class Limiter(Protocol):
    """Counts requests and tokens of each key."""

    async def admit(self, key: KeySettings, asked: Asked) -> None:
        """Count a request. Raises GatewayError RATE_LIMIT_EXCEEDED where there are too many."""
        ...

    async def admit_feedback(self, key: KeySettings, request_id: str) -> None:
        """Count a request that brings feedback. Raises as `admit` does."""
        ...

    async def charge(self, key: KeySettings, asked: Asked, tokens: int) -> None:
        """Count the tokens that a request has used."""
        ...


class Recorder(Protocol):
    """Takes what happened: an event, and metrics. Never blocks and never raises."""

    def record(self, exchange: Exchange) -> None: ...
    def turn_away(self, code: str) -> None: ...


class Clocks(Struct, frozen=True):
    """Where serving gets time and chance from."""

    steady_s: Callable[[], float] = time.monotonic
    wall_s: Callable[[], float] = time.time
    draw: Callable[[], float] = random.SystemRandom().random


class Gateway:
    """All that serving a request needs. Built by `gateway.build`, used by `gateway.app`."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        keyring: Keyring,
        upstreams: Mapping[str, Upstream],
        stages: Stages,
        limiter: Limiter,
        recorder: Recorder,
        metrics: Metrics,
        clocks: Clocks | None = None,
        feedback: FeedbackDoor | None = None,
    ) -> None:
        self.settings = settings
        self.keyring = keyring
        self.upstreams = upstreams
        self.stages = stages
        self.limiter = limiter
        self.recorder = recorder
        self.metrics = metrics
        self.clocks = clocks or Clocks()
        self.feedback = feedback
        self.models: dict[str, ModelSettings] = {m.name: m for m in settings.models}
        self.breakers = {
            name: Breaker(u.settings.breaker_failures, u.settings.breaker_pause_s)
            for name, u in upstreams.items()
        }
        #: Requests under way.
        self.served = 0
        metrics.under_way.set_function(lambda: self.served)
        self._characters = max(
            settings.events.text_characters, _CACHED_CHARACTERS if stages.cache else 0
        )

    def language(self, headers: Mapping[str, str]) -> Language:
        accepted = headers.get("accept-language")
        return (
            choose_language(accepted, self.settings.language)
            if accepted
            else self.settings.language
        )

    def admit(self, authorization: str | None) -> KeySettings:
        """Return whose key it is, while there is room for one request more.

        Raises:
            GatewayError: nobody's, or too many are under way.
        """
        if self.served > self.settings.requests:
            raise GatewayError(Code.OVERLOADED, "too many at once", retry_after_s=1.0)
        return self.keyring.identify(authorization)

    def new_answer(self) -> Answer:
        return Answer(self._characters)


class Serving:
    """One request, as an ASGI response: `operation` is ``chat`` or ``embeddings``."""

    def __init__(self, gateway: Gateway, operation: str, headers: Mapping[str, str]) -> None:
        self._gateway = gateway
        self._operation = operation
        self._headers = headers
        self._language = gateway.language(headers)
        self._request_id = new_request_id(gateway.clocks.wall_s())
        self._exchange: Exchange | None = None
        self._key: KeySettings | None = None
        #: The status line is sent: what fails now can only be said within the stream.
        self._begun = False
        self._is_over = False
        self._is_long = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        gateway.served += 1
        try:
            # Whoever has no key does not get as far as sending us megabytes.
            key = self._admit()
            raw = await _read(receive, gateway.settings.body_bytes)
            self._is_long = len(raw) > LONG_BYTES
            await self._until_gone(key, raw, receive, send)
        except _ClientGone:
            self._end(GatewayError(Code.CLIENT_DISCONNECTED))
        except GatewayError as error:
            await self._fail(error, send)
        except Exception as error:
            logger.exception("request %s", self._request_id)
            await self._fail(GatewayError(Code.INTERNAL, type(error).__name__), send)
        finally:
            gateway.served -= 1
        await self._charge()

    def _admit(self) -> KeySettings:
        self._key = self._gateway.admit(self._headers.get("authorization"))
        return self._key

    async def _charge(self) -> None:
        """Count what was used, also of an answer that came to nothing."""
        key, exchange = self._key, self._exchange
        if key is not None and exchange is not None and (tokens := exchange.usage.total):
            await self._gateway.limiter.charge(key, exchange.asked, tokens)

    async def _until_gone(self, key: KeySettings, raw: bytes, receive: Receive, send: Send) -> None:
        """Serve, but stop as soon as the client is gone."""
        serving = asyncio.current_task()
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                continue
            # Once all is said, the server calls it a disconnect too.
            if serving is not None and not self._is_over:
                gone = True
                serving.cancel()

        watching = asyncio.ensure_future(watch())
        try:
            await self._serve(key, raw, send)
        except asyncio.CancelledError:
            if not gone:
                self._end(GatewayError(Code.CLIENT_DISCONNECTED, "the gateway stops"))
                raise
            if serving is not None:
                serving.uncancel()
            raise _ClientGone from None
        finally:
            watching.cancel()

    # --- The stages ---------------------------------------------------------------------

    async def _serve(self, key: KeySettings, raw: bytes, send: Send) -> None:
        gateway = self._gateway
        asked = self._read_request(raw, key)
        exchange = self._exchange = Exchange(
            asked, gateway.new_answer(), gateway.clocks.steady_s(), asked.model
        )
        self._check_allowed(asked, key)
        await gateway.limiter.admit(key, asked)
        asked = await self._work(partial(self._guard_input, asked, exchange))
        if self._operation == "chat" and await self._answer_from_cache(asked, exchange, send):
            return
        if asked.stream:
            await self._stream(asked, exchange, send)
        else:
            await self._complete(asked, exchange, send)

    async def _work(self, work: Callable[[], Asked]) -> Asked:
        """Do what takes time with the text: of a long request in a thread, beside the loop."""
        if not self._is_long:
            return work()
        working = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            # What it hides must be hidden before the event is written.
            await asyncio.wait({working})
            raise

    def _read_request(self, raw: bytes, key: KeySettings) -> Asked:
        headers = self._headers
        body = read_body(raw)
        user = body.get("user")
        # From whoever may not say so it is a user's request, or users could hide.
        canary = headers.get("x-kizashi-canary") if key.canary else None
        control = headers.get("cache-control", "").lower()
        return Asked(
            request_id=self._request_id,
            operation=self._operation,
            tenant=key.tenant or "",
            key=key.name,
            model=body["model"],
            body=body,
            stream=self._operation == "chat" and body.get("stream") is True,
            language=self._language,
            route=headers.get("x-kizashi-route") or key.route,
            user=user if isinstance(user, str) else None,
            prompt_name=headers.get("x-kizashi-prompt-name"),
            prompt_version=headers.get("x-kizashi-prompt-version"),
            canary=canary or None,
            # A canary wants to hear the model, and must not be heard by users.
            no_cache="no-cache" in control,
            no_store=bool(canary) or "no-store" in control,
        )

    def _check_allowed(self, asked: Asked, key: KeySettings) -> None:
        if self._operation == "chat":
            check_chat(asked.body)
        else:
            check_embeddings(asked.body)
        if asked.model not in self._gateway.models:
            raise GatewayError(Code.MODEL_NOT_FOUND, param="model")
        if key.models and asked.model not in key.models:
            raise GatewayError(Code.MODEL_NOT_ALLOWED, param="model")

    def _guard_input(self, asked: Asked, exchange: Exchange) -> Asked:
        for guard in self._gateway.stages.input_guards:
            checked = guard.check(asked)
            asked = checked.asked
            exchange.verdicts += checked.verdicts
            # What is stored is what was let through.
            exchange.asked = asked
            if any(v.action is Action.BLOCKED for v in checked.verdicts):
                raise GatewayError(Code.INPUT_BLOCKED, str(checked.verdicts))
        return asked

    async def _answer_from_cache(self, asked: Asked, exchange: Exchange, send: Send) -> bool:
        gateway = self._gateway
        if gateway.stages.cache is None:
            return False
        looked = gateway.stages.cache.look_up(asked, gateway.clocks.steady_s())
        exchange.looked = looked
        if looked.completion is None:
            return False
        completion = looked.completion
        exchange.answer.take_completion(msgspec.convert(completion, Completion))
        if not asked.stream:
            await self._send_whole(msgspec.json.encode(completion), send)
            return True
        chunks = chunks_of(completion, usage=wants_usage(asked))
        pieces = [sse.write(msgspec.json.encode(chunk)) for chunk in chunks]
        await self._begin_stream(send)
        self._end()
        await _send_body(send, b"".join([*pieces, sse.write(sse.DONE)]), more=False)
        return True

    def _keep(self, exchange: Exchange, completion: dict[str, Any] | None) -> None:
        cache, looked = self._gateway.stages.cache, exchange.looked
        if cache is not None and looked is not None and completion is not None:
            now_s = self._gateway.clocks.steady_s()
            used, provider = exchange.usage, exchange.provider
            cache.keep(looked, completion, now_s, usage=used, provider=provider)

    # --- Upstreams ----------------------------------------------------------------------

    def _plan(self, asked: Asked) -> Attempts:
        gateway = self._gateway
        model = gateway.models[asked.model]
        most = sum(len(gateway.models[n].targets) for n in (asked.model, *model.fallbacks))
        draws = [1.0 - gateway.clocks.draw() for _ in range(most)] if most > 1 else [1.0]
        chain = candidates(gateway.models, asked.model, draws)
        return Attempts(chain, model, gateway.settings, gateway.clocks.steady_s())

    async def _next(
        self, attempts: Attempts, asked: Asked, exchange: Exchange
    ) -> tuple[Asked, Candidate, Upstream]:
        """Wait for what is to be tried next, and note it."""
        gateway = self._gateway
        steady_s = gateway.clocks.steady_s
        found = attempts.next(steady_s(), gateway.breakers, gateway.clocks.draw())
        if found.wait_s > 0:
            await asyncio.sleep(found.wait_s)
        candidate = found.candidate
        gateway.breakers[candidate.target.upstream].begin(steady_s())
        upstream = gateway.upstreams[candidate.target.upstream]
        exchange.attempts = attempts.made
        exchange.model = candidate.model
        exchange.provider, exchange.region = upstream.provider, upstream.settings.region
        context, tokens = gateway.stages.context, candidate.context_tokens
        if context is not None and tokens is not None and asked.operation == "chat":
            asked = await self._work(partial(context.fit, asked, tokens))
        return asked, candidate, upstream

    def _note_failure(
        self, attempts: Attempts, candidate: Candidate, failed: UpstreamFailure
    ) -> None:
        now_s = self._gateway.clocks.steady_s()
        logger.warning("request %s: %s", self._request_id, failed)
        self._gateway.breakers[candidate.target.upstream].fail(failed.failure, now_s)
        attempts.fail(failed, now_s)

    async def _complete(self, asked: Asked, exchange: Exchange, send: Send) -> None:
        attempts = self._plan(asked)
        while True:
            fitted, candidate, upstream = await self._next(attempts, asked, exchange)
            within_s = attempts.deadline_s - self._gateway.clocks.steady_s()
            try:
                raw, completion = await upstream.complete(fitted, candidate.target.model, within_s)
                break
            except UpstreamFailure as failed:
                self._note_failure(attempts, candidate, failed)
        self._gateway.breakers[candidate.target.upstream].succeed()
        exchange.answer.take_completion(completion)
        exchange.usage = exchange.answer.usage or exchange.usage
        raw = self._guard_answer(asked, exchange, raw)
        if exchange.is_worth_keeping:
            self._keep(exchange, msgspec.json.decode(raw))
        await self._send_whole(raw, send)

    def _guard_answer(self, asked: Asked, exchange: Exchange, raw: bytes) -> bytes:
        guard = self._gateway.stages.output_guard
        if guard is None or self._operation != "chat":
            return raw
        guards = AnswerGuards(guard, asked)
        changed = guards.check_completion(msgspec.json.decode(raw))
        verdicts = guards.verdicts
        exchange.verdicts += verdicts
        if guards.blocked:
            raise GatewayError(Code.ANSWER_BLOCKED, str(verdicts))
        if not verdicts:
            return raw
        answer = exchange.answer = self._gateway.new_answer()
        answer.take_completion(msgspec.convert(changed, Completion))
        return msgspec.json.encode(changed)

    async def _stream(self, asked: Asked, exchange: Exchange, send: Send) -> None:
        attempts = self._plan(asked)
        while True:
            fitted, candidate, upstream = await self._next(attempts, asked, exchange)
            within_s = attempts.deadline_s - self._gateway.clocks.steady_s()
            try:
                stream = await upstream.open_stream(fitted, candidate.target.model, within_s)
                break
            except UpstreamFailure as failed:
                self._note_failure(attempts, candidate, failed)
        exchange.first_chunk_s = self._gateway.clocks.steady_s() - exchange.started_s
        breaker = self._gateway.breakers[candidate.target.upstream]
        guard = self._gateway.stages.output_guard
        guards = None if guard is None else AnswerGuards(guard, asked)
        relay = Relay(asked, exchange.answer, guards)
        try:
            await self._relay(stream, relay, send)
        except UpstreamFailure as failed:
            breaker.fail(failed.failure, self._gateway.clocks.steady_s())
            raise GatewayError(Code.STREAM_BROKEN, str(failed)) from None
        finally:
            stream.close()
            exchange.usage = exchange.answer.usage or exchange.usage
            exchange.verdicts += [] if guards is None else guards.verdicts
        breaker.succeed()
        if exchange.is_worth_keeping:
            created_s = int(self._gateway.clocks.wall_s())
            self._keep(exchange, completion_of(relay.answer, asked.model, created_s))
        self._end()
        await _send_body(send, relay.end(), more=False)

    async def _relay(self, stream: UpstreamStream, relay: Relay, send: Send) -> None:
        while parts := await stream.next_parts():
            piece = relay.take(parts)
            if not self._begun and (piece or relay.stopped is None):
                await self._begin_stream(send)
            if piece:
                await _send_body(send, piece, more=True)
            if relay.stopped is not None:
                raise relay.stopped
            if relay.done:
                return
        if not relay.is_whole:
            raise GatewayError(Code.STREAM_BROKEN, "the upstream ended without an end")

    # --- What the client gets -----------------------------------------------------------

    async def _send_whole(self, raw: bytes, send: Send) -> None:
        self._end()
        await _start(send, 200, (_JSON, *self._own_headers()))
        await _send_body(send, raw, more=False)

    async def _begin_stream(self, send: Send) -> None:
        self._begun = True
        await _start(send, 200, (*_EVENT_STREAM, *self._own_headers()))

    async def _fail(self, error: GatewayError, send: Send) -> None:
        logger.info("request %s: %s", self._request_id, error)
        self._end(error)
        body = render_error(error, self._language, self._request_id)
        if self._begun:
            await _send_body(send, sse.write(body), more=False)
            return
        headers = [_JSON, *self._own_headers()]
        if error.retry_after is not None:
            headers.append((b"retry-after", error.retry_after.encode()))
        await _start(send, error.status, headers)
        await _send_body(send, body, more=False)

    def _own_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        request_id = (b"x-request-id", self._request_id.encode())
        exchange = self._exchange
        if exchange is None or exchange.looked is None:
            return (request_id,)
        return (request_id, *_cache_headers(exchange.looked))

    def _end(self, error: GatewayError | None = None) -> None:
        """The request is over: its event is written. Only the first end counts."""
        if self._is_over:
            return
        self._is_over, exchange = True, self._exchange
        if exchange is None:
            self._gateway.recorder.turn_away("" if error is None else error.code.value)
            return
        exchange.ended_s = self._gateway.clocks.steady_s()
        exchange.error = error
        self._gateway.recorder.record(exchange)


class _ClientGone(Exception):
    """The client is not there any more."""


async def _read(receive: Receive, bytes_max: int) -> bytes:
    """Return a request's body.

    Raises:
        GatewayError: it is over `bytes_max`.
    """
    pieces, size = [], 0
    while True:
        message: MutableMapping[str, Any] = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > bytes_max:
            raise GatewayError(Code.REQUEST_TOO_LARGE, f"over {bytes_max} bytes")
        pieces.append(piece)
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _cache_headers(looked: Looked) -> Iterator[tuple[bytes, bytes]]:
    yield b"x-kizashi-cache", looked.outcome.encode()
    if looked.outcome == "hit":
        # Seconds since the answer was made: RFC 9111, 5.1.
        yield b"age", b"%d" % looked.age_s
        if looked.similarity is not None:
            yield b"x-kizashi-cache-similarity", b"%.4f" % looked.similarity


async def _start(send: Send, status: int, headers: Any) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
