"""A model in fp16: weights, constants and what is computed with them; its inputs and outputs stay as they are.

Every tensor becomes fp16 once, under its name, so that what is shared stays shared. Before and after (W is read twice)::

    x:fp32 -- MatMul(W:fp32) -- h:fp32 -- MatMul(W) -- y:fp32
    x:fp32 -- Cast -- MatMul(W:fp16) -- h:fp16 -- MatMul(W) -- y.half:fp16 -- Cast -- y:fp32

Weights are converted as they are written, one at a time. O(#nodes + #small constants).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from inarch.compiler.half_edges import DEFAULTS_TO_FLOAT, FLOAT, HALF, INDIFFERENT, TYPED, Edges, edges_of, float_values
from inarch.compiler.metadata import QUANTISED
from inarch.compiler.verifier import signature, verify_model
from inarch.passes.refresh_shapes import RefreshShapes
from inarch.structure.errors import ModelError
from inarch.structure.nodes import every_graph, every_node

PRODUCTS = frozenset({"Conv", "ConvTranspose", "FusedConv", "FusedMatMul", "Gemm", "MatMul"})
"""Operators that weights are read by: a weight that fp16 cannot hold is refused, where a mask is clipped."""

_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_EAGER = 4096
"""Bytes below which a tensor is converted at once."""


@dataclass(frozen=True, eq=False)
class Half:
    """A model in fp16.

    Attributes:
        model: the model; large tensors are lazy.
        tensors: how many tensors became fp16.
        clipped: constant -> the value of the largest size that fp16 cannot hold and that became its largest.
        raised: constants that fp16 would have rounded to zero, and that became its smallest number.
        kept: operator -> nodes that compute in fp32, wholly or in part.
    """

    model: ir.Model
    tensors: int
    clipped: Mapping[str, float]
    raised: Sequence[str]
    kept: Mapping[str, int]


def to_half(model: ir.Model, keep: Callable[[ir.Node], bool] | None = None) -> Half:
    """Convert a model to fp16.

    Args:
        model: it is not changed.
        keep: nodes that are to compute in fp32; those that fp16 is not defined for do so anyway.

    Raises:
        ModelError: nothing in it is fp32. A weight that fp16 cannot hold is refused when it is written.
    """
    work = model.clone()
    if work.functions:
        work = InlinePass()(work).model
    RemoveInitializersFromInputsPass()(work)
    RefreshShapes()(work)
    wanted = signature(work)
    halved = _Halving(work, keep or (lambda node: False)).run()
    work.metadata_props[QUANTISED] = json.dumps(
        {"to": "fp16", "tensors": halved.tensors, "clipped": sorted(halved.clipped), "kept": dict(halved.kept)}, sort_keys=True
    )
    verify_model(work, "to-half", expect=wanted)
    return halved


@dataclass
class _Found:
    """What is collected on the way."""

    tensors: int = 0
    clipped: dict[str, float] = field(default_factory=dict)
    raised: list[str] = field(default_factory=list)


class _Halving:
    """The conversion of one model, in place."""

    def __init__(self, model: ir.Model, keep: Callable[[ir.Node], bool]) -> None:
        self._model = model
        self._floats = float_values(model)
        nodes = list(every_node(model.graph))
        self._nodes = nodes
        self._edges = self._alike({node for node in nodes if keep(node)})
        self._found = _Found()
        self._single = set(self._stays())
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names = {value.name for value in self._values()} | {node.name for node in nodes}

    def run(self) -> Half:
        """Convert."""
        self._tensors()
        if not self._found.tensors:
            raise ModelError("no weight of the model is fp32", hint="a model is quantised once")
        for node in self._nodes:
            self._retype(node)
        for value in self._floats:
            if value not in self._single:
                value.type = _halved(value.type)
            elif value.type is None:
                value.type = ir.TensorType(FLOAT)
        for node in self._nodes:
            self._connect(node)
        self._outputs()
        kept = Counter(node.op_type for node in self._edges)
        return Half(self._model, self._found.tensors, self._found.clipped, self._found.raised, dict(sorted(kept.items())))

    def _alike(self, kept: set[ir.Node]) -> dict[ir.Node, Edges]:
        """The edges that stay fp32, once all products that read a weight are of one kind: else it would be stored twice."""
        while True:
            self._edges = edges_of(self._model, self._floats, kept)
            more: set[ir.Node] = set()
            for graph in self._model.graphs():
                for value in graph.initializers.values():
                    uses = [use for use in value.uses() if use[0].op_type in PRODUCTS]
                    if value in self._floats and len({self._wants(*use) for use in uses}) > 1:
                        more.update(user for user, _ in uses)
            if more <= kept:
                return self._edges
            kept = kept | more

    def _values(self) -> Iterator[ir.Value]:
        for graph in self._model.graphs():
            yield from graph.inputs
            yield from graph.initializers.values()
        for node in every_node(self._model.graph):
            yield from node.outputs

    def _stays(self) -> Iterator[ir.Value]:
        """Values that stay fp32."""
        yield from (value for value in self._model.graph.inputs if value in self._floats)
        for node, edges in self._edges.items():
            yield from (node.outputs[place] for place in edges.outputs)
        for graph in self._model.graphs():
            for value in graph.initializers.values():
                uses = value.uses()
                if value in self._floats and (
                    value.is_graph_output() or (uses and all(self._wants(user, place) == FLOAT for user, place in uses))
                ):
                    yield value

    def _wants(self, user: ir.Node, place: int) -> ir.DataType:
        edges = self._edges.get(user)
        return FLOAT if edges is not None and place in edges.inputs else HALF

    # ---- constants ----------------------------------------------------------------------------------------------------
    def _tensors(self) -> None:
        """Make fp16 of the tensors of all values that become fp16."""
        for graph in self._model.graphs():
            for value in graph.initializers.values():
                if value in self._floats and value not in self._single and value.const_value is not None:
                    value.const_value = self._convert(value.const_value, value)
                    self._found.tensors += 1
        for node in self._nodes:
            if node.op_type not in ("Constant", "ConstantOfShape") or node.domain != "":
                continue
            value = node.outputs[0]
            if value in self._floats and value not in self._single:
                node.attributes["value"] = ir.AttrTensor("value", self._convert(_constant(node), value))
                for name in ("value_float", "value_floats"):
                    node.attributes.pop(name, None)
                self._found.tensors += 1

    def _convert(self, tensor: ir.TensorProtocol, value: ir.Value) -> ir.TensorProtocol:
        name, shape = str(value.name), ir.Shape(tensor.shape.numpy())
        if len(shape) >= 2 and any(user.op_type in PRODUCTS for user, _ in value.uses()):
            if tensor.nbytes < _EAGER:
                return ir.tensor(_weight(tensor, name), HALF, name=name)
            return ir.LazyTensor(lambda: ir.tensor(_weight(tensor, name), HALF, name=name), HALF, shape, name=name)
        array = _array(tensor)
        if tensor.nbytes >= _EAGER and array.max() <= _LARGEST and array.min() >= -_LARGEST:
            return ir.LazyTensor(lambda: ir.tensor(_table(tensor), HALF, name=name), HALF, shape, name=name)
        # Masks are made with -inf, which stays, or with numbers that stand for it, which fp16 has no room for.
        over = np.isfinite(array) & (np.abs(array) > _LARGEST)
        if over.any():
            self._found.clipped[name] = float(array[over][np.abs(array[over]).argmax()])
        made = np.where(over, np.copysign(_LARGEST, array), array).astype(np.float16)
        if array.size == 1 and array.flat[0] != 0 and made.flat[0] == 0:  # what keeps a divisor from being zero
            self._found.raised.append(name)
            made = np.copysign(np.full_like(made, _SMALLEST), array).astype(np.float16)
        return ir.tensor(made, HALF, name=name)

    # ---- nodes --------------------------------------------------------------------------------------------------------
    def _retype(self, node: ir.Node) -> None:
        """Let attributes that name fp32 as the result's type name fp16."""
        name = TYPED.get(node.op_type) if node.domain == "" else None
        if name is None or not node.outputs or node.outputs[0] not in self._floats or node.outputs[0] in self._single:
            return
        named = node.attributes.get_int(name, int(FLOAT) if node.op_type in DEFAULTS_TO_FLOAT else 0)
        if named == FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(HALF))

    def _connect(self, node: ir.Node) -> None:
        """Cast the operands that are of the other type."""
        edges = self._edges.get(node, Edges(frozenset(), frozenset()))
        for place, value in enumerate(node.inputs):
            if value is None or value not in self._floats or (node.op_type in INDIFFERENT and node.domain == ""):
                continue
            wanted = FLOAT if place in edges.inputs else HALF
            if (value in self._single) != (wanted == FLOAT):
                node.replace_input_with(place, self._cast(value, wanted))

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """A value in the other type, made once, right behind where it comes from."""
        if (value, to) not in self._casts:
            name = self._fresh(f"{value.name}.{'half' if to == HALF else 'single'}")
            cast = _cast_node(value, name, to)
            producer, graph = value.producer(), value.graph
            if producer is not None and producer.graph is not None:
                producer.graph.insert_after(producer, cast)
            elif isinstance(graph, ir.Graph):
                first = next(iter(graph), None)
                graph.append(cast) if first is None else graph.insert_before(first, cast)
            self._casts[value, to] = cast.outputs[0]
        return self._casts[value, to]

    def _outputs(self) -> None:
        """Cast the model's results back, under their own names, and what subgraphs give where it has stayed fp32."""
        graph = self._model.graph
        back: dict[ir.Value, ir.Value] = {}
        for place, value in enumerate(graph.outputs):
            if value in self._floats and value not in self._single:
                if value not in back:
                    name = str(value.name)
                    value.name = self._fresh(f"{name}.half")
                    cast = _cast_node(value, name, FLOAT)
                    cast.name = self._fresh(f"{name}.single")
                    graph.append(cast)
                    back[value] = cast.outputs[0]
                graph.outputs[place] = back[value]
        for inner in list(every_graph(self._model.graph)):
            for place, value in enumerate(inner.outputs):
                if value in self._single:
                    inner.outputs[place] = self._cast(value, HALF)

    def _fresh(self, name: str) -> str:
        while name in self._names:
            name = f"{name}.1"
        self._names.add(name)
        return name


