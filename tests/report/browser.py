"""A real Chromium for the tests, by playwright. Absent: a skip on a laptop, a failure in CI."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


def missing(why: str) -> None:
    """Ends the test: in CI nobody would look at the pages otherwise."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{why}: the pages are not looked at in a browser")
    pytest.skip(f"{why}: the pages are not looked at in a browser")


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser with a profile of its own."""
    if CHROMIUM is None:
        missing("chromium is not installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=[*FLAGS, f"--disk-cache-dir={profile}"]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, address: str, *, size: Any = None, scheme: str = "light") -> Iterator[Any]:
    """A page that was opened; afterwards it must have said nothing on the console and asked for nothing but itself."""
    page = browser.new_page(viewport=size or DESK, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(address)
        yield page
        assert said == []
        assert [
            url for url in asked if url.split("#")[0] != address.split("#")[0] and not url.startswith("data:")
        ] == []
    finally:
        page.close()


def keep(page: Any, name: str, **options: Any) -> None:
    """Keeps a picture where the environment variable SCALETOT_SCREENSHOTS names a folder."""
    folder = os.environ.get("SCALETOT_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", **options)
