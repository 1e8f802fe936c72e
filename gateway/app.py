"""The gateway's HTTP side, a FastAPI application: addresses, and what is answered without a model.

Requests to models are raw ASGI behind their routes (`gateway.serving`): a body is decoded
once, by msgspec, and a stream's bytes are handed on as they came.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.errors import Code, GatewayError, render_error
from gateway.ids import new_request_id
from gateway.metrics import CONTENT_TYPE
from gateway.serving import Gateway, Serving

logger = logging.getLogger(__name__)

JSON = "application/json"
OpenGateway = Callable[[], AbstractAsyncContextManager[Gateway]]


def build_app(open_gateway: OpenGateway) -> FastAPI:
    """Return the application; the gateway is open while it runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_gateway() as gateway:
            app.state.gateway = gateway
            yield

    # Its own documentation would tell strangers what is here.
    app = FastAPI(title="Kizashi gateway", lifespan=lifespan, openapi_url=None)
    app.router.routes += [
        Route("/v1/chat/completions", Endpoint(app, "chat"), methods=["POST"]),
        Route("/v1/embeddings", Endpoint(app, "embeddings"), methods=["POST"]),
    ]
    app.post("/v1/feedback")(_feedback)
    app.add_exception_handler(HTTPException, _not_here)
    app.get("/v1/models")(_models)
    app.get("/v1/models/{name:path}")(_model)
    app.get("/metrics")(_metrics)
    app.get("/health")(_health)
    return app


class Endpoint:
    """An ASGI application that serves one operation."""

    def __init__(self, app: FastAPI, operation: str) -> None:
        self._app = app
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        gateway: Gateway = self._app.state.gateway
        await Serving(gateway, self._operation, headers)(scope, receive, send)


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


async def _models(request: Request) -> Response:
    """The models that a key may ask for."""
    gateway = _gateway(request)
    try:
        key = gateway.keyring.identify(request.headers.get("authorization"))
    except GatewayError as error:
        return _error(request, error)
    listed = [m for m in gateway.models if not key.models or m in key.models]
    shown = {"object": "list", "data": [_describe(gateway, m) for m in listed]}
    return Response(msgspec.json.encode(shown), media_type=JSON)


async def _model(request: Request, name: str) -> Response:
    """One model."""
    gateway = _gateway(request)
    try:
        key = gateway.keyring.identify(request.headers.get("authorization"))
    except GatewayError as error:
        return _error(request, error)
    if name not in gateway.models or (key.models and name not in key.models):
        return _error(request, GatewayError(Code.MODEL_NOT_FOUND, param="model"))
    return Response(msgspec.json.encode(_describe(gateway, name)), media_type=JSON)


def _describe(gateway: Gateway, name: str) -> dict[str, object]:
    owner = gateway.models[name].owned_by
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


async def _feedback(request: Request) -> Response:
    """What somebody thinks of an answer."""
    gateway = _gateway(request)
    request_id = new_request_id(gateway.clocks.wall_s())
    gateway.served += 1
    try:
        status, told = await _take_feedback(gateway, request, request_id)
    except ClientDisconnect:
        failed = GatewayError(Code.CLIENT_DISCONNECTED)
    except GatewayError as error:
        failed = error
    except Exception as error:
        logger.exception("request %s", request_id)
        failed = GatewayError(Code.INTERNAL, type(error).__name__)
    else:
        headers = {"X-Request-Id": request_id}
        return Response(msgspec.json.encode(told), status, headers, media_type=JSON)
    finally:
        gateway.served -= 1
    logger.info("request %s: %s", request_id, failed)
    gateway.recorder.turn_away(failed.code.value)
    return _error(request, failed, request_id)


async def _take_feedback(
    gateway: Gateway, request: Request, request_id: str
) -> tuple[int, dict[str, Any]]:
    key = gateway.admit(request.headers.get("authorization"))
    if gateway.feedback is None:
        raise GatewayError(Code.NOT_FOUND)
    await gateway.limiter.admit_feedback(key, request_id)
    return await gateway.feedback.take(request, key, round(gateway.clocks.wall_s() * 1000))


async def _metrics(request: Request) -> Response:
    gateway = _gateway(request)
    try:
        gateway.keyring.check_metrics(request.headers.get("authorization"))
    except GatewayError as error:
        return _error(request, error)
    return Response(gateway.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def _health(request: Request) -> Response:
    """Whether the gateway serves; upstreams that are left alone are counted, not named."""
    gateway = _gateway(request)
    paused = sum(breaker.is_open for breaker in gateway.breakers.values())
    shown = {"status": "ok", "under_way": gateway.served, "upstreams_paused": paused}
    return Response(msgspec.json.encode(shown), media_type=JSON)


async def _not_here(request: Request, error: Exception) -> Response:
    wrong_method = isinstance(error, HTTPException) and error.status_code == 405
    return _error(
        request, GatewayError(Code.METHOD_NOT_ALLOWED if wrong_method else Code.NOT_FOUND)
    )


def _error(request: Request, error: GatewayError, request_id: str | None = None) -> Response:
    gateway = _gateway(request)
    request_id = request_id or new_request_id(gateway.clocks.wall_s())
    body = render_error(error, gateway.language(request.headers), request_id)
    headers = {"X-Request-Id": request_id}
    if error.retry_after is not None:
        headers["Retry-After"] = error.retry_after
    return Response(body, status_code=error.status, media_type=JSON, headers=headers)
