"""What strangers write as model, route or tenant stays a value, on every way out.

A corpus and Hypothesis, through the real engine, the tables and JSON of the command, and the
log. Destinations have theirs in `contract/test_destinations.py`, Grafana's variables in
`test_dashboards.py`, the page in `test_page.py`.
"""

from __future__ import annotations

import io
import json
import logging
import re
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.asking import render_json, render_table
from pipeline.config import ClickHouseSettings, Config, DetectionSettings, EncoderSettings
from pipeline.errors import SinkUnavailable
from pipeline.incident_report import report, to_json_line
from pipeline.local import LocalPipeline
from pipeline.logs import LineFormatter
from pipeline.prices import Finding, FindingKind, render_findings
from pipeline.referencing import Outcome, render_outcomes
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.text import json_line, printable
from schemas.incident import Incident
from schemas.monitor import Dimension
from tests.support.events import make_event, to_bytes

ROOT = Path(__file__).parents[1]
CORPUS = (
    "x' OR '1'='1",
    "x'; DROP TABLE requests; --",
    "\\'; SELECT 1 /*",
    "{tenant:String}",
    "${tenant:sqlstring} $__all $__timeFilter(time)",
    "{{ .Labels.instance }} {{ define \"x\" }}",
    '"} or vector(1) #',
    "%s %(name)s {0.__class__} %n",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "<!channel> <@U1> @here [x](http://evil.example) `c` *b*",
    "[bold red]x[/] [link=http://evil.example]",
    "a\n2026-01-01 00:00:00,000 CRITICAL root: forged\r\nb",
    "\x1b[2J\x1b[1;1H\x1b]0;owned\x07 \x9b31m \x08\x08\x08",
    "\u202egnp.exe \u2066x\u2069 \u200b\u2028\u2029\x85",
    "=cmd|' /C calc'!A0",
    "../../etc/passwd",
    "__other__",
    "🙂" * 60,
    "e\u0301\u0301\u0301\u0301\u0301\u0301",
    "\\u0000 \\x00",
    " ",
)  # fmt: skip
values = st.sampled_from(CORPUS) | st.text(max_size=60)
ALLOWED = {"\n"}


def assert_harmless(shown: str) -> None:
    """Nothing in it moves a cursor, turns the direction of reading, or breaks a line unseen."""
    bad = [c for c in shown if c not in ALLOWED and not c.isprintable()]
    assert not bad, [unicodedata.name(c, repr(c)) for c in bad]
    assert shown.count("\n") == len(shown.splitlines()) - (not shown.endswith("\n"))


# --- The command -----------------------------------------------------------------------------


@given(st.lists(values, min_size=1, max_size=5))
def test_a_table_has_a_line_for_each_row(cells: list[str]) -> None:
    with io.StringIO() as output:
        render_table_to(output, cells)
        shown = output.getvalue()
    assert_harmless(shown)
    assert len(shown.splitlines()) == 2 + len(cells)


def render_table_to(output: io.StringIO, cells: list[str]) -> None:
    import pipeline.asking

    def make_console(**options: Any) -> Console:
        return Console(file=output, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.asking, "Console", make_console)
        render_table(("a", "b"), [(cell, cell) for cell in cells])


@given(values)
@example("\\[")
@example("\\[bold red]x")
@example("\\\\[/] [link=x]")
def test_brackets_in_a_table_are_no_markup(value: str) -> None:
    with io.StringIO() as output:
        render_table_to(output, [value])
        assert printable(value).rstrip() in output.getvalue()


@given(values)
def test_other_tables_are_harmless_too(value: str) -> None:
    finding = Finding(
        kind=FindingKind.UNPRICED, model=value, provider=value, requests=1, first_ms=2, last_ms=3
    )
    assert_harmless(render_findings([finding]))
    assert len(render_findings([finding, finding]).splitlines()) == 3
    assert_harmless(render_outcomes([Outcome(None, value, value)], as_json=False))


@given(st.dictionaries(values, values, max_size=4))
def test_json_reads_as_the_same_data_and_is_one_harmless_line(item: dict[str, str]) -> None:
    line = json_line(item)
    assert json.loads(line) == item
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u200b]", line)
    (row,) = render_json(("k",), [(json.dumps(item),)])
    assert json.loads(json.loads(row)["k"]) == item


# --- The log ---------------------------------------------------------------------------------


def raised(why: str) -> Exception:
    with pytest.raises(SinkUnavailable) as caught:
        raise SinkUnavailable(why)
    return caught.value


