"""`kizashi demo --gateway`: OpenAI's protocol in, incidents out, and all that is ours in between.

Clients ask the gateway over HTTP; behind it stands a fake provider that misbehaves on a
script; the events go through the spool to the pipeline, which is not told. Some clients say what
they think of an answer, a while later. The gateway's clock goes by its traffic, an hour for all
of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from openai import APIError, AsyncOpenAI

from gateway.app import build_app
from gateway.build import open_gateway
from gateway.fake_provider import FakeProvider, Reply
from gateway.server import serve
from gateway.serving import Clocks, Gateway
from gateway.shipping import FeedbackShipping, Shipping
from gateway.stages import NO_STAGES
from pipeline.config import Config
from pipeline.demo.cast import DISLIKED, DISLIKED_REFUSALS, DISLIKED_TRUNCATIONS
from pipeline.demo.company import Record
from pipeline.demo.run import Counts, Pipeline
from pipeline.demo.script import PlayedIncident
from pipeline.demo.start import Played
from pipeline.demo.texts import Draws, choose_topic, write_answer, write_prompt, write_refusal
from pipeline.demo.trace import HOUR_MS
from pipeline.gateway_settings import EventSettings, FeedbackSettings, GatewaySettings
from schemas.alarm import Alarm
from schemas.incident import Incident
from schemas.signal import Family

REQUESTS_PER_S = 50.0
#: Fewer, and some monitors would still be learning when things go wrong.
REQUESTS_MIN = 1_600
#: Requests under way at once; a machine that is slower than the load gets less of it.
CLIENTS = 16
_START_TIMEOUT_S = 30.0
_DRAIN_TIMEOUT_S = 10.0
_POLL_S = 0.02
_DRAWS = 64
#: Route → share of the requests, the model it asks for, the version of its prompt.
ROUTES = {
    "support": (0.4, "gpt-4o", "v6"),
    "search": (0.3, "gpt-4o-mini", "v2"),
    "summarise": (0.3, "claude-haiku-4-5", "v1"),
}
TENANTS = ("acme", "globex", "initech")
DECLINING_VERSION = "v7"
_REFUSAL_RATE, _DECLINE_RATE = 0.02, 0.4
_FAILURE_RATE, _OUTAGE_RATE = 0.01, 0.4
_TRUNCATION_RATE, _CUT_RATE = 0.02, 0.4
#: A thumb for so many answers, when as many requests have begun since.
_RATED_SHARE, _RATED_AFTER = 0.2, 300


class Fate(StrEnum):
    """What becomes of a request."""

    ANSWERED = "answered"
    FAILED = "failed"
    DECLINED = "declined"
    CUT = "cut"


#: How often the thumb then points down.
_DISLIKED = {
    Fate.ANSWERED: DISLIKED,
    Fate.DECLINED: DISLIKED_REFUSALS,
    Fate.CUT: DISLIKED_TRUNCATIONS,
}


class Misbehaviour(Struct, frozen=True):
    """Something that goes wrong between two fractions of the hour."""

    name: str
    family: Family
    starts: float
    ends: float
    where: dict[str, str]

    def play_from(self, start_ms: int) -> PlayedIncident:
        """Return it with its times, for an hour that starts at `start_ms`."""
        started, ended = (start_ms + round(at * HOUR_MS) for at in (self.starts, self.ends))
        return PlayedIncident(self.name, self.family, started, ended, self.where)

    def lasts_at(self, fraction: float) -> bool:
        return self.starts <= fraction < self.ends


DECLINES = Misbehaviour(
    "a prompt template that declines",
    Family.REFUSAL,
    0.50,
    0.65,
    {"route": "support", "prompt_version": DECLINING_VERSION, "request_model": "gpt-4o"},
)
CUT_OFF = Misbehaviour(
    "answers that are cut off",
    Family.TRUNCATION,
    0.67,
    0.80,
    {"route": "search", "request_model": "gpt-4o-mini", "prompt_version": "v2"},
)
FAILS = Misbehaviour(
    "a provider that fails",
    Family.ERROR,
    0.82,
    0.95,
    {"provider": "anthropic", "route": "summarise", "request_model": "claude-haiku-4-5"},
)
SCRIPT = (DECLINES, CUT_OFF, FAILS)


class HourClock:
    """The hour by its traffic: it is as far as the load is, on a machine of any speed."""

    def __init__(self, start_ms: int, seconds: float) -> None:
        self._start_s = start_ms / 1000
        self._seconds = seconds
        self._speed = HOUR_MS / 1000 / seconds
        self.requests = max(REQUESTS_MIN, round(REQUESTS_PER_S * seconds))
        #: How many have begun.
        self.begun = 0
        #: No more will.
        self.over = False

    @property
    def fraction(self) -> float:
        return min(1.0, self.begun / self.requests)

    def wall_s(self) -> float:
        return self._start_s + self.fraction * HOUR_MS / 1000

    def steady_s(self) -> float:
        """What a request takes, in the hour's own seconds."""
        return time.monotonic() * self._speed

    def played_s(self) -> float:
        """How many of the demo's seconds have passed."""
        return self.fraction * self._seconds

    def sleep(self, seconds: float) -> None:
        """Return when so many of the demo's seconds have passed."""
        until_s = min(self.played_s() + seconds, self._seconds)
        while self.played_s() < until_s and not self.over:
            time.sleep(_POLL_S)


