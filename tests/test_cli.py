"""The command as a user meets it: exit status, standard output, standard error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.kafka import KafkaServer
from tests.test_worker import refusing_hour

ROOT = Path(__file__).parents[1]
CANARY = "canary-77c1-ab83f0d2"


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("KIZASHI_")}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=home,
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    shown = run(tmp_path, "--help")
    assert shown.returncode == 0
    for name in (
        "config",
        "demo",
        "doctor",
        "incident",
        "init",
        "prices",
        "produce",
        "reference",
        "replay",
        "sql",
    ):
        assert f"\n  {name} " in shown.stdout


def test_an_unknown_key_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "kizashi.toml").write_text("[ingest]\nchunk_event = 3\n")
    ended = run(tmp_path, "config", "show")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == ("kizashi: impossible configuration: ingest.chunk_event: unknown key\n")


def test_config_show_masks_secrets(tmp_path: Path) -> None:
    shown = run(tmp_path, "config", "show", KIZASHI_PRIVACY__USER_KEYS__K1=CANARY)
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["privacy"]["user_keys"] == {"k1": "**********"}
    assert CANARY not in shown.stdout + shown.stderr


def test_replay_says_what_would_have_been_found(tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    lines = list(refusing_hour(time.time()))
    file.write_bytes(b"\n".join([*lines[:50], b"broken", *lines[49:]]) + b"\n")
    played = run(tmp_path, "replay", str(file), "--json")
    assert played.returncode == 0, played.stderr
    items: list[dict[str, Any]] = [json.loads(line) for line in played.stdout.splitlines()]
    alarm = next(i for i in items if i["type"] == "alarm")
    assert alarm["family"] == "refusal"
    assert 2_000 < alarm["event_index"] < 2_400
    assert {"event_time", "monitor", "signal", "e_value", "baseline", "current"} <= set(alarm)
    summary = items[-1]
    assert summary["type"] == "summary"
    assert (summary["events"], summary["stored"]) == (6_002, 6_000)
    assert (summary["deadlettered"], summary["duplicates"]) == (1, 1)
    assert [i["family"] for i in summary["incidents"]] == ["refusal"]
    assert summary["incidents"][0]["resolved_at"]
    assert not (tmp_path / "kizashi-data").exists(), "nothing is kept unless asked for"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    ended = run(tmp_path, "replay", "nowhere.ndjson")
    assert ended.returncode == 1
    assert "nowhere.ndjson" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_demo_and_its_questions(tmp_path: Path) -> None:
    played = run(tmp_path, "demo", "--for", "5", "--json")
    assert played.returncode == 0, played.stderr
    result = json.loads(played.stdout.splitlines()[-1])
    assert result["events"] == (result["stored"] + result["deadlettered"] + result["duplicates"])
    assert len(result["scripted_incidents"]) == 3
    assert sorted(i["family"] for i in result["incidents"]) == ["error", "latency", "refusal"]
    from pipeline.demo.summary import QUESTIONS

    for question in QUESTIONS:
        asked = run(tmp_path, "sql", question.sql, "--json")
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.count("\n") >= 3
    counted = run(tmp_path, "sql", "SELECT count() AS n FROM requests", "--json")
    assert json.loads(counted.stdout) == {"n": result["stored"]}


def test_sql_reads_and_never_writes(tmp_path: Path) -> None:
    nothing = run(tmp_path, "sql", "SELECT 1")
    assert nothing.returncode == 1
    assert "kizashi init" in nothing.stderr
    run(tmp_path, "replay", "-", "--keep")
    refused = run(tmp_path, "sql", "DROP TABLE requests")
    assert refused.returncode == 1
    assert "readonly" in refused.stderr
    assert run(tmp_path, "sql", "SELECT count() FROM requests").returncode == 0


def test_prices(tmp_path: Path) -> None:
    listed = run(tmp_path, "prices", "list", "--model", "gpt-4o", "--at", "2024-06-01")
    assert listed.returncode == 0
    assert "15.00" in listed.stdout
    bad = tmp_path / "bad.toml"
    bad.write_text('[[price]]\nmodel = "x"\n')
    refused = run(tmp_path, "prices", "load", str(bad))
    assert refused.returncode == 2
    assert "bad.toml" in refused.stderr


def test_doctor_says_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    looked = run(tmp_path, "doctor", "--json", KIZASHI_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert looked.returncode == 1
    findings = {f["check"]: f for f in map(json.loads, looked.stdout.splitlines())}
    assert findings["Faust extension"]["well"]
    assert not findings["broker"]["well"]
    assert "BOOTSTRAP_SERVERS" in findings["broker"]["remedy"]
    assert not findings["schema"]["well"]
    assert findings["schema"]["remedy"] == "kizashi init"


@pytest.mark.kafka
def test_init_makes_everything_well_and_runs_twice(
    tmp_path: Path, kafka: KafkaServer, topic_prefix: str
) -> None:
    environment = {
        "KIZASHI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KIZASHI_KAFKA__ALLOW_PLAINTEXT": "true",
        **{
            f"KIZASHI_KAFKA__{name.upper()}_TOPIC": topic_prefix + name
            for name in ("events", "signals", "alarms", "deadletter")
        },
    }
    assert run(tmp_path, "doctor", **environment).returncode == 1
    first = run(tmp_path, "init", **environment)
    assert first.returncode == 0, first.stderr
    assert "created" in first.stdout
    second = run(tmp_path, "init", **environment)
    assert second.returncode == 0
    assert "up to date" in second.stdout
    looked = run(tmp_path, "doctor", **environment)
    assert looked.returncode == 0, looked.stdout
