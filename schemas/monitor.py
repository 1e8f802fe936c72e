"""Monitors: the keys that are watched, one per value of each configured grouping."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Dimension(StrEnum):
    """A column of an event by which traffic can be split."""

    PROVIDER = "provider"
    REQUEST_MODEL = "request_model"
    RESPONSE_MODEL = "response_model"
    ROUTE = "route"
    TENANT = "tenant"
    PROMPT_NAME = "prompt_name"
    PROMPT_VERSION = "prompt_version"
    REGION = "region"


#: In the order in which they stand in every table and key.
DIMENSIONS: tuple[Dimension, ...] = tuple(Dimension)

Grouping = tuple[Dimension, ...]

DEFAULT_GROUPINGS: tuple[Grouping, ...] = (
    (Dimension.REQUEST_MODEL,),
    (Dimension.RESPONSE_MODEL,),
    (Dimension.ROUTE,),
    (Dimension.REQUEST_MODEL, Dimension.ROUTE),
    (Dimension.TENANT,),
    (Dimension.PROMPT_NAME,),
    (Dimension.PROMPT_NAME, Dimension.PROMPT_VERSION),
    (Dimension.PROVIDER, Dimension.REGION),
)

#: What stands in place of a value once a grouping has as many monitors as its cap allows.
OTHER = "__other__"


class Monitor(NamedTuple):
    """One value of one grouping, e.g. ``route=support, request_model=gpt-4o``.

    `values` runs parallel to `grouping`. Hashable; its identity is its content.
    """

    grouping: Grouping
    values: tuple[str, ...]

    def labels(self) -> dict[str, str]:
        """Return ``{dimension: value}`` in the order of the grouping."""
        return {d.value: v for d, v in zip(self.grouping, self.values, strict=True)}

    def __str__(self) -> str:
        return ", ".join(f"{d.value}={v}" for d, v in zip(self.grouping, self.values, strict=True))


def grouping_name(grouping: Grouping) -> str:
    """Return the grouping as it stands in the column ``grouping``, e.g. ``request_model,route``."""
    return ",".join(grouping)


def parse_grouping(name: str) -> Grouping:
    """Inverse of `grouping_name`; raises ValueError for an unknown dimension or a repeated one."""
    grouping = tuple(Dimension(part.strip()) for part in name.split(","))
    if len(set(grouping)) != len(grouping):
        raise ValueError(f"a dimension stands twice in the grouping {name!r}")
    return grouping
