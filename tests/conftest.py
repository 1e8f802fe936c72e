"""Fixtures that every test may ask for; each lives in a module of `tests.support`."""

from tests.support.clickhouse import *  # noqa: F403
from tests.support.kafka import *  # noqa: F403
from tests.support.pagerduty import *  # noqa: F403
from tests.support.workers import start_stack

__all__ = ["start_stack"]
