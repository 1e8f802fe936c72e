"""The store that the demo plays on: emptied when it holds nothing but an earlier demo."""

from __future__ import annotations

import logging

from msgspec import Struct

from pipeline.config import ClickHouseSettings, Config
from pipeline.sinks.clickhouse import Store

logger = logging.getLogger(__name__)

#: Rows of the demo are known by their topic, which begins with this.
TOPIC = "demo"
#: Where the demo goes when the configured database holds real traffic.
OWN_DATABASE = "kizashi_demo"
#: What people have said beforehand; no demo leaves it behind.
_SAID = ("silences", "planned_effects", "reference_orders")


class Stage(Struct, frozen=True):
    """A migrated, empty store, and the configuration that leads to it."""

    store: Store
    config: Config

    @property
    def is_own(self) -> bool:
        """True when `kizashi sql` has to be told the database."""
        return self.config.clickhouse.database == OWN_DATABASE


def set_stage(config: Config) -> Stage:
    """Open the configured store, or a database beside it where that holds real traffic.

    Raises:
        SinkUnavailable: ClickHouse is away, or its directory is in use.
    """
    store = Store(config.clickhouse)
    store.migrate()
    if _holds_real_traffic(store):
        store.close()
        logger.warning("the database holds real traffic: the demo plays in %s", OWN_DATABASE)
        config = _with_database(config, OWN_DATABASE)
        store = Store(config.clickhouse)
        store.migrate()
    store.empty(keep=_SAID)
    return Stage(store, config)


def _holds_real_traffic(store: Store) -> bool:
    rows = store.rows(
        "SELECT count() FROM requests WHERE NOT startsWith(topic, {topic:String})", {"topic": TOPIC}
    )
    return bool(rows[0][0])


def _with_database(config: Config, database: str) -> Config:
    settings: ClickHouseSettings = config.clickhouse.model_copy(update={"database": database})
    return config.model_copy(update={"clickhouse": settings})
