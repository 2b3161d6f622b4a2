"""Files of predictions: what is written is read, whatever else is there is refused, and no half file is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inarch.runtime.accuracy import Evaluation
from inarch.runtime.predictions import FORMAT, Predictions, load_predictions, save_predictions
from inarch.structure.errors import DataError

BOXES = np.random.default_rng(0).random((3, 2, 4))
EVALUATION = Evaluation(
    "scenes/referring",
    "precision@1",
    {"boxes": BOXES, "margin": np.array([0.1, 0.2, 0.3])},
    {"precision@1": np.array([1.0, 0.0, 1.0]), "precision@5": np.ones(3)},
    {"precision@1": 2 / 3, "precision@5": 1.0, "precision@1/relation": 0.5},
)
FOUND = Predictions(EVALUATION, {"split": "test", "seed": 3}, ("the red ball", "ein Würfel", ""), {"model": "m.onnx"})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    save_predictions(FOUND, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.npz"]
    read = load_predictions(path)
    assert (read.samples, read.texts, read.made) == (FOUND.samples, FOUND.texts, FOUND.made)
    assert (read.evaluation.task, read.evaluation.headline) == ("scenes/referring", "precision@1")
    assert read.evaluation.overall == EVALUATION.overall
    for mine, theirs in ((read.evaluation.predictions, EVALUATION.predictions), (read.evaluation.scores, EVALUATION.scores)):
        assert set(mine) == set(theirs)
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    save_predictions(FOUND, tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert json.loads(str(file["about"]))["format"] == FORMAT
        assert file["texts"].tolist() == list(FOUND.texts)
        assert file["predictions/boxes"].shape == (3, 2, 4)


def changed(path: Path, **changes: Any) -> None:
    """Write the file with some arrays replaced, or left out where None."""
    save_predictions(FOUND, path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {key: changes.pop(key) for key in ("texts",) if key in changes}
    about = json.loads(str(arrays["about"])) | {key: value for key, value in changes.items() if "_" not in key}
    arrays["about"] = np.asarray(json.dumps(about))
    for key, value in changes.items():
        if "_" in key:
            name = key.replace("_", "/", 1)
            arrays.pop(name)
            if value is not None:
                arrays[name] = value
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "inarch.predictions/2"}, "has the format 'inarch.predictions/2'"),
        ({"task": 3}, "about.task: is missing or of another type"),
        ({"samples": None}, "about.samples: is missing"),
        ({"headline": "mAP"}, "there is no 'mAP'"),
        ({"scores_precision@1": np.ones(4)}, "lengths that do not fit"),
        ({"predictions_margin": np.float64(1)}, "lengths that do not fit"),
        ({"scores_precision@1": None, "scores_precision@5": None}, "lengths that do not fit"),
        ({"scores_precision@1": np.asarray(["a", "b", "c"])}, "scores/precision@1: is no number from 0 to 1"),
        ({"scores_precision@1": np.ones(3, np.bool_)}, "is no number from 0 to 1"),
        ({"scores_precision@1": np.ones((3, 2))}, "is no number from 0 to 1"),
        ({"scores_precision@1": np.asarray([1, np.nan, 0])}, "is no number from 0 to 1"),
        ({"scores_precision@1": np.full(3, 5.0)}, "is no number from 0 to 1"),
        ({"predictions_margin": np.ones((3, 2))}, "predictions/margin: is no number for each sample"),
        ({"predictions_margin": np.asarray(["a", "b", "c"])}, "predictions/margin: is no number"),
        ({"overall": {"precision@1": "much"}}, r"about\.overall\.precision@1: is no number"),
        ({"texts": np.asarray(["only one"])}, "texts: there are 1 for 3 samples"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.npz"
    changed(path, **changes)
    with pytest.raises(DataError, match=message):
        load_predictions(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 and nothing", None])
def test_other_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.npz"):
        load_predictions(path)


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", weights=np.ones(3))
    with pytest.raises(DataError, match="no file of predictions"):
        load_predictions(tmp_path / "p.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(DataError, match="no file of predictions"):
        load_predictions(tmp_path / "one.npy")
    np.savez(tmp_path / "q.npz", about=np.asarray("[1]"))
    with pytest.raises(DataError, match="has the format"):
        load_predictions(tmp_path / "q.npz")


def test_nothing_is_left_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.npz"
    save_predictions(FOUND, path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DataError, match="No space left"):
        save_predictions(FOUND, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.npz"]
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="cannot be written"):
        save_predictions(FOUND, tmp_path / "nowhere" / "p.npz")
