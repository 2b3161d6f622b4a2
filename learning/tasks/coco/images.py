"""Images and texts as inputs of MDETR and GLIP: resizing, normalising, padding, tokens, and the tokens of a box.

Everything is as their papers' code evaluates; pillow, which resizes, is imported when it is used. Shapes: n images or texts of a
batch, H x W pixels, T tokens, P boxes, S token slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inarch.learning.tasks.coco.files import ImageRow
from inarch.structure.errors import DataError
from inarch.structure.units import Indices

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]
"""Pixel values."""
Size = tuple[int, int]
"""Height and width."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], by channel."""

SPANS = 256
"""Columns of MDETR's positive map."""

_BEGIN_TRIES, _END_TRIES = (0, 1, 2), (1, 2, 3)
"""Where a span's first and last token are looked for: that many characters behind its begin, before its end."""


@dataclass(frozen=True)
class Preparation:
    """How an image becomes pixel values.

    Attributes:
        short: the length that the short side is given,
        longest: unless the long side became longer than this.
        multiple: a batch is padded to multiples of it; 32 for GLIP, the patch for a ViT.
        mean, std: by channel, of pixels in [0, 1], in RGB order.
        bgr: whether channels are given in reverse.
    """

    short: int = 800
    longest: int = 1333
    multiple: int = 1
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    bgr: bool = False

    def size(self, original: Size) -> Size:
        """Size that an image of this size is resized to: its form is kept but for rounding down."""
        small, large = min(original), max(original)
        short = self.short
        if large * short > self.longest * small:
            short = round(self.longest * small / large)
        if small == short:
            return original
        # Where a line of pixels would vanish, it stays, and the form does not.
        long, short = (short * large // small, short) if short else (self.longest, 1)
        return (short, long) if original[0] <= original[1] else (long, short)

    def padded(self, sizes: Sequence[Size]) -> Size:
        """Size of a batch of resized images."""
        height, width = (-(-max(size[axis] for size in sizes) // self.multiple) * self.multiple for axis in (0, 1))
        return height, width


MDETR = Preparation()
GLIP = Preparation(
    multiple=32,
    mean=(123.675 / 255, 116.28 / 255, 103.53 / 255),
    std=(58.395 / 255, 57.12 / 255, 57.375 / 255),
    bgr=True,
)


def pillow() -> ModuleType:
    """The module ``PIL.Image``.

    Raises:
        DataError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images need pillow, which is not installed", hint="pip install pillow") from error
    return Image


def open_rgb(path: Path) -> Pixels:
    """Read an image file, [H, W, 3].

    Raises:
        DataError: it cannot be read, or is no image.
    """
    with _opened(path) as image:
        if image.mode.startswith("I;16"):  # pillow would cut off what is above 255
            grey = np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image file, of which only the header has been read; whatever is wrong with it is said."""
    pil = pillow()
    try:
        with pil.open(path) as image:
            if image.mode in ("I", "F"):
                raise DataError(f"has pixels of 32 bits (mode {image.mode}): which are white is not known", where=str(path))
            yield image
    except (OSError, SyntaxError, ValueError, RuntimeError, pil.DecompressionBombError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(f"cannot be read as an image: {reason}", where=str(path)) from error


def read_image(folder: Path, row: ImageRow, *, sized: bool = True) -> Pixels:
    """Read the image of a row, [H, W, 3].

    Args:
        folder: of the images.
        row: says the file.
        sized: whether it must have the size that the row says; boxes in pixels mean nothing otherwise.

    Raises:
        DataError: the file lies outside of the folder, cannot be read, or has another size.
    """
    path = _place(folder, row)
    pixels = open_rgb(path)
    if sized:
        _check_size((pixels.shape[0], pixels.shape[1]), row, path)
    return pixels


def check_image(folder: Path, row: ImageRow, *, sized: bool = True) -> None:
    """As :func:`read_image`, by the file's header alone: pixels that are damaged are not found.

    Raises:
        DataError: the file lies outside of the folder, is no image, or has another size.
    """
    path = _place(folder, row)
    with _opened(path) as image:
        width, height = image.size
    if sized:
        _check_size((height, width), row, path)


def _place(folder: Path, row: ImageRow) -> Path:
    name = Path(row.file_name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{row.file_name!r} lies outside of the folder of images", where=str(folder))
    return folder / name


def _check_size(size: Size, row: ImageRow, path: Path) -> None:
    if size != (row.height, row.width):
        raise DataError(
            f"has {size[1]} x {size[0]} pixels, its annotations are for {row.width} x {row.height}",
            where=str(path),
            hint="is it the folder of the images that were annotated? A rotation that a file only notes (EXIF) is not made",
        )


def resize(pixels: Pixels, size: Size) -> Pixels:
    """An image [H, W, 3] in another size, bilinear with every source pixel counted."""
    if pixels.shape[:2] == size:
        return pixels
    image = pillow()
    return np.asarray(image.fromarray(pixels).resize((size[1], size[0]), image.Resampling.BILINEAR))


def normalise(pixels: Pixels, preparation: Preparation) -> Values:
    """Pixel values [..., 3, H, W] of images [..., H, W, 3]."""
    mean, std = np.asarray(preparation.mean, np.float32), np.asarray(preparation.std, np.float32)
    values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(values[..., ::-1] if preparation.bgr else values, -1, -3))


def prepared(pixels: Pixels, preparation: Preparation = MDETR) -> Values:
    """An image [H, W, 3] resized and normalised: [3, h, w]."""
    return normalise(resize(pixels, preparation.size((pixels.shape[0], pixels.shape[1]))), preparation)


def padded(images: Sequence[Values], preparation: Preparation = MDETR) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Images as one batch, padded to the right and below.

    Args:
        images: [3, h, w] each, as :func:`prepared`.
        preparation: how.

    Returns:
        pixel_values [n, 3, H, W], 0 on padding, and pixel_mask [n, H, W], True on real pixels.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = preparation.padded(sizes)
    values = np.zeros((len(images), 3, height, width), np.float32)
    mask = np.zeros((len(images), height, width), np.bool_)
    for row, (image, size) in enumerate(zip(images, sizes, strict=True)):
        values[row, :, : size[0], : size[1]] = image
        mask[row, : size[0], : size[1]] = True
    return values, mask


class Tokenizer(Protocol):
    """What is needed of a fast tokenizer of transformers."""

    def __call__(self, text: list[str]) -> Any:
        """Encode texts: ``input_ids`` and ``char_to_token``."""


def pad_rows(rows: Sequence[Sequence[int]], fill: int) -> tuple[Indices, Indices]:
    """Token lists as one array [n, T], padded on the right, and its mask [n, T], 1 on real tokens."""
    lengths = np.asarray([len(row) for row in rows], np.int64)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, fill, np.int64)
    ids[mask] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    return ids, mask.astype(np.int64)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], *, longest: int | None = None) -> tuple[Indices, Indices]:
    """Tokens of texts, padded to the longest.

    Args:
        tokenizer: a fast tokenizer of transformers with a padding token.
        texts: n of them.
        longest: most tokens that the model takes.

    Returns:
        input_ids and attention_mask, [n, T].

    Raises:
        DataError: the tokenizer has no padding token, or a text has more tokens than the model takes: none is cut off.
    """
    fill = getattr(tokenizer, "pad_token_id", None)
    if fill is None:
        where = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        raise DataError("the tokenizer has no padding token", where=where)
    rows: list[list[int]] = tokenizer(list(texts))["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if longest is not None and len(row) > longest:
            raise DataError(f"{len(row)} tokens are more than the model's {longest}", where=repr(text))
    return pad_rows(rows, int(fill))


def positive_map(
    tokenizer: Tokenizer,
    text: str,
    spans: Sequence[Sequence[tuple[int, int]]],
    *,
    columns: int = SPANS,
    blanks: bool = False,
) -> npt.NDArray[np.float32]:
    """Which tokens of a text name which box.

    A span reaches from the token of its first to that of its last character. A tokenizer gives blanks no token: then the two
    next characters inwards are tried, as MDETR does.

    Args:
        tokenizer: a fast tokenizer of transformers.
        text: the caption.
        spans: [begin, end) of characters, several for each of P boxes.
        columns: S.
        blanks: whether a span that no token is found for is passed over, as MDETR does, and not refused.

    Returns:
        [P, S], 0 and 1: the released code divides by the row's sum, but its batches hold booleans.

    Raises:
        DataError: no token, or one behind the last column, stands for a span.
    """
    encoded = tokenizer([text])
    result = np.zeros((len(spans), columns), np.float32)
    for row, parts in enumerate(spans):
        for begin, end in parts:
            first = _token(encoded, [begin + step for step in _BEGIN_TRIES], len(text))
            last = _token(encoded, [end - step for step in _END_TRIES], len(text))
            if blanks and (first is None or last is None or last < first):
                continue
            if first is None or last is None or last < first:
                raise DataError(f"no token stands for the characters [{begin}, {end})", where=repr(text))
            if last >= columns:
                raise DataError(f"token {last} of [{begin}, {end}) lies behind the {columns} columns", where=repr(text))
            result[row, first : last + 1] = 1
    return result


def _token(encoded: Any, characters: Sequence[int], length: int) -> int | None:
    """The token of the first of these characters that has one."""
    for character in characters:
        if 0 <= character < length:
            token: int | None = encoded.char_to_token(0, character)
            if token is not None:
                return token
    return None
