"""The traffic behind the demo: when requests of a real service arrived, and how long they were.

The trace is the Azure LLM inference trace 2023 in one small file; what was
changed in it, and under which licence it stands, is in ``data/ATTRIBUTION.md``.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct

HOUR_MS = 3_600_000
FILE = "azure_llm_inference_2023.npz"
#: The first request came at 18:15:46 and the last at 19:14:20.
_HOUR_BEGAN = dt.datetime(2023, 11, 16, 18, 15)  # noqa: DTZ001 (the source names no zone)
_MICROSECOND = dt.timedelta(microseconds=1)


class Trace(Struct, frozen=True):
    """n requests in order of arrival; every array has shape (n,)."""

    #: Milliseconds since the hour began, 0 to `HOUR_MS`.
    arrival_ms: npt.NDArray[np.int64]
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    #: From the coding service; the others are conversations.
    is_code: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.arrival_ms)


def load_trace() -> Trace:
    """Read the trace that comes with the package."""
    file = resources.files(__package__).joinpath("data", FILE)
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as packed:
        return Trace(
            arrival_ms=np.cumsum(packed["gap_ms"], dtype=np.int64),
            input_tokens=packed["input_tokens"].astype(np.int64),
            output_tokens=packed["output_tokens"].astype(np.int64),
            is_code=np.unpackbits(packed["is_code"], count=len(packed["gap_ms"])).astype(np.bool_),
        )


def pack_trace(conversations: Path, code: Path, target: Path) -> None:
    """Make the packed file from the two published ones (CSV, gzipped), which is how it was made.

    ``python -m pipeline.demo.trace CONV.csv.gz CODE.csv.gz TARGET.npz``
    """
    rows = [(*row, False) for row in _read_rows(conversations)]
    rows += [(*row, True) for row in _read_rows(code)]
    arrival, input_tokens, output_tokens, is_code = zip(*sorted(rows), strict=True)
    np.savez_compressed(
        target,
        # Gaps compress to half of what the times would; the first is from the start of the hour.
        gap_ms=np.diff(np.array(arrival), prepend=0).astype(np.uint16),
        input_tokens=np.array(input_tokens, np.uint16),
        output_tokens=np.array(output_tokens, np.uint16),
        is_code=np.packbits(is_code),
    )


def _read_rows(file: Path) -> list[tuple[int, int, int]]:
    """Arrival (milliseconds since the hour began), input tokens, output tokens."""
    with gzip.open(file, "rt", encoding="ascii", newline="") as stream:
        rows = csv.DictReader(stream)
        return [
            (_arrival_ms(r["TIMESTAMP"]), int(r["ContextTokens"]), int(r["GeneratedTokens"]))
            for r in rows
        ]


def _arrival_ms(timestamp: str) -> int:
    # Seven decimals stand in the file; datetime takes six.
    moment = dt.datetime.strptime(timestamp[:26], "%Y-%m-%d %H:%M:%S.%f")  # noqa: DTZ007
    return (moment - _HOUR_BEGAN) // _MICROSECOND // 1000


if __name__ == "__main__":
    import sys

    pack_trace(*map(Path, sys.argv[1:4]))
