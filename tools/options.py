"""Options that several subcommands share, so that they are spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model.", show_default=False)]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan, inarch.plan/1.", show_default=False)]
Compiled = Annotated[Path, typer.Argument(metavar="OUT", help="The compiled model.", show_default=False)]
Cost = Annotated[
    Path | None,
    typer.Option("--cost", metavar="TABLE", help="The cost table: a file, cpu (the default) or gpu.", show_default=False),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        metavar="FILE.npz",
        help="Your own inputs: arrays named after the model's inputs, or case/input for several cases.",
        show_default=False,
    ),
]
# Resolved by runtime.providers.resolve_provider, which needs ONNX Runtime and so is not called before a command runs.
Provider = Annotated[
    str,
    typer.Option(
        "--provider",
        metavar="NAME",
        help="Where ONNX Runtime runs: cpu, cuda, webgpu, openvino, or the name of any other provider that it has.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything drawn at random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and errors as JSON on stderr.")]
# Errors may come before the options are parsed, so cli.main looks for this one itself; commands only declare it.
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
