"""For how long a long request holds up the event loop, in the loop and in a thread beside it.

``python -m benchmarks.gateway.loop_hold [--characters 200000]``, in milliseconds of processor
time, so that other work on the machine does not count: what the work costs is what it would
hold the loop for; in a thread it is the longest time for which the interpreter was not given
back to another thread. The least of `ROUNDS`.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gateway.asked import Asked
from gateway.context import counting, estimate_tokens
from gateway.guardrails import InputRules
from pipeline.encoders.static import StaticEncoder
from pipeline.gateway_settings import GuardrailSettings
from schemas.sensitive import Kind

ROUNDS = 5
#: Prose with code, keys and injections in it: dearer to look through than most.
TEXT = Path(__file__).parents[2] / "docs" / "gateway.md"


def measure_cost_ms(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return 1000 * (time.process_time() - begin)


def measure_hold_ms(work: Callable[[], object]) -> float:
    """Return the longest time of the processor that went by between two turns of this thread."""
    thread = threading.Thread(target=work)
    thread.start()
    worst_s, all_s, own_s = 0.0, time.process_time(), time.thread_time()
    while thread.is_alive():
        all_now_s, own_now_s = time.process_time(), time.thread_time()
        worst_s = max(worst_s, (all_now_s - all_s) - (own_now_s - own_s))
        all_s, own_s = all_now_s, own_now_s
    thread.join()
    return 1000 * worst_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--characters", type=int, default=200_000)
    characters = parser.parse_args().characters
    text = TEXT.read_text(encoding="utf-8")
    text = (text * (characters // len(text) + 1))[:characters]
    body = {"messages": [{"role": "user", "content": text}]}
    asked = Asked(request_id="r", operation="chat", tenant="", model="m", body=body)
    personal = InputRules(GuardrailSettings(input=dict.fromkeys(Kind, "observe")))
    injection = InputRules(GuardrailSettings(injection="observe"))
    count = counting(StaticEncoder.load().tokenizer)
    for name, work in (
        ("personal data", lambda: personal.check(asked)),
        ("injection", lambda: injection.check(asked)),
        ("tokenizer", lambda: count(text)),
        ("estimate of tokens", lambda: estimate_tokens(text)),
    ):
        work()
        cost_ms = min(measure_cost_ms(work) for _ in range(ROUNDS))
        hold_ms = min(measure_hold_ms(work) for _ in range(ROUNDS))
        print(f"{name:20} in the loop {cost_ms:7.1f} ms, in a thread {hold_ms:5.1f} ms at a time")


if __name__ == "__main__":
    main()
