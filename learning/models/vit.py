"""A vision transformer as a backbone: pre-norm, class token, learned positions that are interpolated to the image's size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.models.attention import attend
from inarch.learning.models.parts_config import VitConfig


class SelfAttention(nn.Module):
    """Self-attention with separate projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] from x [B, N, C]."""
        out: Tensor = self.proj(attend(self.query(x), self.key(x), self.value(x), self.heads))
        return out


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class VitLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.epsilon)
        self.attn = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, config.epsilon)
        self.mlp = Mlp(config.width, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, C]."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Vit(nn.Module):
    """A ViT without its classifier."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.side = config.image // config.patch
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2 + 1, config.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.layers = nn.ModuleList(VitLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.epsilon)

    def positions(self, height: int, width: int) -> Tensor:
        """The position table [1, height * width, C] for a grid of patches."""
        table = torch.unflatten(self.pos_embed[:, 1:], 1, (self.side, self.side)).permute(0, 3, 1, 2)
        return F.interpolate(table, size=(height, width), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """The feature map [B, C, H / patch, W / patch] of pixels [B, 3, H, W]."""
        x = self.patch_embed(pixels)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.positions(height, width)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat((first, x), 1)
        for layer in self.layers:
            x = layer(x)
        return torch.unflatten(self.norm(x)[:, 1:].transpose(1, 2), 2, (height, width))