def log_of(message: str, *arguments: object, error: Exception | None = None) -> str:
    record = logging.LogRecord("n", logging.WARNING, "f", 1, message, arguments, None)
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    return LineFormatter().format(record)


@given(values, values)
def test_a_message_is_one_line_and_a_traceback_is_set_in(said: str, why: str) -> None:
    shown = log_of("no reference of %s: %s", said, why)
    assert_harmless(shown)
    assert "\n" not in shown
    shown = log_of("it ended: %s", said, error=raised(why))
    first, *rest = shown.split("\n")
    assert_harmless(shown)
    assert "n: it ended: " in first
    assert rest
    assert all(line.startswith("  | ") for line in rest)


def test_a_forged_entry_would_have_been_one() -> None:
    """The control: logging's own formatter is taken in by what ours is not."""
    record = logging.LogRecord("n", logging.WARNING, "f", 1, "of %s", (CORPUS[11],), None)
    assert "\n2026-01-01 00:00:00,000 CRITICAL root: forged" in logging.Formatter().format(record)
    assert "\n" not in LineFormatter().format(record)


def test_the_log_holds_no_personal_data() -> None:
    error = raised("Cannot parse 'ada@example.com' as UInt32")
    shown = log_of("refused: %s, card 4111 1111 1111 1111", "ada@example.com", error=error)
    assert "ada@example.com" not in shown
    assert "4111" not in shown
    assert "[email]" in shown


# --- The engine and the incidents ------------------------------------------------------------

EVENTS = 1_500
BAD = CORPUS[11] + CORPUS[1] + CORPUS[12]


@pytest.fixture(scope="module")
def played(embedded_path: Path) -> Iterator[tuple[Store, list[Incident]]]:
    """Traffic whose every label is from the corpus; one route begins to refuse."""
    config = Config(
        clickhouse=ClickHouseSettings(path=embedded_path, database="hostile"),
        detection=DetectionSettings(learn_events=100),
        encoder=EncoderSettings(kind="none"),
    )
    store = Store(config.clickhouse)
    store.migrate()
    now_ms = round(time.time() * 1000)
    pipeline = LocalPipeline(config, store, epoch="1")
    news = pipeline.feed([to_bytes(event(i, now_ms)) for i in range(EVENTS)], now_ms)
    yield store, [each for each in news if isinstance(each, Incident)]
    store.close()


def event(i: int, now_ms: int) -> dict[str, object]:
    route = BAD if i % 2 else CORPUS[0]
    return make_event(
        f"{CORPUS[i % len(CORPUS)]}{i}",
        time_ms=now_ms - (EVENTS - i) * 1_000,
        request_model="gpt-4o",
        provider=CORPUS[4],
        route=route,
        tenant=CORPUS[i % len(CORPUS)],
        region=CORPUS[8],
        refusal=i % 50 == 0 or (i > 1_000 and route == BAD),
    )  # fmt: skip


def test_every_value_comes_back_as_it_went_in(played: tuple[Store, list[Incident]]) -> None:
    store, _ = played
    for tenant in CORPUS:
        rows = store.rows(
            "SELECT count() FROM requests WHERE tenant = {tenant:String}", {"tenant": tenant}
        )
        assert rows[0][0] >= EVENTS // len(CORPUS), tenant
    assert store.rows("SELECT count(), uniqExact(tenant) FROM requests") == [(EVENTS, len(CORPUS))]


def test_an_incident_about_hostile_traffic_is_found_and_shown(
    played: tuple[Store, list[Incident]],
) -> None:
    _, incidents = played
    assert any(incident.cause.labels.get(Dimension.ROUTE) == BAD for incident in incidents)
    for incident in incidents:
        assert_harmless(report(incident))
        assert_harmless(to_json_line(incident))


# --- The page --------------------------------------------------------------------------------

#: What makes markup or code of a text.
DANGEROUS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    r"|createContextualFragment|javascript:"
)


def test_no_script_of_the_page_makes_markup_of_a_text() -> None:
    scripts = sorted((ROOT / "pipeline" / "web" / "static").glob("*.js"))
    ours = [file for file in scripts if file.name != "uplot.js"]
    assert ours
    for file in ours:
        source = file.read_text(encoding="utf-8")
        assert not DANGEROUS.findall(source), file.name
        # The one thing that is parsed is a picture of ours.
        assert source.count("DOMParser") == ("function icon(path)" in source)
        assert set(re.findall(r"\bicon\((\w+)\)", source)) <= {"path", "CHECK"}
    assert DANGEROUS.search('cell.innerHTML = "<b>" + name')
