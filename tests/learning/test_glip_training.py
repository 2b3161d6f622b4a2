"""GLIP trained on scenes: the same stages as MDETR, with its own losses, boxes and metrics."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inarch.learning.config import Optimisation, TuneConfig
from inarch.learning.methods import obtain
from inarch.learning.models.examples import run_eager
from inarch.learning.models.glip import Glip
from inarch.learning.models.glip_post import anchors, decode
from inarch.learning.phases import WeightPhase
from inarch.learning.runs import judge, learn, structured_model, tune
from inarch.learning.structured import Structured
from inarch.learning.tasks.boxes import iou, to_corners
from inarch.learning.tasks.courses import tensors
from inarch.learning.tasks.glip_boxes import to_pixels
from inarch.learning.tasks.glip_targets import encode
from inarch.learning.tasks.glip_trainee import in_pixels, start_boxes
from inarch.learning.tasks.scenes.detection import DetectionTask
from inarch.learning.trainer import accelerator, read_log
from inarch.learning.weights import model_weights, read_weights
from inarch.learning.workshop import Workshop
from inarch.runtime.accuracy import Arrays, evaluate
from inarch.structure.errors import InarchError
from inarch.structure.plan import load_plan

from tests.learning import tiny
from tests.learning.exported import compiled, distance, off_plan

BRIEF = Optimisation(steps=3, warmup=1, rate=1e-3)


@pytest.fixture(scope="module")
def folder(glip_shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("glip") / "run"
    learn(tiny.config(model="small-glip", distil=1.0, structure={"keep": 0.8}), made, device="cpu")
    return made


def test_a_structure_is_learned(folder: Path, glip_shop: Workshop) -> None:
    recorded = json.loads((folder / "config.json").read_text())
    assert recorded["data"]["side"] == glip_shop.world.side == 64, "what nobody asked for suits a GLIP"
    assert max(read_log(folder / "learning" / "log.csv")["distil"][1]) > 0, "its teacher has been trained further"
    assert recorded["dense"]["rate"] == 1e-3
    plan, weights = load_plan(folder / "plan.json"), model_weights(read_weights(folder / "weights.safetensors"))
    assert off_plan(glip_shop.model, parameters(weights), plan) == []
    assert plan.expect is not None
    assert plan.expect.parameters == pytest.approx(0.8 * glip_shop.table.parameters, rel=0.03)


def parameters(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if "cell_anchors" not in name}


@pytest.mark.parametrize("kind", ["referring", "grounding", "detection"])
def test_tuned_structured_and_compiled_agree(folder: Path, glip_shop: Workshop, tmp_path: Path, kind: Any) -> None:
    distil = 0.5 if kind == "grounding" else 0.0
    judged = tune(folder, TuneConfig(kind=kind, optimisation=BRIEF, distil=distil), tmp_path, device="cpu")
    assert [found.task for found in judged.values()] == [f"scenes/{kind}", f"scenes-unseen/{kind}"]
    assert all(np.isfinite(value) for found in judged.values() for value in found.overall.values())
    plan, weights = load_plan(folder / "plan.json"), model_weights(read_weights(tmp_path / "weights.safetensors"))
    assert off_plan(glip_shop.model, parameters(weights), plan) == []
    feeds = glip_shop.world.task(kind).feeds(np.arange(4))
    assert set(feeds) == {"pixel_values", "input_ids", "attention_mask"}
    structured = structured_model(folder, tmp_path)(feeds)
    assert distance(structured, run_eager(glip_shop.build(weights), feeds)) < 1e-5
    assert distance(compiled(glip_shop.model, parameters(weights), plan).run(feeds), structured) < TOLERANCE


TOLERANCE = 1e-5


def test_training_lowers_the_loss(glip_shop: Workshop) -> None:
    course = glip_shop.world.course("grounding")
    settings = Optimisation(steps=12, rate=1e-3, warmup=2)
    phase = WeightPhase("dense", glip_shop.trainee(course), course, settings, accelerator("no", "cpu"), 0)
    values = [phase.step(number) for number in range(12)]
    assert set(values[0]) == {"loss", "alignment", "giou", "centerness", "gradient"}
    assert np.mean([v["loss"] for v in values[-3:]]) < np.mean([v["loss"] for v in values[:3]])


def test_a_new_model_begins_with_boxes_of_a_quarter(glip_shop: Workshop) -> None:
    model = copy.deepcopy(glip_shop.build())
    assert isinstance(model, Glip)
    start_boxes(model, 64)
    regression = model.get_parameter("rpn.head.bbox_pred.bias").detach().numpy()[None]
    assert regression[0, :2].tolist() == [0, 0]
    found = decode(regression, anchors(64, 64, 3)[0][:1])[0]
    assert (found[2:] - found[:2] + 1).tolist() == pytest.approx([16, 16])


def test_boxes_in_pixels_are_those_that_are_read(glip_shop: Workshop) -> None:
    batch = glip_shop.world.course("grounding").batch(0, 0)
    for height, width in ((64, 64), (64, 96)):
        found = in_pixels(torch.from_numpy(batch["boxes"]), height, width).numpy()
        np.testing.assert_allclose(found, to_pixels(batch["boxes"], (height, width)), atol=1e-4)


def perfect(task: Any) -> Any:
    """A model that answers with the truth: the cell nearest to each object names its tokens and its box."""
    places = np.concatenate(anchors(64, 64, task.levels)).astype(np.float32)
    middles = (places[:, :2] + places[:, 2:]) / 2
    samples = iter(range(task.samples))

    def call(feeds: Arrays) -> Arrays:
        count, length = feeds["input_ids"].shape
        logits = np.full((count, len(places), length), -12.0, np.float32)
        regression = np.zeros((count, len(places), 4), np.float32)
        for row in range(count):
            scene, pick = divmod(next(samples), task.texts.ids.shape[1])
            for target, span in zip(task.texts.targets[scene, pick], task.texts.spans[scene, pick], strict=True):
                if target < 0:
                    continue
                box = to_pixels(task.data.scenes.boxes[scene, target], (64, 64)).astype(np.float32)
                cell = int(np.abs(middles[:64] - (box[:2] + box[2:]) / 2).sum(1).argmin())
                logits[row, cell, span[:length]] = 12.0
                regression[row, cell] = encode(torch.from_numpy(box), torch.from_numpy(places[cell])).numpy()
        return {"logits": logits, "boxes": regression, "centerness": np.full(regression.shape[:2], 12.0, np.float32)}

    return call


@pytest.mark.parametrize("kind", ["referring", "grounding", "detection"])
def test_the_truth_is_right(glip_shop: Workshop, kind: Any) -> None:
    task: Any = glip_shop.world.task(kind)
    judged = evaluate(perfect(task), task, batch=5)
    assert judged.value == pytest.approx(1, abs=1e-6)


def test_detection_names_every_object(glip_shop: Workshop) -> None:
    task = glip_shop.world.task("detection")
    assert isinstance(task, DetectionTask)
    assert task.samples == 8
    scenes, texts = task.data.scenes, task.texts
    for row in range(8):
        count = int(scenes.count[row])
        assert (texts.targets[row, 0] >= 0).sum() == count
        assert texts.spans[row, 0, :count].argmax(1).tolist() == (scenes.shape[row, :count] + 1).tolist()
        assert not texts.spans[row, 0, count:].any()
    batch = glip_shop.world.course("detection").batch(0, 0)
    assert batch["image"].tolist() == [0, 1, 2, 3]
    assert batch["boxes"].shape[:2] == batch["box_mask"].shape
    wrong = {"boxes": np.zeros((8, 3, 4)), "scores": np.zeros((8, 3)), "labels": np.full((8, 3), -1)}
    assert task.score(np.arange(8), wrong)["AP@50/image"].tolist() == [0] * 8
    assert task.overall(wrong)["mAP"] == 0


def test_distilling_from_oneself_costs_nothing(glip_shop: Workshop) -> None:
    course = glip_shop.world.course("referring")
    trainee = glip_shop.trainee(course)
    batch = tensors(course.batch(0, 0), torch.device("cpu"))
    with torch.no_grad():
        outputs = trainee.outputs(trainee.through(batch))
        other = {name: value + 0.1 for name, value in outputs.items()}
        mask = batch["attention_mask"]
        assert float(trainee.apart(outputs, outputs, batch)) == pytest.approx(0, abs=1e-6)
        assert float(trainee.apart(other, outputs, batch)) > 0.01
        changed = dict(outputs) | {"logits": torch.where(mask[:, None] != 0, outputs["logits"], 7.0)}
        assert float(trainee.apart(changed, outputs, batch)) == pytest.approx(0, abs=1e-6)


def test_a_structured_glip_is_the_model_itself(folder: Path, glip_shop: Workshop) -> None:
    model = glip_shop.build(model_weights(read_weights(folder / "weights.safetensors")))
    structured = Structured(model, glip_shop.table, load_plan(folder / "plan.json")).eval()
    feeds = {name: tensor.numpy() for name, tensor in model.example(2, 64, 96, 7).items()}
    assert distance(run_eager(structured, feeds), run_eager(model, feeds)) < 1e-5


def test_what_glip_does_not_do(folder: Path, glip_shop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(InarchError, match="no vqa with GLIP"):
        tune(folder, TuneConfig(kind="vqa"), tmp_path / "vqa", device="cpu")
    dense = read_weights(folder / "dense.safetensors")
    with pytest.raises(InarchError, match="only an MDETR"):
        obtain(glip_shop, dense, "scratch", tmp_path, accelerator("no", "cpu"))
    assert judge(glip_shop, dense, "referring", limit=2).headline == "precision@1"


def test_found_boxes_are_relative_to_the_image(glip_shop: Workshop) -> None:
    task: Any = glip_shop.world.task("referring")
    judged = evaluate(perfect(task), task)
    wanted = task.data.scenes.boxes[np.arange(16) // 2, task.texts.targets.reshape(-1)]
    assert iou(to_corners(judged.predictions["boxes"][:, 0]), to_corners(wanted)).min() > 0.95
