"""The parts of MDETR against independent implementations: torch's own attention, transformers' backbones, formulas in numpy."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.models.attention import Attention, padding_bias
from inarch.learning.models.detr import Decoder, DecoderLayer, EncoderLayer, Resizer
from inarch.learning.models.parts_config import ResNetConfig, VitConfig
from inarch.learning.models.positions import SinePositions
from inarch.learning.models.resnet import FrozenBatchNorm, ResNet
from inarch.learning.models.vit import Vit

from tests.learning.sizes import BASIC, BOTTLENECK, GROUNDING, VIT

WIDTH, HEADS = GROUNDING.width, GROUNDING.heads

M = TypeVar("M", bound=nn.Module)


def randomised(module: M, seed: int = 0) -> M:
    """In evaluation mode, no parameter or buffer left at what it is initialised to."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            values = torch.randn(tensor.shape, generator=rng)
            # Vectors include variances, which are positive.
            tensor.copy_(0.5 * values.abs() + 0.1 if tensor.ndim == 1 else values / math.sqrt(tensor[0].numel()))
    return module.eval()


def mask_of(lengths: list[int], size: int) -> Tensor:
    """[B, size], True on the first so many."""
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def torch_attention(ours: nn.Module) -> nn.MultiheadAttention:
    """torch's attention with our weights, which bear the same names."""
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs


def attended(ours: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    ignored = None if mask is None else ~mask
    out: Tensor = torch_attention(ours)(query, key, value, key_padding_mask=ignored, need_weights=False)[0]
    return out


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.get_parameter("weight"), norm.get_parameter("bias"), 1e-5)


def fed(x: Tensor, layer: nn.Module) -> Tensor:
    up, down = layer.get_submodule("linear1"), layer.get_submodule("linear2")
    hidden = (x @ up.get_parameter("weight").T + up.get_parameter("bias")).clamp(min=0)
    return hidden @ down.get_parameter("weight").T + down.get_parameter("bias")


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_attention_is_torchs() -> None:
    ours = randomised(Attention(WIDTH, HEADS))
    query, key, value = rand(3, 4, WIDTH, seed=1), rand(3, 6, WIDTH, seed=2), rand(3, 6, WIDTH, seed=3)
    mask = mask_of([6, 3, 1], 6)
    for real in (mask, None):
        bias = None if real is None else padding_bias(real)
        assert torch.allclose(ours(query, key, value, bias), attended(ours, query, key, value, real), atol=1e-6)


@torch.no_grad()
def test_rows_of_padding_stay_finite() -> None:
    """Where there is nothing to attend to, everything is attended to alike; other rows are as they were."""
    ours = randomised(Attention(WIDTH, HEADS))
    query, memory = rand(2, 4, WIDTH, seed=1), rand(2, 6, WIDTH, seed=2)
    out = ours(query, memory, memory, padding_bias(mask_of([0, 4], 6)))
    assert torch.allclose(out[1:], attended(ours, query[1:], memory[1:], memory[1:], mask_of([4], 6)), atol=1e-6)
    value = memory[0] @ ours.in_proj_weight[2 * WIDTH :].T + ours.in_proj_bias[2 * WIDTH :]
    assert torch.allclose(out[0], ours.out_proj(value.mean(0)).expand(4, -1), atol=1e-6)


def test_dropout_of_weights_is_for_training() -> None:
    ours = randomised(Attention(WIDTH, HEADS, dropout=0.5))
    x = rand(1, 6, WIDTH, seed=1)
    assert torch.equal(ours(x, x, x), ours(x, x, x))
    ours.train()
    assert not torch.equal(ours(x, x, x), ours(x, x, x))


@torch.no_grad()
def test_an_encoder_layer() -> None:
    layer = randomised(EncoderLayer(GROUNDING))
    x, places, mask = rand(2, 7, WIDTH, seed=1), rand(2, 7, WIDTH, seed=2), mask_of([7, 4], 7)
    y = normed(x + attended(layer.self_attn, x + places, x + places, x, mask), layer.norm1)
    expected = normed(y + fed(y, layer), layer.norm2)
    assert torch.allclose(layer(x, places, padding_bias(mask)), expected, atol=1e-5)


