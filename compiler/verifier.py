"""What a valid model is, as a list of rules that run.

Each rule looks at one :class:`_Body`, a graph or a function with everything inside it, and yields what breaks it. The pipeline
runs them before the first pass and after each one, so that a pass that breaks a model is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from inarch.structure.errors import PassError
from inarch.structure.nodes import every_graph, every_node, graphs_in

Breach = tuple[ir.Node | ir.Value | None, str]
"""What breaks a rule (a node, a value or the graph as a whole), and how."""


@dataclass(frozen=True)
class Signature:
    """What a model's users rely on.

    Attributes:
        inputs: (name, type, shape) of each graph input, initializers left out.
        outputs: the same of each graph output.
    """

    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[tuple[str, str, str], ...]


def signature(model: ir.Model) -> Signature:
    """The model's inputs and outputs as plain data, to compare with later."""

    def describe(values: Sequence[ir.Value]) -> tuple[tuple[str, str, str], ...]:
        return tuple((value.name or "", str(value.type), str(value.shape)) for value in values)

    return Signature(describe([v for v in model.graph.inputs if not v.is_initializer()]), describe(model.graph.outputs))


def verify_model(model: ir.Model, pass_name: str | None = None, *, expect: Signature | None = None, shapes: bool = True) -> None:
    """Check that a model is valid.

    Args:
        model: the model; it is not changed.
        pass_name: the pass that has just run, to be named in the error.
        expect: the signature that the model has to have.
        shapes: whether to compare the shapes of operands. They are stale after a pass that changes weights, until
            ``refresh-shapes`` has run.

    Raises:
        PassError: the first breach found; ``where`` names the pass and the node.
    """
    if expect is not None:
        _compare(signature(model), expect, pass_name)
    rules = RULES if shapes else tuple(rule for rule in RULES if rule not in SHAPE_RULES)
    bodies = [_Body(model.graph, is_main=True)]
    bodies.extend(_Body(function.graph, is_main=False) for function in model.functions.values())
    for body in bodies:
        for rule in rules:
            for culprit, message in rule(body):
                raise PassError(
                    message, where=_where(pass_name, culprit), hint="this is a defect of the pass" if pass_name else None
                )


class _Body:
    """A graph or function body, its subgraphs, and all their nodes in order.

    Attributes:
        root: the body's own graph.
        is_main: whether that is the model's.
        graphs: the root and all graphs inside it.
        nodes: the nodes of them all.
    """

    def __init__(self, root: ir.Graph, *, is_main: bool) -> None:
        self.root = root
        self.is_main = is_main
        self.graphs: tuple[ir.Graph, ...] = (root, *every_graph(root))
        self.nodes: tuple[ir.Node, ...] = tuple(every_node(root))


def _references_resolve(body: _Body) -> Iterator[Breach]:
    """In every scope names are unique, and each input's name leads to that input, defined before its use."""
    yield from _resolve(body.root, [])


def _resolve(graph: ir.Graph, outer: list[dict[str, ir.Value]]) -> Iterator[Breach]:
    names: dict[str, ir.Value] = {}
    scopes = [*outer, names]
    for value in (*graph.inputs, *graph.initializers.values()):
        if not value.name:
            yield value, "an input or initializer has no name"
        elif names.setdefault(value.name, value) is not value:
            yield value, f"two values are named {value.name!r}"
    for node in graph:
        for used in node.inputs:
            if used is None:
                continue
            found = next((scope[used.name] for scope in reversed(scopes) if used.name in scope), None)
            if found is None:
                yield node, f"nothing before it defines its input {used.name!r}"
            elif found is not used:
                yield node, f"its input {used.name!r} is hidden by another value of that name"
        for inner in graphs_in(node):
            yield from _resolve(inner, scopes)
        for value in node.outputs:
            if value.name and names.setdefault(value.name, value) is not value:
                yield node, f"it defines {value.name!r}, which is defined already"
            elif not value.name and (value.uses() or value.is_graph_output()):
                yield node, "an output that is used has no name"
    for value in graph.outputs:
        if names.get(value.name or "") is not value:
            yield value, f"output {value.name!r} is defined by nothing in its graph"


