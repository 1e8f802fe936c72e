"""Which upstream is asked next: weights, fallbacks by the kind of failure, backoff, breakers.

Pure: chance and time are parameters. `Attempts` is the state of one request, `Breaker` that
of one upstream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct

from gateway.errors import Code, GatewayError
from pipeline.gateway_settings import GatewaySettings, ModelSettings, TargetSettings


class Failure(StrEnum):
    """Why an attempt failed. Those that `fallback_on` knows may be tried elsewhere."""

    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    UNREACHABLE = "unreachable"
    CONTEXT_TOO_LONG = "context_too_long"
    #: It does not take our key, or does not know the model.
    MISCONFIGURED = "misconfigured"
    #: It finds the request itself wrong: so would every other.
    REFUSED = "refused"


#: What says that an upstream is unwell, rather than the request.
_UNWELL = {Failure.TIMEOUT, Failure.SERVER_ERROR, Failure.UNREACHABLE, Failure.MISCONFIGURED}
#: What may pass by itself, so that the same upstream is worth another try.
_PASSING = {Failure.TIMEOUT, Failure.RATE_LIMITED, Failure.SERVER_ERROR, Failure.UNREACHABLE}
_CODES = {
    Failure.TIMEOUT: Code.UPSTREAM_TIMEOUT,
    Failure.RATE_LIMITED: Code.UPSTREAM_RATE_LIMITED,
    Failure.SERVER_ERROR: Code.UPSTREAM_UNAVAILABLE,
    Failure.UNREACHABLE: Code.UPSTREAM_UNAVAILABLE,
    Failure.CONTEXT_TOO_LONG: Code.CONTEXT_LENGTH_EXCEEDED,
    Failure.MISCONFIGURED: Code.UPSTREAM_UNAVAILABLE,
    Failure.REFUSED: Code.UPSTREAM_REFUSED,
}


class UpstreamFailure(Exception):
    """An attempt came to nothing. `detail` is for the log."""

    def __init__(self, failure: Failure, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure
        self.detail = detail
        self.retry_after_s = retry_after_s

    def as_error(self) -> GatewayError:
        return GatewayError(_CODES[self.failure], self.detail, retry_after_s=self.retry_after_s)


class Candidate(Struct, frozen=True):
    """One way to answer: a configured model, and one of its targets."""

    model: str
    target: TargetSettings
    context_tokens: int | None = None


def order_by_weight(
    targets: Sequence[TargetSettings], draws: Sequence[float]
) -> list[TargetSettings]:
    """Return the targets in a random order in which the first is drawn by weight, and so on.

    `draws` are uniform on (0, 1], one for each (Efraimidis and Spirakis, 2006).
    """
    keyed = zip(targets, draws, strict=True)
    return [t for t, _ in sorted(keyed, key=lambda pair: -(pair[1] ** (1.0 / pair[0].weight)))]


def candidates(
    models: Mapping[str, ModelSettings], name: str, draw: Sequence[float]
) -> list[Candidate]:
    """Return every way to answer a request for the model `name`, in the order to try.

    `draw` has as many numbers as the model and its fallbacks have targets.
    """
    chain: list[Candidate] = []
    for each in (name, *models[name].fallbacks):
        model = models[each]
        draws = draw[len(chain) : len(chain) + len(model.targets)]
        ordered = order_by_weight(model.targets, draws) if len(draws) > 1 else model.targets
        chain += [Candidate(each, target, model.context_tokens) for target in ordered]
    return chain


class Breaker:
    """Leaves an upstream alone after so many failures in a row, then lets one try through."""

    def __init__(self, failures: int, pause_s: float) -> None:
        self._most = failures
        self._pause_s = pause_s
        self._failures = 0
        self._open_until_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it has opened and nothing has succeeded since."""
        return self._failures >= self._most

    def wait_s(self, now_s: float) -> float:
        """Return in how many seconds the upstream may be asked; 0: now."""
        return max(0.0, self._open_until_s - now_s) if self.is_open else 0.0

    def begin(self, now_s: float) -> None:
        """An attempt begins: while half open it is the only one for the next pause."""
        if self.is_open:
            self._open_until_s = now_s + self._pause_s

    def succeed(self) -> None:
        self._failures = 0

    def fail(self, failure: Failure, now_s: float) -> None:
        """Count a failure, if it speaks against the upstream and not the request."""
        if failure in _UNWELL:
            self._failures += 1
            if self.is_open:
                self._open_until_s = now_s + self._pause_s
        elif failure is not Failure.RATE_LIMITED:
            self.succeed()