@torch.no_grad()
def test_a_decoder_layer() -> None:
    layer = randomised(DecoderLayer(GROUNDING))
    x, queries = rand(2, 5, WIDTH, seed=1), rand(2, 5, WIDTH, seed=2)
    memory, places, mask = rand(2, 7, WIDTH, seed=3), rand(2, 7, WIDTH, seed=4), mask_of([7, 4], 7)
    y = normed(x + attended(layer.self_attn, x + queries, x + queries, x, None), layer.norm1)
    y = normed(y + attended(layer.cross_attn_image, y + queries, memory + places, memory, mask), layer.norm3)
    expected = normed(y + fed(y, layer), layer.norm4)
    assert torch.allclose(layer(x, queries, memory, memory + places, padding_bias(mask)), expected, atol=1e-5)


@torch.no_grad()
def test_the_decoder_starts_from_zeros_and_norms_every_layer() -> None:
    decoder = randomised(Decoder(GROUNDING))
    queries, memory, places = rand(2, 5, WIDTH, seed=2), rand(2, 7, WIDTH, seed=3), rand(2, 7, WIDTH, seed=4)
    bias = padding_bias(mask_of([7, 4], 7))
    first = decoder.layers[0](torch.zeros_like(queries), queries, memory, memory + places, bias)
    second = decoder.layers[1](first, queries, memory, memory + places, bias)
    outputs = decoder(queries, memory, places, bias)
    assert len(outputs) == GROUNDING.decoder_layers == 2
    for output, raw in zip(outputs, (first, second), strict=True):
        assert torch.allclose(output, normed(raw, decoder.norm), atol=1e-6)


@torch.no_grad()
def test_text_is_resized_with_a_norm() -> None:
    resizer = randomised(Resizer(6, WIDTH, 0.1))
    x = 1e-4 * rand(2, 3, 6, seed=1)
    y = x @ resizer.fc.weight.T
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-12).sqrt()
    resizer.fc.bias.zero_()  # what is left is so small that another epsilon would show
    assert torch.allclose(resizer(x), y * resizer.layer_norm.weight + resizer.layer_norm.bias, atol=1e-4)


def sine(mask: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.float64]:
    """DETR's embedding of one mask [h, w], number by number: [width, h, w]."""
    height, across = mask.shape
    part = width // 2
    out = np.zeros((width, height, across))
    for i in range(height):
        for j in range(across):
            places = mask[: i + 1, j].sum() / (mask[:, j].sum() + 1e-6), mask[i, : j + 1].sum() / (mask[i].sum() + 1e-6)
            for axis, place in enumerate(places):
                for k in range(part):
                    angle = 2 * math.pi * place / 10_000 ** ((k - k % 2) / part)
                    out[axis * part + k, i, j] = math.cos(angle) if k % 2 else math.sin(angle)
    return out


def test_positions_count_real_cells() -> None:
    masks = np.zeros((3, 4, 5), dtype=bool)
    masks[0], masks[1, :3, :2] = True, True
    got = SinePositions(24)(torch.from_numpy(masks)).numpy()
    for place, mask in enumerate(masks):
        assert np.allclose(got[place], sine(mask, 24), atol=1e-5)


def hugging_vit(ours: Vit, config: VitConfig) -> nn.Module:
    """transformers' ViT with our weights."""
    sizes = transformers.ViTConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.hidden,
        image_size=config.image,
        patch_size=config.patch,
        layer_norm_eps=config.epsilon,
    )
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.query": "attention.q_proj",
        "attn.key": "attention.k_proj",
        "attn.value": "attention.v_proj",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    state = {"embeddings.cls_token": ours.cls_token, "embeddings.position_embeddings": ours.pos_embed}
    for part in ("weight", "bias"):
        state[f"embeddings.patch_embeddings.projection.{part}"] = ours.patch_embed.get_parameter(part)
        state[f"layernorm.{part}"] = ours.norm.get_parameter(part)
        for number in range(config.layers):
            for mine, theirs in names.items():
                state[f"layers.{number}.{theirs}.{part}"] = ours.get_parameter(f"layers.{number}.{mine}.{part}")
    theirs_too: nn.Module = transformers.ViTModel(sizes, add_pooling_layer=False)
    theirs_too.train(False)
    theirs_too.load_state_dict(state)
    return theirs_too


