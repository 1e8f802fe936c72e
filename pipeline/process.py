"""What belongs to the process as a whole: its allocator, its garbage collector, its threads.

Called once by whoever owns the process, when everything is imported and built.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from importlib.abc import MetaPathFinder

import pyarrow as pa
from threadpoolctl import threadpool_limits

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
#: A block of this size goes back to the system when it is freed. NumPy asks for huge pages from
#: here on, so that getting it again is cheap.
MAPPED_BYTES = 4 * 1024 * 1024
#: So much that is free may stay at the end of the heap.
SPARE_BYTES = 16 * 1024 * 1024
#: Threads that allocate share so many heaps, each with holes of its own.
HEAPS = 2


def settle_process() -> None:
    """Set up the process for a worker's life: long, steady, and of large arrays."""
    # NumPy's algebra gets one thread. Our matrices are small, and the threads of a pool mostly
    # spin and wait for each other: fitting eight references took ten times the processor time.
    threadpool_limits(1, user_api="blas")
    leave_pandas_out()
    bound_heaps()
    calm_garbage_collector()


def leave_pandas_out() -> None:
    """Let Arrow find no pandas, which it would import to ask whether a list is a frame of it.

    28 MB, and a third of the time that a process takes to come up. Others may still import it.
    """
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        # Arrow looks for it once, at its first array, and remembers.
        pa.array([])
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(MetaPathFinder):
    """Finds no pandas."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is left out", name=fullname)


def bound_heaps() -> None:
    """Keep glibc from holding on to what chunks needed for a moment; nothing on other systems.

    By itself it raises its thresholds to 32 and 64 MB as it sees large blocks come and
    go, and gives every thread a heap.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
    mallopt(_M_TRIM_THRESHOLD, SPARE_BYTES)
    mallopt(_M_ARENA_MAX, HEAPS)


def release_memory() -> None:
    """Give back what is free anywhere in glibc's heaps; nothing on other systems.

    It gives back the end of a heap by itself, and what lies between two blocks that are kept
    never: after chunks and snapshots, tens of megabytes.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def calm_garbage_collector() -> None:
    """Look for cycles a hundred times less often, and not among what is here to stay.

    The events of a chunk refer to no other object: looking through them costs a third
    of reading them, and finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
