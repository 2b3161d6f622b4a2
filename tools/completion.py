"""``inarch completion SHELL``: a script that lets a shell complete inarch's commands, options and choices.

Typer completes; its own ``--install-completion`` would stand in every ``--help`` and edit the user's files. Here the script is
printed, and the user says where it goes.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from enum import StrEnum
from typing import Annotated

import typer

from inarch.tools import render
from inarch.tools.options import Debug, Json

PROGRAM = "inarch"
VARIABLE = "_INARCH_COMPLETE"
"""The shell's script sets it when it asks what could come next."""


class Shell(StrEnum):
    """The shells that are known."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def run(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(help="The shell.", show_default=False)],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a script that completes inarch in a shell.

    To try it in bash: source <(inarch completion bash). To keep it, write it where the shell looks:

    - bash: ~/.local/share/bash-completion/completions/inarch
    - fish: ~/.config/fish/completions/inarch.fish
    - zsh: _inarch in a folder of $fpath
    """
    script = source(shell, context)
    if json:
        render.emit_json({"format": "inarch.completion/1", "shell": shell.value, "script": script})
    else:
        sys.stdout.write(script)


def source(shell: Shell, context: typer.Context) -> str:
    """The script, as Typer writes it for the program of this context."""
    from typer.completion import shell_complete

    _know_shells()
    with redirect_stdout(io.StringIO()) as written:
        shell_complete(context.find_root().command, {}, PROGRAM, VARIABLE, f"source_{shell.value}")
    return written.getvalue().strip() + "\n"


def prepare() -> None:
    """Let Typer answer a shell that asks; costs nothing where none does."""
    if VARIABLE in os.environ:
        _know_shells()


def _know_shells() -> None:
    """Have Typer register its shells, which it does by itself only for an app that has its completion options."""
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()
