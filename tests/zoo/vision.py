"""Swin: windows of static size, relative-position bias, shifted windows with a mask."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.zoo.blocks import Blocks
from tests.zoo.model import Inputs, ZooModel
from tests.zoo.registry import blocks, done, form, norm_kind, pick, writer

SIDE, WINDOW = 4, 2
"""The image is SIDE x SIDE tokens, a window WINDOW x WINDOW."""

TOKENS = WINDOW * WINDOW


def relative_index() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Row of the bias table for each pair of tokens of a window, flat [TOKENS * TOKENS]."""
    ys, xs = np.divmod(np.arange(TOKENS), WINDOW)
    dy, dx = ys[:, None] - ys[None] + WINDOW - 1, xs[:, None] - xs[None] + WINDOW - 1
    return np.asarray(dy * (2 * WINDOW - 1) + dx, dtype=np.int64).reshape(-1)


def shift_mask() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """[windows, TOKENS, TOKENS]: -100 between tokens that were not neighbours before the shift."""
    region = np.zeros((SIDE, SIDE), np.int64)
    shift = WINDOW // 2
    cuts = (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None))
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            region[rows, columns] = 3 * i + j
    n = SIDE // WINDOW
    flat = region.reshape(n, WINDOW, n, WINDOW).transpose(0, 2, 1, 3).reshape(n * n, TOKENS)
    return np.where(flat[:, :, None] != flat[:, None, :], -100.0, 0.0).astype(np.float32)


def roll(b: Blocks, x: ir.Value, shift: int) -> ir.Value:
    """torch.roll of [B,SIDE,SIDE,E] by ``shift`` on both sides, as Slice and Concat."""
    g = b.g
    cut = -shift % SIDE
    for axis in (1, 2):
        x = g.op("Concat", g.slice(x, cut, SIDE, axis), g.slice(x, 0, cut, axis), axis=axis)
    return x


