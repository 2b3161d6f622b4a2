"""Which numbers of a model stay fp32 when it becomes fp16.

What an operator's definition allows says so (``Resize`` takes its scales in fp32 alone), and what a number is for: one that only
ends as an integer is a size or an index, and fp16 holds integers up to 2048 alone; a norm that is spelled out squares numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from inarch.compiler.half_norms import norms
from inarch.frontends.schemas import schema_of
from inarch.structure.nodes import every_node

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

FUSED = frozenset(
    "Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu DecoderMaskedMultiHeadAttention EmbedLayerNormalization FastGelu "
    "FusedConv FusedMatMul GatedRelativePositionBias Gelu GemmFastGelu GroupNorm GroupQueryAttention LongformerAttention "
    "MultiHeadAttention NhwcConv PackedAttention PackedMultiHeadAttention QuickGelu RelativePositionBias RemovePadding "
    "RestorePadding RotaryEmbedding SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization TransposeMatMul".split()
)
"""ONNX Runtime's own operators whose definitions take fp16; onnx does not know them."""

DEFAULTS_TO_FLOAT = {
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "SequenceEmpty": "dtype",
    "BlackmanWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
}
"""Operators that make fp32 where this attribute does not say otherwise."""

TYPED = DEFAULTS_TO_FLOAT | {
    "Bernoulli": "dtype",
    "Cast": "to",
    "DequantizeLinear": "output_dtype",
    "EyeLike": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniformLike": "dtype",
}
"""Operators whose result has the type that an attribute names."""

_ARITHMETIC = frozenset(
    "Abs Add Cast Ceil Clip Concat Constant ConstantOfShape Div Expand Floor Gather Identity Max Min Mod Mul Neg Pow Range "
    "Reciprocal ReduceMax ReduceMin ReduceProd Reshape Round Slice Split Sqrt Squeeze Sub Sum Unsqueeze Where".split()
)
"""What sizes and indices are computed with."""

_INTEGERS = frozenset(
    {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8}
    | {ir.DataType.UINT64, ir.DataType.UINT32, ir.DataType.UINT16, ir.DataType.UINT8}
)


INDIFFERENT = frozenset({"Cast", "Shape", "Size"})
"""Operators whose results do not depend on their operands' type."""


@dataclass(frozen=True)
class Edges:
    """Operands and results of one node that stay fp32, by their place."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def float_values(model: ir.Model) -> set[ir.Value]:
    """Every value that holds fp32 numbers: a tensor, or a sequence of tensors.

    A type that is missing is that of an operand which the operator's definition ties to it, or of the first one.
    """
    kinds: dict[ir.Value, ir.DataType | None] = {}
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            kinds[value] = value.const_value.dtype if value.const_value is not None else value.dtype
    for node in every_node(model.graph):
        for place, value in enumerate(node.outputs):
            kinds[value] = value.dtype or _tied(node, place, kinds, model.opset_imports)
    return {value for value, kind in kinds.items() if kind == FLOAT}


def _tied(
    node: ir.Node, place: int, kinds: Mapping[ir.Value, ir.DataType | None], opsets: Mapping[str, int]
) -> ir.DataType | None:
    schema = schema_of(node.op_type, node.domain, opsets.get(node.domain, 1))
    wanted = _formal(schema, place, output=True) if schema is not None else None
    for number, value in enumerate(node.inputs):
        if value is not None and (schema is None or _formal(schema, number, output=False) == wanted):
            return kinds.get(value, value.dtype)
    return None


def edges_of(model: ir.Model, floats: set[ir.Value], keep: Iterable[ir.Node] = ()) -> dict[ir.Node, Edges]:
    """Node -> what of it stays fp32; nodes that become fp16 altogether are left out.

    Args:
        model: the model.
        floats: as of :func:`float_values`.
        keep: nodes that are to stay fp32 whatever their definition allows.
    """
    nodes = list(every_node(model.graph))
    whole = _of_norms(nodes, set(keep))
    ordered = [(node, _allowed(node, floats, model.opset_imports)) for node in nodes]
    found = {node: edges for node, edges in ordered if edges.inputs or edges.outputs}
    # Users come after what they use, and the nodes of a subgraph after the node that holds it.
    for node in reversed(nodes):
        if node not in found and _ends_as_integer(node, floats, found):
            found[node] = _every(node, floats)
    return found | {node: _every(node, floats) for node in nodes if node in whole}


def _of_norms(nodes: list[ir.Node], kept: set[ir.Node]) -> set[ir.Node]:
    """The nodes of norms that stay fp32.

    ONNX Runtime makes one node of a norm, whose operands have to be of one type: the norm's source, before a Cast that nothing
    else reads, and its scale. So where there is no such Cast, scaling stays fp32 too.
    """
    found = list(norms(nodes))
    whole = kept | {node for norm in found for node in norm.core}
    while True:
        more: set[ir.Node] = set()
        for norm in found:
            maker = norm.source.producer()
            single = maker in whole if maker is not None else norm.source.is_graph_input()
            if single or any(user in whole and user not in norm.core for user, _ in norm.source.uses()):
                more.update(norm.affine)
        if more <= whole:
            return whole
        whole |= more


def _every(node: ir.Node, floats: set[ir.Value]) -> Edges:
    inputs = frozenset(place for place, value in enumerate(node.inputs) if value in floats)
    return Edges(inputs, frozenset(place for place, value in enumerate(node.outputs) if value in floats))


def _allowed(node: ir.Node, floats: set[ir.Value], opsets: Mapping[str, int]) -> Edges:
    """What the operator's definition has in fp32 and not in fp16."""
    every = _every(node, floats)
    if node.op_type in FUSED and node.domain != "":
        return Edges(frozenset(), frozenset())
    schema = schema_of(node.op_type, node.domain, opsets.get(node.domain, 1))
    if schema is None:
        return Edges(frozenset(), frozenset()) if node.op_type in FUSED else every
    return Edges(
        frozenset(place for place in every.inputs if _only_single(schema, place, output=False)),
        frozenset(place for place in every.outputs if _only_single(schema, place, output=True)),
    )


def _only_single(schema: onnx.defs.OpSchema, place: int, *, output: bool) -> bool:
    formal = _formal(schema, place, output=output)
    types = next((set(c.allowed_type_strs) for c in schema.type_constraints if c.type_param_str == formal), {formal})
    return "tensor(float)" in types and "tensor(float16)" not in types


def _formal(schema: onnx.defs.OpSchema, place: int, *, output: bool) -> str:
    """The type that a definition gives one operand or result: a variable's name, or a type."""
    parameters = schema.outputs if output else schema.inputs
    return str(parameters[min(place, len(parameters) - 1)].type_str) if parameters else ""


def _ends_as_integer(node: ir.Node, floats: set[ir.Value], found: Mapping[ir.Node, Edges]) -> bool:
    """Whether a node's fp32 results go nowhere but into integers, through nodes that stay fp32."""
    results = [value for value in node.outputs if value in floats]
    if not results or node.domain != "" or node.op_type not in _ARITHMETIC:
        return False
    uses = [use for value in results for use in value.uses()]
    if not uses or any(value.is_graph_output() for value in results):
        return False
    return all(
        (user.op_type == "Cast" and user.attributes.get_int("to", 0) in _INTEGERS)
        or (user in found and place in found[user].inputs)
        for user, place in uses
    )
