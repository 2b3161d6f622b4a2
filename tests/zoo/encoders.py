"""Encoders with separate projections: norms, activations, gated FFNs, weight storage, head reshapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tests.zoo.blocks import Blocks
from tests.zoo.graph import GraphWriter
from tests.zoo.model import ZooModel
from tests.zoo.registry import blocks, done, embed, feature_inputs, form, norm_kind, pick, text_inputs, writer


def bert_names(layer: str) -> tuple[str, str, str, str]:
    """Prefixes of q, k, v, o as in BERT."""
    own = f"{layer}.attention.self"
    return f"{own}.query", f"{own}.key", f"{own}.value", f"{layer}.attention.output.dense"


def llama_names(layer: str) -> tuple[str, str, str, str]:
    """Prefixes of q, k, v, o as in Llama."""
    own = f"{layer}.self_attn"
    return f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj", f"{own}.o_proj"


def widths(rng: np.random.Generator) -> tuple[int, int, int]:
    """(E, heads, F)."""
    width, heads = pick(rng, (24, 4), (32, 4), (32, 2), (48, 6), (32, 8), (48, 3))
    return width, heads, pick(rng, 40, 48, 64, 80)


def bert_layer(
    b: Blocks, x: ir.Value, layer: str, width: int, heads: int, hidden: int, act: str, norm: str, **attention: Any
) -> ir.Value:
    """A post-norm layer with BERT's names."""
    g = b.g
    x = g.norm(
        g.op("Add", b.attention(x, bert_names(layer), width, heads, **attention), x),
        f"{layer}.attention.output.LayerNorm",
        width,
        norm,
    )
    y = b.ffn(x, f"{layer}.intermediate.dense", f"{layer}.output.dense", width, hidden, act)
    return g.norm(g.op("Add", y, x), f"{layer}.output.LayerNorm", width, norm)


def vit_layer(b: Blocks, x: ir.Value, layer: str, width: int, heads: int, hidden: int, act: str, norm: str) -> ir.Value:
    """A pre-norm layer with separate projections."""
    g = b.g
    names = tuple(f"{layer}.attention.{n}" for n in ("attention.query", "attention.key", "attention.value", "output.dense"))
    h = g.norm(x, f"{layer}.layernorm_before", width, norm)
    x = g.op("Add", x, b.attention(h, names, width, heads))
    h = g.norm(x, f"{layer}.layernorm_after", width, norm)
    return g.op("Add", b.ffn(h, f"{layer}.intermediate.dense", f"{layer}.output.dense", width, hidden, act), x)


def bert(
    name: str,
    g: GraphWriter,
    act: str,
    norm: str,
    *,
    mask: str = "additive",
    layers: int | None = None,
    dims: Any = None,
    **style: Any,
) -> ZooModel:
    """A text encoder; ``mask`` is ``additive``, ``inf``, ``where`` or ``none``."""
    b = blocks(g, **style)
    width, heads, hidden = dims or widths(g.rng)
    prefix = pick(g.rng, "text", "bert", "transformer.text_encoder")
    x, given = embed(b, prefix, width, mask=mask != "none")
    bias = allowed = None
    low = float({"inf": -np.inf, "additive": pick(g.rng, -10000.0, np.finfo(np.float32).min)}.get(mask, 0.0))
    if mask == "where" and given is not None:
        allowed = b.bool_mask(given)
    elif given is not None:
        bias = b.additive_mask(given, low)
    # where everything is masked by -10000, scores keep three digits: no two ways of computing them agree
    whole = mask != "none" and low != -10000.0
    x = g.norm(x, f"{prefix}.embeddings.LayerNorm", width, norm)
    for i in range(layers or 2 + int(g.rng.random() < 0.4)):
        x = bert_layer(b, x, f"{prefix}.encoder.layer.{i}", width, heads, hidden, act, norm, bias=bias, allowed=allowed)
    return done(
        name,
        b,
        {"last_hidden_state": x},
        text_inputs(mask=mask != "none", whole=whole),
        width=width,
        heads=heads,
        mask=mask,
    )


