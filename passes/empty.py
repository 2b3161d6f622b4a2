"""A site of which nothing is left becomes zeros of its output's shape, to which its output bias is added as before.

```
up -- act -- down -- Add(bias)      Shape(x) ... ConstantOfShape(0) -- Add(bias)
```
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from inarch.passes.stored import as_tensor
from inarch.structure.arguments import data_inputs
from inarch.structure.constants import constant
from inarch.structure.dims import Dim, Shape
from inarch.structure.graph_edit import Editor
from inarch.structure.regions import Region

Known = dict[Dim, tuple[ir.Value, int]]
"""Symbolic size -> a value outside the region that has it as the size of an axis."""


def write_empty(editor: Editor, region: Region) -> bool:
    """Replace a region's results by zeros.

    Returns:
        False, with nothing changed, where the size of a result cannot be had without computing the region.
    """
    shapes = region.coupling.shapes
    inside = {v for node in region.nodes for v in node.outputs}
    outer = [v for role, p in region.projections.items() if role not in region.sinks if (v := p.node.inputs[0]) is not None]
    before = {v: p.x for p in region.projections.values() if (v := p.node.inputs[0]) is not None}
    outer += [v for node in region.nodes for v in node.inputs if v is not None and v not in inside]
    outer.extend(editor.graph.inputs)
    outside = [v for v in dict.fromkeys(outer) if v not in inside and constant(v) is None]
    order = region.coupling.order

    def known_at(anchor: ir.Node) -> Known:
        """What is there before a node of the region."""
        known: Known = {}
        for value in outside:
            old = before.get(value, value)
            maker = old.producer()
            if maker is None or order.get(maker, len(order)) < order[anchor]:
                for axis, size in enumerate(shapes.shape(old) or ()):
                    if size.syms:
                        known.setdefault(size, (value, axis))
        return known

    results = [region.projections[role].node for role in sorted(region.sinks)]
    readers = [node for node in region.nodes if node.op_type == "Shape"]
    wanted: dict[ir.Node, tuple[Shape, Known]] = {}
    for node in (*results, *readers):
        made = shapes.shape(node.outputs[0]) if node in results else shapes.content(node.outputs[0])
        known = known_at(node)
        if made is None or not all(_resolvable(size, known) for size in made):
            return False
        wanted[node] = made, known
    _keep_types(editor, region, inside)
    for node in readers:
        editor.take_place(node.outputs[0], _sizes(editor, node, *wanted[node]))
    for node in results:
        target = _sizes(editor, node, *wanted[node])
        weight = constant(region.projections[next(iter(region.projections))].view.param)
        cast = region.projections[next(iter(region.projections))].view.cast
        assert weight is not None
        zero = as_tensor(np.zeros(1, (cast or weight.dtype).numpy()), cast or weight.dtype)
        zeros = editor.node(node, "ConstantOfShape", [target], hint=str(node.outputs[0].name))
        zeros.attributes["value"] = ir.AttrTensor("value", zero)
        total = zeros.outputs[0]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            total = editor.node(node, "Add", [total, node.inputs[2]], hint=str(node.outputs[0].name)).outputs[0]
        editor.take_place(node.outputs[0], total, named=True)
    return True


def _keep_types(editor: Editor, region: Region, inside: set[ir.Value]) -> None:
    """What reads the type alone of a value of the region reads that of a constant."""
    for node in region.nodes:
        if any(v in inside for v in data_inputs(node)):
            continue
        for position, value in enumerate(node.inputs):
            if value is not None and value in inside and value.dtype is not None:
                like = as_tensor(np.zeros(1, value.dtype.numpy()), value.dtype)
                node.replace_input_with(position, editor.initializer(editor.fresh("like"), like))


def _parts(size: Dim, known: Known) -> list[Dim]:
    """A size as a product of sizes that values have, and of numbers; itself where a value has it."""
    if size in known or not size.syms:
        return [size]
    number = [Dim(size.coef)] if size.coef != 1 else []
    return number + [Dim(1, (symbol,)) for symbol in size.syms]


def _resolvable(size: Dim, known: Known) -> bool:
    return all(part in known or not part.syms for part in _parts(size, known))


def _sizes(editor: Editor, anchor: ir.Node, shape: Shape, known: Known) -> ir.Value:
    """An int64 vector of symbolic sizes."""
    if all(size.value is not None for size in shape):
        return editor.ints([size.coef for size in shape], "shape")
    entries: list[ir.Value] = []
    shapes: dict[ir.Value, ir.Value] = {}
    for size in shape:
        entry: ir.Value | None = None
        for part in _parts(size, known):
            if part.syms:
                value, axis = known[part]
                if value not in shapes:
                    shapes[value] = editor.node(anchor, "Shape", [value], hint=f"{value.name}.shape").outputs[0]
                picked = [shapes[value], editor.ints([axis], "index")]
                factor = editor.node(anchor, "Gather", picked, {"axis": 0}, hint="size").outputs[0]
            else:
                factor = editor.ints([part.coef], "size")
            entry = factor if entry is None else editor.node(anchor, "Mul", [entry, factor], hint="size").outputs[0]
        assert entry is not None
        entries.append(entry)
    return editor.node(anchor, "Concat", entries, {"axis": 0}, hint="shape").outputs[0]
