"""What a process of ours is set up with, and what it gives back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.process import release_memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_what_is_free_between_kept_blocks_is_given_back() -> None:
    blocks = [np.ones(100_000, np.uint8) for _ in range(600)]
    kept = blocks[::10]
    del blocks
    before = resident_bytes()
    release_memory()
    assert before - resident_bytes() > 30_000_000
    assert all(each.all() for each in kept)


PANDAS = """
import sys
import pipeline.preparer, pipeline.app
assert "pandas" not in sys.modules, "on import"
from pipeline.process import settle_process
settle_process()
import pyarrow as pa
assert pa.array(["a", None]).to_pylist() == ["a", None]
assert "pandas" not in sys.modules, "for an array"
import pandas
assert len(pandas.Series([1, 2])) == 2
"""


def test_arrow_does_not_bring_pandas_and_others_still_can() -> None:
    subprocess.run([sys.executable, "-c", PANDAS], check=True, timeout=120)


#: Nobody waits for what he does not use. What is imported says more than a clock on a busy machine.
SLOW = {"aiohttp", "chdb", "clickhouse_connect", "google", "httpx", "kafka", "numpy", "pyarrow"}
SLOW |= {"pydantic", "rich", "scipy", "tokenizers"}


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("pipeline.cli", set()),
        ("pipeline.config", {"pydantic"}),
        ("pipeline.app", SLOW - {"chdb", "google", "httpx", "rich", "scipy", "tokenizers"}),
    ],
)
def test_a_start_loads_only_what_is_needed(module: str, needed: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert SLOW & set(ended.stdout.split()) == needed
