"""``python -m tests.report.pictures RUN FOLDER``: sections of a run's page as pictures, light and dark, for the README."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import FloatRect, Locator, sync_playwright

from inarch.tools.report import write_report

from tests.report.conftest import launch

SECTIONS = ("summary", "map", "examples")
WIDTH, MARGIN = 1000, 24
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
            page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme)
            page.goto(page_file.absolute().as_uri())
            page.add_style_tag(content="nav { visibility: hidden } section > :first-child { margin-top: 0 }")
            bases = page.locator(".seg.base")
            if bases.count():
                bases.first.click()
                page.evaluate("window.scrollTo(0, 0)")  # boxes are measured from the window's edge
            for name in SECTIONS:
                section = page.locator(f"section#{name}")
                if section.locator(".missing").count():
                    continue
                made.append(folder / f"{name}-{scheme}.png")
                shot = page.screenshot(clip=_around(section), full_page=True)
                Image.open(io.BytesIO(shot)).convert("RGB").quantize(256).save(made[-1], optimize=True)  # a third of the bytes
        browser.close()
    return made


def _around(section: Locator) -> FloatRect:
    """A section's content with a margin: the space above the first heading is the page's."""
    top, whole = section.locator(":scope > *").first.bounding_box(), section.bounding_box()
    assert top is not None
    assert whole is not None
    return {
        "x": whole["x"] - MARGIN,
        "y": top["y"] - MARGIN,
        "width": whole["width"] + 2 * MARGIN,
        "height": whole["y"] + whole["height"] - top["y"] + 2 * MARGIN,
    }


if __name__ == "__main__":
    sys.stdout.writelines(f"{picture}\n" for picture in take(Path(sys.argv[1]), Path(sys.argv[2])))
