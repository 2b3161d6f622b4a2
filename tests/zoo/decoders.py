"""nn.MultiheadAttention as exported ([L,B,E], heads folded into the batch) in DETR; GLIP's BiMultiHeadAttention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tests.zoo.blocks import Blocks
from tests.zoo.model import Inputs, ZooModel
from tests.zoo.registry import SIZES, blocks, done, form, norm_kind, pick, writer


@dataclass(frozen=True)
class Mha:
    """One nn.MultiheadAttention.

    Attributes:
        layer: prefix of its parameters.
        width: E.
        heads: H.
        fold: heads are folded into the batch ([B*H,L,d], bmm) or kept apart ([B,H,L,d]).
        packing: ``apart`` (three matrices, as left by folding), ``in_proj`` (one parameter split in the graph) or ``kv``
            (the same, with one product for k and v where they have one source).
    """

    layer: str
    width: int
    heads: int
    fold: bool
    packing: str

    @property
    def dim(self) -> int:
        """d."""
        return self.width // self.heads


def project(b: Blocks, m: Mha, sources: dict[str, ir.Value]) -> tuple[dict[str, ir.Value], dict[str, str]]:
    """q, k, v [L,B,E] from their sources, and the parameter of each role."""
    g = b.g
    if m.packing == "apart":
        names = {r: f"{m.layer}.in_proj_{r}" for r in "qkv"}
        return {r: g.linear(sources[r], names[r], m.width, m.width) for r in "qkv"}, {r: f"{n}.weight" for r, n in names.items()}
    weight = g.normal(f"{m.layer}.in_proj_weight", (3 * m.width, m.width), m.width**-0.5)
    offset = g.normal(f"{m.layer}.in_proj_bias", (3 * m.width,), 0.3)
    packed = dict.fromkeys("qkv", f"{m.layer}.in_proj_weight")
    if m.packing == "kv" and sources["k"] is sources["v"]:
        # q by itself, k and v from one product, as torch does where key and value are the same tensor
        wq, wkv = g.split(weight, [m.width, 2 * m.width], 0)
        bq, bkv = g.split(offset, [m.width, 2 * m.width], 0)
        q = g.op("Add", g.op("MatMul", sources["q"], g.transpose(wq, 1, 0)), bq)
        kv = g.op("Add", g.op("MatMul", sources["k"], g.transpose(wkv, 1, 0)), bkv)
        pair = g.reshape(kv, g.dim(kv, 0), g.dim(kv, 1), 2, m.width)
        pair = g.squeeze(g.transpose(g.unsqueeze(pair, [0]), 3, 1, 2, 0, 4), [3])
        return {"q": q, "k": g.op("Gather", pair, g.const(0), axis=0), "v": g.op("Gather", pair, g.const(1), axis=0)}, packed
    out = {
        r: g.op("Add", g.op("MatMul", sources[r], g.transpose(w, 1, 0)), c)
        for r, w, c in zip("qkv", g.split(weight, [m.width] * 3, 0), g.split(offset, [m.width] * 3, 0), strict=True)
    }
    return out, packed


def multihead(
    b: Blocks,
    m: Mha,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    padding: ir.Value | None = None,
    *,
    wide_padding: ir.Value | None = None,
) -> ir.Value:
    """nn.MultiheadAttention on [L,B,E].

    Args:
        b: blocks.
        m: sizes and spelling.
        query: [L,B,E].
        key: [T,B,E].
        value: [T,B,E].
        padding: bool [B,T], True on padding.
        wide_padding: float [B*H,1,T] already computed (one for all layers).
    """
    g = b.g
    heads, dim = m.heads, m.dim
    out, params = project(b, m, {"q": query, "k": key, "v": value})
    unsure = ["head"] if wide_padding is not None else []
    scale = g.const(dim**-0.5)
    if m.fold:
        rows = g.op("Mul", g.dim(query, 1), g.const([heads]))
        q, k, v = (g.transpose(g.reshape(out[r], g.dim(out[r], 0), rows, dim), 1, 0, 2) for r in "qkv")
        scores = g.op("MatMul", g.op("Mul", q, scale), g.transpose(k, 0, 2, 1))
        if wide_padding is None and padding is not None:
            wide_padding = fold_padding(b, padding, heads)
        if wide_padding is not None:
            scores = g.op("Add", scores, wide_padding)
        y = g.op("MatMul", b.softmax(scores), v)
        y = g.transpose(y, 1, 0, 2)
    else:
        q, k, v = (g.transpose(g.reshape(out[r], g.dim(out[r], 0), g.dim(query, 1), heads, dim), 1, 2, 0, 3) for r in "qkv")
        scores = g.op("MatMul", g.op("Mul", q, scale), g.transpose(k, 0, 1, 3, 2))
        if padding is not None:
            wide = g.unsqueeze(padding, [1, 2])
            if g.rng.random() < 0.5:
                wide = g.expand(wide, g.dim(padding, 0), heads, 1, g.dim(padding, 1))
            scores = g.op("Where", wide, g.const(-np.inf), scores)
        y = g.transpose(g.op("MatMul", b.softmax(scores), v), 2, 0, 1, 3)
    # out_proj is a Gemm on [L*B,E]
    flat = g.reshape(y, -1, m.width)
    flat = g.linear(flat, f"{m.layer}.out_proj", m.width, m.width, rank=2, style=pick(g.rng, "gemm", "gemm", "gemm0"))
    sizes = {"head": heads, "qk": dim, "vo": dim}
    b.record("msa", params | {"o": f"{m.layer}.out_proj.weight"}, sizes, unsure=unsure)
    return g.reshape(flat, g.dim(query, 0), g.dim(query, 1), m.width)


def fold_padding(b: Blocks, padding: ir.Value, heads: int) -> ir.Value:
    """bool [B,T] (True = padding) -> float [B*H,1,T], 0 or -inf."""
    g = b.g
    wide = g.expand(g.unsqueeze(padding, [1, 2]), g.dim(padding, 0), heads, 1, g.dim(padding, 1))
    rows = g.op("Mul", g.dim(padding, 0), g.const([heads]))
    wide = g.reshape(wide, rows, 1, g.dim(padding, 1))
    return g.op("Where", wide, g.const(-np.inf), g.const(0.0))


def _sizes(rng: np.random.Generator) -> tuple[int, int, int]:
    width, heads = pick(rng, (32, 4), (24, 3), (32, 8), (48, 6), (32, 2))
    return width, heads, pick(rng, 48, 64, 80)


def _detr(name: str, rng: np.random.Generator, packing: str) -> ZooModel:
    g = writer(rng, linear=pick(rng, "matmul", "transpose"))
    b = blocks(g, drop=False)
    width, heads, hidden = _sizes(rng)
    norm = norm_kind(g)
    fold = bool(rng.random() < 0.6)
    memory = g.input("src", ir.DataType.FLOAT, ["length", "batch", width])
    pos = g.input("pos", ir.DataType.FLOAT, ["length", "batch", width])
    padding = g.input("padding", ir.DataType.BOOL, ["batch", "length"])
    shared_padding = fold_padding(b, padding, heads) if fold and rng.random() < 0.3 else None

    def mha(layer: str) -> Mha:
        return Mha(layer, width, heads, fold, packing)

    def close(x: ir.Value, y: ir.Value, norm_name: str) -> ir.Value:
        return g.norm(g.op("Add", x, y), norm_name, width, norm)

    for i in range(1 + int(rng.random() < 0.5)):
        layer = f"transformer.encoder.layers.{i}"
        at = g.op("Add", memory, pos)
        memory = close(
            memory,
            multihead(b, mha(f"{layer}.self_attn"), at, at, memory, padding, wide_padding=shared_padding),
            f"{layer}.norm1",
        )
        memory = close(memory, b.ffn(memory, f"{layer}.linear1", f"{layer}.linear2", width, hidden, "relu"), f"{layer}.norm2")
    queries = g.normal("query_embed.weight", (5, width), 1.0)
    query_pos = g.expand(g.unsqueeze(queries, [1]), 5, g.dim(memory, 1), width)
    x = g.op("Mul", query_pos, g.const(pick(rng, 0.0, 0.5)))
    outputs = []
    for i in range(2):
        layer = f"transformer.decoder.layers.{i}"
        at = g.op("Add", x, query_pos)
        x = close(x, multihead(b, mha(f"{layer}.self_attn"), at, at, x), f"{layer}.norm1")
        at, keys = g.op("Add", x, query_pos), g.op("Add", memory, pos)
        x = close(
            x,
            multihead(b, mha(f"{layer}.cross_attn_image"), at, keys, memory, padding, wide_padding=shared_padding),
            f"{layer}.norm3",
        )
        x = close(x, b.ffn(x, f"{layer}.linear1", f"{layer}.linear2", width, hidden, "relu"), f"{layer}.norm4")
        outputs.append(g.unsqueeze(g.norm(x, "transformer.decoder.norm", width, norm), [0]))
    hs = g.op("Concat", *outputs, axis=0)
    # the box head: three layers and no residual, so no site
    boxes = g.op("Relu", g.linear(hs, "bbox_embed.layers.0", width, width, rank=4))
    boxes = g.op("Relu", g.linear(boxes, "bbox_embed.layers.1", width, width, rank=4))
    boxes = g.op("Sigmoid", g.linear(boxes, "bbox_embed.layers.2", width, 4, rank=4))
    logits = g.linear(hs, "class_embed", width, 11, rank=4)

    def make(inputs: np.random.Generator, case: int) -> Inputs:
        batch, length = SIZES[case]
        kept = inputs.integers(1, length + 1, batch)
        if case == len(SIZES) - 1:
            kept[-1] = 0
        return {
            "src": inputs.standard_normal((length, batch, width)).astype(np.float32),
            "pos": inputs.standard_normal((length, batch, width)).astype(np.float32),
            "padding": np.arange(length)[None] >= kept[:, None],
        }

    return done(
        name,
        b,
        {"pred_logits": logits, "pred_boxes": boxes, "memory_out": g.op("Identity", memory)},
        make,
        ranks={"pred_logits": 4, "pred_boxes": 4},
        width=width,
        heads=heads,
        fold=fold,
        packing=packing,
    )


@form("decoder_cross")
def decoder_cross(rng: np.random.Generator) -> ZooModel:
    """DETR: encoder and decoder with cross-attention, three matrices each."""
    return _detr("decoder_cross", rng, "apart")


@form("decoder_in_proj")
def decoder_in_proj(rng: np.random.Generator) -> ZooModel:
    """DETR with in_proj_weight split in the graph."""
    return _detr("decoder_in_proj", rng, "in_proj")


@form("decoder_plain")
def decoder_plain(rng: np.random.Generator) -> ZooModel:
    """nn.TransformerDecoderLayer: k is v in the cross-attention (one product for both), q = k = v in the self-attention."""
    g = writer(rng, linear=pick(rng, "matmul", "transpose"))
    b = blocks(g, drop=False)
    width, heads, hidden = _sizes(rng)
    norm, fold = norm_kind(g), bool(rng.random() < 0.6)
    x = g.input("tgt", ir.DataType.FLOAT, ["targets", "batch", width])
    memory = g.input("memory", ir.DataType.FLOAT, ["length", "batch", width])
    for i in range(2):
        layer = f"decoder.layers.{i}"
        y = multihead(b, Mha(f"{layer}.self_attn", width, heads, fold, "in_proj"), x, x, x)
        x = g.norm(g.op("Add", x, y), f"{layer}.norm1", width, norm)
        y = multihead(b, Mha(f"{layer}.multihead_attn", width, heads, fold, "kv"), x, memory, memory)
        x = g.norm(g.op("Add", x, y), f"{layer}.norm2", width, norm)
        y = b.ffn(x, f"{layer}.linear1", f"{layer}.linear2", width, hidden, "relu")
        x = g.norm(g.op("Add", x, y), f"{layer}.norm3", width, norm)

    def make(inputs: np.random.Generator, case: int) -> Inputs:
        batch, length = SIZES[case]
        return {
            "tgt": inputs.standard_normal((3, batch, width)).astype(np.float32),
            "memory": inputs.standard_normal((length, batch, width)).astype(np.float32),
        }

    return done("decoder_plain", b, {"out": x}, make, width=width, heads=heads, fold=fold)


@form("bi_attention")
def bi_attention(rng: np.random.Generator) -> ZooModel:
    """GLIP's BiMultiHeadAttention: one score matrix, softmax in both directions, two value paths."""
    g = writer(rng, linear=pick(rng, "matmul", "transpose", "gemm"))
    b = blocks(g, drop=False)
    v_width, l_width, heads, dim = 24, pick(rng, 24, 32), pick(rng, 2, 4), pick(rng, 8, 12)
    inner, norm = heads * dim, norm_kind(g)
    v = g.input("visual", ir.DataType.FLOAT, ["batch", "pixels", v_width])
    l = g.input("text", ir.DataType.FLOAT, ["batch", "tokens", l_width])  # noqa: E741
    mask = g.input("attention_mask", ir.DataType.INT64, ["batch", "tokens"])
    bias = g.squeeze(b.additive_mask(mask, -9e15), [1])

    def fold(y: ir.Value) -> ir.Value:
        rows = g.op("Mul", g.dim(y, 0), g.const([heads]))
        y = g.transpose(g.reshape(y, g.dim(y, 0), -1, heads, dim), 0, 2, 1, 3)
        return g.reshape(y, rows, -1, dim)

    def unfold(y: ir.Value, like: ir.Value) -> ir.Value:
        y = g.reshape(y, g.dim(like, 0), heads, -1, dim)
        return g.reshape(g.transpose(y, 0, 2, 1, 3), g.dim(like, 0), -1, inner)

    for i in range(2):
        layer = f"rpn.head.dyhead_tower.{3 * i}.b_attn"
        v = g.norm(v, f"{layer}.layer_norm_v", v_width, norm)
        l = g.norm(l, f"{layer}.layer_norm_l", l_width, norm)  # noqa: E741
        names = {
            "q": f"{layer}.attn.v_proj",
            "k": f"{layer}.attn.l_proj",
            "v": f"{layer}.attn.values_l_proj",
            "v2": f"{layer}.attn.values_v_proj",
            "o": f"{layer}.attn.out_v_proj",
            "o2": f"{layer}.attn.out_l_proj",
        }
        q = fold(g.op("Mul", g.linear(v, names["q"], v_width, inner), g.const(dim**-0.5)))
        k = fold(g.linear(l, names["k"], l_width, inner))
        value_v, value_l = fold(g.linear(v, names["v2"], v_width, inner)), fold(g.linear(l, names["v"], l_width, inner))
        scores = g.clip(g.op("MatMul", q, g.transpose(k, 0, 2, 1)), -50000.0, 50000.0)
        back = g.transpose(scores, 0, 2, 1)
        back = g.clip(g.op("Sub", back, g.reduce("ReduceMax", back, [-1])), -50000.0, 50000.0)
        wide = g.expand(g.unsqueeze(bias, [1]), g.dim(mask, 0), heads, g.dim(v, 1), g.dim(mask, 1))
        wide = g.reshape(wide, g.op("Mul", g.dim(mask, 0), g.const([heads])), g.dim(v, 1), g.dim(mask, 1))
        to_v = unfold(g.op("MatMul", g.softmax(g.op("Add", scores, wide)), value_l), v)
        to_l = unfold(g.op("MatMul", g.softmax(back), value_v), l)
        dv, dl = g.linear(to_v, names["o"], inner, v_width), g.linear(to_l, names["o2"], inner, l_width)
        v = g.op("Add", v, g.op("Mul", g.normal(f"{layer}.gamma_v", (v_width,), 0.1, 0.5), dv))
        l = g.op("Add", l, g.op("Mul", g.normal(f"{layer}.gamma_l", (l_width,), 0.1, 0.5), dl))  # noqa: E741
        sizes = {"head": heads, "qk": dim, "vo": dim, "vo2": dim}
        b.record("msa", {r: f"{n}.weight" for r, n in names.items()}, sizes)

    def make(inputs: np.random.Generator, case: int) -> Inputs:
        batch, length = SIZES[case]
        kept = inputs.integers(1, length + 1, batch)
        return {
            "visual": inputs.standard_normal((batch, length + 2, v_width)).astype(np.float32),
            "text": inputs.standard_normal((batch, length, l_width)).astype(np.float32),
            "attention_mask": (np.arange(length)[None] < kept[:, None]).astype(np.int64),
        }

    return done("bi_attention", b, {"visual_out": v, "text_out": l}, make, v_width=v_width, l_width=l_width, heads=heads, dim=dim)
