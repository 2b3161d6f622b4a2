"""MDETR's configuration and its named presets.

Sizes are facts of the released models (ashkamath/mdetr); presets with a ViT and the tiny ones are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width {width} is no multiple of {heads} heads")


class Frozen(BaseModel):
    """Base of all configurations: immutable, strict, read from and written to JSON by pydantic."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class TextConfig(Frozen):
    """A BERT-like text encoder.

    Attributes:
        family: ``roberta`` counts positions from the padding index, ``bert`` from 0.
        vocabulary: tokens.
        positions: rows of the position table; RoBERTa's first two are not used.
        types: rows of the token-type table.
        width, layers, heads, hidden: of the encoder.
        epsilon: of its norms.
        pooler: whether the checkpoint has the pooler, which no model here uses.
    """

    family: Literal["roberta", "bert"] = "roberta"
    vocabulary: Positive = 50265
    positions: Positive = 514
    types: Positive = 1
    width: Positive = 768
    layers: Positive = 12
    heads: Positive = 12
    hidden: Positive = 3072
    epsilon: float = 1e-5
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    pooler: bool = False

    @model_validator(mode="after")
    def _fits(self) -> TextConfig:
        _check_heads(self.width, self.heads)
        if self.longest < 1:
            raise ValueError(f"{self.positions} positions leave no room for a token")
        return self

    @property
    def longest(self) -> int:
        """Tokens that a text may have."""
        return self.positions - (2 if self.family == "roberta" else 0)


ROBERTA = TextConfig(pooler=True)
DISTILROBERTA = TextConfig(layers=6, pooler=True)
BERT = TextConfig(family="bert", vocabulary=30522, positions=512, types=2, epsilon=1e-12)
MINILM = TextConfig(family="bert", vocabulary=30522, positions=512, types=2, width=384, layers=6, hidden=1536, epsilon=1e-12)


class ResNetConfig(Frozen):
    """A ResNet: blocks of each stage, of two 3x3 convolutions (``basic``) or a 1x1-3x3-1x1 bottleneck."""

    kind: Literal["resnet"] = "resnet"
    block: Literal["basic", "bottleneck"] = "bottleneck"
    stages: tuple[Positive, Positive, Positive, Positive] = (3, 4, 23, 3)
    stem: Positive = 64

    @property
    def channels(self) -> int:
        """Of the last feature map."""
        return 8 * self.stem * (4 if self.block == "bottleneck" else 1)

    @property
    def stride(self) -> int:
        """Pixels a cell of the last feature map; sizes need not be multiples of it."""
        return 32


class VitConfig(Frozen):
    """A vision transformer, pre-norm, with a class token.

    Attributes:
        image: side in pixels for which the position table is made; it is interpolated for others.
        patch: side of a patch in pixels.
        width, layers, heads, hidden: of the encoder.
    """

    kind: Literal["vit"] = "vit"
    image: Positive = 224
    patch: Positive = 16
    width: Positive = 768
    layers: Positive = 12
    heads: Positive = 12
    hidden: Positive = 3072
    epsilon: float = 1e-6

    @model_validator(mode="after")
    def _fits(self) -> VitConfig:
        _check_heads(self.width, self.heads)
        if self.image % self.patch:
            raise ValueError(f"an image of {self.image} pixels is not made of patches of {self.patch}")
        return self

    @property
    def channels(self) -> int:
        """Of the feature map."""
        return self.width

    @property
    def stride(self) -> int:
        """Pixels a cell; sizes are multiples of it."""
        return self.patch


VisionConfig = Annotated[ResNetConfig | VitConfig, Field(discriminator="kind")]


class MdetrConfig(Frozen):
    """MDETR.

    Attributes:
        vision: the vision backbone.
        text: the text encoder.
        width: of the DETR encoder and decoder.
        heads, hidden: of their layers.
        encoder_layers, decoder_layers: how many.
        dropout: in training.
        queries: object queries.
        spans: token slots of the soft-token head; one more class says that there is no object.
        contrastive: width of the space in which queries and tokens are aligned; None leaves that head out.
        answers: ``None`` for grounding alone, ``gqa`` and ``clevr`` for the released question heads, or the number of classes of
            one plain answer head.
        answer_layer: the decoder layer that the answers are read from, counted from 0; the released models read the first.
        final_query: whether the checkpoint has the ``isfinal`` head.
    """

    vision: VisionConfig = ResNetConfig()
    text: TextConfig = ROBERTA
    width: Positive = 256
    heads: Positive = 8
    hidden: Positive = 2048
    encoder_layers: Positive = 6
    decoder_layers: Positive = 6
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    queries: Positive = 100
    spans: Positive = 255
    contrastive: Positive | None = 64
    answers: Literal["gqa", "clevr"] | Positive | None = None
    answer_layer: Annotated[int, Field(ge=0)] = 0
    final_query: bool = False

    @model_validator(mode="after")
    def _fits(self) -> MdetrConfig:
        _check_heads(self.width, self.heads)
        if self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4, which the position embedding needs")
        if self.answer_layer >= self.decoder_layers:
            raise ValueError(f"answers cannot be read from decoder layer {self.answer_layer} of {self.decoder_layers}")
        return self


VIT_B = VitConfig()
_TINY_TEXT = TextConfig(
    family="bert", vocabulary=128, positions=40, types=1, width=96, layers=4, heads=4, hidden=384, epsilon=1e-12, dropout=0.0
)
_TINY_VIT = VitConfig(image=64, patch=16, width=96, layers=4, heads=4, hidden=384)
_TINY = MdetrConfig(
    vision=_TINY_VIT,
    text=_TINY_TEXT,
    width=96,
    heads=4,
    hidden=384,
    encoder_layers=2,
    decoder_layers=2,
    dropout=0.0,
    queries=8,
    spans=39,
    contrastive=32,
)

MDETR_PRESETS: Mapping[str, MdetrConfig] = {
    "mdetr-r101": MdetrConfig(),
    "mdetr-r101-gqa": MdetrConfig(answers="gqa", contrastive=None),
    "mdetr-clevr": MdetrConfig(
        vision=ResNetConfig(block="basic", stages=(2, 2, 2, 2)), text=DISTILROBERTA, queries=25, answers="clevr"
    ),
    "mdetr-vit-b": MdetrConfig(vision=VIT_B),
    "mdetr-vit-s-minilm": MdetrConfig(vision=VitConfig(patch=14, width=384, heads=6, hidden=1536), text=MINILM),
    "mdetr-tiny": _TINY,
    "mdetr-tiny-resnet": _TINY.model_copy(update={"vision": ResNetConfig(block="basic", stages=(1, 1, 1, 1), stem=16)}),
}
"""Preset name -> configuration."""
