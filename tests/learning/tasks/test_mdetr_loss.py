"""MDETR's losses: against brute force, plain loops, numpy's boxes, and finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from inarch.learning.tasks.boxes import giou
from inarch.learning.tasks.boxes import to_corners as numpy_corners
from inarch.learning.tasks.coco.files import GQA_TYPES
from inarch.learning.tasks.mdetr_loss import (
    NO_OBJECT,
    TEMPERATURE,
    answer_divergence,
    answer_loss,
    contrast,
    corners,
    divergence,
    generalised_iou,
    layer_losses,
    match,
    token_targets,
)

B, Q, P, T, S, K = 3, 4, 3, 5, 7, 6
COUNTS = (3, 1, 0)
"""Boxes of each text."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def boxes(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, 4, seed=seed).sigmoid() * torch.tensor([0.5, 0.5, 0.3, 0.3]) + torch.tensor([0.25, 0.25, 0.1, 0.1])


def batch() -> dict[str, Tensor]:
    """Three texts with 3, 1 and no boxes; the second one's last token is padding."""
    spans = torch.zeros(B, P, T, dtype=torch.bool)
    spans[0, 0, 1] = spans[0, 1, 2:4] = spans[0, 2, 4] = spans[1, 0, 1:3] = True
    mask = torch.ones(B, T, dtype=torch.int64)
    mask[1, 4] = 0
    real = torch.arange(P) < torch.tensor(COUNTS)[:, None]
    return {"boxes": boxes(B, P, seed=5), "box_mask": real, "spans": spans, "attention_mask": mask}


def outputs(seed: int = 0) -> dict[str, Tensor]:
    unit = torch.nn.functional.normalize
    return {
        "logits": random(B, Q, S + 1, seed=seed),
        "boxes": boxes(B, Q, seed=seed + 1),
        "queries": unit(random(B, Q, K, seed=seed + 2), dim=-1),
        "tokens": unit(random(B, T, K, seed=seed + 3), dim=-1),
    }


def cost(out: dict[str, Tensor], given: dict[str, Tensor], row: int, query: int, place: int) -> float:
    """What it costs to match a query with a box, written out."""
    chance = out["logits"][row, query].softmax(-1)
    named = given["spans"][row, place].nonzero()[:, 0].tolist()
    token = -sum(float(chance[slot]) for slot in named) / len(named)
    mine, wanted = out["boxes"][row, query].numpy(), given["boxes"][row, place].numpy()
    return token + 5 * float(np.abs(mine - wanted).sum()) - 2 * float(giou(numpy_corners(mine), numpy_corners(wanted)))


@pytest.mark.parametrize("seed", range(6))
def test_matching_is_the_cheapest_of_all_assignments(seed: int) -> None:
    out, given = outputs(seed), batch()
    targets = token_targets(given["spans"], S).double()
    found = match(out["logits"], out["boxes"], targets, given["boxes"], given["box_mask"])
    assert found.shape == (B, P)
    for row, count in enumerate(COUNTS):
        choices = itertools.permutations(range(Q), count)
        best = min(choices, key=lambda queries: sum(cost(out, given, row, q, p) for p, q in enumerate(queries)))
        assert tuple(found[row, :count].tolist()) == best
        assert found[row, count:].tolist() == [0] * (P - count)


def test_giou_is_that_of_numpy() -> None:
    first, second = boxes(40, seed=1), boxes(40, seed=2)
    first[0], first[1] = second[0], torch.tensor([0.1, 0.1, 0.0, 0.0])
    expected = giou(numpy_corners(first.numpy()), numpy_corners(second.numpy()))
    np.testing.assert_allclose(generalised_iou(corners(first), corners(second)).numpy(), expected, atol=1e-6)
    assert float(generalised_iou(corners(first[:1]), corners(second[:1]))) == pytest.approx(1)
    pairs = generalised_iou(corners(first)[:, None], corners(second))
    assert pairs.shape == (40, 40)
    np.testing.assert_allclose(pairs.diagonal().numpy(), expected, atol=1e-6)


