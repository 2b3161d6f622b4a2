from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from inarch.learning.tasks import easy_vqa
from inarch.learning.tasks.easy_vqa import SPLITS, EasyVqa, EasyVqaTask, Vocabulary, check_files, find_package, question_only
from inarch.runtime.accuracy import Arrays, Task, evaluate
from inarch.structure.errors import DataError, RuntimeFailure

installed = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="the package easy-vqa is not installed")


def small(answers: list[int], questions: list[str]) -> EasyVqa:
    """Two images, and questions on each in turn; the classes are no, yes, red."""
    count = len(answers)
    words = Vocabulary.of(questions)
    ids, mask = words.encode(questions)
    images = np.stack([np.full((64, 64, 3), shade, np.uint8) for shade in (0, 255)])
    return EasyVqa(
        "test", words, ("no", "yes", "red"), images, ids, mask, np.arange(count) % 2, np.asarray(answers), tuple(questions)
    )


def test_vocabulary() -> None:
    words = Vocabulary.of(["is it red?", "What is it?"])
    assert words.words == ("[pad]", "[start]", "[stop]", "?", "is", "it", "red", "what")
    ids, mask = words.encode(["what is it?", "red"])
    assert ids.tolist() == [[1, 7, 4, 5, 3, 2], [1, 6, 2, 0, 0, 0]]
    assert mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    with pytest.raises(DataError, match="no word 'blue'"):
        words.encode(["is it blue?"])


def test_question_only_takes_the_most_frequent_answer() -> None:
    train = small([1, 0, 1, 2, 2, 0, 0], ["a?", "a?", "a?", "b?", "b?", "c?", "d?"])
    assert question_only(train, small([0] * 3, ["a?", "b?", "new?"])).tolist() == [1, 2, 0]


def test_accuracy() -> None:
    task: Task = EasyVqaTask(small([0, 1, 2, 2], ["a?", "b?", "c?", "d?"]))

    def model(feeds: Arrays) -> Arrays:
        assert feeds["pixel_values"].shape[1:] == (3, 64, 64)
        # The second image is bright; the model says yes of it and red of the other.
        bright = feeds["pixel_values"].mean((1, 2, 3)) > 0
        return {"answer": np.where(bright[:, None], [0.0, 1, 0], [0.0, 0, 1])}

    for batch in (1, 3):
        found = evaluate(model, task, batch=batch)
        assert found.scores["accuracy"].tolist() == [0, 1, 1, 0]
        assert found.overall == {"accuracy": 0.5, "accuracy_yes_no": 0.5, "accuracy_others": 0.5}
    assert "accuracy_others" not in evaluate(model, task, limit=2).overall


def test_inputs_are_whole_and_normalised() -> None:
    feeds = EasyVqaTask(small([0, 1], ["a b?", "c?"])).feeds(np.asarray([1, 0]))
    assert feeds["pixel_mask"].all()
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1] * 5]
    np.testing.assert_allclose(
        feeds["pixel_values"][1, :, 0, 0], np.asarray([-0.485, -0.456, -0.406]) / (0.229, 0.224, 0.225), 1e-5
    )


def test_other_outputs_are_refused() -> None:
    task = EasyVqaTask(small([0, 1], ["a?", "b?"]), logits="logits")
    with pytest.raises(RuntimeFailure, match="no output 'logits'"):
        task.predict(np.arange(2), {"answer": np.zeros((2, 3))})
    with pytest.raises(RuntimeFailure, match=r"has the shape \[2, 13\], wanted \[2, 3\]"):
        task.predict(np.arange(2), {"logits": np.zeros((2, 13))})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(easy_vqa, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"easy-vqa is not installed \(pip install"):
        find_package()


def test_another_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"answers\.txt: cannot be read"):
        check_files(tmp_path)
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    with pytest.raises(DataError, match=r"answers\.txt: is not the file of easy-vqa 1\.0: its sha256 is"):
        check_files(tmp_path)


@installed
def test_the_splits_are_whole_and_disjoint() -> None:
    train, val, test = (EasyVqa.load(split) for split in SPLITS)
    assert [len(split.images) for split in (train, val, test)] == [3600, 400, 1000]
    assert len(train) + len(val) == 38575
    assert len(test) == 9673
    assert len(test.classes) == 13
    for split in (train, val, test):
        assert split.images.shape[1:] == (64, 64, 3)
        assert split.images.dtype == np.uint8
        assert split.vocabulary == train.vocabulary
        assert split.input_ids.shape == split.attention_mask.shape == (len(split), 12)
        assert (split.input_ids[split.attention_mask == 0] == 0).all()
        assert np.array_equal(np.unique(split.image), np.arange(len(split.images)))
        assert split.answers.max() == 12
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    # The published share of yes and no.
    binary = np.isin(test.answers, [test.classes.index(word) for word in ("yes", "no")])
    assert int(binary.sum()) == 7136
    assert np.mean(question_only(train, test) == test.answers) == pytest.approx(0.6696, abs=1e-4)


@installed
def test_the_first_images_alone() -> None:
    first, whole = EasyVqa.load("test", images=3), EasyVqa.load("test", images=5)
    assert len(first.images) == 3
    assert first.questions == whole.questions[: len(first)]
    assert first.image.max() == 2
    assert first.questions[0] == "what is the red shape?"
    assert first.classes[first.answers[0]] == "triangle"
