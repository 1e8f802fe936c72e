"""`kizashi erase`: what is stored of one user goes, under every key, and of nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec import structs

from pipeline.cli import cli
from pipeline.config import ClickHouseSettings
from pipeline.core.dedup import SeenIds
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import StepConfig, admit, derive_effects
from pipeline.core.users import UserKey
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.requests import RequestStore
from schemas.codec import CodecLimits
from schemas.monitor import DEFAULT_GROUPINGS
from tests.support.clickhouse import ClickHouseServer, clickhouse_server
from tests.support.events import PRICES, make_chunk, make_raw

__all__ = ["clickhouse_server"]

KEYS = {"k1": "the first key, long gone", "k2": "the second key, in use"}
CONFIG = StepConfig(DEFAULT_GROUPINGS, CodecLimits(), store_texts=True)
USERS = ("ada", "bob", None, "ada lovelace")
TABLES = ("requests", "request_texts", "answer_samples", "feedback")


@pytest.fixture
def store(clickhouse_server: ClickHouseServer, database: str) -> Iterator[Store]:
    made = Store(
        ClickHouseSettings(
            mode="http",
            host=clickhouse_server.host,
            port=clickhouse_server.port,
            database=database,
            requests_ttl_days=10_000,
            texts_ttl_days=10_000,
            samples_ttl_days=10_000,
        )
    )
    made.migrate()
    fill(made)
    yield made
    made.close()


def fill(store: Store) -> None:
    """Each user's requests, hashed by the first key and by the second."""
    requests = RequestStore(store)
    for epoch, key in KEYS.items():
        config = structs.replace(CONFIG, user_key=UserKey(epoch, key.encode()))
        raws = [
            make_raw(f"{epoch}-{i}", user=user, prompt_text="問い", response_text="答え")
            for i, user in enumerate(USERS)
        ]
        admission = admit(make_chunk(raws, epoch=epoch), config.limits, SeenIds(10))
        effects = derive_effects(admission, config, Pricer(PRICES), MonitorRegistry(100))
        assert requests.find_unstorable(effects) == {}
        requests.store_rest(effects, 0)
    store.insert_rows(
        "answer_samples",
        [
            {
                "event_time": time, "event_id": event_id, "request_model": "m", "embedding": "e",
                "prompt": [0.0], "answer": [1.0], "record_time": time,
            }
            for time, event_id in store.rows("SELECT event_time, event_id FROM requests")
        ],
    )  # fmt: skip
    rate(store)


def rate(store: Store) -> None:
    """Every request is rated by its user, and by somebody who judges them all."""
    rows = store.rows("SELECT event_time, event_id, user_hash FROM requests")
    store.insert_rows(
        "feedback",
        [
            {
                "feedback_time": time, "feedback_id": f"{event_id}/{user}", "name": "thumbs",
                "event_id": event_id, "user_hash": user, "record_time": time,
            }
            for time, event_id, own in rows
            for user in (own, "k1:judge")
        ],
    )  # fmt: skip


def erase(
    store: Store, tmp_path: Path, *arguments: str, keys: tuple[str, ...] = ("k1", "k2")
) -> Result:
    settings = store._settings
    file = tmp_path / "kizashi.toml"
    held = "\n".join(f'{version} = "{KEYS[version]}"' for version in keys)
    file.write_text(
        f'[clickhouse]\nmode = "http"\nhost = "{settings.host}"\nport = {settings.port}\n'
        f'database = "{settings.database}"\n[privacy.user_keys]\n{held}\n'
    )
    return CliRunner().invoke(cli, ["--config", str(file), "erase", *arguments])


def ids(store: Store, table: str) -> set[str]:
    return {row[0] for row in store.rows(f"SELECT event_id FROM {table}")}


EVERYONE = {f"{key}-{i}" for key in KEYS for i in range(len(USERS))}


def test_a_user_goes_from_every_table_under_every_key(store: Store, tmp_path: Path) -> None:
    rollups = store.rows("SELECT sum(requests) FROM rollup_1m")
    ended = erase(store, tmp_path, "--user", "ada", "--yes")
    assert ended.exit_code == 0, ended.output
    assert "found under k1, k2: 2 requests, 2 texts, 2 samples, 4 ratings" in ended.stdout
    assert "erased: 2 requests, 2 texts, 2 samples, 4 ratings" in ended.stdout
    assert "llm.gateway.events" in ended.stderr
    for table in TABLES:
        assert ids(store, table) == EVERYONE - {"k1-0", "k2-0"}, table
    assert store.rows("SELECT sum(requests) FROM rollup_1m") == rollups
    assert store.rows("SELECT count() > 0 FROM erased_minutes") == [(1,)]
    again = erase(store, tmp_path, "--user", "ada", "--yes")
    assert "0 requests, 0 texts, 0 samples" in again.stdout


def test_a_dry_run_and_a_no_erase_nothing(store: Store, tmp_path: Path) -> None:
    dry = erase(store, tmp_path, "--user", "ada", "--dry-run")
    assert dry.stdout == "found under k1, k2: 2 requests, 2 texts, 2 samples, 4 ratings\n"
    declined = erase(store, tmp_path, "--user", "ada")
    assert declined.exit_code == 1
    assert all(ids(store, table) == EVERYONE for table in TABLES)


def test_an_erasure_that_was_cut_off_is_finished_by_another(store: Store, tmp_path: Path) -> None:
    store.delete("request_texts", "event_id = {id:String}", {"id": "k1-1"})
    ended = erase(store, tmp_path, "--user", "bob", "--yes")
    assert "erased: 2 requests, 1 texts, 2 samples" in ended.stdout
    assert all(ids(store, table) == EVERYONE - {"k1-1", "k2-1"} for table in TABLES)


@pytest.mark.parametrize("user", ["nobody", "' OR 1 = 1 --", "%", "", "{hashes:Array(String)}"])
def test_who_is_not_there_takes_nobody_along(store: Store, tmp_path: Path, user: str) -> None:
    ended = erase(store, tmp_path, "--user", user, "--yes")
    assert "0 requests" in ended.stdout
    assert ids(store, "requests") == EVERYONE


def test_without_the_old_key_what_it_hashed_is_not_found(store: Store, tmp_path: Path) -> None:
    """This is why keys are kept when they are changed."""
    ended = erase(store, tmp_path, "--user", "ada", "--yes", keys=("k2",))
    assert "found under k2: 1 requests" in ended.stdout
    assert "k1-0" in ids(store, "requests")


def test_without_any_key_there_is_nothing_to_erase(tmp_path: Path) -> None:
    ended = CliRunner().invoke(cli, ["erase", "--user", "ada"])
    assert "without a key no user ids are stored" in str(ended.exception)
