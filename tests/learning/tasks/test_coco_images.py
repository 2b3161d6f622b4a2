from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from inarch.learning.tasks.coco.files import ImageRow
from inarch.learning.tasks.coco.images import (
    GLIP,
    MDETR,
    MEAN,
    STD,
    Preparation,
    Size,
    check_image,
    encode_texts,
    normalise,
    open_rgb,
    padded,
    positive_map,
    prepared,
    read_image,
    resize,
)
from inarch.structure.errors import DataError

from tests.learning.tasks.small import IMAGES, tokenizer, write_images

ROWS = [ImageRow(**row) for row in IMAGES]


@pytest.mark.parametrize(
    ("original", "wanted"),
    [
        ((480, 640), (800, 1066)),
        ((640, 480), (1066, 800)),
        ((500, 500), (800, 800)),
        ((800, 1000), (800, 1000)),
        ((300, 1000), (400, 1333)),
        ((1000, 300), (1333, 400)),
        ((427, 640), (800, 1199)),
        ((100, 2000), (67, 1340)),  # the short side is rounded first, so the long one may end a little above
        ((1, 5000), (1, 1333)),  # a line of pixels stays, and is no longer than anything else
        ((10000, 3), (1333, 1)),
    ],
)
def test_sizes(original: Size, wanted: Size) -> None:
    assert MDETR.size(original) == wanted


def test_sizes_of_a_batch() -> None:
    assert MDETR.padded([(800, 1066), (1066, 800)]) == (1066, 1066)
    assert GLIP.padded([(800, 1066), (801, 800)]) == (832, 1088)


def test_images_are_read_as_rgb(tmp_path: Path) -> None:
    from PIL import Image

    write_images(tmp_path)
    assert read_image(tmp_path, ROWS[0]).shape == (40, 60, 3)
    Image.new("L", (60, 40), 77).save(tmp_path / "a.png")
    assert (read_image(tmp_path, ROWS[0]) == 77).all()


def test_refused_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    inner = tmp_path / "inner"
    inner.mkdir()
    for name, said in [
        ("none.png", "No such file"),
        ("text.png", "cannot be read as an image"),
        ("cut.png", "cannot be read as an image"),
        ("../a.png", "outside"),
        (str(tmp_path / "a.png"), "outside"),
    ]:
        with pytest.raises(DataError, match=said):
            read_image(tmp_path if said != "outside" else inner, ROWS[0].model_copy(update={"file_name": name}))
    other = ROWS[0].model_copy(update={"width": 61})
    with pytest.raises(DataError, match=r"a\.png: has 60 x 40 pixels, its annotations are for 61 x 40"):
        read_image(tmp_path, other)
    assert read_image(tmp_path, other, sized=False).shape == (40, 60, 3)


def test_resizing_keeps_what_is_even() -> None:
    image = np.full((4, 6, 3), (10, 20, 30), np.uint8)
    assert (resize(image, (9, 5)) == (10, 20, 30)).all()
    assert resize(image, (4, 6)) is image


def test_normalising() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = (255, 127, 0)
    values = normalise(image, MDETR)
    assert values.shape == (3, 1, 2)
    expected = (np.asarray([1, 127 / 255, 0]) - MEAN) / STD
    np.testing.assert_allclose(values[:, 0, 1], expected, rtol=1e-6)
    # GLIP: channels in reverse, pixels to 255.
    bgr = (np.asarray([0, 127, 255]) - (103.53, 116.28, 123.675)) / (57.375, 57.12, 58.395)
    np.testing.assert_allclose(normalise(image, GLIP)[:, 0, 1], bgr, rtol=1e-5)


def test_batches_are_padded() -> None:
    images = [np.full((40, 60, 3), 255, np.uint8), np.zeros((60, 30, 3), np.uint8)]
    preparation = Preparation(short=20, longest=32, multiple=16)
    values, mask = padded([prepared(image, preparation) for image in images], preparation)
    assert values.shape == (2, 3, 32, 32)
    assert values.dtype == np.float32
    assert [(int(m.any(1).sum()), int(m.any(0).sum())) for m in mask] == [(20, 30), (32, 16)]
    assert mask.sum() == 20 * 30 + 32 * 16
    assert (values.transpose(0, 2, 3, 1)[~mask] == 0).all()
    np.testing.assert_allclose(values[0][:, mask[0]].T, np.tile((1 - np.asarray(MEAN)) / STD, (600, 1)), rtol=1e-5)


@pytest.fixture(scope="module")
def words() -> Any:
    pytest.importorskip("transformers")
    return tokenizer()


def test_texts(words: Any) -> None:
    ids, mask = encode_texts(words, ["the red ball", "it"])
    assert ids.tolist() == [[1, 4, 6, 7, 2], [1, 12, 2, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_refused_texts(words: Any) -> None:
    with pytest.raises(DataError, match="'the red ball': 5 tokens are more than the model's 4"):
        encode_texts(words, ["it", "the red ball"], longest=4)
    with pytest.raises(DataError, match="no padding token"):
        encode_texts(lambda text: {"input_ids": [[1] for _ in text]}, ["it"])


def test_tokens_of_boxes(words: Any) -> None:
    text = "the  striped ball left"
    found = positive_map(words, text, [[(5, 12)], [(0, 3), (18, 22)], [(3, 12)], [(5, 15)], []], columns=8)
    # [CLS] the striped ball left [SEP]
    assert found.tolist() == [
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],  # two blanks are passed over
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert positive_map(words, text, [[(0, 5)]]).nonzero()[1].tolist() == [1]
    assert positive_map(words, text, []).shape == (0, 256)


@pytest.mark.parametrize("span", [(3, 5), (22, 25), (30, 31)])
def test_no_token_for_a_span(words: Any, span: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="no token stands for the characters"):
        positive_map(words, "the  striped ball left", [[span]])


def test_tokens_behind_the_last_column(words: Any) -> None:
    with pytest.raises(DataError, match="lies behind the 3 columns"):
        positive_map(words, "the red ball", [[(8, 12)]], columns=3)


def test_pixels_of_sixteen_bits(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    ramp = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        pil.fromarray(ramp).save(tmp_path / name)
        read = open_rgb(tmp_path / name)
        assert read.shape == (40, 60, 3)
        np.testing.assert_allclose(read, np.repeat(ramp[..., None] / 257, 3, axis=2), atol=0.5)
    row = ImageRow(id=1, file_name="f.tif", height=40, width=60)
    for mode in (np.float32, np.int32):
        pil.fromarray((ramp / 65535).astype(mode)).save(tmp_path / "f.tif")
        for look in (check_image, read_image):
            with pytest.raises(DataError, match=r"f\.tif: has pixels of 32 bits"):
                look(tmp_path, row)
