"""Modulated deformable convolution (DCNv2, 3 x 3): each tap reads at a place, and with a weight, that the image decides.

    out[n, o, i, j] = bias[o] + sum over c, taps k of weight[o, c, k] * mask[n, k, i, j] * x[n, c] at (y, z)
    y = i * stride - 1 + row(k) + offset[n, 2 k, i, j],   z = j * stride - 1 + column(k) + offset[n, 2 k + 1, i, j]

where x between cells is bilinear, and zero outside (Zhu et al., 2019; ONNX's DeformConv-19 is the same function). Torch has no
such operator: here it is made of ``grid_sample``, which torch differentiates. For an export it can be one node instead,
DeformConv, which ONNX Runtime has on CPU since 1.25; older ones run the ``grid_sample`` form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 9

_as_operator: ContextVar[bool] = ContextVar("as_operator", default=False)


@contextmanager
def as_operator() -> Iterator[None]:
    """Inside, deformable convolutions are one operator each, ``inarch::deform_conv``, which :func:`translations` exports."""
    token = _as_operator.set(True)
    try:
        yield
    finally:
        _as_operator.reset(token)


def sampled(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """The convolution made of ``grid_sample``.

    Args:
        x: [B, C, H, W].
        offset: [B, 18, h, w], row and column of each tap.
        mask: [B, 9, h, w].
        weight: [O, C, 3, 3].
        bias: [O].
        stride: cells of x a cell of the result.

    Returns:
        [B, O, h, w].
    """
    height, width = offset.shape[-2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype) * stride - 1
    columns = torch.arange(width, device=x.device, dtype=x.dtype) * stride - 1
    tap = torch.arange(TAPS, device=x.device)
    moved = torch.unflatten(offset, 1, (TAPS, 2))
    y = rows[:, None] + (tap // 3).to(x.dtype)[:, None, None] + moved[:, :, 0]
    z = columns[None, :] + (tap % 3).to(x.dtype)[:, None, None] + moved[:, :, 1]
    # grid_sample counts from -1 to 1 between the outer edges of the first and the last cell.
    grid = torch.stack(((2 * z + 1) / x.shape[3] - 1, (2 * y + 1) / x.shape[2] - 1), -1)
    read = F.grid_sample(x, grid.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False)
    read = torch.unflatten(read, 2, (TAPS, height)) * mask[:, None]
    columns_of = read.flatten(1, 2).flatten(2)  # [B, C * 9, h * w]
    out = weight.flatten(1) @ columns_of + bias[:, None]
    return torch.unflatten(out, 2, (height, width))


@torch.library.custom_op("inarch::deform_conv", mutates_args=())
def deform_conv_op(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """:func:`sampled` as one operator."""
    return sampled(x, offset, mask, weight, bias, stride)


@deform_conv_op.register_fake
def _shape(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], offset.shape[2], offset.shape[3]))


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """The convolution, in the form that is asked for (see :func:`as_operator`); arguments as :func:`sampled`."""
    if _as_operator.get():
        result: Tensor = deform_conv_op(x, offset, mask, weight, bias, stride)
        return result
    return sampled(x, offset, mask, weight, bias, stride)


def translations() -> Mapping[Any, Callable[..., Any]]:
    """How torch's exporter writes the operator: DeformConv of opset 19. For ``custom_translation_table``."""
    from onnxscript import opset19

    def translate(x: Any, offset: Any, mask: Any, weight: Any, bias: Any, stride: int) -> Any:
        return opset19.DeformConv(
            x, weight, offset, bias, mask, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride], dilations=[1, 1]
        )

    return {torch.ops.inarch.deform_conv.default: translate}


class DeformConv(nn.Module):
    """A deformable convolution's weight and bias.

    Args:
        channels: in and out.
        stride: of the convolution.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """See :func:`sampled`."""
        return deform_conv(x, offset, mask, self.weight, self.bias, self.stride)
