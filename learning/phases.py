"""The two stages of training: weights alone (dense or structured), and structure together with weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import JsonValue
from torch import Tensor, nn

from inarch.learning.config import Optimisation, StructureSettings
from inarch.learning.fill import fill, permute
from inarch.learning.functional import call_with
from inarch.learning.gates import GateSpace, Hard
from inarch.learning.harden import SHUT, Hardened, as_plan, budget_lever, harden
from inarch.learning.hypernetwork import Hypernetwork
from inarch.learning.importance import BATCHES, importance, standing
from inarch.learning.objective import align, alignment, budget, effective_rows
from inarch.learning.tasks.courses import Course, Part, shard, tensors
from inarch.learning.trainer import rate_at
from inarch.learning.unit_rows import Key, UnitRows

BETAS = (0.9, 0.98)
"""A shorter memory of squares than Adam's default suits runs of some thousand steps."""


class _Weights:
    """A module, its optimiser, and steps on batches of a course."""

    def __init__(self, module: nn.Module, course: Course, settings: Optimisation, place: Accelerator, seed: int) -> None:
        self.raw, self.course, self.settings, self.place, self.seed = module, course, settings, place, seed
        module.to(place.device)
        trained = [p for p in module.parameters() if p.requires_grad]
        made = torch.optim.AdamW(trained, lr=settings.rate, betas=BETAS, weight_decay=settings.decay, fused=True)
        self.module, self.optimiser = place.prepare(module, made)
        self.average = {n: p.detach().clone() for n, p in self.raw.named_parameters()} if settings.average else {}

    def batch(self, step: int, part: Part = "weights") -> dict[str, Tensor]:
        """This process's part of a batch."""
        whole = self.course.batch(self.seed, step, part)
        return tensors(shard(whole, self.place.process_index, self.place.num_processes), self.place.device)

    def descend(self, losses: Mapping[str, Tensor], number: int) -> dict[str, float]:
        """One step down; returns the losses as numbers."""
        loss = torch.stack(list(losses.values())).sum()
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.settings, number)
        self.optimiser.zero_grad()
        self.place.backward(loss)
        norm = float(self.place.clip_grad_norm_(self.module.parameters(), self.settings.clip))
        self.optimiser.step()
        # While it is young it looks back over a part of its steps only: the weights that it began with are to be forgotten.
        decay = min(self.settings.average, (1 + number) / (10 + number))
        with torch.no_grad():
            for name, parameter in self.raw.named_parameters() if self.average else ():
                self.average[name].lerp_(parameter, 1 - decay)
        values = {"loss": float(loss.detach())} | {name: float(value.detach()) for name, value in losses.items()}
        return values | _gradient("gradient", norm, self.place)

    def state(self) -> dict[str, Any]:
        return {
            "module": self.raw.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "random": _generators(),
            "scaler": self.place.scaler.state_dict() if self.place.scaler is not None else {},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.raw.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        if self.place.scaler is not None:
            self.place.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"][0])
        if torch.cuda.is_available() and len(state["random"]) > 1:
            torch.cuda.set_rng_state(state["random"][1])

    @torch.no_grad()
    def finish(self) -> None:
        """Put the averaged weights in place, where they are what is kept."""
        for name, parameter in self.raw.named_parameters() if self.average else ():
            parameter.copy_(self.average[name])


def _gradient(name: str, norm: float, place: Accelerator) -> dict[str, float]:
    """A gradient's norm, to be logged, and to end a run where it is not finite: of all processes, since it is theirs together.

    A scaler leaves steps with infinite gradients out; without one, they are the end of what is trained.
    """
    return {name: norm} if place.scaler is None or math.isfinite(norm) else {}


def _generators() -> list[Tensor]:
    """What torch's generators, on which dropout depends, stand at."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


class WeightPhase:
    """Training of a module as it is: a dense trainee, or a structured one.

    Args:
        name: of the phase.
        module: called with a batch, it gives losses by name.
        course: what it is trained on.
        settings: how.
        place: processes and device.
        seed: of the batches.
    """

    def __init__(
        self, name: str, module: nn.Module, course: Course, settings: Optimisation, place: Accelerator, seed: int
    ) -> None:
        self.name, self.settings = name, settings
        torch.manual_seed(seed)
        self._weights = _Weights(module, course, settings, place, seed)

    def step(self, number: int) -> dict[str, float]:
        """A plain training step."""
        self._weights.module.train()
        values = self._weights.descend(self._weights.module(self._weights.batch(number)), number)
        if number + 1 == self.settings.steps:
            self._weights.finish()
        return values

    def state(self) -> dict[str, Any]:
        """Weights, optimiser, moving average, torch's generator."""
        return self._weights.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """As :meth:`state` gave it."""
        self._weights.restore(state)


class StructureModule(nn.Module):
    """A hypernetwork and a trainee whose weights stand still: from a batch to losses under gates.

    Args:
        hypernetwork: what is trained.
        trainee: a module with the model under ``model``.
        space: the gates.
        units: the model's units.
        settings: how, and how many parameters are to be kept.
    """

    def __init__(
        self,
        hypernetwork: Hypernetwork,
        trainee: nn.Module,
        space: GateSpace,
        units: UnitRows,
        settings: StructureSettings,
    ) -> None:
        super().__init__()
        self.hypernetwork = hypernetwork
        self._trainee = [trainee]
        self.space, self.units, self.settings = space, units, settings
        self.last = Hard({}, {})

    def forward(self, batch: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Losses by name; ``budget`` is among them."""
        trainee = self._trainee[0]
        frozen = {name: parameter.detach() for name, parameter in trainee.named_parameters(remove_duplicate=False)}
        of_model = {name.removeprefix("model."): value for name, value in frozen.items() if name.startswith("model.")}
        with torch.autocast(noise.device.type, enabled=False):
            gates = self.space.gates(self.hypernetwork(), self.settings.temperature, noise)
            rows, factors = effective_rows(self.space, self.units, gates, of_model)
            written = {f"model.{name}": value for name, value in self.units.write(rows, factors, of_model).items()}
            # Last, since of a tied parameter's names the last counts.
            frozen = {name: value for name, value in frozen.items() if name not in written} | written
            count = self.space.count(gates)
        self.last = gates.hard
        losses: dict[str, Tensor] = call_with(trainee, frozen, (batch,))
        target = self.settings.keep * self.space.table.parameters
        return losses | {
            "budget": self.settings.weight * budget(count, target),
            "kept": count.detach() / target * self.settings.keep,
        }


class LearnPhase:
    """Structure and weights in turn, then the structure frozen, and the weights brought to it.

    The search starts from what units are worth to the dense model (:mod:`~inarch.learning.importance`). Even steps are the
    weights', odd ones the hypernetwork's, until ``freeze``: it moves by ``structure.rate`` along the direction of its gradient
    (with momentum), and all gates together by what the count is off the budget. There the structure is hardened at exactly the
    budget; until ``arrive`` the weights move to it on a straight line, and from then on they keep to it. A frozen parameter is
    not trained, but the structure is the whole model's: what it shares or prunes of one moves as all else does.

    Args:
        trainee: a module with the model under ``model``; its weights are learned in place.
        course: what it is trained on.
        settings: of the weights' optimiser.
        structure: how the structure is learned.
        space: the gates.
        place: processes and device.
        seed: of batches, noise and hypernetwork.
        model: the model's name, for the plan.
    """

    name = "learning"

    def __init__(
        self,
        trainee: nn.Module,
        course: Course,
        settings: Optimisation,
        structure: StructureSettings,
        space: GateSpace,
        place: Accelerator,
        seed: int,
        model: str,
    ) -> None:
        self.settings, self.structure, self.space, self.place, self.seed, self.model = (
            settings,
            structure,
            space,
            place,
            seed,
            model,
        )
        torch.manual_seed(seed)
        trainee.to(place.device)  # before anything remembers where its parameters are
        self.units = UnitRows(space.table, trainee.get_submodule("model"))
        space.to(place.device)
        # Where sharing comes with the filling, the gates of sharing stay shut.
        self._filled = structure.filled
        share = SHUT if self._filled else structure.share_offset
        self._weights = _Weights(trainee, course, settings, place, seed)
        prior = self._prior() if structure.prior else None
        start = space.offsets(structure.keep_offset, share, structure.head_offset, prior)
        for base in space.readers:
            if base[1] in self._filled:
                start[space.axes[base].keep] += structure.core
        self.hypernetwork = Hypernetwork(space, start, kind=structure.generator, seed=seed)
        # Adam would move every gate at one speed, whatever it is worth: unsettled ones are to move, and open ones to stay.
        made = torch.optim.SGD(self.hypernetwork.parameters(), lr=structure.rate, momentum=0.9)
        self._raw = StructureModule(self.hypernetwork, trainee, space, self.units, structure)
        self._structure, self._optimiser = place.prepare(self._raw, made)
        self._lever = torch.from_numpy(budget_lever(space)).to(place.device)
        self._hard: Hard | None = None
        parts = (structure.gather, structure.freeze, structure.arrive)
        self._gather, self._freeze, self._arrive = (round(part * settings.steps) for part in parts)
        # The last step is the weights' in any case, on a frozen structure.
        self._freeze = min(self._freeze, settings.steps - 1)

    def _prior(self) -> dict[Key, Tensor]:
        """What the gates of units start with, the same in every process: by what each is worth to the dense model."""
        batches = (self._weights.batch(number, "structure") for number in range(BATCHES))
        found = importance(self.space, self.units, self._weights.raw, batches, self.place)
        return {key: self.structure.prior * value.cpu() for key, value in standing(self.space, found).items()}

    def step(self, number: int) -> dict[str, float]:
        """A step of the weights or of the hypernetwork."""
        if self._gather <= number < self._freeze and number % 2:
            return self._structure_step(number)
        if number >= self._freeze and self._hard is None:
            self._freeze_gates()
        return self._weight_step(number)

    def _freeze_gates(self) -> None:
        """Harden at the budget; where slots are filled, bring units to the places that the structure is meant for."""
        pruned = self.harden(finished=False).hard
        filled, orders = fill(self.space, pruned, self._filled)
        average = {key.removeprefix("model."): value for key, value in self._weights.average.items()}
        beside = [self._moments("exp_avg"), self._moments("exp_avg_sq"), average]
        permute(self.units, orders, [self._parameters(), *(values for values in beside if values)])
        self._hard = filled if orders else pruned

    def _moments(self, name: str) -> dict[str, Tensor]:
        """One of the weights' optimiser's moments, by parameter; empty before its first step."""
        state = self._weights.optimiser.state
        return {key: state[p][name] for key, p in self._parameters().items() if name in state.get(p, {})}

    def _weight_step(self, number: int) -> dict[str, float]:
        self._weights.module.train()
        losses = self._weights.module(self._weights.batch(number))
        parameters = self._parameters()
        weight = self.structure.alignment
        if weight and self._hard is None and self._raw.last.keep:
            losses["alignment"] = weight * alignment(self.space, self.units, self._raw.last, parameters)
        values = self._weights.descend(losses, number)
        if number + 1 == self.settings.steps:
            self._weights.finish()
        if self._gather and self._hard is None:
            align(self.space, self.units, self.space.all_shared(), parameters, 1 / max(self._gather - number, 1))
        fraction = self._fraction(number)
        hard = self._hard or self._raw.last
        if fraction and hard.keep:
            align(self.space, self.units, hard, parameters, fraction, held=bool(self._filled))
        return values

    def _parameters(self) -> dict[str, Tensor]:
        return dict(self._weights.raw.get_submodule("model").named_parameters(remove_duplicate=False))

    def _fraction(self, number: int) -> float:
        """How far the weights move to the structure after a step; wholly after the last in any case."""
        if number + 1 == self.settings.steps:
            return 1.0
        if not self.structure.align:
            return 0.0
        if self._hard is None:
            return self.structure.pull
        return 1 / max(self._arrive - number, 1)

    def _structure_step(self, number: int) -> dict[str, float]:
        self._weights.module.train()
        noise = _logistic(self.space.logits, [self.seed, number]).to(self.place.device)
        losses = self._structure(self._weights.batch(number, "structure"), noise)
        kept = float(losses.pop("kept"))
        loss = torch.stack(list(losses.values())).sum()
        self._optimiser.zero_grad()
        self.place.backward(loss)
        norm = self.place.clip_grad_norm_(self._structure.parameters(), 1.0)
        for parameter in self.hypernetwork.parameters():
            if parameter.grad is not None:
                parameter.grad /= norm.clamp(min=1e-12, max=1.0)  # steps of one length, however flat it is here
        self._optimiser.step()
        with torch.no_grad():
            # All gates together bring the count to the budget, so that who goes is learned at the size that is wanted.
            self.hypernetwork.offsets.sub_(GAIN * math.log(kept / self.structure.keep) * self._lever)
        values = {"structure_loss": float(loss.detach()), "budget": float(losses["budget"].detach()), "kept": kept}
        values |= _gradient("structure_gradient", float(norm), self.place)
        return values | shares_of(self.space, self._raw.last)

    @property
    def trainee(self) -> nn.Module:
        """What is trained, with the model under ``model``."""
        return self._weights.raw

    @torch.no_grad()
    def logits(self) -> Tensor:
        """What the hypernetwork says now, [L]."""
        made: Tensor = self.hypernetwork()
        return made

    def harden(self, *, finished: bool = True) -> Hardened:
        """The structure at exactly the budget, as it was frozen or, before that, as it would be now.

        Args:
            finished: with its slots filled; without, as pruning leaves it, but counted as if filled.
        """
        provenance: dict[str, JsonValue] = {"learned": self.structure.model_dump(mode="json"), "seed": self.seed}
        if self._hard is not None:
            return as_plan(self.space, self._hard, self.model, provenance)
        found: list[tuple[Hard, Hard]] = []

        def finish(hard: Hard) -> Hard:
            found.append((hard, fill(self.space, hard, self._filled)[0] if self._filled else hard))
            return found[-1][1]

        done = harden(self.space, self.logits(), self.structure.keep, self.model, provenance, finish)
        if finished:
            return done
        return replace(done, hard=next(bare for bare, filled in found if filled is done.hard))

    def state(self) -> dict[str, Any]:
        """Weights, hypernetwork, both optimisers, and the gates."""
        masks = {}
        for label, hard in (("hard", self._hard), ("last", self._raw.last)):
            masks[label] = None if hard is None or not hard.keep else [self.space.flat(hard.keep), self.space.flat(hard.share)]
        state = {"hypernetwork": self.hypernetwork.state_dict(), "structure": self._optimiser.state_dict()}
        return self._weights.state() | state | masks

    def restore(self, state: Mapping[str, Any]) -> None:
        """As :meth:`state` gave it."""
        self._weights.restore(state)
        self.hypernetwork.load_state_dict(state["hypernetwork"])
        self._optimiser.load_state_dict(state["structure"])
        self._hard = self._unflat(state["hard"])
        self._raw.last = self._unflat(state["last"]) or Hard({}, {})

    def _unflat(self, masks: list[Tensor] | None) -> Hard | None:
        if masks is None:
            return None
        keep, share = ({key: flat[spec.units].numpy() > 0 for key, spec in self.space.axes.items()} for flat in masks)
        return Hard(keep, share)


GAIN = 0.5
"""Logits that all gates move by after a structure step, for a count that is e times the budget."""


def _logistic(count: int, seed: list[int]) -> Tensor:
    """Differences of two Gumbel variables."""
    draw = np.random.default_rng([7, *seed]).random(count, np.float32).clip(1e-6, 1 - 1e-6)
    return torch.from_numpy(np.log(draw) - np.log1p(-draw))


def shares_of(space: GateSpace, hard: Hard) -> dict[str, float]:
    """What part of all units is pruned, and what part of those that may be shared is."""
    kept = sum(float(mask.sum()) for mask in hard.keep.values())
    shared = sum(float(mask.sum()) for mask in hard.share.values())
    may = max(sum(spec.heads * spec.per_head for spec in space.axes.values() if spec.base is not None), 1)
    return {"pruned": 1 - kept / space.units, "shared": shared / may}
