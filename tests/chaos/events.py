"""The events of a run: a function of their number, so that what must come out is known."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

#: One event in so many is nothing that anybody could store …
BAD_EVERY = 499
_BAD_AT = 7
#: … and one in so many is sent again, as gateways do that time out.
REPEAT_EVERY = 97
_REPEAT_AT = 5
MODELS = (("openai", "gpt-4o"), ("anthropic", "claude-3-5-sonnet-20241022"))
ROUTES = 5


@dataclass(frozen=True)
class Load:
    """What is sent: `count` numbers at `rate` a second, in `speed` times their own time.

    For the length of every episode one route refuses; the last is over well before the end.
    """

    count: int
    rate: float
    #: Of the first event, seconds since the epoch.
    start_s: float
    speed: float
    episodes: int
    #: The first so many are sent before the others …
    head: int
    #: … and the last so many after them.
    tail: int

    def time_s(self, number: int) -> float:
        return self.start_s + number * self.speed / self.rate

    def is_refusing(self, number: int) -> bool:
        """Whether the number lies in an episode: the third of five parts of each stretch."""
        stretch = self.count / self.episodes
        return 0.4 <= (number % stretch) / stretch < 0.6

    def line(self, number: int) -> bytes:
        """Return the record's bytes."""
        if is_bad(number):
            return _bad_line(number)
        provider, model = MODELS[number % 2]
        route = number % ROUTES
        refuses = 0.5 if route == 0 and self.is_refusing(number) else 0.01
        # Formatted by hand: a machine that has to produce this may have little to spare.
        return (
            f'{{"event.id":"e{number}","event.time":{self.time_s(number):.3f},'
            f'"gen_ai.provider.name":"{provider}","gen_ai.request.model":"{model}",'
            f'"gen_ai.usage.input_tokens":{100 + number % 900},'
            f'"gen_ai.usage.output_tokens":{100 + number % 211},'
            f'"gen_ai.client.operation.duration":{2 + chance(number, 4):.3f},'
            f'"gen_ai.response.finish_reasons":["stop"],'
            f'"gateway.route":"route-{route}","gateway.tenant":"tenant-{number % 7}",'
            f'"gateway.region":"{("us", "eu", "jp")[number % 3]}",'
            f'"gateway.refusal":{"true" if chance(number, 7) < refuses else "false"},'
            f'"gateway.cache":"miss"}}'
        ).encode()

    def lines(self, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield the numbers from `first` below `end` and their bytes, and some a second time."""
        for number in range(first, end):
            yield number, self.line(number)
            if number % REPEAT_EVERY == _REPEAT_AT and not is_bad(number):
                yield number, self.line(number)


def chance(number: int, salt: int) -> float:
    """A number in [0, 1) that looks random, and is the same in every run."""
    return zlib.crc32(b"%d/%d" % (number, salt)) / 2**32


def is_bad(number: int) -> bool:
    return number % BAD_EVERY == _BAD_AT


#: The same in ClickHouse.
IS_BAD_SQL = f"number % {BAD_EVERY} = {_BAD_AT}"


def _bad_line(number: int) -> bytes:
    kinds = (
        f"not json e{number}",
        json.dumps({"event.id": f"e{number}", "event.time": 1}),
        json.dumps({"event.id": f"e{number}", "event.time": "x", "gen_ai.request.model": "m"}),
        json.dumps([f"e{number}"]),
    )
    return kinds[number // BAD_EVERY % len(kinds)].encode()
