"""Every way to a smaller model that is compared, with the same dense model to start from and the same number of training steps.

A method gets dense weights and ``learning.steps`` further steps on the same task, and gives a plan and weights that hold to it.
What needs no training to find its plan applies it at once and trains the structured model for all of these steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator
from pydantic import JsonValue
from torch import Tensor

from inarch.learning.config import StructureSettings
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.registry import Config, build
from inarch.learning.phases import WeightPhase
from inarch.learning.rules import share_by_rule
from inarch.learning.runs import train_further, train_structure, train_teacher
from inarch.learning.trainer import Progress, run
from inarch.learning.weights import model_weights, weights_of
from inarch.learning.workshop import Workshop, replaced
from inarch.structure.errors import InarchError
from inarch.structure.lowering import lower
from inarch.structure.plan import Plan
from inarch.structure.planners import make_plan
from inarch.structure.planners.make import UnreachableError
from inarch.structure.resolve import resolve

LEARNED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "joint": {},
        "unbound": {"bound": False},
        "tied": {"tied": True, "sharing": "layer", "block": 2},  # for models whose neighbouring layers were one
        "free": {"generator": "free"},
        "per-modality": {"generator": "per-modality"},
        "separate": {"generator": "separate", "fill": "none"},  # gates of sharing are what the second network is for
        "no-alignment": {"align": False},
        "importance": {"freeze": 1e-6},
        "cross": {"sharing": "cross"},
        "layer": {"sharing": "layer"},
        "prune": {"sharing": "none"},
        "share": {"prune": False, "fill": "none"},
        "gates": {"fill": "none", "block": 2},
    }
)
"""Method -> what it changes in the settings: ours and its ablations."""

PLANNED = ("magnitude", "uniform", "similarity")
RULED = ("rule-layer", "rule-cross")
LEAST = 0.05
"""Part of every site that planners keep, unless that alone is more than what is to be kept."""

METHODS = ("dense", *LEARNED, *PLANNED, *RULED, "scratch")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method gives.

    Attributes:
        plan: None for a dense model.
        weights: a trainee's, holding to the plan.
        planned, stored: parameters of the whole model.
        shop: the run that the weights belong to; another model's for ``scratch``.
    """

    plan: Plan | None
    weights: Mapping[str, Tensor]
    planned: int
    stored: int
    shop: Workshop


def obtain(
    shop: Workshop,
    dense: Mapping[str, Tensor],
    method: str,
    folder: Path,
    place: Accelerator,
    progress: Progress | None = None,
    teacher: Mapping[str, Tensor] | None = None,
) -> Outcome:
    """Run one method at ``shop.config.structure.keep``.

    Args:
        shop: the run.
        dense: a dense trainee's weights.
        method: one of :data:`METHODS`.
        folder: where checkpoints are kept.
        place: processes and device.
        progress: called after every step.
        teacher: weights that the method ``dense`` gives, to distil from by ``distil``; None for those that are trained for it.
            ``dense`` itself, and what starts from random weights, has no teacher.

    Raises:
        InarchError: there is no such method, or its plan cannot be reached.
    """
    if shop.config.distil and teacher is None and method not in ("dense", "scratch"):
        teacher = train_teacher(shop, dense, folder, place, progress)
    if method in LEARNED:
        settings = StructureSettings.model_validate(shop.config.structure.model_dump() | dict(LEARNED[method]))
        changed = replaced(shop, structure=settings)
        hardened, weights = train_structure(changed, dense, folder, place, progress, teacher)
        return Outcome(hardened.plan, weights, hardened.planned, hardened.stored, shop)
    if method == "scratch":
        return _scratch(shop, folder, place, progress)
    if method == "dense":
        weights = train_further(shop, dense, None, folder / "learning", place, progress)
        total = shop.table.parameters
        return Outcome(None, weights, total, total, shop)
    plan = _plan(shop, dense, method)
    lowered = lower(shop.table, resolve(plan, shop.table))
    weights = train_further(shop, dense, plan, folder / "learning", place, progress, teacher)
    return Outcome(plan, weights, lowered.planned, lowered.stored, shop)


