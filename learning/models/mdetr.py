"""MDETR (Kamath et al., ICCV 2021): text-conditioned detection and question answering with one DETR over image and text tokens.

Written from its published architecture, with the released checkpoints' key names. Shapes: B batch, H x W pixels, h x w cells of
the feature map, T text tokens, Q object queries, A answer queries, C width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.learning.models.attention import padding_bias
from inarch.learning.models.detr import Decoder, Encoder, Mlp, Resizer
from inarch.learning.models.examples import images, texts
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.positions import SinePositions
from inarch.learning.models.resnet import ResNet
from inarch.learning.models.signature import Signature
from inarch.learning.models.text import padding_id, text_encoder
from inarch.learning.models.vit import Vit

GQA_HEADS = {"type": 5, "obj": 3, "rel": 1594, "attr": 403, "cat": 678, "global": 111}
CLEVR_HEADS = {"type": 3, "binary": 1, "reg": 20, "attr": 15}
"""Head -> classes, in the order of their queries."""


class Backbone(nn.Module):
    """A vision backbone and the mask of its feature map."""

    def __init__(self, config: MdetrConfig) -> None:
        super().__init__()
        self.body: nn.Module = ResNet(config.vision) if config.vision.kind == "resnet" else Vit(config.vision)

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map [B, channels, h, w] and its mask [B, h, w], True on real cells (nearest pixel)."""
        # Real cells near the edge see padding too: it is zero for them, whatever it was given as.
        features: Tensor = self.body(torch.where(mask[:, None], pixels, 0.0))
        cells = F.interpolate(mask[:, None].to(torch.float32), size=features.shape[-2:], mode="nearest")[:, 0]
        return features, cells > 0.5


