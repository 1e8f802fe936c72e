"""The callback in the real LiteLLM: what it is told of becomes events that our door takes.

LiteLLM brings half a hundred packages, so it has an environment of its own
(`requirements/rivals/litellm_callback.txt`), made once. Where it can neither be found nor made,
these tests are skipped and say so; under CI they fail.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.wire.environments import install, python_of
from pipeline.config import KafkaSettings
from pipeline.topics import create_topics
from schemas.codec import decode_event
from schemas.event import Event, Received
from tests.support.kafka import consume, unavailable

ROOT = Path(__file__).parents[1]
ENVIRONMENT = "litellm_callback"
CALLBACK = ROOT / "pipeline" / "litellm_callback.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing of ours but the one file, beside which a proxy is configured."""
    try:
        install(ENVIRONMENT)
    except (subprocess.CalledProcessError, OSError) as error:
        unavailable(f"LiteLLM's environment cannot be made: {error}")
    made = tmp_path_factory.mktemp("litellm")
    (made / CALLBACK.name).write_bytes(CALLBACK.read_bytes())
    return made


def run(home: Path, *arguments: str, **environment: str) -> str:
    program = ROOT / "tests" / "support" / "litellm_program.py"
    done = subprocess.run(
        # -P: beside the program lie modules of ours by the names of libraries.
        [str(python_of(ENVIRONMENT)), "-P", str(program), *arguments],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(home),
            # Everything that it would ask the network for at the start.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_DOCS": "True",
            "DISABLE_ADMIN_UI": "True",
            "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(32)}",
            # A broker that CI gives us goes by the name of its service.
            "KIZASHI_KAFKA__ALLOW_PLAINTEXT": "true",
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stderr


@pytest.fixture(scope="module")
def library(home: Path) -> Path:
    """What the program wrote down: `starts.json` and `events.ndjson`."""
    run(home, "library", str(home), KIZASHI_KAFKA__ALLOW_PLAINTEXT="")
    return home


def test_plain_text_off_this_machine_stops_the_start(library: Path) -> None:
    starts = json.loads((library / "starts.json").read_bytes())
    assert "ALLOW_PLAINTEXT" in starts.pop("127.0.0.1:1,kafka.example.com:9092")
    assert starts == {"[::1]:1": ""}


@pytest.fixture(scope="module")
def events(library: Path) -> list[Event]:
    """Of seven calls of the library, in order."""
    lines = (library / "events.ndjson").read_bytes().splitlines()
    now_ms = round(time.time() * 1000)
    decoded = [decode_event(line, now_ms) for line in lines]
    assert len(decoded) == 7
    assert all(isinstance(each, Received) and not each.attributes for each in decoded), decoded
    return [each.event for each in decoded if isinstance(each, Received)]


def test_a_call_is_an_event(events: list[Event]) -> None:
    event = events[0]
    assert (event.operation, event.provider, event.request_model) == ("chat", "openai", "gpt-4o")
    assert (event.prompt_text, event.response_text) == ("なぜ?", "Because.")
    assert (event.route, event.tenant, event.prompt_name) == ("support", "acme", "triage")
    assert (event.input_tokens or 0) > 0
    assert (event.output_tokens or 0) > 0
    assert (event.finish_reasons, event.error_type, event.cache) == (["stop"], None, None)
    assert (event.temperature, event.max_tokens, event.stream) == (0.5, 50, False)
    assert event.time_to_first_chunk_s is None


def test_of_a_stream_the_first_chunk_is_timed(events: list[Event]) -> None:
    event = events[1]
    assert (event.stream, event.response_text) == (True, "Because.")
    assert event.time_to_first_chunk_s is not None
    assert event.duration_s is not None
    assert 0 <= event.time_to_first_chunk_s <= event.duration_s


def test_a_failure_has_its_kind(events: list[Event]) -> None:
    event = events[2]
    assert (event.error_type, event.output_tokens) == ("RateLimitError", None)
    assert event.prompt_text == "なぜ?"


def test_the_cache_is_seen(events: list[Event]) -> None:
    assert [event.cache for event in events[3:5]] == ["miss", "hit"]
    assert len({event.event_id for event in events}) == 7


def test_what_litellm_was_told_not_to_log_is_left_out(events: list[Event]) -> None:
    assert (events[5].prompt_text, events[5].response_text) == (None, None)


def test_calls_without_asyncio_are_events_too(events: list[Event]) -> None:
    event = events[6]
    assert (event.provider, event.response_text) == ("anthropic", "Sync.")


PROXY = """
model_list:
  - model_name: house-model
    litellm_params: {model: openai/gpt-4o, api_key: none, mock_response: "From the proxy."}
litellm_settings:
  callbacks: ["litellm_callback.kizashi"]
"""


@pytest.mark.kafka
def test_the_proxy_loads_it_by_its_configuration(home: Path, kafka_settings: KafkaSettings) -> None:
    create_topics(kafka_settings)
    (home / "config.yaml").write_text(PROXY)
    log = run(
        home,
        "proxy",
        str(home / "config.yaml"),
        KIZASHI_KAFKA__BOOTSTRAP_SERVERS=kafka_settings.bootstrap_servers,
        KIZASHI_KAFKA__EVENTS_TOPIC=kafka_settings.events_topic,
    )
    records = consume(kafka_settings, kafka_settings.events_topic)
    decoded = [decode_event(record.value, record.timestamp) for record in records]
    found = [each.event for each in decoded if isinstance(each, Received)]
    assert len(found) == len(decoded) == 2, log[-2_000:]
    assert {event.request_model for event in found} == {"house-model"}
    assert {event.response_text for event in found} == {"From the proxy."}
    assert {event.stream for event in found} == {False, True}
    assert {event.route for event in found} == {"support"}