def _plan(shop: Workshop, dense: Mapping[str, Tensor], method: str) -> Plan:
    keep, name = shop.config.structure.keep, shop.config.model
    if method in PLANNED:
        weights = model_weights(dense)

        def read(param: str) -> npt.NDArray[np.generic]:
            return np.asarray(weights[param].numpy())

        def made(least: float) -> Plan:
            return make_plan(shop.table, read, keep=keep, method=method, name=name, minimum=least).plan

        try:
            return made(LEAST)
        except UnreachableError:
            return made(0.0)
    if method in RULED:
        provenance: dict[str, JsonValue] = {"method": method, "keep": keep}
        return share_by_rule(shop.table, method.removeprefix("rule-"), keep, name, provenance).plan
    raise InarchError(f"there is no method {method!r}", where="--method", hint=f"there are {', '.join(METHODS)}")


def shop_of(shop: Workshop, method: str) -> Workshop:
    """The run that a method's weights belong to: one of a smaller model for ``scratch``, the same for all others.

    Raises:
        InarchError: the model cannot be narrowed.
    """
    if method != "scratch":
        return shop
    return replace(shop, model=narrowed(shop.model, shop.config.structure.keep * shop.table.parameters))


def _scratch(shop: Workshop, folder: Path, place: Accelerator, progress: Progress | None) -> Outcome:
    """A model of the compressed size, trained from random weights, whole, for as many steps as all others had together."""
    smaller = shop_of(shop, "scratch")
    course = shop.pretraining()
    trainee = smaller.trainee(course)
    steps = shop.config.dense.steps + shop.config.learning.steps
    settings = shop.config.dense.model_copy(update={"steps": steps})
    phase = WeightPhase("scratch", trainee, course, settings, place, shop.config.seed)
    run(phase, folder / "scratch", main=place.is_main_process, progress=progress)
    count = sum(p.numel() for p in trainee.get_submodule("model").parameters())
    return Outcome(None, weights_of(trainee), count, count, smaller)


def narrowed(config: Config, target: float) -> MdetrConfig:
    """The same architecture, narrower everywhere, with about so many parameters.

    First the widths, all by one factor; then the FFNs alone, whose widths move in small steps.

    Raises:
        InarchError: it is no MDETR of transformers.
    """
    if not isinstance(config, MdetrConfig) or config.vision.kind != "vit":
        raise InarchError("only an MDETR of transformers can be narrowed", where="scratch")
    steps = config.width // math.gcd(config.width, math.lcm(config.heads, 4))
    sizes = [_scaled(config, number / steps, number / steps) for number in range(1, steps + 1)]
    apart = [abs(_size(one) - target) for one in sizes]
    nearest = apart.index(min(apart))
    wide = (nearest + 1) / steps
    low, high = 0.0, 2 * wide
    best = sizes[nearest]
    for _ in range(12):
        middle = (low + high) / 2
        found = _scaled(config, wide, middle)
        size = _size(found)
        if abs(size - target) < abs(_size(best) - target):
            best = found
        low, high = (low, middle) if size > target else (middle, high)
    return best


def _scaled(config: MdetrConfig, width: float, hidden: float) -> MdetrConfig:
    """A configuration with all widths and all FFNs scaled."""

    def sizes(part: Any, multiple: int = 1) -> dict[str, int]:
        step = math.lcm(part.heads, multiple)
        return {"width": max(1, round(width * part.width / step)) * step, "hidden": max(1, round(hidden * part.hidden))}

    parts = {name: part.model_copy(update=sizes(part)) for name, part in (("vision", config.vision), ("text", config.text))}
    return config.model_copy(update={**sizes(config, 4), **parts})


def _size(config: MdetrConfig) -> int:
    return sum(parameter.numel() for parameter in build(config, device="meta").parameters())
