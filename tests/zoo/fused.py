"""Attention as one operator: opset 23 and com.microsoft, with the operators that ONNX Runtime's optimizer fuses around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tests.zoo.blocks import Blocks
from tests.zoo.encoders import bert_names, widths
from tests.zoo.graph import MICROSOFT
from tests.zoo.model import ZooModel
from tests.zoo.registry import blocks, done, embed, feature_inputs, form, pick, text_inputs, writer


def _like(value: ir.Value, last: int) -> ir.Value:
    """Give the output of a com.microsoft operator a shape, as onnx knows none for it: [batch, sequence, last]."""
    value.dtype = ir.DataType.FLOAT
    value.shape = ir.Shape(["batch", "sequence", last])
    return value


# ---- opset 23 -------------------------------------------------------------------------------------------------------------
def _attention23(name: str, rng: np.random.Generator, *, rank: int, groups: int) -> ZooModel:
    g = writer(rng, 23, 23)
    b = blocks(g, drop=False)
    kv_heads, dim = pick(rng, (2, 8), (4, 8), (3, 8), (2, 16))
    heads, width, hidden = kv_heads * groups, pick(rng, 24, 32), pick(rng, 48, 64)
    masked = pick(rng, "none", "bool", "float")
    x, given = embed(b, "model", width, mask=masked != "none")
    mask = None
    if given is not None:
        # the operator wants a mask that broadcasts to [B,H,S,T]
        mask = b.bool_mask(given) if masked == "bool" else b.additive_mask(given)
        mask = g.expand(mask, g.dim(x, 0), 1, g.dim(x, 1), g.dim(x, 1))
    attributes: dict[str, Any] = {"scale": pick(rng, None, dim**-0.5, 0.2)}
    if mask is None and rng.random() < 0.5:
        attributes["is_causal"] = 1
    if rank == 3:
        attributes |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    for i in range(2):
        layer = f"model.layers.{i}"
        names = {r: f"{layer}.self_attn.{r}_proj" for r in "qkvo"}
        h = g.norm(x, f"{layer}.input_layernorm", width, pick(rng, "op", "rms_op"))
        has_bias = bool(rng.random() < 0.5)
        q = g.linear(h, names["q"], width, heads * dim, bias=has_bias)
        k, v = (g.linear(h, names[r], width, kv_heads * dim, bias=has_bias) for r in "kv")
        if rank == 4:
            q, k, v = b.split_heads(q, heads, dim), b.split_heads(k, kv_heads, dim), b.split_heads(v, kv_heads, dim)
        out = g.op("Attention", q, k, v, mask, **attributes)
        if rank == 4:
            out = b.merge_heads(out, heads, dim)
        x = g.op("Add", x, g.linear(out, names["o"], heads * dim, width, bias=has_bias))
        b.record_attention(names, kv_heads, dim)
        h = g.norm(x, f"{layer}.post_attention_layernorm", width, "op")
        x = g.op("Add", x, b.ffn(h, f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", width, hidden, "gelu_op"))
    return done(
        name,
        b,
        {"hidden": x},
        text_inputs(mask=masked != "none"),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        masked=masked,
        **attributes,
    )


@form("attention_4d")
def attention_4d(rng: np.random.Generator) -> ZooModel:
    """Attention-23 on [B,H,S,d]."""
    return _attention23("attention_4d", rng, rank=4, groups=1)


@form("attention_3d")
def attention_3d(rng: np.random.Generator) -> ZooModel:
    """Attention-23 on [B,S,H*d] with the head counts as attributes."""
    return _attention23("attention_3d", rng, rank=3, groups=1)


@form("attention_gqa")
def attention_gqa(rng: np.random.Generator) -> ZooModel:
    """Attention-23 with grouped queries."""
    return _attention23("attention_gqa", rng, rank=pick(rng, 3, 4), groups=2)


# ---- com.microsoft --------------------------------------------------------------------------------------------------------
def fused_ffn(b: Blocks, x: ir.Value, layer: str, width: int, hidden: int) -> ir.Value:
    """FFN without its output bias, with BiasGelu or FastGelu."""
    g = b.g
    up, down = f"{layer}.intermediate.dense", f"{layer}.output.dense"
    h = g.linear(x, up, width, hidden, bias=False, style="matmul")
    offset = g.normal(f"{up}.bias", (hidden,), 0.3)
    match int(g.rng.integers(3)):
        case 0:
            h = g.op("BiasGelu", h, offset, domain=MICROSOFT)
        case 1:
            h = g.op("FastGelu", h, offset, domain=MICROSOFT)
        case 2:
            h = g.op("Gelu", g.op("Add", h, offset), domain=MICROSOFT)
    y = g.linear(_like(h, hidden), down, hidden, width, bias=False, style="matmul")
    b.record("ffn", {"up": f"{up}.weight", "down": f"{down}.weight"}, {"hidden": hidden})
    return y


def skip_norm(
    b: Blocks, x: ir.Value, y: ir.Value, name: str, bias_name: str, width: int, *, keep_sum: bool = False
) -> tuple[ir.Value, ir.Value]:
    """SkipLayerNormalization(y, x) with the bias of ``y``'s layer; also the sum, which pre-norm stacks go on with."""
    g = b.g
    scale, offset = g.normal(f"{name}.weight", (width,), 0.1, 1.0), g.normal(f"{name}.bias", (width,), 0.1)
    bias = g.normal(f"{bias_name}.bias", (width,), 0.3) if g.rng.random() < 0.8 else None
    pair = (y, x) if g.rng.random() < 0.5 else (x, y)
    outputs = g.ops(
        "SkipLayerNormalization", *pair, scale, offset, bias, domain=MICROSOFT, outputs=4 if keep_sum else 1, epsilon=1e-5
    )
    if keep_sum:
        # the mean and the inverse deviation are not asked for
        outputs[1].name = outputs[2].name = ""
        return _like(outputs[0], width), _like(outputs[3], width)
    return _like(outputs[0], width), _like(outputs[0], width)


