"""axe-core on the page, in every state that it has: no finding at all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from inarch.tools.report import write_report
from inarch.tools.report_page import TEMPLATES

from tests.report.conftest import Open
from tests.report.run_folder import rewrite


def audit(page: Any) -> list[tuple[str, str, str]]:
    """What axe-core finds: rule, impact, the first element."""
    found = Axe().run(page).response["violations"]
    return [(item["id"], item["impact"], item["nodes"][0]["html"]) for item in found]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_whole_run(report: Path, open_page: Open, scheme: str, width: int) -> None:
    page = open_page(report, color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True).page
    assert audit(page) == []
    page.locator(".seg.base").first.click()
    page.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
    assert audit(page) == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_missing_and_wrong(run_folder: Path, tmp_path: Path, open_page: Open, scheme: str) -> None:
    for name in ("plan.json", "verify.json"):
        shutil.copy(run_folder / name, tmp_path)
    rewrite(tmp_path / "verify.json", ok=False, equivalence={"ok": False, "outputs": [], "first_site": {"site": "text.encoder"}})
    write_report(tmp_path, tmp_path / "report.html")
    assert audit(open_page(tmp_path / "report.html", color_scheme=scheme, bypass_csp=True).page) == []


# Without a browser: what axe cannot tell where something lies behind something else.


def colours(dark: bool) -> dict[str, tuple[float, float, float]]:
    """The style's colours, by name."""
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    light_block, dark_block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    text = light_block + (dark_block if dark else "")
    found = re.findall(r"--([\w-]+): #([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2});", text)
    return {name: (int(r, 16) / 255, int(g, 16) / 255, int(b, 16) / 255) for name, r, g, b in found}


def contrast(first: tuple[float, float, float], second: tuple[float, float, float]) -> float:
    """WCAG 2's contrast ratio."""
    lights = []
    for colour in (first, second):
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_every_ground(dark: bool) -> None:
    palette = colours(dark)
    for ground in ("paper", "raised", "faint", "note-tint"):
        for text in ("ink", "soft", "good", "bad"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for mark in ("focus", "base", "compiled", "text", "vision", "dense", "layer"):
        assert contrast(palette[mark], palette["paper"]) >= 2.5, mark
    assert contrast(palette["focus"], palette["paper"]) >= 3