def window_attention(
    b: Blocks, x: ir.Value, layer: str, width: int, heads: int, *, shifted: bool, constant_bias: bool, packed: bool
) -> ir.Value:
    """[B,SIDE*SIDE,E] -> the same, attention inside windows."""
    g = b.g
    n, dim = SIDE // WINDOW, width // heads
    y = g.reshape(x, -1, SIDE, SIDE, width)
    if shifted:
        y = roll(b, y, -(WINDOW // 2))
    y = g.transpose(g.reshape(y, -1, n, WINDOW, n, WINDOW, width), 0, 1, 3, 2, 4, 5)
    y = g.reshape(y, -1, TOKENS, width)
    if packed:
        names = dict.fromkeys("qkv", f"{layer}.attn.qkv") | {"o": f"{layer}.attn.proj"}
        both = g.linear(y, names["q"], width, 3 * width)
        five = g.transpose(g.reshape(both, -1, TOKENS, 3, heads, dim), 2, 0, 3, 1, 4)
        q, k, v = (g.op("Gather", five, g.const(i), axis=0) for i in range(3))
    else:
        names = {r: f"{layer}.attention.{'output.dense' if r == 'o' else 'self.' + r}" for r in "qkvo"}
        q, k, v = (b.split_heads(g.linear(y, names[r], width, width), heads, dim) for r in "qkv")
    scores = g.op("MatMul", g.op("Mul", q, g.const(dim**-0.5)), g.transpose(k, 0, 1, 3, 2))
    if constant_bias:
        bias = g.normal(f"{layer}.attn.relative_position_bias", (1, heads, TOKENS, TOKENS), 0.5)
    else:
        table = g.normal(f"{layer}.attn.relative_position_bias_table", ((2 * WINDOW - 1) ** 2, heads), 0.5)
        if g.rng.random() < 0.5:
            bias = g.op("Gather", table, g.const(relative_index()), axis=0)
            bias = g.reshape(bias, TOKENS, TOKENS, pick(g.rng, heads, -1))
        else:
            bias = g.op("Gather", table, g.const(relative_index().reshape(TOKENS, TOKENS)), axis=0)
        bias = g.unsqueeze(g.transpose(bias, 2, 0, 1), [0])
    scores = g.op("Add", scores, bias)
    if shifted:
        mask = g.const(shift_mask()[:, None])
        scores = g.reshape(scores, -1, n * n, heads, TOKENS, TOKENS)
        scores = g.op("Add", scores, g.unsqueeze(mask, [0]) if g.rng.random() < 0.5 else mask)
        scores = g.reshape(scores, -1, heads, TOKENS, TOKENS)
    out = b.merge_heads(g.op("MatMul", b.softmax(scores), v), heads, dim)
    y = g.linear(out, names["o"], width, width)
    b.record_attention(names, heads, dim)
    y = g.transpose(g.reshape(y, -1, n, n, WINDOW, WINDOW, width), 0, 1, 3, 2, 4, 5)
    y = g.reshape(y, -1, SIDE, SIDE, width)
    if shifted:
        y = roll(b, y, WINDOW // 2)
    return g.reshape(y, -1, SIDE * SIDE, width)


def _swin(name: str, rng: np.random.Generator, *, constant_bias: bool) -> ZooModel:
    g = writer(rng)
    b = blocks(g, drop=False)
    width, heads, hidden = pick(rng, (24, 3, 64), (32, 4, 48), (32, 2, 80))
    norm = norm_kind(g)
    packed = bool(rng.random() < 0.5)
    x = g.input("patches", ir.DataType.FLOAT, ["batch", SIDE * SIDE, width])
    for i in range(2 + int(rng.random() < 0.5)):
        layer = f"backbone.body.layers.0.blocks.{i}"
        h = g.norm(x, f"{layer}.norm1", width, norm)
        attended = window_attention(b, h, layer, width, heads, shifted=i % 2 == 1, constant_bias=constant_bias, packed=packed)
        x = g.op("Add", x, attended)
        y = b.ffn(g.norm(x, f"{layer}.norm2", width, norm), f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", width, hidden)
        x = g.op("Add", x, y)
    # patch merging: four neighbours to one token of twice the width
    y = g.reshape(x, -1, SIDE, SIDE, width)
    corners = [g.slice(g.slice(y, r, SIDE, 1, 2), c, SIDE, 2, 2) for c in range(2) for r in range(2)]
    y = g.reshape(g.op("Concat", *corners, axis=-1), -1, SIDE * SIDE // 4, 4 * width)
    y = g.norm(y, "backbone.body.layers.0.downsample.norm", 4 * width, norm)
    y = g.linear(y, "backbone.body.layers.0.downsample.reduction", 4 * width, 2 * width, bias=False)

    def make(inputs: np.random.Generator, case: int) -> Inputs:
        return {"patches": inputs.standard_normal((case + 1, SIDE * SIDE, width)).astype(np.float32)}

    return done(name, b, {"features": y}, make, cases=2, width=width, heads=heads, packed=packed)


@form("swin")
def swin(rng: np.random.Generator) -> ZooModel:
    """The bias is gathered from a table."""
    return _swin("swin", rng, constant_bias=False)


@form("swin_constant_bias")
def swin_constant_bias(rng: np.random.Generator) -> ZooModel:
    """The bias is folded to [1,H,N,N]."""
    return _swin("swin_constant_bias", rng, constant_bias=True)


@form("swin_v2")
def swin_v2(rng: np.random.Generator) -> ZooModel:
    """Cosine attention: q and k normalised over the head dim (frozen), a logit scale a head."""
    g = writer(rng)
    b = blocks(g, drop=False)
    width, heads, hidden = pick(rng, (24, 3, 64), (32, 4, 48))
    dim, norm = width // heads, norm_kind(g)
    x = g.input("patches", ir.DataType.FLOAT, ["batch", "sequence", width])

    def unit(y: ir.Value) -> ir.Value:
        length = g.op("Sqrt", g.reduce("ReduceSum", g.op("Mul", y, y), [-1]))
        return g.op("Div", y, g.op("Max", length, g.const(1e-12)))

    for i in range(2):
        layer = f"backbone.layers.0.blocks.{i}"
        names = {r: f"{layer}.attn.{'proj' if r == 'o' else r + '_proj'}" for r in "qkvo"}
        q, k, v = (b.split_heads(g.linear(x, names[r], width, width), heads, dim) for r in "qkv")
        scores = g.op("MatMul", unit(q), g.transpose(unit(k), 0, 1, 3, 2))
        logit = g.normal(f"{layer}.attn.logit_scale", (heads, 1, 1), 0.3, 1.0)
        scores = g.op("Mul", scores, g.op("Exp", g.clip(logit, -10.0, 4.6)) if rng.random() < 0.5 else logit)
        y = g.linear(b.merge_heads(g.op("MatMul", b.softmax(scores), v), heads, dim), names["o"], width, width)
        b.record_attention(names, heads, dim, frozen=["qk"])
        x = g.op("Add", x, g.norm(y, f"{layer}.norm1", width, norm))
        y = b.ffn(x, f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", width, hidden)
        x = g.op("Add", x, g.norm(y, f"{layer}.norm2", width, norm))

    def make(inputs: np.random.Generator, case: int) -> Inputs:
        return {"patches": inputs.standard_normal((case + 1, 6 - case, width)).astype(np.float32)}

    return done("swin_v2", b, {"features": x}, make, cases=2, width=width, heads=heads)
