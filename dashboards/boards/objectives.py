"""Objectives: what is left of each error budget, and how fast it goes."""

from __future__ import annotations

from dashboards.panels import Board, Colour, Column, Kind, Panel, Row, Threshold, Unit

#: Seconds of a window → its name, and the burn rate at which it is looked at twice.
_WINDOWS = ((3_600, "one hour", 14.4), (21_600, "six hours", 6.0), (259_200, "three days", 1.0))


def _burn(seconds: int, name: str, factor: float) -> Panel:
    return Panel(
        title=f"Burn rate over {name}",
        description="How many times too fast the budget is spent; at the line somebody is told,"
        " where a shorter window agrees.",
        kind=Kind.TIME_SERIES,
        width=8,
        thresholds=(Threshold(factor, Colour.RED),),
        sql=f"""
SELECT $__timeInterval(t.time) AS time, toString(objective) AS name,
       max(burn[{seconds}]) AS burn_rate
FROM objective_standings AS t
WHERE $__timeFilter(t.time)
GROUP BY time, name
ORDER BY time, name""",  # noqa: S608 — a constant
    )


OBJECTIVES = Board(
    uid="kizashi-objectives",
    title="Kizashi: Objectives",
    description="What is left of each error budget, and how fast it goes.",
    span="7d",
    rows=(
        Row(
            "How they stand",
            (
                Panel(
                    title="Objectives",
                    description="As they stood last in the time range. A budget below 0 is"
                    " overspent.",
                    kind=Kind.TABLE,
                    width=24,
                    height=8,
                    columns=(
                        Column("target", Unit.SHARE),
                        Column("good", Unit.SHARE),
                        Column("left_of_budget", Unit.SHARE),
                    ),
                    sql="""
SELECT objective, argMax(t.target, t.time) AS target, argMax(good_share, t.time) AS good,
       argMax(t.requests, t.time) AS requests,
       argMax(budget_left, t.time) AS left_of_budget,
       argMax(burn[3600], t.time) AS burn_1h, argMax(burn[21600], t.time) AS burn_6h,
       argMax(burn[259200], t.time) AS burn_3d,
       argMax(urgency, t.time) AS asks_for
FROM objective_standings AS t
WHERE $__timeFilter(t.time)
GROUP BY objective
ORDER BY left_of_budget, objective""",
                ),
                Panel(
                    title="Budget left",
                    description="Share of the error budget of each objective's own window.",
                    kind=Kind.TIME_SERIES,
                    unit=Unit.SHARE,
                    width=24,
                    sql="""
SELECT $__timeInterval(t.time) AS time, toString(objective) AS name,
       min(t.budget_left) AS left_of_budget
FROM objective_standings AS t
WHERE $__timeFilter(t.time)
GROUP BY time, name
ORDER BY time, name""",
                ),
            ),
        ),
        Row("How fast it goes", tuple(_burn(*window) for window in _WINDOWS)),
    ),
)
