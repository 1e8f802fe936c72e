"""The command: ``python -m tests.chaos [--seconds 120] [--seed N] [--seeds 1] [--rate 5000] …``.

Everything is said on standard error; the last line of standard output is one JSON object. The exit
status is 0 when the books balance and both kinds of control were seen to fail. Of several seeds the
object has the sums, and of what may not be large the largest.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.chaos.plan import BY_NAME
from tests.chaos.run import CONTROLS, Settings, Troubled, run_control, run_main
from tests.chaos.scenarios import SCENARIOS, run_scenario
from tests.chaos.world import Ground, ground

#: A worker that holds more than this is not bounded.
RSS_MB = 900
#: A soak may end with so much more than it had after a quarter of its time.
GROWTH_MB = 50
#: Of several seeds' figures the largest and the smallest count; all others are added up.
_LARGEST = frozenset(
    {"recovery_max_s", "recovery_last_s", "recovery_s", "lag_max", "rss_max_mb", "rss_growth_mb"}
)
_SMALLEST = frozenset({"produced_per_s"})


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    settings = settings_of(given)
    begin_s = time.monotonic()
    with ExitStack() as stack:
        home = given.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        report = carry_out(home, settings, given)
    report["seconds_total"] = round(time.monotonic() - begin_s)
    report["wrong"] = find_wrong(report, settings)
    print(json.dumps(report), flush=True)
    return 1 if report["wrong"] else 0


def carry_out(home: Path, settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    """Run every seed on a ground of its own, controls and scenarios on others.

    ClickHouse and Kafka get slower with each database and topic: the hundredth seed would be under
    a strain that is not in its plan.
    """
    report = {"seed": settings.seed, "seeds": given.seeds, "seconds": settings.seconds}
    report |= {"rate": settings.rate}
    report |= {"session_timeout_s": settings.session_s, "soak": given.soak}
    for seed in range(settings.seed, settings.seed + given.seeds):
        with ground(home / f"seed-{seed}") as on:
            report = add(report, run_seed(on, replace(settings, seed=seed)))
    if given.controls:
        with ground(home / "controls") as on:
            report["controls"] = run_controls(on, settings, given.control_seconds)
        report["controls_failed"] = controls_failed(report["controls"])
    if given.scenarios:
        with ground(home / "scenarios") as on:
            report["scenarios"] = run_scenarios(on, settings)
    return report


def run_seed(on: Ground, settings: Settings) -> dict[str, Any]:
    """Run our workers under the faults of one seed."""
    tell(f"seed {settings.seed}: {settings.rate:g} events/s, {len(settings.plan())} faults planned")
    found = run_main(on, settings)
    tell(json.dumps({"seed": settings.seed} | found))
    return found


def add(whole: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Add what was found of one seed to what was found of those before it."""
    return whole | {
        name: _add_value(name, whole[name], value) if name in whole else value
        for name, value in found.items()
    }


def _add_value(name: str, before: Any, now: Any) -> Any:
    if isinstance(now, dict):
        both = {key: _add_value(name, before[key], now[key]) for key in before.keys() & now.keys()}
        return dict(sorted((before | now | both).items()))
    if isinstance(now, bool):
        return before and now
    if isinstance(now, str):
        return f"{before}; {now}"
    if name in _SMALLEST:
        return min(before, now)
    return max(before, now) if name in _LARGEST else before + now


def run_scenarios(on: Ground, settings: Settings) -> dict[str, Any]:
    """Run each of the scenarios in which the books differ by definition."""
    found: dict[str, Any] = {}
    for name in SCENARIOS:
        tell(f"scenario: {name} …")
        try:
            found[name] = run_scenario(on, settings, name)
        except Troubled as trouble:
            tell(str(trouble)[-3_000:])
            found[name] = {"troubled": str(trouble).splitlines()[0]}
    return found


def run_controls(on: Ground, settings: Settings, seconds: float) -> dict[str, Any]:
    """Run each control under the faults that it has no answer to."""
    found: dict[str, Any] = {}
    for control, kinds in CONTROLS.items():
        tell(f"control: {control} …")
        under = replace(settings, seconds=seconds, kinds=kinds)
        try:
            found[control] = run_control(on, under, control)
        except Troubled as trouble:
            # A control that hangs has not been seen to lose anything.
            tell(str(trouble)[-3_000:])
            found[control] = {"lost": 0, "doubled": 0, "troubled": str(trouble).splitlines()[0]}
    return found


def controls_failed(found: dict[str, Any]) -> bool:
    """Whether stock Faust was seen to lose, and the other two to double."""
    return bool(
        found["stock"]["lost"] > 0
        and found["undeclared"]["doubled"] > 0
        and found["no_window"]["doubled"] > 0
    )


def find_wrong(report: dict[str, Any], settings: Settings) -> list[str]:
    """Name every promise that was not kept."""
    zero = ("lost", "doubled", "strange", "state_differs", "produce_failed", "incidents_open",
            "pages_wrong", "commits_back")  # fmt: skip
    wrong = [name for name in zero if report[name]]
    wrong += ["rollups_differ"] if report["rollups_differ"] else []
    wrong += ["worker_crashes"] if report["worker_crashes"] else []
    wrong += ["recovery_max_s"] if report["recovery_max_s"] > 2 * settings.session_s else []
    wrong += ["rss_max_mb"] if report["rss_max_mb"] > RSS_MB else []
    wrong += ["rss_growth_mb"] if report["soak"] and report["rss_growth_mb"] > GROWTH_MB else []
    wrong += [name for name, found in report.get("scenarios", {}).items() if any(found.values())]
    wrong += ["troubled"] if "troubled" in report else []
    wrong += ["controls_failed"] if not report.get("controls_failed", True) else []
    return wrong


def settings_of(given: argparse.Namespace) -> Settings:
    return Settings(
        seed=given.seed,
        seconds=given.seconds,
        rate=given.rate,
        session_s=given.session,
        workers=given.workers,
        kinds=given.faults,
        patience_s=given.patience,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long things go wrong")
    parser.add_argument("--seed", type=int, help="of the plan; drawn and printed by default")
    parser.add_argument("--seeds", type=int, default=1, help="so many, one after the other")
    parser.add_argument("--rate", type=float, default=5_000.0, help="events a second")
    parser.add_argument("--session", type=float, default=10.0, help="the session time-out, seconds")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--faults", type=read_kinds, default="all", help="all, none, or names: a,b")
    parser.add_argument("--soak", action="store_true", help="no faults, no controls: flat memory?")
    parser.add_argument("--no-controls", dest="controls", action="store_false")
    parser.add_argument("--control-seconds", type=float, default=25.0, help="for each control")
    parser.add_argument("--scenarios", action="store_true", help="a topic recreated, and the like")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to wait for quiet")
    parser.add_argument("--home", type=Path, help="keep data and logs here")
    parser.add_argument("--json", action="store_true", help="say nothing but the last line")
    given = parser.parse_args(arguments)
    if given.soak:
        given.faults, given.controls = (), False
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(1_000_000)
    if given.json:
        sys.stderr = Path("/dev/null").open("w")  # noqa: SIM115 — until we end
    return given


def read_kinds(text: str) -> tuple[str, ...]:
    if text in {"all", "none"}:
        return tuple(BY_NAME) if text == "all" else ()
    names = tuple(text.split(","))
    if unknown := set(names) - set(BY_NAME):
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(sorted(unknown))}")
    return names


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
