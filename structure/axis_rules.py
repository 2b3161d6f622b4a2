"""The axis rule of every operator that inarch sees through.

A rule runs for a node that reads at least one value made by a projection; it unites, splits or freezes factors and looks at
nothing but shapes. In the comments capital letters are axes: ``[B, S, H*D] -> [B, S, H, D]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from inarch.structure.arguments import axes_of, einsum_terms, int_attr, permutation, slice_parts, split_sizes
from inarch.structure.attention_rules import attention, group_query_attention, multi_head_attention, rotary
from inarch.structure.constants import constant, constant_ints
from inarch.structure.coupling import ENUMERATED, Contraction, Coupling, Rule, same_axes
from inarch.structure.dims import ONE, Dim, dim

SOURCES = frozenset(
    """Conv ConvTranspose FusedConv DeformConv ConvInteger QLinearConv MatMulInteger QLinearMatMul MatMulNBits MatMulBnb4
    DynamicQuantizeMatMul MatMulIntegerToFloat QGemm QAttention LSTM GRU RNN If Loop Scan GatherBlockQuantized
    EmbedLayerNormalization FusedGemm FusedMatMulActivation TransposeMatMul Attention PackedAttention DecoderMaskedSelfAttention
    MoE QMoE""".split()
)
"""Operators that start something of their own: their results are no riders even where no projection made their inputs."""


def _projected(c: Coupling, values: Sequence[ir.Value | None]) -> list[ir.Value]:
    return [v for v in values if v is not None and v in c.projected]


def elementwise(c: Coupling, node: ir.Node) -> None:
    """``out = f(a, b, ...)`` with broadcasting: every axis of an input is the output's axis, unless it is 1 there."""
    out = node.outputs[0]
    _broadcast(c, [v for v in node.inputs if v is not None], out)


def _broadcast(c: Coupling, inputs: Sequence[ir.Value], out: ir.Value) -> None:
    shape, axes = c.shapes.shape(out), c.axes(out)
    if shape is None or axes is None:
        for value in _projected(c, inputs):
            c.freeze_value(value, f"the shape of {out.name} is unknown")
        return
    for value in inputs:
        own = c.shapes.shape(value)
        if own is None:
            # An unknown side input may be as wide as any axis.
            c.freeze_value(out, f"the shape of {value.name} is unknown")
            continue
        shift = len(shape) - len(own)
        for i, size in enumerate(own):
            target = shape[shift + i]
            if size == target:
                if value in c.projected:
                    c.join(value, i, out, shift + i)
            elif size != ONE:
                reason = f"{value.name} may be broadcast along it"
                c.freeze(axes[shift + i], reason)
                mine = c.axes(value)
                if value in c.projected and mine is not None:
                    c.freeze(mine[i], reason)


def unary(c: Coupling, node: ir.Node) -> None:
    """Same axes in and out; a second output of Dropout is a mask of the same shape."""
    first = node.inputs[0]
    if first is None:
        return
    for out in (node.outputs[0], *(out for out in node.outputs[1:] if out.uses() or out.is_graph_output())):
        same_axes(c, first, out)


def _mixing(c: Coupling, node: ir.Node, first_mixed: int, reason: str) -> None:
    """Axes from ``first_mixed`` on are mixed with each other and frozen; those before pass."""
    x, out = node.inputs[0], node.outputs[0]
    if x is None:
        return
    same_axes(c, x, out)
    for factors in (c.axes(out) or ())[first_mixed:]:
        c.freeze(factors, reason)


def softmax(c: Coupling, node: ir.Node) -> None:
    """The softmax axis is frozen; before opset 13 all axes from it on are one."""
    rank = c.rank(node.inputs[0]) or 0
    modern = (node.version or c.graph.opset_imports.get("", 13)) >= 13
    axis = int_attr(node, "axis", -1 if modern else 1) % max(rank, 1)
    reason = f"{node.op_type} runs over it"
    x, out = node.inputs[0], node.outputs[0]
    if x is None:
        return
    same_axes(c, x, out)
    axes = c.axes(out) or ()
    for i in range(axis, axis + 1 if modern else rank):
        if i < len(axes):
            c.freeze(axes[i], reason)