def _cast_node(value: ir.Value, name: str, to: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": int(to)}, name=name)
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, ir.TensorType(to), value.shape
    return cast


def _halved(kind: ir.TypeProtocol | None) -> ir.TypeProtocol:
    """A type with fp16 in the place of fp32."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return type(kind)(_halved(kind.elem_type), denotation=kind.denotation)
    return ir.TensorType(HALF, denotation=kind.denotation if kind is not None else None)


def _weight(tensor: ir.TensorProtocol, name: str) -> npt.NDArray[np.float16]:
    """A weight in fp16.

    Raises:
        ModelError: it holds a number that fp16 cannot.
    """
    array = _array(tensor)
    largest = max(float(array.max()), -float(array.min())) if array.size else 0.0
    if np.isfinite(largest) and largest > _LARGEST:
        raise ModelError(
            f"the weight holds {largest:.3g}, and fp16 ends at {_LARGEST:.0f}", where=name, hint="--keep leaves it in fp32"
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _table(tensor: ir.TensorProtocol) -> npt.NDArray[np.float16]:
    return _array(tensor).astype(np.float16)


def _array(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """A tensor's numbers; a lazy one is computed and not kept."""
    return tensor.raw().numpy() if isinstance(tensor, ir.LazyTensor) else tensor.numpy()


def _constant(node: ir.Node) -> ir.TensorProtocol:
    """The tensor of a Constant or ConstantOfShape node, however it is spelled."""
    if "value" in node.attributes:
        return node.attributes["value"].as_tensor()
    if "value_floats" in node.attributes:
        return ir.tensor(np.asarray(node.attributes["value_floats"].as_floats(), np.float32))
    value = node.attributes["value_float"].as_float() if "value_float" in node.attributes else 0.0
    return ir.tensor(np.asarray(value if node.op_type == "Constant" else [value], np.float32))
