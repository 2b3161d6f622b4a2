"""GLIP's configuration and its named presets.

Sizes are facts of the released models (microsoft/GLIP); the preset with a ViT and the tiny one are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from inarch.learning.models.parts_config import BERT, Frozen, Positive, TextConfig, VitConfig


class SwinConfig(Frozen):
    """A Swin transformer.

    Attributes:
        width: of the first stage; it doubles from stage to stage.
        layers, heads: of each stage.
        window: side of a window in cells.
        ratio: hidden units of an FFN over its width.
    """

    kind: Literal["swin"] = "swin"
    width: Positive = 96
    layers: tuple[Positive, Positive, Positive, Positive] = (2, 2, 6, 2)
    heads: tuple[Positive, Positive, Positive, Positive] = (3, 6, 12, 24)
    window: Positive = 7
    ratio: Positive = 4

    @property
    def channels(self) -> tuple[int, int, int]:
        """Of the maps at strides 8, 16 and 32."""
        return 2 * self.width, 4 * self.width, 8 * self.width


class GlipConfig(Frozen):
    """GLIP.

    Attributes:
        vision: the vision backbone; a ViT stands behind a simple feature pyramid.
        text: the text encoder.
        width: channels of the feature pyramid and the head.
        blocks: of the dynamic head.
        fusion: whether each block fuses image and text, and encodes the text again.
        fusion_heads, fusion_width: of the two-way attention.
        groups: of the head's group norms.
        reduction: the dynamic ReLU's squeeze.
        classes: of the unused closed-set classifier that the released files hold; None leaves it out.
        levels: feature maps; the first has stride 8.
    """

    vision: Annotated[SwinConfig | VitConfig, Field(discriminator="kind")] = SwinConfig()
    text: TextConfig = BERT
    width: Positive = 256
    blocks: Positive = 6
    fusion: bool = True
    fusion_heads: Positive = 8
    fusion_width: Positive = 2048
    groups: Positive = 16
    reduction: Positive = 4
    classes: Positive | None = 80
    levels: Annotated[int, Field(ge=3, le=5)] = 5

    @model_validator(mode="after")
    def _fits(self) -> GlipConfig:
        if self.fusion_width % self.fusion_heads:
            raise ValueError(f"fusion width {self.fusion_width} is no multiple of {self.fusion_heads} heads")
        if self.width % self.groups:
            raise ValueError(f"width {self.width} is no multiple of {self.groups} groups")
        if self.vision.kind == "vit" and 32 % self.vision.patch:
            raise ValueError("a ViT's patch must divide 32")
        return self


GLIP_PRESETS: Mapping[str, GlipConfig] = {
    "glip-a": GlipConfig(fusion=False),
    "glip-b": GlipConfig(),
    "glip-t": GlipConfig(),
    "glip-l": GlipConfig(vision=SwinConfig(width=192, layers=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12), blocks=8),
    "glip-vit-b": GlipConfig(vision=VitConfig()),
    "glip-tiny": GlipConfig(
        vision=SwinConfig(width=24, layers=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=4),
        text=TextConfig(
            family="bert",
            vocabulary=128,
            positions=40,
            types=1,
            width=192,
            layers=2,
            heads=8,
            hidden=768,
            epsilon=1e-12,
            dropout=0.0,
        ),
        width=48,
        blocks=2,
        fusion_heads=4,
        fusion_width=64,
        groups=4,
        classes=None,
        levels=4,
    ),
}
"""Preset name -> configuration. ``glip-b`` and ``glip-t`` have one architecture and different weights."""
