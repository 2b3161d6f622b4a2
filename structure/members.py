"""Members and riders of a region: which parameters, and which side inputs, run along a site's hidden axes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from inarch.structure.arguments import int_attr
from inarch.structure.constants import constant
from inarch.structure.coupling import Projection
from inarch.structure.dims import ONE, product
from inarch.structure.kinds import NotASite
from inarch.structure.regions import ELEMENTWISE, FUSED, Layout, Region, Rider, carries
from inarch.structure.sites import AXIS_FACTORS, Kind, Member
from inarch.structure.units import Indices
from inarch.structure.views import View, view_of

_HIDDEN = frozenset(name for names in AXIS_FACTORS.values() for name in names)

_LINEAR = frozenset("Add Sub Cast Identity Dropout Reshape Transpose Unsqueeze Squeeze Flatten".split())
"""Between a projection and its bias nothing else may stand."""

_SCALED = ELEMENTWISE | {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
"""Operators whose side inputs are broadcast along the axes of their first: a norm's scale may run along the heads, too."""

_ZERO_STAYS_ZERO = frozenset(
    """MatMul FusedMatMul Gemm Einsum Mul Neg Cast Identity Dropout Reshape Transpose Unsqueeze Squeeze Flatten Expand Tile
    Slice Split Concat Gather Relu Tanh Erf Sin Abs Sign LeakyRelu Sqrt Shape Size Attention MultiHeadAttention
    RotaryEmbedding""".split()
)
"""Operators for which a pruned q or k unit, all zeros, stays zero up to the score product, so that it can be left out."""


def members_of(region: Region) -> dict[str, Member]:
    """Role -> member, weights and riders, in a fixed order.

    Raises:
        NotASite: a weight is sliced in a way that is no member.
    """
    found: dict[str, Member] = {}
    for role, projection in region.projections.items():
        found[role] = _matrix(region, role, projection)
    for rider in region.riders:
        if rider.role is not None and rider.role not in found:
            found[rider.role] = _vector(region, rider)
    rank = {role: i for i, role in enumerate(region.projections)}

    def place(role: str) -> tuple[int, int, str]:
        base = role.split("_bias")[0]
        return (rank.get(base, len(rank)), role != base, role)

    return {role: found[role] for role in sorted(found, key=place)}


def _named(factors: Iterable[tuple[str | None, object]], region: Region, what: str) -> tuple[tuple[str, int], ...]:
    result: list[tuple[str, int]] = []
    for name, size in factors:
        value = getattr(size, "value", None)
        if name is None or value is None:
            raise NotASite(f"{what} runs along an axis that is not the site's")
        result.append((name, value))
    if not any(name == "head" for name, _ in result) and any(name in ("qk", "vo", "vo2") for name, _ in result):
        # A single head has no axis in the graph; as data it is a head axis of one.
        result.insert(0, ("head", 1)) if "head" not in region.names.values() else None
    return tuple(result)


def _matrix(region: Region, role: str, projection: Projection) -> Member:
    sink = role in region.sinks
    factors = projection.k or [] if sink else projection.n
    own = projection.k_axis if sink else 1 - projection.k_axis
    view = projection.view
    axis, positions = view.axes[own]
    other_axis, other = view.axes[1 - own]
    shape = _shape(view)
    if len(shape) != 2:
        raise NotASite(f"{view.param.name} has {len(shape)} axes, a weight matrix has two")
    if len(other) != shape[other_axis] or not np.array_equal(other, np.arange(len(other))):
        raise NotASite(f"{view.param.name} is sliced on the axis that is not hidden")
    start, runs = _runs(positions)
    named = _named(region.name_factors(factors), region, str(view.param.name))
    stored_out_in = axis == (1 if sink else 0)
    return Member(role, str(view.param.name), axis, start, shape, named, stored_out_in, runs)


def _shape(view: View) -> tuple[int, ...]:
    tensor = constant(view.param)
    assert tensor is not None
    return tuple(tensor.shape.numpy())