@form("encoder_post_norm")
def encoder_post_norm(rng: np.random.Generator) -> ZooModel:
    """BERT: separate query, key, value; post-norm; additive mask."""
    g = writer(rng)
    return bert("encoder_post_norm", g, pick(rng, "gelu_erf", "gelu_erf_half", "relu"), norm_kind(g))


@form("encoder_pre_norm")
def encoder_pre_norm(rng: np.random.Generator) -> ZooModel:
    """ViT: pre-norm with the LayerNormalization operator, image features as input."""
    g = writer(rng, 17)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    x = g.input("patches", ir.DataType.FLOAT, ["batch", "sequence", width])
    for i in range(2 + int(rng.random() < 0.4)):
        x = vit_layer(b, x, f"vision.encoder.layer.{i}", width, heads, hidden, pick(rng, "gelu_erf", "gelu_tanh"), "op")
    x = g.norm(x, "vision.layernorm", width, "op")
    return done("encoder_pre_norm", b, {"features": x}, feature_inputs("patches", width), width=width, heads=heads)


@form("encoder_torchscript")
def encoder_torchscript(rng: np.random.Generator) -> ZooModel:
    """What TorchScript emits at an old opset: decomposed LayerNorm and GELU, shapes put together at run time."""
    g = writer(rng, 11, 16, bias_first=True, constants="constant")
    return bert("encoder_torchscript", g, "gelu_erf", "decomposed", view="dynamic", merge=pick(rng, "dynamic", "product"))


@form("encoder_relu")
def encoder_relu(rng: np.random.Generator) -> ZooModel:
    """ReLU, no mask."""
    g = writer(rng)
    return bert("encoder_relu", g, pick(rng, "relu", "relu6"), norm_kind(g), mask="none")


@form("encoder_gelu_tanh")
def encoder_gelu_tanh(rng: np.random.Generator) -> ZooModel:
    """GELU's tanh form and the quick one."""
    g = writer(rng)
    return bert("encoder_gelu_tanh", g, pick(rng, "gelu_tanh", "quick_gelu"), norm_kind(g))


@form("encoder_gelu_op")
def encoder_gelu_op(rng: np.random.Generator) -> ZooModel:
    """The Gelu operator of opset 20."""
    g = writer(rng, 20)
    return bert("encoder_gelu_op", g, pick(rng, "gelu_op", "gelu_op_tanh"), "op")


@form("constant_weights")
def constant_weights(rng: np.random.Generator) -> ZooModel:
    """Weights as Constant nodes."""
    g = writer(rng, weights="constant", constants="constant")
    return bert("constant_weights", g, "gelu_erf", norm_kind(g))


@form("transposed_weights")
def transposed_weights(rng: np.random.Generator) -> ZooModel:
    """Weights [out, in] through a Transpose node."""
    g = writer(rng, linear="transpose")
    return bert("transposed_weights", g, "gelu_erf", norm_kind(g))


@form("gemm_weights")
def gemm_weights(rng: np.random.Generator) -> ZooModel:
    """Gemm on the flattened sequence, transB=1 or 0."""
    g = writer(rng, linear=pick(rng, "gemm", "gemm0"))
    return bert("gemm_weights", g, "gelu_erf", norm_kind(g))


@form("scale_from_shape")
def scale_from_shape(rng: np.random.Generator) -> ZooModel:
    """The scale is computed from Shape(q)[-1]."""
    g = writer(rng)
    return bert("scale_from_shape", g, "gelu_erf", norm_kind(g), scale="shape")


@form("guarded_masks")
def guarded_masks(rng: np.random.Generator) -> ZooModel:
    """-inf masks, additive or by Where, with and without the guard that turns NaN rows into zeros."""
    g = writer(rng)
    return bert("guarded_masks", g, "gelu_erf", norm_kind(g), mask=pick(rng, "inf", "where"), guard=bool(rng.random() < 0.7))


@form("wrapped")
def wrapped(rng: np.random.Generator) -> ZooModel:
    """Dropout, Identity and Cast between the operators."""
    g = writer(rng)
    return bert("wrapped", g, "gelu_erf", norm_kind(g), drop=True)


