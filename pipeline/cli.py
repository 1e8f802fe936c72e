"""The command `kizashi`.

A command imports what it needs when it is run: `kizashi --version` or a mistyped option need
none of it, and loading all of it takes seconds.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pipeline.cli_canary import canary
from pipeline.cli_configured import configured
from pipeline.cli_deadletter import deadletter
from pipeline.cli_erase import erase
from pipeline.cli_incident import incident
from pipeline.cli_reconcile import reconcile
from pipeline.cli_silence import silence
from pipeline.cli_slo import slo
from pipeline.errors import ConfigError, KizashiError
from pipeline.retry import START_PATIENCE_S
from pipeline.sinks.text import json_line, printable

if TYPE_CHECKING:
    from pipeline.config import Config

#: Of people, in UTC.
TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])


def main() -> NoReturn:
    """Entry point: errors that we raise on purpose end in one line, and never in a traceback."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away (`kizashi replay … | head`): not our failure, and nobody to tell.
        sys.stderr.close()
        sys.exit(141)
    except KizashiError as error:
        click.echo(f"kizashi: {printable(str(error))}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    sys.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file [default: $KIZASHI_CONFIG, then ./kizashi.toml].",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.version_option(package_name="kizashi", prog_name="kizashi")
@click.pass_context
def cli(context: click.Context, config_file: Path | None, verbose: bool) -> None:
    """Kizashi: the first sign that an LLM gateway's answers have changed."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        stream=sys.stderr,
    )
    from pipeline.logs import log_in_lines

    log_in_lines()
    # What Kafka's client says while it tries again is for those who look for it.
    logging.getLogger("kafka").setLevel(logging.INFO if verbose else logging.CRITICAL)
    context.obj = lambda: _load(config_file)


def _load(config_file: Path | None) -> Config:
    from pipeline.config import load_config

    return load_config(config_file)


cli.add_command(deadletter)
cli.add_command(canary)
cli.add_command(erase)
cli.add_command(incident)
cli.add_command(reconcile)
cli.add_command(silence)
cli.add_command(slo)


@cli.command()
@click.option("--grow", is_flag=True, help="Add partitions to topics that have fewer than planned.")
@configured
def init(config: Config, grow: bool) -> None:
    """Create the topics and bring the ClickHouse schema up to date. Safe to run again."""
    from pipeline.sinks.clickhouse import Store
    from pipeline.topics import create_topics

    store = Store(config.clickhouse)
    try:
        applied = store.migrate()
    finally:
        store.close()
    click.echo(
        f"ClickHouse: {len(applied)} migrations applied" if applied else "ClickHouse: up to date"
    )
    report = create_topics(config.kafka, grow=grow)
    for verb in ("created", "grown", "kept"):
        if names := getattr(report, verb):
            click.echo(f"topics {verb}: {', '.join(names)}")
    for d in report.differences:
        click.echo(
            f"{d.topic}: {d.what} is {d.standing}, planned {d.planned}; {d.remedy}", err=True
        )


@cli.command()
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=START_PATIENCE_S,
    show_default=True,
    help="Wait so many seconds for Kafka and ClickHouse before giving up the start.",
)
@configured
def worker(config: Config, patience: float) -> None:
    """Run a worker until it is told to stop. More of them share the work."""
    # What is loaded stays: to look through it for garbage, time and again, is a tenth of the start.
    gc.disable()
    from pipeline.app import run_worker

    gc.enable()
    run_worker(config, patience)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    help="Play at this many times the recorded pace [default: as fast as possible].",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@configured
def produce(config: Config, file: Path, speed: float | None, quiet: bool) -> None:
    """Send a file of events to Kafka: NDJSON, gzip, or - for standard input."""
    from pipeline.producing import produce_file

    report = produce_file(config.kafka, file, speed=speed, show_progress=not quiet)
    click.echo(f"{report.sent} sent, {report.failed} failed, {report.seconds:.1f} s")
    if report.failed:
        sys.exit(1)


@cli.command()
@click.argument("files", type=click.Path(path_type=Path, allow_dash=True), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="An object per line.")
@click.option(
    "--keep",
    is_flag=True,
    help="Store in the configured ClickHouse [default: in an engine that is thrown away].",
)
@configured
def replay(config: Config, files: tuple[Path, ...], as_json: bool, keep: bool) -> None:
    """Play files of events through the pipeline without a broker: what would have been found?"""
    from pipeline.replay import replay as play
    from pipeline.replay import to_json_line, to_words

    for item in play(config, files, keep=keep):
        line = to_json_line(item) if as_json else to_words(item)
        if line is not None:
            click.echo(line)


@cli.command()
@click.option(
    "--for",
    "seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="Seconds in which the hour is played.",
)
@click.option("--json", "as_json", is_flag=True, help="No view; the last line is a JSON object.")
@click.option(
    "--kafka",
    is_flag=True,
    help="Through a broker and the Faust worker: the configured one, or one started for this.",
)
@click.option(
    "--gateway",
    "over_gateway",
    is_flag=True,
    help="OpenAI clients ask our gateway, whose provider misbehaves on a script.",
)
@click.option("--stay", is_flag=True, help="Keep the page open after the hour, until Ctrl+C.")
@click.option(
    "--clickhouse-port",
    type=click.IntRange(0, 65_535),
    help="Answer ClickHouse's clients here, read-only; 0 is any free port.",
)
@configured
def demo(
    config: Config,
    seconds: float,
    as_json: bool,
    kafka: bool,
    over_gateway: bool,
    stay: bool,
    clickhouse_port: int | None,
) -> None:
    """Play an hour of a simulated company in a minute: what it looks like when things go wrong."""
    from pipeline.demo.start import play_demo, simulated

    config = _with_endpoint(config, clickhouse_port)
    set_up = simulated
    if over_gateway:
        with _gateway_installed():
            from gateway.demo import set_up
    play_demo(config, seconds, as_json=as_json, over_kafka=kafka, stay=stay, set_up=set_up)


@contextlib.contextmanager
def _gateway_installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as missing:
        message = f"no module {missing.name}: install kizashi[gateway]"
        raise ConfigError(message) from None


@cli.command("web")
@click.option("--port", type=click.IntRange(0, 65_535), help="Of the page; 0 is any free port.")
@click.option(
    "--clickhouse-port",
    type=click.IntRange(0, 65_535),
    help="Answer ClickHouse's clients here, read-only (embedded store only).",
)
@configured
def web_command(config: Config, port: int | None, clickhouse_port: int | None) -> None:
    """Show what is stored in a browser, until Ctrl+C. Workers show it by themselves."""
    from pipeline.showing import show

    show(_with_endpoint(config, clickhouse_port), port)


def _with_endpoint(config: Config, port: int | None) -> Config:
    if port is None:
        return config
    if config.clickhouse.mode != "embedded":
        raise ConfigError("--clickhouse-port: a ClickHouse server answers its clients itself")
    endpoint = config.clickhouse.endpoint.model_copy(update={"enabled": True, "port": port})
    clickhouse = config.clickhouse.model_copy(update={"endpoint": endpoint})
    return config.model_copy(update={"clickhouse": clickhouse})


@cli.command()
@click.option("--host", help="Address to listen at [default: gateway.host].")
@click.option("--port", type=click.IntRange(0, 65_535), help="0 is any free port.")
@configured
def gateway(config: Config, host: str | None, port: int | None) -> None:
    """Serve OpenAI's API in front of the configured upstreams; every request makes an event."""
    with _gateway_installed():
        from gateway.main import run_gateway
    run_gateway(config, host, port)


@cli.command()
@click.argument("query")
@click.option("--json", "as_json", is_flag=True, help="An object per row.")
@configured
def sql(config: Config, query: str, as_json: bool) -> None:
    """Ask ClickHouse a question. Read-only."""
    from pipeline.asking import ask, render_json, render_table

    names, rows = ask(config, query)
    if as_json:
        for line in render_json(names, rows):
            click.echo(line)
    else:
        render_table(names, rows)


@cli.group("config")
def config_group() -> None:
    """Look at the configuration."""


@config_group.command("show")
@configured
def config_show(config: Config) -> None:
    """Print the configuration as it is in force, secrets masked."""
    click.echo(json.dumps(config.shown(), indent=2, ensure_ascii=False))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="An object per finding.")