@torch.no_grad()
def test_the_vision_transformer_is_transformers() -> None:
    ours = randomised(Vit(VIT))
    pixels = rand(2, 3, VIT.image, VIT.image, seed=1)
    expected = hugging_vit(ours, VIT)(pixel_values=pixels).last_hidden_state[:, 1:]
    got = ours(pixels)
    assert got.shape == (2, VIT.width, 4, 4)
    assert torch.allclose(got.flatten(2).transpose(1, 2), expected, atol=1e-5)


def weights_of(size: int, cells: int) -> npt.NDArray[np.float64]:
    """[size, cells]: how much of each cell a stretched axis takes; a tent around each place, edges held."""
    places = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    tent: npt.NDArray[np.float64] = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(cells)))
    return tent


def bilinear(table: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.float64]:
    """A table [h, w, C] read at height x width places."""
    rows, columns, _ = table.shape
    out: npt.NDArray[np.float64] = np.einsum("ir,jc,rcd->ijd", weights_of(height, rows), weights_of(width, columns), table)
    return out


@torch.no_grad()
def test_the_position_table_is_stretched() -> None:
    ours = randomised(Vit(VIT))
    table = torch.unflatten(ours.pos_embed[0, 1:], 0, (4, 4)).numpy()
    for height, width in ((4, 4), (6, 9), (3, 2)):
        got = torch.unflatten(ours.positions(height, width)[0], 0, (height, width)).numpy()
        assert np.allclose(got, bilinear(table, height, width), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(8, 8), (40, 16), (24, 72)])
def test_the_vision_transformer_takes_every_multiple_of_its_patch(height: int, width: int) -> None:
    features = randomised(Vit(VIT))(rand(2, 3, height, width, seed=1))
    assert features.shape == (2, VIT.width, height // 8, width // 8)
    assert features.isfinite().all()


def hugging_resnet(ours: ResNet, config: ResNetConfig) -> nn.Module:
    """transformers' ResNet with our weights."""
    growth = 4 if config.block == "bottleneck" else 1
    sizes = transformers.ResNetConfig(
        embedding_size=config.stem,
        hidden_sizes=[growth * config.stem * 2**stage for stage in range(4)],
        depths=list(config.stages),
        layer_type=config.block,
    )
    state: dict[str, Tensor] = {}
    for key, tensor in ours.state_dict().items():
        place, _, part = key.rpartition(".")
        layer, number, rest = (*place.split(".", 2), "", "")[:3] if "." in place else ("", "", place)
        name = f"encoder.stages.{int(layer[-1]) - 1}.layers.{number}." if layer else "embedder."
        if rest.startswith("downsample"):
            name += "shortcut." + ("normalization" if rest.endswith("1") else "convolution")
        else:
            inner = f"layer.{int(rest[-1]) - 1}." if layer else "embedder."
            name += inner + ("convolution" if rest.startswith("conv") else "normalization")
        state[f"{name}.{part}"] = tensor
    theirs: nn.Module = transformers.ResNetModel(sizes)
    theirs.train(False)
    counters = {key for key in theirs.state_dict() if key.endswith("num_batches_tracked")}
    assert theirs.state_dict().keys() - counters == state.keys()
    theirs.load_state_dict(state, strict=False)
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("config", [BOTTLENECK, BASIC], ids=["bottleneck", "basic"])
def test_the_resnet_is_transformers(config: ResNetConfig) -> None:
    ours = randomised(ResNet(config))
    for size in ((64, 96), (75, 50)):  # sizes need not be multiples of the stride
        pixels = rand(2, 3, *size, seed=1)
        expected = hugging_resnet(ours, config)(pixel_values=pixels).last_hidden_state
        got = ours(pixels)
        assert got.shape == (2, config.channels, -(-size[0] // 32), -(-size[1] // 32))
        assert torch.allclose(got, expected, atol=1e-4 * float(expected.abs().max()))


def test_frozen_norms_do_not_learn() -> None:
    norm = randomised(FrozenBatchNorm(4)).train()
    before = {key: tensor.clone() for key, tensor in norm.state_dict().items()}
    x = rand(2, 4, 3, 3, seed=1)
    state = norm.state_dict()
    args = state["running_mean"], state["running_var"], state["weight"], state["bias"]
    assert torch.allclose(norm(x), F.batch_norm(x, *args, training=False, eps=1e-5), atol=1e-5)
    assert list(norm.parameters()) == []
    assert all(torch.equal(before[key], tensor) for key, tensor in norm.state_dict().items())
