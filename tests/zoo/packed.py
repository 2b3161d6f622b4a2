"""Packed projections in the ways exporters take them apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from tests.zoo.blocks import Blocks
from tests.zoo.encoders import widths
from tests.zoo.model import ZooModel
from tests.zoo.registry import blocks, done, embed, feature_inputs, form, norm_kind, pick, text_inputs, writer

Unpack = Callable[[Blocks, ir.Value, int, int, str], tuple[ir.Value, ir.Value, ir.Value, bool]]
"""(blocks, packed [B,S,3*H*d], H, d, layer) -> q, k, v and whether they are [B,H,S,d] already (else [B,S,H*d])."""


def unpack_split(b: Blocks, qkv: ir.Value, heads: int, dim: int, layer: str) -> tuple[ir.Value, ir.Value, ir.Value, bool]:
    """Split on the last axis."""
    q, k, v = b.g.split(qkv, [heads * dim] * 3, pick(b.g.rng, -1, 2))
    return q, k, v, False


def unpack_slice(b: Blocks, qkv: ir.Value, heads: int, dim: int, layer: str) -> tuple[ir.Value, ir.Value, ir.Value, bool]:
    """Three Slices on the last axis; the last one may run to the end of the axis."""
    inner = heads * dim
    end = pick(b.g.rng, 3 * inner, int(np.iinfo(np.int64).max))
    q, k = b.g.slice(qkv, 0, inner, 2), b.g.slice(qkv, inner, 2 * inner, 2)
    return q, k, b.g.slice(qkv, 2 * inner, end, 2), False


def _five(b: Blocks, qkv: ir.Value, *dims: int) -> ir.Value:
    """[B,S,...] -> [B,S,*dims] (or with the batch read at run time)."""
    g = b.g
    match int(g.rng.integers(3)):
        case 0:
            return g.reshape(qkv, 0, 0, *dims)
        case 1:
            return g.reshape(qkv, 0, -1, *dims)
    return g.reshape(qkv, g.dim(qkv, 0), g.dim(qkv, 1), *dims)


def unpack_timm(b: Blocks, qkv: ir.Value, heads: int, dim: int, layer: str) -> tuple[ir.Value, ir.Value, ir.Value, bool]:
    """[B,S,3,H,d] -> Transpose [3,B,H,S,d] -> Gather 0, 1, 2."""
    g = b.g
    x = g.transpose(_five(b, qkv, 3, heads, dim), 2, 0, 3, 1, 4)
    q, k, v = (g.op("Gather", x, g.const(i), axis=0) for i in range(3))
    return q, k, v, True


def unpack_timm_split(b: Blocks, qkv: ir.Value, heads: int, dim: int, layer: str) -> tuple[ir.Value, ir.Value, ir.Value, bool]:
    """[B,S,3,H,d] -> Transpose [3,B,H,S,d] -> Split, Squeeze (unbind)."""
    g = b.g
    x = g.transpose(_five(b, qkv, 3, heads, dim), 2, 0, 3, 1, 4)
    q, k, v = (g.squeeze(part, [0]) for part in g.split(x, [1, 1, 1], 0))
    return q, k, v, True


def unpack_bloom(b: Blocks, qkv: ir.Value, heads: int, dim: int, layer: str) -> tuple[ir.Value, ir.Value, ir.Value, bool]:
    """[B,S,H,3,d]: q, k, v lie side by side in each head; Gather on axis 3 (BLOOM) or [B,S,H,3*d] and Slice (NeoX)."""
    g = b.g
    if g.rng.random() < 0.5:
        x = _five(b, qkv, heads, 3, dim)
        parts = [g.op("Gather", x, g.const(i), axis=3) for i in range(3)]
    else:
        x = _five(b, qkv, heads, 3 * dim)
        parts = g.split(x, [dim] * 3, 3) if g.rng.random() < 0.5 else [g.slice(x, i * dim, (i + 1) * dim, 3) for i in range(3)]
    q, k, v = (g.transpose(part, 0, 2, 1, 3) for part in parts)
    return q, k, v, True


def packed(name: str, rng: np.random.Generator, unpack: Unpack, *, qkv: str = "attn.qkv") -> ZooModel:
    """A pre-norm encoder with one matrix for q, k and v."""
    g = writer(rng)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    dim, norm = width // heads, norm_kind(g)
    x = g.input("patches", ir.DataType.FLOAT, ["batch", "sequence", width])
    has_bias = bool(rng.random() < 0.7)
    for i in range(2 + int(rng.random() < 0.4)):
        layer = f"vision.blocks.{i}"
        h = g.norm(x, f"{layer}.norm1", width, norm)
        both = g.linear(h, f"{layer}.{qkv}", width, 3 * width, bias=has_bias)
        q, k, v, ready = unpack(b, both, heads, dim, layer)
        out = b.merge_heads(b.attend(q, k, v, dim), heads, dim) if ready else b.core(q, k, v, heads, dim)
        x = g.op("Add", x, b.noise(g.linear(out, f"{layer}.attn.proj", width, width)))
        source = f"{layer}.{qkv}"
        b.record_attention({"q": source, "k": source, "v": source, "o": f"{layer}.attn.proj"}, heads, dim)
        y = b.ffn(g.norm(x, f"{layer}.norm2", width, norm), f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", width, hidden)
        x = g.op("Add", x, y)
    x = g.norm(x, "vision.norm", width, norm)
    return done(name, b, {"features": x}, feature_inputs("patches", width), width=width, heads=heads)


@form("packed_split")
def packed_split(rng: np.random.Generator) -> ZooModel:
    """QKV taken apart by Split."""
    return packed("packed_split", rng, unpack_split)


@form("packed_slice")
def packed_slice(rng: np.random.Generator) -> ZooModel:
    """QKV taken apart by Slice."""
    return packed("packed_slice", rng, unpack_slice)


@form("packed_timm")
def packed_timm(rng: np.random.Generator) -> ZooModel:
    """QKV taken apart by Reshape, Transpose, Gather."""
    return packed("packed_timm", rng, unpack_timm)


@form("packed_timm_split")
def packed_timm_split(rng: np.random.Generator) -> ZooModel:
    """QKV taken apart by Reshape, Transpose, Split, Squeeze."""
    return packed("packed_timm_split", rng, unpack_timm_split)


@form("packed_bloom")
def packed_bloom(rng: np.random.Generator) -> ZooModel:
    """QKV interleaved by head."""
    return packed("packed_bloom", rng, unpack_bloom, qkv="self_attention.query_key_value")


@form("packed_in_proj")
def packed_in_proj(rng: np.random.Generator) -> ZooModel:
    """The parameter in_proj_weight [3E,E] is itself taken apart in the graph, as dynamo does for q = k = x + pos, v = x."""
    g = writer(rng, linear="matmul", weights="initializer")
    b = blocks(g)
    width, heads, hidden = widths(rng)
    dim, norm = width // heads, norm_kind(g)
    x = g.input("features", ir.DataType.FLOAT, ["batch", "sequence", width])
    pos = g.input("pos", ir.DataType.FLOAT, ["batch", "sequence", width])
    by_slice = bool(rng.random() < 0.5)
    for i in range(2):
        layer = f"transformer.encoder.layers.{i}"
        weight = g.normal(f"{layer}.self_attn.in_proj_weight", (3 * width, width), width**-0.5)
        offset = g.normal(f"{layer}.self_attn.in_proj_bias", (3 * width,), 0.3)

        def parts(value: ir.Value) -> list[ir.Value]:
            if by_slice:
                return [g.slice(value, j * width, (j + 1) * width, 0) for j in range(3)]
            return g.split(value, [width] * 3, 0)

        sources = [g.op("Add", x, pos)] * 2 + [x]
        q, k, v = (
            g.op("Add", g.op("MatMul", source, g.transpose(w, 1, 0)), c)
            for source, w, c in zip(sources, parts(weight), parts(offset), strict=True)
        )
        y = g.linear(b.core(q, k, v, heads, dim), f"{layer}.self_attn.out_proj", width, width, style=pick(rng, "gemm", "matmul"))
        packed_name = f"{layer}.self_attn.in_proj_weight"
        b.record(
            "msa",
            {"q": packed_name, "k": packed_name, "v": packed_name, "o": f"{layer}.self_attn.out_proj.weight"},
            {"head": heads, "qk": dim, "vo": dim},
        )
        x = g.norm(g.op("Add", x, y), f"{layer}.norm1", width, norm)
        y = b.ffn(x, f"{layer}.linear1", f"{layer}.linear2", width, hidden, "relu")
        x = g.norm(g.op("Add", x, y), f"{layer}.norm2", width, norm)
    make_x, make_pos = feature_inputs("features", width), feature_inputs("pos", width)
    return done(
        "packed_in_proj",
        b,
        {"memory": x},
        lambda r, c: make_x(r, c) | make_pos(r, c),
        width=width,
        heads=heads,
        by_slice=by_slice,
    )


# ---- grouped queries and rotary embedding ---------------------------------------------------------------------------------
def repeat_kv(b: Blocks, x: ir.Value, groups: int, kv_heads: int, dim: int) -> ir.Value:
    """[B,K,S,d] -> [B,K*groups,S,d] by Unsqueeze, Expand, Reshape."""
    g = b.g
    wide = g.unsqueeze(x, [2])
    if g.rng.random() < 0.5:
        wide = g.op("Expand", wide, g.const([1, 1, groups, 1, 1]))
    else:
        wide = g.expand(wide, g.dim(x, 0), kv_heads, groups, g.dim(x, 2), dim)
    if g.rng.random() < 0.5:
        return g.reshape(wide, g.dim(x, 0), kv_heads * groups, g.dim(x, 2), dim)
    return g.reshape(wide, 0, kv_heads * groups, -1, dim)


def rotary_tables(b: Blocks, x: ir.Value, dim: int, *, doubled: bool) -> tuple[ir.Value, ir.Value]:
    """cos and sin [1,1,S,d] (``doubled``) or [1,1,S,d/2], from positions and inv_freq; one pair for all layers."""
    g = b.g
    frequencies = (100.0 ** (-np.arange(0, dim, 2) / dim)).astype(np.float32)
    inverse = g.param("model.rotary_emb.inv_freq", frequencies.reshape(1, dim // 2))
    steps = g.op("Range", g.const(np.array(0)), g.squeeze(g.dim(x, 1), [0]), g.const(np.array(1)))
    angles = g.op("MatMul", g.unsqueeze(g.cast(steps, ir.DataType.FLOAT), [1]), inverse)
    if doubled:
        angles = g.op("Concat", angles, angles, axis=-1)
    return g.unsqueeze(g.op("Cos", angles), [0, 1]), g.unsqueeze(g.op("Sin", angles), [0, 1])


def rotate_half(b: Blocks, x: ir.Value, tables: tuple[ir.Value, ir.Value], dim: int) -> ir.Value:
    """x cos + rotate_half(x) sin on [B,H,S,d]; the pair of unit j is (j, j + d/2)."""
    g = b.g
    if g.rng.random() < 0.4:
        first, second = g.split(x, [dim // 2, dim // 2], 3)
    else:
        first, second = g.slice(x, 0, dim // 2, 3), g.slice(x, dim // 2, int(np.iinfo(np.int64).max), 3)
    turned = g.op("Concat", g.op("Neg", second), first, axis=-1)
    return g.op("Add", g.op("Mul", x, tables[0]), g.op("Mul", turned, tables[1]))


def rotate_interleaved(b: Blocks, x: ir.Value, tables: tuple[ir.Value, ir.Value], heads: int, dim: int) -> ir.Value:
    """The same with pairs (2j, 2j+1): [B,H,S,d/2,2]."""
    g = b.g
    pairs = g.reshape(x, 0, heads, -1, dim // 2, 2)
    if g.rng.random() < 0.5:
        even, odd = (g.op("Gather", pairs, g.const(i), axis=4) for i in range(2))
    else:
        even, odd = (g.squeeze(part, [4]) for part in g.split(pairs, [1, 1], 4))
    cos, sin = tables
    first = g.op("Sub", g.op("Mul", even, cos), g.op("Mul", odd, sin))
    second = g.op("Add", g.op("Mul", even, sin), g.op("Mul", odd, cos))
    both = g.op("Concat", g.unsqueeze(first, [4]), g.unsqueeze(second, [4]), axis=-1)
    return g.reshape(both, 0, heads, -1, dim)


def _decoder_only(name: str, rng: np.random.Generator, *, groups: int, rotary: str, packing: str = "separate") -> ZooModel:
    """A Llama-like stack: RMS norm, gated FFN, causal mask."""
    g = writer(rng, linear=pick(rng, "matmul", "transpose"))
    b = blocks(g, drop=False)
    kv_heads, dim = pick(rng, (2, 8), (2, 12), (3, 8), (4, 8))
    heads = kv_heads * groups
    width, hidden = pick(rng, 24, 32), pick(rng, 48, 64)
    x, given = embed(b, "model", width)
    assert given is not None
    steps = g.op("Range", g.const(np.array(0)), g.squeeze(g.dim(x, 1), [0]), g.const(np.array(1)))
    causal = g.op("Not", g.op("Less", g.unsqueeze(steps, [1]), g.unsqueeze(steps, [0])))
    allowed = g.op("And", b.bool_mask(given), g.unsqueeze(causal, [0, 1]))
    bias = g.op("Where", allowed, g.const(0.0), g.const(float(np.finfo(np.float32).min)))
    tables = rotary_tables(b, x, dim, doubled=rotary == "half") if rotary else None
    for i in range(2):
        layer = f"model.layers.{i}.self_attn"
        names = {r: f"{layer}.{r}_proj" for r in "qkvo"}
        h = g.norm(x, f"model.layers.{i}.input_layernorm", width, "rms")
        outs = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim}
        if packing == "separate":
            q, k, v = (g.linear(h, names[r], width, outs[r], bias=False) for r in "qkv")
        else:
            names |= dict.fromkeys("qkv", f"{layer}.qkv_proj")
            both = g.linear(h, names["q"], width, sum(outs.values()), bias=False)
            if packing == "split":
                q, k, v = g.split(both, list(outs.values()), -1)
            else:
                ends = np.cumsum([0, *outs.values()]).tolist()
                q, k, v = (g.slice(both, ends[j], ends[j + 1], -1) for j in range(3))
        queries, keys, values = b.split_heads(q, heads, dim), b.split_heads(k, kv_heads, dim), b.split_heads(v, kv_heads, dim)
        if tables is not None:
            if rotary == "half":
                queries, keys = rotate_half(b, queries, tables, dim), rotate_half(b, keys, tables, dim)
            else:
                queries, keys = (
                    rotate_interleaved(b, queries, tables, heads, dim),
                    rotate_interleaved(b, keys, tables, kv_heads, dim),
                )
        if groups > 1:
            keys, values = repeat_kv(b, keys, groups, kv_heads, dim), repeat_kv(b, values, groups, kv_heads, dim)
        out = b.merge_heads(b.attend(queries, keys, values, dim, bias=bias), heads, dim)
        x = g.op("Add", x, g.linear(out, names["o"], heads * dim, width, bias=False))
        params = {r: f"{n}.weight" for r, n in names.items()}
        sizes = {"head": kv_heads, "qk": dim // 2 if rotary else dim, "vo": dim}
        b.record("msa", params, sizes, unsure=["qk"] if rotary else [])
        h = g.norm(x, f"model.layers.{i}.post_attention_layernorm", width, "rms")
        x = g.op("Add", x, b.gated(h, f"model.layers.{i}.mlp", width, hidden))
    x = g.norm(x, "model.norm", width, "rms")
    return done(name, b, {"hidden": x}, text_inputs(), width=width, heads=heads, kv_heads=kv_heads)


@form("gqa")
def gqa(rng: np.random.Generator) -> ZooModel:
    """Grouped queries, keys and values repeated by Expand."""
    return _decoder_only("gqa", rng, groups=pick(rng, 2, 3), rotary="")


@form("packed_gqa")
def packed_gqa(rng: np.random.Generator) -> ZooModel:
    """Grouped queries from one matrix with unequal parts."""
    return _decoder_only("packed_gqa", rng, groups=pick(rng, 2, 3), rotary="", packing=pick(rng, "split", "slice"))


@form("rotary_half")
def rotary_half(rng: np.random.Generator) -> ZooModel:
    """Rotary embedding by halves, with and without grouped queries."""
    return _decoder_only("rotary_half", rng, groups=pick(rng, 1, 2), rotary="half")


@form("rotary_interleaved")
def rotary_interleaved(rng: np.random.Generator) -> ZooModel:
    """Rotary embedding by neighbours."""
    return _decoder_only("rotary_interleaved", rng, groups=pick(rng, 1, 2), rotary="interleaved")