@configured
def doctor(config: Config, as_json: bool) -> None:
    """Look at everything that a worker needs; say what is wrong and how to mend it."""
    from pipeline.doctor import examine

    sick = False
    for finding in examine(config):
        sick = sick or not finding.well
        if as_json:
            click.echo(json_line(finding))
            continue
        mark = click.style("ok  ", fg="green") if finding.well else click.style("BAD ", fg="red")
        click.echo(f"{mark} {finding.check}: {printable(finding.detail)}")
        if finding.remedy:
            click.echo(f"     mend it: {finding.remedy}")
    if sick:
        sys.exit(1)


@cli.group()
def prices() -> None:
    """The price table: what is in it, whether it fits the traffic, and your own over it."""


@prices.command("list")
@click.option("--model", help="Only this model.")
@click.option("--at", type=click.DateTime(["%Y-%m-%d"]), help="Only what was in force on a day.")
@click.option("--toml", "as_toml", is_flag=True, help="In the form in which tables are loaded.")
@configured
def prices_list(config: Config, model: str | None, at: dt.datetime | None, as_toml: bool) -> None:
    """Print the prices in US dollars per million tokens."""
    from pipeline.core.pricing import PriceTable
    from pipeline.prices import configured_table, render_prices, select, table_to_toml

    at_ms = None if at is None else round(at.replace(tzinfo=dt.UTC).timestamp() * 1000)
    entries = select(configured_table(config.prices.file), model, at_ms)
    click.echo(table_to_toml(PriceTable(entries)) if as_toml else render_prices(entries), nl=False)


