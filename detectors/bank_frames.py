"""A snapshot as frames, array by array: nobody who writes it has to hold the whole of it.

A frame is its length and a MessagePack. The arrays come first; the last frame is the rest of
the state and says how many arrays there were, so that a snapshot that was cut off is known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

_LENGTH = struct.Struct("<I")
#: What an array belongs to: a group or an extra detector, and a part of it.
Owner = tuple[str, str]
Parts = dict[str, dict[str, npt.NDArray[np.generic]]]


class _Array(msgspec.Struct, array_like=True):
    owner: Owner
    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: memoryview


_decoder = msgspec.msgpack.Decoder(_Array)


def frame_state(state: Any) -> bytes:
    """Return one frame."""
    raw = msgspec.msgpack.encode(state)
    return _LENGTH.pack(len(raw)) + raw


def frame_arrays(owner: Owner, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Iterator[bytes]:
    """Yield a frame for each array."""
    for name, array in arrays.items():
        raw = memoryview(array.tobytes())
        yield frame_state(_Array(owner, name, array.dtype.str, array.shape, raw))


def split_frames(raw: bytes) -> list[memoryview]:
    """Return what the frames hold; raises ValueError where `raw` ends within one."""
    frames, at, view = [], 0, memoryview(raw)
    while at < len(raw):
        if at + _LENGTH.size > len(raw):
            raise ValueError("not a snapshot of this version: it is cut off")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > len(raw):
            raise ValueError("not a snapshot of this version: it is cut off")
        frames.append(view[at : at + length])
        at += length
    return frames


def read_arrays(frames: list[memoryview]) -> dict[str, Parts]:
    """Return owner → part → its arrays, which lie where the frames do.

    Raises:
        ValueError: a frame is no array.
    """
    found: dict[str, Parts] = {}
    for frame in frames:
        try:
            each = _decoder.decode(frame)
            array = np.frombuffer(each.raw, np.dtype(each.dtype)).reshape(each.shape)
        except (msgspec.MsgspecError, TypeError) as error:
            raise ValueError(f"not a snapshot of this version: {error}") from None
        owner, part = each.owner
        found.setdefault(owner, {}).setdefault(part, {})[each.name] = array
    return found
