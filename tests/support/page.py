"""The built-in page over a simulated company, caught in the middle of an incident."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline.config import (
    ClickHouseSettings,
    Config,
    DetectionSettings,
    EncoderSettings,
    WebSettings,
)
from pipeline.demo.company import Company
from pipeline.local import LocalPipeline
from pipeline.sinks.clickhouse import Store
from pipeline.web.front import Front, FrontThread
from pipeline.web.server import Extension
from schemas.event import Event
from tests.support.events import make_event, to_bytes

#: Two incidents are open then: a template that refuses, and a provider that fails.
MINUTES = 31
STEP_MS = 30_000
#: Where Debian, Ubuntu and others put it; `CHROMIUM` names another.
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Return the browser's path, if there is one."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class PlayedCompany:
    """A pipeline that the company's records are fed to, a stretch of time after the other."""

    def __init__(self, path: Path, database: str, *, reads_texts: bool = True) -> None:
        self.config = Config(
            clickhouse=ClickHouseSettings(path=path, database=database),
            encoder=EncoderSettings(kind="static" if reads_texts else "none"),
            web=WebSettings(port=0),
        )
        self.store = Store(self.config.clickhouse)
        self.store.migrate()
        start_ms = round(time.time() * 1000) - MINUTES * 60_000
        self._pipeline = LocalPipeline(self.config, self.store, epoch="1", topic="demo")
        self._records = iter(Company(start_ms=start_ms).records())
        self._held = next(self._records)
        self.now_ms = start_ms

    def play(self, minutes: float) -> None:
        """Feed so much of the company's time."""
        end_ms = self.now_ms + round(minutes * 60_000)
        while self.now_ms < end_ms:
            self.now_ms += STEP_MS
            batch = []
            while self._held.time_ms <= self.now_ms:
                batch.append(self._held.raw)
                self._held = next(self._records)
            self._pipeline.feed(batch, self.now_ms)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Serve the page, up to where the company stands; gives its address."""
        front = Front(self.config, lambda: self.now_ms / 1000)
        with FrontThread(front):
            assert front.page_url
            yield front.page_url


class SmallTraffic:
    """Half an hour of two routes, in seconds: one of them begins to refuse."""

    SIZE = 1_200
    SPAN_MS = 30 * 60_000

    def __init__(self, path: Path, database: str, **web: Any) -> None:
        self.config = Config(
            clickhouse=ClickHouseSettings(path=path, database=database),
            detection=DetectionSettings(learn_events=100),
            encoder=EncoderSettings(kind="none"),
            web=WebSettings(port=0, **web),
        )
        self.store = Store(self.config.clickhouse)
        self.store.migrate()
        self._pipeline = LocalPipeline(self.config, self.store, epoch="1")
        self.now_ms = round(time.time() * 1000)
        self._sent = 0

    def feed(self, size: int = SIZE) -> None:
        """Store so many events more, the last of them now."""
        events = [self._event(i, size) for i in range(size)]
        self._pipeline.feed([to_bytes(event) for event in events], self.now_ms)
        self._sent += size

    def _event(self, i: int, size: int) -> Event:
        refuses = i > size * 0.7 and i % 2 == 0
        return make_event(
            f"e{self._sent + i}",
            time_ms=self.now_ms - self.SPAN_MS + i * self.SPAN_MS // size,
            request_model=("gpt-4o", "gpt-4o-mini")[i % 3 == 0],
            provider="openai",
            route="support" if refuses or i % 5 else "search",
            tenant="<b>acme</b>",
            refusal=refuses or i % 50 == 0,
            duration_s=1.0 + i % 7,
            input_tokens=1_000,
            output_tokens=100,
        )

    @contextmanager
    def serve(self, *extensions: Extension) -> Iterator[str]:
        """Serve the page up to now; gives its address."""
        front = Front(self.config, lambda: self.now_ms / 1000 + 1, extensions=extensions)
        with FrontThread(front):
            assert front.page_url
            yield front.page_url


@contextmanager
def browsing() -> Iterator[Browser]:
    """A headless browser; skips the test where there is none."""
    if (executable := find_chromium()) is None:
        pytest.skip("no Chromium here: install it, or name it in CHROMIUM")
    with sync_playwright() as playwright:
        # In a container the tests are root and there are no namespaces for a sandbox.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, **options: Any) -> tuple[Page, list[str]]:
    """Return a page, and the list in which everything that it complains of is gathered."""
    page = browser.new_page(**options)
    complaints: list[str] = []
    page.on("console", lambda m: m.type in {"error", "warning"} and complaints.append(m.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, complaints


def settle(page: Page) -> None:
    """Wait until what is shown has been brought up to date once more."""
    before = page.evaluate("document.getElementById('main').dataset.updated ?? ''")
    changed = "before => (document.getElementById('main').dataset.updated ?? '') !== before"
    page.wait_for_function(changed, arg=before, timeout=30_000)
