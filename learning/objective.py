"""What structure learning minimises, and how weights are brought to the structure.

Shapes as in :mod:`gates`: N units of an axis, D numbers of a unit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inarch.learning.gates import Gates, GateSpace, Hard
from inarch.learning.unit_rows import Key, UnitRows

Rows = dict[Key, Tensor]


def budget(parameters: Tensor, target: float) -> Tensor:
    """``|log(P / (p P_total))|``: how far the parameter count is from what is wanted, on both sides.

    That the count is an objective is published; the logarithm of the ratio, two-sided (one-sided it overshoots by 5-15 %), is
    ours.

    Args:
        parameters: P(m, s).
        target: p times the whole model's parameters.
    """
    # The count is exact in double precision; the loss that it joins is a float.
    return (parameters / target).log().abs().float()


def effective_rows(space: GateSpace, units: UnitRows, gates: Gates, parameters: Mapping[str, Tensor]) -> tuple[Rows, Rows]:
    """Weight vectors under gates: ``m (s base + (1 - s) own)``, with precedence pruned, shared, private (ours).

    Of a unit's vectors, m scales only the one that the unit's output goes through (down, o, k; the first in the order of roles):
    the function is the same as if all were scaled, and a pruned unit still has a gradient that can bring it back. Scaled on both
    sides, it would be the product of two zeros.

    Returns:
        Rows [N, D] and bias factors [N] for :meth:`UnitRows.write`; differentiable in gates and parameters.
    """
    own = {key: units.read(key, parameters) for key in space.axes}
    kept = gates.keep * gates.heads[space.head_at]
    rows: Rows = {}
    factors: Rows = {}
    for key, spec in space.axes.items():
        keep = kept[spec.units]
        mixed = own[key]
        if spec.base is not None:
            mixed = torch.lerp(mixed, own[spec.base], gates.share[spec.units].to(mixed)[:, None])
        out = units.slots[key][0].columns
        rows[key] = torch.cat((mixed[:, :out] * keep.to(mixed)[:, None], mixed[:, out:]), 1)
        factors[key] = keep
    return rows, factors


def alignment(space: GateSpace, units: UnitRows, hard: Hard, parameters: Mapping[str, Tensor]) -> Tensor:
    """The regulariser that aligns weights with the structure: group norms, averaged over all units.

    ``mean_u |W_u - W_base|`` where a unit is shared, half of it pulling the reader and half the base, and ``mean_u |W_u|`` where
    it is pruned. Published: that the differences between vectors to be shared are minimised with the rest; the group norm and
    the two-sidedness are ours.
    """
    total = next(iter(parameters.values())).new_zeros(())
    for key, spec in space.axes.items():
        own = units.read(key, parameters)
        gone = torch.from_numpy(~hard.keep[key]).to(own.device)
        total = total + _norm(own[gone])
        if spec.base is not None and hard.share[key].any():
            mask = torch.from_numpy(hard.share[key]).to(own.device)
            base = units.read(spec.base, parameters)[mask]
            total = total + (_norm(own[mask] - base.detach()) + _norm(own[mask].detach() - base)) / 2
    return total / space.units


def _norm(rows: Tensor) -> Tensor:
    """Sum of row lengths; its gradient at a row of zeros is zero."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths.sum()


@torch.no_grad()
def align(
    space: GateSpace, units: UnitRows, hard: Hard, parameters: Mapping[str, Tensor], fraction: float, *, held: bool = False
) -> None:
    """Move weights a fraction of the way to the structure, in place (ours).

    Decoupled from the optimiser, as AdamW's weight decay is: a penalty's gradient is rescaled by Adam until it does nothing.
    Units that are shared go to the mean of the base's unit and those of all its readers; where bases are held, to the base's unit
    as it is: a reader's slot that was emptied first has nothing to say about it. Pruned units and their biases go to zero.
    With a fraction of ``1 / steps left`` each step the way is a straight line; with 1 the structure holds exactly.
    """
    rows: Rows = {key: units.read(key, parameters) for key in space.axes}
    target = {key: own.clone() for key, own in rows.items()}
    for base, specs in space.readers.items():
        total, users = rows[base].clone(), rows[base].new_ones(len(rows[base]))
        masks = [torch.from_numpy(hard.share[spec.key]).to(rows[base]) for spec in specs]
        for spec, mask in zip(specs, masks, strict=True):
            total += rows[spec.key] * mask[:, None]
            users += mask
        mean = rows[base] if held else total / users[:, None]
        target[base] = mean
        for spec, mask in zip(specs, masks, strict=True):
            target[spec.key] = torch.where(mask[:, None] > 0, mean, rows[spec.key])
    for key in space.axes:
        kept = torch.from_numpy(hard.keep[key]).to(rows[key])
        goal = target[key] * kept[:, None]
        # lerp with 1 is exact, so that the last step leaves nothing behind.
        units.store(key, torch.lerp(rows[key], goal, fraction), parameters)
        units.fade(key, kept, fraction, parameters)
