"""The Faust shell: settings that the guarantees rest on, and what happens to the unplanned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.app import build_faust, consume, run_or_crash
from pipeline.config import KafkaSettings
from pipeline.errors import ConfigError


class FakeApp:
    def __init__(self) -> None:
        self.crashed: BaseException | None = None

    async def crash(self, reason: BaseException) -> None:
        self.crashed = reason


class FakeStream:
    """Two messages; remembers that it was asked not to acknowledge."""

    def __init__(self) -> None:
        self.acknowledging = True

    def noack(self) -> FakeStream:
        self.acknowledging = False
        return self

    async def events(self) -> Any:
        for name in ("first", "second"):
            yield type("Event", (), {"message": name})()


async def test_what_was_not_planned_for_ends_the_worker() -> None:
    app, seen = FakeApp(), []

    async def handle(message: str) -> None:
        seen.append(message)
        raise RuntimeError("nobody thought of this")

    with pytest.raises(RuntimeError):
        await consume(app, FakeStream(), handle)  # type: ignore[arg-type]
    assert isinstance(app.crashed, RuntimeError)
    assert seen == ["first"], "the message after the failed one must not be taken"


async def test_chunks_are_not_acknowledged() -> None:
    app, stream, seen = FakeApp(), FakeStream(), []

    async def handle(message: str) -> None:
        seen.append(message)

    await consume(app, stream, handle)  # type: ignore[arg-type]
    assert seen == ["first", "second"]
    assert not stream.acknowledging
    assert app.crashed is None


async def test_work_that_ends_well_crashes_nothing() -> None:
    app = FakeApp()

    async def work() -> None:
        return None

    await run_or_crash(app, work())  # type: ignore[arg-type]
    assert app.crashed is None


def test_the_settings_that_the_guarantees_rest_on() -> None:
    app = build_faust(KafkaSettings(group_id="g"))
    assert app.conf.id == "g"
    assert app.conf.broker_session_timeout == 10
    assert app.conf.stream_wait_empty is False
    assert app.conf.consumer_auto_offset_reset == "earliest"
    assert app.conf.producer_acks == -1
    assert app.conf.web_enabled is False
    assert app.conf.topic_allow_declare is False
    assert [str(url) for url in app.conf.broker] == ["kizashi://127.0.0.1:9092"]


def test_nothing_is_made_in_the_working_directory() -> None:
    app = build_faust(KafkaSettings(group_id="g"))
    assert Path.cwd() not in app.conf.tabledir.absolute().parents


def test_plain_text_off_this_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="allow_plaintext"):
        build_faust(KafkaSettings(bootstrap_servers="kafka.example.com:9092"))
