"""MDETR's configuration and its named presets.

Sizes are facts of the released models (ashkamath/mdetr); presets with a ViT and the tiny ones are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from inarch.learning.models.parts_config import (
    DISTILROBERTA,
    MINILM,
    ROBERTA,
    Frozen,
    Positive,
    ResNetConfig,
    TextConfig,
    VisionConfig,
    VitConfig,
    check_heads,
)


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

    @property
    def multiple(self) -> int:
        """What an image's sides are multiples of: a ViT's patch."""
        return self.vision.stride if self.vision.kind == "vit" else 1

    @model_validator(mode="after")
    def _fits(self) -> MdetrConfig:
        check_heads(self.width, self.heads)
        if self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4, which the position embedding needs")
        if self.answer_layer >= self.decoder_layers:
            raise ValueError(f"answers cannot be read from decoder layer {self.answer_layer} of {self.decoder_layers}")
        return self


VIT_B = VitConfig()
_TINY_TEXT = TextConfig(
    family="bert", vocabulary=128, positions=40, types=1, width=48, layers=4, heads=4, hidden=192, epsilon=1e-12, dropout=0.0
)
_TINY_VIT = VitConfig(image=48, patch=8, width=48, layers=4, heads=4, hidden=192)
_TINY = MdetrConfig(
    vision=_TINY_VIT,
    text=_TINY_TEXT,
    width=48,
    heads=4,
    hidden=192,
    encoder_layers=2,
    decoder_layers=2,
    dropout=0.0,
    queries=8,
    spans=39,
    contrastive=32,
)
_SMALL = _TINY.model_copy(
    update={
        "vision": _TINY_VIT.model_copy(update={"width": 96, "hidden": 384}),
        "text": _TINY_TEXT.model_copy(update={"width": 96, "hidden": 384}),
        "width": 96,
        "hidden": 384,
    }
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
    "mdetr-small": _SMALL,
    "mdetr-tiny-resnet": _TINY.model_copy(update={"vision": ResNetConfig(block="basic", stages=(1, 1, 1, 1), stem=16)}),
}
"""Preset name -> configuration."""
