"""ResNet as torchvision's detection models use it, frozen batch norms and all, with the released key names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inarch.learning.models.parts_config import ResNetConfig


class FrozenBatchNorm(nn.Module):
    """A batch norm whose statistics and affine parameters are constants (buffers, not parameters)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        for name, start in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w], scaled and shifted channel by channel."""
        scale = self.weight * (self.running_var + self.epsilon).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, and the way around them.

    Args:
        kind: ``basic`` or ``bottleneck``.
        inputs: channels that come in.
        width: channels of the 3x3 convolution; a bottleneck puts out four times as many.
        stride: of its first 3x3 convolution.
    """

    def __init__(self, kind: str, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        basic = kind == "basic"
        outputs = width if basic else 4 * width
        # Kernel, channels out, stride of each convolution.
        plan = [(3, width, stride), (3, width, 1)] if basic else [(1, width, 1), (3, width, stride), (1, outputs, 1)]
        channels = inputs
        for number, (kernel, out, step) in enumerate(plan, 1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, out, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{number}", FrozenBatchNorm(out))
            channels = out
        self.depth = len(plan)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenBatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, h / stride, w / stride] from x [B, inputs, h, w]."""
        y = x
        for number in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
            if number < self.depth:
                y = y.relu()
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """A ResNet without its classifier."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.stem, 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm(config.stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, growth = config.stem, 1 if config.block == "basic" else 4
        for stage, blocks in enumerate(config.stages):
            width = config.stem << stage
            layer = nn.Sequential()
            for number in range(blocks):
                layer.append(Block(config.block, channels, width, 2 if stage and not number else 1))
                channels = width * growth
            self.add_module(f"layer{stage + 1}", layer)

    def forward(self, pixels: Tensor) -> Tensor:
        """The last feature map [B, channels, ceil(H / 32), ceil(W / 32)] of pixels [B, 3, H, W]."""
        x: Tensor = self.maxpool(self.bn1(self.conv1(pixels)).relu())
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x
