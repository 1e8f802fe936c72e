"""Which reference of a model is in force, after all that was fitted and ordered."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Action(StrEnum):
    """What can be ordered of the references of a model."""

    #: Only this version counts, and none is fitted by itself.
    PIN = "pin"
    #: The newest counts again.
    UNPIN = "unpin"
    #: Nothing from before counts: the model changes as planned. Ends a pin.
    RESET = "reset"


class Order(NamedTuple):
    """An order, and when it was given; milliseconds."""

    ordered_ms: int
    action: Action
    #: The version that is pinned; 0 for other orders.
    version_ms: int = 0


class Standing(NamedTuple):
    """What is in force for a model; milliseconds since the epoch, 0 for never."""

    #: When the reference in force was fitted, which is its name; 0 when there is none.
    version_ms: int = 0
    pinned: bool = False
    #: When that came about.
    since_ms: int = 0
    #: The last planned change: answers from before it are not learned from.
    reset_ms: int = 0


def find_standing(versions: Iterable[int], orders: Iterable[Order]) -> Standing:
    """Return how a model stands, for the versions that were fitted and the orders, in any order.

    A reference that was fitted in the same millisecond as an order came before it.
    """
    fitted = sorted(versions)
    events: list[tuple[int, Order | None]] = [(version, None) for version in fitted]
    events += [(order.ordered_ms, order) for order in orders]
    standing = Standing()
    for time_ms, order in sorted(events, key=lambda e: (e[0], e[1] is not None)):
        standing = _apply(standing, time_ms, order, fitted)
    return standing


def _apply(standing: Standing, time_ms: int, order: Order | None, fitted: list[int]) -> Standing:
    pinned, reset_ms, version = standing.pinned, standing.reset_ms, standing.version_ms
    match order.action if order is not None else None:
        case None:
            version = version if pinned else time_ms
        case Action.PIN if order is not None and order.version_ms in fitted:
            pinned, version = True, order.version_ms
        case Action.UNPIN:
            newest = [v for v in fitted if reset_ms < v <= time_ms]
            pinned, version = False, max(newest, default=0)
        case Action.RESET:
            pinned, version, reset_ms = False, 0, time_ms
        case Action.PIN:
            # Of another embedding.
            pass
    since = standing.since_ms if version == standing.version_ms else time_ms
    return Standing(version, pinned, since, reset_ms)