class Try(Struct, frozen=True):
    """Ask this one, after a wait."""

    candidate: Candidate
    wait_s: float


class Attempts:
    """One request's way through its candidates. `next` says what to do; tell it what came of it.

    Every candidate is tried once before any is tried again; one that is tried again is given
    time (backoff, or what it asked for with Retry-After). Nothing is tried beyond the
    deadline, more than `settings.attempts` times, or where a breaker is open.
    """

    def __init__(
        self,
        chain: Sequence[Candidate],
        model: ModelSettings,
        settings: GatewaySettings,
        started_s: float,
    ) -> None:
        self._chain = chain
        self._fallback_on = model.fallback_on
        self._settings = settings
        self.deadline_s = started_s + model.deadline_s
        self._made = [0] * len(chain)
        self._ready_s = [started_s] * len(chain)
        self._excluded = [False] * len(chain)
        self._current = 0
        self._last: UpstreamFailure | None = None

    @property
    def made(self) -> int:
        return sum(self._made)

    def next(self, now_s: float, breakers: Mapping[str, Breaker], jitter: float) -> Try:
        """Return what to try next. `jitter` in [0, 1) spreads the waits.

        Raises:
            GatewayError: there is nothing left to try.
        """
        if self.made >= self._settings.attempts:
            raise self._give_up("no attempts left")
        best: tuple[int, float, int] | None = None
        for row, candidate in enumerate(self._chain):
            if self._excluded[row]:
                continue
            paused_s = breakers[candidate.target.upstream].wait_s(now_s)
            wait_s = max(paused_s, self._ready_s[row] - now_s, 0.0) * (1 + jitter / 4)
            # A breaker's pause is no backoff: what is paused is passed over, not waited for.
            if paused_s > 0 or now_s + wait_s >= self.deadline_s:
                continue
            if best is None or (self._made[row], wait_s, row) < best:
                best = (self._made[row], wait_s, row)
        if best is None:
            raise self._give_up("nothing left to try", self._soonest_s(now_s, breakers))
        _, wait_s, self._current = best
        self._made[self._current] += 1
        return Try(self._chain[self._current], wait_s)

    def fail(self, failed: UpstreamFailure, now_s: float) -> None:
        """The attempt that `next` gave came to nothing.

        Raises:
            GatewayError: it would fail everywhere, or may not be tried elsewhere.
        """
        self._last = failed
        if failed.failure.value not in self._fallback_on:
            raise failed.as_error()
        row = self._current
        if failed.failure is Failure.CONTEXT_TOO_LONG:
            self._exclude_model(self._chain[row].model)
        elif failed.failure not in _PASSING:
            self._excluded[row] = True
        backoff_s = self._settings.backoff_s * 2.0 ** (self._made[row] - 1)
        wait_s = min(backoff_s, self._settings.backoff_s_max)
        self._ready_s[row] = now_s + max(wait_s, failed.retry_after_s or 0.0)

    def _exclude_model(self, model: str) -> None:
        for row, candidate in enumerate(self._chain):
            self._excluded[row] |= candidate.model == model

    def _soonest_s(self, now_s: float, breakers: Mapping[str, Breaker]) -> float | None:
        waits = [breakers[c.target.upstream].wait_s(now_s) for c in self._chain]
        return min((w for w in waits if w > 0), default=None)

    def _give_up(self, why: str, retry_after_s: float | None = None) -> GatewayError:
        if self._last is None:
            return GatewayError(Code.UPSTREAM_UNAVAILABLE, why, retry_after_s=retry_after_s)
        error = self._last.as_error()
        error.detail = f"{why}; last: {error.detail}"
        return error
