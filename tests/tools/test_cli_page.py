"""docs/cli.md: every command on the page is one, with the options it is shown with; what needs no training is run, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from inarch.structure.cost import SHIPPED, Limits
from inarch.tools import cli

from tests.tools.conftest import Run

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def lines(fence: str) -> list[str]:
    """The commands of all blocks with this word after the fence."""
    blocks = re.findall(rf"^```{fence}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("inarch ")]


def words(line: str) -> list[str]:
    return shlex.split(line.partition(" > ")[0], comments=True)[1:]


def test_every_command_has_a_section() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    titles = ", ".join(re.findall(r"^### (.*)$", PAGE, re.MULTILINE)).split(", ")
    assert sorted(titles) == sorted(group.commands)


@pytest.mark.parametrize("line", [*lines("sh"), *lines("")])
def test_every_command_is_understood(line: str) -> None:
    command = typer.main.get_command(cli.app)
    arguments = words(line)
    while isinstance(command, typer.core.TyperGroup) and arguments and arguments[0] in command.commands:
        command = command.commands[arguments.pop(0)]
    context = command.make_context(line, arguments)
    assert not context.args


def test_every_command_takes_json_and_debug() -> None:
    def leaves(command: typer.core.TyperGroup | typer.core.TyperCommand) -> Iterator[typer.core.TyperCommand]:
        if isinstance(command, typer.core.TyperGroup):
            for inner in command.commands.values():
                assert isinstance(inner, typer.core.TyperGroup | typer.core.TyperCommand)
                yield from leaves(inner)
        else:
            yield command

    root = typer.main.get_command(cli.app)
    assert isinstance(root, typer.core.TyperGroup)
    found = list(leaves(root))
    assert len(found) > 15
    for command in found:
        assert {"--json", "--debug"} <= {name for parameter in command.params for name in parameter.opts}, command.name


def test_what_is_cheap_is_run_in_order(inarch: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    for line in lines("sh"):
        done = inarch(*words(line))
        assert done.code == (1 if line.endswith("# exit code 1") else 0), (line, done.err)
        assert done.out
    assert {"plan.json", "small.onnx", "smaller.onnx", "for_gpu.onnx"} <= {path.name for path in model.parent.iterdir()}


def test_the_exit_codes_are_those_of_the_program() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes == {cli.OK, cli.FAILED, cli.BAD_INPUT, cli.DEFECT, cli.INTERRUPTED, cli.ENDED}


def test_the_limits_on_the_page_are_those_that_are_shipped() -> None:
    rows = {name: cells for name, *cells in re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)}
    assert set(rows) == set(Limits.model_fields)
    for name, (cpu, gpu) in rows.items():
        assert float(cpu) == getattr(SHIPPED["cpu"].balanced, name)
        assert float(gpu) == getattr(SHIPPED["gpu"].balanced, name)
