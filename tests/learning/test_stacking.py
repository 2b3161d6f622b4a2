"""Growing in depth: half the layers, then every layer twice, of every kind of model, and a run that begins so."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inarch.learning.folders import SHALLOW
from inarch.learning.methods import LEARNED
from inarch.learning.models import registry
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.registry import Config, build, preset
from inarch.learning.phases import WeightPhase
from inarch.learning.runs import learn, train_dense
from inarch.learning.stacking import doubled, halved
from inarch.learning.trainer import CHECKPOINT, LOG, accelerator, read_log
from inarch.learning.weights import model_weights, read_weights, weights_of
from inarch.learning.workshop import Workshop
from inarch.structure.errors import InarchError

from tests.learning import tiny
from tests.learning.exported import off_plan

DEEPER = tiny.MDETR.model_copy(update={"encoder_layers": 2, "decoder_layers": 2, "answers": 3, "answer_layer": 1})
STACKS = re.compile(r"(vision|body|text_encoder.encoder|transformer.(en|de)coder)\.layers?\.(\d+)\.")


def weights(config: Config, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """A model's, each of them itself and no view."""
    return dict(build(config, seed=seed, device=device).state_dict())


def test_neighbours_are_one_layer_and_all_else_is_itself() -> None:
    small, grown = weights(halved(DEEPER)), doubled(weights(halved(DEEPER)), weights(DEEPER, 1))
    assert grown.keys() == weights(DEEPER).keys()
    layers = [name for name in grown if STACKS.search(name)]
    assert len(layers) == 2 * sum(STACKS.search(name) is not None for name in small)
    for name, value in grown.items():
        number = STACKS.search(name)
        source = name if number is None else f"{name[: number.start(3)]}{int(number[3]) // 2}{name[number.end(3) :]}"
        assert torch.equal(value, small[source]), name
    assert {int(found[3]) for found in map(STACKS.search, layers) if found} == {0, 1}


@pytest.mark.parametrize("name", registry.PRESETS)
def test_every_preset_grows(name: str) -> None:
    config = preset(name)
    small, like = weights(halved(config), device="meta"), weights(config, device="meta")
    grown = doubled(small, like)
    assert {key: value.shape for key, value in grown.items()} == {key: value.shape for key, value in like.items()}
    assert {id(value) for value in grown.values()} == {id(value) for value in small.values()}, "all that was learned is there"


@pytest.mark.parametrize(("layers", "deep", "shallow"), [(2, 1, 0), (2, 0, 0), (6, 1, 0), (6, 4, 2), (6, 5, 2)])
def test_answers_are_read_from_the_layer_that_becomes_theirs(layers: int, deep: int, shallow: int) -> None:
    config = DEEPER.model_copy(update={"decoder_layers": layers, "answer_layer": deep})
    smaller = halved(config)
    assert isinstance(smaller, MdetrConfig)
    assert smaller.answer_layer == shallow


def test_a_fused_layer_of_several_modules_stays_together() -> None:
    """GLIP's head is one list in which three modules are a layer: fusion, text, image."""
    config = preset("glip-tiny")
    small, grown = weights(halved(config)), doubled(weights(halved(config)), weights(config, 1))
    tower = {name: value for name, value in grown.items() if ".dyhead_tower." in name}
    assert {int(name.split(".")[3]) for name in tower} == set(range(6))
    for name, value in tower.items():
        assert torch.equal(value, small[re.sub(r"(dyhead_tower\.)(\d+)", lambda m: f"{m[1]}{int(m[2]) % 3}", name)]), name


def test_an_odd_number_has_no_half() -> None:
    with pytest.raises(InarchError, match=r"encoder_layers is 1, which has no half.*0 trains the whole model"):
        halved(tiny.MDETR)
    with pytest.raises(InarchError, match=r"^shallow: vision\.layers is 3"):
        halved(DEEPER.model_copy(update={"vision": DEEPER.vision.model_copy(update={"layers": 3})}))


