"""The page in a real browser: its views render, follow what is stored, and complain of nothing.

Skipped with the reason where there is no Chromium, also in CI: it is a system package
that a runner may lack. A runner that has one names it in ``CHROMIUM``; then it is used,
and what does not start fails.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from pipeline.config import WebSettings
from pipeline.web.front import Front, FrontThread
from tests.support.page import SmallTraffic, browsing, open_page, settle

pytestmark = pytest.mark.chromium
VIEWS = ("overview", "quality", "incidents", "cost", "requests", "health", "monitor", "sql")
DEADLINE_MS = 30_000
expect.set_options(timeout=DEADLINE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def traffic(browser: Browser, embedded_path: Path) -> Iterator[SmallTraffic]:
    traffic = SmallTraffic(embedded_path, f"t{uuid.uuid4().hex[:12]}")
    traffic.feed()
    yield traffic
    traffic.store.close()


@pytest.fixture(scope="module")
def url(traffic: SmallTraffic) -> Iterator[str]:
    with traffic.serve() as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that has complained of nothing when the test is over."""
    page, complaints = open_page(browser, viewport={"width": 1280, "height": 900})
    page.set_default_timeout(DEADLINE_MS)
    yield page
    page.close()
    assert complaints == []


def test_every_view_renders(page: Page, url: str) -> None:
    for view in VIEWS:
        page.goto(f"{url}#/{view}")
        expect(page.locator("h1")).to_be_visible()
        if view != "sql":
            settle(page)
        assert page.locator(".failed").count() == 0, page.locator(".failed").all_inner_texts()


def test_the_overview_shows_numbers_pictures_and_the_open_incident(page: Page, url: str) -> None:
    page.goto(f"{url}#/overview")
    settle(page)
    assert page.locator(".stat .value").count() == 8
    assert page.locator(".u-over").count() == 6
    expect(page.locator("a.incident").first).to_contain_text("Refusals")
    expect(page.locator("nav .count")).to_have_text("1")
    # What came with an event stays text.
    assert page.locator("main b", has_text="acme").count() == 0


def test_what_is_stored_is_seen_without_reloading(
    page: Page, url: str, traffic: SmallTraffic
) -> None:
    page.goto(f"{url}#/cost")
    settle(page)
    cost = page.locator(".stat .value").first
    before = cost.inner_text()
    traffic.feed(300)
    expect(cost).not_to_have_text(before)


def test_an_incident_tells_its_story(page: Page, url: str) -> None:
    page.goto(f"{url}#/incidents")
    page.locator("a.incident").first.click()
    expect(page.locator(".lead")).to_contain_text("Refusals")
    expect(page.locator(".life .done").first).to_contain_text("Changed")
    expect(page.locator(".compare b").last).to_contain_text("%")
    expect(page.locator(".u-over")).to_have_count(1)
    expect(page.locator("td", has_text="support").first).to_be_visible()
    page.go_back()
    expect(page.locator("a.incident").first).to_be_visible()


def test_a_monitor_is_chosen_by_keyboard(page: Page, url: str) -> None:
    page.goto(f"{url}#/quality")
    settle(page)
    second = page.locator("button.monitor").nth(1)
    name = second.locator(".who").inner_text()
    second.focus()
    page.keyboard.press("Enter")
    expect(page.locator("button.monitor[aria-pressed=true] .who")).to_have_text(name)
    expect(page.locator("h2.plain")).to_contain_text(name)
    assert page.locator(".split .u-over").count() == 2


def test_sql_is_answered_and_refused(page: Page, url: str) -> None:
    page.goto(f"{url}#/sql")
    box = page.get_by_label("SQL", exact=True)
    box.fill("SELECT route, count() AS n FROM requests GROUP BY route ORDER BY route")
    box.press("Control+Enter")
    expect(page.locator("tbody tr")).to_have_count(2)
    box.fill("SELECT '<img src=x onerror=alert(1)>' AS harmless")
    box.press("Control+Enter")
    expect(page.locator("td", has_text="<img")).to_be_visible()


def test_a_refusal_is_shown(browser: Browser, url: str) -> None:
    # The browser itself logs a status of 400, so what it complains of is not looked at.
    page, _ = open_page(browser)
    page.goto(f"{url}#/sql")
    page.get_by_label("SQL", exact=True).fill("DROP TABLE requests")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("readonly")
    page.close()


@pytest.mark.parametrize("view", ["overview", "quality", "incidents", "sql"])
def test_a_phone_needs_no_scrolling_sideways(browser: Browser, url: str, view: str) -> None:
    page, complaints = open_page(
        browser, viewport={"width": 360, "height": 740}, color_scheme="dark"
    )
    page.goto(f"{url}#/{view}")
    expect(page.locator("h1")).to_be_visible()
    if view != "sql":
        settle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()
    assert complaints == []


def test_an_empty_range_says_what_to_do(page: Page, url: str, traffic: SmallTraffic) -> None:
    page.goto(f"{url}#/requests?tenant=nobody")
    settle(page)
    expect(page.locator("code", has_text="kizashi demo")).to_be_visible()


def test_a_token_is_asked_for_and_kept_for_the_tab(browser: Browser, traffic: SmallTraffic) -> None:
    token = "a-token-of-many-characters"
    settings = WebSettings(port=0, token=SecretStr(token))
    front = Front(traffic.config.model_copy(update={"web": settings}), lambda: 1.0)
    with FrontThread(front):
        page, _ = open_page(browser)
        page.goto(f"{front.page_url}#/sql")
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_label("Token")).to_have_value("")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("button", name="Run")).to_be_visible()
        assert page.context.cookies() == []
        page.close()
