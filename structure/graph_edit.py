"""Small edits of a graph that frontends and passes have in common: constants, clones of nodes, reshape targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from inarch.structure.arguments import int_attr
from inarch.structure.dims import Dim, Shape
from inarch.structure.nodes import every_node
from inarch.structure.shapes import Shapes


class Editor:
    """Inserts nodes before an anchor node of a graph and names what it makes.

    Args:
        graph: the graph to edit.
        prefix: start of every new name; a number makes it unique in the graph.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph = graph
        self._prefix = prefix
        self._taken = {v.name for n in every_node(graph) for v in n.outputs} | set(graph.initializers)
        self._taken |= {v.name for v in graph.inputs}
        self._names: dict[str, int] = {}
        self._ints: dict[tuple[str, tuple[int, ...]], ir.Value] = {}

    def fresh(self, hint: str) -> str:
        """A value name that the graph does not have."""
        base = hint if hint.startswith(self._prefix) else f"{self._prefix}{hint}"
        count = self._names.get(base, 0)
        name = base if count == 0 else f"{base}.{count}"
        while name in self._taken:
            count += 1
            name = f"{base}.{count}"
        self._names[base] = count + 1
        self._taken.add(name)
        return name

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Register a tensor under a name, or one like it where that is taken."""
        unique = self.fresh(name) if name in self._taken else name
        self._taken.add(unique)
        value = ir.Value(name=unique, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def ints(self, numbers: Sequence[int], hint: str) -> ir.Value:
        """A small int64 constant, shape [n]; equal ones with one hint are one initializer."""
        key = (hint, tuple(numbers))
        found = self._ints.get(key)
        if found is None or found.graph is not self.graph:
            found = self.initializer(f"{self._prefix}{hint}", ir.tensor(np.array(numbers, np.int64)))
            self._ints[key] = found
        return found

    def node(
        self,
        anchor: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        hint: str | None = None,
    ) -> ir.Node:
        """Insert a new node before ``anchor``; its first output is named after the hint."""
        attrs = ir.convenience.convert_attributes(dict(attributes or {}))
        node = ir.Node(domain, op, inputs, attrs, num_outputs=outputs)
        self._finish(node, anchor, hint or op)
        return node

    def clone(self, node: ir.Node, inputs: Sequence[ir.Value | None], anchor: ir.Node, hint: str | None = None) -> ir.Node:
        """Insert a copy of ``node`` with other inputs before ``anchor``; metadata comes along."""
        attributes = [ir.Attr(a.name, a.type, a.value, doc_string=a.doc_string) for a in node.attributes.values()]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes,
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        self._finish(copy, anchor, hint or str(node.outputs[0].name))
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            if old.dtype is not None:
                new.dtype = old.dtype
        return copy

    def take_place(self, old: ir.Value, new: ir.Value, *, named: bool = False) -> None:
        """Let ``new`` be read wherever ``old`` is.

        A graph output keeps its name, and its type and shape as the file has them, which may be nothing.

        Args:
            old: what a node makes.
            new: what comes in its place.
            named: whether it takes the name and the shape in any case.
        """
        public = old.is_graph_output()
        if not (public or named):
            ir.convenience.replace_all_uses_with(old, new)
            return
        anchor = old.producer()
        if public and new.is_initializer() and anchor is not None:  # which keeps its own name
            new = self.node(anchor, "Identity", [new], hint=str(old.name)).outputs[0]
        if public or new.type is None:
            new.type = old.type
        if public or old.shape is not None:
            new.shape = old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if not new.is_initializer() and new.producer() is not None:
            old.name, new.name = self.fresh(f"{old.name}.replaced"), old.name

    def _finish(self, node: ir.Node, anchor: ir.Node, hint: str) -> None:
        for value in node.outputs:
            value.name = self.fresh(hint)
        node.name = str(node.outputs[0].name)
        self.graph.insert_before(anchor, node)


def patch_target(
    editor: Editor, shapes: Shapes, node: ir.Node, anchor: ir.Node, old: Shape, new: Shape, *, hint: str = "shape"
) -> ir.Value:
    """The target of a Reshape or Expand whose output is to be ``new`` where it was ``old``.

    Constant targets become new constants. A computed target is scaled, entry by entry, by the exact ratio; an entry of -1 or 0
    (copy) stays as it is.

    Args:
        editor: where to insert.
        shapes: shapes of the graph before the edit.
        node: the Reshape or Expand; its second input is the old target, which keeps its original value.
        anchor: new nodes go before it.
        old: symbolic output shape before.
        new: symbolic output shape after.
        hint: name of a new constant.

    Returns:
        A value of shape [rank].
    """
    target = node.inputs[1]
    assert target is not None
    changed = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    if not changed:
        return target
    known = shapes.ints(target)
    if known is not None:
        copies = node.op_type == "Reshape" and not int_attr(node, "allowzero", 0)
        shift = len(old) - len(known)
        numbers = list(known)
        for i in changed:
            entry = known[i - shift] if i >= shift else 1
            if i < shift or entry == -1 or (entry == 0 and copies) or (node.op_type == "Expand" and entry == 1):
                continue
            numbers[i - shift] = ratio(new[i], old[i], entry)
        return target if numbers == known else editor.ints(numbers, hint)
    up, down = [1] * len(old), [1] * len(old)
    content = shapes.content(target)
    for i in changed:
        given = content[i - (len(old) - len(content))].value if content is not None and i >= len(old) - len(content) else None
        if given in (-1, 0) or (node.op_type == "Expand" and given == 1):
            continue
        a, b = new[i].coef, old[i].coef
        common = int(np.gcd(a, b))
        up[i], down[i] = a // common, b // common
    if all(u == d for u, d in zip(up, down, strict=True)):
        return target
    concat = _patched_concat(editor, shapes, target, up, down, anchor, hint)
    if concat is not None:
        return concat
    scaled = target
    if any(d != 1 for d in down):
        scaled = editor.node(anchor, "Div", [scaled, editor.ints(down, hint)], hint=hint).outputs[0]
    return editor.node(anchor, "Mul", [scaled, editor.ints(up, hint)], hint=hint).outputs[0]


def _patched_concat(
    editor: Editor, shapes: Shapes, target: ir.Value, up: list[int], down: list[int], anchor: ir.Node, hint: str
) -> ir.Value | None:
    """Where the target is a Concat and what changes are constant pieces of it: the same Concat with other constants."""
    node = target.producer()
    if node is None or node.op_type != "Concat":
        return None
    at = 0
    pieces: list[ir.Value | None] = []
    for piece in node.inputs:
        shape = shapes.shape(piece) if piece is not None else None
        if piece is None or shape is None or len(shape) != 1 or shape[0].value is None:
            return None
        size = shape[0].value
        places = range(at, at + size)
        at += size
        if all(up[i] == down[i] for i in places):
            pieces.append(piece)
            continue
        known = shapes.ints(piece)
        if known is None:
            return None
        pieces.append(editor.ints([n * up[i] // down[i] for n, i in zip(known, places, strict=True)], hint))
    return editor.clone(node, pieces, anchor, hint).outputs[0]


def restored_shape(editor: Editor, anchor: ir.Node, node: ir.Node, value: ir.Value, old: Shape, new: Shape) -> ir.Value:
    """What a Shape node reported before its operand changed from shape ``old`` to ``new``.

    What the graph computes from sizes (reshape targets, attention scales) keeps its original value this way.

    Args:
        editor: where to insert.
        anchor: new nodes go before it.
        node: the Shape node.
        value: the operand after the change.
        old: symbolic shape of the operand before.
        new: symbolic shape after; axes differ by known factors only.
    """
    start, end = int_attr(node, "start", 0), int_attr(node, "end", len(old))
    old, new = old[start:end], new[start:end]
    hint = str(node.outputs[0].name)
    if all(d.value is not None for d in old):
        return editor.ints([d.coef for d in old], hint)
    copy = editor.clone(node, [value], anchor).outputs[0]
    up, down = [d.coef for d in old], [d.coef for d in new]
    if up == down:
        return copy
    common = [int(np.gcd(a, b)) for a, b in zip(up, down, strict=True)]
    scaled = editor.node(anchor, "Mul", [copy, editor.ints([u // c for u, c in zip(up, common, strict=True)], hint)], hint=hint)
    divisor = editor.ints([d // c for d, c in zip(down, common, strict=True)], hint)
    return editor.node(anchor, "Div", [scaled.outputs[0], divisor], hint=hint).outputs[0]


def ratio(new: Dim, old: Dim, entry: int) -> int:
    """``entry * new / old`` for a size that is a known multiple of the symbols that both have in common."""
    return entry * new.coef // old.coef


def drop_dead(graph: ir.Graph, candidates: Iterable[ir.Node] | None = None) -> int:
    """Remove nodes none of whose outputs is read, among ``candidates`` and what only they read; returns how many."""
    removed = 0
    readers: dict[ir.Value, int] = {}  # counted once: a value may have thousands of them, and loses them one by one

    def is_read(value: ir.Value) -> bool:
        if value not in readers:
            readers[value] = len(value.uses())
        return readers[value] > 0 or value.is_graph_output()

    todo = list(candidates) if candidates is not None else list(graph)
    while todo:
        node = todo.pop()
        if node.graph is not graph or any(is_read(v) for v in node.outputs):
            continue
        inputs = [v for v in node.inputs if v is not None]
        graph.remove(node, safe=True)
        removed += 1
        for value in inputs:
            if value in readers:
                readers[value] -= 1
        todo.extend(p for v in inputs if (p := v.producer()) is not None and p.graph is graph)
    return removed
