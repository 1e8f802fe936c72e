"""Runs alibi-detect's online MMD on streams from a file: ``python -m … STREAMS.npz OPTIONS``.

Runs in an environment of its own. OPTIONS is a JSON object; the last line of standard output is
the result, another one.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from alibi_detect.cd import MMDDriftOnline


def main() -> None:
    streams, options = np.load(sys.argv[1]), json.loads(sys.argv[2])
    found = [watch(streams, at, options) for at in range(options["streams"])]
    print(json.dumps(found))


def watch(streams: Any, at: int, options: dict[str, Any]) -> dict[str, Any]:
    """Configure a detector for stream `at`, and go through its nulls and its swaps."""
    began = time.process_time()
    detector = MMDDriftOnline(
        streams[f"reference_{at}"].astype(np.float32),
        ert=options["ert"],
        window_size=options["window"],
        n_bootstraps=options["bootstraps"],
        backend="pytorch",
        verbose=False,
    )
    configured = time.process_time()
    alarms, nulls = 0, streams[f"null_{at}"].astype(np.float32)
    for each in nulls:
        if detector.predict(each)["data"]["is_drift"]:
            alarms += 1
            detector.reset_state()
    watched = time.process_time()
    firsts = [first_alarm(detector, run) for run in streams[f"swaps_{at}"].astype(np.float32)]
    return {
        "configure_s": configured - began,
        "us": (watched - configured) / len(nulls) * 1e6,
        "run_length": len(nulls) / max(alarms, 0.5),
        #: Answers until the first alarm of each run, None where there is none.
        "firsts": firsts,
    }


def first_alarm(detector: Any, run: Any) -> int | None:
    detector.reset_state()
    for at, each in enumerate(run):
        if detector.predict(each)["data"]["is_drift"]:
            return at + 1
    return None


if __name__ == "__main__":
    main()
