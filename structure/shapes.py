"""Symbolic shapes of every value of a graph, and the contents of the small integer values that shapes are computed from.

The exporters compute reshape targets in the graph (Shape, Gather, Mul, Concat ...). To know which axis of a Reshape is the
head axis, those targets are followed symbolically: an entry is a :class:`~inarch.structure.dims.Dim`. An operator that is not
known here falls back to the shape recorded in the model; where there is none the value has no shape, and what reads it freezes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from inarch.structure.dims import ONE, Dim, Shape, add, broadcast, dim, floor_div, opaque, product

_SMALL = 4096

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


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node, without reading a large one's data; None for anything else."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for name, attr in node.attributes.items():
        if name == "value":
            # Not as_tensor(): its check against a runtime protocol takes most of the time of an analysis.
            tensor: ir.TensorProtocol = attr.value
            return tensor
        if name == "value_int":
            return ir.tensor(np.array(attr.as_int(), np.int64))
        if name == "value_ints":
            return ir.tensor(np.array(attr.as_ints(), np.int64))
        if name == "value_float":
            return ir.tensor(np.array(attr.as_float(), np.float32))
        if name == "value_floats":
            return ir.tensor(np.array(attr.as_floats(), np.float32))
    return None


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """The numbers of a small constant integer tensor, flattened, or None."""
    tensor = constant(value)
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or tensor.size > _SMALL:
        return None
    return [int(n) for n in tensor.numpy().reshape(-1)]


class Shapes:
    """Shapes and integer contents of all values of a graph, subgraphs excluded.

    Args:
        graph: the graph; it is not changed.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._shape: dict[ir.Value, Shape | None] = {}
        self._content: dict[ir.Value, tuple[Dim, ...]] = {}
        for value in (*graph.inputs, *graph.initializers.values()):
            self._shape[value] = self._declared(value)
        for node in graph:
            self._visit(node)

    def shape(self, value: ir.Value) -> Shape | None:
        """The shape, or None where it cannot be known."""
        if value not in self._shape:
            self._shape[value] = self._declared(value)
        return self._shape[value]

    def content(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Entries of a small integer value, flattened, or None."""
        if value is None:
            return None
        if value not in self._content:
            ints = constant_ints(value)
            if ints is None or len(ints) > 64:
                return None
            self._content[value] = tuple(dim(n) for n in ints)
        return self._content[value]

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """Content where every entry is known."""
        content = self.content(value)
        if content is None or any(d.value is None for d in content):
            return None
        return [d.coef for d in content]

    @staticmethod
    def _declared(value: ir.Value) -> Shape | None:
        tensor = constant(value)
        declared: Iterable[object] | None = tensor.shape if tensor is not None else value.shape
        if declared is None:
            return None
        dims: list[Dim] = []
        for i, size in enumerate(declared):
            if isinstance(size, int):
                dims.append(dim(size))
            else:
                name = getattr(size, "value", None)
                dims.append(Dim(1, (str(name),)) if name is not None else opaque("dim", value.name, i))
        return tuple(dims)

    def _visit(self, node: ir.Node) -> None:
        rule = _RULES.get(node.op_type)
        outputs: list[Shape | None] = [None] * len(node.outputs)
        content: tuple[Dim, ...] | None = None
        if rule is not None and node.domain in _DOMAINS:
            try:
                outputs, content = rule(self, node)
            except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError):
                # A node that breaks its operator's own rules is ORT's to refuse; here its shape is merely unknown.
                outputs = []
        elif node.domain in _DOMAINS and node.op_type in UNARY:
            first = self.shape(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
            outputs = [first] + [None] * (len(node.outputs) - 1)
            if node.op_type in ("Cast", "Identity", "Abs", "Floor", "Ceil", "CastLike"):
                content = self.content(node.inputs[0])
        for i, value in enumerate(node.outputs):
            mine = outputs[i] if i < len(outputs) else None
            self._shape[value] = self._merge(mine, self._declared(value))
        if content is not None and len(content) <= 64:
            self._content[node.outputs[0]] = content

    @staticmethod
    def _merge(mine: Shape | None, declared: Shape | None) -> Shape | None:
        """Prefer what was computed; take a recorded integer where the computed size is an unknown."""
        if mine is None or declared is None or len(mine) != len(declared):
            return mine if mine is not None else declared
        return tuple(d if m.value is None and d.value is not None else m for m, d in zip(mine, declared, strict=True))

    def need(self, value: ir.Value | None) -> Shape:
        """The shape of a value that a rule cannot do without.

        Raises:
            ValueError: there is none.
        """
        shape = self.shape(value) if value is not None else None
        if shape is None:
            raise ValueError("shape unknown")
        return shape


_Result = tuple[list[Shape | None], tuple[Dim, ...] | None]
_Rule = Callable[[Shapes, ir.Node], _Result]
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def axes_of(shapes: Shapes, node: ir.Node, position: int = 1) -> list[int] | None:
    """The ``axes`` of an operator that takes them as attribute (older opsets) or as input ``position``; None where absent."""
    attr = node.attributes.get("axes")
    if attr is not None:
        return [int(a) for a in attr.as_ints()]
    if len(node.inputs) > position and node.inputs[position] is not None:
        axes = shapes.ints(node.inputs[position])
        if axes is None:
            raise ValueError("axes are not constant")
        return axes
    return None


def data_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs whose numbers a node reads: of the second input of CastLike it reads the type alone."""
    return node.inputs[:1] if node.op_type == "CastLike" and node.domain in ("", "ai.onnx") else node.inputs


def int_attr(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute or its default."""
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.as_int())


def _elementwise(s: Shapes, node: ir.Node) -> _Result:
    shape = broadcast([s.need(v) for v in node.inputs])
    operands = [s.content(v) for v in node.inputs]
    content = None
    if len(operands) == 2 and len(shape) <= 1:
        a, b = operands
        if a is not None and b is not None and (len(a) == len(b) or 1 in (len(a), len(b))):
            size = max(len(a), len(b))
            pairs = list(zip(a * (size // len(a)), b * (size // len(b)), strict=True)) if a and b else []
            content = _arithmetic(node.op_type, pairs)
    elif node.op_type == "Where" and len(shape) <= 1:
        content = _where(*operands)
    return [shape], content


def _where(test: tuple[Dim, ...] | None, yes: tuple[Dim, ...] | None, no: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    if test is None or yes is None or no is None or any(t.value is None for t in test):
        return None
    size = max(len(test), len(yes), len(no))
    rows = zip(test * (size // len(test)), yes * (size // len(yes)), no * (size // len(no)), strict=True)
    return tuple(y if t.coef else n for t, y, n in rows)


def _arithmetic(op: str, pairs: Sequence[tuple[Dim, Dim]]) -> tuple[Dim, ...] | None:
    if op == "Add":
        return tuple(add(a, b) for a, b in pairs)
    if op == "Mul":
        return tuple(a * b for a, b in pairs)
    if op == "Div":
        return tuple(floor_div(a, b) for a, b in pairs)
    if op == "Sub":
        return tuple(
            dim(a.value - b.value) if a.value is not None and b.value is not None else dim(0) if a == b else opaque("sub", a, b)
            for a, b in pairs
        )
    if op == "Equal":
        equal = [_equal(a, b) for a, b in pairs]
        if None not in equal:
            return tuple(dim(int(bool(e))) for e in equal)
    return None


def _equal(a: Dim, b: Dim) -> bool | None:
    """Whether two entries are equal, or None; a size is never negative, so it is never torch's -1 for "as it is"."""
    if a == b or (a.value is not None and b.value is not None):
        return a == b
    negative = [d.value is not None and d.value < 0 for d in (a, b)]
    return False if negative[0] != negative[1] else None


def _shape_op(s: Shapes, node: ir.Node) -> _Result:
    shape = s.need(node.inputs[0])
    start, end = int_attr(node, "start", 0), int_attr(node, "end", len(shape))
    picked = shape[start:end]
    return [(dim(len(picked)),)], picked


def _constant(s: Shapes, node: ir.Node) -> _Result:
    return [s.shape(node.outputs[0])], None


def _constant_of_shape(s: Shapes, node: ir.Node) -> _Result:
    target = s.content(node.inputs[0])
    if target is None:
        return [None], None
    attr = node.attributes.get("value")
    fill = attr.as_tensor().numpy().reshape(-1)[0] if attr is not None else np.float32(0)
    content = None
    if isinstance(fill, np.integer) and len(target) == 1 and target[0].value is not None and target[0].value <= 64:
        content = (dim(int(fill)),) * target[0].value
    return [target], content


def _gather(s: Shapes, node: ir.Node) -> _Result:
    data, index = s.need(node.inputs[0]), s.need(node.inputs[1])
    axis = int_attr(node, "axis", 0) % len(data)
    content, picks = s.content(node.inputs[0]), s.ints(node.inputs[1])
    picked = tuple(content[i] for i in picks) if content is not None and picks is not None and len(data) == 1 else None
    return [data[:axis] + index + data[axis + 1 :]], picked


def _gather_elements(s: Shapes, node: ir.Node) -> _Result:
    return [s.need(node.inputs[1])], None


def _gather_nd(s: Shapes, node: ir.Node) -> _Result:
    data, index = s.need(node.inputs[0]), s.need(node.inputs[1])
    batch, last = int_attr(node, "batch_dims", 0), index[-1].value
    return [index[:-1] + data[batch + last :] if last is not None else None], None


def _unsqueeze(s: Shapes, node: ir.Node) -> _Result:
    shape, axes = list(s.need(node.inputs[0])), axes_of(s, node) or []
    rank = len(shape) + len(axes)
    for axis in sorted(a % rank for a in axes):
        shape.insert(axis, ONE)
    return [tuple(shape)], s.content(node.inputs[0])


def _squeeze(s: Shapes, node: ir.Node) -> _Result:
    shape, axes = s.need(node.inputs[0]), axes_of(s, node)
    drop = {a % len(shape) for a in axes} if axes is not None else {i for i, d in enumerate(shape) if d == ONE}
    return [tuple(d for i, d in enumerate(shape) if i not in drop)], s.content(node.inputs[0])


def _concat(s: Shapes, node: ir.Node) -> _Result:
    shapes = [s.need(v) for v in node.inputs]
    axis = int_attr(node, "axis", 0) % len(shapes[0])
    total = shapes[0][axis]
    for other in shapes[1:]:
        total = add(total, other[axis])
    contents = [s.content(v) for v in node.inputs]
    joined = None
    if all(c is not None for c in contents) and len(shapes[0]) == 1:
        joined = tuple(d for c in contents if c is not None for d in c)
    merged = broadcast([sh[:axis] + (ONE,) + sh[axis + 1 :] for sh in shapes])
    return [merged[:axis] + (total,) + merged[axis + 1 :]], joined


def _slice(s: Shapes, node: ir.Node) -> _Result:
    shape = list(s.need(node.inputs[0]))
    starts, ends, axes, steps = slice_parts(s, node)
    content = s.content(node.inputs[0])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        if start is not None and end is not None and size.value is not None:
            shape[axis % len(shape)] = dim(len(range(size.value)[start:end:step]))
        elif start == 0 and end is not None and end >= 2**31 - 1 and step == 1:
            pass
        else:
            shape[axis % len(shape)] = opaque("slice", size, start if start is not None else node.name, end, step, node.name)
    if content is not None and len(shape) == 1 and starts[0] is not None and ends[0] is not None:
        return [tuple(shape)], content[starts[0] : ends[0] : steps[0]]
    return [tuple(shape)], None


def slice_parts(s: Shapes, node: ir.Node) -> tuple[list[int | None], list[int | None], list[int], list[int]]:
    """Starts, ends, axes and steps of a Slice; a start or end that is not constant is None.

    Raises:
        ValueError: axes or steps are not constant.
    """
    if "starts" in node.attributes:
        starts: list[int | None] = [int(i) for i in node.attributes["starts"].as_ints()]
        ends: list[int | None] = [int(i) for i in node.attributes["ends"].as_ints()]
        listed = node.attributes.get("axes")
        axes = [int(i) for i in listed.as_ints()] if listed is not None else list(range(len(starts)))
        return starts, ends, axes, [1] * len(starts)
    first, last = s.content(node.inputs[1]), s.content(node.inputs[2])
    count = s.need(node.inputs[1])[0].value
    if count is None:
        raise ValueError("slice of unknown rank")
    starts = [d.value for d in first] if first is not None else [None] * count
    ends = [d.value for d in last] if last is not None else [None] * count
    axes = list(range(count))
    steps = [1] * count
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        found = s.ints(node.inputs[3])
        if found is None:
            raise ValueError("slice axes are not constant")
        axes = found
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        found = s.ints(node.inputs[4])
        if found is None:
            raise ValueError("slice steps are not constant")
        steps = found
    return starts, ends, axes, steps


def split_sizes(s: Shapes, node: ir.Node) -> list[int] | None:
    """Sizes of the pieces of a Split on a known axis, or None."""
    shape = s.need(node.inputs[0])
    axis = int_attr(node, "axis", 0) % len(shape)
    attr = node.attributes.get("split")
    if attr is not None:
        return [int(i) for i in attr.as_ints()]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return s.ints(node.inputs[1])
    total, count = shape[axis].value, len(node.outputs)
    if total is None:
        return None
    piece = -(-total // count)
    return [min(piece, total - i * piece) for i in range(count)]


def _split(s: Shapes, node: ir.Node) -> _Result:
    shape = s.need(node.inputs[0])
    axis = int_attr(node, "axis", 0) % len(shape)
    sizes = split_sizes(s, node)
    content = s.content(node.inputs[0])
    result: list[Shape | None] = []
    at = 0
    for i, value in enumerate(node.outputs):
        piece = dim(sizes[i]) if sizes is not None else opaque("split", node.name, i)
        result.append(shape[:axis] + (piece,) + shape[axis + 1 :])
        if content is not None and sizes is not None and i and len(shape) == 1:
            s._content[value] = content[at : at + sizes[i]]
        at += sizes[i] if sizes is not None else 0
    return result, content[: sizes[0]] if content is not None and sizes is not None and len(shape) == 1 else None


def reshape_target(s: Shapes, node: ir.Node) -> Shape | None:
    """The output shape of a Reshape, symbolically; unknown sizes where only the rank is known, None where that is not either."""
    given, target = s.shape(node.inputs[0]) if node.inputs[0] is not None else None, s.content(node.inputs[1])
    if target is None:
        length = s.need(node.inputs[1])[0].value
        return tuple(opaque("reshape", node.name, node.outputs[0].name, i) for i in range(length)) if length is not None else None
    allow_zero = int_attr(node, "allowzero", 0)
    # Of an operand of unknown shape only what the target says is known.
    shape = given if given is not None else tuple(opaque("reshape", node.outputs[0].name, i) for i in range(len(target)))
    dims = [shape[i] if d.value == 0 and not allow_zero else d for i, d in enumerate(target)]
    if any(d.value == -1 for d in dims):
        total, rest = product(shape), product(d for d in dims if d.value != -1)
        missing = total.over(rest) if given is not None else None
        if missing is None:
            missing = opaque("infer", total, rest)
        dims = [missing if d.value == -1 else d for d in dims]
    return tuple(dims)


def _reshape(s: Shapes, node: ir.Node) -> _Result:
    return [reshape_target(s, node)], s.content(node.inputs[0])


def _flatten(s: Shapes, node: ir.Node) -> _Result:
    shape = s.need(node.inputs[0])
    axis = int_attr(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [(product(shape[:axis]), product(shape[axis:]))], None


def _expand(s: Shapes, node: ir.Node) -> _Result:
    target, given = s.content(node.inputs[1]), s.need(node.inputs[0])
    if target is None:
        length = s.need(node.inputs[1])[0].value
        if length is None:
            return [None], None
        target = tuple(opaque("expand", node.name, node.outputs[0].name, i) for i in range(length))
    return [broadcast([given, target])], None


def _tile(s: Shapes, node: ir.Node) -> _Result:
    repeats = s.content(node.inputs[1])
    if repeats is None:
        return [None], None
    return [tuple(a * b for a, b in zip(s.need(node.inputs[0]), repeats, strict=True))], None


def _transpose(s: Shapes, node: ir.Node) -> _Result:
    shape = s.need(node.inputs[0])
    return [tuple(shape[i] for i in permutation(node, len(shape)))], None


def permutation(node: ir.Node, rank: int) -> list[int]:
    """``perm`` of a Transpose; reversed axes where it is absent."""
    attr = node.attributes.get("perm")
    return [int(i) for i in attr.as_ints()] if attr is not None else list(range(rank))[::-1]


def _matmul(s: Shapes, node: ir.Node) -> _Result:
    a, b = s.need(node.inputs[0]), s.need(node.inputs[1])
    if len(a) == 1 or len(b) == 1:
        return [None], None
    if node.op_type == "FusedMatMul":
        a = a[:-2] + (a[-1], a[-2]) if int_attr(node, "transA", 0) else a
        b = b[:-2] + (b[-1], b[-2]) if int_attr(node, "transB", 0) else b
    return [broadcast([a[:-2] or (), b[:-2] or ()]) + (a[-2], b[-1])], None


def _gemm(s: Shapes, node: ir.Node) -> _Result:
    a, b = s.need(node.inputs[0]), s.need(node.inputs[1])
    rows = a[1] if int_attr(node, "transA", 0) else a[0]
    columns = b[0] if int_attr(node, "transB", 0) else b[1]
    return [(rows, columns)], None


def _conv(s: Shapes, node: ir.Node) -> _Result:
    x, w = s.need(node.inputs[0]), s.need(node.inputs[1])
    kernel = node.attributes.get("kernel_shape")
    sizes = [int(k) for k in kernel.as_ints()] if kernel is not None else [d.coef for d in w[2:]]
    spatial = len(sizes)

    def listed(name: str, default: list[int]) -> list[int]:
        attr = node.attributes.get(name)
        return [int(i) for i in attr.as_ints()] if attr is not None else default

    strides, dilations = listed("strides", [1] * spatial), listed("dilations", [1] * spatial)
    pads = listed("pads", [0] * 2 * spatial)
    auto = node.attributes.get("auto_pad")
    result = [x[0], w[0]]
    for i in range(spatial):
        size = x[2 + i].value
        if size is None or (auto is not None and auto.as_string() not in ("NOTSET", "")):
            result.append(opaque("conv", x[2 + i], sizes[i], strides[i], pads[i], pads[i + spatial], dilations[i]))
        else:
            result.append(dim((size + pads[i] + pads[i + spatial] - dilations[i] * (sizes[i] - 1) - 1) // strides[i] + 1))
    return [tuple(result)], None


def _reduce(s: Shapes, node: ir.Node) -> _Result:
    shape, axes = s.need(node.inputs[0]), axes_of(s, node)
    if axes is None and int_attr(node, "noop_with_empty_axes", 0):
        return [shape], None
    drop = {a % len(shape) for a in axes} if axes is not None else set(range(len(shape)))
    if int_attr(node, "keepdims", 1):
        return [tuple(ONE if i in drop else d for i, d in enumerate(shape))], None
    content = s.content(node.inputs[0])
    folded = (product(content),) if node.op_type == "ReduceProd" and content is not None and len(shape) == 1 else None
    return [tuple(d for i, d in enumerate(shape) if i not in drop)], folded


def _arg(s: Shapes, node: ir.Node) -> _Result:
    shape = s.need(node.inputs[0])
    axis = int_attr(node, "axis", 0) % len(shape)
    return [shape[:axis] + (ONE,) * int_attr(node, "keepdims", 1) + shape[axis + 1 :]], None


def _resize(s: Shapes, node: ir.Node) -> _Result:
    sizes = s.content(node.inputs[3]) if len(node.inputs) > 3 else None
    rank = len(s.need(node.inputs[0]))
    if sizes is not None and len(sizes) == rank:
        return [sizes], None
    return [tuple(opaque("resize", node.outputs[0].name, i) for i in range(rank))], None


def _same_rank(s: Shapes, node: ir.Node) -> _Result:
    """Pooling, padding and the like: as many axes, of sizes that nothing here depends on."""
    first = s.need(node.inputs[0])
    kept = first[:1] if node.op_type != "Pad" else ()
    kept = first[:2] if "Pool" in node.op_type else kept
    return [(*kept, *(opaque("size", node.outputs[0].name, i) for i in range(len(kept), len(first))))], None


def _range(s: Shapes, node: ir.Node) -> _Result:
    start, limit, delta = (s.content(v) for v in node.inputs[:3])
    if start is None or limit is None or delta is None:
        return [(opaque("range", node.name),)], None
    if start[0].value == 0 and delta[0].value == 1:
        size = limit[0]
        known = size.value
        return [(size,)], tuple(dim(i) for i in range(known)) if known is not None and known <= 64 else None
    return [(opaque("range", start[0], limit[0], delta[0]),)], None


def _einsum(s: Shapes, node: ir.Node) -> _Result:
    terms, result = einsum_terms(node)
    sizes: dict[str, Dim] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        for label, size in zip(term, s.need(value), strict=True):
            if sizes.get(label, ONE) == ONE:
                sizes[label] = size
    return [tuple(sizes[label] for label in result)], None


def einsum_terms(node: ir.Node) -> tuple[list[str], str]:
    """Operand labels and result labels of an Einsum without ellipsis.

    Raises:
        ValueError: an ellipsis or an implicit result.
    """
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "." in equation or "->" not in equation:
        raise ValueError("einsum form not known")
    left, result = equation.split("->")
    return left.split(","), result


def _size(s: Shapes, node: ir.Node) -> _Result:
    return [()], (product(s.need(node.inputs[0])),)


def _attention(s: Shapes, node: ir.Node) -> _Result:
    q, v = s.need(node.inputs[0]), s.need(node.inputs[2])
    if node.op_type == "MultiHeadAttention":
        return [q[:-1] + (v[-1],) if len(q) == 3 and len(v) == 3 else None], None
    if len(q) == 4:
        return [q[:-1] + (v[-1],)], None
    heads, kv_heads = int_attr(node, "q_num_heads", 0), int_attr(node, "kv_num_heads", 0)
    per_head = v[-1].over(dim(kv_heads))
    return [q[:-1] + (dim(heads) * per_head,) if per_head is not None else None], None


def _packed_attention(s: Shapes, node: ir.Node) -> _Result:
    x, w = s.need(node.inputs[0]), s.need(node.inputs[1])
    sizes = node.attributes.get("qkv_hidden_sizes")
    out = dim(int(sizes.as_ints()[2])) if sizes is not None else w[1].over(dim(3))
    return [x[:-1] + (out,) if out is not None else None], None


_REDUCE = "Max Min Mean Sum Prod L1 L2 LogSum LogSumExp SumSquare".split()

_RULES: dict[str, _Rule] = {
    **{op: _elementwise for op in BROADCAST},
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
    "Pad": _same_rank,
    "MaxPool": _same_rank,
    "AveragePool": _same_rank,
    "GlobalAveragePool": _same_rank,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Range": _range,
    "Einsum": _einsum,
    "Attention": lambda s, n: _packed_attention(s, n) if n.domain == "com.microsoft" else _attention(s, n),
    "MultiHeadAttention": _attention,
}
