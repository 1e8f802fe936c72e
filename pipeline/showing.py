"""`kizashi web`: the page over what is stored, in a process of its own."""

from __future__ import annotations

import sys
import threading
import time

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.sinks.clickhouse import open_store
from pipeline.web.front import Front, FrontThread


def show(config: Config, port: int | None = None) -> None:
    """Serve until the process is interrupted; `port` is used over the configured one.

    Raises:
        SinkUnavailable: ClickHouse is away, its directory is in use, or there is no schema.
        ConfigError: the page cannot be opened.
    """
    with open_store(config.clickhouse):
        changes = {"enabled": True} | ({} if port is None else {"port": port})
        web = config.web.model_copy(update=changes)
        with FrontThread(Front(config.model_copy(update={"web": web}), time.time)) as front:
            if front.page_url is None:
                raise ConfigError(f"web.port: the page cannot be opened on port {web.port}")
            print(f"Kizashi is at {front.page_url}", file=sys.stderr, flush=True)
            threading.Event().wait()
