"""``python -m tests.report.pictures RUN FOLDER``: sections of a run's page as pictures, light and dark, for the README."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

from inarch.tools.report import write_report

from tests.report.conftest import launch

SECTIONS = ("summary", "map", "examples")
WIDTH = 1000
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def take(run: Path, folder: Path) -> list[Path]:
    """Write ``SECTION-SCHEME.png`` for every section that the run's page has something in."""
    folder.mkdir(parents=True, exist_ok=True)
    page_file = run / "report.html"
    write_report(run, page_file)
    made = []
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for scheme in SCHEMES:
            page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme, device_scale_factor=1.5)
            page.goto(page_file.absolute().as_uri())
            for name in SECTIONS:
                section = page.locator(f"section#{name}")
                if section.locator(".missing").count():
                    continue
                made.append(folder / f"{name}-{scheme}.png")
                section.screenshot(path=made[-1])
        browser.close()
    return made


if __name__ == "__main__":
    sys.stdout.writelines(f"{picture}\n" for picture in take(Path(sys.argv[1]), Path(sys.argv[2])))