def _nodes_belong(body: _Body) -> Iterator[Breach]:
    """Each node knows the graph that holds it, and each output the node that makes it."""
    for graph in body.graphs:
        for node in graph:
            if node.graph is not graph:
                yield node, "it is in a graph that it does not belong to"
            if any(value.producer() is not node for value in node.outputs):
                yield node, "one of its outputs says that another node makes it"


def _uses_are_real(body: _Body) -> Iterator[Breach]:
    """Every use that a value counts is a node of the model that has it as that input."""
    nodes = set(body.nodes)
    values = [value for graph in body.graphs for value in (*graph.inputs, *graph.initializers.values())]
    values.extend(value for node in body.nodes for value in node.outputs)
    for value in values:
        for user, index in value.uses():
            if user not in nodes:
                yield value, f"value {value.name!r} is used by {_name(user)}, which is in no graph of the model"
            elif index >= len(user.inputs) or user.inputs[index] is not value:
                yield user, f"input {index} is not {value.name!r}, which counts it as a use"


def _initializers_agree(body: _Body) -> Iterator[Breach]:
    """An initializer has a tensor, is listed under its own name, and says the type and shape of its tensor."""
    for graph in body.graphs:
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                yield value, f"initializer {name!r} has no data"
                continue
            if name != value.name:
                yield value, f"initializer {value.name!r} is listed as {name!r}"
            actual = tuple(tensor.shape.numpy())
            if not _admits(value.shape, actual):
                yield value, f"initializer {name!r} says shape {value.shape}, and its tensor has {list(actual)}"
            if value.dtype not in (None, tensor.dtype):
                yield value, f"initializer {name!r} says type {value.dtype}, and its tensor has {tensor.dtype}"


def _domains_are_imported(body: _Body) -> Iterator[Breach]:
    """A version is imported for every operator domain in use."""
    known = set(body.root.opset_imports)
    for node in body.nodes:
        if node.domain not in known:
            yield node, f"domain {node.domain or 'ai.onnx'!r} is not imported"


def _something_comes_out(body: _Body) -> Iterator[Breach]:
    """The main graph has outputs."""
    if body.is_main and not body.root.outputs:
        yield None, "the graph has no outputs"


def _products_agree(body: _Body) -> Iterator[Breach]:
    """The summed axes of MatMul and Gemm have one size, where both are known."""
    for node in body.nodes:
        if node.domain or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
            continue
        left, right = _dims(node.inputs[0]), _dims(node.inputs[1])
        if not left or not right:
            continue
        if node.op_type == "Gemm":
            if len(left) != 2 or len(right) != 2:
                yield node, f"Gemm takes matrices, and gets {left} and {right}"
                continue
            summed = left[0 if _flag(node, "transA") else 1], right[1 if _flag(node, "transB") else 0]
        else:
            summed = left[-1], right[-2 if len(right) > 1 else 0]
        if None not in summed and summed[0] != summed[1]:
            yield node, f"it multiplies {_show(left)} by {_show(right)}: {summed[0]} is not {summed[1]}"


def _sums_broadcast(body: _Body) -> Iterator[Breach]:
    """Operands of element-wise arithmetic broadcast, where their sizes are known; a Gemm's bias fits its product."""
    for node in body.nodes:
        if node.domain or None in node.inputs:
            continue
        if node.op_type in ("Add", "Sub", "Mul", "Div"):
            shapes = [_dims(value) for value in node.inputs]
        elif node.op_type == "Gemm" and len(node.inputs) == 3:
            weights = _dims(node.inputs[1])
            columns = weights[0 if _flag(node, "transB") else 1] if weights is not None and len(weights) == 2 else None
            shapes = [[columns], _dims(node.inputs[2])]
        else:
            continue
        if len(shapes) == 2 and shapes[0] is not None and shapes[1] is not None:
            for one, other in zip(reversed(shapes[0]), reversed(shapes[1]), strict=False):
                if None not in (one, other) and 1 not in (one, other) and one != other:
                    yield node, f"{_show(shapes[0])} and {_show(shapes[1])} do not broadcast"
                    break


