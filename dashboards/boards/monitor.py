"""One signal of one monitor: its rate beside the baseline, the evidence, and its alarms."""

from __future__ import annotations

from dashboards.panels import Board, Column, Kind, Panel, Row, Subject, Unit
from dashboards.sql import MONITOR_NAME, is_chosen, rate_of
from schemas.signal import COUNTED, Signal

_MONITOR = is_chosen(Subject.MONITOR, MONITOR_NAME)
_VERDICTS = (
    f"FROM verdicts AS v WHERE $__timeFilter(v.time) AND {_MONITOR}"
    f" AND {is_chosen(Subject.SIGNAL, 'signal')}"
)
_ALARM_NAME = (
    "arrayStringConcat(arrayMap((k, v) -> concat(k, '=', v), mapKeys(monitor),"
    " mapValues(monitor)), ', ')"
)
_ALARMS = (
    f"FROM alarms AS a FINAL WHERE {is_chosen(Subject.MONITOR, _ALARM_NAME)}"
    f" AND family IN (SELECT family {_VERDICTS})"
)


def _counted(part: int) -> str:
    """The column that the chosen signal is counted by; what is not counted here gives nothing."""
    cases = [
        is_chosen(Subject.SIGNAL, f"'{signal}'") + f", {columns[part]}"
        for signal, columns in COUNTED.items()
        if signal in {Signal.REFUSAL, Signal.ERROR, Signal.TRUNCATION}
    ]
    return f"multiIf({', '.join(cases)}, 0)"


#: Where a change of this monitor began, as far as the detectors can tell.
CHANGES_SQL = f"""
SELECT change_time AS time, change_time AS timeEnd,
       concat('Change: ', signal, ', ', direction) AS title,
       concat('Alarm at ', toString(a.time)) AS text,
       concat('kizashi,', family) AS tags
{_ALARMS} AND transition = 'raised' AND $__timeFilter(change_time)
ORDER BY time
LIMIT 100"""

_PICTURES = Row(
    "The signal",
    (
        Panel(
            title="Rate and baseline",
            description="By the minute where the signal is a count, and as the detector sees it,"
            " since the estimated change. The band is the baseline's confidence interval.",
            kind=Kind.TIME_SERIES,
            unit=Unit.SHARE,
            band=("baseline_low", "baseline_high"),
            width=24,
            sql=f"""
SELECT time, max(minute_rate) AS rate, max(change_rate) AS since_change,
       max(low) AS baseline_low, max(high) AS baseline_high
FROM (
    SELECT $__timeInterval(minute) AS time,
           {rate_of(f"sum({_counted(0)})", f"sum({_counted(1)})")} AS minute_rate,
           NULL AS change_rate, NULL AS low, NULL AS high
    FROM rollup_1m WHERE $__timeFilter(minute) AND {_MONITOR}
    GROUP BY time
    UNION ALL
    SELECT $__timeInterval(v.time) AS time, NULL AS minute_rate,
           argMax(current_count / nullIf(current_total, 0), v.time) AS change_rate,
           argMax(v.baseline_low, v.time) AS low, argMax(v.baseline_high, v.time) AS high
    {_VERDICTS}
    GROUP BY time
)
GROUP BY time
ORDER BY time""",  # noqa: S608 — as above
        ),
        Panel(
            title="Evidence and threshold",
            description="Odds that something has changed, as a power of ten: every unit is ten"
            " times surer. An alarm is raised where the line crosses the threshold (dashed).",
            kind=Kind.TIME_SERIES,
            dashed=("threshold",),
            width=24,
            sql=f"""
SELECT $__timeInterval(v.time) AS time,
       greatest(0, max(log_evidence) / log(10)) AS evidence,
       max(log_threshold) / log(10) AS threshold
{_VERDICTS}
GROUP BY time
ORDER BY time""",
        ),
        Panel(
            title="Alarms of the monitor",
            description="What was raised and cleared, whenever it was.",
            kind=Kind.TABLE,
            width=24,
            height=6,
            columns=(Column("time", Unit.TIME), Column("change_time", Unit.TIME)),
            sql=f"""
SELECT a.time AS time, transition, signal, direction, e_value, threshold, change_time
{_ALARMS}
ORDER BY time DESC, signal, transition
LIMIT 50""",
        ),
    ),
)

MONITOR = Board(
    uid="kizashi-monitor",
    title="Kizashi: Monitor",
    description="One signal of one monitor: its rate, its baseline, and the evidence.",
    variables=(Subject.MONITOR, Subject.SIGNAL),
    marks=CHANGES_SQL,
    rows=(_PICTURES,),
)