def layer_norm(c: Coupling, node: ir.Node) -> None:
    """A norm over the last axes: those are frozen."""
    rank = c.rank(node.inputs[0])
    if rank is None:
        c.freeze_node(node, "its rank is unknown")
        return
    default = -1
    axis = int_attr(node, "axis", default) % rank
    _mixing(c, node, axis, f"{node.op_type} runs over it")
    for extra in node.outputs[1:]:
        if extra.uses() or extra.is_graph_output():
            c.freeze_value(node.outputs[0], f"{node.op_type} statistics are read")
        c.freeze_value(extra, f"{node.op_type} statistics")


def skip_layer_norm(c: Coupling, node: ir.Node) -> None:
    """com.microsoft Skip(Simplified)LayerNormalization: input + skip (+ bias), then a norm over the last axis."""
    for value in _projected(c, node.inputs[:2]):
        same_axes(c, value, node.outputs[0])
    if len(node.outputs) > 3:
        same_axes(c, node.outputs[0], node.outputs[3])
    axes = c.axes(node.outputs[0])
    if axes:
        c.freeze(axes[-1], f"{node.op_type} runs over it")


def group_norm(c: Coupling, node: ir.Node) -> None:
    """Statistics over channels and space: everything but the batch is frozen."""
    _mixing(c, node, 1, f"{node.op_type} runs over it")


def reduce(c: Coupling, node: ir.Node) -> None:
    """The reduced axes are frozen."""
    x, out = node.inputs[0], node.outputs[0]
    rank = c.rank(x)
    if x is None or rank is None:
        c.freeze_node(node, "its rank is unknown")
        return
    try:
        listed = axes_of(c.shapes, node) or None
    except ValueError:
        c.freeze_node(node, "its axes are not constant")
        return
    whole = set() if int_attr(node, "noop_with_empty_axes", 0) else set(range(rank))
    drop = {a % rank for a in listed} if listed is not None else whole
    keep = int_attr(node, "keepdims", 1)
    at = 0
    axes = c.axes(x) or ()
    for i in range(rank):
        if i in drop:
            c.freeze(axes[i], f"{node.op_type} runs over it")
            at += keep
        else:
            c.join(x, i, out, at)
            at += 1


def matmul(c: Coupling, node: ir.Node) -> None:
    """With a 2-D weight: a projection. Else ``[..., M, K] x [..., K, N]``: K is contracted, the rest passes."""
    trans_a, trans_b = int_attr(node, "transA", 0), int_attr(node, "transB", 0)
    plain = not trans_a and not int_attr(node, "transBatchA", 0) and not int_attr(node, "transBatchB", 0)
    if plain and c.project(node, bool(trans_b)):
        return
    if _opaque(c, node):
        return
    a, b, out = node.inputs[0], node.inputs[1], node.outputs[0]
    if a is None or b is None or not _projected(c, (a, b)):
        return
    axes_a, axes_b, axes_out = c.axes(a), c.axes(b), c.axes(out)
    if not plain or axes_a is None or axes_b is None or axes_out is None or min(len(axes_a), len(axes_b)) < 2:
        c.freeze_node(node, f"{node.op_type} of a form that is not followed")
        return
    k_b, n_b = (-1, -2) if trans_b else (-2, -1)
    for value, axes in ((a, axes_a), (b, axes_b)):
        own, shape = c.shapes.shape(value), c.shapes.shape(out)
        if own is None or shape is None:
            continue
        for i in range(len(axes) - 2):
            j = len(axes_out) - len(axes) + i
            if own[i] == shape[j]:
                if value in c.projected:
                    c.unite(axes[i], axes_out[j])
                elif own[i] != ONE:
                    c.freeze(axes_out[j], f"{value.name} runs along it in a product")
            elif own[i] != ONE:
                c.freeze(axes[i], f"{node.op_type} may broadcast it")
                c.freeze(axes_out[j], f"{node.op_type} may broadcast it")
    if a in c.projected:
        c.unite(axes_a[-2], axes_out[-2])
    if b in c.projected:
        c.unite(axes_b[n_b], axes_out[-1])
    if a in c.projected and b in c.projected:
        c.unite(axes_a[-1], axes_b[k_b])
        c.contractions[node] = Contraction(node, 0, 1, axes_a[-1])
    else:
        c.freeze(axes_a[-1] if a in c.projected else axes_b[k_b], f"{node.op_type} contracts it with a value of the graph")


