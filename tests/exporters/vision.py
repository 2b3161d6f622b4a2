"""Vision transformers as timm and Swin write them: packed qkv, windows with a table of relative positions."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """qkv in one matrix: reshape, permute, unbind; explicit or by scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, C]."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return cast(Tensor, self.proj(x.transpose(1, 2).reshape(b, n, c)))


class Mlp(nn.Module):
    """fc1, GELU, fc2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C]."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """Pre-norm with LayerScale."""

    def __init__(self, width: int, heads: int, hidden: int, *, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, fused=fused)
        self.mlp = Mlp(width, hidden)
        self.gamma1 = nn.Parameter(torch.full((width,), 0.5))
        self.gamma2 = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, C]."""
        x = x + self.gamma1 * self.attn(self.norm1(x))
        return x + self.gamma2 * cast(Tensor, self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Patches, a class token, two blocks, a norm."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 64, *, fused: bool) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, fused=fused) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, 16, 16]."""
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x))


class WindowAttention(nn.Module):
    """Attention inside windows, with the bias of each head gathered from a table [(2w-1)^2, heads]."""

    relative_position_index: Tensor

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.5)
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("relative_position_index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [windows * B, N, C]; mask [windows, N, N]."""
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (c // self.heads) ** -0.5, qkv[1], qkv[2]
        scores = q @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        scores = scores + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            scores = scores.view(b // windows, windows, self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, n, n)
        x = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c)
        return cast(Tensor, self.proj(x))


class SwinBlock(nn.Module):
    """Windows of a map, shifted in every second block."""

    mask: Tensor | None

    def __init__(self, width: int, side: int, window: int, heads: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, window, heads)
        self.mlp = Mlp(width, 2 * width)
        mask = None
        if shift:
            regions = torch.zeros(1, side, side, 1)
            cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
            for i, rows in enumerate(cuts):
                for j, columns in enumerate(cuts):
                    regions[:, rows, columns] = 3 * i + j
            own = self.windows(regions).squeeze(-1)
            mask = (own.unsqueeze(1) != own.unsqueeze(2)).float() * -100.0
        self.register_buffer("mask", mask)

    def windows(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [windows * B, w * w, C]."""
        b, h, w, c = x.shape
        size = self.window
        x = x.view(b, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, size * size, c)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H * W, C]."""
        b, _, c = x.shape
        side, size = self.side, self.window
        y = self.norm1(x).view(b, side, side, c)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self.attn(self.windows(y), self.mask)
        y = y.view(-1, side // size, side // size, size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(b, side, side, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y.reshape(b, side * side, c)
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class Swin(nn.Module):
    """Two blocks of windows on a map of 8 x 8."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList(SwinBlock(width, 8, 4, heads, shift) for shift in (0, 2))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, 32, 32]."""
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x))


class AnySwinBlock(SwinBlock):
    """Windows of a map of any size: it is filled up to whole windows, and the mask of shifted ones is computed."""

    def __init__(self, width: int, window: int, heads: int, shift: int) -> None:
        super().__init__(width, 2 * window, window, heads, shift)
        self.mask = None

    def regions(self, x: Tensor) -> Tensor:
        """Mask [windows, N, N] of what was not side by side before the shift of a map [B, H, W, C]."""

        def number(size: int) -> Tensor:
            places = torch.arange(size, device=x.device)
            return (places >= size - self.window).long() + (places >= size - self.shift).long()

        numbers = number(x.shape[1])[:, None] * 3 + number(x.shape[2])[None, :]
        own = self.windows(numbers.float()[None, :, :, None]).squeeze(-1)
        return (own.unsqueeze(1) != own.unsqueeze(2)).float() * -100.0

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x [B, H * W, C] of a map of H x W."""
        assert size is not None
        b, _, c = x.shape
        (height, width), window = size, self.window
        y = self.norm1(x).view(b, height, width, c)
        y = F.pad(y, (0, 0, 0, (window - width % window) % window, 0, (window - height % window) % window))
        _, rows, columns, _ = y.shape
        mask = None
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
            mask = self.regions(y)
        y = self.attn(self.windows(y), mask)
        y = y.view(-1, rows // window, columns // window, window, window, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, rows, columns, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y[:, :height, :width].reshape(b, height * width, c)
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class AnySwin(nn.Module):
    """Two blocks of windows on images of any size, as GLIP's backbone sees them."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList(AnySwinBlock(width, 4, heads, shift) for shift in (0, 2))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, 4 * H, 4 * W]."""
        x = self.patch_embed(pixels)
        size = x.shape[2], x.shape[3]
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, size)
        return cast(Tensor, self.norm(x))


class Chunked(nn.Module):
    """Everything packed and cut by ``chunk``: q, k and v, gate and up."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, S, C]; mask [B, S], True on padding."""
        b, n, c = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.view(b, n, self.heads, c // self.heads).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=~mask[:, None, None, :])
        x = x + self.proj(seen.transpose(1, 2).reshape(b, n, c))
        gate, up = self.w12(self.norm2(x)).chunk(2, dim=-1)
        return x + cast(Tensor, self.w3(F.silu(gate) * up))
