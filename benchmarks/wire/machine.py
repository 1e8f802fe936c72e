"""What a measurement ran on: processor, memory, kernel, versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

_NAMED = ("faust-streaming", "aiokafka", "chdb", "msgspec", "numpy")


def describe() -> dict[str, str]:
    """Return names and values as they stand in the documentation."""
    described = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    return described | {name: version(name) for name in _NAMED}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
