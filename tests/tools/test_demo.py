"""The demo's parts that need no weights: pictures, judging answers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from inarch.tools import demo_inputs
from inarch.tools.demo_inputs import TRIPLES, judge, pictures
from inarch.tools.towers import IMAGE_OUTPUT, TEXT_OUTPUT

Array = npt.NDArray[np.float32]


@pytest.fixture
def outputs() -> dict[str, Array]:
    """Answers of a model that understands: a sentence and its paraphrase are near, the third is not."""
    rng = np.random.default_rng(0)
    meaning = rng.standard_normal((2 * len(TRIPLES), 64), dtype=np.float32)
    said = [meaning[2 * i + (place == 2)] for i in range(len(TRIPLES)) for place in range(3)]
    noise = 0.1 * rng.standard_normal((len(said), 64), dtype=np.float32)
    maps = rng.random((len(pictures()), 1, 8, 8), dtype=np.float32)
    return {TEXT_OUTPUT: np.array(said) + noise, IMAGE_OUTPUT: maps}


def test_pictures_are_images_and_always_the_same() -> None:
    first, second = pictures(), pictures()
    for name, picture in first.items():
        assert picture.shape == (224, 224, 3)
        assert picture.dtype == np.float32
        assert 0 <= picture.min() < picture.max() <= 1
        np.testing.assert_array_equal(picture, second[name])


def test_sentences_are_all_different() -> None:
    sentences = [sentence for triple in TRIPLES for sentence in triple]
    assert len(set(sentences)) == len(sentences)


def test_the_original_agrees_with_itself(outputs: dict[str, Array]) -> None:
    answers = judge(outputs, outputs)
    assert answers.found == answers.sentences == 2 * len(TRIPLES)
    assert answers.sentence_cosine == pytest.approx(1)
    assert answers.mean_correlation == pytest.approx(1)


def test_confused_sentences_are_not_found(outputs: dict[str, Array]) -> None:
    confused = outputs[TEXT_OUTPUT].copy()
    confused[1] = confused[5]  # the first paraphrase now says what the second triple's third sentence says
    answers = judge(outputs, {**outputs, TEXT_OUTPUT: confused})
    assert answers.found == answers.sentences - 2
    assert answers.worst_sentence_cosine < 0.5 < answers.sentence_cosine


def test_scaling_does_not_matter_but_turning_does(outputs: dict[str, Array]) -> None:
    assert judge(outputs, {**outputs, TEXT_OUTPUT: 3 * outputs[TEXT_OUTPUT]}).sentence_cosine == pytest.approx(1)
    assert judge(outputs, {**outputs, TEXT_OUTPUT: -outputs[TEXT_OUTPUT]}).sentence_cosine == pytest.approx(-1)


def test_flat_and_inverted_maps(outputs: dict[str, Array]) -> None:
    maps = outputs[IMAGE_OUTPUT]
    assert judge(outputs, {**outputs, IMAGE_OUTPUT: np.zeros_like(maps)}).mean_correlation == 0
    assert judge(outputs, {**outputs, IMAGE_OUTPUT: 1 - maps}).mean_correlation == pytest.approx(-1)
    assert set(judge(outputs, outputs).picture_correlation) == set(demo_inputs.pictures())