@form("single_head")
def single_head(rng: np.random.Generator) -> ZooModel:
    """One head and no reshape: q k^T on [B,S,E]."""
    g = writer(rng)
    b = blocks(g)
    width, _, hidden = widths(rng)
    inner = pick(rng, width, 32, 40)
    x = g.input("features", ir.DataType.FLOAT, ["batch", "sequence", width])
    for i in range(2):
        layer = f"encoder.layers.{i}"
        q, k, v = (g.linear(x, f"{layer}.attn.{n}", width, inner) for n in ("to_q", "to_k", "to_v"))
        scores = g.op("Div", g.op("MatMul", q, g.transpose(k, 0, 2, 1)), g.const(np.sqrt(inner)))
        y = g.linear(g.op("MatMul", b.softmax(scores), v), f"{layer}.attn.to_out", inner, width)
        b.record_attention({r: f"{layer}.attn.to_{'out' if r == 'o' else r}" for r in "qkvo"}, 1, inner)
        x = g.norm(g.op("Add", x, y), f"{layer}.norm1", width, norm_kind(g))
        x = g.norm(
            g.op("Add", x, b.ffn(x, f"{layer}.linear1", f"{layer}.linear2", width, hidden, "relu")),
            f"{layer}.norm2",
            width,
            norm_kind(g),
        )
    return done("single_head", b, {"out": x}, feature_inputs("features", width), width=width)


@form("static_batch")
def static_batch(rng: np.random.Generator) -> ZooModel:
    """Batch and sequence are fixed in the reshape constants."""
    g = writer(rng)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    dim, norm = width // heads, norm_kind(g)
    x = g.input("features", ir.DataType.FLOAT, [2, 7, width])
    for i in range(2):
        layer = f"encoder.layers.{i}"
        q, k, v = (g.linear(x, f"{layer}.self_attn.{n}_proj", width, width) for n in "qkv")
        q, k, v = (g.transpose(g.reshape(y, 2, 7, heads, dim), 0, 2, 1, 3) for y in (q, k, v))
        if rng.random() < 0.5:
            q, k, v = (g.reshape(y, 2 * heads, 7, dim) for y in (q, k, v))
            scores = g.op("MatMul", g.op("Mul", q, g.const(dim**-0.5)), g.transpose(k, 0, 2, 1))
            out = g.reshape(g.op("MatMul", b.softmax(scores), v), 2, heads, 7, dim)
        else:
            out = b.attend(q, k, v, dim)
        out = g.reshape(g.transpose(out, 0, 2, 1, 3), 2, 7, width)
        y = g.linear(out, f"{layer}.self_attn.out_proj", width, width)
        b.record_attention({r: f"{layer}.self_attn.{'out' if r == 'o' else r}_proj" for r in "qkvo"}, heads, dim)
        x = g.norm(g.op("Add", x, y), f"{layer}.norm1", width, norm)
        x = g.norm(
            g.op("Add", x, b.ffn(x, f"{layer}.linear1", f"{layer}.linear2", width, hidden, "relu")), f"{layer}.norm2", width, norm
        )

    def make(inputs: np.random.Generator, case: int) -> dict[str, Any]:
        return {"features": inputs.standard_normal((2, 7, width)).astype(np.float32)}

    return done("static_batch", b, {"out": x}, make, cases=1, width=width, heads=heads)


# ---- gated FFN ----------------------------------------------------------------------------------------------------------
def _gated(name: str, rng: np.random.Generator, packing: str) -> ZooModel:
    g = writer(rng, linear=pick(rng, "matmul", "transpose"))
    b = blocks(g)
    width, heads, hidden = widths(rng)
    x, given = embed(b, "model", width)
    assert given is not None
    bias, norm = b.additive_mask(given), pick(rng, "rms", norm_kind(g))
    act = pick(rng, "silu", "silu", "gelu_tanh", "gelu_erf")
    has_bias = bool(rng.random() < 0.3)
    for i in range(2 + int(rng.random() < 0.4)):
        layer = f"model.layers.{i}"
        h = g.norm(x, f"{layer}.input_layernorm", width, norm)
        x = g.op("Add", x, b.attention(h, llama_names(layer), width, heads, bias=bias, proj_bias=has_bias))
        h = g.norm(x, f"{layer}.post_attention_layernorm", width, norm)
        x = g.op("Add", x, b.gated(h, f"{layer}.mlp", width, hidden, act, packing=packing, bias=has_bias))
    x = g.norm(x, "model.norm", width, norm)
    return done(name, b, {"hidden": x}, text_inputs(), width=width, heads=heads, act=act)


