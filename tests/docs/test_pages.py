"""The documentation's pages: commands are understood, cheap ones and Python run, links lead somewhere, the plan is real."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import inarch as package
from inarch.structure.axis_rules import RULES
from inarch.structure.errors import PlanError
from inarch.structure.plan import dump_plan, lint_text, parse_plan
from inarch.tools.benchmarks.twin import TwinEncoders
from inarch.tools.towers import save_model

from tests.docs.pages import blocks, prose, work_in
from tests.tools import conftest, test_cli_page
from tests.tools.conftest import Run
from tests.zoo import build

pytest.importorskip("onnxruntime")

inarch = conftest.inarch  # the fixture

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
BLOCKS = {"tutorial.md": 1, "plan.md": 1, "exactness.md": 1, "passes.md": 3, "coupling.md": 3, "faq.md": 0, "learning.md": 1}
"""Python blocks of the pages that are run here."""

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def lines(page: Path, *fences: str) -> Iterator[str]:
    """The shell lines of these blocks, continued ones in one piece."""
    for block in blocks(page, *fences):
        yield from block.replace("\\\n", " ").splitlines()


COMMANDS = [
    (page, line) for page in PAGES for line in lines(page, "", "sh") if line.startswith("inarch ") and page.name != "cli.md"
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value.name if isinstance(value, Path) else value)
def test_every_command_is_understood(page: Path, line: str, inarch: Run) -> None:
    if "--help" in line:  # prints and leaves
        assert inarch(*test_cli_page.words(line)).code == 0
    else:
        test_cli_page.test_every_command_is_understood(line)


def test_there_are_commands() -> None:
    seen = {page.name for page, _ in COMMANDS}
    assert {"README.md", "tutorial.md", "plan.md", "passes.md", "faq.md", "learning.md", "report.md"} <= seen


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small two-tower ``model.onnx``, ``plan.json`` and ``compiled.onnx``."""
    folder = tmp_path_factory.mktemp("pages")
    ir.save(build("two_tower", 1).model, folder / "model.onnx")
    plan = package.make_plan(folder / "model.onnx", keep=0.7, method="similarity")
    package.save_plan(plan, folder / "plan.json")
    package.compile(folder / "model.onnx", plan, folder / "compiled.onnx")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with those files."""
    return work_in(tmp_path, made, monkeypatch)


def do(line: str, run: Run) -> None:
    """One line of a block that is run: a command of inarch, perhaps into a file; a new folder; a copy."""
    match shlex.split(line):
        case ["mkdir", folder]:
            Path(folder).mkdir()
            return
        case ["cp", file, folder]:
            shutil.copy(file, folder)
            return
    assert line.startswith("inarch "), line
    done = run(*test_cli_page.words(line))
    assert done.code == 0, (line, done.err)
    _, into, target = line.partition(" > ")
    if into:
        Path(target).write_text(done.out, encoding="utf-8")


@pytest.mark.parametrize("name", ["tutorial.md", "faq.md", "passes.md"])
def test_what_is_cheap_is_run_in_order(name: str, inarch: Run, here: Path) -> None:
    if name == "tutorial.md":  # it begins with the model alone
        for path in here.iterdir():
            if path.name != "model.onnx":
                path.unlink()
    for line in lines(DOCS / name, "sh"):
        do(line, inarch)
    if name == "tutorial.md":
        assert {"compiled.onnx", "int8.onnx"} <= {path.name for path in here.iterdir()}
        text = (here / "report.html").read_text(encoding="utf-8")
        assert "vision.encoder.layer.2.ffn" in text


@pytest.mark.parametrize("name", [name for name, count in BLOCKS.items() if count])
def test_the_python_runs(name: str, here: Path) -> None:
    found = blocks(DOCS / name, "python")
    names: dict[str, Any] = {"__name__": "page"}
    rules = dict(RULES)
    try:
        for number, block in enumerate(found, 1):
            exec(compile(block, f"{name}, block {number}", "exec", dont_inherit=True), names)
    finally:
        RULES.clear()
        RULES.update(rules)


def test_all_python_of_these_pages_is_run() -> None:
    assert {name: len(blocks(DOCS / name, "python")) for name in BLOCKS} == BLOCKS
    assert not blocks(ROOT / "CONTRIBUTING.md", "python")


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower().replace("`", "")).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    broken = []
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(link)
        elif anchor:
            titles = re.findall(r"^#+ (.*)$", prose(target), re.MULTILINE)
            if anchor not in map(slug, titles):
                broken.append(link)
    assert not broken


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The model of docs/plan.md in the working folder; the page's plan."""
    save_model(TwinEncoders(layers=1, width=32, heads=2, hidden=64).build(), tmp_path / "tiny.onnx")
    monkeypatch.chdir(tmp_path)
    (text,) = blocks(DOCS / "plan.md", "json")
    return text


def test_the_plan_on_the_page_is_what_the_tool_makes(tiny: str, inarch: Run) -> None:
    (line,) = re.findall(r"`(inarch plan make tiny\.onnx [^`]*)`", (DOCS / "plan.md").read_text(encoding="utf-8"))
    do(line, inarch)
    assert Path("plan.json").read_text(encoding="utf-8") == tiny


def test_the_plan_on_the_page_is_read_and_compiled(tiny: str, inarch: Run) -> None:
    assert not lint_text(tiny)
    assert dump_plan(parse_plan(tiny)) == tiny
    Path("plan.json").write_text(tiny, encoding="utf-8")
    Path("model.onnx").write_bytes(Path("tiny.onnx").read_bytes())
    for line in lines(DOCS / "plan.md", "sh"):
        do(line, inarch)
    assert package.compile("tiny.onnx", parse_plan(tiny), "small.onnx").lowered.segments


def test_the_mistake_on_the_page_is_what_lint_says(tiny: str, inarch: Run) -> None:
    (line,) = [line for line in lines(DOCS / "plan.md", "") if line.startswith("error: ")]
    assert tiny.count('"keep": "0-63"') == 2
    Path("plan.json").write_text(tiny.replace('"keep": "0-63"', '"keep": "0-64"', 1), encoding="utf-8")
    done = inarch("plan", "lint", "plan.json")
    assert done.code == 2
    assert line in done.err.splitlines()


def test_every_code_of_lint_is_on_the_page() -> None:
    def kinds(kind: type[PlanError]) -> Iterator[type[PlanError]]:
        for inner in kind.__subclasses__():
            yield inner
            yield from kinds(inner)

    text = (DOCS / "plan.md").read_text(encoding="utf-8").partition("stable code")[2].partition("## ")[0]
    codes = {kind.code for kind in kinds(PlanError) if kind.__module__ == PlanError.__module__}
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == codes
