"""What ``--set NAME=VALUE`` says, as learn and tune take it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A configuration; options go before it.", show_default=False),
]

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting, by its dotted name in config.json.", show_default=False),
]


def named(settings: Iterable[str] | None) -> dict[str, Any]:
    """Settings by their names: ``["structure.block=4"]``. A value that is no JSON is a string.

    Raises:
        typer.BadParameter: one has no value.
    """
    found: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"{setting!r} is not NAME=VALUE", param_hint="--set")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
