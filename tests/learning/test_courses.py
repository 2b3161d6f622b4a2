"""Batches by number, and what each of several processes gets of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inarch.learning.data_config import ScenesSettings
from inarch.learning.models.registry import build
from inarch.learning.tasks.aims import Aim
from inarch.learning.tasks.courses import Part, shard, tensors
from inarch.learning.tasks.drawn import Drawn
from inarch.learning.tasks.worlds import open_world
from inarch.learning.workshop import Workshop
from inarch.structure.errors import InarchError

from tests.learning import tiny

CPU = torch.device("cpu")
GLIP_SETTINGS = ScenesSettings.model_validate(dict(tiny.SETTINGS["data"]) | {"side": 64})
SHARED = {"objects", "owned", "spoken", "answering", "central"}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["grounding", "referring", "vqa"])
def test_a_batch_depends_on_seed_number_and_part_alone(shop: Workshop, kind: Aim) -> None:
    course, fresh = shop.world.course(kind), open_world(shop.config.data, shop.model).course(kind)
    assert course.name == f"scenes/{kind}"
    first = course.batch(0, 3)
    np.random.default_rng(0).random(5)
    others: list[tuple[int, int, Part]] = [(0, 4, "weights"), (1, 3, "weights"), (0, 3, "structure")]
    for seed, step, part in others:
        assert not same(first, course.batch(seed, step, part))
    assert same(first, course.batch(0, 3))
    assert same(first, fresh.batch(0, 3))


def test_weights_and_structure_see_different_images(shop: Workshop) -> None:
    assert isinstance(shop.world, Drawn)
    course = shop.world.course("grounding")
    pixels = shop.world.data("train").pixels(np.arange(60))
    place = {image.tobytes(): number for number, image in enumerate(pixels)}
    assert len(place) == 60
    seen: dict[Part, set[int]] = {"weights": set(), "structure": set()}
    for step in range(60):
        for part, images in seen.items():
            rows = [place[image.tobytes()] for image in course.batch(0, step, part)["pixel_values"]]
            assert len(set(rows)) == 4
            images |= set(rows)
    assert seen == {"weights": set(range(54)), "structure": set(range(54, 60))}


def test_texts_are_about_their_images(shop: Workshop) -> None:
    batch = shop.world.course("referring").batch(0, 0)
    assert batch["image"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]
    assert batch["objects"] == batch["box_mask"].sum() == 8


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("kind", ["grounding", "vqa"])
def test_shards_make_up_the_batch(shop: Workshop, kind: Aim, world: int) -> None:
    whole = shop.world.course(kind).batch(0, 1)
    parts = [shard(whole, rank, world) for rank in range(world)]
    for name, values in whole.items():
        if name in SHARED:
            assert sum(part[name] for part in parts) == pytest.approx(values)
        elif name == "image":
            offsets = [rank * 4 // world for rank in range(world)]
            assert np.concatenate([part[name] + at for part, at in zip(parts, offsets, strict=True)]).tolist() == values.tolist()
        else:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def check_average(trainee: nn.Module, whole: dict[str, Any], world: int) -> None:
    """Losses and gradients of the shards, averaged, are the whole batch's."""

    def of(batch: dict[str, Any]) -> tuple[dict[str, float], list[Tensor]]:
        losses = trainee(tensors(batch, CPU))
        trainee.zero_grad()
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        grads = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in trainee.parameters()]
        return {name: float(loss.detach()) for name, loss in losses.items()}, grads

    expected, gradient = of(whole)
    found = [of(shard(whole, rank, world)) for rank in range(world)]
    for name, loss in expected.items():
        assert np.mean([losses[name] for losses, _ in found]) == pytest.approx(loss, rel=1e-5), name
    scale = max(float(g.abs().max()) for g in gradient)
    for g, *parts in zip(gradient, *(grads for _, grads in found), strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), g, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["grounding", "referring", "vqa"])
def test_averaged_gradients_of_shards_are_the_whole_batchs(shop: Workshop, kind: Aim) -> None:
    course = shop.world.course(kind)
    check_average(shop.trainee(course), course.batch(0, 2), 2)


@pytest.mark.parametrize("kind", ["grounding", "detection"])
def test_the_same_with_glip(kind: Aim) -> None:
    world = open_world(GLIP_SETTINGS, tiny.GLIP)
    course = world.course(kind)
    trainee = course.trainee(build(world.fitted(tiny.GLIP)).train())
    check_average(trainee, course.batch(0, 2), 2)


def test_images_that_cannot_be_dealt_out(shop: Workshop) -> None:
    with pytest.raises(InarchError, match="4 images cannot be dealt out to 3 processes"):
        shard(shop.world.course("grounding").batch(0, 0), 0, 3)


def test_models_that_do_not_fit(shop: Workshop) -> None:
    course = shop.pretraining()
    with pytest.raises(InarchError, match="not Linear"):
        course.trainee(nn.Linear(1, 1))
    with pytest.raises(InarchError, match="levels"):
        course.trainee(build(tiny.GLIP))
    small = tiny.MDETR.model_copy(update={"vision": tiny.MDETR.vision.model_copy(update={"patch": 16})})
    with pytest.raises(InarchError, match="3 cells a side, the batches' grid is 6"):
        course.trainee(build(small))
    short = shop.model.model_copy(update={"spans": 12})
    with pytest.raises(InarchError, match="the longest text has"):
        course.trainee(build(short))


def test_batches_of_ones_own_are_dealt_out_to_one_process_alone() -> None:
    batch = {"x": np.arange(4.0)}
    assert same(shard(batch, 0, 1), batch)
    with pytest.raises(InarchError, match=r"a batch of \['x'\] cannot be dealt out to 2 processes"):
        shard(batch, 0, 2)
