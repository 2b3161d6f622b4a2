"""MDETR in ONNX: the same function at every size, and every attention and FFN found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from inarch.frontends.canonicalize import discover_canonical
from inarch.learning.models import build
from inarch.learning.models.mdetr import Mdetr
from inarch.learning.models.mdetr_config import MDETR_PRESETS, MdetrConfig
from inarch.learning.outline import outline
from inarch.structure.sites import SiteTable

from tests.learning.sizes import CLEVR

# One layer of each kind for the parts that the tiny preset does not have: a ResNet, RoBERTa, the question heads.
RESNET = CLEVR.model_copy(update={"text": CLEVR.text.model_copy(update={"layers": 1}), "encoder_layers": 1, "decoder_layers": 1})


@dataclass(frozen=True)
class Exported:
    module: Mdetr
    model: ir.Model
    table: SiteTable
    session: onnxruntime.InferenceSession


@pytest.fixture(scope="module", params=[MDETR_PRESETS["mdetr-tiny"], RESNET], ids=["vit", "resnet"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_presets: None) -> Exported:
    module = build(request.param)
    assert isinstance(module, Mdetr)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            # Fresh biases are 0 and fresh norms 1: a graph that left them out would give the same.
            parameter.add_((0.1 if parameter.ndim == 1 else 0.02) * torch.randn(parameter.shape, generator=rng))
        for buffer in module.buffers():
            if buffer.is_floating_point():  # the statistics of frozen batch norms
                buffer.add_(0.2 * torch.rand(buffer.shape, generator=rng))
    # Followed with other weights than it gets.
    model = outline(request.param).filled(module.state_dict())
    file: Path = tmp_path_factory.mktemp("mdetr") / "model.onnx"
    ir.save(model, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return Exported(module, model, discover_canonical(model).table, onnxruntime.InferenceSession(file, options))


@pytest.mark.parametrize(("batch", "height", "width", "length"), [(3, 64, 128, 7), (1, 96, 64, 12)])
def test_onnx_runtime_gives_what_torch_gives(exported: Exported, batch: int, height: int, width: int, length: int) -> None:
    feeds = exported.module.example(batch, height, width, length, seed=3)
    with torch.no_grad():
        expected = exported.module(**feeds)
    got = exported.session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    for (name, tensor), array in zip(expected.items(), got, strict=True):
        scale = float(tensor.abs().max())
        assert array.shape == tuple(tensor.shape), name
        assert np.abs(array - tensor.numpy()).max() <= 1e-4 * scale, name


def test_names_of_inputs_outputs_and_sizes(exported: Exported) -> None:
    signature = exported.module.signature
    graph = exported.model.graph
    assert [value.name for value in graph.inputs] == list(signature.inputs)
    assert [value.name for value in graph.outputs] == list(signature.outputs)
    for value in graph.inputs:
        assert value.shape is not None
        axes = signature.inputs[str(value.name)]
        fixed = {"pixel_values": {1: 3}}.get(str(value.name), {})
        assert [str(size) for size in value.shape] == [str({**axes, **fixed}[axis]) for axis in range(len(value.shape))]


def test_every_parameter_keeps_its_name(exported: Exported) -> None:
    """All but the pooler's, which no output depends on."""
    parameters = {name for name, _ in exported.module.named_parameters() if "pooler" not in name}
    assert parameters <= set(exported.model.graph.initializers)


def expected_sites(config: MdetrConfig) -> dict[str, tuple[str, dict[str, int]]]:
    """Name -> kind and axes of every attention and FFN that the configuration implies."""
    sites: dict[str, tuple[str, dict[str, int]]] = {}

    def add(name: str, width: int, heads: int) -> None:
        sites[name] = "msa", {"head": heads, "qk": width // heads, "vo": width // heads}

    vision, text = config.vision, config.text
    if vision.kind == "vit":
        for number in range(vision.layers):
            layer = f"backbone.0.body.layers.{number}"
            add(f"{layer}.attn", vision.width, vision.heads)
            sites[f"{layer}.mlp"] = "ffn", {"hidden": vision.hidden}
    for number in range(text.layers):
        layer = f"transformer.text_encoder.encoder.layer.{number}"
        add(f"{layer}.attention", text.width, text.heads)
        sites[f"{layer}.ffn"] = "ffn", {"hidden": text.hidden}
    for stack, count, kinds in (
        ("encoder", config.encoder_layers, ("self_attn",)),
        ("decoder", config.decoder_layers, ("self_attn", "cross_attn_image")),
    ):
        for number in range(count):
            for kind in kinds:
                add(f"transformer.{stack}.layers.{number}.{kind}", config.width, config.heads)
            sites[f"transformer.{stack}.layers.{number}.ffn"] = "ffn", {"hidden": config.hidden}
    return sites


def test_every_attention_and_ffn_is_a_site(exported: Exported) -> None:
    found = {site.name: (site.kind, dict(site.sizes)) for site in exported.table.sites}
    assert found == expected_sites(exported.module.config)
    assert all(site.calls == 1 for site in exported.table.sites)
    assert not any(axis.frozen for site in exported.table.sites for axis in site.axes.values())


def test_heads_for_boxes_and_answers_are_no_sites(exported: Exported) -> None:
    rejected = {item.name for item in exported.table.rejected}
    assert rejected
    assert all(name.startswith(("bbox_embed.", "answer_reg_head.")) for name in rejected)
    assert all("residual stream" in item.reason for item in exported.table.rejected)
