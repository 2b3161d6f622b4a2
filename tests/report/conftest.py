"""A Chromium, and pages in it. Whoever runs these tests has one: they are deselected by default, never skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from inarch.tools.report import write_report

from tests.report.run_folder import make_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str | None:
    """The browser that is asked for, or one on the path; None for playwright's own."""
    return os.environ.get("INARCH_CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


def launch(playwright: Playwright) -> Browser:
    """Headless; a root user's sandbox is none."""
    return playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"] if os.geteuid() == 0 else [])


@dataclass
class Opened:
    """A page, and what it said and asked for while it was loaded and used."""

    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests."""
    with sync_playwright() as playwright:
        made = launch(playwright)
        yield made
        made.close()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="session")
def report(run_folder: Path) -> Path:
    """Its page."""
    write_report(run_folder, run_folder / "report.html")
    return run_folder / "report.html"


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """``open_page(path, color_scheme="dark")``: a page of its own; what it says on the console fails the test."""
    contexts = []
    everything: list[Opened] = []

    def opened(path: Path, **options: Any) -> Opened:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options))
        contexts.append(context)
        found = Opened(context.new_page())
        everything.append(found)
        found.page.on("console", lambda message: found.messages.append(message.text))
        found.page.on("pageerror", lambda error: found.messages.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(path.as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()
    assert [message for found in everything for message in found.messages] == []
