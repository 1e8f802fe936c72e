"""What is produced, the same in every run, and what must become of each record.

Their contents are fixed, so that what the real code makes of a chunk can be worked out once
for all schedules; only *when* they come, in which chunks and what befalls them is drawn.
"""

from __future__ import annotations

import functools
import json
import random
from typing import NamedTuple

import numpy as np
from msgspec import structs

from pipeline.config import IngestSettings
from schemas.alarm import Alarm, Transition, encode_alarm
from schemas.command import Command, Verb, encode_command
from schemas.signal import Family, Signal, Source, encode_packet
from tests.support.alarms import make_alarm
from tests.support.packets import make_counts, make_packet

START_MS = 1_750_000_000_000
EVENTS_EACH = 14
#: ClickHouse will never take an event with this in its id.
POISON = "poison"
#: So many ids are remembered; a gateway's repeats come within `REPEATED_WITHIN`.
WINDOW = 6
REPEATED_WITHIN = 3

STORED, DEADLETTERED, DUPLICATE = "stored", "dead-lettered", "duplicate"


class Planned(NamedTuple):
    """One record, and what must become of it."""

    value: bytes | None
    event_id: str
    fate: str


@functools.cache
def plan_events(epoch: str, partition: int) -> tuple[Planned, ...]:
    """Plain events among a gateway's repeats, junk, tombstones and rows that nobody can store."""
    rng = random.Random(f"{epoch}/{partition}")
    recent: list[str] = []
    planned = []
    for offset in range(EVENTS_EACH):
        draw = rng.random()
        if draw < 0.15 and recent:
            again = rng.choice(recent[-REPEATED_WITHIN:])
            planned.append(Planned(_event(again, partition), again, DUPLICATE))
        elif draw < 0.25:
            junk = rng.choice([None, b"no JSON", b'{"event.id": 1}'])
            planned.append(Planned(junk, "", DEADLETTERED))
        else:
            bad = draw < 0.35
            event_id = f"{epoch}-{partition}-{offset}" + (POISON if bad else "")
            recent.append(event_id)
            fate = DEADLETTERED if bad else STORED
            planned.append(Planned(_event(event_id, partition), event_id, fate))
    return tuple(planned)


def _event(event_id: str, partition: int) -> bytes:
    at = random.Random(event_id)
    return json.dumps(
        {
            "event.id": event_id,
            "event.time": START_MS / 1000 + at.randint(0, 150),
            "gen_ai.request.model": f"model-{at.randint(0, 1)}",
            "gen_ai.response.finish_reasons": [at.choice(["stop", "length"])],
            "gateway.route": f"route-{partition}",
        }
    ).encode()


GROUPINGS = IngestSettings().groupings[:1]

SIGNALS_EACH = 7


@functools.cache
def plan_signals(partition: int) -> tuple[bytes, ...]:
    """A route that refuses for a while; every third packet comes twice, as a replay sends it."""
    rng = np.random.default_rng(partition)
    packets = []
    for i in range(SIGNALS_EACH):
        refusals = int(rng.binomial(400, 0.5 if 2 <= i < 4 else 0.01))
        counts = make_counts(("support",), 400, START_MS + i * 60_000, refusals=refusals)
        source = Source("events", "e", partition, i, i)
        packets.append(encode_packet(make_packet(source, 0, ("route",), [counts])))
    again = [packets[max(0, i - 1)] for i in range(0, SIGNALS_EACH, 3)]
    for number, packet in enumerate(again):
        packets.insert(4 * number + 1, packet)
    return tuple(packets)


#: How many incidents there are, and which of them end by themselves.
INCIDENTS = 3


@functools.cache
def plan_alarms() -> tuple[bytes, ...]:
    """Raises and ends of three incidents' alarms, one of which has two, and a command."""
    raised = [_alarm(i, Transition.RAISED) for i in range(INCIDENTS)]
    cleared = [_alarm(i, Transition.CLEARED) for i in range(INCIDENTS)]
    failing, served = (
        structs.replace(
            _alarm(0, transition), alarm_id="a0-errors", family=Family.ERROR, signal=Signal.ERROR
        )
        for transition in (Transition.RAISED, Transition.CLEARED)
    )
    acknowledge = Command(
        command_id="c1",
        verb=Verb.ACKNOWLEDGE,
        incident_id=f"inc-{raised[1].alarm_id}",
        time_ms=START_MS,
        by="aiko",
    )
    news = [raised[0], raised[1], failing, acknowledge, cleared[0], raised[2], cleared[1]]
    news += [served, cleared[2]]
    return tuple(encode_command(n) if isinstance(n, Command) else encode_alarm(n) for n in news)


def _alarm(number: int, transition: Transition) -> Alarm:
    # Hours apart, so that none is taken for a part of another.
    change_ms = START_MS - (number + 1) * 7_200_000
    return make_alarm(
        number,
        {"route": f"route-{number}"},
        alarm_id=f"a{number}",
        transition=transition,
        time_ms=change_ms + (0 if transition is Transition.RAISED else 1_000),
        change_time_ms=change_ms,
    )
