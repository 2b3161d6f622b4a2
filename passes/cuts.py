"""What the nodes of a call-site read beside the values between its projections, cut to what one version of them holds.

Biases and other side inputs, and the shapes, bounds and sizes that a node takes as inputs: the nodes are cloned by
:mod:`~inarch.passes.region_writer`, which asks here for these.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from inarch.passes.selection import Factors, Selection, fixed_part
from inarch.passes.stored import Stored, as_tensor
from inarch.structure.arguments import int_attr, slice_parts, split_sizes
from inarch.structure.constants import constant
from inarch.structure.dims import Dim, Shape, product
from inarch.structure.errors import PassError
from inarch.structure.graph_edit import Editor, patch_target
from inarch.structure.regions import Layout, Region, Rider
from inarch.structure.sites import Site
from inarch.structure.units import Indices
from inarch.structure.views import view_of


class Cuts:
    """Side inputs and sizes of one call-site.

    Args:
        editor: the graph.
        stored: makes initializers.
        site: the site.
        region: the call-site.
        ranked: whether a bias gets the rank of the product that it is added to, so that no Gemm is made of the two.
    """

    def __init__(self, editor: Editor, stored: Stored, site: Site, region: Region, *, ranked: bool) -> None:
        self._editor = editor
        self._stored = stored
        self._site = site
        self._region = region
        self._shapes = region.coupling.shapes
        self._ranked = ranked
        self._riders: dict[tuple[ir.Node, int], list[Rider]] = {}
        for rider in region.riders:
            self._riders.setdefault((rider.node, rider.position), []).append(rider)

    def rider(self, node: ir.Node, position: int, selection: Selection, rank: int = 0) -> ir.Value | None:
        """A side input, cut to the selection where it runs along the site's factors."""
        value = node.inputs[position]
        riders = self._riders.get((node, position))
        if value is None or riders is None:
            return value
        if len(riders) > 1:
            pieces = [(self._site.members[str(r.role)], selection) for r in riders]
            return self._stored.packed(self._editor, self._site.name, pieces, value)
        rider = riders[0]
        if all(selection.whole(axis) for axis in rider.layout) and (rider.role is None or not self._is_bias(rider)):
            return value
        if rider.role is not None:
            view = view_of(value, self._shapes)
            assert view is not None
            order = [axis for axis, _ in view.axes]
            member = self._site.members[rider.role]
            want = self._bias_rank(node, position) if rank == 0 else rank
            return self._stored.vector(self._editor, self._site.name, member, view.param, [selection], order, want)
        return self._gathered(node, value, rider.layout, selection)

    def _is_bias(self, rider: Rider) -> bool:
        return rider.role is not None and self._site.members[rider.role].is_bias

    def _bias_rank(self, node: ir.Node, position: int) -> int:
        """A bias beside a shared product gets the product's rank: with a row of rank 1 a Gemm could be made of the two."""
        if not self._ranked or node.op_type != "Add":
            return 0
        shape = self._shapes.shape(node.outputs[0])
        return len(shape) if shape is not None and len(shape) > 2 else 0

    def _gathered(self, node: ir.Node, value: ir.Value, layout: Layout, selection: Selection) -> ir.Value:
        """A side input that is computed in the graph: what the version needs of it is picked where it is read."""
        tensor = constant(value)
        result = value
        for axis, factors in enumerate(layout):
            if not factors or selection.whole(factors):
                continue
            places = selection.positions(factors)
            if any(size.value is None for _, size in factors):
                result = self._gathered_inside(node, result, axis, factors, places)
                continue
            if tensor is not None:
                cut = np.take(np.asarray(tensor.numpy()), places, axis=axis)
                tensor = as_tensor(np.ascontiguousarray(cut), tensor.dtype)
                result = self._editor.initializer(f"{value.name}.cut", tensor)
            else:
                index = self._editor.ints([int(i) for i in places], "index")
                result = self._editor.node(node, "Gather", [result, index], {"axis": axis}, hint=str(value.name)).outputs[0]
        return result

    def _gathered_inside(self, node: ir.Node, value: ir.Value, axis: int, factors: Factors, places: Indices) -> ir.Value:
        """Pick from the known inner part of an axis whose outer part is not known: ``[B * H, ...]``."""
        inner = product(size for _, size in fixed_part(factors)).coef
        hint, edit = str(value.name), self._editor
        sizes = edit.node(node, "Shape", [value], hint=f"{hint}.shape").outputs[0]
        before = [self.sliced(node, sizes, 0, axis, 0)] if axis else []
        after = self.sliced(node, sizes, axis + 1, 2**31 - 1, 0)
        # Sizes are written out: where another axis is empty, Reshape cannot find one out.
        outer = edit.node(
            node, "Div", [self.sliced(node, sizes, axis, axis + 1, 0), edit.ints([inner], "shape")], hint="shape"
        ).outputs[0]
        left = edit.node(node, "Mul", [outer, edit.ints([len(places)], "shape")], hint="shape").outputs[0]
        zero = {"allowzero": 1} if edit.graph.opset_imports.get("", 0) >= 14 else {}
        wide = edit.node(node, "Concat", [*before, outer, edit.ints([inner], "shape"), after], {"axis": 0}, hint="shape")
        parted = edit.node(node, "Reshape", [value, wide.outputs[0]], zero, hint=hint).outputs[0]
        index = edit.ints([int(i) for i in places], "index")
        picked = edit.node(node, "Gather", [parted, index], {"axis": axis + 1}, hint=hint).outputs[0]
        flat = edit.node(node, "Concat", [*before, left, after], {"axis": 0}, hint="shape")
        return edit.node(node, "Reshape", [picked, flat.outputs[0]], zero, hint=hint).outputs[0]

    def targets(self, node: ir.Node, inputs: list[ir.Value | None], selection: Selection) -> list[ir.Value | None]:
        """Shapes, slice bounds and split sizes that a node takes as inputs, for the version's sizes."""
        out = node.outputs[0]
        if node.op_type in ("Reshape", "Expand"):
            old, new = self.sizes(out, selection)
            inputs[1] = patch_target(self._editor, self._shapes, node, node, old, new)
        elif node.op_type == "Slice" and "starts" not in node.attributes:
            inputs = self._slice_inputs(node, inputs, selection)
        elif node.op_type == "Split" and len(node.inputs) > 1 and node.inputs[1] is not None:
            inputs[1] = self._editor.ints(self.split_lengths(node, selection), "split")
        elif node.op_type == "Slice":
            raise PassError("Slice with attributes cuts a hidden axis", where=str(node.name))
        return inputs

    def sizes(self, value: ir.Value, selection: Selection) -> tuple[Shape, Shape]:
        """A value's shape as it was, and as a version with this selection has it."""
        layout = self._region.layout(value)
        assert layout is not None
        old: list[Dim] = [product(size for _, size in axis) for axis in layout]
        return tuple(old), tuple(selection.size(axis) for axis in layout)

    def split_lengths(self, node: ir.Node, selection: Selection) -> list[int]:
        """The lengths that a Split cuts a version into."""
        sizes = split_sizes(self._shapes, node)
        x = node.inputs[0]
        if sizes is None or x is None:
            raise PassError("the lengths of this Split are unknown", where=str(node.name or node.outputs[0].name))
        old, new = self.sizes(x, selection)
        axis = int_attr(node, "axis", 0) % len(old)
        return [n * new[axis].coef // old[axis].coef for n in sizes]

    def _slice_inputs(self, node: ir.Node, inputs: list[ir.Value | None], selection: Selection) -> list[ir.Value | None]:
        x = node.inputs[0]
        assert x is not None
        old, new = self.sizes(x, selection)
        starts, ends, axes, steps = slice_parts(self._shapes, node)
        bounds: list[tuple[int, int]] = []
        changed = False
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            a, b = old[axis % len(old)], new[axis % len(old)]
            if a == b:
                if start is None or end is None:
                    return inputs if all(old[i % len(old)] == new[i % len(old)] for i in axes) else self._mixed(node)
                bounds.append((start, end))
                continue
            changed = True
            assert start is not None
            assert end is not None
            first, last, _ = slice(start, end, step).indices(a.coef)
            # Interleaved parts begin inside the first step; equal parts begin at a multiple of their size.
            bounds.append((first, b.coef) if step > 1 else (first * b.coef // a.coef, last * b.coef // a.coef))
        if not changed:
            return inputs
        inputs[1] = self._editor.ints([s for s, _ in bounds], "starts")
        inputs[2] = self._editor.ints([e for _, e in bounds], "ends")
        for position, numbers in ((3, axes), (4, steps)):
            if len(inputs) > position and inputs[position] is not None:
                inputs[position] = self._editor.ints(numbers, "slice")
        return inputs

    def _mixed(self, node: ir.Node) -> list[ir.Value | None]:
        raise PassError("Slice cuts a hidden axis and one at a computed place at once", where=str(node.name))

    def sliced(self, anchor: ir.Node, value: ir.Value, start: int, end: int, axis: int) -> ir.Value:
        """Part of a value along an axis, by a new Slice."""
        places = [self._editor.ints([n], "slice") for n in (start, end, axis)]
        return self._editor.node(anchor, "Slice", [value, *places], hint=str(value.name)).outputs[0]