def _reshapes_fit(body: _Body) -> Iterator[Breach]:
    """A Reshape to a constant shape keeps the number of elements, where that is known."""
    for node in body.nodes:
        if node.domain or node.op_type != "Reshape" or len(node.inputs) < 2:
            continue
        source, target = _dims(node.inputs[0]), _constant(node.inputs[1])
        if source is None or target is None or None in source:
            continue
        if not _flag(node, "allowzero"):
            if any(size == 0 and axis >= len(source) for axis, size in enumerate(target)):
                yield node, f"it copies an axis that {_show(source)} does not have into {target}"
                continue
            target = [int(source[axis] or 0) if size == 0 else size for axis, size in enumerate(target)]
        count = math.prod(size or 0 for size in source)
        known = math.prod(size for size in target if size != -1)
        if (count != known) if -1 not in target else (known == 0 and count != 0) or (known != 0 and count % known != 0):
            yield node, f"{_show(source)} cannot be reshaped to {target}"


Rule = Callable[[_Body], Iterator[Breach]]

SHAPE_RULES: tuple[Rule, ...] = (_products_agree, _sums_broadcast, _reshapes_fit)
"""Rules that compare inferred shapes."""

RULES: tuple[Rule, ...] = (
    _references_resolve,
    _nodes_belong,
    _uses_are_real,
    _initializers_agree,
    _domains_are_imported,
    _something_comes_out,
    *SHAPE_RULES,
)
"""All rules, in the order in which they are checked."""


def _compare(found: Signature, expected: Signature, pass_name: str | None) -> None:
    for what, now, before in (("input", found.inputs, expected.inputs), ("output", found.outputs, expected.outputs)):
        if now == before:
            continue
        changed = next((b for b in before if b not in now), None)
        message = f"{what} {changed[0]!r} is gone or changed" if changed else f"the graph has {what}s that it did not have"
        raise PassError(message, where=_where(pass_name, None), hint=f"{what}s were {before} and are {now}")


def _dims(value: ir.Value | None) -> list[int | None] | None:
    """Sizes of a value's axes, None for one that is not known; None where the rank is not."""
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def _show(dims: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in dims) + "]"


def _admits(declared: ir.Shape | None, actual: tuple[int, ...]) -> bool:
    if declared is None:
        return True
    same = len(declared) == len(actual)
    return same and all(not isinstance(d, int) or d == a for d, a in zip(declared, actual, strict=True))


def _flag(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None and not attribute.is_ref() else 0


def _constant(value: ir.Value | None) -> list[int] | None:
    """A constant's integers, from an initializer or a Constant node."""
    if value is None or value.is_graph_input():  # an input's initializer is only its default
        return None
    tensor = value.const_value
    maker = value.producer()
    if maker is not None and maker.op_type == "Constant" and not maker.domain:
        attribute = maker.attributes.get("value")
        tensor = attribute.as_tensor() if attribute is not None and not attribute.is_ref() else None
        listed = maker.attributes.get("value_ints")
        if listed is not None and not listed.is_ref():
            return [int(size) for size in listed.as_ints()]
    if tensor is None or tensor.dtype != ir.DataType.INT64:
        return None
    return [int(size) for size in tensor.numpy().reshape(-1)]


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or (node.outputs[0].name if node.outputs else '')!r}"


def _where(pass_name: str | None, culprit: ir.Node | ir.Value | None) -> str:
    place = (
        f"node {_name(culprit)}"
        if isinstance(culprit, ir.Node)
        else f"value {culprit.name!r}"
        if culprit is not None
        else "graph"
    )
    return f"after {pass_name}: {place}" if pass_name else place