class Provider:
    """The script of the fake provider: chance is the request's own, by its ``seed``."""

    def __init__(self, clock: HourClock) -> None:
        self._clock = clock

    def reply(self, body: dict[str, Any]) -> Reply:
        """Return what becomes of a request."""
        route, version, number = read_order(body)
        fraction = self._clock.fraction
        draws, chance = chances(number)
        topic = choose_topic(route, "en", draws)
        write_prompt(topic, draws)
        fate, reason = decide(route, version, fraction, chance), "stop"
        if fate is Fate.FAILED:
            return Reply(status=500 if _fails(route, fraction) else 503)
        write = write_refusal if fate is Fate.DECLINED else write_answer
        text = write(topic, draws)
        if fate is Fate.CUT:
            text, reason = text[: len(text) // 2], "length"
        if body["model"].startswith("claude"):
            reason = {"stop": "end_turn", "length": "max_tokens"}[reason]
        return Reply(
            text=text,
            finish_reason=reason,
            first_s=0.004 + 0.004 * chance[3],
            piece_characters=200,
            input_tokens=len(str(body["messages"])) // 4,
            output_tokens=max(1, len(text) // 4),
        )


def decide(route: str, version: str, fraction: float, chance: Sequence[float]) -> Fate:
    """Return what the script has for a request."""
    cuts = route == "search" and CUT_OFF.lasts_at(fraction)
    if chance[0] < (_OUTAGE_RATE if _fails(route, fraction) else _FAILURE_RATE):
        return Fate.FAILED
    if chance[1] < (_DECLINE_RATE if version == DECLINING_VERSION else _REFUSAL_RATE):
        return Fate.DECLINED
    return Fate.CUT if chance[2] < (_CUT_RATE if cuts else _TRUNCATION_RATE) else Fate.ANSWERED


def _fails(route: str, fraction: float) -> bool:
    return route == "summarise" and FAILS.lasts_at(fraction)


def chances(seed: int) -> tuple[Draws, list[float]]:
    """Return the draws of texts, and four numbers in [0, 1), of one request."""
    rng = np.random.default_rng(seed)
    return Draws(rng.integers(0, 2**31, _DRAWS).tolist()), rng.random(4).tolist()


#: The first message: which route, which version of its prompt, and the request's number.
_ORDER = "You answer for {} by {}. Conversation {}."


def read_order(body: dict[str, Any]) -> tuple[str, str, int]:
    """Return route, version and number from the system message, in either API's form."""
    words = str(body.get("system") or body["messages"][0]["content"]).rstrip(".").split()
    return words[3], words[5].rstrip("."), int(words[7])


def compose(number: int, fraction: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the body and the headers of a request."""
    rng = np.random.default_rng((number, 1))
    route = str(rng.choice(list(ROUTES), p=[share for share, _, _ in ROUTES.values()]))
    _, model, version = ROUTES[route]
    if route == "support" and DECLINES.lasts_at(fraction):
        version = DECLINING_VERSION
    draws, _ = chances(number)
    prompt = write_prompt(choose_topic(route, "en", draws), draws)
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": _ORDER.format(route, version, number)},
            {"role": "user", "content": prompt},
        ],
        "stream": bool(number % 2),
        "user": f"user-{number % 97}",
    }
    headers = {
        "X-Kizashi-Route": route,
        "X-Kizashi-Prompt-Name": route,
        "X-Kizashi-Prompt-Version": version,
    }
    return body, headers


def rate(number: int, request_id: str, fate: Fate) -> dict[str, Any] | None:
    """Return what somebody thinks of an answer, but for when it is said; None: nobody says it."""
    says, dislikes = np.random.default_rng((number, 2)).random(2)
    # At the edge of an outage the provider may have answered after all.
    if says >= _RATED_SHARE or fate is Fate.FAILED:
        return None
    return {
        "feedback.id": f"thumb-{number}",
        "event.id": request_id,
        "gen_ai.evaluation.name": "thumbs",
        "gen_ai.evaluation.score.value": int(dislikes >= _DISLIKED[fate]),
    }


class Mailbox:
    """A `Courier`: the demo's pipeline stands in for Kafka."""

    def __init__(self) -> None:
        self._arrived: deque[bytes] = deque()

    def deliver(self, raws: Sequence[bytes]) -> tuple[list[bytes], int]:
        """Take records from a spool."""
        self._arrived.extend(raws)
        return [], 0

    def close(self) -> None:
        self._arrived.clear()

    def drain(self) -> list[bytes]:
        """Return what has arrived since."""
        return [self._arrived.popleft() for _ in range(len(self._arrived))]


class Circle:
    """Clients, gateway and provider in a thread of their own; see `drain`."""

    def __init__(self, start_ms: int, seconds: float, spool: Path) -> None:
        self.clock = HourClock(start_ms, seconds)
        self._pace_per_s = self.clock.requests / seconds
        self._events, self._thumbs = Mailbox(), Mailbox()
        kept = EventSettings(spool=spool)
        self._shipping = Shipping(kept, self._events)
        self._rating = FeedbackShipping(FeedbackSettings(), kept, self._thumbs)
        #: Thumbs that are not given yet: until how many requests have begun, and what is said.
        self._unsaid: deque[tuple[int, dict[str, Any]]] = deque()
        self._ready, self._stop = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    def drain(self) -> tuple[list[bytes], list[bytes]]:
        """Return the events and the thumbs that have arrived since."""
        if self._error is not None:
            raise self._error
        # Thumbs first: so the requests that they are about are among the events, or were before.
        thumbs = self._thumbs.drain()
        return self._events.drain(), thumbs

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT_S):
            raise TimeoutError("the gateway did not start")

    def end_load(self) -> None:
        """Wait until the last answers, and their events, are there."""
        self._thread.join(_DRAIN_TIMEOUT_S)
        deadline_s = time.monotonic() + _DRAIN_TIMEOUT_S
        while self._waiting and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)

    @property
    def _waiting(self) -> bool:
        return self._shipping.waiting > 0 or self._rating.waiting > 0

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_DRAIN_TIMEOUT_S)
        self._shipping.stop(1.0)
        self._rating.stop(1.0)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._error = error
        finally:
            # Whoever waits comes back, and asks what has arrived.
            self.clock.over = True
            self._ready.set()

    async def _main(self) -> None:
        provider = FakeProvider(Provider(self.clock).reply)
        async with serve(provider, lifespan=False) as port:

            @contextlib.asynccontextmanager
            async def opened() -> AsyncIterator[Gateway]:
                config = Config(gateway=_settings(port))
                clocks = Clocks(steady_s=self.clock.steady_s, wall_s=self.clock.wall_s)
                async with open_gateway(
                    config,
                    sink=self._shipping,
                    feedback=self._rating,
                    stages=NO_STAGES,
                    clocks=clocks,
                ) as gateway:
                    yield gateway

            async with serve(build_app(opened)) as own:
                url = f"http://127.0.0.1:{own}/v1"
                async with AsyncOpenAI(api_key="anyone", base_url=url, max_retries=0) as client:
                    self._ready.set()
                    await self._load(client)

    async def _load(self, client: AsyncOpenAI) -> None:
        """Ask at the load's pace, `CLIENTS` at once at most."""
        began_s, clock = time.monotonic(), self.clock

        async def ask_on() -> None:
            while clock.begun < clock.requests and not self._stop.is_set():
                clock.begun += 1
                number = clock.begun
                await asyncio.sleep(began_s + number / self._pace_per_s - time.monotonic())
                await self._ask(client, number)
                await self._say(client)

        await asyncio.gather(*(ask_on() for _ in range(CLIENTS)))
        await self._say(client, last=True)

    async def _ask(self, client: AsyncOpenAI, number: int) -> None:
        fraction = self.clock.fraction
        body, headers = compose(number, fraction)
        create = client.chat.completions.with_raw_response.create
        with contextlib.suppress(APIError):  # as the script has it; its event tells
            response = await create(**body, extra_headers=headers)
            answer = response.parse()
            if body["stream"]:
                async for _ in answer:
                    continue
            route, version, _ = read_order(body)
            fate = decide(route, version, fraction, chances(number)[1])
            said = rate(number, response.headers["X-Request-Id"], fate)
            if said is not None:
                self._unsaid.append((number + _RATED_AFTER, said))

    async def _say(self, client: AsyncOpenAI, *, last: bool = False) -> None:
        """Give the thumbs that are due; at the `last`, all."""
        while self._unsaid and (last or self._unsaid[0][0] <= self.clock.begun):
            _, said = self._unsaid.popleft()
            body = said | {"feedback.time": self.clock.wall_s()}
            await client.post("/feedback", cast_to=object, body=body)


