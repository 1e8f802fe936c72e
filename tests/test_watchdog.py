"""The watchdog barks when there is work, nothing is being retried, and nothing moves."""

from __future__ import annotations

from pipeline.watchdog import Watchdog


def test_a_stall_is_noticed_after_the_limit() -> None:
    dog = Watchdog(limit_s=100)
    assert not dog.observe(0, position=5, lag=10, retrying=False)
    assert not dog.observe(99, position=5, lag=10, retrying=False)
    assert dog.observe(100, position=5, lag=10, retrying=False)


def test_progress_lag_of_nought_and_retries_are_no_stall() -> None:
    dog = Watchdog(limit_s=100)
    looks = [
        {"position": 5, "lag": 10, "retrying": False},
        {"position": 6, "lag": 10, "retrying": False},
        {"position": 6, "lag": 0, "retrying": False},
        {"position": 6, "lag": 10, "retrying": True},
    ]
    for i in range(40):
        assert not dog.observe(i * 90.0, **looks[i % 4])


def test_the_clock_starts_anew_after_a_retry() -> None:
    dog = Watchdog(limit_s=100)
    dog.observe(0, position=5, lag=1, retrying=True)
    dog.observe(500, position=5, lag=1, retrying=True)
    assert not dog.observe(599, position=5, lag=1, retrying=False)
    assert dog.observe(600, position=5, lag=1, retrying=False)
