"""What can ail Kizashi itself, what is seen of it, and what a page says of it. Pure."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

#: Of what is named in a page, the first so many.
_NAMED = 8


class Organ(StrEnum):
    """What can be ill; one incident each."""

    #: Events and feedback are read and stored.
    READING = "reading"
    #: Events and feedback arrive.
    ARRIVALS = "arrivals"
    #: What was counted is what is stored.
    BOOKS = "books"


class Trouble(StrEnum):
    """What ails it, the worst first."""

    BLIND = "blind"
    BEHIND = "behind"
    SILENT = "silent"
    UNBALANCED = "unbalanced"


ORGAN_OF = {
    Trouble.BLIND: Organ.READING,
    Trouble.BEHIND: Organ.READING,
    Trouble.SILENT: Organ.ARRIVALS,
    Trouble.UNBALANCED: Organ.BOOKS,
}


class Standing(NamedTuple):
    """How one partition of a topic of events or feedback stands, by Kafka's own word."""

    topic: str
    partition: int
    #: The next offset to be done, and the next to be written.
    position: int
    end: int
    #: A record that is not done was written before `behind_ms` ago.
    late: bool
    #: None was written in the last `silent_ms`.
    quiet: bool
    #: It holds feedback, which is read in lanes of its own.
    feedback: bool = False

    @property
    def lag(self) -> int:
        return self.end - self.position


class History(Struct, frozen=True):
    """What a stream used to bring, in spans of `silent_ms`, by the books."""

    last_ms: int
    #: In the same span one, two, … weeks ago, as far back as the books reach.
    weekly: tuple[int, ...]
    #: In the poorest span of the day before the silence; None when there is no such day.
    least: int | None

    def is_steady(self, events: int) -> bool:
        """By the week, for nights and weekends are quiet; by the day while no week is known."""
        if self.weekly:
            return min(self.weekly) >= events
        return self.least is not None and self.least >= events


class Reconciled(Struct, frozen=True):
    """What the last reconciliation came to."""

    checked_ms: int
    first_ms: int
    last_ms: int
    compared: int
    differing: int
    #: The first minute that differs.
    first_differing_ms: int | None = None


class Complaint(Struct, frozen=True):
    """One trouble, as a page is to tell it."""

    trouble: Trouble
    #: The same whoever finds it, as far as that can be: part of the incident's id.
    mark: str
    since_ms: int
    found_ms: int
    summary: str
    suggestion: str

    @property
    def organ(self) -> Organ:
        return ORGAN_OF[self.trouble]

    @property
    def name(self) -> str:
        """Of the incident."""
        return f"inc-pipeline-{self.organ}-{_digest(self.mark)}"


def _digest(mark: str) -> str:
    return hashlib.sha256(mark.encode()).hexdigest()[:12]


def describe_blind(
    now_ms: int,
    since_ms: int,
    stuck: Sequence[Standing],
    standings: Sequence[Standing],
    behind_ms: int,
) -> Complaint:
    """Records wait, and nobody reads them."""
    return Complaint(
        Trouble.BLIND,
        # A partition that stands still has the same position for whoever looks.
        "/".join(map(str, stuck[0][:3])),
        since_ms,
        now_ms,
        f"Kizashi is blind: {_lag(stuck)} wait on {_places(stuck, standings)}, the oldest for more"
        f" than {_span(behind_ms)}, and nothing has been read there since {_clock(since_ms)}"
        " at the latest. What changes there, nobody is told.",
        "Run `kizashi doctor`; look into the workers' logs for what they try again; another"
        " `kizashi worker` takes over what hangs.",
    )


def describe_behind(
    now_ms: int,
    since_ms: int,
    late: Sequence[Standing],
    standings: Sequence[Standing],
    behind_ms: int,
) -> Complaint:
    """Records are read, but later and later."""
    return Complaint(
        Trouble.BEHIND,
        f"behind/{since_ms}",
        since_ms,
        now_ms,
        f"Kizashi is behind: {_lag(late)} wait on {_places(late, standings)}, the oldest for more"
        f" than {_span(behind_ms)}; that is so since {_clock(since_ms)}, and they do not get"
        " fewer. Pages come that much late.",
        "Start more workers (up to one for each partition), or see on the board Pipeline health"
        " what ClickHouse is slow at.",
    )


def describe_unanswered(now_ms: int, since_ms: int) -> Complaint:
    """The broker is away."""
    return Complaint(
        Trouble.BLIND,
        f"unanswered/{since_ms}",
        since_ms,
        now_ms,
        f"Kizashi is blind: Kafka has not answered since {_clock(since_ms)}, so nothing is read.",
        "Run `kizashi doctor`; see to the brokers, their certificates and the network.",
    )


def describe_silent(now_ms: int, missing: Mapping[str, History], silent_ms: int) -> Complaint:
    """Nothing arrives where something always did."""
    told = [_tell_silence(topic, history, silent_ms) for topic, history in missing.items()]
    return Complaint(
        Trouble.SILENT,
        "/".join(f"{topic}:{history.last_ms}" for topic, history in missing.items()),
        min(history.last_ms for history in missing.values()),
        now_ms,
        f"What always arrived has stopped: {'; '.join(told)}.",
        "Ask whether the gateway serves at all; if it does, look at what produces to the topic. If"
        " the silence is meant: `kizashi silence add --family pipeline --for 12h --why …`.",
    )


def _tell_silence(topic: str, history: History, silent_ms: int) -> str:
    span = _span(silent_ms)
    usual = (
        f"at this time of the week there were {' and '.join(f'{n:,}' for n in history.weekly)}"
        if history.weekly
        else f"before, there were at least {history.least or 0:,}"
    )
    return f"nothing on {topic} since {_clock(history.last_ms)}; {usual} records in {span}"


def describe_unbalanced(now_ms: int, last: Reconciled) -> Complaint:
    """Two counts of the same are not the same."""
    first_ms = last.first_ms if last.first_differing_ms is None else last.first_differing_ms
    return Complaint(
        Trouble.UNBALANCED,
        f"books/{first_ms}",
        first_ms,
        now_ms,
        f"Kizashi's books do not balance: {last.differing:,} of {last.compared:,} sums of rollups"
        f" are not what the stored requests add up to, from {_clock(first_ms)} on. Boards and"
        " alarms may have counted something twice, or not at all.",
        f"`kizashi reconcile --since {_clock(first_ms)[:10]}` names the minutes and the sums; keep"
        " the workers' logs of that time.",
    )


def _lag(standings: Iterable[Standing]) -> str:
    lag = sum(s.lag for s in standings)
    return f"{lag:,} record{'' if lag == 1 else 's'}"


def _places(some: Sequence[Standing], every: Sequence[Standing]) -> str:
    """Of each topic, how many of its partitions and which; of many, the first."""
    told = []
    for topic in dict.fromkeys(s.topic for s in some):
        numbers = [s.partition for s in some if s.topic == topic]
        named = ", ".join(map(str, numbers[:_NAMED])) + (", …" if numbers[_NAMED:] else "")
        count = sum(s.topic == topic for s in every)
        told.append(f"{len(numbers)} of {count} partitions of {topic} ({named})")
    more = f" and {len(told) - _NAMED} more topics" if told[_NAMED:] else ""
    return ", ".join(told[:_NAMED]) + more


def _span(length_ms: int) -> str:
    return f"{length_ms / 60_000:g} min"


def _clock(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
