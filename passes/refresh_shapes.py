"""Infer the shapes that weights of another size have made wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx
import onnx_ir as ir

from inarch.structure.constants import tensor_in
from inarch.structure.nodes import every_node


@dataclass(frozen=True)
class RefreshShapes(ir.passes.InPlacePass):
    """Infer the shapes of all values inside graphs anew; what cannot be inferred stays as far as it was a number.

    Before (W was sliced, h is stale)::

        x[N,8] -- MatMul(W[8,20]) -- h[N,32] -- Relu -- a[N,32] -- MatMul(V[20,8]) -- y[N,8]

    After::

        x[N,8] -- MatMul(W[8,20]) -- h[N,20] -- Relu -- a[N,20] -- MatMul(V[20,8]) -- y[N,8]

    Shapes of graph inputs, graph outputs and initializers are declarations, and stay; so do all types (but a missing one is
    filled in). The inference is that of onnx, on the graph without its weights. Where it finds no size, the one that an exporter
    knew stays, or that a pass gave a value which it made: outside of what passes rewrite no size changes. O(#nodes).

    Attributes:
        constant_bytes: constants up to this size are shown to the inference, since they may be shapes.
    """

    name: ClassVar[str] = "refresh-shapes"
    constant_bytes: int = 1024

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Refresh in place; ``modified`` tells whether any shape or type is another than before."""
        before: list[tuple[ir.Value, ir.Shape | None, ir.TypeProtocol | None]] = []
        for node in every_node(model.graph):
            for value in node.outputs:
                if not value.is_graph_output():
                    before.append((value, value.shape, value.type))
                    value.shape = None
        with _without_data(model, self.constant_bytes):
            proto = ir.serde.serialize_model(model)
        inferred = _infer(proto)
        declared = {str(size) for value in (*model.graph.inputs, *model.graph.outputs) for size in value.shape or ()}
        if inferred is not None:
            _merge(model.graph, inferred.graph, declared)
        for value, shape, _ in before:
            # A file has no place for a shape without a type.
            value.shape = _filled(value.shape, shape, declared) if value.type is not None else None
        changed = any(value.shape != shape or value.type != kind for value, shape, kind in before)
        return ir.passes.PassResult(model, modified=changed)


def _infer(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """The proto with what onnx can infer, or None where it gives up on the model as a whole."""
    for propagate in (True, False):  # following the data of shapes finds more, and is the part of onnx that fails
        try:
            return onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=propagate)
        except Exception:  # of several unrelated kinds; unknown shapes are a valid outcome
            continue
    return None


def _merge(graph: ir.Graph, proto: onnx.GraphProto, declared: Collection[str]) -> None:
    """Take over inferred shapes, and types where there is none, into ``graph`` and its subgraphs.

    Of symbolic sizes only those named in ``declared`` are taken over. The inference gives one invented name to sizes that
    differ (the elements of a sequence), and ONNX Runtime lays values of equal names into one buffer.
    """
    infos = {info.name: info for info in proto.value_info}
    for node, node_proto in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            info = infos.get(value.name or "")
            if info is None or value.is_graph_output():
                continue
            kind = ir.serde.deserialize_type_proto_for_type(info.type)
            if value.type is None:
                value.type = kind
            if type(value.type) is type(kind):
                shape = ir.serde.deserialize_type_proto_for_shape(info.type)
                value.shape = _said(shape, declared) if shape else shape
        for attribute in node_proto.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _merge(node.attributes[attribute.name].as_graph(), attribute.g, declared)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for inner, inner_proto in zip(node.attributes[attribute.name].as_graphs(), attribute.graphs, strict=True):
                    _merge(inner, inner_proto, declared)


def _said(shape: ir.Shape, declared: Collection[str]) -> ir.Shape:
    """A shape without the names that are not ``declared``."""
    return ir.Shape(size if isinstance(size, int) or str(size) in declared else None for size in shape)


def _filled(found: ir.Shape | None, known: ir.Shape | None, declared: Collection[str]) -> ir.Shape | None:
    """A shape as it was inferred, with the sizes that were known before where there is none."""
    if known is None or (found is not None and len(found) != len(known)):
        return found
    kept = _said(known, declared)
    if found is None:
        return kept
    return ir.Shape(
        old if isinstance(new, ir.SymbolicDim) and new.value is None else new for new, old in zip(found, kept, strict=True)
    )


@contextmanager
def _without_data(model: ir.Model, limit: int) -> Iterator[None]:
    """Let every constant of more than ``limit`` bytes have a type and a shape only, for as long as the context lasts."""
    undo: list[Callable[[], object]] = []

    def hide(tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        return ir.ExternalTensor("hidden", 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)

    try:
        for graph in model.graphs():
            for name, value in graph.initializers.items():
                tensor = value.const_value
                if tensor is not None and _is_heavy(tensor, limit):
                    undo.append(partial(setattr, value, "const_value", tensor))
                    value.const_value = hide(tensor, name)
        for node in every_node(model.graph):
            for key, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = tensor_in(attribute)
                    if _is_heavy(tensor, limit):
                        undo.append(partial(node.attributes.__setitem__, key, attribute))
                        node.attributes[key] = ir.AttrTensor(key, hide(tensor, tensor.name or ""))
        yield
    finally:
        for step in undo:
            step()


def _is_heavy(tensor: ir.TensorProtocol, limit: int) -> bool:
    # A lazy tensor is a weight that is computed when it is written: no shape, and it may refuse to be read.
    return tensor.dtype != ir.DataType.STRING and (tensor.nbytes > limit or isinstance(tensor, ir.LazyTensor))
