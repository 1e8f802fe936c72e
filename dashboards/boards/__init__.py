"""The dashboards, in the order in which they are listed."""

from __future__ import annotations

from dashboards.boards.cost import COST
from dashboards.boards.health import HEALTH
from dashboards.boards.incident import INCIDENT
from dashboards.boards.incidents import INCIDENTS
from dashboards.boards.monitor import MONITOR
from dashboards.boards.objectives import OBJECTIVES
from dashboards.boards.overview import OVERVIEW
from dashboards.boards.quality import QUALITY
from dashboards.boards.requests import REQUESTS
from dashboards.panels import Board

BOARDS: tuple[Board, ...] = (
    OVERVIEW,
    QUALITY,
    MONITOR,
    INCIDENTS,
    INCIDENT,
    OBJECTIVES,
    COST,
    REQUESTS,
    HEALTH,
)
