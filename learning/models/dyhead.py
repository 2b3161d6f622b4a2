"""A block of GLIP's dynamic head (Dai et al., 2021): scale-aware, spatial-aware and task-aware attention over a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.models.attention import parts
from inarch.learning.models.deform_conv import TAPS, DeformConv


def hard_sigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6."""
    return F.relu6(x + 3) / 6


class NormedConv(nn.Module):
    """A deformable convolution and its group norm."""

    def __init__(self, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = DeformConv(channels, stride)
        self.bn = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """See :func:`inarch.learning.models.deform_conv.sampled`."""
        out: Tensor = self.bn(self.conv(x, offset, mask))
        return out


class DynamicRelu(nn.Module):
    """The larger of two lines, whose slopes and offsets are computed channel by channel from the whole map.

    Args:
        channels: C.
        reduction: of the channels in between.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction), nn.ReLU(), nn.Linear(channels // reduction, 4 * channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w]."""
        theta = hard_sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]
        slope, offset, other_slope, other_offset = parts(theta, 4, 1)
        first = x * (2 * (slope - 0.5) + 1) + (offset - 0.5)
        second = x * (2 * (other_slope - 0.5)) + (other_offset - 0.5)
        return torch.maximum(first, second)


class DyConv(nn.Module):
    """Each level takes from itself, from the finer and from the coarser level, where its own offsets say.

    The coarser level is read with the offsets of the finer one as they lie in memory: of each image's offsets the first that fit,
    row by row. That is how the released models were trained, so it is done here too.

    Args:
        channels: C.
        groups: of the norms.
        reduction: of the dynamic ReLU.
    """

    def __init__(self, channels: int, groups: int, reduction: int) -> None:
        super().__init__()
        self.DyConv = nn.ModuleList(NormedConv(channels, stride, groups) for stride in (1, 1, 2))
        self.AttnConv = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1, 1), nn.ReLU())
        self.relu = DynamicRelu(channels, reduction)
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        for parameter in self.offset.parameters():
            nn.init.normal_(parameter, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C, h, w], finest first, to as many of the same sizes."""
        coarser, same, finer = self.DyConv
        results = []
        for level, x in enumerate(maps):
            places = self.offset(x)
            offset, mask = places[:, : 2 * TAPS], places[:, 2 * TAPS :].sigmoid()
            terms = [same(x, offset, mask)]
            if level:
                terms.append(finer(maps[level - 1], offset, mask))
            if level + 1 < len(maps):
                above = maps[level + 1]
                term = coarser(above, _as_it_lies(offset, above), _as_it_lies(mask, above))
                terms.append(F.interpolate(term, size=x.shape[-2:], mode="bilinear", align_corners=True))
            weighed = [term * hard_sigmoid(self.AttnConv(term)) for term in terms]
            results.append(self.relu(torch.stack(weighed).mean(0)))
        return results


def _as_it_lies(x: Tensor, like: Tensor) -> Tensor:
    """The first entries of x [B, K, H, W] in each image's memory, as [B, K, h, w] of ``like`` [B, C, h, w]."""
    channels, (height, width) = x.shape[1], like.shape[-2:]
    return torch.unflatten(x.flatten(1)[:, : channels * height * width], 1, (channels, height, width))