@form("swiglu")
def swiglu(rng: np.random.Generator) -> ZooModel:
    """Gated FFN with separate gate and up."""
    return _gated("swiglu", rng, "separate")


@form("swiglu_split")
def swiglu_split(rng: np.random.Generator) -> ZooModel:
    """Gate and up in one matrix, taken apart by Split."""
    return _gated("swiglu_split", rng, "split")


@form("swiglu_slice")
def swiglu_slice(rng: np.random.Generator) -> ZooModel:
    """Gate and up in one matrix, taken apart by Slice."""
    return _gated("swiglu_slice", rng, "slice")


# ---- ties, scales, norms inside ----------------------------------------------------------------------------------------
@form("tied_layers")
def tied_layers(rng: np.random.Generator) -> ZooModel:
    """Whole layers tied (ALBERT), or only their attention, or only their FFN."""
    g = writer(rng)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    x, given = embed(b, "albert", width)
    assert given is not None
    bias, norm = b.additive_mask(given), norm_kind(g)
    attn_of = pick(rng, (0, 0, 1), (0, 1, 0), (0, 0, 0))
    ffn_of = pick(rng, (0, 0, 1), (0, 1, 1), attn_of)
    for i in range(3):
        layer = f"albert.layer.{i}"
        names = bert_names(f"albert.layer.{attn_of[i]}")
        x = g.norm(g.op("Add", b.attention(x, names, width, heads, bias=bias), x), f"{layer}.norm1", width, norm)
        tied = f"albert.layer.{ffn_of[i]}"
        y = b.ffn(x, f"{tied}.intermediate.dense", f"{tied}.output.dense", width, hidden, "gelu_erf")
        x = g.norm(g.op("Add", y, x), f"{layer}.norm2", width, norm)
    return done("tied_layers", b, {"hidden": x}, text_inputs(), width=width, heads=heads, attn_of=attn_of, ffn_of=ffn_of)


@form("tied_members")
def tied_members(rng: np.random.Generator) -> ZooModel:
    """Two layers share some members only: q and k, or v, or up; layers of their own stand beside them."""
    g = writer(rng)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    x, given = embed(b, "text", width)
    assert given is not None
    bias, norm = b.additive_mask(given), norm_kind(g)
    tied_roles = pick(rng, "qk", "v", "o", "qkv")
    loose: set[str] = set()
    for i in range(4):
        layer = f"text.encoder.layer.{i}"
        names = list(bert_names(layer))
        if i < 2:
            for j, role in enumerate("qkvo"):
                if role in tied_roles:
                    names[j] = bert_names("text.encoder.layer.0")[j]
            loose |= {f"{n}.weight" for n in names}
        x = g.norm(g.op("Add", b.attention(x, names, width, heads, bias=bias), x), f"{layer}.norm1", width, norm)
        up, down = f"{layer}.intermediate.dense", f"{layer}.output.dense"
        if i < 2:
            up = "text.encoder.layer.0.intermediate.dense"
            loose |= {f"{up}.weight", f"{down}.weight"}
        x = g.norm(g.op("Add", b.ffn(x, up, down, width, hidden, "relu"), x), f"{layer}.norm2", width, norm)
    b.sites = {key: site for key, site in b.sites.items() if not loose & set(site.params.values())}
    return done(
        "tied_members", b, {"hidden": x}, text_inputs(), loose=frozenset(loose), width=width, heads=heads, tied=tied_roles
    )


