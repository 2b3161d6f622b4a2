"""Scenes as files in the public formats: images of several sizes, annotations of each kind, vocabularies, a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inarch.learning.tasks.coco.files import GQA_TYPES
from inarch.learning.tasks.scenes.data import ScenesConfig, ScenesData
from inarch.learning.tasks.scenes.words import SCENES
from inarch.learning.tasks.scenes.world import ATTRIBUTES, LEVELS

from tests.learning.tasks.small import Json, word_tokenizer, write

SIDE, EACH = 48, 3
WORDS = sorted({word for word in SCENES.words if word.isalpha()} | {"?", "."})


def make_files(folder: Path, images: int = 50, held_out: int = 6) -> Path:
    """``train`` and ``test`` files of each task (``refcoco-train.json``), ``answers.json``, ``tokenizer.json`` and images."""
    for split, count, seed in (("train", images, 0), ("test", held_out, 1)):
        data = ScenesData.make(ScenesConfig(LEVELS["easy"], "train", count, EACH, SIDE, seed))
        rows = [_saved(folder, split, number, pixels) for number, pixels in enumerate(data.images)]
        for task, document in (
            ("refcoco", _referring(data, rows)),
            ("gqa", _questions(data, rows)),
            ("coco", _objects(data, rows)),
        ):
            write(folder, document, f"{task}-{split}.json")
    write(folder, _vocabulary(), "answers.json")
    word_tokenizer(WORDS).save(str(folder / "tokenizer.json"))
    return folder


def settings(folder: Path, task: str, /, **more: Any) -> dict[str, Any]:
    """The data settings of a run on these files."""
    files = {"train": f"{task}-train.json", "held_out": f"{task}-test.json", "tokenizer": "tokenizer.json"}
    answers = {"answers": str(folder / "answers.json")} if task == "gqa" else {}
    paths = {name: str(folder / file) for name, file in files.items()} | {"folder": str(folder)} | answers
    return {"task": task, **paths, "short": 48, "longest": 80, "images": 4, **more}


def _saved(folder: Path, split: str, number: int, pixels: Any) -> Json:
    """Save an image, every second one with a strip of ground beside or below it; its row."""
    from PIL import Image

    right, below = (0, 0) if number % 2 == 0 else (16, 0) if number % 4 == 1 else (0, 24)
    wide = np.pad(pixels, ((0, below), (0, right), (0, 0)))
    name = f"{split}{number}.png"
    Image.fromarray(wide).save(folder / name)
    return {"file_name": name, "height": wide.shape[0], "width": wide.shape[1]}


def _box(data: ScenesData, scene: int, thing: int) -> list[float]:
    x, y, width, height = (float(value) * SIDE for value in data.scenes.boxes[scene, thing])
    return [x - width / 2, y - height / 2, width, height]


def _referring(data: ScenesData, rows: list[Json]) -> Json:
    texts = data.texts("referring")
    images: list[Json] = []
    annotations: list[Json] = []
    for scene, row in enumerate(rows):
        for k in range(EACH):
            number = len(images)
            said = SCENES.decode(texts.ids[scene, k].tolist())
            images.append(row | {"id": number, "caption": said, "dataset_name": "scenes", "tokens_negative": []})
            box = _box(data, scene, int(texts.targets[scene, k].max()))
            annotations.append(_annotation(number, number, 1, box) | {"tokens_positive": [[0, len(said)]]})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def _annotation(number: int, image: int, category: int, box: list[float]) -> Json:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}


def _type_of(answer: str) -> str:
    """GQA's type that an answer is filed under here."""
    if answer in ("yes", "no"):
        return "obj"
    return "global" if answer.isdigit() else "attr"


def _questions(data: ScenesData, rows: list[Json]) -> Json:
    texts = data.texts("vqa")
    images: list[Json] = []
    for scene, row in enumerate(rows):
        for k in range(EACH):
            answer = SCENES.answers[texts.answers[scene, k]]
            asked = {"caption": SCENES.decode(texts.ids[scene, k].tolist()), "answer": answer, "question_type": _type_of(answer)}
            images.append(row | asked | {"id": len(images), "questionId": str(len(images))})
    return {"images": images, "annotations": [], "categories": []}


def _vocabulary() -> Json:
    answers: Json = {f"answer_{kind}": {} for kind in GQA_TYPES}
    for answer in SCENES.answers:
        of_type = answers[f"answer_{_type_of(answer)}"]
        of_type[answer] = len(of_type)
    return {name: found or {"unknown": 0} for name, found in answers.items()}


def _objects(data: ScenesData, rows: list[Json]) -> Json:
    names = ATTRIBUTES["shape"][: LEVELS["easy"].shapes]
    images = [row | {"id": 100 + scene} for scene, row in enumerate(rows)]
    annotations: list[Json] = []
    for scene, count in enumerate(data.scenes.count.tolist()):
        for thing in range(count):
            label = 7 * int(data.scenes.shape[scene, thing])
            annotations.append(_annotation(len(annotations), 100 + scene, label, _box(data, scene, thing)))
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7 * number, "name": name} for number, name in enumerate(names)],
    }