@prices.command("check")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@configured
def prices_check(config: Config, file: Path | None) -> None:
    """Check a price file, and the prices in force against the models that were seen."""
    from pipeline.asking import read_usage
    from pipeline.prices import check, configured_table, render_findings

    table = configured_table(file or config.prices.file)
    click.echo(f"{len(table.entries)} prices are well-formed")
    findings = check(table, read_usage(config))
    click.echo(render_findings(findings), nl=False)
    if findings:
        sys.exit(1)


@prices.command("load")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("kizashi-prices"),
    show_default=True,
    help="Directory in which the table is kept.",
)
def prices_load(file: Path, into: Path) -> None:
    """Check a price file and keep a copy of it; prints the configuration that uses it."""
    from pipeline.prices import config_lines, install_table

    click.echo(config_lines(install_table(file, into)), nl=False)


@cli.group()
def reference() -> None:
    """What is normal: fit it, look at it, keep a version, announce a planned change."""


@reference.command("fit")
@click.option("--model", "models", multiple=True, help="A request model [default: all].")
@click.option("--since", type=TIME, help="Only answers from then on.")
@click.option("--until", type=TIME, help="Only answers up to then.")
@click.option("--with-alarms", is_flag=True, help="Also answers from times of alarm.")
@click.option("--json", "as_json", is_flag=True, help="An object per model.")
@configured
def reference_fit(
    config: Config,
    models: tuple[str, ...],
    since: dt.datetime | None,
    until: dt.datetime | None,
    with_alarms: bool,
    as_json: bool,
) -> None:
    """Fit references to stored answers now. A new version is in force unless one is pinned."""
    from pipeline.referencing import Span, fit_now, open_desk, render_outcomes

    span = Span(_to_ms(since), _to_ms(until), with_alarms)
    with open_desk(config) as desk:
        outcomes = fit_now(config, desk, models, _now_ms(), span)
    click.echo(render_outcomes(outcomes, as_json=as_json), nl=False)
    if not outcomes or any(each.line is None for each in outcomes):
        sys.exit(1)


@reference.command("list")
@click.option("--model", help="Only this request model.")
@click.option("--json", "as_json", is_flag=True, help="An object per version.")
@configured
def reference_list(config: Config, model: str | None, as_json: bool) -> None:
    """List every version of every model, and say which is in force."""
    from pipeline.referencing import list_lines, open_desk, render_lines

    with open_desk(config) as desk:
        lines = list_lines(desk, model)
    click.echo(render_lines(lines, as_json=as_json), nl=False)


@reference.command("show")
@click.argument("model")
@click.option("--version", "name", help="A version, or its beginning [default: the one in force].")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@configured
def reference_show(config: Config, model: str, name: str | None, as_json: bool) -> None:
    """Describe a reference: what it rests on, what the prompt explains, what is left."""
    from pipeline.referencing import describe, open_desk, render_description

    with open_desk(config) as desk:
        description = describe(desk, model, name)
    click.echo(render_description(description, as_json=as_json), nl=False)


@reference.command("pin")
@click.argument("model")
@click.option("--version", "name", help="A version, or its beginning [default: the one in force].")
@click.option("--none", "unpinned", is_flag=True, help="Let the newest version count again.")
@click.option("--json", "as_json", is_flag=True, help="An object per version in force.")
@configured
def reference_pin(
    config: Config, model: str, name: str | None, unpinned: bool, as_json: bool
) -> None:
    """Keep a version in force: nothing is fitted by itself until it is unpinned or reset."""
    from pipeline.referencing import open_desk, pin, render_lines, unpin

    if unpinned and name is not None:
        raise click.UsageError("--none and --version exclude each other")
    with open_desk(config) as desk:
        pinned = unpin(desk, model, _now_ms()) if unpinned else [pin(desk, model, name, _now_ms())]
    click.echo(render_lines(pinned, as_json=as_json), nl=False)


