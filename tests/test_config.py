"""Configurations that must load, and ones that must stop the start and say why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError
from schemas.monitor import DEFAULT_GROUPINGS
from schemas.signal import FAMILY_OF, Family

CONFIGS = Path(__file__).parent / "configs"
CANARY = "canary-3f9a-5be1c044"


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kizashi.toml in the directory, no variable of ours in the environment."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("KIZASHI_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("path", sorted((CONFIGS / "good").glob("*.toml")), ids=lambda p: p.stem)
def test_a_good_file_loads(path: Path) -> None:
    assert isinstance(load_config(path), Config)


@pytest.mark.parametrize("path", sorted((CONFIGS / "bad").glob("*.toml")), ids=lambda p: p.stem)
def test_a_bad_file_stops_the_start_and_names_the_key(path: Path) -> None:
    """The first line of each file says what the message must name."""
    named = path.read_text().splitlines()[0].removeprefix("# ")
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert named in str(refused.value)


def test_the_defaults_need_no_file() -> None:
    config = load_config()
    assert config.clickhouse.mode == "embedded"
    assert config.ingest.groupings == DEFAULT_GROUPINGS
    assert set(config.detection.materiality) == set(FAMILY_OF.values())


def test_a_file_in_the_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "kizashi.toml").write_text('[kafka]\ngroup_id = "here"\n')
    assert load_config().kafka.group_id == "here"


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIZASHI_CONFIG", str(CONFIGS / "good" / "full.toml"))
    monkeypatch.setenv("KIZASHI_KAFKA__GROUP_ID", "from-the-environment")
    config = load_config()
    assert config.kafka.group_id == "from-the-environment"
    assert config.kafka.topics.partitions == 12
    assert config.detection.materiality[Family.REFUSAL].ratio == 2.0
    assert config.detection.materiality[Family.ERROR].ratio == 1.5


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(Path("nowhere.toml"))


@pytest.mark.parametrize("name", ["KIZASHI_KAFAK__GROUP_ID", "KIZASHI_KAFKA__GROUP"])
def test_a_variable_that_means_nothing_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(ConfigError, match=r"(?i)kafak|kafka\.group"):
        load_config()


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "KAFKA__PASSWORD",
        "CLICKHOUSE__PASSWORD",
        "NOTIFY__PAGERDUTY__ROUTING_KEY",
        "NOTIFY__WEBHOOK__SECRET",
        "PRIVACY__USER_KEYS__K1",
    ):
        monkeypatch.setenv(f"KIZASHI_{name}", CANARY)
    config = load_config()
    assert CANARY not in json.dumps(config.shown())
    assert CANARY not in repr(config)
    assert config.clickhouse.password.get_secret_value() == CANARY


def test_a_secret_that_is_refused_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIZASHI_NOTIFY__PAGERDUTY", json.dumps({"routing_key": [CANARY]}))
    with pytest.raises(ConfigError) as refused:
        load_config()
    assert CANARY not in str(refused.value)


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().kafka.group_id = "other"  # type: ignore[misc]
