"""GLIP's deep fusion: attention in both directions at once, and a BERT layer for the text.

Shapes: B batch, N visual tokens, T text tokens, V and L their widths, E width of the attention, H heads, D = E / H.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.models.attention import join_heads, padding_bias, split_heads

LIMIT = 50_000.0
"""Scores and hidden values are kept within plus and minus this, so that half precision does not overflow."""


def bounded(x: Tensor) -> Tensor:
    """x within :data:`LIMIT`."""
    return x.clamp(-LIMIT, LIMIT)


class BiAttention(nn.Module):
    """One product of scores, read along its rows for the image and along its columns for the text.

    Args:
        vision: V.
        text: L.
        width: E.
        heads: H.
    """

    def __init__(self, vision: int, text: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.v_proj = nn.Linear(vision, width)
        self.l_proj = nn.Linear(text, width)
        self.values_v_proj = nn.Linear(vision, width)
        self.values_l_proj = nn.Linear(text, width)
        self.out_v_proj = nn.Linear(width, vision)
        self.out_l_proj = nn.Linear(width, text)
        for module in self.children():
            assert isinstance(module, nn.Linear)
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, v: Tensor, t: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """What each side takes from the other.

        Args:
            v: [B, N, V].
            t: [B, T, L].
            bias: [B, 1, 1, T], see :func:`padding_bias`.

        Returns:
            [B, N, V] and [B, T, L].
        """
        query, key = split_heads(self.v_proj(v) * self.scale, self.heads), split_heads(self.l_proj(t), self.heads)
        scores = bounded(query @ key.transpose(-1, -2))
        turned = scores.transpose(-1, -2)
        turned = bounded(turned - turned.amax(-1, keepdim=True))
        to_vision = (scores + bias).softmax(-1) @ split_heads(self.values_l_proj(t), self.heads)
        to_text = turned.softmax(-1) @ split_heads(self.values_v_proj(v), self.heads)
        return self.out_v_proj(join_heads(to_vision)), self.out_l_proj(join_heads(to_text))


class BiAttentionBlock(nn.Module):
    """v + gamma_v * taken from the text, t + gamma_l * taken from the image, both normalised first."""

    def __init__(self, vision: int, text: int, width: int, heads: int, start: float) -> None:
        super().__init__()
        self.layer_norm_v = nn.LayerNorm(vision)
        self.layer_norm_l = nn.LayerNorm(text)
        self.attn = BiAttention(vision, text, width, heads)
        self.gamma_v = nn.Parameter(torch.full((vision,), start))
        self.gamma_l = nn.Parameter(torch.full((text,), start))

    def forward(self, v: Tensor, t: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`BiAttention.forward`; the residual is the normalised side."""
        v, t = self.layer_norm_v(v), self.layer_norm_l(t)
        from_text, from_image = self.attn(v, t, bias)
        return v + self.gamma_v * from_text, t + self.gamma_l * from_image


class VlFuse(nn.Module):
    """The fusion of all levels' maps with the text.

    Args:
        vision: V.
        text: L.
        width: E.
        heads: H.
        start: first value of both gammas; the released models take 1 / blocks.
    """

    def __init__(self, vision: int, text: int, width: int, heads: int, start: float) -> None:
        super().__init__()
        self.b_attn = BiAttentionBlock(vision, text, width, heads, start)

    def forward(self, maps: list[Tensor], text: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps [B, V, h, w] a level and text [B, T, L], each with what it takes from the other; mask [B, T] bool."""
        flat = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        flat, text = self.b_attn(flat, text, padding_bias(mask, flat.dtype))
        results, start = [], 0
        for x in maps:
            height, width = x.shape[-2:]
            part = flat[:, start : start + height * width]
            results.append(torch.unflatten(part.transpose(1, 2), 2, (height, width)))
            start += height * width
        return results, text


class Named(nn.Module):
    """Submodules under the names that BERT's checkpoints have."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class BertLayer(nn.Module):
    """A BERT layer, its scores and hidden values bounded.

    Args:
        width: L.
        heads: of the attention.
        hidden: of the FFN.
        epsilon: of the norms.
    """

    def __init__(self, width: int, heads: int, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        projections = Named({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        output = Named({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, epsilon)})
        self.attention = Named({"self": projections, "output": output})
        self.intermediate = Named({"dense": nn.Linear(width, hidden)})
        self.output = Named({"dense": nn.Linear(hidden, width), "LayerNorm": nn.LayerNorm(width, epsilon)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, L], mask [B, T] bool."""
        apply = self.get_submodule
        q, k, v = (split_heads(apply(f"attention.self.{name}")(x), self.heads) for name in ("query", "key", "value"))
        scores = bounded((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)) + padding_bias(mask, x.dtype)
        taken = join_heads(scores.softmax(-1) @ v)
        x = apply("attention.output.LayerNorm")(x + apply("attention.output.dense")(taken))
        hidden = bounded(F.gelu(apply("intermediate.dense")(x)))
        out: Tensor = apply("output.LayerNorm")(x + apply("output.dense")(hidden))
        return out