def _runs(positions: Indices) -> tuple[int, tuple[tuple[int, int], ...]]:
    """(first position, pieces); no pieces where the positions are one run."""
    breaks = np.flatnonzero(np.diff(positions) != 1)
    if not len(breaks):
        return int(positions[0]), ()
    starts = positions[np.concatenate(([0], breaks + 1))]
    ends = positions[np.concatenate((breaks, [len(positions) - 1]))]
    return int(positions[0]), tuple((int(a), int(b - a + 1)) for a, b in zip(starts, ends, strict=True))


def _vector(region: Region, rider: Rider) -> Member:
    value = rider.node.inputs[rider.position]
    view = view_of(value, region.coupling.shapes)
    assert view is not None
    assert rider.role is not None
    along = [i for i, axis in enumerate(rider.layout) if carries((axis,), _HIDDEN)]
    shift = len(view.axes) - len(rider.layout)
    axis, positions = view.axes[along[0] + shift]
    offset = _packed_offset(region, rider)
    named = _named(rider.layout[along[0]], region, str(view.param.name))
    size = int(np.prod([n for _, n in named]))
    start, runs = _runs(positions[offset : offset + size])
    return Member(rider.role, str(view.param.name), axis, start, _shape(view), named, False, runs)


def _packed_offset(region: Region, rider: Rider) -> int:
    """Where a member begins in the packed bias [q, k, v] of MultiHeadAttention."""
    if rider.node.op_type != "MultiHeadAttention" or rider.position != 3:
        return 0
    before = {"q_bias": 0, "k_bias": 1, "v_bias": 2}[str(rider.role)]
    return before * product(size for _, size in region.name_factors(region.projections["q"].n)).coef


def riders_of(region: Region, kind: Kind) -> tuple[list[Rider], frozenset[str], dict[str, str]]:
    """Side inputs along the site's factors.

    Returns:
        The riders; the factors whose kept units must be the same in every head; and factor -> reason where a side input or an
        operator makes a pruned unit count, so that the factor cannot change.
    """
    riders: list[Rider] = []
    uniform: set[str] = set()
    loose: dict[str, str] = {}
    counter = 0
    linear = _linear_part(region)
    by_node = {p.node: role for role, p in region.projections.items()}
    for node in region.nodes:
        if node in by_node:
            role = by_node[node]
            if node.op_type == "Gemm" and role not in region.sinks and len(node.inputs) > 2 and node.inputs[2] is not None:
                riders.append(_plain(region, node, 2, f"{role}_bias"))
            continue
        if node.op_type in FUSED:
            riders.extend(_fused_riders(region, node))
            continue
        bias_here = False
        if node.op_type in _SCALED:
            for position, value in enumerate(node.inputs):
                if value is None or value in region.coupling.projected:
                    continue
                layout = region.side_layout(node, position)
                if layout is None or not carries(layout, _HIDDEN):
                    continue
                source = linear.get(node)
                additive = node.op_type in ("Add", "Sub", "BiasGelu", "FastGelu")
                role_name: str | None = None
                if _is_member(region, value, layout):
                    if additive and source is not None:
                        bias_here = True
                        role_name = f"{source}_bias"
                        if any(r.role == role_name for r in riders):
                            role_name = f"{source}_bias:{counter}"
                            counter += 1
                    else:
                        role_name = f"rider:{counter}"
                        counter += 1
                riders.append(Rider(node, position, layout, role_name))
                for name in _unreachable(layout):
                    loose.setdefault(name, f"{value.name} runs along it inside an axis of unknown size")
                for inner in ("qk", "vo", "vo2"):
                    apart = any(carries((own,), (inner,)) and not carries((own,), ("head",)) for own in layout)
                    if apart and "head" in region.names.values():
                        uniform.add(inner)
        if kind == "msa" and not bias_here and _counts_when_zero(region, node):
            loose.setdefault("qk", f"{node.op_type} ({node.name or node.outputs[0].name}) can make a pruned unit count")
    return riders, frozenset(uniform), loose


