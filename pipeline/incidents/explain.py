"""Which slice of the traffic carries the excess?

After Adtributor (Bhagwan et al., NSDI 2014): a value explains a change when its
share of the excess is large though its share of the traffic is not, and it is
the more telling the more surprising its share is. Adtributor looks at one
dimension at a time; here pairs of dimensions stand beside them, and of all the
slices that explain an alarm the one is named that fits what happened everywhere
best: by the likelihood ratio of "in this slice the rate is another" against
"nothing has changed" (the expectation-based scan statistic, Neill, 2009). A slice
that is too narrow leaves excess unexplained, one that is too wide thins it out.
The slice without labels takes part: then the cause is what all traffic shares.

The excess is what counted since the change beyond what the past would give; in
a fall it is negative, and shares of it are shares of what went missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from msgspec import Struct

from schemas.alarm import Alarm, Direction, Rate
from schemas.incident import Attribution, Cause

#: A slice must carry this share of an alarm's excess to be its cause.
EXPLAINING_SHARE = 0.8
#: In its cause a rate has changed by at least this factor more than outside: otherwise the
#: slice carries the excess only because it carries the traffic.
LIFT = 2.0
#: Nats that every further dimension of a slice has to be worth: a slice that is no better
#: for it, or only by chance, is named without it.
DIMENSION_NATS = 3.0
#: A slice with a short past leans on the past of all traffic, with this weight in events.
PRIOR_EVENTS = 50
#: With less than this of the past that its traffic now would give it, a slice is as good as new.
THIN_SHARE = 0.1
#: Below this share of the excess, the slices' own rates have not changed: the mix has.
OWN_SHARE = 0.4
#: What the detector saw must show to this much against the last hour, to be told from it.
SEEN_SHARE = 0.5
#: So many slices are kept as an explanation, each of other dimensions.
ATTRIBUTIONS = 6
#: No rate is taken to be closer to 0 or 1 than this.
LEAST_RATE = 1e-6

Labels = tuple[tuple[str, str], ...]
Dimensions = tuple[str, ...]

#: A version of a prompt means nothing without its name, so these two count as one dimension.
PROMPT_VERSION: Dimensions = ("prompt_name", "prompt_version")
#: What is served, and to whom. What serves (a model, its provider) makes no pairs with itself.
_SERVED = ("region", "prompt_name", "route", "tenant", "guardrail")
#: Dimensions by which a slice may be named; of slices with the same events the first is taken,
#: unless it is a version of a prompt that has long been there.
SINGLES: tuple[Dimensions, ...] = (
    PROMPT_VERSION,
    ("response_model",),
    ("provider",),
    ("request_model",),
    ("region",),
    ("prompt_name",),
    ("route",),
    ("tenant",),
    ("guardrail",),
)
PAIRS: tuple[Dimensions, ...] = (
    # A region is the provider's; on a route or for a tenant one rather thinks of the model.
    *((s, "region") for s in ("provider", "response_model", "request_model")),
    *((s, d) for d in _SERVED[1:] for s in ("request_model", "response_model", "provider")),
    *((*PROMPT_VERSION, d) for d in ("response_model", "request_model", "provider", "tenant")),
    *((a, b) for i, a in enumerate(_SERVED) for b in _SERVED[i + 1 :]),
)
CANDIDATES: tuple[Dimensions, ...] = (*SINGLES, *PAIRS)
#: Which model answered for which: counted, but no cause is named so.
LINEAGE: Dimensions = ("request_model", "response_model")
_ORDER = {dimensions: index for index, dimensions in enumerate(CANDIDATES)}
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


class ErrorType(NamedTuple):
    """How often the monitor's requests failed in one way, before the change point and since."""

    name: str
    before: Rate
    after: Rate


class Explanation(NamedTuple):
    """What explains an alarm."""

    cause: Cause
    #: The cause first, and at most one slice of any dimensions.
    attributions: tuple[Attribution, ...]


