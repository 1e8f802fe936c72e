"""No secret of the configuration is seen anywhere: not shown, not logged, not in an error.

Every secret that can be configured is set to a canary of its own, found by its type, so a
new one is looked for without being named here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from pydantic import BaseModel, SecretStr

from pipeline.app import build_faust
from pipeline.broker import free_ports
from pipeline.build import build_step_config
from pipeline.cli import cli
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, KizashiError
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.notifier import build_destinations
from pipeline.sinks.pagerduty import ROUTING_KEY_CHARS
from pipeline.topics import client_settings, connect_admin

CANARY = "canary-"
#: Names of what is secret, and of what only sounds like it.
SOUNDS_SECRET = re.compile(r"password|secret|token|routing_key|api_key|user_key|salt")
SAID = re.compile(r"_file$|tokens|^key_file$|_tokens?_|token_")
Path_ = tuple[str, ...]


def fields(model: type[BaseModel], path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every setting: where it stands, and its annotation."""
    for name, field in model.model_fields.items():
        here = (*path, name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, here)
        else:
            yield here, inner


def holds_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(holds_secret, get_args(annotation)))


SECRETS = [path for path, annotation in fields(Config) if holds_secret(annotation)]


def canary(path: Path_) -> str:
    return f"{CANARY}{'-'.join(path)}-0123456789".replace("_", "-")


def test_the_secrets_are_found() -> None:
    assert ("kafka", "password") in SECRETS
    assert ("notify", "slack", "url") in SECRETS
    assert ("privacy", "user_keys") in SECRETS
    assert len(SECRETS) >= 12


def test_what_sounds_like_a_secret_has_the_type_of_one() -> None:
    plain = [
        ".".join(path)
        for path, annotation in fields(Config)
        if SOUNDS_SECRET.search(path[-1]) and not SAID.search(path[-1])
        if not holds_secret(annotation)
    ]
    assert plain == []
    assert SOUNDS_SECRET.search("webhook_secret")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A worker's, with a canary for every secret; nothing answers at its addresses."""
    port, other = free_ports()
    given = {
        "KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
        "KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA__SASL_MECHANISM": "PLAIN",
        "KAFKA__USERNAME": "kizashi",
        "CLICKHOUSE__MODE": "http",
        "CLICKHOUSE__PORT": str(other),
        "CLICKHOUSE__TIMEOUT_S": "1",
        "NOTIFY__WEBHOOK__URL": "https://127.0.0.1:1/",
        "NOTIFY__WEBHOOK__ALLOW_PRIVATE": "true",
        "NOTIFY__GRAFANA__URL": "http://127.0.0.1:1/",
        "NOTIFY__ALERTMANAGER__URL": "http://127.0.0.1:1/",
    }
    for path in SECRETS:
        name = "__".join(path).upper()
        value = canary(path)
        if path[-1] == "url":
            value = f"https://{value}.example/{value}"
        if path == ("privacy", "user_keys"):
            name += "__K1"
        elif holds(path, "dict["):
            value = json.dumps({"a": value})
        elif holds(path, "tuple["):
            value = json.dumps([value])
        elif path[-1] == "routing_key":
            value = value[:ROUTING_KEY_CHARS]
        given.setdefault(name, value)
    return {f"KIZASHI_{name}": value for name, value in given.items()}


def holds(path: Path_, container: str) -> bool:
    return container in str(dict(fields(Config))[path])


@pytest.fixture
def config(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Config:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_config()


def test_the_configuration_shows_none(config: Config) -> None:
    for shown in (repr(config), str(config), json.dumps(config.shown()), f"{config.shown()}"):
        assert CANARY not in shown
    password = config.kafka.password
    assert password is not None
    assert CANARY in password.get_secret_value()


def test_what_is_built_of_it_shows_none(config: Config) -> None:
    app = build_faust(config.kafka)
    built = [
        build_step_config(config, 1),
        client_settings(config.kafka),
        app,
        app.conf.broker_credentials,
        *build_destinations(config.notify),
    ]
    assert len(built) == 4 + 5
    for each in built:
        assert CANARY not in f"{each!r} {each}", type(each)


def test_an_impossible_value_beside_a_secret_quotes_none(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config is not None
    for path in SECRETS:
        with monkeypatch.context() as patch:
            name = "KIZASHI_" + "__".join(path).upper()
            patch.setenv(name, json.dumps({"wrong": [canary(path)]}))
            with contextlib.suppress(ConfigError):
                load_config()  # a mapping is what a mapping may be
                continue
            with pytest.raises(ConfigError) as refused:
                load_config()
            assert CANARY not in "".join(traceback.format_exception(refused.value))


def test_what_is_away_is_named_without_the_password(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(KizashiError) as kafka, connect_admin(config.kafka, timeout_s=0.5):
        pass
    with pytest.raises(KizashiError) as clickhouse:
        Store(config.clickhouse)
    for error in (kafka.value, clickhouse.value):
        assert CANARY not in "".join(traceback.format_exception(error))
    assert caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    "command",
    [["config", "show"], ["doctor"], ["sql", "SELECT 1"], ["erase", "--user", "ada"]],
    ids=lambda c: c[0],
)
def test_no_command_shows_one(
    config: Config, command: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert config is not None
    ended = CliRunner().invoke(cli, command)
    said = ended.output + caplog.text
    if ended.exception is not None:
        said += "".join(traceback.format_exception(ended.exception))
    assert said
    assert CANARY not in said


def test_a_worker_that_cannot_start_shows_none(environment: dict[str, str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", "-v", "worker", "--patience", "0"],
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode not in {0, None}
    assert "kizashi: " in ended.stderr
    assert CANARY not in ended.stdout + ended.stderr


def test_a_canary_that_sang_would_be_heard() -> None:
    """The control: what is not a SecretStr does show."""

    class Careless(BaseModel):
        password: str

    assert CANARY in repr(Careless(password=canary(("x",))))
    assert not holds_secret(str)
