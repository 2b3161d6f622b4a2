"""Two towers, text and vision, of one width: the model that inarch is for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.zoo.encoders import bert_layer, bert_names
from tests.zoo.model import Inputs, ZooModel
from tests.zoo.packed import unpack_timm
from tests.zoo.registry import SIZES, VOCABULARY, blocks, done, form, masks, norm_kind, pick, writer


def _towers(name: str, rng: np.random.Generator, *, heads: tuple[int, int], packed: bool) -> ZooModel:
    g = writer(rng)
    b = blocks(g)
    width, hidden = 48, pick(rng, 64, 80)
    vision_hidden = pick(rng, hidden, hidden, 96)
    norm = norm_kind(g)
    ids = g.input("input_ids", ir.DataType.INT64, ["batch", "tokens"])
    mask = g.input("attention_mask", ir.DataType.INT64, ["batch", "tokens"])
    patches = g.input("patches", ir.DataType.FLOAT, ["batch", "positions", width])
    bias = b.additive_mask(mask, float(np.finfo(np.float32).min))
    x = g.op("Gather", g.normal("text.embeddings.word_embeddings.weight", (VOCABULARY, width), 1.0), ids, axis=0)
    layers = pick(rng, 2, 2, 3)
    for i in range(layers):
        x = bert_layer(b, x, f"text.encoder.layer.{i}", width, heads[0], hidden, "gelu_erf", norm, bias=bias)
    y = patches
    for i in range(layers):
        layer = f"vision.encoder.layer.{i}"
        h = g.norm(y, f"{layer}.layernorm_before", width, norm)
        if packed:
            source, out_name = f"{layer}.attn.qkv", f"{layer}.attn.proj"
            dim = width // heads[1]
            q, k, v, _ = unpack_timm(b, g.linear(h, source, width, 3 * width), heads[1], dim, layer)
            attended = g.linear(b.merge_heads(b.attend(q, k, v, dim), heads[1], dim), out_name, width, width)
            b.record_attention({"q": source, "k": source, "v": source, "o": out_name}, heads[1], dim)
        else:
            attended = b.attention(h, bert_names(layer), width, heads[1])
        y = g.op("Add", y, attended)
        h = g.norm(y, f"{layer}.layernorm_after", width, norm)
        fed = b.ffn(
            h, f"{layer}.intermediate.dense", f"{layer}.output.dense", width, vision_hidden, pick(rng, "gelu_erf", "relu")
        )
        y = g.op("Add", y, fed)
    y = g.norm(y, "vision.layernorm", width, norm)
    # every word against every patch, as GLIP aligns them
    words = g.linear(x, "text_projection", width, width, bias=False)
    regions = g.linear(y, "visual_projection", width, width, bias=False)
    similarity = g.op("MatMul", words, g.transpose(regions, 0, 2, 1))

    def make(inputs: np.random.Generator, case: int) -> Inputs:
        batch, length = SIZES[case]
        return {
            "input_ids": inputs.integers(0, VOCABULARY, (batch, length)),
            "attention_mask": masks(inputs, batch, length, whole=case == len(SIZES) - 1),
            "patches": inputs.standard_normal((batch, length + 2, width)).astype(np.float32),
        }

    outputs = {"similarity": similarity, "text_hidden": x, "vision_hidden": y}
    return done(name, b, outputs, make, width=width, heads=heads, packed=packed, hidden=(hidden, vision_hidden))


@form("two_tower")
def two_tower(rng: np.random.Generator) -> ZooModel:
    """The same width and the same heads."""
    heads = pick(rng, 4, 6)
    return _towers("two_tower", rng, heads=(heads, heads), packed=False)


@form("two_tower_packed")
def two_tower_packed(rng: np.random.Generator) -> ZooModel:
    """One tower packs q, k and v."""
    heads = pick(rng, 4, 6)
    return _towers("two_tower_packed", rng, heads=(heads, heads), packed=True)


@form("head_splits")
def head_splits(rng: np.random.Generator) -> ZooModel:
    """The same width and different heads: 6 x 8 and 12 x 4, or 8 x 6 and 4 x 12, or 4 x 12 and 6 x 8."""
    heads = pick(rng, (6, 12), (12, 6), (8, 4), (4, 6))
    return _towers("head_splits", rng, heads=heads, packed=bool(rng.random() < 0.3))
