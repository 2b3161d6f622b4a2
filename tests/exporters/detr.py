"""A DETR-style encoder-decoder of nn.MultiheadAttention, and stacks of torch's own transformer layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class EncoderLayer(nn.Module):
    """Post-norm: q = k = x + pos, v = x."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """x, pos [S, B, C]; mask [B, S], True on padding."""
        q = k = x + pos
        x = self.norm1(x + self.dropout(self.self_attn(q, k, value=x, key_padding_mask=mask)[0]))
        return cast(Tensor, self.norm2(x + self.dropout(self.linear2(self.dropout(torch.relu(self.linear1(x)))))))


class DecoderLayer(nn.Module):
    """Self-attention q = k = x + query_pos, then cross-attention with k = memory + pos, v = memory."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.cross_attn_image = nn.MultiheadAttention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, pos: Tensor, query_pos: Tensor, mask: Tensor) -> Tensor:
        """x, query_pos [Q, B, C]; memory, pos [S, B, C]; mask [B, S], True on padding."""
        q = k = x + query_pos
        x = self.norm1(x + self.self_attn(q, k, value=x)[0])
        crossed = self.cross_attn_image(x + query_pos, memory + pos, value=memory, key_padding_mask=mask)[0]
        x = self.norm3(x + crossed)
        return cast(Tensor, self.norm4(x + self.linear2(torch.relu(self.linear1(x)))))


class Detr(nn.Module):
    """Features and their mask in, the decoder's result for every query out."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 64, layers: int = 2, queries: int = 6) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.query_embed = nn.Embedding(queries, width)
        self.class_embed = nn.Linear(width, 7)
        # A box head is a chain of products with activations between, and no FFN: nothing is added to what it read.
        self.bbox_embed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, features: Tensor, pos: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """features, pos [B, S, C]; mask [B, S], True on padding."""
        memory, place = features.transpose(0, 1), pos.transpose(0, 1)
        for layer in self.encoder:
            memory = layer(memory, place, mask)
        query_pos = self.query_embed.weight.unsqueeze(1).repeat(1, features.shape[0], 1)
        x = torch.zeros_like(query_pos)
        for layer in self.decoder:
            x = layer(x, memory, place, query_pos, mask)
        x = self.norm(x).transpose(0, 1)
        return self.class_embed(x), self.bbox_embed(x).sigmoid()


class TorchLayers(nn.Module):
    """nn.TransformerEncoder and nn.TransformerDecoder, batch first."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 64, *, norm_first: bool, activation: str) -> None:
        super().__init__()
        options: dict[str, Any] = {"norm_first": norm_first, "activation": activation, "batch_first": True, "dropout": 0.0}
        encoder = nn.TransformerEncoderLayer(width, heads, hidden, **options)
        decoder = nn.TransformerDecoderLayer(width, heads, hidden, **options)
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, 2)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """x [B, S, C]; y [B, T, C]; mask [B, S], True on padding."""
        memory = self.encoder(x, src_key_padding_mask=mask)
        return cast(Tensor, self.decoder(y, memory, memory_key_padding_mask=mask))


class MultiheadBlock(nn.Module):
    """One pre-norm block around nn.MultiheadAttention(batch_first=True), its weights asked for or not."""

    def __init__(self, width: int = 32, heads: int = 4, *, weights: bool, batch_first: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        self.weights = weights

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, S, C]; mask [B, S], True on padding."""
        y = self.norm(x)
        return x + cast(Tensor, self.attn(y, y, y, key_padding_mask=mask, need_weights=self.weights)[0])


class Fusion(nn.Module):
    """Two streams that attend to each other through one product of scores, as GLIP's fusion layers do."""

    def __init__(self, visual: int = 32, text: int = 24, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm_v, self.norm_l = nn.LayerNorm(visual), nn.LayerNorm(text)
        self.v_proj, self.l_proj = nn.Linear(visual, width), nn.Linear(text, width)
        self.values_v_proj, self.values_l_proj = nn.Linear(visual, width), nn.Linear(text, width)
        self.out_v_proj, self.out_l_proj = nn.Linear(width, visual), nn.Linear(width, text)
        self.gamma_v, self.gamma_l = nn.Parameter(torch.full((visual,), 0.5)), nn.Parameter(torch.full((text,), 0.5))

    def split(self, x: Tensor) -> Tensor:
        """[B, N, heads * size] -> [B * heads, N, size]."""
        b, n, _ = x.shape
        return x.view(b, n, self.heads, self.size).transpose(1, 2).reshape(b * self.heads, n, self.size)

    def join(self, x: Tensor, batch: int) -> Tensor:
        """[B * heads, N, size] -> [B, N, heads * size]."""
        n = x.shape[1]
        return x.view(batch, self.heads, n, self.size).transpose(1, 2).reshape(batch, n, self.heads * self.size)

    def forward(self, visual: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """visual [B, N, V]; text [B, T, L]; mask [B, T], True on words."""
        b, n, _ = visual.shape
        v, w = self.norm_v(visual), self.norm_l(text)
        scores = torch.bmm(self.split(self.v_proj(v) * self.size**-0.5), self.split(self.l_proj(w)).transpose(1, 2))
        scores = scores.clamp(-50000, 50000)
        turned = scores.transpose(1, 2)
        turned = (turned - turned.max(dim=-1, keepdim=True)[0]).clamp(-50000, 50000)
        hidden = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -9e15)[:, None, None, :]
        masked = scores.view(b, self.heads, n, -1) + hidden
        to_v = torch.bmm(masked.view(b * self.heads, n, -1).softmax(dim=-1), self.split(self.values_l_proj(w)))
        to_l = torch.bmm(turned.softmax(dim=-1), self.split(self.values_v_proj(v)))
        visual = v + self.gamma_v * self.out_v_proj(self.join(to_v, b))
        text = w + self.gamma_l * self.out_l_proj(self.join(to_l, b))
        return visual, text
