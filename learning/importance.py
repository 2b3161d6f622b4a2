"""What units are worth to the dense model: where the search for a structure starts from.

First-order Taylor importance (Molchanov et al., CVPR 2019): what the loss would change by if a unit's output were taken away,
``(sum of gradient x weight)^2``, averaged over batches. Divided by what the unit costs, it says what to give up first, across
sites. Gates alone find that out much too slowly: a gate that is open passes next to no gradient, and while few are shut the
network hardly learns which (ours to combine the two). Shapes: N units of an axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from inarch.learning.gates import GateSpace
from inarch.learning.unit_rows import Key, UnitRows

BATCHES = 48
"""Enough for the order of sites and units to settle; each costs as much as a training step."""

FAR = 3.0
"""Standard units beyond which a unit is not better or worse than others."""


def importance(
    space: GateSpace, units: UnitRows, trainee: nn.Module, batches: Iterable[Mapping[str, Tensor]], place: Accelerator
) -> dict[Key, Tensor]:
    """Root mean square of each unit's first-order effect on the loss, [N] an axis.

    Only the vectors that a unit's output goes through are counted, as where gates act. Where families are tied, a unit's effect
    is that of all that go with it. The trainee's weights stay as they are.

    Args:
        space: the gates.
        units: the model's units.
        trainee: gives losses by name; the model is under ``model``.
        batches: to average over; this process's parts of them.
        place: the device, and in which precision the trainee computes.
    """
    parameters = dict(trainee.get_submodule("model").named_parameters(remove_duplicate=False))
    learned = {name: value for name, value in parameters.items() if value.requires_grad}
    still = {name: torch.zeros_like(value) for name, value in parameters.items() if name not in learned}
    sums = {key: torch.zeros(spec.heads * spec.per_head, device=place.device) for key, spec in space.axes.items()}
    count = 0
    for batch in batches:
        with place.autocast():
            losses = trainee(batch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        found = torch.autograd.grad(total, list(learned.values()), allow_unused=True, materialize_grads=True)
        if place.num_processes > 1:
            found = tuple(place.reduce(gradient.contiguous(), "mean") for gradient in found)
        gradients = still | dict(zip(learned, found, strict=True))
        with torch.no_grad():
            effects = {}
            for key in space.axes:
                out = units.slots[key][0].columns
                effects[key] = (units.read(key, parameters)[:, :out] * units.read(key, gradients)[:, :out]).sum(1)
            if space.tied:
                effects |= _of_families(space, effects)
            for key, effect in effects.items():
                sums[key] += effect.square()
        count += 1
    return {key: (value / max(count, 1)).sqrt() for key, value in sums.items()}


def _of_families(space: GateSpace, effects: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """What a base's and its readers' units do together, since they go together."""
    found: dict[Key, Tensor] = {}
    for base, readers in space.readers.items():
        family = (base, *(spec.key for spec in readers))
        found |= dict.fromkeys(family, torch.stack([effects[key] for key in family]).sum(0))
    return found


def standing(space: GateSpace, found: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """How each unit stands among all that may be pruned, by the logarithm of its importance for its cost.

    Returns:
        [N] an axis: robust standard scores (from the median, in 1.48 median absolute deviations), between -FAR and FAR.
    """
    logs = {key: (value / max(space.axes[key].vectors, 1)).clamp(min=1e-30).log() for key, value in found.items()}
    free = [value for key, value in logs.items() if not space.axes[key].frozen]
    if not free:
        return {key: torch.zeros_like(value) for key, value in logs.items()}
    every = torch.cat(free)
    middle = every.median()
    spread = 1.48 * (every - middle).abs().median().clamp(min=1e-6)
    return {key: ((value - middle) / spread).clamp(-FAR, FAR) for key, value in logs.items()}
