"""What the process gives back."""

from __future__ import annotations

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
