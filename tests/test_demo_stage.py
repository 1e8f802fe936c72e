"""Where the demo plays: on nothing but what an earlier one left, and never over real traffic."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.config import ClickHouseSettings, Config
from pipeline.demo.stage import OWN_DATABASE, TOPIC, Stage, set_stage
from pipeline.sinks.clickhouse import Store


@pytest.fixture
def config(embedded_path: Path, database: str) -> Config:
    return Config(clickhouse=ClickHouseSettings(path=embedded_path, database=database))


@contextmanager
def staged(config: Config) -> Iterator[Stage]:
    stage = set_stage(config)
    yield stage
    stage.store.close()


def count(store: Store, *tables: str) -> list[int]:
    return [store.rows(f"SELECT count() FROM {table}")[0][0] for table in tables]


def write(store: Store, topic: str) -> None:
    """One row of a request, of its chunk's books, and of what people say."""
    now = dt.datetime.now(dt.UTC)
    request = {"topic": topic, "event_id": "e", "event_time": now, "record_time": now}
    store.insert_rows("requests", [request])
    store.insert_rows("chunk_books", [{"topic": topic, "read": 1, "record_time": now}])
    store.insert_rows("silences", [{"silence_id": topic, "ends_at": now}])


TABLES = ("requests", "chunk_books", "silences")


def test_a_second_demo_starts_afresh_and_keeps_what_people_said(config: Config) -> None:
    with staged(config) as first:
        write(first.store, TOPIC)
        assert count(first.store, *TABLES) == [1, 1, 1]
    with staged(config) as second:
        assert count(second.store, *TABLES) == [0, 0, 1]
        assert not second.is_own


def test_real_traffic_is_left_alone(config: Config) -> None:
    with staged(config) as first:
        write(first.store, "llm.gateway.events")
    with staged(config) as second:
        assert second.is_own
        assert second.config.clickhouse.database == OWN_DATABASE
        assert count(second.store, *TABLES) == [0, 0, 0]
        database = config.clickhouse.database
        assert count(second.store, *(f"{database}.{table}" for table in TABLES)) == [1, 1, 1]
