"""What the page shows of the panels: their definitions, and their rows for a time range.

The panels are those of Grafana (`dashboards.boards`): title, SQL, unit, thresholds and
kind stand there once. However many look on, a panel is asked for once a second at most.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import msgspec

from dashboards.boards import BOARDS
from dashboards.filling import Span, fill
from dashboards.panels import Board, Kind, Panel
from dashboards.sql import variable_options
from pipeline.errors import KizashiError
from pipeline.web.reading import Reader

#: A panel's result is shared by everyone who asks for the same within a second; so many are held.
MAX_HELD = 256
Chosen = Mapping[str, tuple[str, ...]]


def board_name(board: Board) -> str:
    """Return the name by which the page knows a board: ``kizashi-cost`` is ``cost``."""
    return board.uid.removeprefix("kizashi-")


def describe_boards() -> list[dict[str, Any]]:
    """Return every board as plain JSON values, without the SQL."""
    return [_describe_board(board) for board in BOARDS]


def _describe_board(board: Board) -> dict[str, Any]:
    number = 0
    rows = []
    for row in board.rows:
        panels = []
        for panel in row.panels:
            panels.append(_describe_panel(panel, number))
            number += 1
        rows.append({"title": row.title, "panels": panels})
    return {
        "name": board_name(board),
        "title": board.title.removeprefix("Kizashi: "),
        "description": board.description,
        "variables": [str(v) for v in board.variables],
        "rows": rows,
    }


def _describe_panel(panel: Panel, number: int) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(panel)
    del described["sql"]
    return {"id": number, **described}


class Pictures:
    """Asks for panels, with what was asked lately held."""

    def __init__(self, reader: Reader, threads: Executor) -> None:
        self._reader = reader
        self._threads = threads
        self._boards = {board_name(board): board for board in BOARDS}
        self._held: OrderedDict[tuple[str, bool], asyncio.Future[bytes]] = OrderedDict()

    async def board(self, name: str, span: Span, chosen: Chosen, only: Sequence[int] = ()) -> bytes:
        """Return ``{"<panel>": result, …, "marks": result}``; one is rows or ``{"error": …}``.

        Raises:
            KeyError: there is no such board.
        """
        board = self._boards[name]
        wanted = {str(n): p.sql for n, p in enumerate(board.panels) if not only or n in only}
        if any(p.kind is Kind.TIME_SERIES for p in board.panels):
            wanted["marks"] = board.marks
        results = await asyncio.gather(
            *(self._ask(fill(sql, span, chosen), unix=True) for sql in wanted.values())
        )
        parts = (b'"%b":%b' % (n.encode(), r) for n, r in zip(wanted, results, strict=True))
        return b"{" + b",".join(parts) + b"}"

    async def options(self, name: str) -> bytes:
        """Return ``{"<variable>": result, …}``: the values that each variable offers.

        Raises:
            KeyError: there is no such board.
        """
        variables = self._boards[name].variables
        results = await asyncio.gather(
            *(self._ask(variable_options(v), unix=True) for v in variables)
        )
        parts = (b'"%b":%b' % (v.encode(), r) for v, r in zip(variables, results, strict=True))
        return b"{" + b",".join(parts) + b"}"

    async def _ask(self, sql: str, *, unix: bool) -> bytes:
        key = (sql, unix)
        held = self._held.get(key)
        if held is None:
            held = asyncio.ensure_future(self._read(sql, unix=unix))
            self._held[key] = held
            while len(self._held) > MAX_HELD:
                self._held.popitem(last=False)
            asyncio.get_running_loop().call_later(1.0, self._held.pop, key, None)
        # Whoever asked first may go away; the others still wait for it.
        return await asyncio.shield(held)

    async def _read(self, sql: str, *, unix: bool) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._threads, lambda: self._reader.read(sql, unix_times=unix)
            )
        except KizashiError as error:
            return msgspec.json.encode({"error": str(error)})