def test_another_models_weights_do_not_grow() -> None:
    with pytest.raises(InarchError, match="of its shape is in the model with half the layers"):
        doubled(weights(tiny.LEAST), weights(DEEPER.model_copy(update={"width": 64, "heads": 2})))


@pytest.fixture
def deeper(shop: Workshop) -> Workshop:
    """A run that begins shallow; its sites, which dense training does not look at, are another model's."""
    config = tiny.config(shallow=4, dense={"interval": 1})
    return replace(shop, config=config, model=shop.world.fitted(DEEPER))


def test_a_run_begins_with_half_the_layers(deeper: Workshop, tmp_path: Path) -> None:
    dense = train_dense(deeper, tmp_path, accelerator("no", "cpu"))
    steps = {name: max(max(rows) for rows, _ in read_log(tmp_path / name / LOG).values()) for name in ("shallow", "dense")}
    assert steps == {"shallow": 4, "dense": 2}, "of six in all"
    grown = doubled(read_weights(tmp_path / SHALLOW), dense)
    fresh = weights_of(deeper.trainee(deeper.pretraining()))

    def apart(other: dict[str, Tensor]) -> float:
        return float(torch.stack([(value - other[name]).square().sum() for name, value in dense.items()]).sum())

    assert 0 < apart(grown) < apart(fresh) / 2, "it went on from what was learned"


@pytest.mark.parametrize("stop", ["shallow", "dense"])
def test_a_killed_run_goes_on(deeper: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    place = accelerator("no", "cpu")
    whole = train_dense(deeper, tmp_path / "whole", place)
    plain = WeightPhase.step

    def step(self: WeightPhase, number: int) -> dict[str, float]:
        if self.name == stop and number == 1:
            raise KeyboardInterrupt
        return plain(self, number)

    monkeypatch.setattr(WeightPhase, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train_dense(deeper, tmp_path / "killed", place)
    monkeypatch.setattr(WeightPhase, "step", plain)
    assert (tmp_path / "killed" / SHALLOW).exists() == (stop == "dense")
    assert (tmp_path / "killed" / stop / CHECKPOINT).exists()
    again = train_dense(deeper, tmp_path / "killed", place)
    assert tiny.differing(again, whole) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shallow": 6}, "of 6 dense steps, 6 are to be shallow"),
        ({"shallow": 2, "weights": "w.safetensors"}, "shallow has to be 0"),
        ({"structure": {"tied": True, "sharing": "none"}}, "there is nothing to tie"),
        ({"shallow": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.config(**changes)


def test_what_has_no_half_is_refused_before_anything_is_trained(shop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(InarchError, match="encoder_layers is 1"):
        learn(tiny.config(shallow=2), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep", [0.3, 0.42, 0.5])
def test_the_method_for_them_shares_whatever_neighbours_keep(shop: Workshop, keep: float) -> None:
    phase = tiny.learning(shop, **LEARNED["tied"], keep=keep)
    for number in range(phase.settings.steps):
        phase.step(number)
    found = phase.harden()
    assert phase.space.readers
    assert found.stored == found.planned
    assert abs(found.stored - keep * shop.table.parameters) < 0.01 * shop.table.parameters
    for specs in phase.space.readers.values():
        for spec in specs:
            assert spec.base is not None
            assert np.array_equal(found.hard.share[spec.key], found.hard.keep[spec.key]), spec.key
            assert np.array_equal(found.hard.keep[spec.base], found.hard.keep[spec.key]), spec.key
    assert off_plan(shop.model, model_weights(weights_of(phase.trainee)), found.plan) == []


def test_more_than_all_that_is_tied_cannot_be_kept(shop: Workshop, tmp_path: Path) -> None:
    structure = {**tiny.SETTINGS["structure"], **LEARNED["tied"], "keep": 0.9}
    with pytest.raises(InarchError, match=r"0\.9 is out of reach: with all shared that is tied, the model keeps 0\.\d+"):
        learn(tiny.config(structure=structure), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
