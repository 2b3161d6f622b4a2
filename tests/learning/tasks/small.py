"""Small files in the public formats, images for them, and a tokenizer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]

IMAGES: list[Json] = [
    {"id": 7, "file_name": "a.png", "height": 40, "width": 60},
    {"id": 3, "file_name": "b.png", "height": 60, "width": 30},
]

REFERRING: Json = {
    "info": {"year": 2014},
    "licenses": [],
    "images": [
        IMAGES[0] | {"caption": "the red ball", "original_id": 1, "dataset_name": "refcoco", "tokens_negative": [[0, 3]]},
        IMAGES[1] | {"caption": "a box on the left", "original_id": 2, "dataset_name": "refcoco+", "tokens_negative": []},
    ],
    "annotations": [
        {
            "id": 0,
            "image_id": 3,
            "category_id": 1,
            "bbox": [5, 10.5, 10, 20],
            "area": 150.5,
            "iscrowd": 0,
            "original_id": 9,
            "tokens_positive": [[2, 5]],
        },
        {
            "id": 1,
            "image_id": 7,
            "category_id": 1,
            "bbox": [0, 0, 10, 10],
            "area": 90,
            "iscrowd": 0,
            "tokens_positive": [[4, 7], [8, 12]],
        },
    ],
    "categories": [{"id": 1, "name": "thing", "supercategory": "all"}],
}

GQA: Json = {
    "info": [],
    "licenses": [],
    "images": [
        IMAGES[0] | {"caption": "is it red ?", "questionId": "0501", "question_type": "attr", "answer": "yes"},
        IMAGES[1] | {"caption": "what is it ?", "questionId": "0502", "question_type": "cat", "answer": "ball"},
        IMAGES[1] | {"id": 4, "caption": "what is it ?", "questionId": "0503", "question_type": "cat", "answer": "zebra"},
    ],
    "annotations": [],
    "categories": [],
}

BY_TYPE: Json = {
    "answer_obj": {"yes": 0, "no": 1, "unknown": 2},
    "answer_attr": {"red": 0, "yes": 1, "no": 2},
    "answer_rel": {"left": 0},
    "answer_global": {"indoors": 0},
    "answer_cat": {"ball": 1, "box": 0, "unknown": 2},
}

COCO: Json = {
    "info": {},
    "licenses": [],
    "images": IMAGES,
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 18, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
        {"id": 1, "image_id": 7, "category_id": 44, "bbox": [35, 5, 20, 30], "area": 600, "iscrowd": 0},
        {"id": 5, "image_id": 3, "category_id": 18, "bbox": [0, 0, 30, 30], "area": 800, "iscrowd": 1},
        {"id": 6, "image_id": 3, "category_id": 44, "bbox": [2, 40, 20, 15.5], "area": 300, "iscrowd": 0},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 44, "name": "bottle"}],
}


def changed(document: Json, *place: Any) -> Json:
    """A document with the value at ``place[:-1]`` replaced by ``place[-1]``, or removed where that is ``...``."""
    result = copy.deepcopy(document)
    *path, key, value = place
    inner: Any = result
    for part in path:
        inner = inner[part]
    if value is ...:
        del inner[key]
    else:
        inner[key] = value
    return result


def write(folder: Path, document: object, name: str = "file.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def write_images(folder: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for row in IMAGES:
        pixels = rng.integers(0, 256, (row["height"], row["width"], 3), np.uint8)
        Image.fromarray(pixels).save(folder / row["file_name"])


def word_tokenizer(words: Iterable[str]) -> Any:
    """Whole words between [CLS] and [SEP], as the package tokenizers has it; blanks have no token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return core


def tokenizer() -> Any:
    """The same as a fast tokenizer of transformers."""
    from transformers import PreTrainedTokenizerFast

    core = word_tokenizer("the a red ball box on left is it what ? striped".split())
    make: Any = PreTrainedTokenizerFast  # its constructor is not typed
    return make(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
