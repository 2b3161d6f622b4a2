"""Transformer blocks in the spellings of the exporters; each block also records the site that it wrote.

Shapes: B batch, S sequence, E width, H query heads, K key/value heads, d head dim, F hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from inarch.structure.sites import Kind

from tests.zoo.graph import GraphWriter
from tests.zoo.model import ExpectedSite


@dataclass(frozen=True)
class Style:
    """How attention is spelled.

    Attributes:
        view: how heads are split off: ``zero`` [0,0,H,d], ``neg`` [0,-1,H,d], ``heads`` [0,0,-1,d], ``last`` [0,0,H,-1],
            ``dynamic`` (Shape/Gather/Concat, TorchScript) or ``shape`` (Slice of the Shape, then Concat with [-1,d], as Hugging
            Face's ``(*input_shape, -1, head_dim)``).
        merge: how they are joined: ``zero`` [0,0,H*d], ``neg`` [0,0,-1], ``dynamic``, ``product`` (H*d multiplied in the graph).
        scale: ``div`` or ``mul`` of the scores, ``query``, ``both`` (sqrt on q and k), ``shape`` (from Shape(q)), ``none``.
        direct: k is transposed once to [B,H,d,S], not twice.
        guard: NaN rows become zeros after the softmax, as torch exports a bool mask.
        drop: Dropout, Identity and Cast nodes between the operators.
    """

    view: str = "zero"
    merge: str = "zero"
    scale: str = "div"
    direct: bool = False
    guard: bool = False
    drop: bool = False


VIEWS = ("zero", "neg", "heads", "last", "dynamic", "shape")
MERGES = ("zero", "neg", "dynamic", "product")
SCALES = ("div", "mul", "query", "both", "shape")


def draw_style(rng: np.random.Generator, **fixed: Any) -> Style:
    """A random style; keyword arguments fix fields."""
    style = Style(
        view=str(rng.choice(VIEWS)),
        merge=str(rng.choice(MERGES)),
        scale=str(rng.choice(SCALES)),
        direct=bool(rng.random() < 0.5),
        guard=bool(rng.random() < 0.2),
        drop=bool(rng.random() < 0.2),
    )
    return replace(style, **fixed)


@dataclass
class Blocks:
    """A graph under construction with the sites it holds."""

    g: GraphWriter
    style: Style = field(default_factory=Style)
    sites: dict[tuple[tuple[str, str], ...], ExpectedSite] = field(default_factory=dict)

    def record(
        self,
        kind: Kind,
        params: Mapping[str, str],
        sizes: Mapping[str, int],
        *,
        frozen: Sequence[str] = (),
        unsure: Sequence[str] = (),
    ) -> None:
        """Note a site; noted again, it has one more call-site."""
        key = tuple(sorted(params.items()))
        known = self.sites.get(key)
        if known is not None:
            self.sites[key] = replace(known, calls=known.calls + 1)
            return
        self.sites[key] = ExpectedSite(kind, dict(params), dict(sizes), 1, frozenset(frozen), frozenset(unsure))

    # ---- noise that inference graphs keep ---------------------------------------------------------------------------
    def noise(self, x: ir.Value) -> ir.Value:
        """Dropout (inference), Identity or Cast, where the style wants them."""
        if not self.style.drop:
            return x
        g = self.g
        match int(g.rng.integers(4)):
            case 0:
                if g.opset >= 12:
                    return g.ops("Dropout", x, g.const(0.1), g.const(np.array(False)), outputs=1)[0]
                return g.ops("Dropout", x, outputs=1, ratio=0.1)[0]
            case 1:
                return g.op("Identity", x)
            case 2:
                return g.cast(x, ir.DataType.FLOAT)
        return x

    # ---- feed-forward -----------------------------------------------------------------------------------------------
    def ffn(
        self,
        x: ir.Value,
        up: str,
        down: str,
        width: int,
        hidden: int,
        act: str = "gelu_erf",
        *,
        bias: bool = True,
        rank: int = 3,
        between: Any = None,
        frozen: bool = False,
        site: bool = True,
    ) -> ir.Value:
        """act(x W_up + b) W_down + b; ``between`` rewrites the hidden value before W_down."""
        g = self.g
        h = g.linear(x, up, width, hidden, bias=bias, rank=rank)
        h = self.noise(g.activation(self.noise(h), act))
        if between is not None:
            h = between(h)
        y = g.linear(h, down, hidden, width, bias=bias, rank=rank)
        if site:
            params = {"up": f"{up}.weight", "down": f"{down}.weight"}
            self.record("ffn", params, {"hidden": hidden}, frozen=["hidden"] if frozen else [])
        return self.noise(y)

    def gated(
        self,
        x: ir.Value,
        prefix: str,
        width: int,
        hidden: int,
        act: str = "silu",
        *,
        packing: str = "separate",
        bias: bool = False,
    ) -> ir.Value:
        """act(x W_gate) * (x W_up) W_down, with gate and up apart or in one matrix taken apart by Split or Slice."""
        g = self.g
        down = f"{prefix}.down_proj"
        if packing == "separate":
            names = {"gate": f"{prefix}.gate_proj", "up": f"{prefix}.up_proj"}
            gate = g.linear(x, names["gate"], width, hidden, bias=bias)
            up = g.linear(x, names["up"], width, hidden, bias=bias)
        else:
            names = {"gate": f"{prefix}.gate_up_proj", "up": f"{prefix}.gate_up_proj"}
            both = g.linear(x, names["up"], width, 2 * hidden, bias=bias)
            if packing == "slice":
                gate, up = g.slice(both, 0, hidden, -1), g.slice(both, hidden, 2 * hidden, -1)
            else:
                gate, up = g.split(both, [hidden, hidden], -1)
        h = g.activation(gate, act)
        h = g.op("Mul", h, up) if g.rng.random() < 0.5 else g.op("Mul", up, h)
        y = g.linear(h, down, hidden, width, bias=bias)
        params = {role: f"{name}.weight" for role, name in names.items()} | {"down": f"{down}.weight"}
        self.record("ffn", params, {"hidden": hidden})
        return y

    # ---- attention: heads -------------------------------------------------------------------------------------------
    def view_heads(self, x: ir.Value, heads: int, dim: int) -> ir.Value:
        """[B,S,H*d] -> [B,S,H,d]."""
        g = self.g
        match self.style.view:
            case "zero":
                return g.reshape(x, 0, 0, heads, dim)
            case "neg":
                return g.reshape(x, 0, -1, heads, dim)
            case "heads":
                return g.reshape(x, 0, 0, -1, dim)
            case "last":
                return g.reshape(x, 0, 0, heads, -1)
            case "dynamic":
                return g.reshape(x, g.dim(x, 0), g.dim(x, 1), heads, dim)
            case "shape":
                lead = g.slice(g.op("Shape", x), 0, 2, 0)
                return g.op("Reshape", x, g.op("Concat", lead, g.const([-1]), g.const([dim]), axis=0))
        raise ValueError(self.style.view)

    def split_heads(self, x: ir.Value, heads: int, dim: int) -> ir.Value:
        """[B,S,H*d] -> [B,H,S,d]."""
        return self.g.transpose(self.view_heads(x, heads, dim), 0, 2, 1, 3)

    def merge_heads(self, x: ir.Value, heads: int, dim: int) -> ir.Value:
        """[B,H,S,d] -> [B,S,H*d]."""
        g = self.g
        y = g.transpose(x, 0, 2, 1, 3)
        match self.style.merge:
            case "zero":
                return g.reshape(y, 0, 0, heads * dim)
            case "neg":
                return g.reshape(y, 0, 0, -1)
            case "dynamic":
                return g.reshape(y, g.dim(y, 0), g.dim(y, 1), heads * dim)
            case "product":
                return g.reshape(y, g.dim(y, 0), g.dim(y, 1), g.op("Mul", g.dim(y, 2), g.dim(y, 3)))
        raise ValueError(self.style.merge)

    # ---- attention: scores ------------------------------------------------------------------------------------------
    def _scaled(self, q: ir.Value, k_t: ir.Value, dim: int) -> ir.Value:
        """Scores [B,H,S,T] of q [B,H,S,d] and the transposed keys [B,H,d,T]."""
        g = self.g
        match self.style.scale:
            case "div":
                return g.op("Div", g.op("MatMul", q, k_t), g.const(math.sqrt(dim)))
            case "mul":
                return g.op("Mul", g.op("MatMul", q, k_t), g.const(1 / math.sqrt(dim)))
            case "query":
                return g.op("MatMul", g.op("Mul", q, g.const(1 / math.sqrt(dim))), k_t)
            case "both":
                root = g.const(dim**-0.25)
                return g.op("MatMul", g.op("Mul", q, root), g.op("Mul", k_t, root))
            case "shape":
                size = g.slice(g.op("Shape", q), -1, np.iinfo(np.int64).max, 0)
                root = g.op("Sqrt", g.cast(size, ir.DataType.FLOAT))
                if g.rng.random() < 0.5:
                    return g.op("Div", g.op("MatMul", q, k_t), root)
                factor = g.op("Sqrt", g.op("Div", g.const(np.array([1.0])), root))
                return g.op("MatMul", g.op("Mul", q, factor), g.op("Mul", k_t, factor))
            case "none":
                return g.op("MatMul", q, k_t)
        raise ValueError(self.style.scale)

    def softmax(self, scores: ir.Value, axis: int = -1) -> ir.Value:
        """Softmax; with the style's guard, rows that are NaN (all masked) become zero."""
        g = self.g
        probs = g.softmax(scores, axis)
        if self.style.guard:
            probs = g.op("Where", g.op("IsNaN", probs), g.const(0.0), probs)
        return self.noise(probs)

    def attend(
        self, q: ir.Value, k: ir.Value, v: ir.Value, dim: int, *, bias: ir.Value | None = None, allowed: ir.Value | None = None
    ) -> ir.Value:
        """softmax(q k^T scale + bias) v on [B,H,S,d].

        Args:
            q: queries [B,H,S,d].
            k: keys [B,H,T,d].
            v: values [B,H,T,dv].
            dim: the d of the scale.
            bias: added to the scores, broadcast to [B,H,S,T].
            allowed: bool, broadcast to [B,H,S,T]; False becomes -inf by Where.
        """
        g = self.g
        scores = self._scaled(self.noise(q), g.transpose(k, 0, 1, 3, 2), dim)
        if bias is not None:
            scores = g.op("Add", scores, bias)
        if allowed is not None:
            scores = g.op("Where", allowed, scores, g.const(-np.inf))
        return g.op("MatMul", self.softmax(scores), v)

    def record_attention(
        self,
        params: Mapping[str, str],
        heads: int,
        dim: int,
        *,
        value_dim: int | None = None,
        frozen: Sequence[str] = (),
        unsure: Sequence[str] = (),
    ) -> None:
        """Note an MSA of ``heads`` key/value heads."""
        sizes = {"head": heads, "qk": dim, "vo": value_dim or dim}
        self.record("msa", {role: f"{name}.weight" for role, name in params.items()}, sizes, frozen=frozen, unsure=unsure)

    def attention(
        self,
        x: ir.Value,
        names: Sequence[str],
        width: int,
        heads: int,
        *,
        dim: int | None = None,
        memory: ir.Value | None = None,
        values: ir.Value | None = None,
        bias: ir.Value | None = None,
        allowed: ir.Value | None = None,
        proj_bias: bool = True,
        memory_width: int | None = None,
        frozen: Sequence[str] = (),
        unsure: Sequence[str] = (),
    ) -> ir.Value:
        """Attention with four matrices.

        Args:
            x: [B,S,E], source of the queries.
            names: parameter prefixes of q, k, v, o.
            width: E.
            heads: H.
            dim: d; E/H unless told.
            memory: source of the keys; ``x`` unless told.
            values: source of the values; the source of the keys unless told.
            bias: see :meth:`attend`.
            allowed: see :meth:`attend`.
            proj_bias: whether the four layers have biases.
            memory_width: width of ``memory`` and ``values``.
            frozen: factors to be recorded frozen.
            unsure: factors to be recorded unsure.
        """
        g = self.g
        dim = dim or width // heads
        memory = x if memory is None else memory
        values = memory if values is None else values
        source = memory_width or width
        inner = heads * dim
        q = g.linear(x, names[0], width, inner, bias=proj_bias)
        k = g.linear(memory, names[1], source, inner, bias=proj_bias)
        v = g.linear(values, names[2], source, inner, bias=proj_bias)
        out = self.core(q, k, v, heads, dim, bias=bias, allowed=allowed)
        y = g.linear(out, names[3], inner, width, bias=proj_bias)
        self.record_attention(dict(zip("qkvo", names, strict=True)), heads, dim, frozen=frozen, unsure=unsure)
        return self.noise(y)

    def core(
        self,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        heads: int,
        dim: int,
        *,
        bias: ir.Value | None = None,
        allowed: ir.Value | None = None,
    ) -> ir.Value:
        """From projections [B,S,H*d] to the joined heads [B,S,H*d]."""
        g = self.g
        queries = self.split_heads(q, heads, dim)
        if self.style.direct:
            keys_t = g.transpose(self.view_heads(k, heads, dim), 0, 2, 3, 1)
            scores = self._scaled(queries, keys_t, dim)
            if bias is not None:
                scores = g.op("Add", scores, bias)
            if allowed is not None:
                scores = g.op("Where", allowed, scores, g.const(-np.inf))
            out = g.op("MatMul", self.softmax(scores), self.split_heads(v, heads, dim))
        else:
            keys, vals = self.split_heads(k, heads, dim), self.split_heads(v, heads, dim)
            out = self.attend(queries, keys, vals, dim, bias=bias, allowed=allowed)
        return self.merge_heads(out, heads, dim)

    # ---- masks ------------------------------------------------------------------------------------------------------
    def additive_mask(self, mask: ir.Value, low: float = -10000.0) -> ir.Value:
        """int64 mask [B,S] (1 = token) -> float [B,1,1,S], 0 or ``low``."""
        g = self.g
        wide = g.cast(g.unsqueeze(mask, [1, 2]), ir.DataType.FLOAT)
        if math.isinf(low):
            keep = g.cast(wide, ir.DataType.BOOL)
            return g.op("Where", keep, g.const(0.0), g.const(low))
        return g.op("Mul", g.op("Sub", g.const(1.0), wide), g.const(low))

    def bool_mask(self, mask: ir.Value) -> ir.Value:
        """int64 mask [B,S] -> bool [B,1,1,S], True = token."""
        return self.g.cast(self.g.unsqueeze(mask, [1, 2]), ir.DataType.BOOL)
