"""`kizashi worker`, with the places marked at which it may be told to die.

``CHAOS_POINTS`` names a directory. Whoever finds a file there with the name of the place it has
come to takes the file away and ends at once, by SIGKILL. ``CHAOS_CONTROL=undeclared`` makes of it a
worker that declares no ranges: a control, and nothing else of it changes. The code under test knows
of none of this.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.app import TopicPublisher
from pipeline.cli import main
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.detections import DetectionStore
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.requests import RequestStore
from pipeline.transport import OffsetLog

POINTS_VARIABLE = "CHAOS_POINTS"
CONTROL_VARIABLE = "CHAOS_CONTROL"
UNDECLARED = "undeclared"
#: An insert of a chunk takes some tens of milliseconds.
_MID_INSERT_S = 0.01


def claim(point: str) -> bool:
    """Whether it is this worker's turn to die here."""
    try:
        (Path(os.environ[POINTS_VARIABLE]) / point).unlink()
    except FileNotFoundError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def reach(point: str) -> None:
    if claim(point):
        die()


def around(
    owner: type[Any],
    name: str,
    *,
    before: Callable[..., None] | None = None,
    after: Callable[..., None] | None = None,
) -> None:
    """Call `before` and `after` with the arguments of every call of a method."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def called(*given: Any, **named: Any) -> Any:
        if before is not None:
            before(*given, **named)
        result = method(*given, **named)
        if after is not None:
            after(*given, **named)
        return result

    @functools.wraps(method)
    async def awaited(*given: Any, **named: Any) -> Any:
        if before is not None:
            before(*given, **named)
        result = await method(*given, **named)
        if after is not None:
            after(*given, **named)
        return result

    setattr(owner, name, awaited if inspect.iscoroutinefunction(method) else called)


def on_write(point: str) -> Callable[..., None]:
    """A commit that declares a range, not one that says all is done."""

    def reached(
        _log: Any, _topic: str, _partition: int, _offset: int, metadata: str, _: int
    ) -> None:
        if metadata:
            reach(point)

    return reached


def on_insert(_store: Any, table: str, *_: Any, **__: Any) -> None:
    if table == "requests" and claim("mid-insert"):
        threading.Timer(_MID_INSERT_S, die).start()
    if table == "rollup_1m":
        reach("between-tables")


def on_alarms(_publisher: Any, alarms: Any) -> None:
    if alarms:
        reach("after-alarms")


def at(point: str) -> Callable[..., None]:
    return lambda *_, **__: reach(point)


def mark_points() -> None:
    """Put the points into the classes of this process."""
    around(OffsetLog, "write", before=on_write("before-declared"), after=on_write("after-declared"))
    around(Store, "insert", before=on_insert)
    around(RequestStore, "store_rest", after=at("after-insert"))
    around(TopicPublisher, "publish_signals", after=at("after-signals"))
    around(TopicPublisher, "publish_deadletters", after=at("before-next-commit"))
    around(TopicPublisher, "publish_alarms", after=on_alarms)
    around(DetectionStore, "save_snapshot", after=at("after-snapshot"))
    around(IncidentStore, "save", before=at("before-incident-saved"))


def declare_nothing() -> None:
    """Commit where a range begins, as ever, but not where it ends."""
    write = OffsetLog.write

    async def written(
        log: OffsetLog, topic: str, partition: int, offset: int, _: str, generation: int
    ) -> None:
        await write(log, topic, partition, offset, "", generation)

    OffsetLog.write = written  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get(CONTROL_VARIABLE) == UNDECLARED:
        declare_nothing()
    mark_points()
    sys.argv = ["kizashi", "worker"]
    main()
