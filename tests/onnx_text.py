"""Models written as ONNX text, and printed as text again: fixtures and golden files that a person can read.

Text says ``a.up`` where the ONNX parser wants ``"a.up"``. Weights are declared like locals, ``<float[4,8] a.up>``; what no node
makes and no number fills becomes a random initializer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from inarch.structure.constants import constant

_DOTTED = re.compile(r"(?<![\w.\"/])[A-Za-z_][\w]*(?:\.[\w]+)+(?![\w\"])")
_DOMAINS = ("com.microsoft", "own")


def model_of(body: str, *, inputs: str, outputs: str, weights: str = "", opset: int = 18, seed: int = 0) -> ir.Model:
    """A model from text.

    Args:
        body: the nodes; operators may be of the domains com.microsoft and ``own``, which nobody knows.
        inputs: e.g. ``float[B,S,8] x``.
        outputs: as inputs.
        weights: declarations of parameters (random) and constants (with numbers).
        opset: version of the default domain.
        seed: of the random parameters.
    """
    used = [domain for domain in _DOMAINS if re.search(rf"(?<![\w.]){domain}\.", body)]
    imports = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in used)])
    text = f"<ir_version: 10, opset_import: [{imports}]> g ({inputs}) => ({outputs}) <{weights}> {{ {body} }}"
    quoted = _DOTTED.sub(lambda m: m[0] if m[0].startswith(tuple(f"{domain}." for domain in _DOMAINS)) else f'"{m[0]}"', text)
    proto = onnx.parser.parse_model(quoted)
    made = {name for node in proto.graph.node for name in node.output} | {t.name for t in proto.graph.initializer}
    rng = np.random.default_rng(seed)
    for info in list(proto.graph.value_info):
        if info.name in made:
            continue
        kind = info.type.tensor_type
        shape = [d.dim_value for d in kind.shape.dim]
        array = rng.standard_normal(shape) / np.sqrt(shape[0]) if len(shape) > 1 else 0.3 * rng.standard_normal(shape)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(dtype), info.name))
        proto.graph.value_info.remove(info)
    if not used:
        onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def ffn(site: str, x: str, y: str) -> str:
    """``y = x + relu(x up + b) down``."""
    return f"""
        {site}.0 = MatMul ({x}, {site}.up.weight)
        {site}.1 = Add ({site}.0, {site}.up.bias)
        {site}.2 = Relu ({site}.1)
        {site}.3 = MatMul ({site}.2, {site}.down.weight)
        {site}.4 = Add ({site}.3, {site}.down.bias)
        {y} = Add ({x}, {site}.4)"""


def ffn_weights(site: str, width: int, hidden: int) -> str:
    """Declarations for :func:`ffn`."""
    return (
        f"float[{width},{hidden}] {site}.up.weight, float[{hidden}] {site}.up.bias, "
        f"float[{hidden},{width}] {site}.down.weight, float[{width}] {site}.down.bias"
    )


def attention(site: str, x: str, y: str, heads: int, per_head: int, *, scale: str = "constant") -> str:
    """``y = x + softmax(q k^T / sqrt(d)) v o`` over heads; the scale is a constant or is computed from Shape(q)."""
    parts = []
    for role in "qkv":
        perm = "0, 2, 3, 1" if role == "k" else "0, 2, 1, 3"
        parts.append(f"""
        {site}.{role}0 = MatMul ({x}, {site}.{role}.weight)
        {site}.{role}1 = Add ({site}.{role}0, {site}.{role}.bias)
        {site}.{role}2 = Reshape ({site}.{role}1, {site}.split)
        {site}.{role}3 = Transpose <perm = [{perm}]> ({site}.{role}2)""")
    scaled = f"{site}.s1 = Mul ({site}.s0, {site}.scale)"
    if scale == "shape":
        scaled = f"""{site}.n0 = Shape <start = -1> ({site}.q3)
        {site}.n1 = Cast <to = 1> ({site}.n0)
        {site}.n2 = Sqrt ({site}.n1)
        {site}.s1 = Div ({site}.s0, {site}.n2)"""
    return (
        "".join(parts)
        + f"""
        {site}.s0 = MatMul ({site}.q3, {site}.k3)
        {scaled}
        {site}.p = Softmax <axis = -1> ({site}.s1)
        {site}.c0 = MatMul ({site}.p, {site}.v3)
        {site}.c1 = Transpose <perm = [0, 2, 1, 3]> ({site}.c0)
        {site}.c2 = Reshape ({site}.c1, {site}.merge)
        {site}.o0 = MatMul ({site}.c2, {site}.o.weight)
        {site}.o1 = Add ({site}.o0, {site}.o.bias)
        {y} = Add ({x}, {site}.o1)"""
    )


def attention_weights(site: str, width: int, heads: int, per_head: int, *, scale: str = "constant") -> str:
    """Declarations for :func:`attention`."""
    inner = heads * per_head
    parts = [f"float[{width},{inner}] {site}.{r}.weight, float[{inner}] {site}.{r}.bias" for r in "qkv"]
    parts.append(f"float[{inner},{width}] {site}.o.weight, float[{width}] {site}.o.bias")
    parts.append(f"int64[4] {site}.split = {{0, 0, {heads}, {per_head}}}, int64[3] {site}.merge = {{0, 0, {inner}}}")
    if scale == "constant":
        parts.append(f"float {site}.scale = {{0.5}}")
    return ", ".join(parts)


def printed(model: ir.Model) -> str:
    """The graph, a line a node: small integers in place, other constants by name, with who reads them how often below."""
    graph = model.graph
    lines = [f"inputs   {_listed(graph.inputs)}", f"outputs  {_listed(graph.outputs)}", ""]
    for node in graph:
        if node.op_type == "Constant":
            continue
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        attributes = [f"{a.name}={_attribute(a)}" for a in sorted(node.attributes.values(), key=lambda a: a.name)]
        made = ", ".join(_shaped(v) for v in node.outputs)
        read = [_operand(v) for v in node.inputs]
        lines.append(f"{made} = {kind}({', '.join([*read, *attributes])})")
    rows = sorted((v for v in _constants(model) if _inline(v) is None), key=lambda v: str(v.name))
    lines += ["", *(f"{_shaped(v)} x{len(v.uses())}" for v in rows)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _listed(values: Iterable[ir.Value]) -> str:
    return ", ".join(_shaped(v) for v in values)


def _constants(model: ir.Model) -> list[ir.Value]:
    made = [v for node in model.graph if node.op_type == "Constant" for v in node.outputs]
    return [*model.graph.initializers.values(), *made]


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype.name}{tensor.numpy().tolist()}"
    if attribute.type == ir.AttributeType.FLOAT:
        return f"{attribute.as_float():.6g}"
    return str(list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value)


def _inline(value: ir.Value) -> str | None:
    tensor = constant(value)
    if tensor is None or tensor.size > 8 or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return str(tensor.numpy().tolist())


def _operand(value: ir.Value | None) -> str:
    if value is None:
        return "-"
    return _inline(value) or str(value.name)


def _shaped(value: ir.Value) -> str:
    sizes = ["?"] if value.shape is None else [str(d if isinstance(d, int) else d.value or "?") for d in value.shape]
    return f"{value.name}[{','.join(sizes)}]"
