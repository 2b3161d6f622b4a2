"""The parameters of a model, and what reads those that are no site's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from inarch.structure.constants import constant
from inarch.structure.demand import inside
from inarch.structure.sites import SiteTable
from inarch.structure.views import FLOATS, VIEWS


def parameters_of(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """The floating-point parameters of a model: initializers and Constants, subgraphs included.

    What nothing reads is no part of the model, and of no compiled file.
    """
    for graph in model.graphs():
        values: list[ir.Value] = list(graph.initializers.values())
        values += [v for n in graph if n.op_type == "Constant" for v in n.outputs]
        for value in (value for value in values if value.uses() or value.is_graph_output() or value.is_graph_input()):
            tensor = constant(value) or value.const_value
            if tensor is not None and tensor.dtype in FLOATS:
                yield value, tensor


def read_outside(model: ir.Model, table: SiteTable) -> Mapping[str, int]:
    """What reads the parameters that no plan can change, the most first: operator -> numbers.

    Args:
        model: the one that the sites were found in.
        table: its sites.

    Returns:
        Together :func:`~inarch.structure.demand.outside`. What several operators read is under all of their names,
        ``Gather+MatMul``.
    """
    coverage = inside(table)
    found: Counter[str] = Counter()
    for value, tensor in parameters_of(model):
        left = int(tensor.size) - coverage.count(str(value.name))
        if left:
            found["+".join(sorted(_readers(value)))] += left
    return dict(found.most_common())


def _readers(param: ir.Value) -> set[str]:
    """The operators that read a parameter, past those that only take it apart or turn it."""
    found: set[str] = set()
    pending = [param]
    while pending:
        value = pending.pop()
        if value.is_graph_output() or value.is_graph_input():
            found.add("the graph's interface")
        for node, index in value.uses():
            # A Gather of rows that are known takes a parameter apart, any other looks something up in it.
            if index == 0 and node.op_type in VIEWS and all(constant(other) is not None for other in node.inputs[1:] if other):
                pending.extend(node.outputs)
            else:
                found.add(node.op_type)
    return found
