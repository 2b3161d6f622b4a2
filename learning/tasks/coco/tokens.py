"""A ``tokenizer.json`` as a tokenizer, without transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inarch.structure.errors import DataError

_PADS = ("[PAD]", "<pad>")


class _Encoded(dict[str, list[list[int]]]):
    """What :class:`FileTokenizer` says of texts."""

    def __init__(self, encodings: Sequence[Any]) -> None:
        super().__init__(input_ids=[list(one.ids) for one in encodings])
        self._encodings = encodings

    def char_to_token(self, text: int, character: int) -> int | None:
        """The token that a character belongs to."""
        found: int | None = self._encodings[text].char_to_token(character)
        return found


class FileTokenizer:
    """A ``tokenizer.json``, as a fast tokenizer of transformers is called, without transformers.

    Args:
        path: the file, or a folder that has it.

    Attributes:
        name_or_path: the file.
        pad_token_id: the padding token: the one that the file pads with, else one that is called as it usually is, or None.
        vocabulary: rows that a table of all tokens has.

    Raises:
        DataError: the package tokenizers is not installed, or the file is none of its.
    """

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise DataError("texts need tokenizers, which is not installed", hint="pip install tokenizers") from error
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises plain ones, with the reason
            raise DataError(f"is no tokenizer: {error}", where=str(file), hint="--tokenizer takes a tokenizer.json") from error
        self.name_or_path = str(file)
        padding = self._tokenizer.padding
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocabulary = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        known = (self._tokenizer.token_to_id(pad) for pad in _PADS)
        fallback = next((token for token in known if token is not None), None)
        self.pad_token_id: int | None = int(padding["pad_id"]) if padding else fallback

    def __call__(self, text: list[str]) -> _Encoded:
        """Encode texts."""
        return _Encoded(self._tokenizer.encode_batch(text))
