"""Configurations of the parts that MDETR and GLIP are made of: text encoders and vision backbones.

Sizes of the named ones are facts of the released models.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]


def check_heads(width: int, heads: int) -> None:
    """Refuse a width that heads do not divide.

    Raises:
        ValueError: it is no multiple.
    """
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
        check_heads(self.width, self.heads)
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
        check_heads(self.width, self.heads)
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
