"""What every rival's aggregation is made of: prices, rows, per-minute sums. Standard library."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]
#: USD per million tokens: input, output.
PRICES = {
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
    "claude-sonnet-4-20250514": (3.0, 15.0),
    "claude-3-5-haiku-latest": (0.8, 4.0),
    "gemini-2.0-flash": (0.1, 0.4),
    "gemini-2.5-pro": (1.25, 10.0),
    "mistral-small-latest": (0.1, 0.3),
    "mistral-large-2411": (2.0, 6.0),
}
GROUPINGS = {
    "request_model": "gen_ai.request.model",
    "route": "gateway.route",
    "tenant": "gateway.tenant",
}
MINUTE_S = 60
#: A minute is closed when events are so much later: partitions do not keep step to the second.
GRACE_S = 30
#: requests, errors, input tokens, output tokens, cost in USD, latency sum and maximum in seconds.
Sums = list[float]


def cost_usd(event: Json) -> float:
    """Return the list price of an event's tokens; 0 for a model that is not in the list."""
    per_input, per_output = PRICES.get(event["gen_ai.request.model"], (0.0, 0.0))
    tokens_in: int = event.get("gen_ai.usage.input_tokens", 0)
    tokens_out: int = event.get("gen_ai.usage.output_tokens", 0)
    return (tokens_in * per_input + tokens_out * per_output) / 1e6


def empty_sums() -> Sums:
    return [0, 0, 0, 0, 0.0, 0.0, 0.0]


def add_event(sums: Sums, event: Json) -> Sums:
    """Count an event into the sums of a minute, in place; returns them."""
    latency_s = event.get("gen_ai.client.operation.duration", 0.0)
    sums[0] += 1
    sums[1] += "error.type" in event
    sums[2] += event.get("gen_ai.usage.input_tokens", 0)
    sums[3] += event.get("gen_ai.usage.output_tokens", 0)
    sums[4] += cost_usd(event)
    sums[5] += latency_s
    sums[6] = max(sums[6], latency_s)
    return sums


def merge_sums(a: Sums, b: Sums) -> Sums:
    """Return the sums of two parts of a minute."""
    return [*(x + y for x, y in zip(a[:6], b[:6], strict=True)), max(a[6], b[6])]


class Minutes:
    """Sums by grouping, value and minute, in a dictionary, until the minute is over."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, str, str], Sums] = {}
        self._latest_s = 0.0

    def add(self, event: Json) -> None:
        time_s = event["event.time"]
        minute_s = int(time_s // MINUTE_S) * MINUTE_S
        self._latest_s = max(self._latest_s, time_s)
        for grouping, key in GROUPINGS.items():
            at = (minute_s, grouping, event[key])
            sums = self._open.get(at)
            if sums is None:
                sums = self._open[at] = empty_sums()
            add_event(sums, event)

    def take_closed(self) -> list[tuple[Any, ...]]:
        """Remove the minutes that are over; returns their rows."""
        over = [at for at in self._open if at[0] + MINUTE_S + GRACE_S < self._latest_s]
        return [minute_row(at[1], at[2], at[0], self._open.pop(at)) for at in over]

    def take_all(self) -> list[tuple[Any, ...]]:
        rows = [minute_row(at[1], at[2], at[0], sums) for at, sums in self._open.items()]
        self._open.clear()
        return rows


def minute_row(grouping: str, value: str, minute_s: float, sums: Sums) -> tuple[Any, ...]:
    """One row of the table `minutes`."""
    return (grouping, value, datetime.fromtimestamp(minute_s, UTC), *sums)


def request_row(event: Json) -> tuple[Any, ...]:
    """One row of the table `requests`."""
    return (
        event["event.id"],
        datetime.fromtimestamp(event["event.time"], UTC),
        event["gen_ai.provider.name"],
        event["gen_ai.request.model"],
        event["gen_ai.response.model"],
        event["gateway.route"],
        event["gateway.tenant"],
        event["gen_ai.prompt.name"],
        event["gen_ai.prompt.version"],
        event["gateway.region"],
        event.get("error.type", ""),
        event.get("gen_ai.usage.input_tokens", 0),
        event.get("gen_ai.usage.output_tokens", 0),
        cost_usd(event),
        event.get("gen_ai.client.operation.duration", 0.0),
    )
