"""Kizashi's own health: is it blind, is it behind, has its input stopped, do its books balance?

Pure; time is a parameter. What is looked at is what Kafka and ClickHouse say, never what a
worker says of itself. Each `Organ` is found ill, well, or neither: what is neither leaves
everything as it is, so a worker that has just taken over neither opens nor ends anything by
what it has not seen yet.

Blind: records wait that were written more than `behind_ms` ago, and none of their partitions
moves. Behind: some do, but for `behind_for_ms` what waits has not got fewer. Neither can come of
a restart or a rebalance, which take seconds, nor of a stream that is quiet: where nothing is
written nothing waits. Feedback has lanes of its own, so that it moves says nothing of events. But
it waits for them: it is looked at while none of them is late, and may stand still for longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from pipeline.incidents.complaints import (
    Complaint,
    History,
    Organ,
    Reconciled,
    Standing,
    Trouble,
    describe_behind,
    describe_blind,
    describe_silent,
    describe_unanswered,
    describe_unbalanced,
)

#: A chunk takes seconds, and a rebalance a session time-out.
STILL_MS = 90_000
#: What is behind gets fewer only if by this share at least.
FEWER = 0.9
_ORDER = tuple(Trouble)


class VitalsConfig(Struct, frozen=True):
    """How long what may last."""

    #: A record that was written longer ago than this should have been read.
    behind_ms: int = 300_000
    #: For so long they must not have got fewer.
    behind_for_ms: int = 300_000
    #: A partition of late events that has not moved for so long stands still.
    still_ms: int = STILL_MS
    #: The same of feedback, a chunk of which may wait for its requests first.
    feedback_still_ms: int = 210_000
    #: A stream that was steady may be silent for so long.
    silent_ms: int = 600_000
    #: Steady is a stream that had so many events in every span of `silent_ms`. By chance (Poisson)
    #: it has none once in e^20 spans.
    silent_events: int = 20
    #: What is well again has to stay so for this long.
    hold_ms: int = 120_000


class Look(NamedTuple):
    """Everything that was seen at once."""

    #: None: the broker did not answer.
    standings: tuple[Standing, ...] | None
    #: Of the topics of `Vitals.find_silent`; None: ClickHouse did not answer.
    histories: Mapping[str, History] | None = None
    #: None: there has been none, or ClickHouse did not answer.
    reconciled: Reconciled | None = None


class _Place:
    """What is remembered of a partition."""

    def __init__(self, now_ms: int, standing: Standing) -> None:
        self.position, self.moved_ms = standing.position, now_ms
        self.end = standing.end
        #: None: not yet seen to.
        self.grown_ms: int | None = None

    def observe(self, now_ms: int, standing: Standing) -> None:
        if standing.position != self.position or not standing.lag:
            self.position, self.moved_ms = standing.position, now_ms
        if standing.end != self.end:
            self.end, self.grown_ms = standing.end, now_ms


class _Backlog(NamedTuple):
    """Late records: since when there are any, and how many waited in all at a time after that."""

    late_ms: int
    counted_ms: int
    lag: int


class Vitals:
    """Takes in looks; knows what stands and what is well. Memory: a few numbers a partition."""

    def __init__(self, config: VitalsConfig) -> None:
        self._config = config
        self._places: dict[tuple[str, int], _Place] = {}
        self._standing: dict[Organ, Complaint] = {}
        #: Since when an organ has been found well, without a break.
        self._well_ms: dict[Organ, int] = {}
        self._unanswered_ms: int | None = None
        #: Of events, and of feedback.
        self._backlogs: dict[bool, _Backlog] = {}
        #: Topics whose silence was told, and has not ended.
        self._missed: frozenset[str] = frozenset()
        self._well: frozenset[Organ] = frozenset()

    @property
    def complaints(self) -> tuple[Complaint, ...]:
        """What stands: from when it was found until it has been well for long enough."""
        return tuple(self._standing[organ] for organ in Organ if organ in self._standing)

    @property
    def well(self) -> frozenset[Organ]:
        """What has been well for long enough that an incident about it is over."""
        return self._well

    @property
    def is_blind(self) -> bool:
        reading = self._standing.get(Organ.READING)
        return reading is not None and reading.trouble is Trouble.BLIND

    def find_silent(self, now_ms: int, standings: Sequence[Standing]) -> tuple[str, ...]:
        """Return the topics on which nothing arrives, whose history is to be looked up."""
        silent = []
        for topic in dict.fromkeys(s.topic for s in standings):
            places = [s for s in standings if s.topic == topic]
            grown = any(self._has_grown(now_ms, s) for s in places)
            if all(s.quiet for s in places) and not grown:
                silent.append(topic)
        return tuple(silent)

    def _has_grown(self, now_ms: int, standing: Standing) -> bool:
        """Also by records of an old time, as a producer that resends has them."""
        place = self._places.get((standing.topic, standing.partition))
        if place is None or standing.end != place.end:
            return True
        return place.grown_ms is not None and now_ms - place.grown_ms < self._config.silent_ms

    def observe(self, now_ms: int, look: Look) -> tuple[Complaint, ...]:
        """Take in a look; returns what stands."""
        silent = self.find_silent(now_ms, look.standings or ())
        if look.standings is not None:
            self._remember(now_ms, look.standings)
        self._judge(Organ.READING, now_ms, *self._find_late(now_ms, look.standings))
        self._judge(Organ.ARRIVALS, now_ms, *self._find_silence(now_ms, look, silent))
        self._judge(Organ.BOOKS, now_ms, *_find_unbalanced(now_ms, look.reconciled))
        hold = self._config.hold_ms
        self._well = frozenset(o for o, since in self._well_ms.items() if now_ms - since >= hold)
        for organ in self._well:
            self._standing.pop(organ, None)
        return self.complaints

    def _remember(self, now_ms: int, standings: Sequence[Standing]) -> None:
        places = {}
        for each in standings:
            place = self._places.get((each.topic, each.partition)) or _Place(now_ms, each)
            place.observe(now_ms, each)
            places[each.topic, each.partition] = place
        self._places = places

    def _judge(self, organ: Organ, now_ms: int, found: Complaint | None, is_well: bool) -> None:
        if not is_well:
            self._well_ms.pop(organ, None)
        else:
            self._well_ms.setdefault(organ, now_ms)
        if found is None:
            return
        stands = self._standing.get(organ)
        if stands is None or _is_worse(found.trouble, stands.trouble):
            self._standing[organ] = found

    def _find_late(
        self, now_ms: int, standings: tuple[Standing, ...] | None
    ) -> tuple[Complaint | None, bool]:
        if standings is None:
            return self._find_unanswered(now_ms), False
        self._unanswered_ms = None
        found, is_well = self._find_late_of(now_ms, standings, feedback=False)
        if is_well:
            return self._find_late_of(now_ms, standings, feedback=True)
        self._backlogs.pop(True, None)
        return found, False

    def _find_late_of(
        self, now_ms: int, every: Sequence[Standing], *, feedback: bool
    ) -> tuple[Complaint | None, bool]:
        standings = [s for s in every if s.feedback is feedback]
        late = [s for s in standings if s.late]
        if not late:
            self._backlogs.pop(feedback, None)
            return None, True
        config = self._config
        slow_ms = self._find_slow(now_ms, feedback, sum(s.lag for s in standings))
        moved_ms = [self._places[s.topic, s.partition].moved_ms for s in late]
        # Where some of the late ones move, the others may wait their turn: the oldest is first.
        still_ms = config.feedback_still_ms if feedback else config.still_ms
        if now_ms - max(moved_ms) >= still_ms:
            since_ms = min(moved_ms)
            return describe_blind(now_ms, since_ms, late, standings, config.behind_ms), False
        if slow_ms is not None:
            return describe_behind(now_ms, slow_ms, late, standings, config.behind_ms), False
        return None, False

    def _find_slow(self, now_ms: int, feedback: bool, lag: int) -> int | None:
        """Return since when there are late records, if what waits has not got fewer for long."""
        backlog = self._backlogs.setdefault(feedback, _Backlog(now_ms, now_ms, lag))
        if now_ms - backlog.counted_ms < self._config.behind_for_ms:
            return None
        if lag >= FEWER * backlog.lag:
            return backlog.late_ms
        self._backlogs[feedback] = backlog._replace(counted_ms=now_ms, lag=lag)
        return None

    def _find_unanswered(self, now_ms: int) -> Complaint | None:
        if self._unanswered_ms is None:
            self._unanswered_ms = now_ms
        if now_ms - self._unanswered_ms < self._config.behind_ms:
            return None
        return describe_unanswered(now_ms, self._unanswered_ms)

    def _find_silence(
        self, now_ms: int, look: Look, silent: tuple[str, ...]
    ) -> tuple[Complaint | None, bool]:
        if look.standings is None:
            return None, False
        if not self._missed.intersection(silent):
            self._missed = frozenset()
        if not silent:
            return None, True
        if look.histories is None:
            return None, False
        config = self._config
        missing = {
            topic: look.histories[topic]
            for topic in silent
            if topic in look.histories and look.histories[topic].is_steady(config.silent_events)
        }
        if not missing:
            # Quiet as ever; one that was missed is not back because its usual time is over.
            return None, not self._missed
        self._missed |= missing.keys()
        return describe_silent(now_ms, missing, config.silent_ms), False


def _find_unbalanced(now_ms: int, last: Reconciled | None) -> tuple[Complaint | None, bool]:
    if last is None:
        return None, False
    if not last.differing:
        return None, True
    return describe_unbalanced(now_ms, last), False


def _is_worse(one: Trouble, other: Trouble) -> bool:
    return _ORDER.index(one) < _ORDER.index(other)
