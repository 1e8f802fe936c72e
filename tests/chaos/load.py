"""A producer in a process of its own: events at a steady rate, and one report at the end.

``python -m tests.chaos.load '{"bootstrap_servers": …}' '{"count": …}'``: the Kafka settings and
the load as JSON. An event is due at its time whether or not the broker is there, so an outage is
followed by all that it held up. The last line of standard output is the producer's report.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

from pipeline.config import KafkaSettings
from pipeline.producing import produce
from tests.chaos.events import Load

#: Events that are due together: sleeping for each would be most of the work.
_STEP_S = 0.02


def paced(load: Load) -> Iterator[bytes]:
    """Yield the lines when they are due."""
    begin_s, step = time.monotonic(), max(1, round(load.rate * _STEP_S))
    for number, line in load.lines(load.head, load.count - load.tail):
        if number % step == 0:
            wait_s = begin_s + (number - load.head) / load.rate - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
        yield line


def main(arguments: list[str]) -> int:
    settings, load = KafkaSettings(**json.loads(arguments[0])), Load(**json.loads(arguments[1]))
    report = produce(settings, paced(load))
    print(json.dumps({**asdict(report), "errors": dict(report.errors)}), flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
