"""GLIP's losses: against formulas written out, their gradients, how they are divided, and that a model learns by them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from inarch.learning.models import build, glip_post
from inarch.learning.models.glip import Glip
from inarch.learning.tasks.boxes import iou, to_corners
from inarch.learning.tasks.glip_boxes import ground, to_relative
from inarch.learning.tasks.glip_loss import Positives, focal, glip_loss, positives
from inarch.learning.tasks.glip_targets import encode

SIDE, LEVELS, TOKENS = 64, 3, 3


def anchors(side: int = SIDE, levels: int = LEVELS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.from_numpy(level).to(dtype) for level in glip_post.anchors(side, side, levels)]


def batch() -> dict[str, Tensor]:
    """Two images: two boxes in the first, one in the second, whose last token is padding."""
    boxes = torch.tensor(
        [[[2.0, 3.0, 22.0, 30.0], [16.0, 20.0, 58.0, 49.0]], [[9.0, 18.0, 47.0, 41.0], [0.0, 0.0, 63.0, 63.0]]],
        dtype=torch.float64,
    )
    tokens = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[0, 1, 0], [1, 1, 1]]])
    return {
        "boxes": boxes,
        "box_mask": torch.tensor([[True, True], [True, False]]),
        "token_map": tokens,
        "text_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }


def outputs(seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    cells = sum(map(len, anchors()))
    shapes = {"logits": (2, cells, TOKENS), "boxes": (2, cells, 4), "centerness": (2, cells)}
    return {name: torch.randn(*shape, dtype=torch.float64, generator=rng) for name, shape in shapes.items()}


def losses_of(
    out: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    places: list[Tensor] | None = None,
    found: Positives | None = None,
    num_pos: Tensor | None = None,
    center_sum: float | None = None,
) -> dict[str, Tensor]:
    arguments = (given[name] for name in ("boxes", "box_mask", "token_map", "text_mask"))
    places = anchors() if places is None else places
    return glip_loss(out, places, *arguments, found=found, num_pos=num_pos, center_sum=center_sum)


def test_focal_loss_is_the_published_formula() -> None:
    logits = torch.linspace(-6, 6, 13, dtype=torch.float64)
    probability = logits.sigmoid().tolist()
    wanted = [-0.25 * (1 - p) ** 2 * math.log(p) for p in probability]
    np.testing.assert_allclose(focal(logits, torch.ones_like(logits)), wanted)
    wanted = [-0.75 * p**2 * math.log(1 - p) for p in probability]
    np.testing.assert_allclose(focal(logits, torch.zeros_like(logits)), wanted)
    assert bool(focal(torch.tensor([-5e4, 5e4]), torch.tensor([1.0, 0.0])).isfinite().all())


def test_losses_are_what_their_formulas_say() -> None:
    out, given = outputs(), batch()
    found = positives(anchors(), given["boxes"], given["box_mask"])
    wanted = dict.fromkeys(("alignment", "giou", "centerness"), 0.0)
    owner = {(r, c): m for r, c, m in zip(found.row.tolist(), found.cell.tolist(), found.box.tolist(), strict=True)}
    probability = out["logits"].sigmoid().tolist()
    for row in range(2):
        for cell in range(out["logits"].shape[1]):
            box = owner.get((row, cell))
            for token in range(TOKENS):
                p = probability[row][cell][token]
                if not given["text_mask"][row, token]:
                    continue
                if box is not None and given["token_map"][row, box, token]:
                    wanted["alignment"] -= 0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    wanted["alignment"] -= 0.75 * p**2 * math.log(1 - p)
    places = np.concatenate(glip_post.anchors(SIDE, SIDE, LEVELS))
    for (row, cell), box in owner.items():
        x1, y1, x2, y2 = glip_post.decode(out["boxes"][row, cell][None].numpy(), places[cell][None])[0]
        u1, v1, u2, v2 = given["boxes"][row, box].tolist()
        x, y = (places[cell][:2] + places[cell][2:]) / 2
        sides = (x - u1, u2 - x), (y - v1, v2 - y)
        central = math.sqrt(math.prod(min(pair) / max(pair) for pair in sides))
        shared = max(min(x2, u2) - max(x1, u1) + 1, 0) * max(min(y2, v2) - max(y1, v1) + 1, 0)
        union = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1) - shared
        around = (max(x2, u2) - min(x1, u1) + 1) * (max(y2, v2) - min(y1, v1) + 1)
        wanted["giou"] += 2 * central * (1 - shared / union + (around - union) / around)
        p = float(out["centerness"][row, cell].sigmoid())
        wanted["centerness"] -= central * math.log(p) + (1 - central) * math.log(1 - p)
    count, weight = found.totals.tolist()
    assert count == len(owner) > 3
    wanted = {name: value / (weight if name == "giou" else count) for name, value in wanted.items()}
    losses = losses_of(out, given)
    assert list(losses) == list(wanted)
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(wanted[name]), name


@pytest.mark.parametrize("name", ["alignment", "giou", "centerness"])
def test_gradients_are_those_of_the_loss(name: str) -> None:
    given, places = batch(), anchors()
    found = positives(places, given["boxes"], given["box_mask"])
    assert set(found.row.tolist()) == {0, 1}
    start = [value.requires_grad_() for value in outputs(1).values()]

    def loss(*values: Tensor) -> Tensor:
        return losses_of(dict(zip(outputs(), values, strict=True)), given, found=found)[name]

    assert torch.autograd.gradcheck(loss, start)


def test_right_answers_cost_next_to_nothing() -> None:
    given, places, out = batch(), anchors(), outputs()
    found = positives(places, given["boxes"], given["box_mask"])
    at = found.row, found.cell
    out["logits"] = torch.full_like(out["logits"], -20)
    out["logits"][at] = 40 * given["token_map"][found.row, found.box].double() - 20
    out["boxes"][at] = encode(found.boxes, found.anchors)
    losses = losses_of(out, given)
    assert float(losses["alignment"]) < 1e-6
    assert float(losses["giou"]) == pytest.approx(0, abs=1e-9)


def test_padding_tokens_and_boxes_change_nothing() -> None:
    given, out = batch(), outputs()
    before = losses_of(out, given)
    given["boxes"][1, 1], given["token_map"][1, :, 2], given["token_map"][1, 1] = 7.0, 1, 0
    out["logits"][1, :, 2] = 3.0
    assert losses_of(out, given) == before


def test_halves_divided_by_common_totals_add_up() -> None:
    given, places, out = batch(), anchors(), outputs()
    count, weight = positives(places, given["boxes"], given["box_mask"]).totals
    whole = losses_of(out, given)
    halves = []
    for row in (0, 1):
        mine, asked = ({name: value[row : row + 1] for name, value in group.items()} for group in (out, given))
        halves.append(losses_of(mine, asked, num_pos=count, center_sum=float(weight)))
    for name in whole:
        torch.testing.assert_close(halves[0][name] + halves[1][name], whole[name])


def test_without_boxes_there_is_only_alignment() -> None:
    given, out = batch(), outputs()
    given["box_mask"][:] = False
    for value in out.values():
        value.requires_grad_()
    losses = losses_of(out, given)
    torch.autograd.backward(list(losses.values()))
    losses = {name: loss.detach() for name, loss in losses.items()}
    assert float(losses["giou"]) == float(losses["centerness"]) == 0
    real = (given["text_mask"] != 0)[:, None]
    logits = out["logits"].detach()
    assert float(losses["alignment"]) == pytest.approx(float((focal(logits, torch.zeros_like(logits)) * real).sum()))
    for value in out.values():
        assert value.grad is not None
        assert bool(value.grad.isfinite().all())


def test_half_precision_is_summed_in_single() -> None:
    given = batch()
    half = {name: value.bfloat16() for name, value in outputs().items()}
    losses = losses_of(half, given | {"boxes": given["boxes"].float()}, anchors(dtype=torch.float32))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    wanted = losses_of(outputs(), given)
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(float(wanted[name]), rel=0.02)


def test_a_tiny_model_learns_four_images() -> None:
    """One bright rectangle an image, named by the second token; the loss falls, and the rectangle is found by its name."""
    side, levels, images = 64, 4, 4
    rng = np.random.default_rng(0)
    pixels, boxes = rng.normal(0, 0.1, (images, 3, side, side)).astype(np.float32), np.zeros((images, 1, 4), np.float32)
    for row in range(images):
        (width, height), (x, y) = rng.integers(14, 28, 2), rng.integers(0, 36, 2)
        pixels[row, row % 3, y : y + height, x : x + width] += 2
        boxes[row, 0] = x, y, x + width - 1, y + height - 1
    torch.manual_seed(0)
    model = build("glip-tiny").train()
    assert isinstance(model, Glip)
    # Its smallest anchor is as large as the image: begin with boxes of a quarter, and few steps are enough.
    start = torch.tensor((0.0, 0.0, 1.0, 1.0)) * 5 * math.log(0.25)
    torch.nn.init.zeros_(model.get_parameter("rpn.head.bbox_pred.bias")).data.add_(start)
    inputs = {
        "pixel_values": torch.from_numpy(pixels),
        "input_ids": torch.tensor([[5, 6, 7, 1]]).repeat(images, 1),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]).repeat(images, 1),
    }
    tokens = torch.tensor([[[0, 1, 0, 0]]]).repeat(images, 1, 1)
    given = {
        "boxes": torch.from_numpy(boxes),
        "box_mask": torch.ones(images, 1, dtype=torch.bool),
        "token_map": tokens,
        "text_mask": inputs["attention_mask"],
    }
    places = anchors(side, levels, torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    losses: list[float] = []
    for _ in range(90):
        loss = torch.stack(list(losses_of(model(**inputs), given, places).values())).sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        out = {name: value.numpy() for name, value in model(**inputs).items()}
    found, _ = ground(out, tokens[:, 0].numpy() != 0, (side, side), levels)
    overlaps = iou(to_corners(found[:, 0]), to_corners(to_relative(boxes[:, 0], (side, side))))
    assert overlaps.min() > 0.5
    # The other words were said to be of nothing.
    assert (out["logits"][..., 1].max(1) > out["logits"][..., [0, 2]].max((1, 2))).all()
