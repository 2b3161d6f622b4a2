"""GLIP (Li et al., CVPR 2022): detection as alignment of regions with the tokens of a text.

Written from its published architecture, with the released checkpoints' key names. Tokenizer, anchors and suppression are outside
the graph, see :mod:`glip_post`. Shapes: B batch, H x W pixels, N cells of all levels, T text tokens, L the text's width, C the
pyramid's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.models.dyhead import DyConv
from inarch.learning.models.examples import images, texts
from inarch.learning.models.fpn import Fpn, VitPyramid
from inarch.learning.models.glip_config import GlipConfig
from inarch.learning.models.glip_post import STRIDES, cell_anchor
from inarch.learning.models.signature import Signature
from inarch.learning.models.swin import Swin
from inarch.learning.models.text import padding_id, text_encoder
from inarch.learning.models.vlfuse import BertLayer, Named, VlFuse, bounded


class Scale(nn.Module):
    """One number that a level's boxes are multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """x times the number."""
        return x * self.scale


class Head(nn.Module):
    """The tower of fusion and dynamic-head blocks, and what is read from it."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.fusion = config.fusion
        text, width = config.text, config.width
        tower: list[nn.Module] = []
        for _ in range(config.blocks):
            if config.fusion:
                tower.append(VlFuse(width, text.width, config.fusion_width, config.fusion_heads, 1 / config.blocks))
                tower.append(BertLayer(text.width, text.heads, text.hidden, text.epsilon))
            tower.append(DyConv(width, config.groups, config.reduction))
        self.dyhead_tower = nn.ModuleList(tower)
        if config.classes is not None:
            self.cls_logits = nn.Conv2d(width, config.classes, 1)
        self.bbox_pred = nn.Conv2d(width, 4, 1)
        self.centerness = nn.Conv2d(width, 1, 1)
        self.scales = nn.ModuleList(Scale() for _ in range(config.levels))
        self.dot_product_projection_text = nn.Linear(text.width, width)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_lang = nn.Parameter(torch.zeros(text.width))
        self.bias0 = nn.Parameter(torch.full((1,), -math.log((1 - 0.01) / 0.01)))

    def forward(self, maps: list[Tensor], text: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the tower says of every cell; maps [B, C, h, w], text [B, T, L], mask [B, T] bool."""
        for block in self.dyhead_tower:
            if isinstance(block, VlFuse):
                maps, text = block(maps, text, mask)
            elif isinstance(block, BertLayer):
                text = block(text, mask)
            else:
                maps = block(maps)
        direction = F.normalize(text, dim=-1)
        tokens = self.dot_product_projection_text(direction / 2)
        bias = (direction @ self.bias_lang + self.bias0)[:, None, :]
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        logits = cells @ tokens.transpose(1, 2) / self.log_scale.exp() + bias
        boxes = [scale(self.bbox_pred(x)).flatten(2).transpose(1, 2) for scale, x in zip(self.scales, maps, strict=True)]
        center = [self.centerness(x).flatten(1) for x in maps]
        return {"logits": bounded(logits), "boxes": torch.cat(boxes, 1), "centerness": torch.cat(center, 1)}


class Anchors(nn.Module):
    """The one anchor a cell of each level, as the released files hold them; they are not used in the graph."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.cell_anchors = Named({})
        for level in range(levels):
            self.cell_anchors.register_buffer(str(level), torch.tensor([cell_anchor(STRIDES[level])]))


class Glip(nn.Module):
    """GLIP.

    Args:
        config: its sizes.
    """

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.config = config
        vision = config.vision
        body = Swin(vision) if vision.kind == "swin" else VitPyramid(vision)
        channels = body.channels
        self.backbone = Named({"body": body, "fpn": Fpn(channels, config.width, config.levels)})
        self.language_backbone = Named({"body": Named({"model": text_encoder(config.text)})})
        self.rpn = Named({"head": Head(config), "anchor_generator": Anchors(config.levels)})

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Align every cell of an image with every token of a text.

        Args:
            pixel_values: [B, 3, H, W], normalised; H and W are multiples of 32.
            input_ids: [B, T] int64.
            attention_mask: [B, T] int64, 1 on real tokens.

        Returns:
            ``logits`` [B, N, T]; ``boxes`` [B, N, 4], the regression against each cell's anchor; ``centerness`` [B, N] logits.
            Cells run level by level, finest first, row by row.
        """
        apply = self.get_submodule
        maps = apply("backbone.fpn")(apply("backbone.body")(pixel_values))
        model = apply("language_backbone.body.model")
        text = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        result: dict[str, Tensor] = apply("rpn.head")(maps, text, attention_mask != 0)
        return result

    @property
    def signature(self) -> Signature:
        """Names and dynamic axes of an export."""
        return Signature(
            {
                "pixel_values": {0: "batch", 2: "32*height", 3: "32*width"},
                "input_ids": {0: "batch", 1: "length"},
                "attention_mask": {0: "batch", 1: "length"},
            },
            ("logits", "boxes", "centerness"),
        )

    def example(self, batch: int, height: int, width: int, length: int, seed: int = 0) -> dict[str, Any]:
        """Inputs of these sizes, texts padded in all but the first row, as named by :attr:`signature`."""
        rng = torch.Generator().manual_seed(seed)
        pixels, _ = images(rng, batch, height, width)
        ids, mask = texts(rng, batch, length, self.config.text.vocabulary, padding_id(self.config.text))
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
