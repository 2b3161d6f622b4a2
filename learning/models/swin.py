"""Swin transformer for images of any size, with the released key names.

Maps are filled up to whole windows at the bottom and the right on every call, so that an exported graph has one path.
Shapes: B batch, H x W cells, C width, w window, N = w * w cells of a window, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.models.attention import join_heads, parts, split_heads
from inarch.learning.models.glip_config import SwinConfig
from inarch.learning.models.vit import Mlp

MASKED = -100.0
"""What is added between cells that lie side by side only because the map was shifted."""


def relative_index(window: int) -> Tensor:
    """Row of the position-bias table for each pair of a window's cells, [N, N]."""
    cells = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    apart = (cells[:, :, None] - cells[:, None, :]) + (window - 1)
    return apart[0] * (2 * window - 1) + apart[1]


def rolled(x: Tensor, by: int) -> Tensor:
    """x [B, H, W, C] moved up and left by ``by`` cells (or back, where negative); what leaves comes in on the other side."""
    x = torch.cat((x[:, by:], x[:, :by]), 1)
    return torch.cat((x[:, :, by:], x[:, :, :by]), 2)


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position.

    Args:
        width: C.
        heads: h.
        window: w.
    """

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_index(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows.

        Args:
            x: [B * windows, N, C].
            mask: [windows, N, N], or None.
        """
        cells = x.shape[-2]
        q, k, v = (split_heads(part, self.heads) for part in parts(self.qkv(x), 3, -1))
        index = self.relative_position_index.flatten()
        bias = torch.unflatten(self.relative_position_bias_table[index], 0, (cells, cells)).permute(2, 0, 1)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
        if mask is not None:
            scores = (torch.unflatten(scores, 0, (-1, mask.shape[0])) + mask[:, None]).flatten(0, 1)
        out: Tensor = self.proj(join_heads(scores.softmax(-1) @ v))
        return out


class SwinBlock(nn.Module):
    """x + window attention(norm(x)), then x + mlp(norm(x)); the windows of odd blocks are shifted by half a window."""

    def __init__(self, width: int, heads: int, window: int, shift: int, hidden: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)

    def windows(self, x: Tensor, down: int, across: int) -> Tensor:
        """[B, down * w, across * w, C] -> [B * down * across, N, C]."""
        batch, channels = x.shape[0], x.shape[3]
        w = self.window
        x = x.reshape(batch, down, w, across, w, channels).transpose(2, 3)
        return x.reshape(batch * down * across, w * w, channels)

    def unwindowed(self, x: Tensor, batch: int, down: int, across: int) -> Tensor:
        """[B * down * across, N, C] -> [B, down * w, across * w, C]."""
        channels = x.shape[-1]
        w = self.window
        x = x.reshape(batch, down, across, w, w, channels).transpose(2, 3)
        return x.reshape(batch, down * w, across * w, channels)

    def regions(self, down: int, across: int, like: Tensor) -> Tensor:
        """The mask [windows, N, N] of a shifted map: cells of different regions do not see each other."""

        def region(count: int) -> Tensor:
            place = torch.arange(count * self.window, device=like.device)
            last = (count - 1) * self.window
            return (place >= last).to(like.dtype) + (place >= last + self.window - self.shift).to(like.dtype)

        numbers = 3 * region(down)[:, None] + region(across)[None, :]
        own = self.windows(numbers[None, :, :, None], down, across)[:, :, 0]
        return (own[:, :, None] != own[:, None, :]).to(like.dtype) * MASKED

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, W, C]."""
        batch, height, width, _ = x.shape
        w = self.window
        down, across = (height + w - 1) // w, (width + w - 1) // w
        y = F.pad(self.norm1(x), (0, 0, 0, across * w - width, 0, down * w - height))
        mask = None
        if self.shift:
            y = rolled(y, self.shift)
            mask = self.regions(down, across, y)
        y = self.unwindowed(self.attn(self.windows(y, down, across), mask), batch, down, across)
        if self.shift:
            y = rolled(y, -self.shift)
        x = x + y[:, :height, :width]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchMerging(nn.Module):
    """Four cells to one of twice the width; an odd edge is filled with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ceil(H / 2), ceil(W / 2), 2 C] from x [B, H, W, C]; cells in the order (row, column) 00, 10, 01, 11."""
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return out


class Stage(nn.Module):
    """Blocks of one width, and the merging of patches behind them."""

    def __init__(self, config: SwinConfig, number: int) -> None:
        super().__init__()
        width, heads = config.width << number, config.heads[number]
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, config.window, config.window // 2 if block % 2 else 0, config.ratio * width)
            for block in range(config.layers[number])
        )
        self.downsample = PatchMerging(width) if number < 3 else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, W, C], through the blocks alone."""
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels, normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, H / 4, W / 4, C] from pixels [B, 3, H, W]."""
        out: Tensor = self.norm(self.proj(pixels).permute(0, 2, 3, 1))
        return out


class Swin(nn.Module):
    """A Swin backbone: maps at strides 8, 16 and 32, each behind a norm of its own."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.channels: tuple[int, ...] = config.channels
        self.patch_embed = PatchEmbed(config.width)
        self.layers = nn.ModuleList(Stage(config, number) for number in range(4))
        for number, channels in enumerate(config.channels, 1):
            self.add_module(f"norm{number}", nn.LayerNorm(channels))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Maps [B, channels, H / s, W / s] for s = 8, 16, 32 of pixels [B, 3, H, W]; H and W are multiples of 32."""
        x = self.patch_embed(pixels)
        maps = []
        for number, stage in enumerate(self.layers):
            x = stage(x)
            if number:
                maps.append(self.get_submodule(f"norm{number}")(x).permute(0, 3, 1, 2))
            if number < 3:
                x = stage.get_submodule("downsample")(x)
        return maps
