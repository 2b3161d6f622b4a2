"""Axis rules of attention operators: heads couple over query, key, value and result, key positions are frozen."""

from __future__ import annotations

import onnx_ir as ir

from inarch.structure.arguments import int_attr
from inarch.structure.coupling import Contraction, Coupling, same_axes
from inarch.structure.dims import ONE, Dim, dim


def attention(c: Coupling, node: ir.Node) -> None:
    """Opset-23 Attention: q [B, H, S, D] (or [B, S, H*D]), k and v likewise with H = key/value heads x group."""
    if node.domain == "com.microsoft":
        c.freeze_node(node, "packed com.microsoft Attention was not unfused")
        return
    if len(node.inputs) < 3 or any(v is None for v in node.inputs[:3]):
        c.freeze_node(node, "Attention without q, k or v")
        return
    if any(v is not None for v in node.inputs[4:6]) or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        c.freeze_node(node, "Attention with a key/value cache or a score output")
        return
    _fused(c, node, int_attr(node, "q_num_heads", 0), int_attr(node, "kv_num_heads", 0))
    _mask_rider(c, node, 3)


def multi_head_attention(c: Coupling, node: ir.Node) -> None:
    """com.microsoft MultiHeadAttention: q [B, S, H*D], k [B, T, H*D], v [B, T, H*D'], optional packed bias [2*H*D + H*D']."""
    if len(node.inputs) < 3 or any(v is None for v in node.inputs[:3]) or any(c.rank(v) != 3 for v in node.inputs[:3]):
        c.freeze_node(node, "MultiHeadAttention with packed or cached inputs")
        return
    if any(v is not None for v in node.inputs[6:]) or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        c.freeze_node(node, "MultiHeadAttention with a key/value cache")
        return
    heads = int_attr(node, "num_heads", 0)
    _fused(c, node, heads, heads)
    _mask_rider(c, node, 5)


def _fused(c: Coupling, node: ir.Node, q_heads: int, kv_heads: int) -> None:
    operands = [v for v in node.inputs[:3] if v is not None]
    if any(v not in c.projected for v in operands):
        c.freeze_node(node, f"{node.op_type} of a value that no projection made")
        return
    parts: list[tuple[list[int], list[int], list[int]]] = []
    for i, value in enumerate((*operands, node.outputs[0])):
        axes, shape = c.axes(value), c.shapes.shape(value)
        if axes is None or shape is None:
            c.freeze_node(node, f"{node.op_type} of unknown shape")
            return
        if len(axes) == 4:
            parts.append((axes[1], axes[2], axes[3]))
            continue
        heads = kv_heads if i in (1, 2) else q_heads
        per_head = shape[2].over(dim(heads)) if heads else None
        if per_head is None:
            c.freeze_node(node, f"{node.op_type} whose width is no multiple of its heads")
            return
        head, inner = c.new(dim(heads)), c.new(per_head)
        c.unite(axes[2], [*head, *inner])
        parts.append((head, axes[1], inner))
    (q_head, q_seq, q_dim), (k_head, k_seq, k_dim), (v_head, v_seq, v_dim), (o_head, o_seq, o_dim) = parts
    for value in (*operands[1:], node.outputs[0]):
        c.join(operands[0], 0, value, 0)
    c.unite(k_head, v_head)
    c.unite(q_head, o_head)
    size_q, size_k = _total(c, q_head), _total(c, k_head)
    group = size_q.over(size_k)
    if group is None:
        c.freeze_node(node, f"{node.op_type} whose query heads are no multiple of its key heads")
        return
    c.unite(q_head, [*k_head, *c.new(group)])
    c.unite(q_dim, k_dim)
    c.unite(v_dim, o_dim)
    c.unite(q_seq, o_seq)
    c.unite(k_seq, v_seq)
    c.freeze(k_seq, f"{node.op_type} runs over it")
    c.contractions[node] = Contraction(node, 0, 1, q_dim)


def _total(c: Coupling, factors: list[int]) -> Dim:
    result = ONE
    for factor in c.leaves(factors):
        result = result * c.size(factor)
    return result


def _mask_rider(c: Coupling, node: ir.Node, position: int) -> None:
    """A mask of the operator runs along heads only where its second axis (of four) has their number."""
    mask = node.inputs[position] if len(node.inputs) > position else None
    if mask is None:
        return
    shape, q = c.shapes.shape(mask), node.inputs[0]
    if shape is None or mask in c.projected:
        for value in (*node.inputs[:3], node.outputs[0]):
            c.freeze_value(value, f"the mask {mask.name} cannot be followed")
        return
    heads = int_attr(node, "num_heads", int_attr(node, "q_num_heads", 0))
    if q is not None and not heads:
        q_shape = c.shapes.shape(q)
        heads = (q_shape[1].value or 0) if q_shape is not None and len(q_shape) == 4 else 0
    if len(shape) >= 3 and shape[-3] not in (ONE, dim(heads)):
        for value in (*node.inputs[:3], node.outputs[0]):
            c.freeze_value(value, f"the mask {mask.name} may run along the heads")


def rotary(c: Coupling, node: ir.Node) -> None:
    """RotaryEmbedding on [B, H, S, D] or [B, S, H*D]: heads pass, the head dimension is frozen."""
    x, out = node.inputs[0], node.outputs[0]
    axes = c.axes(x) if x is not None else None
    if x is None or x not in c.projected or axes is None or any(v in c.projected for v in node.inputs[1:] if v is not None):
        c.freeze_node(node, f"{node.op_type} of unknown shape")
        return
    same_axes(c, x, out)
    heads = int_attr(node, "num_heads", 0)
    if len(axes) == 3 and heads:
        width = _total(c, axes[2])
        per_head = width.over(dim(heads))
        if per_head is not None:
            inner = c.new(per_head)
            c.unite(axes[2], [*c.new(dim(heads)), *inner])
            c.freeze(inner, f"{node.op_type} turns it")
            return
    c.freeze(axes[-1], f"{node.op_type} turns it")


def group_query_attention(c: Coupling, node: ir.Node) -> None:
    """com.microsoft GroupQueryAttention keeps its cache as graph outputs: nothing of it can change."""
    c.freeze_node(node, "GroupQueryAttention keeps a key/value cache")
