"""GLIP with the losses of a batch.

Shapes: I images of H x W pixels, B texts about them, T tokens, P boxes a text, N cells of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inarch.learning.models.glip import Glip
from inarch.learning.models.glip_post import STRIDES, anchors
from inarch.learning.tasks.glip_boxes import to_pixels
from inarch.learning.tasks.glip_loss import divergence, glip_loss, positives
from inarch.learning.tasks.glip_targets import WEIGHTS
from inarch.learning.tasks.trainee import Trainee
from inarch.structure.errors import InarchError

STEP = 32
"""Sides of images are multiples of this."""

SMALLEST = 2 * STEP
"""Sides of less have no cell that would answer for a box."""

PART = 0.25
"""Part of an image's side that boxes have before anything is learned (ours)."""


class GlipTrainee(Trainee):
    """A GLIP and its losses.

    Args:
        model: the model.
    """

    model: Glip

    def through(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch through the model: its outputs."""
        found: dict[str, Tensor] = self.model(**self.inputs(batch))
        return found

    def outputs(self, passed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's own outputs, one row a text, in float32."""
        return {name: value.float() for name, value in passed.items()}

    def apart(self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """As :func:`~inarch.learning.tasks.glip_loss.divergence`."""
        return divergence(mine, theirs, batch["attention_mask"], batch["answering"][0])

    def losses(self, passed: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses by name, weighted, in float32; their sum is the task's loss.

        Args:
            passed: what :meth:`through` left of the same batch.
            batch: as a course makes it for GLIP: with ``answering`` and ``central``, what losses are divided by.
        """
        device = batch["boxes"].device
        height, width = batch["pixel_values"].shape[-2:]
        places = [torch.from_numpy(level).float().to(device) for level in anchors(height, width, self.model.config.levels)]
        with torch.autocast(device.type, enabled=False):
            return glip_loss(
                passed,
                places,
                in_pixels(batch["boxes"], height, width),
                batch["box_mask"],
                batch["spans"],
                batch["attention_mask"],
                num_pos=batch["answering"][0],
                center_sum=batch["central"][0],
            )


def in_pixels(boxes: Tensor, height: int, width: int) -> Tensor:
    """As :func:`~inarch.learning.tasks.glip_boxes.to_pixels`, on any device: [..., 4]."""
    scaled = boxes * boxes.new_tensor((width, height, width, height))
    centre, half = scaled[..., :2], scaled[..., 2:] / 2
    return torch.cat((centre - half, centre + half - 1), -1)


def totals(
    boxes: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_], size: tuple[int, int], levels: int
) -> npt.NDArray[np.float32]:
    """What the losses of a whole batch are divided by, [2]: cells that answer for a box, and the sum of their centerness.

    Args:
        boxes: [B, P, 4], centre, width and height, relative to the image.
        mask: [B, P].
        size: H and W.
        levels: of the model's pyramid.
    """
    places = [torch.from_numpy(level).float() for level in anchors(*size, levels)]
    wanted = torch.from_numpy(to_pixels(boxes, size)).float()
    found: npt.NDArray[np.float32] = positives(places, wanted, torch.from_numpy(mask)).totals.numpy()
    # At least what the loss would take itself: these are divided by the number of processes.
    return np.maximum(found, np.array([1, 1e-6], np.float32))


@torch.no_grad()
def start_boxes(model: Glip, side: int) -> None:
    """Let a new model begin with boxes of a quarter of the image's side, in place.

    Even the smallest anchor is 64 pixels wide. From there to small objects it is a long way at the rates that suit the rest.
    """
    bias = model.get_parameter("rpn.head.bbox_pred.bias")
    size = math.log(PART * side / (8 * STRIDES[0]))
    bias.copy_(torch.tensor((0.0, 0.0, size * WEIGHTS[2], size * WEIGHTS[3])))


def check_side(side: int) -> None:
    """Refuse an image that the pyramid's maps do not fit.

    Raises:
        InarchError: the side is no multiple of 32, or so small that no cell would answer for a box.
    """
    if side % STEP or side < SMALLEST:
        raise InarchError(f"GLIP takes images of a multiple of {STEP} pixels from {SMALLEST} on, not {side}", where="data.side")