def test_targets_are_even_over_a_boxs_tokens() -> None:
    targets = token_targets(batch()["spans"], S)
    assert targets.shape == (B, P, S + 1)
    assert targets[0, 1].tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0]
    assert targets[2].abs().sum() == 0


def test_losses_are_what_their_formulas_say() -> None:
    out, given = outputs(), batch()
    targets = token_targets(given["spans"], S).double()
    chosen = match(out["logits"], out["boxes"], targets, given["boxes"], given["box_mask"])
    pairs = {(row, int(chosen[row, place])): place for row, count in enumerate(COUNTS) for place in range(count)}
    wanted = dict.fromkeys(("tokens", "l1", "giou", "contrast"), 0.0)
    for row in range(B):
        for query in range(Q):
            chance = out["logits"][row, query].softmax(-1).tolist()
            place = pairs.get((row, query))
            if place is None:
                wanted["tokens"] -= NO_OBJECT * math.log(chance[S])
                continue
            named = given["spans"][row, place].nonzero()[:, 0].tolist()
            wanted["tokens"] -= sum(math.log(chance[slot]) for slot in named) / len(named)
            mine, theirs = out["boxes"][row, query].numpy(), given["boxes"][row, place].numpy()
            wanted["l1"] += 5 * float(np.abs(mine - theirs).sum())
            wanted["giou"] += 2 * (1 - float(giou(numpy_corners(mine), numpy_corners(theirs))))
    positive = torch.zeros(B, Q, T, dtype=torch.bool)
    for (row, query), place in pairs.items():
        positive[row, query] = given["spans"][row, place]
    wanted["contrast"] = plain_contrast(out["queries"], out["tokens"], positive, given["attention_mask"])
    losses = layer_losses(out, given, torch.tensor(4.0, dtype=torch.float64))
    assert list(losses) == list(wanted)
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(wanted[name] / 4), name
    del out["queries"]
    assert list(layer_losses(out, given, torch.tensor(4.0))) == ["tokens", "l1", "giou"]


def plain_contrast(queries: Tensor, tokens: Tensor, positive: Tensor, mask: Tensor) -> float:
    """The published formula as loops: from queries to tokens and back, the mean of both."""
    total = 0.0
    for row in range(len(queries)):
        real = [t for t in range(tokens.shape[1]) if mask[row, t]]
        similar = (queries[row] @ tokens[row].T / TEMPERATURE).tolist()
        for query in range(queries.shape[1]):
            mine = [t for t in real if positive[row, query, t]]
            if mine:
                total += math.log(sum(math.exp(similar[query][t]) for t in real))
                total -= sum(similar[query][t] for t in mine) / len(mine)
        for t in real:
            mine = [q for q in range(queries.shape[1]) if positive[row, q, t]]
            if mine:
                total += math.log(sum(math.exp(similar[q][t]) for q in range(queries.shape[1])))
                total -= sum(similar[q][t] for q in mine) / len(mine)
    return total / 2


def test_contrast_is_the_published_formula() -> None:
    out, mask = outputs(3), batch()["attention_mask"]
    positive = (random(B, Q, T, seed=9) > 0.5) & (mask[:, None] != 0)
    found = contrast(out["queries"], out["tokens"], positive, mask != 0)
    assert float(found) == pytest.approx(plain_contrast(out["queries"], out["tokens"], positive, mask))
    assert float(contrast(out["queries"], out["tokens"], torch.zeros_like(positive), mask != 0)) == 0


def test_right_outputs_cost_nothing() -> None:
    given, out = batch(), outputs()
    targets = token_targets(given["spans"], S).double()
    logits = torch.full((B, Q, S + 1), -40.0, dtype=torch.float64)
    logits[..., S] = 40
    for row, count in enumerate(COUNTS):
        for place in range(count):
            query = Q - 1 - place
            out["boxes"][row, query] = given["boxes"][row, place]
            logits[row, query] = torch.where(targets[row, place] > 0, 40.0, -40.0)
    losses = layer_losses({"logits": logits, "boxes": out["boxes"]}, given, torch.tensor(4.0))
    # Phrases of two tokens: the entropy of the target itself stays.
    assert float(losses["tokens"]) == pytest.approx(2 * math.log(2) / 4, abs=1e-6)
    assert float(losses["l1"]) == pytest.approx(0, abs=1e-9)
    assert float(losses["giou"]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["tokens", "l1", "giou", "contrast"])
