"""Writes one call-site of a site as its lowered form.

Every node between the projections is cloned once for each version of its output: once a group of heads, and, where the output
carries an axis that blocks cut, once a block. A product that contracts a cut axis becomes a sum of products:

```
before   up -- act -- down                 q, k -- score -- softmax -- * v -- o
after    up S -- act -- down S \\           q S, k S -- score \\
         up P -- act -- down P -- Add       q P, k P -- score -- Add -- softmax -- * v S -- o S \\
                                                                            -- * v P -- o P -- Add
```

No Concat or Gather of weights is made. Where segments are shared, every product of a block is a MatMul with a [K, N] weight
whose input and output ONNX Runtime cannot fold into another operator: see :meth:`RegionWriter._product`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from inarch.passes.cuts import Cuts
from inarch.passes.selection import INNER, Selection
from inarch.passes.stored import Stored
from inarch.structure.arguments import data_inputs, int_attr
from inarch.structure.coupling import Projection
from inarch.structure.dims import ONE, product
from inarch.structure.errors import PassError
from inarch.structure.graph_edit import Editor, restored_shape
from inarch.structure.kinds import NONLINEAR
from inarch.structure.lowered import LoweredSite
from inarch.structure.regions import ELEMENTWISE, FUSED, Region, carries
from inarch.structure.sites import Site

Key = tuple[int, str | None, int]
"""A version of a value: group, the cut axis that it carries (or None), block of that axis."""

ROLE_AXIS = {
    "up": "hidden",
    "gate": "hidden",
    "down": "hidden",
    "q": "qk",
    "k": "qk",
    "v": "vo",
    "o": "vo",
    "v2": "vo2",
    "o2": "vo2",
}

_FOLDED = frozenset({"Transpose", "Mul", "Div", "Identity", "Cast", "Dropout"})
"""Beside one of these ONNX Runtime may turn a MatMul into a FusedMatMul, and would then pack a shared weight twice."""

_MOVED_ALONG = ELEMENTWISE | NONLINEAR | set("Identity Cast Dropout Abs Neg Sqrt Concat Split Slice Pad ReduceMean".split())
"""Where several inputs of one of these are transposed, ONNX Runtime transposes its result instead, and so on towards a MatMul."""

_FAR = 64
"""Values that are looked at for a Transpose."""

_RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


class RegionWriter:
    """Writes the regions of one site.

    Args:
        editor: the graph.
        stored: makes initializers.
        site: the site.
        lowered: how it is stored; it has at least one group.
    """

    def __init__(self, editor: Editor, stored: Stored, site: Site, lowered: LoweredSite) -> None:
        self._editor = editor
        self._stored = stored
        self._site = site
        self._groups = lowered.groups
        self._heads = site.heads
        self._per_head = {name: axis.per_head for name, axis in site.axes.items()}
        blocks = max(sum(len(g.blocks[name]) for g in lowered.groups) for name in lowered.groups[0].blocks)
        # A tie that stays is a weight with several readers too.
        self._split = lowered.shared or blocks > 1 or site.calls > 1

    def write(self, region: Region) -> None:
        """Write one call-site; afterwards nothing reads its old nodes.

        Raises:
            PassError: a node is not of a form that can follow the change.
        """
        call = _Call(self, region)
        for node in region.nodes:
            if node.graph is self._editor.graph:  # else it is gone: a site that is empty now was all that read it
                call.visit(node)
        call.hand_over()

    def selection(self, key: Key) -> Selection:
        """What a version holds."""
        group = self._groups[key[0]]
        blocks = {key[1]: [group.blocks[key[1]][key[2]]]} if key[1] is not None else {}
        return Selection.of(group, blocks, self._per_head, self._heads)

    def joined(self, index: int, axes: Sequence[str]) -> Selection:
        """All blocks of a group side by side inside each head."""
        group = self._groups[index]
        return Selection.of(group, {a: group.blocks[a] for a in axes}, self._per_head, self._heads)

    def keys(self, axis: str | None) -> list[Key]:
        """All versions of a value that carries ``axis``."""
        if axis is None:
            return [(g, None, 0) for g in range(len(self._groups))]
        return [(g, axis, b) for g, group in enumerate(self._groups) for b in range(len(group.blocks[axis]))]


class _Call:
    """One region being written."""

    def __init__(self, writer: RegionWriter, region: Region) -> None:
        self.w = writer
        self.region = region
        self.shapes = region.coupling.shapes
        self.editor = writer._editor
        self.made: dict[ir.Value, dict[Key, ir.Value]] = {}
        self.role_of = {p.node: role for role, p in region.projections.items()}
        self.cuts = Cuts(writer._editor, writer._stored, writer._site, region, ranked=writer._split)

    # --- dispatch ------------------------------------------------------------------------------------------------------

    def visit(self, node: ir.Node) -> None:
        role = self.role_of.get(node)
        if role in self.region.sinks and role is not None:
            self._sink(node, role)
        elif role is not None:
            self._source(node, role)
        elif node.op_type == "Shape":
            self._shape(node)
        elif not any(v in self.made for v in data_inputs(node)):
            self._typed(node)
        elif node.op_type in FUSED:
            self._fused(node)
        elif node in self.region.coupling.contractions and self._contracted(node) is not None:
            self._contraction(node)
        else:
            self._plain(node)

    def axis_of(self, value: ir.Value) -> str | None:
        """The cut axis that a value carries."""
        layout = self.region.layout(value)
        found = [name for name in INNER if carries(layout, (name,))]
        if len(found) > 1:
            raise PassError(f"{value.name} carries {' and '.join(found)} at once", where=self.w._site.name)
        return found[0] if found else None

    def version(self, value: ir.Value | None, key: Key) -> ir.Value | None:
        """The version of an input that a clone reads; a value from outside the region is read as it is."""
        if value is None or value not in self.made:
            return value
        versions = self.made[value]
        if key in versions:
            return versions[key]
        plain = (key[0], None, 0)
        if plain in versions:
            return versions[plain]
        # A norm or a sum over the head dimension, which is frozen then: there is one block of it.
        whole = [made for (group, _, _), made in versions.items() if group == key[0]]
        if len(whole) == 1:
            return whole[0]
        raise PassError(f"{value.name} has no version for group {key[0]}", where=self.w._site.name)

    def _size(self, old: ir.Value, new: ir.Value, key: Key) -> None:
        """Give a version the sizes that are known of it: a Reshape to computed sizes hides them from shape inference."""
        if self.region.layout(old) is not None:
            _, sizes = self.cuts.sizes(old, self.w.selection(key))
            new.shape = ir.Shape(size.value for size in sizes)

    def _typed(self, node: ir.Node) -> None:
        """A node that reads the type of a value of the region and none of its numbers: any version tells it."""
        for position, value in enumerate(node.inputs):
            if value is not None and value in self.made:
                node.replace_input_with(position, next(iter(self.made[value].values())))

    def hand_over(self) -> None:
        """Values that are read from outside as well (a graph output, a subgraph) are those of the new nodes from now on."""
        inside = set(self.region.nodes)
        for old, versions in list(self.made.items()):
            if not old.is_graph_output() and all(node in inside for node in old.consumers()):
                continue
            layout = self.region.layout(old)
            whole = len(versions) == 1 and layout is not None
            if not whole or not all(self.w.selection(next(iter(versions))).whole(axis) for axis in layout or ()):
                raise PassError(f"{old.name} is read from outside its site, and changes", where=self.w._site.name)
            self.editor.take_place(old, next(iter(versions.values())), named=True)

    # --- projections ---------------------------------------------------------------------------------------------------

    def _source(self, node: ir.Node, role: str) -> None:
        out, axis = node.outputs[0], ROLE_AXIS[role]
        projection = self.region.projections[role]
        versions = self.made.setdefault(out, {})
        for key in self.w.keys(axis):
            selection = self.w.selection(key)
            weight = self._weight(role, projection, key, sink=False)
            bias = self.cuts.rider(node, 2, selection, rank=1) if len(node.inputs) > 2 and node.inputs[2] is not None else None
            if not self.w._split:
                extra = [bias] if bias is not None else []
                versions[key] = self.editor.clone(node, [node.inputs[0], weight, *extra], node).outputs[0]
                continue
            versions[key] = self._product(node, node.inputs[0], weight, out, apart=self._is_trio(node) and not versions)
            if bias is not None:
                versions[key] = self.editor.node(node, "Add", [versions[key], bias], hint=str(out.name)).outputs[0]

    def _weight(self, role: str, projection: Projection, key: Key, *, sink: bool) -> ir.Value:
        axis = ROLE_AXIS[role]
        block = self.w._groups[key[0]].blocks[axis][key[2]]
        return self.w._stored.matrix(
            self.editor,
            self.w._site.name,
            self.w._site.members[role],
            projection,
            self.w.selection(key),
            sink=sink,
            input_major=self.w._split,
            segment=block.segment,
            anchor=projection.node,
        )

    def _is_trio(self, node: ir.Node) -> bool:
        """Whether a source is the first of exactly three products of its input: simplifiers join those into one packed weight."""
        own = _unshaped(node.inputs[0])
        sources = {role: p.node for role, p in self.region.projections.items() if role not in self.region.sinks}
        same = [role for role, other in sources.items() if _unshaped(other.inputs[0]) is own]
        return sources[same[0]] is node and sum(len(self.w.keys(ROLE_AXIS[role])) for role in same) == 3

    def _product(self, anchor: ir.Node, x: ir.Value | None, weight: ir.Value, out: ir.Value, *, apart: bool = False) -> ir.Value:
        """``x W`` that stays a MatMul whatever stands around it.

        ONNX Runtime makes a Gemm of a 2-D MatMul and an Add, and a FusedMatMul of a MatMul beside a scalar scale or a Transpose,
        which it may first have brought there. Readers of one tensor that end as different operators pack it once each, so such a
        MatMul is set between Unsqueeze and Squeeze, which copy nothing.
        """
        shape = self.shapes.shape(out)
        before = x.producer() if x is not None else None
        beside = (before is not None and before.op_type in _FOLDED) or any(n.op_type in _FOLDED for n in out.consumers())
        factor = anchor.attributes.get("alpha")
        alpha = factor.as_float() if factor is not None else 1.0
        beside = beside or _behind_transposes(x) or alpha != 1.0
        if not (beside or apart) and shape is not None and len(shape) > 2:
            return self.editor.node(anchor, "MatMul", [x, weight], hint=str(out.name)).outputs[0]
        # Other axes than its neighbours', whose Unsqueeze may become one with theirs.
        axes = [0, 1] if apart else [0]
        wide = self._axes_node(anchor, "Unsqueeze", x, axes)
        made = self.editor.node(anchor, "MatMul", [wide, weight], hint=str(out.name)).outputs[0]
        made = self._axes_node(anchor, "Squeeze", made, axes)
        if alpha == 1.0:
            return made
        assert weight.dtype is not None
        scale = self.editor.initializer(f"{out.name}.alpha", ir.tensor(alpha, dtype=weight.dtype))
        return self.editor.node(anchor, "Mul", [made, scale], hint=str(out.name)).outputs[0]

    def _write_axes(self, node: ir.Node, axes: Sequence[int]) -> None:
        if self.editor.graph.opset_imports.get("", 13) < 13:
            node.attributes["axes"] = ir.AttrInt64s("axes", list(axes))
        else:
            node.resize_inputs(2)
            node.replace_input_with(1, self.editor.ints(axes, "axes"))

    def _axes_node(self, anchor: ir.Node, op: str, value: ir.Value | None, axes: Sequence[int]) -> ir.Value:
        node = self.editor.node(anchor, op, [value], hint=str(value.name) if value is not None else op)
        self._write_axes(node, axes)
        return node.outputs[0]

    def _sink(self, node: ir.Node, role: str) -> None:
        out, axis = node.outputs[0], ROLE_AXIS[role]
        projection = self.region.projections[role]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        total: ir.Value | None = None
        for key in self.w.keys(axis):
            x = self.version(node.inputs[0], key)
            weight = self._weight(role, projection, key, sink=True)
            if not self.w._split:
                extra = [bias] if bias is not None else []
                self.editor.take_place(out, self.editor.clone(node, [x, weight, *extra], node).outputs[0], named=True)
                return
            part = self._product(node, x, weight, out)
            total = part if total is None else self.editor.node(node, "Add", [total, part], hint=str(out.name)).outputs[0]
        assert total is not None
        if bias is not None:
            total = self.editor.node(node, "Add", [total, bias], hint=str(out.name)).outputs[0]
        elif len(self.w.keys(axis)) == 1:
            self._lift_bias(out)
        self.editor.take_place(out, total, named=True)

    def _lift_bias(self, out: ir.Value) -> None:
        """Give a constant bias behind a single shared product the rank of the product, so that no Gemm is made of the two."""
        shape = self.shapes.shape(out)
        for node in list(out.consumers()):
            if node.op_type != "Add" or shape is None or len(shape) < 3:
                continue
            place = 1 if node.inputs[0] is out else 0
            bias = node.inputs[place]
            row = self.w._stored.row(self.editor, bias, len(shape)) if bias is not None else None
            if row is not None:
                node.replace_input_with(place, row)

    # --- products of activations ---------------------------------------------------------------------------------------

    def _contracted(self, node: ir.Node) -> str | None:
        """The cut axis that a product sums over, or None where it sums over the sequence."""
        names = [name for name, _ in self.region.name_factors(self.region.coupling.contractions[node].factors)]
        return next((name for name in names if name in INNER), None)

    def _contraction(self, node: ir.Node) -> None:
        axis, out = self._contracted(node), node.outputs[0]
        versions = self.made.setdefault(out, {})
        for key in self.w.keys(axis):
            inputs = [self.version(v, key) for v in node.inputs]
            part = self.editor.clone(node, inputs, node).outputs[0]
            plain = (key[0], None, 0)
            if plain in versions:
                part = self.editor.node(node, "Add", [versions[plain], part], hint=str(out.name)).outputs[0]
            versions[plain] = part
            self._size(out, part, plain)
        self._leave(out)

    def _leave(self, out: ir.Value) -> None:
        """A value that carries no factor of the site ends the region: what reads it reads the one version there is."""
        layout = self.region.layout(out)
        if carries(layout, set(self.region.names.values())):
            return
        versions = self.made.pop(out)
        if len(versions) != 1:
            raise PassError(f"{out.name} mixes groups of heads", where=self.w._site.name)
        self.editor.take_place(out, next(iter(versions.values())), named=True)

    def _fused(self, node: ir.Node) -> None:
        """Attention operators take one q, k and v: blocks of a group are joined inside heads before, and parted after."""
        out = node.outputs[0]
        inner = list(self.w._groups[0].blocks)
        value_axis = self.axis_of(out)
        versions = self.made.setdefault(out, {})
        attrs = self._fused_attributes(node)
        for g in range(len(self.w._groups)):
            whole = self.w.joined(g, inner)
            inputs: list[ir.Value | None] = [self._join(node, v, g) for v in node.inputs[:3]]
            for position in range(3, len(node.inputs)):
                inputs.append(self.cuts.rider(node, position, whole))
            clone = self.editor.clone(node, inputs, node)
            heads = self._count(node.inputs[0], whole)
            for name, count in (
                ("num_heads", heads),
                ("q_num_heads", heads),
                ("kv_num_heads", self._count(node.inputs[1], whole)),
            ):
                if name in clone.attributes:
                    clone.attributes[name] = ir.AttrInt64(name, count)
            clone.attributes.update({a.name: a for a in attrs})
            self._part(node, clone.outputs[0], out, g, value_axis, whole, versions)

    def _fused_attributes(self, node: ir.Node) -> list[ir.Attr]:
        """The scale that the operator would derive from the head dimension, pinned to what it was."""
        if "scale" in node.attributes and node.attributes["scale"].as_float() != 0.0:
            return []
        return [ir.AttrFloat32("scale", 1.0 / math.sqrt(self._dim_per_head(node.inputs[0])))]

    def _dim_per_head(self, value: ir.Value | None) -> int:
        layout = self.region.layout(value) if value is not None else None
        assert layout is not None
        return product(size for name, size in layout[-1] if name not in ("head", "group")).coef

    def _count(self, value: ir.Value | None, selection: Selection) -> int:
        """Heads of an operand under a selection."""
        layout = self.region.layout(value) if value is not None else None
        assert layout is not None
        return selection.size([f for axis in layout for f in axis if f[0] in ("head", "group")]).coef

    def _join(self, node: ir.Node, value: ir.Value | None, g: int) -> ir.Value | None:
        """All blocks of an operand of a fused operator, joined inside each head."""
        axis = self.axis_of(value) if value is not None else None
        keys = [key for key in self.w.keys(axis) if key[0] == g]
        parts = [self.version(value, key) for key in keys]
        if len(parts) == 1 or value is None:
            return parts[0]
        layout = self.region.layout(value)
        assert layout is not None
        if len(layout) == 4:
            return self.editor.node(node, "Concat", parts, {"axis": 3}, hint=str(value.name)).outputs[0]
        heads = self._count(value, self.w.selection(keys[0]))
        split: list[ir.Value | None] = []
        for part, key in zip(parts, keys, strict=True):
            per_head = self.w.selection(key).size(layout[2]).coef // heads
            split.append(self._reshape(node, part, [0, 0, heads, per_head]))
        joined = self.editor.node(node, "Concat", split, {"axis": 3}, hint=str(value.name)).outputs[0]
        width = sum(self.w.selection(key).size(layout[2]).coef for key in keys)
        return self._reshape(node, joined, [0, 0, width])

    def _reshape(self, anchor: ir.Node, value: ir.Value | None, target: list[int]) -> ir.Value:
        hint = str(value.name) if value is not None else "reshape"
        return self.editor.node(anchor, "Reshape", [value, self.editor.ints(target, "shape")], hint=hint).outputs[0]

    def _part(
        self,
        node: ir.Node,
        value: ir.Value,
        out: ir.Value,
        g: int,
        axis: str | None,
        whole: Selection,
        versions: dict[Key, ir.Value],
    ) -> None:
        """Part the result of a fused operator into the blocks of its value axis."""
        keys = [key for key in self.w.keys(axis) if key[0] == g]
        if len(keys) == 1:
            versions[keys[0]] = value
            return
        layout = self.region.layout(out)
        assert layout is not None
        assert axis is not None
        heads = self._count(out, whole)
        flat = len(layout) == 3
        per_head = [self.w.selection(key).size([f for f in layout[-1] if f[0] not in ("head", "group")]).coef for key in keys]
        wide = self._reshape(node, value, [0, 0, heads, sum(per_head)]) if flat else value
        at = 0
        for key, size in zip(keys, per_head, strict=True):
            part = self.cuts.sliced(node, wide, at, at + size, 3)
            at += size
            versions[key] = self._reshape(node, part, [0, 0, heads * size]) if flat else part

    # --- everything else -----------------------------------------------------------------------------------------------

    def _plain(self, node: ir.Node) -> None:
        """Clone a node that passes factors on, with its constants and targets cut to the version."""
        axis = next((a for v in node.outputs if (a := self.axis_of(v)) is not None), None)
        for value in node.outputs:
            self.made.setdefault(value, {})
        for key in self.w.keys(axis):
            selection = self.w.selection(key)
            inputs = [self._input(node, i, key, selection) for i in range(len(node.inputs))]
            clone = self.editor.clone(node, self.cuts.targets(node, inputs, selection), node)
            if "num_heads" in clone.attributes and node.op_type == "RotaryEmbedding" and int_attr(node, "num_heads", 0):
                clone.attributes["num_heads"] = ir.AttrInt64("num_heads", self._count(node.inputs[0], selection))
            if node.op_type == "Squeeze" and "axes" not in node.attributes and not any(node.inputs[1:]):
                # Without axes it would take one head that is left for an axis too many.
                ones = [axis for axis, size in enumerate(self.shapes.need(node.inputs[0])) if size == ONE]
                self._write_axes(clone, ones)
            if "split" in clone.attributes:
                sizes = self.cuts.split_lengths(node, selection)
                clone.attributes["split"] = ir.AttrInt64s("split", sizes)
            for old, new in zip(node.outputs, clone.outputs, strict=True):
                self.made[old][key] = new
                self._size(old, new, key)
        for value in node.outputs:
            if value.uses() or value.is_graph_output():
                self._leave(value)
            else:  # a mask of Dropout, say, that would have to be put together for nobody
                del self.made[value]

    def _input(self, node: ir.Node, position: int, key: Key, selection: Selection) -> ir.Value | None:
        value = node.inputs[position]
        if value is not None and value in self.made:
            if position >= len(data_inputs(node)):
                return next(iter(self.made[value].values()))
            return self.version(value, key)
        return self.cuts.rider(node, position, selection)

    def _shape(self, node: ir.Node) -> None:
        """What was computed from a size that shrinks keeps its original value: reshape targets, attention scales."""
        value = node.inputs[0]
        assert value is not None
        if value not in self.made:
            return
        key, version = next(iter(self.made[value].items()))
        old, new = self.cuts.sizes(value, self.w.selection(key))
        self.editor.take_place(node.outputs[0], restored_shape(self.editor, node, node, version, old, new))


def _behind_transposes(value: ir.Value | None) -> bool:
    """Whether a Transpose may be moved up to a value, through what leaves axes in their order."""
    todo, seen = [value], set[ir.Value]()
    while todo and len(seen) < _FAR:
        item = todo.pop()
        if item is None or item in seen:
            continue
        seen.add(item)
        node = item.producer()
        if node is not None and node.op_type == "Transpose":
            return True
        if node is not None and node.op_type in _MOVED_ALONG:
            todo.extend(node.inputs)
    return False


def _unshaped(value: ir.Value | None) -> ir.Value | None:
    """What a value is a mere other shape of: each of q, k and v may flatten their common input for itself."""
    node = value.producer() if value is not None else None
    return _unshaped(node.inputs[0]) if node is not None and node.op_type in _RESHAPING else value
