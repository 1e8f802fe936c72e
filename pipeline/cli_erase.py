"""`kizashi erase`: remove what is stored of one user."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.sinks.erasure import Holdings


@click.command()
@click.option("--user", required=True, help="The id, as the gateway sends it in gateway.user.")
@click.option("--dry-run", is_flag=True, help="Say what would be erased, and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def erase(load: Callable[[], Config], user: str, dry_run: bool, yes: bool) -> None:
    """Erase the requests of a user, their texts, the samples taken of them, and ratings.

    They are found by the hashes of the id under every configured key. The user of
    ClickHouse needs ALTER: run it as the one who runs `kizashi init`.
    """
    from pipeline.build import read_user_keys
    from pipeline.core.users import hash_user
    from pipeline.sinks.clickhouse import Store
    from pipeline.sinks.erasure import Eraser

    config = load()
    keys = read_user_keys(config.privacy)
    if not keys:
        raise ConfigError("privacy.user_keys: without a key no user ids are stored")
    hashes = [hash_user(user, key) for key in keys]
    store = Store(config.clickhouse)
    try:
        store.use_database()
        eraser = Eraser(store)
        found = eraser.count(hashes)
        versions = ", ".join(key.version for key in keys)
        click.echo(f"found under {versions}: {_say(found)}")
        if dry_run or not found.total:
            return
        if not yes:
            click.confirm("Erase them for good?", abort=True)
        erased = eraser.erase(hashes)
    finally:
        store.close()
    click.echo(f"erased: {_say(erased)}")
    _say_what_stays(config)


def _say(held: Holdings) -> str:
    return (
        f"{held.requests} requests, {held.texts} texts, {held.samples} samples,"
        f" {held.ratings} ratings"
    )


def _say_what_stays(config: Config) -> None:
    kafka, hours = config.kafka, config.kafka.topics.retention_hours
    click.echo(
        f"what stays: counts without a user; {kafka.events_topic} and {kafka.feedback_topic}"
        f" hold the user's records for"
        f" {hours:g} h after they were sent, and a worker that reads them again stores them again;"
        " backups of yours",
        err=True,
    )
