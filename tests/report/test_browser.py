"""The page in a real browser: it loads in silence, and pointing, clicking, keys and filters do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from inarch.structure.plan import save_plan
from inarch.tools.report import write_report

from tests.report.conftest import Open
from tests.tools.test_report_structure import large_plan, large_table

pytestmark = pytest.mark.browser

TEXT, VISION = "text.encoder.layer.0.ffn", "vision.encoder.layer.0.ffn"


def site(page: Page, name: str) -> Locator:
    return page.locator(f'.site[data-name="{name}"]')


def reader(page: Page) -> Locator:
    """What the first vision FFN reads from the first text FFN."""
    return site(page, VISION).locator(".seg.cross")


def base(page: Page) -> Locator:
    return site(page, TEXT).locator(".seg.base")


def focused(page: Page) -> str:
    """Name of the site that has the focus."""
    name: str = page.evaluate("document.activeElement.closest('.site')?.dataset.name ?? ''")
    return name


def test_it_asks_for_nothing(report: Path, open_page: Open) -> None:
    found = open_page(report)
    assert found.requests == [report.as_uri(), *(url for url in found.requests if url.startswith("data:"))]
    expect(found.page).to_have_title("Two small towers · inarch report")
    expect(found.page.locator(".example img").first).to_be_visible()
    assert found.page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")


def test_pointing_shows_what_is_shared(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    reader(page).hover()
    expect(base(page)).to_have_class("seg base tied")
    expect(page.locator("#map-text")).to_contain_text("16 of")
    expect(page.locator("#map-text")).to_contain_text("are those of text 0 FFN, stored there once")
    assert page.locator("#map-ties path").count() == 1
    page.locator("h1").hover()
    expect(base(page)).to_have_class("seg base")
    expect(page.locator("#map-text")).to_contain_text("Point at a segment")


def test_a_click_keeps_and_another_follows(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    reader(page).click()
    page.locator("h1").hover()
    expect(reader(page)).to_have_class("seg cross chosen")
    reader(page).click()
    expect(base(page)).to_have_class("seg base chosen")
    expect(reader(page)).to_have_class("seg cross tied")
    assert focused(page) == TEXT
    page.locator("#map-links button", has_text="vision 0 FFN").click()
    assert focused(page) == VISION
    page.keyboard.press("Escape")
    assert page.locator(".chosen").count() == 0


def test_the_map_by_keyboard_alone(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    assert page.locator('.seg[tabindex="0"]').count() == 1
    page.locator('input[name="shares"]:checked').focus()
    page.keyboard.press("Tab")
    assert focused(page) == "text.encoder.layer.0.attention"
    expect(page.locator("#map-text")).to_contain_text("text.encoder.layer.0.attention")
    outline = page.evaluate("getComputedStyle(document.activeElement.querySelector('i')).outlineStyle")
    assert outline == "solid"
    for _ in range(2):  # past the attention's second lane
        page.keyboard.press("ArrowDown")
    assert focused(page) == TEXT
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert focused(page).startswith("vision.")
    reader(page).focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert focused(page) == TEXT
    page.keyboard.press("Enter")
    assert focused(page) == VISION
    page.keyboard.press("ArrowUp")
    assert focused(page) == "vision.encoder.layer.0.attention"


def test_enter_goes_to_a_bases_readers_in_turn(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    first = site(page, "text.encoder.layer.0.attention").locator(".seg.base").first
    first.focus()
    readers = []
    for _ in range(first.evaluate("(cell) => cell.dataset.readers.split(' ').length") + 1):
        page.keyboard.press("Enter")
        readers.append(focused(page))
        page.keyboard.press("Enter")
        assert focused(page) == "text.encoder.layer.0.attention"
    assert len(set(readers)) == len(readers) - 1  # the last is the first one again


def test_filters(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    visible = page.locator(".site:visible")
    status = page.locator("#map-shown")
    expect(visible).to_have_count(12)
    page.get_by_role("radio", name="FFN", exact=True).check(force=True)
    expect(visible).to_have_count(6)
    expect(status).to_have_text("6 of 12 sites")
    page.get_by_role("radio", name="vision", exact=True).check(force=True)
    expect(visible).to_have_count(3)
    expect(page.locator(".column.text")).to_be_hidden()
    assert page.locator('.seg[tabindex="0"]:visible').count() == 1
    page.get_by_role("radio", name="all", exact=True).nth(0).check(force=True)
    page.get_by_role("radio", name="that share").check(force=True)
    expect(visible).to_have_count(3)  # the vision tower's attentions share nothing
    # A link out of what is filtered takes the filters back.
    reader(page).click()
    page.locator("#map-links button").click()
    expect(visible).to_have_count(12)
    assert focused(page) == TEXT


def test_dark(report: Path, open_page: Open) -> None:
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    light = open_page(report).page.evaluate(shade)
    dark = open_page(report, color_scheme="dark").page
    assert dark.evaluate(shade) < 120 < 600 < light
    assert dark.evaluate("getComputedStyle(document.documentElement).colorScheme") in ("normal", "light dark")


def test_on_paper(report: Path, open_page: Open) -> None:
    page = open_page(report, color_scheme="dark").page
    page.get_by_role("radio", name="vision", exact=True).check(force=True)
    page.emulate_media(media="print")
    expect(page.locator(".top")).to_be_hidden()
    expect(page.locator("#map-tools")).to_be_hidden()
    expect(page.locator(".site:visible")).to_have_count(12)  # a filter is nothing for paper
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_nothing_is_wider_than_the_window(report: Path, open_page: Open, width: int) -> None:
    page = open_page(report, viewport={"width": width, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_examples(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    pictures = page.locator(".example:visible")
    assert pictures.count() == 30
    expect(page.locator(".box.compiled").first).to_be_visible()
    page.locator('.show-boxes[value="compiled"]').uncheck()
    expect(page.locator(".box.compiled").first).to_be_hidden()
    expect(page.locator(".box.truth").first).to_be_visible()
    page.locator(".only-changed").first.check()
    expect(pictures).to_have_count(16)
    assert page.locator(".only-changed").nth(1).is_checked()


def test_boxes_lie_where_they_should(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    picture = page.locator(".picture").first
    inside = picture.bounding_box()
    frame = picture.locator(".box.truth rect").last
    share = float(frame.get_attribute("x") or "nan") / 100
    found = frame.bounding_box()
    assert inside is not None
    assert found is not None
    assert found["x"] == pytest.approx(inside["x"] + share * inside["width"], abs=4)


def test_commands_are_copied(report: Path, open_page: Open) -> None:
    page = open_page(report, permissions=["clipboard-read", "clipboard-write"]).page
    page.locator("#copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    assert "inarch verify model.onnx plan.json compiled.onnx" in page.evaluate("navigator.clipboard.readText()")


def test_it_reads_without_its_script(report: Path, open_page: Open) -> None:
    page = open_page(report, java_script_enabled=False).page
    expect(page.locator(".site")).to_have_count(12)
    expect(reader(page)).to_be_visible()
    expect(page.locator("#map-tools")).to_be_hidden()
    expect(page.locator("#map-detail")).to_be_hidden()


def test_a_large_models_map_stays_small(tmp_path: Path, open_page: Open) -> None:
    save_plan(large_plan(large_table()), tmp_path / "plan.json")
    write_report(tmp_path, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
    page = open_page(tmp_path / "report.html").page
    expect(page.locator(".site")).to_have_count(96)
    assert page.locator("*").count() < 5000
    site(page, "vision.layer.23.ffn").locator(".seg.cross").click()
    expect(site(page, "text.layer.23.ffn").locator(".seg.base")).to_have_class("seg base tied")
