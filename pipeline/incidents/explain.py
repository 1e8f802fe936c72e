"""Which slice of the traffic carries the excess?

After Adtributor (Bhagwan et al., NSDI 2014): a value explains a change when its
share of the excess is large though its share of the traffic is not. Of the
slices that explain an alarm, the one that explains most of what happened
everywhere is named, and of equals the smallest. If even that is affected no more
than other traffic, the cause is no slice but whatever all traffic shares.

The excess is what counted since the change beyond what the past would give; in
a fall it is negative, and shares of it are shares of what went missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from schemas.alarm import Alarm, Direction, Rate
from schemas.incident import Cause

#: A slice must carry this share of an alarm's excess to be its cause.
EXPLAINING_SHARE = 0.8
#: In its cause a rate has changed by at least this factor more than outside: otherwise the
#: slice carries the excess only because it carries the traffic.
LIFT = 2.0
#: Shares of the whole that are closer than this count as equal.
SHARE_STEP = 0.1
#: A slice with a short past leans on the past of all traffic, with this weight in events.
PRIOR_EVENTS = 50
#: With less than this of the past that its traffic now would give it, a slice is as good as new.
THIN_SHARE = 0.1
#: Below this share of the excess, the slices' own rates have not changed: the mix has.
OWN_SHARE = 0.4
#: What the detector saw must show to this much against the last hour, to be told from it.
SEEN_SHARE = 0.5

Labels = tuple[tuple[str, str], ...]

#: Dimensions by which a slice may be named; of slices with the same events the first is taken.
CANDIDATES: tuple[tuple[str, ...], ...] = (
    ("prompt_name", "prompt_version"),
    ("response_model",),
    ("provider",),
    ("request_model",),
    ("provider", "region"),
    ("region",),
    ("prompt_name",),
    ("route",),
    ("tenant",),
    ("guardrail",),
)
#: Dimensions that a request has before it is answered: no failure can move it between them.
MIX_DIMENSIONS = ("provider", "request_model", "route", "tenant", "prompt_name", "region")


class Slice(NamedTuple):
    """What one slice counted before the change point and since.

    The first two rates are over all traffic, the `inside` ones over the alarmed
    monitor's own. The slice without labels is the whole.
    """

    labels: Labels
    before: Rate
    after: Rate
    before_inside: Rate
    after_inside: Rate


class Moved(NamedTuple):
    """A feature of the monitor's answers that is not what it was."""

    phrase: str
    is_share: bool
    before: float
    after: float


