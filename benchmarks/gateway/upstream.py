"""The upstream of the benchmark: answers at once, always the same, streams too.

``python -m benchmarks.gateway.upstream PORT``
"""

from __future__ import annotations

import sys

import msgspec
from starlette.types import Receive, Scope, Send

from gateway.fake_provider import Reply, _OpenAI
from gateway.server import run

ANSWER = "The parcel left the depot this morning and will be with you tomorrow before noon. "
REPLY = Reply(text=ANSWER * 5, piece_characters=20, input_tokens=60, output_tokens=90)
BODY = {"model": "gpt-4o", "stream_options": {"include_usage": True}}
WHOLE = msgspec.json.encode(_OpenAI(BODY, REPLY).whole())
PIECES = list(_OpenAI(BODY, REPLY).pieces())
_JSON = [(b"content-type", b"application/json"), (b"content-length", str(len(WHOLE)).encode())]
_STREAM = [(b"content-type", b"text/event-stream")]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The application."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if b'"stream":true' not in body.replace(b" ", b""):
        await send({"type": "http.response.start", "status": 200, "headers": _JSON})
        await send({"type": "http.response.body", "body": WHOLE})
        return
    await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
    for piece in PIECES:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    run(answer, "127.0.0.1", int(sys.argv[1]), lifespan=False)