def test_gradients_are_those_of_the_loss(name: str) -> None:
    given = batch()
    start = {key: value.requires_grad_() for key, value in outputs(1).items()}

    def loss(*values: Tensor) -> Tensor:
        return layer_losses(dict(zip(start, values, strict=True)), given, torch.tensor(4.0, dtype=torch.float64))[name]

    assert torch.autograd.gradcheck(loss, list(start.values()))


def test_padding_changes_nothing() -> None:
    given, out = batch(), outputs()
    before = layer_losses(out, given, torch.tensor(4.0))
    given["boxes"][1, 1:], given["boxes"][2] = 7.0, float("inf")
    out["tokens"][1, 4] = 1.0
    after = layer_losses(out, given, torch.tensor(4.0))
    assert {name: float(loss) for name, loss in after.items()} == {name: float(loss) for name, loss in before.items()}


def test_nan_outputs_give_a_nan_loss() -> None:
    """Not an error of the assignment: what is not finite is the trainer's to refuse."""
    out = outputs()
    out["boxes"][0, 1] = torch.nan
    out["logits"][0] = torch.nan
    losses = layer_losses(out, batch(), torch.tensor(4.0))
    assert math.isnan(float(losses["tokens"]))


def said_of(seed: int, rows: int) -> dict[str, Tensor]:
    """Answers of all heads, and another output beside them."""
    rng = torch.Generator().manual_seed(seed)
    sizes = {"logits": 9, "answer_type": 5, **{f"answer_{kind}": 2 + number for number, kind in enumerate(GQA_TYPES)}}
    return {name: torch.randn(rows, size, generator=rng) for name, size in sizes.items()}


def test_an_answer_costs_its_type_and_its_place_among_the_types_answers() -> None:
    types, answers = torch.tensor([0, 2, 2, 4, 1, 3]), torch.tensor([1, 0, 3, 5, 2, 4])
    batch, said = {"answer_types": types, "answers": answers}, said_of(0, 6)
    likely = [
        said["answer_type"].log_softmax(-1)[row, kind] + said[f"answer_{GQA_TYPES[kind]}"].log_softmax(-1)[row, answer]
        for row, (kind, answer) in enumerate(zip(types.tolist(), answers.tolist(), strict=True))
    ]
    torch.testing.assert_close(answer_loss(said, batch), -torch.stack(likely).mean())
    halves = [
        answer_loss({name: value[part] for name, value in said.items()}, {name: value[part] for name, value in batch.items()})
        for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(halves) / 2, answer_loss(said, batch))


def test_a_plain_answer_is_one_heads_and_may_not_be_asked() -> None:
    answers = torch.tensor([2, -1, 0])
    logits = said_of(1, 3)["answer_rel"]
    expected = F.cross_entropy(logits[[0, 2]], answers[[0, 2]])
    torch.testing.assert_close(answer_loss({"answer": logits}, {"answers": answers}), expected)


def test_answers_are_compared_with_a_teachers_where_they_were_asked() -> None:
    types, answers = torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3])
    batch, mine, theirs = {"answer_types": types, "answers": answers}, said_of(0, 3), said_of(1, 3)
    assert float(answer_divergence(mine, mine, batch)) == pytest.approx(0, abs=1e-6)
    apart = [
        divergence(mine[name][row], theirs[name][row])
        for row, kind in enumerate(types.tolist())
        for name in ("answer_type", f"answer_{GQA_TYPES[kind]}")
    ]
    torch.testing.assert_close(answer_divergence(mine, theirs, batch), torch.stack(apart).sum() / 3)
    plain = {"answers": torch.tensor([2, -1, 0])}
    one = [divergence(mine["answer_rel"][row], theirs["answer_rel"][row]) for row in (0, 2)]
    found = answer_divergence({"logits": mine["logits"], "answer": mine["answer_rel"]}, {"answer": theirs["answer_rel"]}, plain)
    torch.testing.assert_close(found, torch.stack(one).sum() / 3)
