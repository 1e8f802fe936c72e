"""The watchdog: is there work, is everything reachable, and does nothing move all the same?

Faust's consumer has been seen to stall for good, and only to log it. A worker
that stalls is worth less than none: it keeps its partitions from the others.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Watchdog:
    """Pure; time is a parameter. `limit_s` is how long nothing may move while there is work."""

    limit_s: float
    _position: int = -1
    _moved_s: float | None = None

    def observe(self, now_s: float, *, position: int, lag: int, retrying: bool) -> bool:
        """Take in one look and return whether the worker has stalled.

        `position` is anything that grows when work is done. While something is
        being retried the worker is waiting, not stalled.
        """
        if position != self._position or lag <= 0 or retrying or self._moved_s is None:
            self._position, self._moved_s = position, now_s
            return False
        return now_s - self._moved_s >= self.limit_s