def _opaque(c: Coupling, node: ir.Node) -> bool:
    reason = c.opaque_weights.get(node)
    if reason is not None:
        c.freeze_node(node, reason)
    return reason is not None


def gemm(c: Coupling, node: ir.Node) -> None:
    """``x W + c``; only as a projection with alpha = beta = 1 and an untransposed x."""
    attrs = node.attributes
    plain = not int_attr(node, "transA", 0) and all(attrs[name].as_float() == 1.0 for name in ("alpha", "beta") if name in attrs)
    if plain and c.project(node, bool(int_attr(node, "transB", 0))):
        added = node.inputs[2] if len(node.inputs) > 2 else None
        if added is not None and added in c.projected:
            _broadcast(c, [added], node.outputs[0])
        return
    weight = node.inputs[1]
    if not plain and weight is not None and constant(weight) is not None:
        c.opaque_weights.setdefault(node, "Gemm is followed with alpha and beta of 1 and an untransposed input alone")
    if not _opaque(c, node):
        c.freeze_node(node, "Gemm of a form that is not followed")


def reshape(c: Coupling, node: ir.Node) -> None:
    """Row-major order is kept, so the factors in a row are the same before and after."""
    x, out = node.inputs[0], node.outputs[0]
    axes_x, axes_out = (c.axes(x) if x is not None else None), c.axes(out)
    if axes_x is None or axes_out is None:
        c.freeze_node(node, f"{node.op_type} of unknown shape")
        return
    c.unite([f for a in axes_x for f in a], [f for a in axes_out for f in a], f"{node.op_type} does not line up with it")


def transpose(c: Coupling, node: ir.Node) -> None:
    """Axes change places."""
    x, out = node.inputs[0], node.outputs[0]
    rank = c.rank(x)
    if x is None or rank is None:
        c.freeze_node(node, "its rank is unknown")
        return
    for i, source in enumerate(permutation(node, rank)):
        c.join(x, source, out, i)


def unsqueeze(c: Coupling, node: ir.Node) -> None:
    """Axes of 1 come and go and have no factors, so the rest lines up in order."""
    reshape(c, node)


def expand(c: Coupling, node: ir.Node) -> None:
    """A broadcast against a shape; an axis of 1 that grows is new."""
    x, out = node.inputs[0], node.outputs[0]
    if x is not None:
        _broadcast(c, [x], out)


def tile(c: Coupling, node: ir.Node) -> None:
    """Repeats of 1 pass; an axis of 1 that grows is new; any other is frozen."""
    x, out = node.inputs[0], node.outputs[0]
    repeats = c.shapes.content(node.inputs[1])
    shape, axes = (c.shapes.shape(x) if x is not None else None), c.axes(out)
    if x is None or repeats is None or shape is None or axes is None:
        c.freeze_node(node, "Tile of unknown shape")
        return
    for i, times in enumerate(repeats):
        if times == ONE:
            c.join(x, i, out, i)
        elif shape[i] != ONE:
            c.freeze((c.axes(x) or ())[i], "Tile repeats it")
            c.freeze(axes[i], "Tile repeats it")


def _pick(c: Coupling, source: list[int], outer: Dim, inner: list[int], step: Dim) -> None:
    """``source = outer x inner x step``, where outer and step are enumerated."""
    before, after = c.new(outer), c.new(step)
    c.unite(source, [*before, *inner, *after])
    c.freeze([*before, *after], ENUMERATED)


