"""DETR's encoder and decoder as MDETR uses them: post-norm, positions added to queries and keys, text and image in one sequence.

Shapes: B batch, S image and text tokens, Q object queries, C width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.models.attention import Attention
from inarch.learning.models.mdetr_config import MdetrConfig


class EncoderLayer(nn.Module):
    """Self-attention and FFN, each followed by a norm."""

    def __init__(self, config: MdetrConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads, config.dropout)
        self.linear1 = nn.Linear(config.width, config.hidden)
        self.linear2 = nn.Linear(config.hidden, config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, places: Tensor, bias: Tensor) -> Tensor:
        """x, places [B, S, C]; bias [B, 1, 1, S]."""
        placed = x + places
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x, bias)))
        hidden = self.dropout(F.relu(self.linear1(x)))
        out: Tensor = self.norm2(x + self.dropout(self.linear2(hidden)))
        return out


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to image and text, FFN, each followed by a norm."""

    def __init__(self, config: MdetrConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads, config.dropout)
        self.cross_attn_image = Attention(config.width, config.heads, config.dropout)
        self.linear1 = nn.Linear(config.width, config.hidden)
        self.linear2 = nn.Linear(config.hidden, config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm3 = nn.LayerNorm(config.width)
        self.norm4 = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, placed: Tensor, bias: Tensor) -> Tensor:
        """x, queries [B, Q, C]; memory and memory with its places [B, S, C]; bias [B, 1, 1, S]."""
        asked = x + queries
        x = self.norm1(x + self.dropout(self.self_attn(asked, asked, x)))
        x = self.norm3(x + self.dropout(self.cross_attn_image(x + queries, placed, memory, bias)))
        hidden = self.dropout(F.relu(self.linear1(x)))
        out: Tensor = self.norm4(x + self.dropout(self.linear2(hidden)))
        return out


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer`, without a norm behind it."""

    def __init__(self, config: MdetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, x: Tensor, places: Tensor, bias: Tensor) -> Tensor:
        """As a layer."""
        for layer in self.layers:
            x = layer(x, places, bias)
        return x


class Decoder(nn.Module):
    """A stack of :class:`DecoderLayer`; one norm serves the outputs of all."""

    def __init__(self, config: MdetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, queries: Tensor, memory: Tensor, places: Tensor, bias: Tensor) -> list[Tensor]:
        """The normalised output [B, Q, C] of every layer; the first starts from zeros."""
        x, placed = torch.zeros_like(queries), memory + places
        outputs = []
        for layer in self.layers:
            x = layer(x, queries, memory, placed, bias)
            outputs.append(self.norm(x))
        return outputs


class Resizer(nn.Module):
    """Text features to the encoder's width: linear, norm, dropout."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)
        self.layer_norm = nn.LayerNorm(outputs, 1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., outputs] from x [..., inputs]."""
        out: Tensor = self.dropout(self.layer_norm(self.fc(x)))
        return out


class Mlp(nn.Module):
    """Linear layers with ReLU between them (DETR's box head)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """[..., outputs] from x [..., inputs]."""
        for number, layer in enumerate(self.layers):
            x = layer(x if not number else F.relu(x))
        return x
