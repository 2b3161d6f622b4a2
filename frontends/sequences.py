"""Sequences that are only ever read at constant places become Slices: torch's exporter writes ``chunk`` and ``split`` with them.

```
x -- SplitToSequence([2048, 2048]) -- SequenceAt(0) -- gate        x -- Slice(0, 2048) -- gate
                                  \\-- SequenceAt(1) -- up            \\-- Slice(2048, 4096) -- up
```
"""

from __future__ import annotations

import onnx_ir as ir

from inarch.structure.arguments import int_attr
from inarch.structure.graph_edit import Editor, drop_dead
from inarch.structure.shapes import Shapes
from inarch.structure.views import view_of


def cut_sequences(graph: ir.Graph) -> bool:
    """Rewrite in place every SplitToSequence of an activation whose readers are SequenceAts of constants.

    Parts of a parameter stay as they are: they are views, which need no rewriting.

    Returns:
        Whether there was one.
    """
    found = [node for node in graph if node.op_type == "SplitToSequence" and node.domain in ("", "ai.onnx")]
    if not found:
        return False
    shapes = Shapes(graph)
    editor = Editor(graph, "inarch.part/")
    changed = False
    for node in found:
        data = node.inputs[0]
        readers = list(node.outputs[0].consumers())
        if data is None or node.outputs[0].is_graph_output() or any(r.outputs[0].is_graph_output() for r in readers):
            continue
        if all(r.op_type == "SequenceAt" and view_of(r.outputs[0], shapes) is not None for r in readers):
            continue
        bounds = [_bounds(shapes, node, reader) for reader in readers]
        if None in bounds:
            continue
        for reader, place in zip(readers, bounds, strict=True):
            assert place is not None
            places = [editor.ints([n], "slice") for n in place]
            made = editor.node(reader, "Slice", [data, *places], hint=str(reader.outputs[0].name)).outputs[0]
            made.type = reader.outputs[0].type
            ir.convenience.replace_all_uses_with(reader.outputs[0], made)
        drop_dead(graph, [*readers, node])
        changed = True
    return changed


def _bounds(shapes: Shapes, split: ir.Node, reader: ir.Node) -> tuple[int, int, int] | None:
    """Start, end and axis of the piece that a reader takes of a sequence; None where they are not constant."""
    shape = shapes.shape(split.inputs[0]) if split.inputs[0] is not None else None
    pieces = shapes.ints(split.inputs[1]) if len(split.inputs) > 1 else None
    index = shapes.ints(reader.inputs[1]) if reader.op_type == "SequenceAt" and len(reader.inputs) > 1 else None
    if shape is None or not pieces or index is None:
        # Without sizes a sequence has elements of 1, which may have lost their axis.
        return None
    axis = int_attr(split, "axis", 0) % len(shape)
    given = shapes.shape(split.inputs[1]) if split.inputs[1] is not None else None
    size = shape[axis].value
    if given == ():
        if size is None:
            return None
        pieces = [min(pieces[0], size - start) for start in range(0, size, pieces[0])]
    if not -len(pieces) <= index[0] < len(pieces):
        return None
    place = index[0] % len(pieces)
    return sum(pieces[:place]), sum(pieces[: place + 1]), axis
