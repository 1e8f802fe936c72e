"""Take the pictures in the documents of the page over a simulated company: `make screenshots`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Browser

from tests.support.page import MINUTES, PlayedCompany, browsing, open_page, settle

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SHOTS = {
    "page-overview": ("#/overview", 1280, 940),
    "page-quality": ("#/quality", 1280, 900),
    "page-incident": ("#/incidents", 1280, 1100),
}


def main() -> None:
    """Play up to the middle of an incident, and take every picture."""
    with tempfile.TemporaryDirectory() as folder:
        company = PlayedCompany(Path(folder), "screenshots")
        company.play(MINUTES)
        with company.serve() as url, browsing() as browser:
            for name, (view, width, height) in SHOTS.items():
                print(take(browser, url + view, name, width, height))
        company.store.close()


def take(browser: Browser, url: str, name: str, width: int, height: int) -> Path:
    page, complaints = open_page(browser, viewport={"width": width, "height": height})
    # The company has been there for half an hour.
    page.add_init_script("sessionStorage.setItem('range', '1800')")
    page.goto(url)
    settle(page)
    if name == "page-incident":
        page.locator("a.incident").first.click()
        page.wait_for_selector(".lead")
        settle(page)
    # The fonts and the bars' transitions.
    page.wait_for_timeout(1_000)
    file = IMAGES / f"{name}.png"
    page.screenshot(path=file)
    page.close()
    if complaints:
        raise SystemExit(f"{name}: {complaints}")
    return file


if __name__ == "__main__":
    main()
