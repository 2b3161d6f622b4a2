"""Weight views: which part of which parameter a value is.

Exporters feed a projection with the parameter itself, or with its transpose, a slice of a packed in_proj_weight, one element of
a SplitToSequence and the like. A view follows such a chain back to the parameter, as positions on each of its axes, without
reading its data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from inarch.structure.arguments import axes_of, int_attr, permutation, slice_parts, split_sizes
from inarch.structure.constants import constant
from inarch.structure.shapes import Shapes
from inarch.structure.units import Indices

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True, eq=False)
class View:
    """A value that is a part of a parameter, its axes perhaps permuted.

    Attributes:
        param: the initializer, or the output of the Constant node.
        axes: for each axis of the view: (axis of the parameter, positions on it).
        cast: data type that the view is cast to on the way, or None.
    """

    param: ir.Value
    axes: tuple[tuple[int, Indices], ...]
    cast: ir.DataType | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        return tuple(len(positions) for _, positions in self.axes)


@dataclass
class _Trail:
    """A chain being followed: current axes as (parameter axis, axis of its position array); None is an inserted axis of 1."""

    param: ir.Value
    positions: list[Indices]
    axes: list[tuple[int, int] | None]
    cast: ir.DataType | None = None
    shape: list[int] = field(default_factory=list)

    def sizes(self) -> list[int]:
        return [1 if a is None else self.positions[a[0]].shape[a[1]] for a in self.axes]


def view_of(value: ir.Value | None, shapes: Shapes) -> View | None:
    """Follow ``value`` back to a floating-point parameter.

    Returns:
        The view, or None where the value is no plain part of one parameter.
    """
    if value is None:
        return None
    chain: list[tuple[ir.Node, int]] = []
    while constant(value) is None:
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None or len(chain) > 16:
            return None
        if node.op_type not in VIEWS:
            return None
        index = value.index()
        chain.append((node, index if index is not None else 0))
        value = node.inputs[0]
    tensor = constant(value)
    if tensor is None or tensor.dtype not in FLOATS or tensor.size == 0:
        return None
    sizes = list(tensor.shape.numpy())
    positions = [np.arange(n, dtype=np.int64) for n in sizes]
    trail = _Trail(value, positions, [(i, 0) for i in range(len(sizes))])
    steps = chain[::-1]
    i = 0
    try:
        while i < len(steps):
            node, output = steps[i]
            if node.op_type == "SplitToSequence":
                if i + 1 >= len(steps) or steps[i + 1][0].op_type != "SequenceAt":
                    return None
                _sequence(trail, shapes, node, steps[i + 1][0])
                i += 2
                continue
            _STEPS[node.op_type](trail, shapes, node, output)
            i += 1
    except (ValueError, IndexError, KeyError):
        return None
    return _finish(trail)


def _finish(trail: _Trail) -> View | None:
    axes: list[tuple[int, Indices]] = []
    for place in trail.axes:
        if place is None:
            return None
        param_axis, own = place
        positions = trail.positions[param_axis]
        if any(n != 1 for i, n in enumerate(positions.shape) if i != own):
            return None
        axes.append((param_axis, positions.reshape(-1)))
    return View(trail.param, tuple(axes), trail.cast)


def _take(trail: _Trail, axis: int, picks: Indices | int) -> None:
    place = trail.axes[axis]
    if place is None:
        if isinstance(picks, int):
            del trail.axes[axis]
        return
    param_axis, own = place
    trail.positions[param_axis] = np.take(trail.positions[param_axis], picks, axis=own)
    if isinstance(picks, int):
        del trail.axes[axis]
        trail.axes = [(a[0], a[1] - 1) if a is not None and a[0] == param_axis and a[1] > own else a for a in trail.axes]


def _step_slice(trail: _Trail, shapes: Shapes, node: ir.Node, _: int) -> None:
    starts, ends, axes, steps = slice_parts(shapes, node)
    sizes = trail.sizes()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if start is None or end is None:
            raise ValueError("slice is not constant")
        axis %= len(sizes)
        _take(trail, axis, np.arange(sizes[axis], dtype=np.int64)[start:end:step])


def _step_split(trail: _Trail, shapes: Shapes, node: ir.Node, output: int) -> None:
    sizes = split_sizes(shapes, node)
    if sizes is None:
        raise ValueError("split is not constant")
    axis = int_attr(node, "axis", 0) % len(trail.axes)
    start = sum(sizes[:output])
    _take(trail, axis, np.arange(start, start + sizes[output], dtype=np.int64))


def _sequence(trail: _Trail, shapes: Shapes, split: ir.Node, at: ir.Node) -> None:
    axis = int_attr(split, "axis", 0) % len(trail.axes)
    size = trail.sizes()[axis]
    index = shapes.ints(at.inputs[1])
    pieces = shapes.ints(split.inputs[1]) if len(split.inputs) > 1 and split.inputs[1] is not None else [1]
    if index is None or pieces is None:
        raise ValueError("sequence position is not constant")
    given = split.inputs[1] if len(split.inputs) > 1 else None
    if given is not None and len(pieces) == 1 and shapes.shape(given) == ():
        pieces = [pieces[0]] * (size // pieces[0])
    k = index[0] % len(pieces)
    start = sum(pieces[:k])
    _take(trail, axis, np.arange(start, start + pieces[k], dtype=np.int64))
    if len(split.inputs) < 2 and not int_attr(split, "keepdims", 1):
        _drop(trail, [axis])


def _step_gather(trail: _Trail, shapes: Shapes, node: ir.Node, _: int) -> None:
    picks = shapes.ints(node.inputs[1])
    shape = shapes.need(node.inputs[1])
    axis = int_attr(node, "axis", 0) % len(trail.axes)
    if picks is None or len(shape) > 1:
        raise ValueError("gather is not constant")
    size = trail.sizes()[axis]
    if len(shape) == 0:
        _take(trail, axis, picks[0] % size)
    else:
        _take(trail, axis, np.array(picks, np.int64) % size)


def _drop(trail: _Trail, axes: list[int]) -> None:
    for axis in sorted(axes, reverse=True):
        if trail.sizes()[axis] != 1:
            raise ValueError("squeeze of a wide axis")
        if trail.axes[axis] is None:
            del trail.axes[axis]
        else:
            _take(trail, axis, 0)


def _step_squeeze(trail: _Trail, shapes: Shapes, node: ir.Node, _: int) -> None:
    axes = axes_of(shapes, node)
    rank = len(trail.axes)
    _drop(trail, [a % rank for a in axes] if axes is not None else [i for i, n in enumerate(trail.sizes()) if n == 1])


def _step_unsqueeze(trail: _Trail, shapes: Shapes, node: ir.Node, _: int) -> None:
    axes = axes_of(shapes, node) or []
    rank = len(trail.axes) + len(axes)
    for axis in sorted(a % rank for a in axes):
        trail.axes.insert(axis, None)


def _step_transpose(trail: _Trail, shapes: Shapes, node: ir.Node, _: int) -> None:
    trail.axes = [trail.axes[i] for i in permutation(node, len(trail.axes))]


def _step_identity(trail: _Trail, shapes: Shapes, node: ir.Node, _: int) -> None:
    pass


def _step_cast(trail: _Trail, shapes: Shapes, node: ir.Node, _: int) -> None:
    to = ir.DataType(node.attributes["to"].as_int())
    tensor = constant(trail.param)
    if to not in FLOATS or trail.cast is not None or tensor is None:
        raise ValueError("cast of a parameter to a non-float")
    trail.cast = to if to != tensor.dtype else None


def _step_reshape(trail: _Trail, shapes: Shapes, node: ir.Node, _: int) -> None:
    """Only splits and merges of one parameter axis, and axes of 1 that come and go, are views."""
    shape = shapes.shape(node.outputs[0])
    if shape is None or any(d.value is None for d in shape):
        raise ValueError("reshape is not constant")
    _drop(trail, [i for i, n in enumerate(trail.sizes()) if n == 1])
    target = [d.coef for d in shape]
    result: list[tuple[int, int] | None] = []
    old = 0
    for size in target:
        if size == 1:
            result.append(None)
            continue
        place = trail.axes[old]
        if place is None:
            raise ValueError("reshape is not a view")
        param_axis, own = place
        have = trail.positions[param_axis].shape[own]
        while have < size:
            following = trail.axes[old + 1]
            if following is None or following != (param_axis, own + 1):
                raise ValueError("reshape merges two parameter axes")
            array = trail.positions[param_axis]
            trail.positions[param_axis] = array.reshape(
                array.shape[:own] + (array.shape[own] * array.shape[own + 1],) + array.shape[own + 2 :]
            )
            del trail.axes[old + 1]
            trail.axes = _shift(trail.axes, param_axis, own, -1)
            have = trail.positions[param_axis].shape[own]
        if have > size:
            if have % size:
                raise ValueError("reshape is not a view")
            array = trail.positions[param_axis]
            trail.positions[param_axis] = array.reshape(array.shape[:own] + (size, have // size) + array.shape[own + 1 :])
            trail.axes = _shift(trail.axes, param_axis, own, 1)
            result = [_moved(r, param_axis, own, 1) for r in result]
            trail.axes.insert(old + 1, (param_axis, own + 1))
        result.append((param_axis, own))
        old += 1
    trail.axes = result


def _moved(place: tuple[int, int] | None, param_axis: int, own: int, by: int) -> tuple[int, int] | None:
    return (param_axis, place[1] + by) if place is not None and place[0] == param_axis and place[1] > own else place


def _shift(axes: list[tuple[int, int] | None], param_axis: int, own: int, by: int) -> list[tuple[int, int] | None]:
    return [_moved(place, param_axis, own, by) for place in axes]


_STEPS = {
    "Identity": _step_identity,
    "Transpose": _step_transpose,
    "Slice": _step_slice,
    "Split": _step_split,
    "Gather": _step_gather,
    "Squeeze": _step_squeeze,
    "Unsqueeze": _step_unsqueeze,
    "Reshape": _step_reshape,
    "Cast": _step_cast,
}

VIEWS = frozenset((*_STEPS, "SequenceAt", "SplitToSequence"))
"""Operators through which a parameter may be seen."""
