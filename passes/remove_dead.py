"""Remove what no output needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from inarch.structure.nodes import every_node, graphs_in

_ANNOTATION = "quant_parameter_tensor_names"  # where onnx_ir keeps a value's quantisation annotation
_FIRST_IR_WITH_DEFAULTS = 4  # before it, every initializer had to be listed as an input, and was none


@dataclass(frozen=True)
class RemoveDead(ir.passes.InPlacePass):
    """Remove nodes and initializers that no graph output needs, in the graph, its subgraphs and functions.

    Before::

        x -- MatMul(W) -- y      x -- Relu -- t -- Mul(c) -- u
        outputs: y

    After::

        x -- MatMul(W) -- y
        outputs: y

    Graph inputs and outputs stay. O(#nodes + #values).
    """

    name: ClassVar[str] = "remove-dead"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove in place; ``modified`` tells whether anything was removed."""
        removed = sum(_sweep_nodes(function) for function in model.functions.values())
        removed += _sweep_nodes(model.graph)
        listed = model.ir_version < _FIRST_IR_WITH_DEFAULTS
        annotated: set[str] | None = None
        for graph in list(model.graphs()):
            for name, value in list(graph.initializers.items()):
                is_input = value.is_graph_input()
                if value.uses() or value.is_graph_output() or (is_input and not listed):
                    continue
                annotated = _annotated(model) if annotated is None else annotated
                if name in annotated:
                    continue
                if is_input:
                    graph.inputs.remove(value)
                del graph.initializers[name]
                removed += 1
        return ir.passes.PassResult(model, modified=removed > 0)


def _sweep_nodes(body: ir.Graph | ir.Function) -> int:
    """Remove dead nodes, last first, so that one sweep finds them all; returns how many."""
    removed = 0
    for node in reversed(body):
        if node.outputs and not any(value.uses() or value.is_graph_output() for value in node.outputs):
            for inner in _nested(node):
                _detach(inner)
            body.remove(node, safe=True)
            removed += 1
        else:
            removed += sum(_sweep_nodes(graph) for graph in graphs_in(node))
    return removed


def _nested(node: ir.Node) -> Iterable[ir.Node]:
    for graph in graphs_in(node):
        yield from every_node(graph)


def _detach(node: ir.Node) -> None:
    """Forget a node's inputs: what a dead subgraph took from outside is no longer used by it."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)


def _annotated(model: ir.Model) -> set[str]:
    """Names of initializers that quantisation annotations refer to; no node need use them."""
    names: set[str] = set()
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
        for value in values:
            names.update(value.meta.get(_ANNOTATION, {}).values())
    return names
