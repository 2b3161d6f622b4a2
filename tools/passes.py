"""``inarch passes``: the passes that compiling is made of, in the registry's order."""

from __future__ import annotations

from inarch.tools import render
from inarch.tools.options import Debug, Json


def run(json: Json = False, debug: Debug = False) -> None:
    """List the graph passes by name.

    Each is an onnx_ir pass and can be used in another pipeline; inarch compile runs them in its own order.
    """
    from inarch.passes.registry import available

    found = available()
    if json:
        render.emit_json({"format": "inarch.passes/1", "passes": [{"name": p.name, "summary": p.summary} for p in found]})
        return
    shown = render.table("pass", "what it does")
    for info in found:
        render.add_row(shown, info.name, info.summary)
    render.show(shown)
