"""Remove what tells where on its author's machine a model came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import onnx_ir as ir

from inarch.structure.nodes import every_graph

# Python's tracebacks, and the form in which TorchScript writes them into doc strings.
_TRACE = re.compile(r'File "[^"\n]+", line \d+|\S\.py\(\d+\): ')


class _Described(Protocol):
    doc_string: str | None

    @property
    def metadata_props(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class StripTraces(ir.passes.InPlacePass):
    """Remove stack traces, which hold paths, from metadata and doc strings; keep everything else.

    Before::

        MatMul {pkg.torch.onnx.name_scopes: "['', 'fc1']", pkg.torch.onnx.stack_trace: 'File "/home/...", line 7'}

    After::

        MatMul {pkg.torch.onnx.name_scopes: "['', 'fc1']"}

    O(#nodes + #values).
    """

    name: ClassVar[str] = "strip-traces"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Strip in place; ``modified`` tells whether there was anything to strip."""
        modified = False
        for thing in _described(model):
            metadata = thing.metadata_props
            traces = [key for key, text in metadata.items() if key.endswith("stack_trace") or _TRACE.search(text)]
            for key in traces:
                del metadata[key]
            if thing.doc_string and _TRACE.search(thing.doc_string):
                thing.doc_string = None
                traces.append("")
            modified = modified or bool(traces)
        return ir.passes.PassResult(model, modified=modified)


def _described(model: ir.Model) -> Iterator[_Described]:
    """Everything in the model that has metadata and a doc string."""
    yield model
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for root in roots:
        bodies: list[ir.Graph | ir.Function] = [root, *every_graph(root)]
        for body in bodies:
            yield body
            yield from body.inputs
            if isinstance(body, ir.Graph):
                yield from body.initializers.values()
            for node in body:
                yield node
                yield from node.outputs
