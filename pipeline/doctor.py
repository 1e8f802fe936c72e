"""`kizashi doctor`: what is wrong with this installation, and the command that mends it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version

from msgspec import Struct

from pipeline.config import Config
from pipeline.errors import KizashiError
from pipeline.prices import configured_table
from pipeline.sinks.clickhouse import Store
from pipeline.topics import examine_topics, topic_epochs
from pipeline.transport import assert_compiled
from schemas.clickhouse import read_migrations

PACKAGES = ("kizashi", "faust-streaming", "aiokafka", "kafka-python", "clickhouse-connect", "chdb")


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
    names = (*kafka.input_topics, kafka.signals_topic, kafka.alarms_topic, kafka.deadletter_topic)
    for name in names:
        wrong = [d for d in differences if d.topic == name]
        if name in missing:
            yield Finding(f"topic {name}", False, "missing", "kizashi init")
        elif wrong:
            detail = "; ".join(f"{d.what} is {d.standing}, planned {d.planned}" for d in wrong)
            yield Finding(f"topic {name}", False, detail, wrong[0].remedy)
        else:
            yield Finding(f"topic {name}", True, "as planned")


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
        yield _attempt("schema", lambda: _check_schema(store), "kizashi init")
    finally:
        store.close()


def _check_schema(store: Store) -> str:
    store.use_database()
    return f"version {len(read_migrations())}"
