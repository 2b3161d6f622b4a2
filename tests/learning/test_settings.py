"""Settings: what is not given suits the model, what is given wins, and what cannot be is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inarch.learning.config import LearnConfig, Optimisation, TuneConfig, configure, read_config, tuning_defaults
from inarch.learning.data_config import (
    TASKS,
    CocoSettings,
    EasyVqaSettings,
    FilesSettings,
    GqaSettings,
    RefcocoSettings,
    ScenesSettings,
    SpritesSettings,
)
from inarch.learning.tasks.aims import OF_FILES
from inarch.learning.tasks.easy_vqa import COUNTS
from inarch.learning.tasks.sprites.world import LEVELS as OF_SPRITES
from inarch.structure.errors import InarchError

# The config.json of a run of version 0.1, as it was written before there were other tasks than scenes.
OF_AN_OLD_RUN = json.loads(
    '{"model":"mdetr-tiny","data":{"task":"scenes","level":"easy","scenes":6000,"held_out":2500,"texts":8,"judged":4,"side":48,'
    '"images":16,"each":4,"seed":0},"dense":{"steps":1500,"rate":0.003,"warmup":200,"decay":0.01,"clip":1.0,"average":0.0,'
    '"interval":500},"learning":{"steps":800,"rate":0.001,"warmup":200,"decay":0.01,"clip":1.0,"average":0.0,"interval":500},'
    '"structure":{"keep":0.62,"sharing":"joint","block":4,"prune":true,"generator":"joint","matching":true,"rate":0.003,'
    '"weight":2.0,"temperature":0.4,"keep_offset":3.0,"share_offset":1.0,"head_offset":3.0,"gather":0.0,"fill":"ffn","core":20.0,'
    '"freeze":0.4,"arrive":0.7,"pull":0.0,"alignment":0.0,"align":true},"weights":null,"precision":"bf16","seed":0}'
)


def written(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_the_configuration_of_an_old_run_can_be_read(tmp_path: Path) -> None:
    found = read_config(written(tmp_path / "config.json", OF_AN_OLD_RUN)).model_dump(mode="json")
    assert found.pop("distil") == found.pop("shallow") == 0, "what came later is as it was before there was such a thing"
    assert found.pop("structure").items() >= OF_AN_OLD_RUN["structure"].items()
    assert found == {name: value for name, value in OF_AN_OLD_RUN.items() if name != "structure"}


@pytest.mark.parametrize("task", ["scenes", "sprites"])
def test_what_is_not_given_suits_the_model(task: str) -> None:
    glip = configure(LearnConfig, {"model": "glip-tiny", "data.task": task})
    assert (glip.data.model_dump()["side"], glip.dense.rate, glip.learning.rate) == (64, 1e-3, 1e-3)
    assert glip == LearnConfig.model_validate({"model": "glip-tiny", "data": {"task": task}})
    mdetr = configure(LearnConfig, {"data.task": task})
    assert (mdetr.data.model_dump()["side"], mdetr.dense.rate, mdetr.learning.rate) == (
        48 if task == "scenes" else 64,
        3e-3,
        3e-3,
    )
    assert configure(LearnConfig, {"data.task": "easy-vqa"}).learning.rate == 1e-3
    assert LearnConfig(model="glip-tiny").model_dump()["data"]["side"] == 64


def test_what_is_given_wins(tmp_path: Path) -> None:
    found = configure(LearnConfig, {"model": "glip-tiny", "data.side": 96, "dense.rate": 0.01, "learning.steps": 7})
    assert (found.data.model_dump()["side"], found.dense.rate) == (96, 0.01)
    assert found.learning == Optimisation(steps=7, rate=1e-3)
    given = LearnConfig(model="glip-tiny", data=ScenesSettings(level="easy"), dense=Optimisation(steps=5))
    assert (given.data, given.dense) == (ScenesSettings(level="easy"), Optimisation(steps=5))
    path = written(tmp_path / "config.json", {"model": "glip-tiny", "dense": {"steps": 5}})
    assert (
        configure(LearnConfig, {}, path) == read_config(path) == configure(LearnConfig, {"model": "glip-tiny", "dense.steps": 5})
    )
    # Only what the file says is given, not what suited its model.
    assert configure(LearnConfig, {"model": "mdetr-tiny"}, path) == configure(LearnConfig, {"dense.steps": 5})
    assert configure(LearnConfig, {"dense.steps": 6}, path).dense.steps == 6


def test_what_a_section_leaves_out_is_as_without_it() -> None:
    assert LearnConfig.model_validate({"learning": {"warmup": 3}}).learning == Optimisation(steps=3000, rate=3e-3, warmup=3)
    assert TuneConfig.model_validate({"optimisation": {"steps": 3}}).optimisation == Optimisation(steps=3, rate=5e-4, warmup=100)


def test_a_configuration_is_read_as_it_was_written(tmp_path: Path) -> None:
    for changes in ({}, {"model": "glip-tiny"}, *({"data.task": task} | needed(task) for task in TASKS)):
        config = configure(LearnConfig, changes)
        assert read_config(written(tmp_path / "config.json", config.model_dump(mode="json"))) == config


def needed(task: str) -> dict[str, str]:
    """What has no default."""
    names = [*FilesSettings.model_fields, *(["answers"] if task == "gqa" else [])]
    paths = {name: f"{name}.json" for name in names if name in ("train", "held_out", "folder", "tokenizer", "answers")}
    return {f"data.{name}": path for name, path in paths.items()} if task in OF_FILES else {}


def test_models_of_full_size_are_trained_gently() -> None:
    for model, rates in (("mdetr-r101", (5e-5, 5e-5)), ("glip-t", (5e-5, 5e-5)), ("glip-tiny", (1e-3, 1e-3))):
        for changes in ({}, {"data.task": "refcoco"} | needed("refcoco")):
            found = configure(LearnConfig, {"model": model} | changes)
            assert (found.dense.rate, found.learning.rate) == rates
        assert tuning_defaults(model, "scenes") == ({"optimisation.rate": 5e-5} if rates[0] == 5e-5 else {})
    assert configure(LearnConfig, {"model": "mdetr-r101", "learning.rate": 1e-4}).learning.rate == 1e-4


def test_a_small_mdetr_on_drawn_images_is_tuned_fast() -> None:
    for task in TASKS:
        fast = {"optimisation.rate": 2e-3} if task in ("scenes", "sprites") else {}
        assert tuning_defaults("mdetr-tiny", task) == fast, task


def test_every_task_has_its_settings() -> None:
    made = {task: configure(LearnConfig, {"data.task": task} | needed(task)).data for task in TASKS}
    kinds = [ScenesSettings, SpritesSettings, EasyVqaSettings, RefcocoSettings, GqaSettings, CocoSettings]
    assert [type(data) for data in made.values()] == kinds
    assert all(data.task == task for task, data in made.items())
    assert made["coco"].model_dump()["train"] == str(Path("train.json").absolute()), "so that a run goes on from anywhere"
    assert EasyVqaSettings().scenes == COUNTS["train"] * 9 // 10
    assert EasyVqaSettings().held_out == COUNTS["test"]
    assert all(SpritesSettings(level=name).level == name for name in OF_SPRITES)


def test_images_are_dealt_out_to_weights_and_structure() -> None:
    assert ScenesSettings(scenes=60, images=4).edge == 54
    assert EasyVqaSettings().edge == 3240


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.scenes": 30, "data.images": 4},
            "settings: data: 30 images leave 3 to learn the structure on, a batch has 4; .* 31 ",
        ),
        ({"data.each": 9}, "settings: data: a batch has 9 texts of an image, of which there are 8"),
        ({"data.level": "odd"}, "settings: data: there is no level 'odd'; there are easy, medium, hard"),
        ({"data.task": "nosuch"}, "settings: data: there is no such task; there are scenes, .*, refcoco, gqa, coco"),
        ({"data.task": "coco"}, r"settings: data\.train: is missing: coco needs it"),
        (needed("coco") | {"data.task": "coco", "data.each": 2}, r"settings: data\.each: .*1"),
        ({"data.task": "easy-vqa", "data.level": "easy"}, r"settings: data\.level: there is no such setting of easy-vqa"),
        ({"data.task": "easy-vqa", "data.scenes": 3601}, r"settings: data\.scenes: .*3600"),
        ({"data.side": 0}, r"settings: data\.side: .*1"),
        ({"data.side": 10**6}, r"settings: data\.side: .*less than or equal to 8192"),
        ({"data": 3}, "settings: data"),
        ({"structure.kep": 0.5}, r"settings: structure\.kep: there is no such setting$"),
        ({"seed": 3, "seed.x": 1}, r"settings: seed\.x: there is no such setting"),
        ({"structure.freeze": 0.9, "structure.arrive": 0.8}, "settings: structure: weights cannot arrive"),
        ({"structure.sharing": "none", "structure.families": {"a": ["b"]}}, "settings: structure: families are given, and"),
        ({"model": [1]}, r"settings: model: .*valid string"),
        ({"structure.keep_offset": float("nan")}, r"settings: structure\.keep_offset: .*finite"),
        ({"structure.head_offset": float("inf")}, r"settings: structure\.head_offset: .*finite"),
        ({"seed": 10**25}, r"settings: seed: .*less than 9223372036854775808"),
        ({"data.seed": 2**63}, r"settings: data\.seed: .*less than"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InarchError, match=message):
        configure(LearnConfig, changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "is no JSON object"), ('{"seed": -1}', "seed: "), (None, "cannot be read")],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    for read in (read_config, lambda file: configure(LearnConfig, {}, file)):
        with pytest.raises(InarchError, match=rf"config\.json: {message}"):
            read(path)
