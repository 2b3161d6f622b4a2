"""Settings of training and structure learning. Every default is written into the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inarch.learning.families import Sharing
from inarch.learning.hypernetwork import Kind
from inarch.structure.errors import InarchError

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Optimisation(_Settings):
    """AdamW with a linear warm-up and a cosine to a fiftieth of the rate.

    Attributes:
        steps: how many.
        rate: the highest learning rate.
        warmup: steps in which it grows.
        decay: weight decay.
        clip: largest norm of the gradient.
        average: decay of the weights' moving average (EMA), which then is what is kept; 0 for none.
        interval: steps between checkpoints; a killed run loses no more.
    """

    steps: Count = 8000
    rate: Rate = 3e-3
    warmup: Annotated[int, Field(ge=0)] = 200
    decay: Annotated[float, Field(ge=0)] = 1e-2
    clip: Rate = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    interval: Count = 500


class StructureSettings(_Settings):
    """How a structure is learned.

    Attributes:
        keep: fraction of the whole model's parameters that the compiled model is to hold.
        sharing: who may share, see :mod:`~inarch.learning.families`.
        block: layers in a block.
        prune: whether units may be pruned.
        generator: how gates are generated.
        matching: whether readers' units are permuted to fit their base before anything is learned.
        rate: the hypernetwork's learning rate.
        weight: of the budget in the objective.
        temperature: of the gates.
        keep_offset, share_offset, head_offset: how far a gate starts from pruning, from sharing, from losing a head.
        gather: part of the steps in which all that may be shared is first brought together, before any gate is learned; 0 for
            none. From then on it stays together until the gates are frozen, so that what sharing costs is learned on weights that
            are used to it.
        fill: which slots that pruning empties read the base's units, which are stored anyway, see :mod:`~inarch.learning.fill`:
            those of FFNs, of all sites, or none. Gates then learn what to prune, and sharing comes with the filling.
        core: how much further than other gates those of a filling base start from pruning: what it keeps serves its whole family.
        freeze: part of the steps after which the gates are frozen, at exactly the budget.
        arrive: part of the steps after which the weights are wholly aligned; they move linearly from ``freeze`` on.
        pull: part of the way to the present structure that weights move at each step before that, without gates being frozen.
        alignment: weight of the regulariser in the weights' loss before the gates are frozen; see ``objective.alignment``.
        align: whether weights are aligned at all; without, they are hardened at the end as they are.
    """

    keep: Fraction = 0.62
    sharing: Sharing = "joint"
    block: Count = 4
    prune: bool = True
    generator: Kind = "joint"
    matching: bool = True
    rate: Rate = 3e-3
    weight: Rate = 2.0
    temperature: Rate = 0.4
    keep_offset: float = 3.0
    share_offset: float = 1.0
    head_offset: float = 3.0
    gather: Share = 0.0
    fill: Literal["none", "ffn", "all"] = "ffn"
    core: float = 20.0
    freeze: Fraction = 0.4
    arrive: Fraction = 0.7
    pull: Share = 0.0
    alignment: Annotated[float, Field(ge=0)] = 0.0
    align: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> StructureSettings:
        if self.arrive < self.freeze:
            raise ValueError(f"weights cannot arrive ({self.arrive}) before the gates are frozen ({self.freeze})")
        return self


class DataSettings(_Settings):
    """What is trained on; see :class:`~inarch.learning.tasks.courses.ScenesSettings`."""

    task: Literal["scenes"] = "scenes"
    level: str = "medium"
    scenes: Count = 12000
    held_out: Count = 2500
    texts: Count = 8
    judged: Count = 4
    side: Count = 48
    images: Count = 16
    each: Count = 4
    seed: Annotated[int, Field(ge=0)] = 0


class LearnConfig(_Settings):
    """Everything that a run of ``inarch learn`` depends on.

    Attributes:
        model: a preset.
        data: what it is trained on.
        dense: pre-training of the dense model, on grounding.
        learning: the steps in which the structure is learned, on grounding.
        structure: how.
        weights: a file of dense weights to start from, instead of pre-training.
        precision: as accelerate knows them: ``no``, ``bf16``, ``fp16``.
        seed: of weights, batches and noise.
    """

    model: str = "mdetr-tiny"
    data: DataSettings = DataSettings()
    dense: Optimisation = Optimisation()
    learning: Optimisation = Optimisation(steps=3000, rate=1e-3)
    structure: StructureSettings = StructureSettings()
    weights: str | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: Annotated[int, Field(ge=0)] = 0


class TuneConfig(_Settings):
    """Everything that a run of ``inarch tune`` depends on.

    Attributes:
        kind: what is tuned for: questions (vqa) with an MDETR, detection with a GLIP.
        optimisation: how.
        distil: weight of the dense model's outputs in the loss; 0 for none.
        seed: of batches.
    """

    kind: Literal["grounding", "referring", "vqa", "detection"] = "referring"
    optimisation: Optimisation = Optimisation(steps=2000, rate=5e-4, warmup=100)
    distil: Annotated[float, Field(ge=0)] = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: Annotated[int, Field(ge=0)] = 0


def read_config(path: Path) -> LearnConfig:
    """A configuration from a JSON file; what it leaves out has its default.

    Raises:
        InarchError: it cannot be read, or a key is unknown or a value out of range; it names the place.
    """
    try:
        return LearnConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InarchError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValidationError as error:
        raise refusal(error, str(path)) from None


def refusal(error: ValidationError, source: str) -> InarchError:
    """A validation error as one of ours: the first mistake and its place."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return InarchError(first["msg"], where=f"{source}: {place}" if place else source)


_Made = TypeVar("_Made", bound=BaseModel)


def validated(kind: type[_Made], values: Mapping[str, Any], source: str) -> _Made:
    """Settings from plain values.

    Raises:
        InarchError: one is out of range; it names the place.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise refusal(error, source) from None


def changed(config: LearnConfig, changes: dict[str, Any]) -> LearnConfig:
    """A configuration with some values replaced, by dotted names: ``{"structure.keep": 0.5}``.

    Raises:
        InarchError: there is no such name, or the value is out of range.
    """
    tree = json.loads(config.model_dump_json())
    for name, value in changes.items():
        at = tree
        *path, last = name.split(".")
        for part in path:
            at = at.get(part) if isinstance(at, dict) else None
        if not isinstance(at, dict) or last not in at:
            raise InarchError("there is no such setting", where=name)
        at[last] = value
    return validated(LearnConfig, tree, "settings")