def slice_(c: Coupling, node: ir.Node) -> None:
    """A slice that is one of equal parts (rotary halves) or of interleaved parts splits the axis; any other freezes it."""
    x, out = node.inputs[0], node.outputs[0]
    shape, axes_x, axes_out = (c.shapes.shape(x) if x is not None else None), c.axes(x) if x is not None else None, c.axes(out)
    if x is None or shape is None or axes_x is None or axes_out is None:
        c.freeze_node(node, "Slice of unknown shape")
        return
    try:
        starts, ends, axes, steps = slice_parts(c.shapes, node)
    except ValueError:
        c.freeze_node(node, "Slice of unknown axes")
        return
    parts = {a % len(shape): (s, e, t) for s, e, a, t in zip(starts, ends, axes, steps, strict=True)}
    for i, size in enumerate(shape):
        if i not in parts:
            c.unite(axes_x[i], axes_out[i])
            continue
        start, end, step = parts[i]
        if start == 0 and step == 1 and end is not None and end >= 2**31 - 1:
            c.unite(axes_x[i], axes_out[i])
            continue
        if any(None in (a, b) for j, (a, b, _) in parts.items() if j != i):
            c.freeze([*axes_x[i], *axes_out[i]], "Slice cuts it together with an axis that it cuts at a computed place")
            continue
        known = size.value
        if known is None or start is None or end is None:
            c.freeze([*axes_x[i], *axes_out[i]], "Slice cuts it at a computed place")
            continue
        first, last, _ = slice(start, end, step).indices(known)
        if step == 1 and last <= first:
            # Nothing of it: the rest of a head behind a rotary part that is all of it.
            continue
        if step == 1 and last > first and known % (last - first) == 0 and first % (last - first) == 0:
            _pick(c, axes_x[i], dim(known // (last - first)), axes_out[i], ONE)
        elif step > 1 and known % step == 0 and first < step and last > known - step + first:
            _pick(c, axes_x[i], ONE, axes_out[i], dim(step))
        else:
            c.freeze([*axes_x[i], *axes_out[i]], "Slice cuts it into unequal parts")


def split(c: Coupling, node: ir.Node) -> None:
    """Equal parts split the axis; unequal parts freeze it."""
    x = node.inputs[0]
    rank = c.rank(x)
    axes_x = c.axes(x) if x is not None else None
    if x is None or rank is None or axes_x is None:
        c.freeze_node(node, "Split of unknown shape")
        return
    axis = int_attr(node, "axis", 0) % rank
    sizes = split_sizes(c.shapes, node)
    for out in node.outputs:
        for i in range(rank):
            if i != axis:
                c.join(x, i, out, i)
    if sizes is not None and len(set(sizes)) == 1:
        for out in node.outputs:
            axes_out = c.axes(out)
            if axes_out is not None:
                _pick(c, axes_x[axis], dim(len(sizes)), axes_out[axis], ONE)
    else:
        c.freeze(axes_x[axis], "Split cuts it into unequal parts")
        for out in node.outputs:
            c.freeze((c.axes(out) or [[]] * rank)[axis], "Split cuts it into unequal parts")


def concat(c: Coupling, node: ir.Node) -> None:
    """Equal parts make an axis of parts; any other concatenation freezes it."""
    out = node.outputs[0]
    rank = c.rank(out)
    axes_out = c.axes(out)
    if rank is None or axes_out is None:
        c.freeze_node(node, "Concat of unknown rank")
        return
    axis = int_attr(node, "axis", 0) % rank
    inputs = [v for v in node.inputs if v is not None]
    # Nothing adds nothing: the rest of a head behind a rotary part that is all of it.
    inputs = [v for v in inputs if (shape := c.shapes.shape(v)) is None or shape[axis] != dim(0)]
    sizes = {shape[axis] if (shape := c.shapes.shape(v)) is not None else None for v in inputs}
    whole = len(sizes) == 1 and None not in sizes and all(v in c.projected for v in inputs)
    for value in inputs:
        if value not in c.projected:
            own, shape = c.shapes.shape(value), c.shapes.shape(out)
            for i in range(rank):
                # A part that no projection made has the full width of the other axes: it cannot follow their changes.
                if i != axis and own is not None and shape is not None and own[i] != ONE:
                    c.freeze(axes_out[i], f"Concat with {value.name}")
            continue
        for i in range(rank):
            if i != axis:
                c.join(value, i, out, i)
        mine = c.axes(value)
        if mine is None:
            continue
        if whole:
            _pick(c, axes_out[axis], dim(len(inputs)), mine[axis], ONE)
        else:
            c.freeze([*mine[axis], *axes_out[axis]], "Concat of unequal parts")


def gather(c: Coupling, node: ir.Node) -> None:
    """One constant index of an axis enumerates it; anything else freezes the gathered axis."""
    x, index, out = node.inputs[0], node.inputs[1], node.outputs[0]
    rank, axes_x = c.rank(x), c.axes(x) if x is not None else None
    index_rank = c.rank(index)
    if x is None or x not in c.projected or rank is None or axes_x is None or index_rank is None:
        c.freeze_node(node, "Gather by a value that a projection made")
        return
    axis = int_attr(node, "axis", 0) % rank
    enumerated = index_rank == 0 and constant_ints(index) is not None
    c.freeze(axes_x[axis], ENUMERATED if enumerated else "Gather picks from it")
    for i in range(rank):
        if i != axis:
            c.join(x, i, out, i if i < axis else i - 1 + index_rank)
    axes_out = c.axes(out)
    if axes_out is not None:
        for i in range(axis, axis + index_rank):
            c.freeze(axes_out[i], "Gather made it")


def einsum(c: Coupling, node: ir.Node) -> None:
    """Equal labels are one axis; a label of both operands that the result lacks is contracted."""
    try:
        terms, result = einsum_terms(node)
    except ValueError:
        c.freeze_node(node, "Einsum of a form that is not followed")
        return
    values = [v for v in node.inputs if v is not None]
    if len(values) != 2 or any(v not in c.projected for v in values) or any(len(set(t)) != len(t) for t in (*terms, result)):
        c.freeze_node(node, "Einsum of a form that is not followed")
        return
    factors: dict[str, list[int]] = {}
    for term, value in (*zip(terms, values, strict=True), (result, node.outputs[0])):
        axes = c.axes(value)
        if axes is None or len(axes) != len(term):
            c.freeze_node(node, "Einsum of unknown shape")
            return
        for label, own in zip(term, axes, strict=True):
            if label in factors:
                c.unite(factors[label], own)
            else:
                factors[label] = own
    summed = [label for label in factors if label not in result]
    if any(label not in terms[0] or label not in terms[1] for label in summed):
        c.freeze_node(node, "Einsum sums over an axis of one operand")
        return
    c.contractions[node] = Contraction(node, 0, 1, [f for label in summed for f in factors[label]])


def shape_only(c: Coupling, node: ir.Node) -> None:
    """Shape reads no numbers; what is computed from it keeps its original value when an axis shrinks."""


def size(c: Coupling, node: ir.Node) -> None:
    """Size counts all axes at once: none of them may change."""
    c.freeze_value(node.inputs[0], "Size counts it")


_UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish
    Identity IsInf IsNaN LeakyRelu Log Mish Neg Not QuickGelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Swish Tan Tanh ThresholdedRelu CastLike""".split()
_BINARY = """Add Sub Mul Div Pow Mod Min Max Mean Sum And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Where PRelu
    BiasGelu FastGelu""".split()
_REDUCE = "Max Min Mean Sum Prod L1 L2 LogSum LogSumExp SumSquare".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_BINARY, elementwise),
    **{f"Reduce{kind}": reduce for kind in _REDUCE},
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Hardmax": softmax,
    "LayerNormalization": layer_norm,
    "RMSNormalization": layer_norm,
    "SimplifiedLayerNormalization": layer_norm,
    "SkipLayerNormalization": skip_layer_norm,
    "SkipSimplifiedLayerNormalization": skip_layer_norm,
    "InstanceNormalization": group_norm,
    "GroupNormalization": group_norm,
    "BatchNormalization": group_norm,
    "MatMul": matmul,
    "FusedMatMul": matmul,
    "Gemm": gemm,
    "Reshape": reshape,
    "Flatten": reshape,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Squeeze": unsqueeze,
    "Expand": expand,
    "Tile": tile,
    "Slice": slice_,
    "Split": split,
    "Concat": concat,
    "Gather": gather,
    "Einsum": einsum,
    "Shape": shape_only,
    "Size": size,
    "RotaryEmbedding": rotary,
    "Attention": attention,
    "MultiHeadAttention": multi_head_attention,
    "GroupQueryAttention": group_query_attention,
}