def _unreachable(layout: Layout) -> set[str]:
    """Hidden factors of a side input that lie outside an axis part of unknown size."""
    found: set[str] = set()
    for axis in layout:
        last = max((i for i, (_, size) in enumerate(axis) if size.value is None), default=-1)
        found.update(name for name, _ in axis[: max(last, 0)] if name in _HIDDEN)
    return found


def _plain(region: Region, node: ir.Node, position: int, role: str) -> Rider:
    """A Gemm's bias: it must be a parameter along the output axis."""
    value = node.inputs[position]
    layout = region.side_layout(node, position)
    if value is None or layout is None or not _is_member(region, value, layout):
        raise NotASite(f"the bias of {node.name or node.op_type} is no parameter of its width")
    return Rider(node, position, layout, role)


def _is_member(region: Region, value: ir.Value, layout: Layout) -> bool:
    """A plain part of one parameter, with the hidden factors on one axis and the other axes whole."""
    view = view_of(value, region.coupling.shapes)
    if view is None or view.cast is not None or len(view.axes) != len(layout):
        return False
    along = [i for i, axis in enumerate(layout) if carries((axis,), _HIDDEN)]
    if len(along) != 1 or any(name is None for name, _ in layout[along[0]]):
        return False
    shape = _shape(view)
    return all(i in along or len(positions) == shape[axis] for i, (axis, positions) in enumerate(view.axes))


def _linear_part(region: Region) -> dict[ir.Node, str]:
    """Node -> the source whose values reach it through nothing but layout changes and biases."""
    found: dict[ir.Node, str] = {}
    for role, projection in region.projections.items():
        if role in region.sinks:
            continue
        todo = [projection.node.outputs[0]]
        while todo:
            for node in todo.pop().consumers():
                if node.op_type in ("BiasGelu", "FastGelu"):
                    found.setdefault(node, role)
                elif node.op_type in _LINEAR and node not in found:
                    dynamic = [v for v in node.inputs if v is not None and v in region.coupling.projected]
                    if len(dynamic) == 1:
                        found[node] = role
                        todo.extend(node.outputs)
    return found


def _counts_when_zero(region: Region, node: ir.Node) -> bool:
    if not any(carries(region.layout(out), ("qk",)) for out in node.outputs):
        return False
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type in ("Add", "Sub"):
        return not all(v in region.coupling.projected for v in inputs)
    if node.op_type == "Div":
        return node.inputs[0] not in region.coupling.projected
    return node.op_type not in _ZERO_STAYS_ZERO


def _fused_riders(region: Region, node: ir.Node) -> list[Rider]:
    """Packed bias and mask of a fused attention operator."""
    riders: list[Rider] = []
    roles = {role: region.name_factors(p.n) for role, p in region.projections.items() if role not in region.sinks}
    if node.op_type == "MultiHeadAttention" and len(node.inputs) > 3 and node.inputs[3] is not None:
        if view_of(node.inputs[3], region.coupling.shapes) is None:
            raise NotASite("the bias of MultiHeadAttention is no parameter")
        riders.extend(Rider(node, 3, (roles[role],), f"{role}_bias") for role in ("q", "k", "v"))
    position = 5 if node.op_type == "MultiHeadAttention" else 3
    mask = node.inputs[position] if len(node.inputs) > position else None
    if mask is not None:
        shape = region.coupling.shapes.need(mask)
        if len(shape) >= 3 and shape[-3] != ONE:
            heads = tuple(f for f in roles["q"] if f[0] in ("head", "group"))
            if int_attr(node, "num_heads", 0) != 1 and heads:
                layout: Layout = tuple(heads if i == len(shape) - 3 else () for i in range(len(shape)))
                role = "rider:mask" if _is_member(region, mask, layout) else None
                riders.append(Rider(node, position, layout, role))
    return riders