class Transformer(nn.Module):
    """Text encoder, resizer, encoder and decoder: what the released files keep under ``transformer``."""

    def __init__(self, config: MdetrConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.text_encoder = text_encoder(config.text)
        self.resizer = Resizer(config.text.width, config.width, config.dropout)


class Mdetr(nn.Module):
    """MDETR.

    Args:
        config: its sizes and heads.
    """

    def __init__(self, config: MdetrConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.backbone = nn.Sequential(Backbone(config), SinePositions(width))
        self.input_proj = nn.Conv2d(config.vision.channels, width, 1)
        self.transformer = Transformer(config)
        self.query_embed = nn.Embedding(config.queries, width)
        self.class_embed = nn.Linear(width, config.spans + 1)
        self.bbox_embed = Mlp(width, width, 4, 3)
        if config.contrastive is not None:
            self.contrastive_align_projection_image = nn.Linear(width, config.contrastive)
            self.contrastive_align_projection_text = nn.Linear(width, config.contrastive)
        if config.final_query:
            self.isfinal_embed = nn.Linear(width, 1)
        self.answer_heads = self._add_answers()

    def _add_answers(self) -> dict[str, str]:
        """Add the question heads; output name -> attribute, in the order of their queries."""
        answers, width = self.config.answers, self.config.width
        if answers is None:
            return {}
        sizes = {"gqa": GQA_HEADS, "clevr": CLEVR_HEADS}[answers] if isinstance(answers, str) else {"": answers}
        heads = {}
        for name, classes in sizes.items():
            attribute = f"answer_{name}_head" if name else "answer_head"
            head = Mlp(width, width, classes, 3) if answers == "clevr" and name == "reg" else nn.Linear(width, classes)
            self.add_module(attribute, head)
            heads[f"answer_{name}" if name else "answer"] = attribute
        self.qa_embed = nn.Embedding(len(heads), width)
        return heads

    def see(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images through backbone and projection: their tokens [B, h w, C], the places of these, and which are real [B, h w]."""
        features, cells = self.backbone[0](pixel_values, pixel_mask)
        places = self.backbone[1](cells).flatten(2).transpose(1, 2)
        image = self.input_proj(features).flatten(2).transpose(1, 2)
        return image, places.to(image.dtype), cells.flatten(1)

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts through text encoder and resizer: [B, T, C]."""
        hidden = self.transformer.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        text: Tensor = self.transformer.resizer(hidden)
        return text

    def fuse(
        self, image: Tensor, image_places: Tensor, cells: Tensor, text: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image and text tokens through the encoder, as :meth:`see` and :meth:`read` give them.

        Returns:
            memory [B, h w + T, C], its places (zero for text), its bias [B, 1, 1, h w + T], and the memory's text part [B, T, C].
        """
        bias = padding_bias(torch.cat((cells, attention_mask != 0), 1), image.dtype)
        places = torch.cat((image_places, torch.zeros_like(text)), 1)
        memory = self.transformer.encoder(torch.cat((image, text), 1), places, bias)
        return memory, places, bias, memory[:, image.shape[1] :]

    def encode(
        self, pixel_values: Tensor, pixel_mask: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image and text up to the encoder's output; see :meth:`fuse`."""
        image, places, cells = self.see(pixel_values, pixel_mask)
        return self.fuse(image, places, cells, self.read(input_ids, attention_mask), attention_mask)

    def decode(self, memory: Tensor, places: Tensor, bias: Tensor) -> list[Tensor]:
        """Outputs [B, Q + A, C] of every decoder layer; answer queries come last."""
        queries = self.query_embed.weight
        if self.answer_heads:
            queries = torch.cat((queries, self.qa_embed.weight))
        outputs: list[Tensor] = self.transformer.decoder(queries.expand(memory.shape[0], -1, -1), memory, places, bias)
        return outputs

    def heads(self, hidden: Tensor, text: Tensor) -> dict[str, Tensor]:
        """What one decoder layer's object queries say.

        Args:
            hidden: [B, Q + A, C].
            text: the memory's text part [B, T, C].

        Returns:
            ``logits`` [B, Q, spans + 1], ``boxes`` [B, Q, 4] (cx, cy, w, h relative to the unpadded image) and, with a
            contrastive head, ``queries`` [B, Q, K] and ``tokens`` [B, T, K] of length 1.
        """
        objects = hidden[:, : self.config.queries]
        out = {"logits": self.class_embed(objects), "boxes": self.bbox_embed(objects).sigmoid()}
        if self.config.contrastive is not None:
            out["queries"] = F.normalize(self.contrastive_align_projection_image(objects), dim=-1)
            out["tokens"] = F.normalize(self.contrastive_align_projection_text(text), dim=-1)
        if self.config.final_query:
            out["final"] = self.isfinal_embed(objects)
        return out

    def answers(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        """Logits [B, classes] of each question head, read from the decoder layer that the configuration names."""
        return self.answers_of(outputs[self.config.answer_layer])

    def answers_of(self, hidden: Tensor) -> dict[str, Tensor]:
        """The same from one decoder layer's queries [B, Q + A, C]."""
        asked = hidden[:, self.config.queries :]
        return {name: self.get_submodule(head)(asked[:, i]) for i, (name, head) in enumerate(self.answer_heads.items())}

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Ground a text in an image.

        Args:
            pixel_values: [B, 3, H, W], normalised; what lies on padding does not matter.
            pixel_mask: [B, H, W] bool, True on real pixels (the opposite of the paper's own code).
            input_ids: [B, T] int64.
            attention_mask: [B, T] int64, 1 on real tokens.

        Returns:
            :meth:`heads` of the last decoder layer, and :meth:`answers`.
        """
        memory, places, bias, text = self.encode(pixel_values, pixel_mask, input_ids, attention_mask)
        outputs = self.decode(memory, places, bias)
        return self.heads(outputs[-1], text) | self.answers(outputs)

    def all_layers(
        self, pixel_values: Tensor, pixel_mask: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """:meth:`forward`, and :meth:`heads` of the earlier decoder layers, for auxiliary losses."""
        memory, places, bias, text = self.encode(pixel_values, pixel_mask, input_ids, attention_mask)
        outputs = self.decode(memory, places, bias)
        earlier = [self.heads(hidden, text) for hidden in outputs[:-1]]
        return self.heads(outputs[-1], text) | self.answers(outputs), earlier

    def _outputs(self) -> Iterator[str]:
        yield from ("logits", "boxes")
        if self.config.contrastive is not None:
            yield from ("queries", "tokens")
        if self.config.final_query:
            yield "final"
        yield from self.answer_heads

    @property
    def signature(self) -> Signature:
        """Names and dynamic axes of an export; a ViT takes multiples of its patch."""
        step = f"{self.config.multiple}*" if self.config.multiple > 1 else ""
        image = {"height": f"{step}height", "width": f"{step}width"}
        return Signature(
            {
                "pixel_values": {0: "batch", 2: image["height"], 3: image["width"]},
                "pixel_mask": {0: "batch", 1: image["height"], 2: image["width"]},
                "input_ids": {0: "batch", 1: "length"},
                "attention_mask": {0: "batch", 1: "length"},
            },
            tuple(self._outputs()),
        )

    def example(self, batch: int, height: int, width: int, length: int, seed: int = 0) -> dict[str, Any]:
        """Inputs of these sizes with padding in all but the first row, as named by :attr:`signature`."""
        rng = torch.Generator().manual_seed(seed)
        pixels, pixel_mask = images(rng, batch, height, width)
        ids, mask = texts(rng, batch, length, self.config.text.vocabulary, padding_id(self.config.text))
        return {"pixel_values": pixels, "pixel_mask": pixel_mask, "input_ids": ids, "attention_mask": mask}
