"""The whole circle: client, gateway, spool, pipeline; and what goes wrong is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.demo import SCRIPT, Fate, compose, rate, read_order


@pytest.mark.parametrize("number", [1, 7, 42])
def test_the_provider_knows_which_request_it_has(number: int) -> None:
    body, headers = compose(number, 0.5)
    route, version, found = read_order(body)
    assert (route, version) == (headers["X-Kizashi-Route"], headers["X-Kizashi-Prompt-Version"])
    assert found == number
    system = {"system": body["messages"][0]["content"], "messages": []}
    assert read_order(system) == (route, version, number)


def test_users_dislike_what_declines_and_say_nothing_of_what_failed() -> None:
    def share_disliked(fate: Fate) -> float:
        said = [each for n in range(2_000) if (each := rate(n, f"request-{n}", fate))]
        assert all(each["event.id"] == f"request-{each['feedback.id'][6:]}" for each in said)
        return sum(each["gen_ai.evaluation.score.value"] == 0 for each in said) / len(said)

    assert share_disliked(Fate.ANSWERED) < 0.15 < share_disliked(Fate.CUT)
    assert share_disliked(Fate.CUT) < 0.7 < share_disliked(Fate.DECLINED)
    assert {rate(n, "request", Fate.FAILED) for n in range(100)} == {None}


def test_what_the_provider_does_wrong_is_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "demo", "--gateway", "--for", "5", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    played = json.loads(done.stdout.splitlines()[-1])
    assert played["events"] == played["stored"] > 1_500
    # A fifth of the answers gets a thumb, and each finds its request.
    assert 0.15 < played["ratings"] / played["events"] < 0.25
    found = {each["name"]: each["incident_id"] for each in played["scripted_incidents"]}
    assert set(found) == {each.name for each in SCRIPT}
    assert None not in found.values(), played["incidents"]
