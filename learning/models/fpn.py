"""Feature pyramids: GLIP's FPN, and a ViT's one map made into three."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.models.parts_config import VitConfig
from inarch.learning.models.vit import Vit


class TopBlocks(nn.Module):
    """Coarser maps from the coarsest: P6 = conv(P5), P7 = conv(relu(P6)), each with stride 2."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        for number in range(count):
            self.add_module(f"p{6 + number}", nn.Conv2d(width, width, 3, 2, 1))

    def forward(self, coarsest: Tensor) -> list[Tensor]:
        """The further maps of ``coarsest`` [B, C, h, w]."""
        maps: list[Tensor] = []
        for number in range(self.count):
            x = coarsest if not maps else maps[-1].relu()
            maps.append(self.get_submodule(f"p{6 + number}")(x))
        return maps


class Fpn(nn.Module):
    """Three maps to one width, coarse added to fine (nearest neighbour), and coarser ones on top.

    Args:
        channels: of the maps at strides 8, 16 and 32.
        width: of all results.
        levels: maps that come out, 3 to 5.
    """

    def __init__(self, channels: Sequence[int], width: int, levels: int) -> None:
        super().__init__()
        for number, count in enumerate(channels, 2):
            self.add_module(f"fpn_inner{number}", nn.Conv2d(count, width, 1))
            self.add_module(f"fpn_layer{number}", nn.Conv2d(width, width, 3, padding=1))
        self.top_blocks = TopBlocks(width, levels - 3)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B, width, h, w] for each level, finest first."""
        above: Tensor | None = None
        results: list[Tensor] = []
        for number in (4, 3, 2):
            inner = self.get_submodule(f"fpn_inner{number}")(maps[number - 2])
            if above is not None:
                inner = inner + F.interpolate(above, size=inner.shape[-2:], mode="nearest")
            above = inner
            results.insert(0, self.get_submodule(f"fpn_layer{number}")(inner))
        return [*results, *self.top_blocks(results[-1])]


class VitPyramid(nn.Module):
    """A ViT and, from its one map, maps at strides 8, 16 and 32: finer by transposed convolutions, coarser by pooling."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.vit = Vit(config)
        self.steps = [config.patch // stride if stride <= config.patch else -(stride // config.patch) for stride in (8, 16, 32)]
        for number, step in enumerate(self.steps):
            if step > 1:
                self.add_module(f"up{number}", nn.ConvTranspose2d(config.width, config.width // 2, step, step))
        self.channels: tuple[int, ...] = tuple(config.width // 2 if step > 1 else config.width for step in self.steps)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Maps [B, channels, H / s, W / s] for s = 8, 16, 32 of pixels [B, 3, H, W]."""
        x = self.vit(pixels)
        maps = []
        for number, step in enumerate(self.steps):
            if step > 1:
                maps.append(self.get_submodule(f"up{number}")(x))
            else:
                maps.append(F.max_pool2d(x, -step, -step) if step < 0 else x)
        return maps
