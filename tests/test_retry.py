"""Trying again at the start: with patience, and not for ever."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.retry import insist


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        self.now_s += delay_s


def test_what_comes_back_within_ones_patience_is_had(caplog: pytest.LogCaptureFixture) -> None:
    time, left = Time(), [SinkUnavailable("away")] * 4

    def call() -> str:
        if left:
            raise left.pop()
        return "there"

    assert insist(call, 60.0, lambda: time.now_s, time.sleep) == "there"
    assert time.slept_s == sorted(time.slept_s)
    assert len(time.slept_s) == 4
    assert caplog.text.count("away") == 1


def test_patience_ends_and_the_last_word_is_the_errors() -> None:
    time = Time()

    def call() -> None:
        raise SinkUnavailable(f"away at {time.now_s:g}")

    with pytest.raises(SinkUnavailable, match="away at"):
        insist(call, 60.0, lambda: time.now_s, time.sleep)
    assert 50.0 < sum(time.slept_s) <= 60.0
    assert max(time.slept_s) <= 5.0


def test_what_no_patience_mends_is_said_at_once() -> None:
    time = Time()

    def call() -> None:
        raise ConfigError("topics are missing")

    with pytest.raises(ConfigError):
        insist(call, 60.0, lambda: time.now_s, time.sleep)
    assert time.slept_s == []