def _settings(port: int) -> GatewaySettings:
    base = f"http://127.0.0.1:{port}/v1"
    upstreams = [
        {"name": "openai", "base_url": base, "provider": "openai", "region": "eu-west"},
        {"name": "anthropic", "kind": "anthropic", "base_url": base, "region": "us-east"},
    ]
    models = [
        {
            "name": name,
            "targets": [
                {"upstream": "anthropic" if name.startswith("claude") else "openai", "model": name}
            ],
            "fallback_on": [],
        }
        for _, name, _ in ROUTES.values()
    ]
    return GatewaySettings.model_validate({"upstreams": upstreams, "models": models})


class Live:
    """A pipeline that is fed what the gateway emits, whatever else it is given."""

    def __init__(self, pipeline: Pipeline, circle: Circle) -> None:
        self._pipeline = pipeline
        self._circle = circle

    @property
    def counts(self) -> Counts:
        return self._pipeline.counts

    def feed(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        events, thumbs = self._circle.drain()
        news = self._pipeline.feed([*records, *events], now_ms)
        return [*news, *(self._pipeline.feed_feedback(thumbs, now_ms) if thumbs else ())]

    def feed_feedback(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        return self._pipeline.feed_feedback(records, now_ms)

    def finish(self, now_ms: int) -> list[Alarm | Incident]:
        self._circle.end_load()
        return [*self.feed([], now_ms), *self._pipeline.finish(now_ms)]

    def query(self, sql: str) -> list[dict[str, object]]:
        return self._pipeline.query(sql)


class LiveHour(Struct, frozen=True):
    """The hour in which the gateway runs. Its traffic comes by itself."""

    start_ms: int
    script: tuple[Misbehaviour, ...] = SCRIPT

    @property
    def end_ms(self) -> int:
        return self.start_ms + HOUR_MS

    def records(self) -> Iterator[Record]:
        return iter(())

    def ratings(self) -> Iterator[Record]:
        """None that are planned: clients give theirs."""
        return iter(())


@contextlib.contextmanager
def set_up(config: Config, start_ms: int, pipeline: Pipeline, seconds: float) -> Iterator[Played]:
    """Start the circle; give its hour, the pipeline that it feeds, and its clock."""
    with tempfile.TemporaryDirectory(prefix="kizashi-spool-") as spool:
        circle = Circle(start_ms, seconds, Path(spool))
        circle.start()
        clock = circle.clock
        try:
            yield Played(LiveHour(start_ms), Live(pipeline, circle), clock.played_s, clock.sleep)
        finally:
            circle.stop()
