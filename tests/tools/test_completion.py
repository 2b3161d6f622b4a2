"""Shell completion: the script is printed, and a shell that sources it is told the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.conftest import Run

COMMANDS = {"inspect", "plan", "compile", "verify", "bench", "calibrate", "passes", "completion", "export", "learn", "tune"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed(inarch: Run, shell: str) -> None:
    done = inarch("completion", shell)
    assert done.code == 0
    assert done.err == ""
    assert "_INARCH_COMPLETE=complete_" + shell in done.out
    document = json.loads(inarch("completion", shell, "--json").out)
    assert document == {"format": "inarch.completion/1", "shell": shell, "script": done.out}


def test_an_unknown_shell_is_a_usage_error(inarch: Run) -> None:
    done = inarch("completion", "tcsh")
    assert done.code == 2
    assert "bash" in done.err


def test_help_shows_no_options_of_completion(inarch: Run) -> None:
    assert "install-completion" not in inarch("--help").out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["inarch", ""], COMMANDS),
        (["inarch", "plan", ""], {"make", "lint", "diff", "schema"}),
        (["inarch", "compile", "--prefer", ""], {"size", "latency"}),
        (["inarch", "compile", "--"], {"--cost", "--dry-run", "--explain"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(inarch: Run, tmp_path: Path, words: list[str], expected: set[str]) -> None:
    program = tmp_path / "inarch"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m inarch "$@"\n')
    program.chmod(0o755)
    quoted = " ".join(f'"{word}"' for word in words)
    ask = f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _inarch_completion inarch; printf "%s\\n" "${{COMPREPLY[@]}}"'
    (tmp_path / "script").write_text(inarch("completion", "bash").out + ask + "\n")
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", str(tmp_path / "script")], capture_output=True, text=True, check=True, env=environment
    )
    assert expected <= set(done.stdout.split())
    assert done.stderr == ""
