"""Canonical form: packed projections taken apart, without touching a parameter.

```
x -> MatMul(Wqkv) -> Add -> Reshape[B,N,3,H,D] -> Transpose -> Gather(0|1|2)
  becomes, three times,
x -> MatMul(part of Wqkv) -> Add(part of b) -> Reshape[B,N,1,H,D] -> Transpose -> Squeeze
```

The parts are views (Slice; Reshape and Gather where heads are interleaved) of the parameter, so names and ties stay. Packed
``com.microsoft.Attention`` becomes three projections and a MultiHeadAttention. Sequences that are read at constant places become
Slices.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from inarch.frontends.sequences import cut_sequences
from inarch.structure.arguments import axes_of, int_attr, slice_parts, split_sizes
from inarch.structure.axis_rules import RULES, SOURCES
from inarch.structure.constants import constant, constant_ints
from inarch.structure.coupling import ENUMERATED, Coupling, Projection
from inarch.structure.dims import ONE, Shape, dim, product
from inarch.structure.discover import Discovery, discover
from inarch.structure.graph_edit import Editor, drop_dead, patch_target, restored_shape
from inarch.structure.shapes import Shapes

PACKED = "inarch.packed"
"""Metadata of a part's projection: the value that the packed projection wrote."""

_CARRY = frozenset({"Add", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Cast"})
_SELECT = frozenset({"Split", "Slice", "Gather"})


def canonicalize(model: ir.Model, only: Collection[str] | None = None) -> ir.Model:
    """A copy of the model in which packed projections are separate ones.

    Args:
        model: any model; it is not changed, and parameters are shared with the copy.
        only: names of the packed projections' output values that may be taken apart; None for all.
    """
    return _canonicalize(model, only)[0]


def discover_canonical(model: ir.Model, only: Collection[str] | None = None) -> Discovery:
    """:func:`~inarch.structure.discover.discover` on the canonical copy of a model, which is ``.model`` of the result.

    Args:
        model: any model; it is not changed.
        only: as for :func:`canonicalize`.
    """
    return discover(*_canonicalize(model, only))


def _canonicalize(model: ir.Model, only: Collection[str] | None) -> tuple[ir.Model, Coupling | None]:
    """The copy, and its analysis where it was not changed after that."""
    copy = model.clone()
    graph = copy.graph
    unfused = _unfuse(graph, only)
    unfused = cut_sequences(graph) or unfused
    coupling = Coupling(graph, RULES, SOURCES)
    editor = Editor(graph, "inarch.part/")
    changed = False
    for projection in coupling.projections:
        name = str(projection.node.outputs[0].name)
        if only is not None and name not in only:
            continue
        changed = _unpack_direct(coupling, editor, projection) or _unpack_enumerated(coupling, editor, projection) or changed
    if changed or unfused:
        drop_dead(graph)
    return copy, None if changed or unfused else coupling


def packed_sources(nodes: Collection[ir.Node]) -> set[str]:
    """Names for ``only``: the packed projections that some nodes of a canonical model came from."""
    return {node.metadata_props[PACKED] for node in nodes if PACKED in node.metadata_props}


@dataclass
class _Packed:
    """A packed projection with its bias, and how to make one part of it."""

    coupling: Coupling
    editor: Editor
    projection: Projection
    add: ir.Node | None

    def part(self, anchor: ir.Node, pieces: Sequence[int], pick: int, bounds: tuple[int, int] | None = None) -> ir.Value:
        """The projection of one part.

        Args:
            anchor: new nodes go before it.
            pieces: sizes (before, parts, after) of the packed axis.
            pick: which part.
            bounds: start and end on the packed axis instead, for parts of unequal size.
        """
        node = self.projection.node
        weight = self._view(anchor, self.projection.weight, 0 if self.projection.transposed else 1, pieces, pick, bounds)
        inputs: list[ir.Value | None] = [node.inputs[0], weight]
        for bias in node.inputs[2:]:
            inputs.append(self._bias(anchor, bias, pieces, pick, bounds) if bias is not None else None)
        made = self.editor.clone(node, inputs, anchor)
        made.metadata_props[PACKED] = str(node.outputs[0].name)
        if self.add is None:
            return made.outputs[0]
        operands = [
            made.outputs[0] if v is node.outputs[0] else self._bias(anchor, v, pieces, pick, bounds) for v in self.add.inputs
        ]
        return self.editor.clone(self.add, operands, anchor).outputs[0]

    def _bias(
        self, anchor: ir.Node, value: ir.Value | None, pieces: Sequence[int], pick: int, bounds: tuple[int, int] | None
    ) -> ir.Value | None:
        shape = self.coupling.shapes.shape(value) if value is not None else None
        if value is None or shape is None or not shape or shape[-1] == ONE:
            return value
        return self._view(anchor, value, len(shape) - 1, pieces, pick, bounds)

    def _view(
        self, anchor: ir.Node, value: ir.Value, axis: int, pieces: Sequence[int], pick: int, bounds: tuple[int, int] | None
    ) -> ir.Value:
        before, parts, after = pieces
        if bounds is None and before == 1:
            bounds = (pick * after, (pick + 1) * after)
        edit = self.editor
        if bounds is not None:
            places = [edit.ints([n], "slice") for n in (*bounds, axis)]
            return edit.node(anchor, "Slice", [value, *places], hint=str(value.name)).outputs[0]
        rest = [d.coef for d in self.coupling.shapes.need(value)]
        split = [*rest[:axis], before, parts, after, *rest[axis + 1 :]]
        merged = [*rest[:axis], before * after, *rest[axis + 1 :]]
        wide = edit.node(anchor, "Reshape", [value, edit.ints(split, "shape")], hint=str(value.name)).outputs[0]
        index = edit.initializer("inarch.part/index", ir.tensor(pick, dtype=ir.DataType.INT64))
        picked = edit.node(anchor, "Gather", [wide, index], {"axis": axis + 1}, hint=str(value.name)).outputs[0]
        return edit.node(anchor, "Reshape", [picked, edit.ints(merged, "shape")], hint=str(value.name)).outputs[0]


def _with_bias(coupling: Coupling, projection: Projection) -> tuple[ir.Value, ir.Node | None]:
    """The projection's result behind its constant bias, if it has one."""
    out = projection.node.outputs[0]
    readers = list(out.consumers())
    if len(readers) == 1 and readers[0].op_type == "Add" and not out.is_graph_output():
        other = [v for v in readers[0].inputs if v is not out]
        shape = coupling.shapes.shape(other[0]) if other and other[0] is not None else None
        if shape is not None and product(shape) in (ONE, shape[-1] if shape else ONE) and other[0] not in coupling.projected:
            return readers[0].outputs[0], readers[0]
    return out, None


def _unpack_direct(coupling: Coupling, editor: Editor, projection: Projection) -> bool:
    """``MatMul -> [Add] -> Split`` or Slices on the last axis, of any sizes."""
    value, add = _with_bias(coupling, projection)
    readers = [node for node in value.consumers() if node.op_type != "Shape"]
    shape = coupling.shapes.shape(value)
    if not readers or value.is_graph_output() or shape is None or shape[-1].value is None or len(shape) < 2:
        return False
    width = shape[-1].value
    cuts: list[tuple[ir.Value, int, int]] = []
    for node in readers:
        found = _last_axis_cuts(coupling, node, len(shape), width)
        if found is None:
            return False
        cuts.extend(found)
    bounds = sorted((start, end) for _, start, end in cuts)
    if len(bounds) < 2 or any(a[1] > b[0] for a, b in pairwise(bounds)):
        return False
    packed = _Packed(coupling, editor, projection, add)
    if _reunited(coupling, [(out, start) for out, start, _ in cuts]):
        return False
    anchor = _first(coupling, list(value.consumers()))
    for i, (out, start, end) in enumerate(cuts):
        part = packed.part(anchor, (1, 1, width), 0, (start, end))
        editor.take_place(out, part)
        if i == 0:
            _restore_shapes(editor, value, part, shape, (*shape[:-1], dim(end - start)))
    return True


def _restore_shapes(editor: Editor, old: ir.Value, new: ir.Value, before: Shape, after: Shape) -> None:
    """Shape nodes that read the packed value report what they did before."""
    for reader in list(old.consumers()):
        if reader.op_type == "Shape":
            restored = restored_shape(editor, reader, reader, new, before, after)
            editor.take_place(reader.outputs[0], restored)


def _first(coupling: Coupling, nodes: Sequence[ir.Node]) -> ir.Node:
    return min(nodes, key=coupling.order.__getitem__)


def _last_axis_cuts(coupling: Coupling, node: ir.Node, rank: int, width: int) -> list[tuple[ir.Value, int, int]] | None:
    if any(v.is_graph_output() for v in node.outputs):
        return None
    if node.op_type == "Split" and int_attr(node, "axis", 0) % rank == rank - 1:
        sizes = split_sizes(coupling.shapes, node)
        if sizes is None or sum(sizes) != width:
            return None
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [(v, s, s + n) for v, s, n in zip(node.outputs, starts, sizes, strict=True)]
    if node.op_type == "Slice":
        try:
            first, last, axes, steps = slice_parts(coupling.shapes, node)
        except ValueError:
            return None
        if len(axes) != 1 or axes[0] % rank != rank - 1 or steps != [1] or first[0] is None or last[0] is None:
            return None
        start, end, _ = slice(first[0], last[0]).indices(width)
        return [(node.outputs[0], start, end)] if end > start else None
    return None


def _unpack_enumerated(coupling: Coupling, editor: Editor, projection: Projection) -> bool:
    """A packed axis that a Reshape gives a factor of its own, whose indices are picked one by one further on."""
    leaves = coupling.leaves(projection.n)
    for place, leaf in enumerate(leaves):
        count = coupling.size(leaf).value
        if coupling.frozen(leaf) != ENUMERATED or count is None:
            continue
        carriers = _carriers(coupling, projection, leaf)
        if carriers is None:
            continue
        carry, picks = carriers
        sizes = [coupling.size(f).value or 0 for f in leaves]
        before, after = _total(sizes[:place]), _total(sizes[place + 1 :])
        if not picks or before * count * after == 0 or _reunited(coupling, [(value, part) for value, part, _ in picks]):
            continue
        _, add = _with_bias(coupling, projection)
        packed = _Packed(coupling, editor, projection, add)
        parts = sorted({part for _, part, _ in picks})
        for part in parts:
            made = _emit_part(coupling, editor, packed, (before, count, after), part, leaf, carry, picks)
            if part == parts[0]:
                for old, new in made.items():
                    shape = coupling.shapes.need(old)
                    _restore_shapes(editor, old, new, shape, _without(coupling, old, leaf))
        return True
    return False


def _total(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def _emit_part(
    coupling: Coupling,
    editor: Editor,
    packed: _Packed,
    pieces: tuple[int, int, int],
    part: int,
    leaf: int,
    carry: Sequence[ir.Node],
    picks: Sequence[tuple[ir.Value, int, int | None]],
) -> dict[ir.Value, ir.Value]:
    start, _ = _with_bias(coupling, packed.projection)
    made: dict[ir.Value, ir.Value] = {}
    following = [n for n in carry if n is not packed.add]
    made[start] = packed.part(_first(coupling, list(start.consumers())), pieces, part)
    for node in following:
        inputs: list[ir.Value | None] = [made.get(v, v) if v is not None else None for v in node.inputs]
        if node.op_type == "Reshape":
            old, new = coupling.shapes.need(node.outputs[0]), _without(coupling, node.outputs[0], leaf)
            inputs[1] = patch_target(editor, coupling.shapes, node, node, old, new)
        made[node.outputs[0]] = editor.clone(node, inputs, node).outputs[0]
    for value, which, squeezed in picks:
        if which != part:
            continue
        pick = value.producer()
        assert pick is not None
        assert pick.inputs[0] is not None
        result = made[pick.inputs[0]]
        if squeezed is not None:
            result = _squeeze(editor, pick, result, squeezed)
        editor.take_place(value, result)
    return made


def _without(coupling: Coupling, value: ir.Value, leaf: int) -> Shape:
    """Shape of a value whose packed factor is gone."""
    return tuple(
        product(coupling.size(f) for f in coupling.leaves(own) if f != leaf) if leaf in coupling.leaves(own) else size
        for own, size in zip(coupling.axes(value) or (), coupling.shapes.need(value), strict=True)
    )


def _squeeze(editor: Editor, anchor: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    if editor.graph.opset_imports.get("", 13) < 13:
        return editor.node(anchor, "Squeeze", [value], {"axes": [axis]}).outputs[0]
    return editor.node(anchor, "Squeeze", [value, editor.ints([axis], "axes")]).outputs[0]


def _carriers(
    coupling: Coupling, projection: Projection, leaf: int
) -> tuple[list[ir.Node], list[tuple[ir.Value, int, int | None]]] | None:
    """Nodes that carry a packed factor on, and the picks that end it, (value, part, axis to squeeze); None if none is packed."""
    carry: dict[ir.Node, None] = {}
    picks: list[tuple[ir.Value, int, int | None]] = []
    todo = [projection.node.outputs[0]]
    _, add = _with_bias(coupling, projection)
    while todo:
        value = todo.pop()
        if value.is_graph_output():
            return None
        for node in value.consumers():
            if node.op_type == "Shape":
                continue
            if node.op_type in _SELECT:
                found = _picks(coupling, node, leaf)
                if found is None:
                    return None
                if found:
                    picks.extend(found)
                    continue
            if node.op_type not in _CARRY or (node.op_type == "Squeeze" and axes_of(coupling.shapes, node) is None):
                return None
            if node.op_type == "Add" and node is not add:
                return None
            if node not in carry:
                carry[node] = None
                todo.append(node.outputs[0])
    return sorted(carry, key=coupling.order.__getitem__), picks


def _reunited(coupling: Coupling, parts: Sequence[tuple[ir.Value, int]]) -> bool:
    """Whether two parts meet again in a Concat before any product: rotary halves, not q, k and v."""
    reached: dict[ir.Node, int] = {}
    todo = list(parts)
    seen = set(parts)
    while todo and len(seen) < 512:
        value, part = todo.pop()
        for node in value.consumers():
            if node.op_type in ("MatMul", "Gemm", "FusedMatMul") or node in coupling.contractions:
                continue
            if node.op_type == "Concat" and reached.setdefault(node, part) != part:
                return True
            for out in node.outputs:
                if (out, part) not in seen and out in coupling.projected:
                    seen.add((out, part))
                    todo.append((out, part))
    return False


def _picks(coupling: Coupling, node: ir.Node, leaf: int) -> list[tuple[ir.Value, int, int | None]] | None:
    """What a select takes of the packed factor; None where it takes something else of an axis that has it."""
    x = node.inputs[0]
    axes, shape = (coupling.axes(x) if x is not None else None), coupling.shapes.shape(x) if x is not None else None
    if axes is None or shape is None or any(v.is_graph_output() for v in node.outputs):
        return None
    at = next((i for i, own in enumerate(axes) if leaf in coupling.leaves(own)), None)
    if at is None:
        return None
    first = coupling.leaves(axes[at])[0] == leaf
    count = coupling.size(leaf).coef
    if node.op_type == "Gather":
        index = constant_ints(node.inputs[1])
        alone = coupling.leaves(axes[at]) == [leaf]
        scalar = node.inputs[1] is not None and coupling.shapes.shape(node.inputs[1]) == ()
        if int_attr(node, "axis", 0) % len(axes) != at or not alone or index is None or not scalar:
            return None
        return [(node.outputs[0], index[0] % count, at)]
    if node.op_type == "Split":
        sizes = split_sizes(coupling.shapes, node)
        if (
            int_attr(node, "axis", 0) % len(axes) != at
            or not first
            or sizes is None
            or len(sizes) != count
            or len(set(sizes)) != 1
        ):
            return None
        return [(v, i, None) for i, v in enumerate(node.outputs)]
    try:
        starts, ends, cut, steps = slice_parts(coupling.shapes, node)
    except ValueError:
        return None
    size = shape[at].value
    if len(cut) != 1 or cut[0] % len(axes) != at or not first or size is None or starts[0] is None or ends[0] is None:
        return None
    begin, end, step = slice(starts[0], ends[0], steps[0]).indices(size)
    piece = size // count
    if step != 1 or end - begin != piece or begin % piece:
        return None
    return [(node.outputs[0], begin // piece, None)]


def _unfuse(graph: ir.Graph, only: Collection[str] | None) -> bool:
    """Packed com.microsoft.Attention -> three projections and a MultiHeadAttention with the packed bias."""
    packed = [node for node in graph if node.op_type == "Attention" and node.domain == "com.microsoft"]
    if not packed:
        return False
    shapes = Shapes(graph)
    editor = Editor(graph, "inarch.part/")
    changed = False
    for node in packed:
        if not _can_unfuse(shapes, node):
            continue
        name = str(node.outputs[0].name)
        if only is not None and name not in only:
            continue
        x, weight = node.inputs[0], node.inputs[1]
        assert weight is not None
        tensor = constant(weight)
        assert tensor is not None
        listed = node.attributes.get("qkv_hidden_sizes")
        third = tensor.shape.numpy()[1] // 3
        widths = [int(n) for n in listed.as_ints()] if listed is not None else [third] * 3
        parts: list[ir.Value | None] = []
        for i, width in enumerate(widths):
            start = sum(widths[:i])
            places = [editor.ints([n], "slice") for n in (start, start + width, 1)]
            part = editor.node(node, "Slice", [weight, *places], hint=str(weight.name)).outputs[0]
            product_node = editor.node(node, "MatMul", [x, part], hint=name)
            product_node.metadata_props[PACKED] = name
            product_node.metadata_props.update(node.metadata_props)
            parts.append(product_node.outputs[0])
        optional = [node.inputs[i] if len(node.inputs) > i else None for i in (2, 3, 5)]
        kept = {"num_heads", "scale", "mask_filter_value", "unidirectional"}
        attributes = [ir.Attr(a.name, a.type, a.value) for a in node.attributes.values() if a.name in kept]
        fused = ir.Node("com.microsoft", "MultiHeadAttention", [*parts, *optional], attributes, num_outputs=1)
        fused.outputs[0].name = editor.fresh(name)
        fused.name = str(fused.outputs[0].name)
        graph.insert_before(node, fused)
        editor.take_place(node.outputs[0], fused.outputs[0])
        changed = True
    return changed


def _can_unfuse(shapes: Shapes, node: ir.Node) -> bool:
    inputs = list(node.inputs) + [None] * 7
    tensor = constant(inputs[1])
    if tensor is None or len(tensor.shape) != 2 or inputs[0] is None or inputs[4] is not None or inputs[6] is not None:
        return False
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]) or node.outputs[0].is_graph_output():
        return False
    mask, x = inputs[3], shapes.shape(inputs[0])
    if mask is not None:
        # [B, T] and lengths [B] mean the same to MultiHeadAttention; start and end positions [2 * B], 3-D and 4-D masks do not.
        shape = shapes.shape(mask)
        if shape is None or (len(shape) != 2 and (x is None or shape != x[:1])):
            return False
    return not int_attr(node, "do_rotary", 0)
