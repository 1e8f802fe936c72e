"""Which slice of the traffic carries the excess?

After Adtributor (Bhagwan et al., NSDI 2014): a value explains a change when its
share of the excess is large though its share of the traffic is not. Of the
slices that explain an alarm, the one that explains most of what happened
everywhere is named, and of equals the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from schemas.alarm import Rate
from schemas.incident import Cause

#: A slice must carry this share of an alarm's excess to be its cause.
EXPLAINING_SHARE = 0.8
#: Shares of the whole that are closer than this count as equal.
SHARE_STEP = 0.1
#: A slice with a short past leans on the past of all traffic, with this weight in events.
PRIOR_EVENTS = 50
#: Below this share of the excess, the slices' own rates have not changed: the mix has.
OWN_SHARE = 0.4

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


class Investigation(NamedTuple):
    """What is stored about an alarm: the slices of both periods."""

    slices: tuple[Slice, ...]

    @property
    def whole(self) -> Slice:
        empty = Rate(0, 0)
        return next((s for s in self.slices if not s.labels), Slice((), empty, empty, empty, empty))

    def share_inside(self, labels: Labels) -> float:
        """Return the share of the alarm's excess that the slice carries, 0 when it is unknown."""
        total = self._excess_inside(self.whole)
        for each in self.slices:
            if each.labels == labels and total:
                return _unit(self._excess_inside(each) / total)
        return 0.0

    def share_overall(self, labels: Labels) -> float:
        """Return the share of the excess over all traffic that the slice carries."""
        total = self._excess_overall(self.whole)
        for each in self.slices:
            if each.labels == labels and total:
                return _unit(self._excess_overall(each) / total)
        return 0.0

    def is_mix_shift(self) -> bool:
        """True when traffic moved between slices whose own rates stayed as they were."""
        total = self._excess_inside(self.whole)
        if not total:
            return False
        return any(self._own_excess(d) / total < OWN_SHARE for d in MIX_DIMENSIONS)

    def find_cause(self, monitor: dict[str, str]) -> Cause:
        """Name the slice that explains the alarm; the monitor itself when none does."""
        explaining = [
            s
            for s in self.slices
            if _dimensions(s.labels) in CANDIDATES
            and self.share_inside(s.labels) >= EXPLAINING_SHARE
        ]
        if not explaining:
            whole = self.whole
            return Cause(dict(monitor), 1.0, whole.before_inside, whole.after_inside)
        best = min(explaining, key=self._rank)
        return Cause(dict(best.labels), self.share_inside(best.labels), best.before, best.after)

    def _rank(self, each: Slice) -> tuple[int, int, int]:
        share = self.share_overall(each.labels)
        return (
            -round(share / SHARE_STEP),
            each.after.total,
            CANDIDATES.index(_dimensions(each.labels)),
        )

    def _own_excess(self, dimension: str) -> float:
        return sum(
            self._excess_inside(s) for s in self.slices if _dimensions(s.labels) == (dimension,)
        )

    def _excess_inside(self, each: Slice) -> float:
        return _excess(each.before_inside, each.after_inside, self.whole.before_inside)

    def _excess_overall(self, each: Slice) -> float:
        return _excess(each.before, each.after, self.whole.before)


def _excess(before: Rate, after: Rate, parent: Rate) -> float:
    """How many more events counted since the change than the slice's own past would give."""
    prior = PRIOR_EVENTS * parent.value
    expected = (before.count + prior) / (before.total + PRIOR_EVENTS)
    return after.count - after.total * expected


def _dimensions(labels: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(name for name, _ in labels)


def _unit(share: float) -> float:
    return max(0.0, min(1.0, share))