@form("contrib_mha")
def contrib_mha(rng: np.random.Generator) -> ZooModel:
    """com.microsoft MultiHeadAttention with a packed bias, a padding mask or an attention bias, among fused operators."""
    g = writer(rng, 14, 20, linear="matmul")
    b = blocks(g, drop=False)
    width, heads, hidden = widths(rng)
    dim = width // heads
    x, given = embed(b, "bert", width)
    assert given is not None
    # key_padding_mask [B,T] and attention_bias [B,1,S,T] mean the same here
    padding = g.cast(given, ir.DataType.INT32)
    bias = g.expand(b.additive_mask(given), g.dim(x, 0), pick(rng, 1, heads), g.dim(x, 1), g.dim(x, 1))
    pre_norm = bool(rng.random() < 0.3)
    h = g.norm(x, "bert.layer.0.norm_in", width, "decomposed" if g.opset < 17 else "op")
    for i in range(2):
        layer = f"bert.encoder.layer.{i}"
        names = dict(zip("qkvo", bert_names(layer), strict=True))
        q, k, v = (g.linear(h, names[r], width, width, bias=False) for r in "qkv")
        with_bias, use = bool(rng.random() < 0.7), pick(rng, "padding", "bias", "none")
        own = bias if use == "bias" and rng.random() < 0.5 else None
        if use == "bias" and own is None:
            own = g.expand(b.additive_mask(given), g.dim(x, 0), heads, g.dim(x, 1), g.dim(x, 1))
        out = g.op(
            "MultiHeadAttention",
            q,
            k,
            v,
            g.normal(f"{layer}.attention.self.qkv_bias", (3 * width,), 0.3) if with_bias else None,
            padding if use == "padding" else None,
            own,
            domain=MICROSOFT,
            num_heads=heads,
            scale=pick(rng, None, dim**-0.5),
        )
        y = g.linear(_like(out, width), names["o"], width, width, bias=False)
        b.record_attention(names, heads, dim, unsure=["head"] if own is bias and own is not None else [])
        if pre_norm:
            h, x = skip_norm(b, x, y, f"{layer}.norm1", names["o"], width, keep_sum=True)
            y = fused_ffn(b, h, layer, width, hidden)
            h, x = skip_norm(b, x, y, f"{layer}.norm2", f"{layer}.output.dense", width, keep_sum=True)
        else:
            h, _ = skip_norm(b, h, y, f"{layer}.norm1", names["o"], width)
            y = fused_ffn(b, h, layer, width, hidden)
            h, _ = skip_norm(b, h, y, f"{layer}.norm2", f"{layer}.output.dense", width)
    infer = bool(rng.random() < 0.7)
    return done(
        "contrib_mha", b, {"hidden": h}, text_inputs(), infer=infer, width=width, heads=heads, pre_norm=pre_norm, shapes=infer
    )


