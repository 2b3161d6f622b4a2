"""``inarch export --model NAME --out FILE``: MDETR or GLIP as ONNX, with random weights or those of a released checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inarch.structure.files import refuse_to_replace
from inarch.tools import render
from inarch.tools.options import Debug, Json, Seed
from inarch.tools.torch_extra import needs_export


def run(
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="A preset, see --list.", show_default=False)] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where the ONNX file is written.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="FILE", help="A released checkpoint; random weights without.", show_default=False),
    ] = None,
    deform_conv: Annotated[
        bool, typer.Option(help="GLIP: DeformConv (ONNX Runtime 1.25 or newer), or GridSample for older ones.")
    ] = True,
    opset: Annotated[int, typer.Option("--opset", min=19, max=22, help="Opset of ai.onnx.")] = 20,
    names: Annotated[bool, typer.Option("--list", help="List the presets.")] = False,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Export MDETR or GLIP to ONNX.

    Batch, image and text sizes are dynamic, every parameter keeps its name, large weights go into a file beside OUT. Tokenizer,
    image normalisation and, for GLIP, box decoding and suppression stay outside. Opset 20 is the default because it has GELU as
    one operator, and because from 23 on torch writes attention in a form that ONNX Runtime 1.32 refuses with some masks.
    """
    needs_export()
    from inarch.compiler.writer import write_model
    from inarch.learning.models import PRESETS, build, export_model, load_checkpoint

    if names:
        sizes = {name: sum(p.numel() for p in build(name, device="meta").parameters()) for name in PRESETS}
        if json:
            render.emit_json({"format": "inarch.presets/1", "presets": sizes})
            return
        table = render.table("preset", "parameters")
        for name, count in sizes.items():
            render.add_row(table, name, f"{count:,}")
        render.show(table)
        return
    if not model or out is None:
        raise typer.BadParameter("both are needed; --list shows the presets", param_hint="--model, --out")
    refuse_to_replace(out, [checkpoint])
    with render.progress(quiet=json) as report:
        report("building the model", 0, 3)
        if checkpoint is None:
            built = build(model, seed=seed)
        else:
            built, _ = load_checkpoint(checkpoint, model)
        report("exporting with torch", 1, 3)
        graph = export_model(built, opset=opset, deform_conv=deform_conv)
        report("writing", 2, 3)
        written = write_model(graph, out)
        report("writing", 3, 3)
    parameters = sum(p.numel() for p in built.parameters())
    if json:
        document = {"model": model, "out": str(out), "parameters": parameters, "opset": opset, "nodes": len(list(graph.graph))}
        document |= {"bytes": written.file_bytes + written.data_bytes, "checkpoint": str(checkpoint) if checkpoint else None}
        render.emit_json({"format": "inarch.export/1", **document})
        return
    weights = f"weights of {checkpoint}" if checkpoint else f"random weights, seed {seed}"
    render.say(f"{model}: {parameters:,} parameters, {weights}")
    render.say(f"wrote {out} ({render.size(written.file_bytes + written.data_bytes)})")
