"""MDETR with what only training needs: auxiliary heads, and the losses of a batch.

Shapes: I images, B texts about them, T tokens, P boxes a text, G * G cells, C width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from inarch.learning.models.mdetr import Mdetr
from inarch.learning.tasks.mdetr_loss import answer_divergence, answer_loss, corners, divergence, generalised_iou, layer_losses
from inarch.learning.tasks.trainee import Trainee, whole

ALIGN = 32
"""Width of the space in which cells and tokens are aligned."""


class Auxiliary(nn.Module):
    """What makes a tiny DETR learn in minutes (ours): attributes read from cells and from words by one head, and cells told from
    tokens whether they are spoken of.

    Args:
        width: C.
        attributes: how many values each attribute has.
    """

    def __init__(self, width: int, attributes: Sequence[int]) -> None:
        super().__init__()
        self.attributes = nn.ModuleList(nn.Linear(width, count + 1) for count in attributes)
        self.cell = nn.Linear(width, ALIGN)
        self.token = nn.Linear(width, ALIGN)
        self.bias = nn.Parameter(torch.full((1,), -2.0))

    def read(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of attributes; hidden [..., C], labels [..., attributes], -1 for none of its values."""
        flat, wanted = hidden.flatten(0, -2), labels.flatten(0, -2)
        losses = [F.cross_entropy(head(flat), wanted[:, i] + 1) for i, head in enumerate(self.attributes)]
        return torch.stack(losses).mean()

    @staticmethod
    def place(found: Tensor, wanted: Tensor, owned: Tensor, count: Tensor) -> Tensor:
        """Boxes that cells give of the objects on them, by L1 and GIoU as for queries: a query then has only to find the cells.

        Args:
            found: [I, G * G, 4], from the box head.
            wanted: [I, G * G, 4].
            owned: [I, G * G] bool, whether there is an object.
            count: what to divide by.
        """
        mine, theirs = found[owned], wanted[owned]
        overlap = generalised_iou(corners(mine), corners(theirs))
        return (5 * (mine - theirs).abs().sum(-1) + 2 * (1 - overlap)).sum() / count

    def ground(self, cells: Tensor, tokens: Tensor, covered: Tensor, spans: Tensor, count: Tensor) -> Tensor:
        """Whether each cell belongs to what each token speaks of: binary cross entropy.

        Args:
            cells: [B, G * G, C] and tokens [B, T, C], as the encoder leaves them.
            covered: [B, P, G * G] bool.
            spans: [B, P, T] bool.
            count: of tokens that speak of something.
        """
        logits = self.cell(cells) @ self.token(tokens).transpose(1, 2) / ALIGN**0.5 + self.bias
        wanted = (covered.to(logits.dtype).transpose(1, 2) @ spans.to(logits.dtype)).clamp(max=1)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        spoken = spans.any(1)[:, None, :].to(logits.dtype)
        return (loss * (1 + 4 * wanted) * spoken).sum() / (count * cells.shape[1])


class Passed(NamedTuple):
    """What a pass leaves, in float32.

    Attributes:
        hidden: [B, Q + A, C] of each decoder layer.
        seen: [I, G * G, C], image tokens before fusion.
        text: [B, T, C], text tokens before fusion.
        fused: [B, G * G, C], image tokens as the encoder leaves them.
        words: [B, T, C], text tokens as the encoder leaves them.
    """

    hidden: list[Tensor]
    seen: Tensor
    text: Tensor
    fused: Tensor
    words: Tensor


