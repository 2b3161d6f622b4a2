"""How good detections are: COCO's mean average precision by pycocotools, and the average precision of one image alone."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.boxes import Floats, area, coco_to_corners, corners_to_coco, iou
from inarch.learning.tasks.coco.files import BoxRow, CocoFile
from inarch.structure.errors import DataError, RuntimeFailure
from inarch.structure.units import Indices

_STATS = {"mAP": 0, "mAP@50": 1, "mAP@75": 2, "mAP_small": 3, "mAP_medium": 4, "mAP_large": 5}
"""Metric -> its place in pycocotools' summary."""


def pycocotools() -> tuple[Any, Any]:
    """Its classes of annotations and of evaluation.

    Raises:
        DataError: it is not installed.
    """
    try:
        return import_module("pycocotools.coco").COCO, import_module("pycocotools.cocoeval").COCOeval
    except ImportError as error:
        raise DataError("mAP needs pycocotools, which is not installed", hint="pip install pycocotools") from error


def coco_metrics(file: CocoFile, predictions: Mapping[str, npt.NDArray[Any]], name: str) -> dict[str, float]:
    """COCO's metrics over the first n images of a file.

    Args:
        file: images, boxes and categories.
        predictions: ``boxes`` [n, K, 4] (corners), ``scores`` [n, K] and ``labels`` [n, K], -1 for none.
        name: of the task.

    Returns:
        Metric -> value; those for sizes of which no object is annotated are left out.

    Raises:
        DataError: pycocotools is not installed.
        RuntimeFailure: none of these images has an annotated object.
    """
    coco_class, judge_class = pycocotools()
    images = file.images[: len(predictions["labels"])]
    ids = {row.id for row in images}
    truth = [row for row in file.annotations if row.image_id in ids]
    if all(row.iscrowd for row in truth):
        raise RuntimeFailure("these images have no annotated object", where=name)
    found = _results(images_of=[row.id for row in images], predictions=predictions)
    # pycocotools reports on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco_class()
        known.dataset = _document(file, images_of=[row.id for row in images], truth=truth)
        known.createIndex()
        # loadRes refuses an empty list.
        seen = known.loadRes(found) if found else _empty(coco_class, known.dataset)
        judge = judge_class(known, seen, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {metric: float(judge.stats[place]) for metric, place in _STATS.items() if judge.stats[place] >= 0}


def _document(file: CocoFile, images_of: Sequence[int], truth: Sequence[BoxRow]) -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": number} for number in images_of],
        "categories": [{"id": row.id, "name": row.name} for row in file.categories],
        "annotations": [
            # Numbered from 1: pycocotools takes an annotation with the id 0 for no match.
            {
                "id": number,
                "image_id": row.image_id,
                "category_id": row.category_id,
                "bbox": list(row.bbox),
                "area": row.area,
                "iscrowd": row.iscrowd,
            }
            for number, row in enumerate(truth, 1)
        ],
    }


def _results(images_of: Sequence[int], predictions: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, Any]]:
    boxes, scores, labels = (predictions[name] for name in ("boxes", "scores", "labels"))
    place, rank = np.nonzero(labels >= 0)
    chosen = zip(
        place.tolist(),
        labels[place, rank].tolist(),
        corners_to_coco(boxes[place, rank]).tolist(),
        scores[place, rank].tolist(),
        strict=True,
    )
    return [{"image_id": images_of[row], "category_id": label, "bbox": box, "score": s} for row, label, box, s in chosen]


def _empty(coco_class: Any, document: dict[str, Any]) -> Any:
    empty = coco_class()
    empty.dataset = document | {"annotations": []}
    empty.createIndex()
    return empty


def average_precision(boxes: Floats, labels: Indices, truth: Sequence[BoxRow], overlap: float) -> float:
    """Average precision of one image's detections, all classes in one ranking.

    A detection is right where it has the class of an object that no better detection took, and overlaps it enough; one on a crowd
    of its class is not counted.

    Args:
        boxes: [m, 4] corners, best first.
        labels: [m] category ids.
        truth: what is annotated.
        overlap: IoU that is enough; for a crowd, the share of the detection that lies in it.

    Returns:
        In [0, 1]; 1 where there is no object.
    """
    objects, crowds = [row for row in truth if not row.iscrowd], [row for row in truth if row.iscrowd]
    if not objects:
        return 1.0
    shared = np.where(labels[:, None] == _labels(objects), iou(boxes[:, None], _corners(objects)), 0)
    ignored = _in_crowd(boxes, labels, crowds) >= overlap
    right: list[bool] = []
    for row, overlaps in enumerate(shared):
        best = int(overlaps.argmax())
        hit = bool(overlaps[best] >= overlap)
        if hit:
            shared[:, best] = 0
        if hit or not ignored[row]:
            right.append(hit)
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    # What a longer list reaches counts for a shorter one too.
    best_later = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_later[np.asarray(right, np.bool_)].sum() / len(objects))


def _corners(rows: Sequence[BoxRow]) -> Floats:
    return coco_to_corners(np.asarray([row.bbox for row in rows], np.float64).reshape(-1, 4))


def _labels(rows: Sequence[BoxRow]) -> Indices:
    return np.asarray([row.category_id for row in rows], np.int64)


def _in_crowd(boxes: Floats, labels: Indices, crowds: Sequence[BoxRow]) -> Floats:
    """The largest share of each box that lies in a crowd of its class, [m]."""
    if not crowds:
        return np.zeros(len(boxes))
    around = _corners(crowds)
    low, high = np.maximum(boxes[:, None, :2], around[:, :2]), np.minimum(boxes[:, None, 2:], around[:, 2:])
    share = area(np.concatenate((low, high), -1)) / np.maximum(area(boxes), 1e-12)[:, None]
    return np.asarray(np.where(labels[:, None] == _labels(crowds), share, 0).max(1))