@reference.command("reset")
@click.option("--model", "models", multiple=True, help="All traffic of a request model.")
@click.option("--grouping", help="Dimensions of one slice, such as route or prompt_name.")
@click.option("--value", "values", multiple=True, help="Its values, one for each dimension.")
@click.option("--incident", help="The monitors that an incident is about.")
@click.option("--note", default="", help="What changes; is kept with the order.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@configured
def reference_reset(
    config: Config,
    models: tuple[str, ...],
    grouping: str | None,
    values: tuple[str, ...],
    incident: str | None,
    note: str,
    as_json: bool,
) -> None:
    """Announce a planned change: what it touches learns anew, and its alarms end.

    What the change did is reported instead of paged: see `kizashi reference effects`.
    """
    from pipeline.referencing import choose_slices, render_reset, reset

    slices = choose_slices(config, models, grouping, values, incident)
    order = reset(config.kafka, slices, note, _now_ms())
    click.echo(render_reset(order, as_json=as_json), nl=False)


@reference.command("effects")
@click.option("--json", "as_json", is_flag=True, help="An object per rate.")
@configured
def reference_effects(config: Config, as_json: bool) -> None:
    """Say what planned changes did, the latest first."""
    from pipeline.referencing import open_desk, render_effects

    with open_desk(config) as desk:
        effects = desk.list_effects()
    click.echo(render_effects(effects, as_json=as_json), nl=False)


def _now_ms() -> int:
    return round(time.time() * 1000)


def _to_ms(moment: dt.datetime | None) -> int | None:
    return None if moment is None else round(moment.replace(tzinfo=dt.UTC).timestamp() * 1000)


@cli.group("dashboards")
def dashboards_group() -> None:
    """Grafana dashboards: made from code, brought to a server."""


@dashboards_group.command("build")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory in which the JSON is kept [default: dashboards/generated].",
)
def dashboards_build(into: Path | None) -> None:
    """Write dashboards and alert rules as Grafana's JSON, for provisioning."""
    from dashboards.alerts import write_alerts
    from dashboards.build import GENERATED, write_all

    changed = write_all(into or GENERATED) + write_alerts(into or GENERATED)
    for file in changed:
        click.echo(f"{'written' if file.exists() else 'removed'}: {file}")
    if not changed:
        click.echo("the dashboards are up to date")


@dashboards_group.command("push")
@click.option("--url", required=True, help="Address of Grafana (12.2 or later).")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with a service account's token [default: $GRAFANA_TOKEN].",
)
@click.option("--allow-plaintext", is_flag=True, help="Send the token over http:// too.")
@click.option("--clickhouse-host", help="Make the data source too: ClickHouse, seen from Grafana.")
@click.option("--clickhouse-port", type=click.IntRange(1, 65_535), default=9000, show_default=True)
@click.option(
    "--clickhouse-protocol",
    type=click.Choice(["native", "http"]),
    default="native",
    show_default=True,
)
@click.option("--clickhouse-secure", is_flag=True, help="Grafana speaks TLS to ClickHouse.")
@click.option("--clickhouse-user", default="reader", show_default=True)
@click.option("--clickhouse-database", default="kizashi", show_default=True)
@click.option("--alerts/--no-alerts", default=True, help="Bring the alert rules [default: yes].")
def dashboards_push(
    url: str, token_file: Path | None, allow_plaintext: bool, alerts: bool, **clickhouse: Any
) -> None:
    """Bring folder, dashboards, data source and alert rules to a Grafana. Safe to run again.

    The data source's password is taken from $CLICKHOUSE_READER_PASSWORD; without it, Grafana
    keeps the one it has. With a PagerDuty integration key in $PAGERDUTY_INTEGRATION_KEY, the
    rules get a contact point and a notification policy.
    """
    from dashboards.push import Action, ClickHouse, Unusable, push

    source = None
    if clickhouse["clickhouse_host"] is not None:
        source = ClickHouse(
            host=clickhouse["clickhouse_host"],
            port=clickhouse["clickhouse_port"],
            protocol=clickhouse["clickhouse_protocol"],
            secure=clickhouse["clickhouse_secure"],
            username=clickhouse["clickhouse_user"],
            database=clickhouse["clickhouse_database"],
            password=os.environ.get("CLICKHOUSE_READER_PASSWORD"),
        )
    try:
        outcomes = push(
            url,
            _read_token(token_file),
            source,
            alerts=alerts,
            pagerduty_key=os.environ.get("PAGERDUTY_INTEGRATION_KEY", "").strip(),
            allow_plaintext=allow_plaintext,
        )
    except Unusable as error:
        raise ConfigError(str(error)) from None
    failed = False
    for outcome in outcomes:
        failed = failed or outcome.action is Action.FAILED
        click.echo(str(outcome), err=outcome.action is Action.FAILED)
    if failed:
        sys.exit(1)


def _read_token(file: Path | None) -> str:
    """A token on the command line would be seen by everyone who lists processes."""
    if file is None:
        return os.environ.get("GRAFANA_TOKEN", "").strip()
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token file {file}: {type(error).__name__}") from None