# With a dict, where what is asked of every slice is kept.
class Investigation(Struct, frozen=True, dict=True):
    """What is stored about an alarm: the slices of both periods, and what else has changed."""

    slices: tuple[Slice, ...]
    moved: tuple[Moved, ...] = ()
    errors: tuple[ErrorType, ...] = ()
    #: All traffic by the measure of the alarm itself, where the slices are counted by another:
    #: what is slow for the monitor, and not for the model.
    as_alarmed: Slice | None = None

    @cached_property
    def whole(self) -> Slice:
        empty = Rate(0, 0)
        return next((s for s in self.slices if not s.labels), Slice((), empty, empty, empty, empty))

    def explains(self, labels: Labels, share: float) -> bool:
        """True when the slice carries this share of the alarm's excess, and not by its size."""
        found = next((s for s in self.slices if labels and s.labels == labels), None)
        return found is not None and self._explains(found, share)

    def accounts_for(self, alarm: Alarm, labels: Mapping[str, str], share: float) -> bool:
        """True when what the alarm saw shows here, and the slice carries this share of its excess.

        The slice without labels does when the monitor has changed as everything has.
        """
        whole = self.whole
        inside, overall = self._excess_inside(whole), self._excess_overall(whole)
        if (inside > 0) != (alarm.direction is Direction.RISE):
            return False
        if labels:
            return self.explains(tuple(labels.items()), share)
        traffic = _ratio(whole.after_inside.total, whole.after.total)
        return inside * overall > 0 and not _is_lifted(_unit(_ratio(inside, overall)), traffic)

    def is_mix_shift(self, alarm: Alarm) -> bool:
        """True when traffic moved between slices whose own rates stayed as they were."""
        total = self._excess_alarmed()
        return self._shows(alarm) and any(
            self._own_excess(d) / total < OWN_SHARE for d in MIX_DIMENSIONS
        )

    @property
    def is_empty(self) -> bool:
        """True when nothing is stored yet of what the alarm saw."""
        return self.whole.after_inside.total == 0

    @property
    def error_type(self) -> str:
        """The way to fail that has gained most; empty where none has, or none was looked at."""
        gained = [(e.after.value - e.before.value, e.name) for e in self.errors]
        most, name = max(gained, default=(0.0, ""))
        return name if most > 0 else ""

    def explain(self, alarm: Alarm) -> Explanation:
        """Name the slice that explains the alarm, at worst the alarm's own monitor.

        Without labels it is all traffic.
        """
        ranked = self._rank(alarm)
        best: dict[Dimensions, Slice] = {}
        for each in ranked:
            best.setdefault(_dimensions(each.labels), each)
        attributions = [self._attribute(each) for each in list(best.values())[:ATTRIBUTIONS]]
        return Explanation(self._name(ranked[0]), tuple(attributions))

    def _name(self, best: Slice) -> Cause:
        if not best.labels:
            return Cause({}, 1.0, best.before, best.after)
        share = self._share_inside(best) if best in self.slices else 1.0
        return Cause(dict(best.labels), share, best.before, best.after)

    def _attribute(self, each: Slice) -> Attribution:
        inside = each not in self.slices
        share = 1.0 if inside or not each.labels else self._share_overall(each)
        return Attribution(dict(each.labels), share, self._surprise(each), each.before, each.after)

    def _rank(self, alarm: Alarm) -> list[Slice]:
        """Return the slices that explain the alarm, the best first, and never none."""
        inside = (self.whole.before_inside, self.whole.after_inside)
        monitor = Slice(tuple(alarm.monitor.items()), *inside, *inside)
        if (self._excess_inside(self.whole) > 0) != (alarm.direction is Direction.RISE):
            return [monitor]
        everything = (self.whole.before, self.whole.after)
        named = [
            s
            for s in self.slices
            # The one value that everything has is no part of the traffic.
            if _dimensions(s.labels) in _ORDER and (s.before, s.after) != everything
        ]
        explaining = [s for s in named if self._explains(s, EXPLAINING_SHARE)]
        if self._shows(alarm) and self._goes_the_same_way:
            explaining.append(self.whole)
        # Last, so that of equals a candidate is taken.
        candidates = (*explaining, monitor)
        # Those with the same requests since the change are as good as the best of them, whatever
        # their pasts, and what is new says more than what has long been there.
        known = {frozenset(s.labels): s for s in self.slices}
        gains: dict[Rate, float] = {}
        for each in candidates:
            gains[each.after] = max(gains.get(each.after, 0.0), self._gain(each, known))
        return sorted(candidates, key=lambda s: self._merit(s, gains[s.after]))

    def _merit(self, each: Slice, gain: float) -> tuple[float, bool, int, bool, int]:
        dimensions = _dimensions(each.labels)
        cost = DIMENSION_NATS * (len(dimensions) - (PROMPT_VERSION[1] in dimensions))
        is_new = self._is_new(each)
        # A version does not change: where an old one has the requests of something else, that has.
        unlikely = PROMPT_VERSION[1] in dimensions and not is_new
        return (
            cost - gain,
            not is_new,
            each.after.total,
            unlikely,
            _ORDER.get(dimensions, len(_ORDER)),
        )

    def _is_new(self, each: Slice) -> bool:
        return _is_thin(each.before, each.after, self.whole.before, self.whole.after)

    def _gain(self, each: Slice, known: Mapping[frozenset[tuple[str, str]], Slice]) -> float:
        """Log-likelihood that is gained by letting the slice have a rate of its own since."""
        if self._excess_overall(each) * self._excess_inside(self.whole) <= 0:
            return 0.0
        whole, past = self.whole, each
        if self._is_new(each):
            # What is new takes the place of something, and is held to the past of that.
            past = known.get(self._find_forebear(each), each)
        expected = _expect(past.before, past.after, whole.before, whole.after)
        return each.after.total * _divergence(each.after.value, expected)

    def _find_forebear(self, each: Slice) -> frozenset[tuple[str, str]]:
        """Return the labels of what a new version is a version of: its prompt, or its name."""
        labels = dict(each.labels)
        if labels.pop("prompt_version", None) is None and "response_model" in labels:
            answered = ("response_model", labels.pop("response_model"))
            asked = [s for s in self.slices if _dimensions(s.labels) == LINEAGE]
            named = [s for s in asked if s.labels[1] == answered]
            if named:
                labels["request_model"] = max(named, key=lambda s: s.after.total).labels[0][1]
        return frozenset(labels.items())

    def _surprise(self, each: Slice) -> float:
        whole = self.whole
        rate = _expect(each.before, each.after, whole.before, whole.after)
        expected = each.after.total * rate
        p = _ratio(expected, whole.after.total * whole.before.value)
        q = _ratio(each.after.count, whole.after.count)
        # Of everything, no share can surprise; nor can rates be shares of more than all.
        p, q = _unit(p), _unit(q)
        return 0.5 * (_plogp(p, p + q) + _plogp(q, p + q))

    @property
    def _goes_the_same_way(self) -> bool:
        return self._excess_inside(self.whole) * self._excess_overall(self.whole) > 0

    def _shows(self, alarm: Alarm) -> bool:
        """True when the excess that the detector saw is there against the last hour as well.

        An hour that was unusual already cannot say what has changed since before it.
        """
        seen = alarm.current.count - alarm.current.total * alarm.baseline.value
        return seen != 0 and self._excess_alarmed() / seen >= SEEN_SHARE

    def _excess_alarmed(self) -> float:
        whole = self.whole if self.as_alarmed is None else self.as_alarmed
        rates = (whole.before_inside, whole.after_inside)
        return _excess(*rates, *rates)

    def _explains(self, each: Slice, share: float) -> bool:
        inside = self._share_inside(each)
        traffic = _ratio(each.after_inside.total, self.whole.after_inside.total)
        return inside >= share and _is_lifted(inside, traffic)

    def _share_inside(self, each: Slice) -> float:
        return _unit(_ratio(self._excess_inside(each), self._excess_inside(self.whole)))

    def _share_overall(self, each: Slice) -> float:
        return _unit(_ratio(self._excess_overall(each), self._excess_overall(self.whole)))

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
    return after.count - after.total * _expect(before, after, whole_before, whole_after)


