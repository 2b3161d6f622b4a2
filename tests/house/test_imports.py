"""Who may import whom: read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MAY_IMPORT: dict[str, set[str]] = {
    "structure": set(),
    "frontends": {"structure"},
    "passes": {"structure"},
    "compiler": {"structure", "frontends", "passes"},
    "runtime": {"structure", "frontends", "passes", "compiler"},
    "learning": {"structure", "frontends", "runtime"},
    "api": {"structure", "frontends", "passes", "compiler", "runtime"},
    "tools": {"structure", "frontends", "passes", "compiler", "runtime", "learning", "api"},
}
ROOMS = tuple(room for room in MAY_IMPORT if room != "api")

# Package -> where it may be imported: a room, or one file of a room.
CONFINED: dict[str, tuple[str, ...]] = {
    "torch": ("learning/", "frontends/fx.py"),
    "torchvision": ("learning/",),
    "transformers": ("learning/",),
    "accelerate": ("learning/",),
    "matplotlib": ("learning/plots.py", "tools/benchmarks/"),
    "onnxruntime": ("runtime/",),
    "networkx": ("structure/coupling.py",),
    "typer": ("tools/",),
    "rich": ("tools/",),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target, as a dotted name, and where it stands."""

    target: str
    level: int
    line: int


@dataclass(frozen=True)
class Source:
    """One module of inarch: its path below the repository's root, its dotted name, and what it imports."""

    path: str
    module: str
    imports: tuple[Import, ...]


def imports_of(tree: ast.AST) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, 0, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(f"{node.module or ''}.{alias.name}", node.level, node.lineno)


def without_typing_blocks(tree: ast.Module) -> ast.Module:
    body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    return ast.Module(body=body, type_ignores=[])


def sources() -> list[Source]:
    found: list[Source] = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(("inarch", *(parts[:-1] if parts[-1] == "__init__" else parts)))
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            found.append(Source(path.relative_to(ROOT).as_posix(), module, tuple(imports_of(tree))))
    for path in sorted((ROOT / "src" / "inarch").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        module = "inarch" if path.stem == "__init__" else f"inarch.{path.stem}"
        # The public face names every room for type checkers only; at run time it imports nothing.
        body = without_typing_blocks(tree) if path.stem == "__init__" else tree
        found.append(Source(path.relative_to(ROOT).as_posix(), module, tuple(imports_of(body))))
    return found


SOURCES = sources()
MODULES = {source.module for source in SOURCES}


def owner(target: str) -> str | None:
    """The longest module of inarch that ``target`` lies in: the name itself, or the module that defines it."""
    while target:
        if target in MODULES:
            return target
        target = target.rpartition(".")[0]
    return None


def room_of(module: str) -> str | None:
    """The room of a module of inarch, or None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def wrong_directions(found: list[Source]) -> list[str]:
    wrong: list[str] = []
    for source in found:
        room = room_of(source.module)
        if room is None or room == "__main__":
            continue
        for item in source.imports:
            if item.target.split(".")[0] != "inarch":
                continue
            target = room_of(owner(item.target) or item.target)
            if target is not None and target != room and target not in MAY_IMPORT[room]:
                wrong.append(f"{source.path}:{item.line} imports {item.target}: {room}/ may not know {target}/")
    return wrong


def test_rooms_import_one_way() -> None:
    assert wrong_directions(SOURCES) == []


@pytest.mark.parametrize(
    ("path", "module", "target"),
    [
        ("structure/plan.py", "inarch.structure.plan", "inarch.compiler.compile"),
        ("frontends/onnx_file.py", "inarch.frontends.onnx_file", "inarch.passes.prune"),
        ("learning/gates.py", "inarch.learning.gates", "inarch.compiler"),
        ("runtime/session.py", "inarch.runtime.session", "inarch.tools.cli"),
        ("compiler/compile.py", "inarch.compiler.compile", "inarch.api"),
    ],
)
def test_a_wrong_direction_is_seen(path: str, module: str, target: str) -> None:
    found = wrong_directions([Source(path, module, (Import(target, 0, 1),))])
    assert len(found) == 1
    assert target in found[0]


def test_every_room_has_modules() -> None:
    assert {room for room in ROOMS if not any(s.path.startswith(f"{room}/") for s in SOURCES)} == set()


def test_no_relative_imports() -> None:
    assert [f"{s.path}:{i.line}" for s in SOURCES for i in s.imports if i.level] == []


def test_rooms_are_reached_through_the_package() -> None:
    """``import compiler`` would load a second copy of a room under another name."""
    names = set(ROOMS)
    assert [f"{s.path}:{i.line}" for s in SOURCES for i in s.imports if not i.level and i.target.split(".")[0] in names] == []


@pytest.mark.parametrize("package", sorted(CONFINED))
def test_confined_packages(package: str) -> None:
    allowed = CONFINED[package]
    wrong = [
        f"{source.path}:{item.line}"
        for source in SOURCES
        for item in source.imports
        if not item.level and item.target.split(".")[0] == package and not source.path.startswith(allowed)
    ]
    assert wrong == []


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for source in SOURCES:
        targets = {owner(item.target) for item in source.imports if item.target.split(".")[0] == "inarch"}
        graph[source.module] = {target for target in targets if target is not None and target != source.module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_links_lead_to_the_rooms() -> None:
    for room in ROOMS:
        link = ROOT / "src" / "inarch" / room
        assert link.is_symlink(), room
        assert link.readlink() == Path("..", "..", room)
        assert (ROOT / room / "__init__.py").is_file(), room
