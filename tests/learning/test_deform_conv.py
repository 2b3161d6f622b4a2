"""Deformable convolution against loops written from its formula, and the dynamic head's way through a pyramid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import torch

from inarch.learning.models.deform_conv import as_operator, deform_conv, sampled
from inarch.learning.models.dyhead import DyConv

Floats = npt.NDArray[np.float64]


def naive(x: Floats, offset: Floats, mask: Floats, weight: Floats, bias: Floats, stride: int) -> Floats:
    """One image: x [C, H, W], offset [18, h, w], mask [9, h, w]."""
    _, height, width = x.shape
    out = np.zeros((len(weight), *offset.shape[1:]))

    def read(y: float, z: float) -> Floats:
        total = np.zeros(len(x))
        for row, column in product((math.floor(y), math.floor(y) + 1), (math.floor(z), math.floor(z) + 1)):
            if 0 <= row < height and 0 <= column < width:
                total += x[:, row, column] * (1 - abs(y - row)) * (1 - abs(z - column))
        return total

    for i, j in product(*map(range, offset.shape[1:])):
        for k in range(9):
            y = i * stride - 1 + k // 3 + offset[2 * k, i, j]
            z = j * stride - 1 + k % 3 + offset[2 * k + 1, i, j]
            out[:, i, j] += weight[:, :, k // 3, k % 3] @ read(y, z) * mask[k, i, j]
    return out + bias[:, None, None]


def case(stride: int) -> list[torch.Tensor]:
    torch.manual_seed(stride)
    height, width = (4, 5) if stride == 1 else (2, 3)
    sizes = ((2, 3, 4, 5), (2, 18, height, width), (2, 9, height, width), (4, 3, 3, 3), (4,))
    x, offset, mask, weight, bias = (torch.randn(size, dtype=torch.float64) for size in sizes)
    return [x, 2 * offset, mask.sigmoid(), weight, bias]


def form(function: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], stride: int) -> torch.Tensor:
    return function(*tensors, stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_formula(stride: int) -> None:
    tensors = case(stride)
    got = form(sampled, tensors, stride).numpy()
    x, offset, mask, weight, bias = (tensor.numpy() for tensor in tensors)
    for image in range(2):
        want = naive(x[image], offset[image], mask[image], weight, bias, stride)
        np.testing.assert_allclose(got[image], want, atol=1e-9)


def test_the_operator_is_the_same_function() -> None:
    tensors = [tensor.float() for tensor in case(1)]
    with as_operator():
        as_one = form(deform_conv, tensors, 1)
    torch.testing.assert_close(as_one, form(deform_conv, tensors, 1))


def test_gradients_are_those_of_the_formula() -> None:
    tensors = [tensor.requires_grad_() for tensor in case(2)]
    assert torch.autograd.gradcheck(lambda *given: form(sampled, given, 2), tensors)


def test_a_block_of_the_head_is_the_formula() -> None:
    """Three levels; the coarser one is read with the finer one's offsets as they lie in memory."""
    torch.manual_seed(0)
    block = DyConv(4, 2, 2).double().eval()
    with torch.no_grad():
        block.offset.weight.normal_(std=0.3)
        for name, parameter in block.named_parameters():
            if name.endswith("conv.weight"):
                parameter.normal_(std=0.3)
        maps = [torch.randn(2, 4, 8 >> level, 12 >> level, dtype=torch.float64) for level in range(3)]
        got = block(maps)
        for image in range(2):
            for level, x in enumerate(maps):
                want = level_of(block, [m[image].numpy() for m in maps], level, block.offset(x)[image].numpy())
                np.testing.assert_allclose(got[level][image].numpy(), want, atol=1e-7)


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def level_of(block: DyConv, maps: list[Floats], level: int, places: Floats) -> Floats:
    weights: dict[str, Floats] = {name: parameter.detach().numpy() for name, parameter in block.named_parameters()}
    offset, mask = places[:18], sigmoid(places[18:])

    def term(which: int, x: Floats, own_offset: Floats, own_mask: Floats, stride: int) -> Floats:
        name = f"DyConv.{which}"
        out = naive(x, own_offset, own_mask, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], stride)
        groups = out.reshape(2, -1)
        normed = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
        scale, shift = weights[f"{name}.bn.weight"], weights[f"{name}.bn.bias"]
        scaled: Floats = normed.reshape(out.shape) * scale[:, None, None] + shift[:, None, None]
        return scaled

    terms = [term(1, maps[level], offset, mask, 1)]
    if level:
        terms.append(term(2, maps[level - 1], offset, mask, 2))
    if level < 2:
        above = maps[level + 1]
        _, height, width = above.shape
        few_offsets = offset.reshape(-1)[: 18 * height * width].reshape(18, height, width)
        few_masks = mask.reshape(-1)[: 9 * height * width].reshape(9, height, width)
        coarse = term(0, above, few_offsets, few_masks, 1)
        rows = np.linspace(0, height - 1, maps[level].shape[1])
        columns = np.linspace(0, width - 1, maps[level].shape[2])
        wide = np.stack([np.stack([np.interp(columns, np.arange(width), row) for row in c]) for c in coarse])
        tall = [[np.interp(rows, np.arange(height), c[:, j]) for j in range(len(columns))] for c in wide]
        terms.append(np.transpose(np.asarray(tall), (0, 2, 1)))
    weight, bias = weights["AttnConv.1.weight"].reshape(-1), float(weights["AttnConv.1.bias"][0])
    gates = [np.clip(max(float(weight @ t.mean((1, 2))) + bias, 0) + 3, 0, 6) / 6 for t in terms]
    mean = np.mean([gate * t for gate, t in zip(gates, terms, strict=True)], axis=0)
    hidden = np.maximum(weights["relu.fc.0.weight"] @ mean.mean((1, 2)) + weights["relu.fc.0.bias"], 0)
    theta = np.clip(weights["relu.fc.2.weight"] @ hidden + weights["relu.fc.2.bias"] + 3, 0, 6) / 6
    a1, b1, a2, b2 = (part[:, None, None] for part in np.split(theta, 4))
    result: Floats = np.maximum(mean * (2 * (a1 - 0.5) + 1) + b1 - 0.5, mean * 2 * (a2 - 0.5) + b2 - 0.5)
    return result
