"""`kizashi doctor`: what is wrong with this installation, and the command that mends it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

from msgspec import Struct

from pipeline.config import Config
from pipeline.errors import KizashiError
from pipeline.prices import configured_table
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.reconciliation import read_last
from pipeline.sinks.times import to_rfc3339
from pipeline.standing import read_standings
from pipeline.topics import examine_topics, topic_epochs
from pipeline.transport import assert_compiled
from schemas.clickhouse import read_migrations

PACKAGES = ("kizashi", "faust-streaming", "aiokafka", "kafka-python", "clickhouse-connect", "chdb")


#: Of the partitions that are late, the first so many are named.
NAMED = 8


class Finding(Struct, frozen=True):
    """One thing that was looked at. `remedy` is a command or a setting; empty when all is well."""

    check: str
    well: bool
    detail: str
    remedy: str = ""


def examine(config: Config) -> Iterator[Finding]:
    """Look at everything that a worker needs; each check stands for itself."""
    yield _versions()
    yield _attempt(
        "Faust extension", _check_compiled, "pip install --only-binary :all: faust-streaming"
    )
    yield _attempt("prices", lambda: _check_prices(config), "kizashi prices check")
    yield from _examine_kafka(config)
    yield from _examine_clickhouse(config)


def _versions() -> Finding:
    installed = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return Finding("versions", True, f"Python {platform.python_version()}, {installed}")


def _attempt(check: str, look: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(check, True, look())
    except KizashiError as error:
        return Finding(check, False, str(error), remedy)


def _check_compiled() -> str:
    assert_compiled()
    return "compiled"


def _check_prices(config: Config) -> str:
    return f"{len(configured_table(config.prices.file).entries)} entries"


def _examine_kafka(config: Config) -> Iterator[Finding]:
    kafka = config.kafka
    reached = _attempt(
        "broker",
        lambda: f"{kafka.bootstrap_servers} answers" if topic_epochs(kafka, []) == {} else "",
        "set KIZASHI_KAFKA__BOOTSTRAP_SERVERS, or start a whole stack: make up",
    )
    yield reached
    if not reached.well:
        return
    missing, differences = examine_topics(kafka)
    ours = (kafka.signals_topic, kafka.alarms_topic, kafka.deadletter_topic)
    names = (*kafka.input_topics, *kafka.feedback_topics, *ours)
    for name in names:
        wrong = [d for d in differences if d.topic == name]
        if name in missing:
            yield Finding(f"topic {name}", False, "missing", "kizashi init")
        elif wrong:
            detail = "; ".join(f"{d.what} is {d.standing}, planned {d.planned}" for d in wrong)
            yield Finding(f"topic {name}", False, detail, wrong[0].remedy)
        else:
            yield Finding(f"topic {name}", True, "as planned")

    if not missing:
        yield _examine_group(config)


def _examine_group(config: Config) -> Finding:
    check, watch = f"group {config.kafka.group_id}", config.watch
    now_ms = round(time.time() * 1000)
    try:
        standings = read_standings(
            config.kafka,
            now_ms - round(watch.behind_s * 1000),
            now_ms - round(watch.silent_s * 1000),
        )
    except KizashiError as error:
        return Finding(check, False, str(error), "see the broker's log")
    waiting, late = [s for s in standings if s.lag], [s for s in standings if s.late]
    detail = (
        f"{sum(s.lag for s in waiting):,} records behind,"
        f" in {len(waiting)} of {len(standings)} partitions"
    )
    if not late:
        return Finding(check, True, detail)
    named = ", ".join(f"{s.topic}/{s.partition}" for s in late[:NAMED])
    more = ", …" if late[NAMED:] else ""
    return Finding(
        check,
        False,
        f"{detail}; some were written more than {watch.behind_s:g} s ago: {named}{more}",
        "see whether a worker runs and what its log says; more share the work: kizashi worker",
    )


def _examine_clickhouse(config: Config) -> Iterator[Finding]:
    clickhouse = config.clickhouse
    where = clickhouse.path if clickhouse.mode == "embedded" else clickhouse.host
    try:
        store = Store(clickhouse)
    except KizashiError as error:
        remedy = (
            "stop the worker or demo that has the directory open"
            if clickhouse.mode == "embedded"
            else "check KIZASHI_CLICKHOUSE__HOST, USERNAME and PASSWORD"
        )
        yield Finding("ClickHouse", False, str(error), remedy)
        return
    try:
        detail = f"{clickhouse.mode} {where}, version {store.server_version}"
        yield Finding("ClickHouse", True, detail)
        schema = _attempt("schema", lambda: _check_schema(store), "kizashi init")
        yield schema
        if schema.well:
            yield _examine_books(store)
    finally:
        store.close()


def _examine_books(store: Store) -> Finding:
    last = read_last(store)
    if last is None:
        return Finding("books", True, "not compared yet: a worker does it once an hour")
    detail = (
        f"{last.differing} of {last.compared} sums differ,"
        f" compared at {to_rfc3339(last.checked_ms)}"
    )
    if not last.differing:
        return Finding("books", True, detail)
    since = to_rfc3339(last.first_differing_ms or last.first_ms)[:10]
    return Finding("books", False, detail, f"kizashi reconcile --since {since}")


def _check_schema(store: Store) -> str:
    store.use_database()
    return f"version {len(read_migrations())}"
