"""The shape rule of every operator whose result's shape is followed symbolically.

A rule returns the shapes of the node's outputs, as far as it knows them, and the content of the first one where that is a small
integer value that shapes are computed from.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.structure.arguments import (
    Known,
    axes_of,
    einsum_terms,
    int_attr,
    permutation,
    reshape_target,
    slice_parts,
    split_sizes,
)
from inarch.structure.contents import MOST, Content, combined, number
from inarch.structure.dims import ONE, Dim, Shape, add, broadcast, dim, floor_div, one_of, opaque, product

UNARY = frozenset(
    """Abs Acos Acosh Asin Asinh Atan Atanh BitShift Cast CastLike Ceil Celu Clip Cos Cosh CumSum Dropout Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Hardmax Identity IsInf IsNaN LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg
    Not PRelu Reciprocal Relu Round ScatterElements ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt
    Swish Tan Tanh ThresholdedRelu Trilu InstanceNormalization GroupNormalization BatchNormalization LayerNormalization
    RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization BiasGelu FastGelu
    QuickGelu QuantizeLinear DequantizeLinear FakeQuant RotaryEmbedding""".split()
)
"""Operators whose first output has the shape of their first input."""

BROADCAST = frozenset(
    """Add Sub Mul Div Pow Mod Min Max Mean Sum And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Where
    BitwiseAnd BitwiseOr BitwiseXor""".split()
)
"""Operators whose output is the numpy broadcast of all inputs."""


Result = tuple[list[Shape | None], Content | None]
Rule = Callable[[Known, ir.Node], Result]
DOMAINS = ("", "ai.onnx", "com.microsoft")


def _elementwise(s: Known, node: ir.Node) -> Result:
    shape = broadcast([s.need(v) for v in node.inputs])
    return [shape], combined(s, node) if len(shape) <= 1 else None


def _shape_op(s: Known, node: ir.Node) -> Result:
    shape = s.need(node.inputs[0])
    start, end = int_attr(node, "start", 0), int_attr(node, "end", len(shape))
    picked = shape[start:end]
    return [(dim(len(picked)),)], picked


def _constant(s: Known, node: ir.Node) -> Result:
    return [s.shape(node.outputs[0])], None


def _constant_of_shape(s: Known, node: ir.Node) -> Result:
    target = s.content(node.inputs[0])
    if target is None:
        return [None], None
    attr = node.attributes.get("value")
    fill = attr.as_tensor().numpy().reshape(-1)[0] if attr is not None else np.float32(0)
    content = None
    if isinstance(fill, np.integer) and len(target) == 1 and target[0].value is not None and target[0].value <= MOST:
        content = (dim(int(fill)),) * target[0].value
    return [target], content


def _gather(s: Known, node: ir.Node) -> Result:
    data, index = s.need(node.inputs[0]), s.need(node.inputs[1])
    axis = int_attr(node, "axis", 0) % len(data)
    content, picks = s.content(node.inputs[0]), s.ints(node.inputs[1])
    picked = tuple(content[i] for i in picks) if content is not None and picks is not None and len(data) == 1 else None
    return [data[:axis] + index + data[axis + 1 :]], picked


def _gather_elements(s: Known, node: ir.Node) -> Result:
    return [s.need(node.inputs[1])], None


def _gather_nd(s: Known, node: ir.Node) -> Result:
    data, index = s.need(node.inputs[0]), s.need(node.inputs[1])
    batch, last = int_attr(node, "batch_dims", 0), index[-1].value
    return [index[:-1] + data[batch + last :] if last is not None else None], None


def _unsqueeze(s: Known, node: ir.Node) -> Result:
    shape, axes = list(s.need(node.inputs[0])), axes_of(s, node) or []
    rank = len(shape) + len(axes)
    for axis in sorted(a % rank for a in axes):
        shape.insert(axis, ONE)
    return [tuple(shape)], s.content(node.inputs[0])


def _squeeze(s: Known, node: ir.Node) -> Result:
    shape, axes = s.need(node.inputs[0]), axes_of(s, node)
    drop = {a % len(shape) for a in axes} if axes is not None else {i for i, d in enumerate(shape) if d == ONE}
    return [tuple(d for i, d in enumerate(shape) if i not in drop)], s.content(node.inputs[0])


def _rolled(s: Known, node: ir.Node, axis: int) -> Dim | None:
    """The size of an axis that Slices took to pieces, where a Concat puts all of them together again in any order."""
    source: ir.Value | None = None
    pieces: dict[int | None, int | None] = {}
    for value in node.inputs:
        cut = value.producer() if value is not None else None
        if cut is None or cut.op_type != "Slice" or (source is not None and cut.inputs[0] is not source):
            return None
        source = cut.inputs[0]
        try:
            starts, ends, axes, steps = slice_parts(s, cut)
        except ValueError:
            return None
        if len(axes) != 1 or axes[0] % len(s.need(source)) != axis or steps != [1] or starts[0] in pieces:
            return None
        pieces[starts[0]] = ends[0]
    at: int | None = 0
    while pieces and at is not None:
        at = pieces.pop(at, None)
    return s.need(source)[axis] if not pieces and at is not None and at >= 2**31 - 1 else None


def _concat(s: Known, node: ir.Node) -> Result:
    shapes = [s.need(v) for v in node.inputs]
    axis = int_attr(node, "axis", 0) % len(shapes[0])
    total = _rolled(s, node, axis)
    if total is None:
        total = shapes[0][axis]
        for other in shapes[1:]:
            total = add(total, other[axis])
    contents = [s.content(v) for v in node.inputs]
    joined = None
    if all(c is not None for c in contents) and len(shapes[0]) == 1:
        joined = tuple(d for c in contents if c is not None for d in c)
    merged = broadcast([sh[:axis] + (ONE,) + sh[axis + 1 :] for sh in shapes])
    return [merged[:axis] + (total,) + merged[axis + 1 :]], joined


def _numbers(s: Known, value: ir.Value | None) -> npt.NDArray[np.object_] | None:
    """The content of a value in its shape."""
    content = s.content(value)
    if content is None:
        return None
    flat = np.empty(len(content), np.object_)
    flat[:] = content
    return flat.reshape([d.coef for d in s.need(value)])


def _slice(s: Known, node: ir.Node) -> Result:
    shape = list(s.need(node.inputs[0]))
    starts, ends, axes, steps = slice_parts(s, node)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        if start is not None and end is not None and size.value is not None:
            shape[axis % len(shape)] = dim(len(range(size.value)[start:end:step]))
        elif start == 0 and end is not None and end >= 2**31 - 1 and step == 1:
            pass
        elif (start, end, step) == (0, 1, 1) or (start == -1 and end is not None and end >= 2**31 - 1 and step == 1):
            shape[axis % len(shape)] = one_of(size)
        else:
            # Equal bounds of equal sizes make equal sizes; computed bounds are known only as this node's.
            whose = "" if start is not None and end is not None else node.outputs[0].name
            shape[axis % len(shape)] = opaque("slice", size, start, end, step, whose)
    numbers = _numbers(s, node.inputs[0])
    if numbers is None or None in starts or None in ends:
        return [tuple(shape)], None
    cut = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[axis % len(shape)] = slice(start, end, step)
    return [tuple(shape)], tuple(numbers[tuple(cut)].reshape(-1))


def _split(s: Known, node: ir.Node) -> Result:
    shape = s.need(node.inputs[0])
    axis = int_attr(node, "axis", 0) % len(shape)
    sizes = split_sizes(s, node)
    content = s.content(node.inputs[0])
    result: list[Shape | None] = []
    at = 0
    for i, value in enumerate(node.outputs):
        piece = dim(sizes[i]) if sizes is not None else opaque("split", node.outputs[i].name)
        result.append(shape[:axis] + (piece,) + shape[axis + 1 :])
        if content is not None and sizes is not None and i and len(shape) == 1:
            s.note(value, content[at : at + sizes[i]])
        at += sizes[i] if sizes is not None else 0
    return result, content[: sizes[0]] if content is not None and sizes is not None and len(shape) == 1 else None


def _reshape(s: Known, node: ir.Node) -> Result:
    return [reshape_target(s, node)], s.content(node.inputs[0])


def _flatten(s: Known, node: ir.Node) -> Result:
    shape = s.need(node.inputs[0])
    axis = int_attr(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [(product(shape[:axis]), product(shape[axis:]))], None


def _expand(s: Known, node: ir.Node) -> Result:
    target, given = s.content(node.inputs[1]), s.need(node.inputs[0])
    if target is None:
        length = s.need(node.inputs[1])[0].value
        if length is None:
            return [None], None
        target = tuple(opaque("expand", node.outputs[0].name, i) for i in range(length))
    shape = broadcast([given, target])
    content = s.content(node.inputs[0])
    size = shape[0].value if len(shape) == 1 else None
    if not content or size is None or size > MOST:
        return [shape], None
    return [shape], content * (size // len(content))


def _tile(s: Known, node: ir.Node) -> Result:
    repeats = s.content(node.inputs[1])
    if repeats is None:
        return [None], None
    return [tuple(a * b for a, b in zip(s.need(node.inputs[0]), repeats, strict=True))], None


def _transpose(s: Known, node: ir.Node) -> Result:
    shape = s.need(node.inputs[0])
    order = permutation(node, len(shape))
    numbers = _numbers(s, node.inputs[0])
    return [tuple(shape[i] for i in order)], None if numbers is None else tuple(numbers.transpose(order).reshape(-1))


def _matmul(s: Known, node: ir.Node) -> Result:
    a, b = s.need(node.inputs[0]), s.need(node.inputs[1])
    if len(a) == 1 or len(b) == 1:
        return [None], None
    if node.op_type == "FusedMatMul":
        a = a[:-2] + (a[-1], a[-2]) if int_attr(node, "transA", 0) else a
        b = b[:-2] + (b[-1], b[-2]) if int_attr(node, "transB", 0) else b
    return [broadcast([a[:-2] or (), b[:-2] or ()]) + (a[-2], b[-1])], None


def _gemm(s: Known, node: ir.Node) -> Result:
    a, b = s.need(node.inputs[0]), s.need(node.inputs[1])
    rows = a[1] if int_attr(node, "transA", 0) else a[0]
    columns = b[0] if int_attr(node, "transB", 0) else b[1]
    return [(rows, columns)], None


def _conv(s: Known, node: ir.Node) -> Result:
    x, w = s.need(node.inputs[0]), s.need(node.inputs[1])
    kernel = node.attributes.get("kernel_shape")
    sizes = [int(k) for k in kernel.as_ints()] if kernel is not None else [d.coef for d in w[2:]]
    spatial = len(sizes)

    def listed(name: str, default: list[int]) -> list[int]:
        attr = node.attributes.get(name)
        return [int(i) for i in attr.as_ints()] if attr is not None else default

    strides, dilations = listed("strides", [1] * spatial), listed("dilations", [1] * spatial)
    pads, auto = listed("pads", [0] * 2 * spatial), node.attributes.get("auto_pad")
    how = auto.as_string() if auto is not None else "NOTSET"
    result = [x[0], w[0]]
    for i, (size, kernel_size, stride, dilation) in enumerate(zip(x[2:], sizes, strides, dilations, strict=True)):
        reach = dilation * (kernel_size - 1)
        padding = 0 if how == "VALID" else pads[i] + pads[i + spatial]
        if how.startswith("SAME"):
            result.append(size if stride == 1 else floor_div(add(size, dim(stride - 1)), dim(stride)))
        elif stride == 1 and padding == reach:
            result.append(size)
        elif size.value is None:
            result.append(opaque("conv", size, kernel_size, stride, padding, dilation))
        else:
            result.append(dim((size.value + padding - reach - 1) // stride + 1))
    return [tuple(result)], None


def _reduce(s: Known, node: ir.Node) -> Result:
    shape, axes = s.need(node.inputs[0]), axes_of(s, node) or None
    if axes is None and int_attr(node, "noop_with_empty_axes", 0):
        return [shape], None
    drop = {a % len(shape) for a in axes} if axes is not None else set(range(len(shape)))
    if int_attr(node, "keepdims", 1):
        return [tuple(ONE if i in drop else d for i, d in enumerate(shape))], None
    content = s.content(node.inputs[0])
    folded = (product(content),) if node.op_type == "ReduceProd" and content is not None and len(shape) == 1 else None
    return [tuple(d for i, d in enumerate(shape) if i not in drop)], folded


def _arg(s: Known, node: ir.Node) -> Result:
    shape = s.need(node.inputs[0])
    axis = int_attr(node, "axis", 0) % len(shape)
    return [shape[:axis] + (ONE,) * int_attr(node, "keepdims", 1) + shape[axis + 1 :]], None


def _resize(s: Known, node: ir.Node) -> Result:
    sizes = s.content(node.inputs[3]) if len(node.inputs) > 3 else None
    rank = len(s.need(node.inputs[0]))
    if sizes is not None and len(sizes) == rank:
        return [sizes], None
    return [tuple(opaque("resize", node.outputs[0].name, i) for i in range(rank))], None


def _pad(s: Known, node: ir.Node) -> Result:
    shape = list(s.need(node.inputs[0]))
    listed = node.attributes.get("pads")
    pads = tuple(dim(int(n)) for n in listed.as_ints()) if listed is not None else s.content(node.inputs[1])
    axes = s.ints(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else list(range(len(shape)))
    if pads is None or axes is None:
        return [tuple(opaque("size", node.outputs[0].name, i) for i in range(len(shape)))], None
    for i, axis in enumerate(axes):
        before, after, size = pads[i], pads[i + len(axes)], shape[axis % len(shape)]
        parts = (size.value, before.value, after.value)
        known = sum(n for n in parts if n is not None) if None not in parts else None
        same = before.value == 0 and after.value == 0
        shape[axis % len(shape)] = size if same else opaque("pad", size, before, after) if known is None else dim(known)
    return [tuple(shape)], None


def _same_rank(s: Known, node: ir.Node) -> Result:
    """Pooling and the like: as many axes, of sizes that nothing here depends on."""
    first = s.need(node.inputs[0])
    kept = first[:2] if "Pool" in node.op_type else first[:1]
    return [(*kept, *(opaque("size", node.outputs[0].name, i) for i in range(len(kept), len(first))))], None


def _range(s: Known, node: ir.Node) -> Result:
    start, limit, delta = (s.content(v) for v in node.inputs[:3])
    first, last, step = (number(s, v) for v in node.inputs[:3])
    if start is not None and limit is not None and delta is not None:
        if start[0].value == 0 and delta[0].value == 1:
            size = limit[0]
            known = size.value
            return [(size,)], tuple(dim(i) for i in range(known)) if known is not None and known <= MOST else None
        return [(opaque("range", start[0], limit[0], delta[0]),)], None
    if first is not None and last is not None and step is not None:
        # As ONNX Runtime counts: the difference in the numbers' type, the quotient in double precision.
        return [(dim(max(math.ceil(float(last - first) / float(step)), 0)),)], None
    return [(opaque("range", node.outputs[0].name),)], None


def _einsum(s: Known, node: ir.Node) -> Result:
    terms, result = einsum_terms(node)
    sizes: dict[str, Dim] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        for label, size in zip(term, s.need(value), strict=True):
            if sizes.get(label, ONE) == ONE:
                sizes[label] = size
    return [tuple(sizes[label] for label in result)], None


def _size(s: Known, node: ir.Node) -> Result:
    return [()], (product(s.need(node.inputs[0])),)


def _attention(s: Known, node: ir.Node) -> Result:
    q, v = s.need(node.inputs[0]), s.need(node.inputs[2])
    if node.op_type == "MultiHeadAttention":
        return [q[:-1] + (v[-1],) if len(q) == 3 and len(v) == 3 else None], None
    if len(q) == 4:
        return [q[:-1] + (v[-1],)], None
    heads, kv_heads = int_attr(node, "q_num_heads", 0), int_attr(node, "kv_num_heads", 0)
    per_head = v[-1].over(dim(kv_heads))
    return [q[:-1] + (dim(heads) * per_head,) if per_head is not None else None], None


def _packed_attention(s: Known, node: ir.Node) -> Result:
    x, w = s.need(node.inputs[0]), s.need(node.inputs[1])
    sizes = node.attributes.get("qkv_hidden_sizes")
    out = dim(int(sizes.as_ints()[2])) if sizes is not None else w[1].over(dim(3))
    return [x[:-1] + (out,) if out is not None else None], None


def _embed_layer_norm(s: Known, node: ir.Node) -> Result:
    """com.microsoft EmbedLayerNormalization: ids [B, S] and a table [V, C] make [B, S, C], mask lengths [B], and the sum."""
    ids, table = s.need(node.inputs[0]), s.need(node.inputs[2])
    embedded = (*ids, table[-1])
    return [embedded, ids[:1], embedded], None


_REDUCE = "Max Min Mean Sum Prod L1 L2 LogSum LogSumExp SumSquare".split()

SHAPE_RULES: dict[str, Rule] = {
    **dict.fromkeys(BROADCAST, _elementwise),
    **{f"Reduce{kind}": _reduce for kind in _REDUCE},
    "Shape": _shape_op,
    "Size": _size,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Expand": _expand,
    "Tile": _tile,
    "Transpose": _transpose,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "FusedConv": _conv,
    "Resize": _resize,
    "Upsample": _same_rank,
    "ConvTranspose": _same_rank,
    "DeformConv": _same_rank,
    "Pad": _pad,
    "MaxPool": _same_rank,
    "AveragePool": _same_rank,
    "GlobalAveragePool": _same_rank,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Range": _range,
    "Einsum": _einsum,
    "Attention": lambda s, n: _packed_attention(s, n) if n.domain == "com.microsoft" else _attention(s, n),
    "MultiHeadAttention": _attention,
    "EmbedLayerNormalization": _embed_layer_norm,
}