def _expect(before: Rate, after: Rate, whole_before: Rate, whole_after: Rate) -> float:
    """Return the rate that the slice's own past gives it."""
    if _is_thin(before, after, whole_before, whole_after):
        # As good as new: when the change point is estimated a little late, the few events
        # before it are the first of the change itself.
        before = Rate(0, 0)
    prior = PRIOR_EVENTS * whole_before.value
    return (before.count + prior) / (before.total + PRIOR_EVENTS)


def _is_thin(before: Rate, after: Rate, whole_before: Rate, whole_after: Rate) -> bool:
    usual = whole_before.total * _ratio(after.total, whole_after.total)
    return before.total < THIN_SHARE * usual


def _divergence(rate: float, expected: float) -> float:
    """Kullback-Leibler divergence between two Bernoulli rates, in nats."""
    p = min(max(expected, LEAST_RATE), 1 - LEAST_RATE)
    q = min(max(rate, LEAST_RATE), 1 - LEAST_RATE)
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


def _plogp(part: float, both: float) -> float:
    return part * math.log(2 * part / both) if part > 0 else 0.0


def _is_lifted(share: float, traffic: float) -> bool:
    # Excess per request inside against outside: share / traffic and (1 - share) / (1 - traffic).
    return share * (1 - traffic) >= LIFT * traffic * (1 - share) - 1e-9


def _dimensions(labels: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(name for name, _ in labels)


def _unit(share: float) -> float:
    return max(0.0, min(1.0, share))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
