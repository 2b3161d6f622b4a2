"""Configurations, presets, and the numbers of parameters that they stand for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from inarch.learning import models
from inarch.learning.models import PRESETS, build, preset
from inarch.learning.models.glip_config import GLIP_PRESETS
from inarch.learning.models.mdetr_config import MDETR_PRESETS, MdetrConfig
from inarch.learning.models.parts_config import BERT, MINILM, ROBERTA, TextConfig, VitConfig
from inarch.learning.models.registry import Config
from inarch.structure.errors import InarchError

from tests.learning.released import FILES, parameters

FULL = {
    "mdetr-r101": 185_382_724,
    "mdetr-r101-gqa": 186_069_422,
    "mdetr-clevr": 111_357_803,
    "glip-a": 151_430_526,
    "glip-t": 231_780_222,
    "glip-l": 430_422_384,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", FULL)
def test_parameters_to_the_unit(name: str) -> None:
    module = build(name, device="meta")
    assert all(parameter.is_meta for parameter in module.parameters())
    assert count(module) == FULL[name] == parameters(FILES[name].keys())


@pytest.mark.parametrize("name", FILES)
def test_keys_and_shapes_are_the_released_ones(name: str) -> None:
    released = FILES[name].keys()
    buffers = {key for key in released if key.endswith(".position_ids")}
    assert len(buffers) == 1, "transformers computes it today"
    assert shapes(build(name, device="meta")) == {key: shape for key, shape in released.items() if key not in buffers}


@pytest.mark.parametrize(("name", "keys"), [("mdetr-r101", 921), ("glip-t", 746), ("glip-a", 542), ("glip-l", 1022)])
def test_released_files_have_so_many_keys(name: str, keys: int) -> None:
    assert len(FILES[name].keys()) == keys


def test_the_pair_that_shares_across_modalities() -> None:
    """A ViT-B beside RoBERTa-base: 12 layers each, their attention and FFN matrices of one size."""
    config = preset("mdetr-vit-b")
    assert isinstance(config, MdetrConfig)
    assert isinstance(config.vision, VitConfig)
    vision, text = config.vision, config.text
    assert (vision.width, vision.layers, vision.heads, vision.hidden) == (text.width, text.layers, text.heads, text.hidden)
    layer = 12 * 768**2 + 13 * 768  # MSA 4 d^2 + 4 d, FFN 8 d^2 + 5 d, norms 4 d
    tables = 768 * (3 * 16**2 + 1) + 768 * (14**2 + 1) + 768 + 2 * 768
    resnet_and_its_projection = 42_394_816 + 256 * (2048 - 768)
    assert count(build("mdetr-vit-b", device="meta")) == FULL["mdetr-r101"] - resnet_and_its_projection + 12 * layer + tables


def test_the_tiny_pair_shares_too() -> None:
    config = preset("mdetr-tiny")
    assert isinstance(config, MdetrConfig)
    assert isinstance(config.vision, VitConfig)
    assert (config.vision.width, config.vision.hidden) == (config.text.width, config.text.hidden) == (config.width, config.hidden)
    assert count(build(config)) < 2_000_000


def test_text_encoders() -> None:
    assert (ROBERTA.longest, BERT.longest) == (512, 512)
    assert (MINILM.width, MINILM.layers, MINILM.heads, MINILM.hidden) == (384, 6, 12, 1536)


@pytest.mark.parametrize("name", PRESETS)
def test_through_json_and_back(name: str) -> None:
    config = preset(name)
    again = type(config).model_validate_json(config.model_dump_json())
    assert again == config
    either: TypeAdapter[Config] = TypeAdapter(Config)
    assert either.validate_json(config.model_dump_json()) == config


def test_configurations_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(preset("mdetr-tiny"), "width", 3)  # noqa: B010 - mypy knows that it is frozen


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('{"width": 256, "deep": 3}', "Extra inputs"),
        ('{"width": "256"}', "valid integer"),
        ('{"queries": 0}', "greater than or equal to 1"),
        ('{"width": 250}', "no multiple of 8 heads"),
        ('{"width": 6, "heads": 3}', "no multiple of 4"),
        ('{"answers": "vqa"}', "answers"),
        ('{"answers": 3, "decoder_layers": 2, "answer_layer": 2}', "cannot be read from decoder layer 2 of 2"),
        ('{"vision": {"kind": "cnn"}}', "cnn"),
        ('{"vision": {"kind": "vit", "heads": 7}}', "no multiple of 7 heads"),
        ('{"vision": {"kind": "vit", "image": 225}}', "patches of 16"),
        ('{"text": {"heads": 7}}', "no multiple of 7 heads"),
        ('{"text": {"positions": 2}}', "no room"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MdetrConfig.model_validate_json(wrong)


def test_presets_of_both_families() -> None:
    assert set(PRESETS) == {*MDETR_PRESETS, *GLIP_PRESETS}
    assert not MDETR_PRESETS.keys() & GLIP_PRESETS.keys()


@pytest.mark.parametrize(("name", "near"), [("mdetr-r11", "mdetr-r101"), ("glip", "glip-t"), ("mdetr_tiny", "mdetr-tiny")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InarchError, match="no such preset") as refusal:
        build(name)
    assert refusal.value.where == name
    assert near in str(refusal.value.hint).replace(",", "").split()


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(InarchError) as refusal:
        preset("?")
    assert all(name in str(refusal.value.hint) for name in PRESETS)


def test_a_seed_makes_the_weights() -> None:
    def state(seed: int) -> dict[str, Tensor]:
        return build("mdetr-tiny", seed=seed).state_dict()

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = state(1)
    assert torch.equal(torch.rand(3), expected), "the global generator was moved"
    assert all(torch.equal(a, b) for a, b in zip(first.values(), state(1).values(), strict=True))
    assert not torch.equal(first["class_embed.weight"], state(2)["class_embed.weight"])


def test_models_are_built_for_evaluation() -> None:
    assert not any(module.training for module in build(MdetrConfig(text=TextConfig(layers=1)), device="meta").modules())


def test_the_public_names_are_there_and_cost_nothing_until_used() -> None:
    assert all(getattr(models, name) is not None for name in models.__all__)
    with pytest.raises(AttributeError, match="no attribute 'release'"):
        getattr(models, "release")  # noqa: B009 - mypy knows that the attribute is missing
    code = "import sys, inarch.learning.models; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