@form("layer_scale")
def layer_scale(rng: np.random.Generator) -> ZooModel:
    """LayerScale between a site and the residual stream."""
    g = writer(rng)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    norm = norm_kind(g)
    x = g.input("patches", ir.DataType.FLOAT, ["batch", "sequence", width])
    for i in range(2):
        layer = f"vision.blocks.{i}"
        h = g.norm(x, f"{layer}.norm1", width, norm)
        y = b.attention(h, tuple(f"{layer}.attn.{n}" for n in ("q", "k", "v", "proj")), width, heads)
        x = g.op("Add", x, g.op("Mul", y, g.normal(f"{layer}.ls1.gamma", (width,), 0.1, 0.5)))
        y = b.ffn(g.norm(x, f"{layer}.norm2", width, norm), f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", width, hidden)
        x = g.op("Add", x, g.op("Mul", g.normal(f"{layer}.ls2.gamma", (width,), 0.1, 0.5), y))
    return done("layer_scale", b, {"features": x}, feature_inputs("patches", width), width=width, heads=heads)


@form("qk_norm")
def qk_norm(rng: np.random.Generator) -> ZooModel:
    """A norm over the head dim of q and k: their units are frozen, heads and values are free."""
    g = writer(rng)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    dim, norm = width // heads, norm_kind(g)
    kind = pick(rng, "rms", norm)
    x = g.input("patches", ir.DataType.FLOAT, ["batch", "sequence", width])
    for i in range(2):
        layer = f"vision.blocks.{i}"
        names = {r: f"{layer}.attn.{'proj' if r == 'o' else r}" for r in "qkvo"}
        h = g.norm(x, f"{layer}.norm1", width, norm)
        q, k, v = (b.split_heads(g.linear(h, names[r], width, width), heads, dim) for r in "qkv")
        q = g.norm(q, f"{layer}.attn.q_norm", dim, kind)
        k = g.norm(k, f"{layer}.attn.k_norm", dim, kind)
        out = b.merge_heads(b.attend(q, k, v, dim), heads, dim)
        x = g.op("Add", x, g.linear(out, names["o"], width, width))
        b.record_attention(names, heads, dim, frozen=["qk"])
        y = b.ffn(g.norm(x, f"{layer}.norm2", width, norm), f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", width, hidden)
        x = g.op("Add", x, y)
    return done("qk_norm", b, {"features": x}, feature_inputs("patches", width), width=width, heads=heads, kind=kind)


@form("sub_norm")
def sub_norm(rng: np.random.Generator) -> ZooModel:
    """SubLN: a norm over the hidden units of the FFN freezes them; in every second layer only."""
    g = writer(rng)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    norm = norm_kind(g)
    x = g.input("patches", ir.DataType.FLOAT, ["batch", "sequence", width])
    for i in range(3):
        layer = f"vision.blocks.{i}"
        h = g.norm(x, f"{layer}.norm1", width, norm)
        x = g.op("Add", x, b.attention(h, tuple(f"{layer}.attn.{n}" for n in ("q", "k", "v", "proj")), width, heads))
        h = g.norm(x, f"{layer}.norm2", width, norm)
        between = (lambda y, n=f"{layer}.mlp.ffn_ln": g.norm(y, n, hidden, norm)) if i == 1 else None
        x = g.op("Add", x, b.ffn(h, f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", width, hidden, between=between, frozen=i == 1))
    return done("sub_norm", b, {"features": x}, feature_inputs("patches", width), width=width, heads=heads)


@form("parallel_block")
def parallel_block(rng: np.random.Generator) -> ZooModel:
    """Attention and FFN side by side on one norm (GPT-J, ViT-22B)."""
    g = writer(rng)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    norm = norm_kind(g)
    x, given = embed(b, "transformer", width)
    assert given is not None
    bias = b.additive_mask(given)
    for i in range(2):
        layer = f"transformer.h.{i}"
        h = g.norm(x, f"{layer}.ln_1", width, norm)
        names = tuple(f"{layer}.attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "out_proj"))
        attended = b.attention(h, names, width, heads, bias=bias, proj_bias=False)
        fed = b.ffn(h, f"{layer}.mlp.fc_in", f"{layer}.mlp.fc_out", width, hidden, pick(rng, "gelu_tanh", "gelu_erf"))
        x = g.op("Add", g.op("Add", attended, fed), x) if rng.random() < 0.5 else g.op("Add", attended, g.op("Add", fed, x))
    x = g.norm(x, "transformer.ln_f", width, norm)
    return done("parallel_block", b, {"hidden": x}, text_inputs(), width=width, heads=heads)


# ---- position inside attention ------------------------------------------------------------------------------------------
@form("t5")
def t5(rng: np.random.Generator) -> ZooModel:
    """No biases, no scale, RMS norm, relative positions from a table of layer 0 or of each layer."""
    g = writer(rng, 12)
    b = blocks(g, scale="none", drop=False)
    width, heads, hidden = widths(rng)
    shared = bool(rng.random() < 0.5)
    x, given = embed(b, "encoder", width)
    assert given is not None
    mask = b.additive_mask(given)
    steps = g.op("Range", g.const(np.array(0)), g.squeeze(g.dim(x, 1), [0]), g.const(np.array(1)))
    distance = g.op("Sub", g.unsqueeze(steps, [0]), g.unsqueeze(steps, [1]))
    buckets = g.op("Add", g.op("Min", g.op("Max", distance, g.const(-4)), g.const(4)), g.const(4))
    bias = None
    for i in range(2):
        layer = f"encoder.block.{i}.layer"
        if bias is None or not shared:
            table = g.normal(f"{layer}.0.SelfAttention.relative_attention_bias.weight", (9, heads), 0.5)
            per_head = g.transpose(g.op("Gather", table, buckets, axis=0), 2, 0, 1)
            bias = g.op("Add", g.unsqueeze(per_head, [0]), mask)
        h = g.norm(x, f"{layer}.0.layer_norm", width, "rms")
        names = tuple(f"{layer}.0.SelfAttention.{n}" for n in "qkvo")
        x = g.op(
            "Add", x, b.attention(h, names, width, heads, bias=bias, proj_bias=False, unsure=["head"] if shared else [], dim=8)
        )
        h = g.norm(x, f"{layer}.1.layer_norm", width, "rms")
        wi, wo = f"{layer}.1.DenseReluDense.wi", f"{layer}.1.DenseReluDense.wo"
        x = g.op("Add", x, b.ffn(h, wi, wo, width, hidden, "relu", bias=False))
    x = g.norm(x, "encoder.final_layer_norm", width, "rms")
    return done("t5", b, {"hidden": x}, text_inputs(), width=width, heads=heads, shared=shared)


@form("alibi")
def alibi(rng: np.random.Generator) -> ZooModel:
    """ALiBi: slopes a head times the distance, of one constant for all layers or one a layer."""
    g = writer(rng)
    b = blocks(g)
    width, heads, hidden = widths(rng)
    shared = bool(rng.random() < 0.4)
    norm = norm_kind(g)
    x, given = embed(b, "transformer", width)
    assert given is not None
    mask = b.additive_mask(given)
    steps = g.cast(g.op("Range", g.const(np.array(0)), g.squeeze(g.dim(x, 1), [0]), g.const(np.array(1))), ir.DataType.FLOAT)
    distance = g.op("Sub", g.unsqueeze(steps, [0]), g.unsqueeze(steps, [1]))
    slopes = (2.0 ** -np.arange(1, heads + 1)).astype(np.float32).reshape(1, heads, 1, 1)
    biased: ir.Value | None = None
    for i in range(2):
        layer = f"transformer.h.{i}"
        if biased is None or not shared:
            table = g.param("transformer.slopes" if shared else f"{layer}.slopes", slopes)
            biased = g.op("Add", g.op("Mul", table, distance), mask)
        names = tuple(f"{layer}.attention.{n}" for n in ("query", "key", "value", "dense"))
        h = g.norm(x, f"{layer}.ln_1", width, norm)
        x = g.op("Add", x, b.attention(h, names, width, heads, bias=biased, unsure=["head"] if shared else []))
        h = g.norm(x, f"{layer}.ln_2", width, norm)
        x = g.op("Add", x, b.ffn(h, f"{layer}.mlp.dense_h_to_4h", f"{layer}.mlp.dense_4h_to_h", width, hidden, "gelu_tanh"))
    return done("alibi", b, {"hidden": x}, text_inputs(), width=width, heads=heads, shared=shared)