class Investigation(NamedTuple):
    """What is stored about an alarm: the slices of both periods, and features that moved."""

    slices: tuple[Slice, ...]
    moved: tuple[Moved, ...] = ()

    @property
    def whole(self) -> Slice:
        empty = Rate(0, 0)
        return next((s for s in self.slices if not s.labels), Slice((), empty, empty, empty, empty))

    def explains(self, labels: Labels, share: float) -> bool:
        """True when the slice carries this share of the alarm's excess, and not by its size."""
        found = next((s for s in self.slices if labels and s.labels == labels), None)
        return found is not None and self._explains(found, share)

    def is_mix_shift(self, alarm: Alarm) -> bool:
        """True when traffic moved between slices whose own rates stayed as they were."""
        total = self._excess_inside(self.whole)
        return self._shows(alarm) and any(
            self._own_excess(d) / total < OWN_SHARE for d in MIX_DIMENSIONS
        )

    def find_cause(self, alarm: Alarm) -> Cause:
        """Name the slice that explains the alarm, at worst the alarm's own monitor.

        Without labels it is all traffic.
        """
        whole = self.whole
        best = self._find_slice(alarm)
        if self._shows(alarm) and not self._stands_out(best):
            return Cause({}, 1.0, whole.before, whole.after)
        share = self._share_inside(best) if best in self.slices else 1.0
        return Cause(dict(best.labels), share, best.before, best.after)

    def _find_slice(self, alarm: Alarm) -> Slice:
        inside = (self.whole.before_inside, self.whole.after_inside)
        monitor = Slice(tuple(alarm.monitor.items()), *inside, *inside)
        if (self._excess_inside(self.whole) > 0) != (alarm.direction is Direction.RISE):
            return monitor
        everything = (self.whole.before, self.whole.after)
        named = [
            s
            for s in self.slices
            # The one value that everything has is no part of the traffic.
            if _dimensions(s.labels) in CANDIDATES and (s.before, s.after) != everything
        ]
        explaining = [s for s in named if self._explains(s, EXPLAINING_SHARE)]
        # Last, so that of equals a candidate is taken.
        return min((*explaining, monitor), key=self._rank)

    def _shows(self, alarm: Alarm) -> bool:
        """True when the excess that the detector saw is there against the last hour as well.

        An hour that was unusual already cannot say what has changed since before it.
        """
        seen = alarm.current.count - alarm.current.total * alarm.baseline.value
        return seen != 0 and self._excess_inside(self.whole) / seen >= SEEN_SHARE

    def _explains(self, each: Slice, share: float) -> bool:
        inside = self._share_inside(each)
        traffic = _ratio(each.after_inside.total, self.whole.after_inside.total)
        return inside >= share and _is_lifted(inside, traffic)

    def _stands_out(self, each: Slice) -> bool:
        if self._excess_inside(self.whole) * self._excess_overall(self.whole) <= 0:
            return True
        if (each.before, each.after) == (self.whole.before, self.whole.after):
            # The one value that everything has is no part of the traffic.
            return False
        traffic = _ratio(each.after.total, self.whole.after.total)
        return _is_lifted(self._share_overall(each), traffic)

    def _share_inside(self, each: Slice) -> float:
        return _unit(_ratio(self._excess_inside(each), self._excess_inside(self.whole)))

    def _share_overall(self, each: Slice) -> float:
        return _unit(_ratio(self._excess_overall(each), self._excess_overall(self.whole)))

    def _rank(self, each: Slice) -> tuple[int, int, int]:
        dimensions = _dimensions(each.labels)
        known = dimensions in CANDIDATES
        return (
            -round(self._share_overall(each) / SHARE_STEP),
            each.after.total,
            CANDIDATES.index(dimensions) if known else len(CANDIDATES),
        )

    def _own_excess(self, dimension: str) -> float:
        """Sum of the excesses of the dimension's slices, each against its own past."""
        slices = [s for s in self.slices if _dimensions(s.labels) == (dimension,)]
        whole = self.whole
        # Requests without a value of the dimension count as something new: some
        # gateways fill it in only for a request that came through, and then a
        # failure would look as if traffic had moved to where failures are.
        rest = Rate(
            max(0, whole.after_inside.count - sum(s.after_inside.count for s in slices)),
            max(0, whole.after_inside.total - sum(s.after_inside.total for s in slices)),
        )
        unseen = _excess(Rate(0, 0), rest, whole.before_inside, whole.after_inside)
        return unseen + sum(self._excess_inside(s) for s in slices)

    def _excess_inside(self, each: Slice) -> float:
        whole = self.whole
        return _excess(
            each.before_inside, each.after_inside, whole.before_inside, whole.after_inside
        )

    def _excess_overall(self, each: Slice) -> float:
        return _excess(each.before, each.after, self.whole.before, self.whole.after)


def _excess(before: Rate, after: Rate, whole_before: Rate, whole_after: Rate) -> float:
    """How many more events counted since the change than the slice's own past would give."""
    usual = whole_before.total * _ratio(after.total, whole_after.total)
    if before.total < THIN_SHARE * usual:
        # As good as new: when the change point is estimated a little late, the few events
        # before it are the first of the change itself.
        before = Rate(0, 0)
    prior = PRIOR_EVENTS * whole_before.value
    expected = (before.count + prior) / (before.total + PRIOR_EVENTS)
    return after.count - after.total * expected


def _is_lifted(share: float, traffic: float) -> bool:
    # Excess per request inside against outside: share / traffic and (1 - share) / (1 - traffic).
    return share * (1 - traffic) >= LIFT * traffic * (1 - share) - 1e-9


def _dimensions(labels: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(name for name, _ in labels)


def _unit(share: float) -> float:
    return max(0.0, min(1.0, share))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