class MdetrTrainee(Trainee):
    """An MDETR and its losses.

    Args:
        model: the model.
        words: attributes that each token of the vocabulary names [vocabulary, attributes], -1 for none; None leaves the
            auxiliary heads out, for data without labelled cells.
        attributes: how many values each attribute has.
    """

    model: Mdetr
    words: Tensor

    def __init__(self, model: Mdetr, words: Tensor | None = None, attributes: Sequence[int] = ()) -> None:
        super().__init__(model)
        self.auxiliary = None if words is None else Auxiliary(model.config.width, attributes)
        self.register_buffer("words", torch.empty(0) if words is None else words, persistent=False)

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The model's own inputs, one row a text."""
        made = super().inputs(batch)
        mask = batch.get("pixel_mask")
        return made | {"pixel_mask": whole(made["pixel_values"]) if mask is None else mask[batch["image"]]}

    def through(self, batch: Mapping[str, Tensor]) -> Passed:
        """A batch through the model: every image once, whatever is said about it."""
        model, image = self.model, batch["image"]
        pixels = batch["pixel_values"]
        mask = batch.get("pixel_mask")
        if mask is None:
            mask = whole(pixels)
        seen, places, cells = model.see(pixels, mask)
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's fused kernel is 6 times slower backwards in bfloat16 with narrow heads
            text = model.read(batch["input_ids"], batch["attention_mask"])
        memory, at, bias, words = model.fuse(seen[image], places[image], cells[image], text, batch["attention_mask"])
        outputs = model.decode(memory, at, bias)
        # What is made of it is computed in float32, whatever the model's layers are computed in.
        fused = memory[:, : seen.shape[1]]
        return Passed([hidden.float() for hidden in outputs], seen.float(), text.float(), fused.float(), words.float())

    def outputs(self, passed: Passed) -> dict[str, Tensor]:
        """The model's own outputs, one row a text, in float32."""
        with torch.autocast(passed.seen.device.type, enabled=False):
            return self.model.heads(passed.hidden[-1], passed.words) | self.model.answers(passed.hidden)

    def apart(self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Kullback-Leibler over token slots and answers, and L1 of boxes by the teacher's certainty of an object."""
        total = mine["logits"].new_zeros(())
        if bool(batch["box_mask"].any()):
            certain = 1 - theirs["logits"].softmax(-1)[..., -1]
            boxes = (mine["boxes"] - theirs["boxes"]).abs().sum(-1) * certain
            total = total + divergence(mine["logits"], theirs["logits"]).mean() + boxes.sum() / batch["objects"][0]
        asked = batch["answers"] >= 0
        if self.model.answer_heads and bool(asked.any()):
            total = total + answer_divergence(mine, theirs, batch)
        return total

    def losses(self, passed: Passed, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses by name, weighted, in float32; their sum is the task's loss.

        Args:
            passed: what :meth:`through` left of the same batch.
            batch: as :func:`~inarch.learning.tasks.scenes.data.training_batch` makes it. Each loss is there where its targets
                are: boxes, an answer, cells.
        """
        with torch.autocast(passed.seen.device.type, enabled=False):
            return self._losses(batch, passed)

    def _losses(self, batch: Mapping[str, Tensor], passed: Passed) -> dict[str, Tensor]:
        model, losses, image = self.model, dict[str, Tensor](), batch["image"]
        referred = bool(batch["box_mask"].any())
        if referred:
            for number, hidden in enumerate(passed.hidden):
                for name, loss in layer_losses(model.heads(hidden, passed.words), batch, batch["objects"][0]).items():
                    losses[f"{name}{number}"] = loss
        if model.answer_heads and bool((batch["answers"] >= 0).any()):
            for number, hidden in enumerate(passed.hidden[: model.config.answer_layer + 1]):
                losses[f"answer{number}"] = answer_loss(model.answers_of(hidden), batch)
        if self.auxiliary is not None:
            losses["cells"] = self.auxiliary.read(passed.seen, batch["cells"])
            losses["words"] = self.auxiliary.read(passed.text, self.words[batch["input_ids"]])
            owned = batch["cells"][..., 0] >= 0
            on_cells = model.bbox_embed(passed.fused).sigmoid()
            losses["places"] = self.auxiliary.place(on_cells, batch["cell_boxes"][image], owned[image], batch["owned"][0])
            if referred:
                found = self.auxiliary.ground(passed.fused, passed.words, batch["covered"], batch["spans"], batch["spoken"][0])
                losses["ground"] = 4 * found
        return losses