@form("contrib_attention")
def contrib_attention(rng: np.random.Generator) -> ZooModel:
    """com.microsoft Attention with one matrix [E,3E] for q, k and v."""
    g = writer(rng, 14, 20, linear="matmul")
    b = blocks(g, drop=False)
    width, heads, hidden = widths(rng)
    dim = width // heads
    x, given = embed(b, "bert", width)
    assert given is not None
    padding = g.cast(given, ir.DataType.INT32)
    h = g.norm(x, "bert.layer.0.norm_in", width, "decomposed" if g.opset < 17 else "op")
    for i in range(2):
        layer = f"bert.encoder.layer.{i}"
        packed_name, out_name = f"{layer}.attention.self.qkv", bert_names(layer)[3]
        weight = g.normal(f"{packed_name}.weight", (width, 3 * width))
        offset = g.normal(f"{packed_name}.bias", (3 * width,), 0.3)
        out = g.op(
            "Attention",
            h,
            weight,
            offset,
            padding if rng.random() < 0.6 else None,
            domain=MICROSOFT,
            num_heads=heads,
            scale=pick(rng, None, dim**-0.5),
            unidirectional=pick(rng, None, 0, 1),
        )
        y = g.linear(_like(out, width), out_name, width, width, bias=False)
        b.record_attention({"q": packed_name, "k": packed_name, "v": packed_name, "o": out_name}, heads, dim)
        h, _ = skip_norm(b, h, y, f"{layer}.norm1", out_name, width)
        y = fused_ffn(b, h, layer, width, hidden)
        h, _ = skip_norm(b, h, y, f"{layer}.norm2", f"{layer}.output.dense", width)
    return done("contrib_attention", b, {"hidden": h}, text_inputs(), width=width, heads=heads)


@form("contrib_cross")
def contrib_cross(rng: np.random.Generator) -> ZooModel:
    """com.microsoft MultiHeadAttention as cross-attention: keys and values from another sequence."""
    g = writer(rng, 17, 20, linear="matmul")
    b = blocks(g, drop=False)
    width, heads, hidden = widths(rng)
    memory_width = pick(rng, width, 40)
    x = g.input("queries", ir.DataType.FLOAT, ["batch", "sequence", width])
    memory = g.input("memory", ir.DataType.FLOAT, ["batch", "tokens", memory_width])
    for i in range(2):
        layer = f"decoder.layers.{i}"
        names = {r: f"{layer}.cross_attn.{r}_proj" for r in "qkvo"}
        h = g.norm(x, f"{layer}.norm1", width, "op")
        q = g.linear(h, names["q"], width, width)
        k, v = (g.linear(memory, names[r], memory_width, width) for r in "kv")
        out = g.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=heads)
        x = g.op("Add", x, g.linear(_like(out, width), names["o"], width, width))
        b.record_attention(names, heads, width // heads)
        h = g.norm(x, f"{layer}.norm2", width, "op")
        x = g.op("Add", x, b.ffn(h, f"{layer}.fc1", f"{layer}.fc2", width, hidden))
    make, tokens = feature_inputs("queries", width), feature_inputs("memory", memory_width)
    return done(
        "contrib_cross",
        b,
        {"out": x},
        lambda r, c: make(r, c) | {"memory": tokens(r, c)["memory"][:, :3]},
        width=width,
        heads=heads,
    )
