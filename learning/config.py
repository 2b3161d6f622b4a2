"""Settings of training and structure learning. Every default is written into the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from inarch.learning.data_config import TASKS, Data, ScenesSettings, task_of
from inarch.learning.families import Sharing
from inarch.learning.hypernetwork import Kind
from inarch.learning.models import registry
from inarch.learning.models.glip_config import GlipConfig
from inarch.learning.settings import Count, FilePath, Fraction, Rate, Seed, Settings, Share, filled
from inarch.learning.tasks.aims import OF_FILES, Aim
from inarch.structure.errors import InarchError


class Optimisation(Settings):
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


class StructureSettings(Settings):
    """How a structure is learned.

    Attributes:
        keep: fraction of the whole model's parameters that the compiled model is to hold.
        sharing: who may share, see :mod:`~inarch.learning.families`.
        block: layers in a block.
        families: base -> sites that may read from it; None groups them by ``sharing`` and ``block``.
        bound: whether attentions of a family lose heads together even where ``fill`` leaves them nothing to share.
        tied: whether those that may share do so from the start and to the end, with all units, and pruning alone is learned; for
            models whose layers are alike (``shallow``). ``fill`` has no say then.
        prune: whether units may be pruned.
        generator: how gates are generated.
        matching: whether readers' units are permuted to fit their base before anything is learned.
        rate: the length of the hypernetwork's steps; see :class:`~inarch.learning.phases.LearnPhase`.
        weight: of the budget in the objective.
        temperature: of the gates.
        keep_offset, share_offset, head_offset: how far a gate starts from pruning, from sharing (where nothing is filled: else
            there are no gates of sharing), from losing a head.
        prior: how much of each unit's standing by first-order importance its gate starts with, in logits a standard unit; see
            :mod:`~inarch.learning.importance`.
        least: part of its units that every head which is left keeps, and one is left everywhere, so that no site goes altogether.
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
    families: dict[str, tuple[str, ...]] | None = None
    bound: bool = False
    tied: bool = False
    prune: bool = True
    generator: Kind = "joint"
    matching: bool = True
    rate: Rate = 0.02
    weight: Rate = 2.0
    temperature: Rate = 0.4
    keep_offset: float = 3.0
    share_offset: float = 1.0
    head_offset: float = 6.0
    prior: Annotated[float, Field(ge=0)] = 4.0
    least: Share = 0.0
    gather: Share = 0.0
    fill: Literal["none", "ffn", "all"] = "ffn"
    core: float = 0.0
    freeze: Fraction = 0.1
    arrive: Fraction = 0.2
    pull: Share = 0.0
    alignment: Annotated[float, Field(ge=0)] = 0.0
    align: bool = True

    @property
    def filled(self) -> tuple[str, ...]:
        """Names of the axes whose slots are filled: none where nothing may be pruned, or all that can be is shared anyway."""
        return _FILLED[self.fill] if self.prune and not self.tied else ()

    @model_validator(mode="after")
    def _in_order(self) -> StructureSettings:
        if self.families is not None and self.sharing == "none":
            raise ValueError("families are given, and sharing is none: one of them has to go")
        if self.tied and self.sharing == "none":
            raise ValueError("tied, and sharing is none: there is nothing to tie")
        if self.arrive < self.freeze:
            raise ValueError(f"weights cannot arrive ({self.arrive}) before the gates are frozen ({self.freeze})")
        if self.gather and self.gather >= self.freeze:
            raise ValueError(
                f"what is gathered until {self.gather} leaves no gates to learn before they are frozen ({self.freeze})"
            )
        return self


_FILLED: Mapping[str, tuple[str, ...]] = {"none": (), "ffn": ("hidden",), "all": ("hidden", "qk", "vo", "vo2")}


class LearnConfig(Settings):
    """Everything that a run of ``inarch learn`` depends on.

    Attributes:
        model: a preset.
        data: what it is trained on.
        dense: pre-training of the dense model, on grounding where the task has it.
        shallow: how many of its steps are a model's with half the layers, each of which then becomes two; 0 for none. Both parts
            begin with the first batch, a warm-up and the whole rate. Neighbours have more in common afterwards, and can share
            (``structure.tied``); see :mod:`~inarch.learning.stacking`.
        learning: the steps in which the structure is learned, on the same.
        structure: how.
        distil: weight of a teacher's outputs in the loss while the structure is learned, 0 for none. The teacher is the dense
            model after as many further steps, which are taken first.
        weights: a file of dense weights to start from, instead of pre-training.
        precision: as accelerate knows them: ``no``, ``bf16``, ``fp16``.
        seed: of weights, batches and noise.
    """

    model: str = "mdetr-tiny"
    data: Data = ScenesSettings()
    dense: Optimisation = Optimisation()
    shallow: Annotated[int, Field(ge=0)] = 0
    learning: Optimisation = Optimisation(steps=3000, rate=1e-3)
    structure: StructureSettings = StructureSettings()
    distil: Annotated[float, Field(ge=0)] = 0.0
    weights: FilePath | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _suit_the_model(cls, values: Any) -> Any:
        """What is not given, as the model wants it."""
        if not isinstance(values, Mapping):
            return values
        model = values.get("model", cls.model_fields["model"].default)
        if not isinstance(model, str):
            return values
        return filled(values, preferences(model, task_of(values.get("data", {}))))

    @model_validator(mode="after")
    def _deep_at_last(self) -> LearnConfig:
        if self.shallow >= self.dense.steps:
            raise ValueError(
                f"of {self.dense.steps} dense steps, {self.shallow} are to be shallow: none is left for the whole model"
            )
        if self.shallow and self.weights is not None:
            raise ValueError("weights are given, so nothing is pre-trained: shallow has to be 0")
        return self


def preferences(model: str, task: Any) -> dict[str, dict[str, Any]]:
    """The settings whose defaults depend on the model, by section: the one place where they are chosen.

    GLIP's coarsest map has a cell every 32 pixels or more, and at MDETR's rate its training is unsteady. It sees an image as
    often as there are texts about it. A small MDETR on drawn images learns its structure best at the rate that it was
    pre-trained at (measured, docs/measurements/learning-trials.md).

    Args:
        model: a preset's name.
        task: of the data; whatever stands there.
    """
    wanted: dict[str, dict[str, Any]] = {}
    if is_glip(model):
        drawn, read = task in _DRAWN, task in tuple(OF_FILES)
        wanted = {"data": {"side": 64} if drawn else {"each": 1} if read else {}, "dense": {"rate": 1e-3}}
    elif _is_small_on_drawn(model, task):
        wanted = {"learning": {"rate": 3e-3}}
    return wanted | {name: {"rate": _FULL_RATE} for name in ("dense", "learning") if is_full(model)}


_DRAWN = ("scenes", "sprites")
"""Tasks whose images are drawn."""


def _is_small_on_drawn(model: str, task: Any) -> bool:
    """Whether it is a small MDETR that sees drawn images."""
    return task in _DRAWN and not is_glip(model) and not is_full(model)


def is_glip(model: str) -> bool:
    """Whether a preset is a GLIP."""
    return isinstance(registry.PRESETS.get(model), GlipConfig)


def is_full(model: str) -> bool:
    """Whether a preset is of full size: not trained from nothing here, but from released weights, which high rates would undo."""
    config = registry.PRESETS.get(model)
    return config is not None and config.text.width >= _FULL


_FULL = 384
"""Width of a text encoder from which on a model is one of full size."""
_FULL_RATE = 5e-5
"""What MDETR's authors trained its text encoder with (published); its other parts and GLIP got 1e-5 to 1e-4."""


def tuning_defaults(model: str, task: str) -> dict[str, Any]:
    """What of a :class:`TuneConfig` depends on a run, by dotted names.

    A small MDETR on drawn images is tuned better at 2e-3 than at 5e-4, most of all for questions (measured on one dense model,
    docs/measurements/learning-trials.md).

    Args:
        model: the run's.
        task: of its data.
    """
    if is_full(model):
        return {"optimisation.rate": _FULL_RATE}
    return {"optimisation.rate": 2e-3} if _is_small_on_drawn(model, task) else {}


class TuneConfig(Settings):
    """Everything that a run of ``inarch tune`` depends on.

    Attributes:
        kind: what is tuned for; see :mod:`inarch.learning.tasks.worlds`.
        dense: whether the run's dense model is tuned instead, to compare with, or to teach.
        optimisation: how.
        distil: weight of a teacher's outputs in the loss; 0 for none.
        teacher: folder of a tuning of the dense model for the same; None for the run's own, ``KIND-dense``. What the run was
            pre-trained for, its dense model knows already; where a teacher was trained further, that one.
        seed: of batches.
    """

    kind: Aim = "referring"
    optimisation: Optimisation = Optimisation(steps=2000, rate=5e-4, warmup=100)
    dense: bool = False
    distil: Annotated[float, Field(ge=0)] = 0.0
    teacher: FilePath | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: Seed = 0

    @model_validator(mode="after")
    def _teach(self) -> TuneConfig:
        if self.teacher is not None and not self.distil:
            raise ValueError("a teacher without a weight of what it says: distil is 0")
        if self.dense and self.distil:
            raise ValueError("a dense model is no student of a dense model: distil has to be 0")
        return self


def read_config(path: Path) -> LearnConfig:
    """A configuration from a JSON file; what it leaves out has its default.

    Raises:
        InarchError: it cannot be read, or a key is unknown or a value out of range; it names the place.
    """
    return validated(LearnConfig, _read(path), str(path))


_Made = TypeVar("_Made", bound=BaseModel)


def configure(
    kind: type[_Made], changes: Mapping[str, Any], path: Path | None = None, defaults: Mapping[str, Any] = MappingProxyType({})
) -> _Made:
    """A configuration from dotted names: ``{"structure.keep": 0.5}``.

    Args:
        kind: of what.
        changes: what is set.
        path: a JSON file with what is not; what neither says has its default.
        defaults: defaults that are other ones here, by dotted names, too.

    Raises:
        InarchError: there is no such name, or a value is out of range, or the file cannot be read.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read(path)
        validated(kind, tree, str(path))
    for name, value in defaults.items():
        section, last = _section(tree, name)
        section.setdefault(last, value)
    for name, value in changes.items():
        section, last = _section(tree, name)
        section[last] = value
    return validated(kind, tree, "settings")


def _section(tree: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Where a dotted name's last part stands, and that part; what is missing on the way is made."""
    at: Any = tree
    *sections, last = name.split(".")
    for section in sections:
        at = at.setdefault(section, {})
        if not isinstance(at, dict):
            raise InarchError(_UNKNOWN, where=f"settings: {name}")
    return at, last


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise InarchError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise InarchError(f"is not JSON: {error}", where=str(path)) from None
    if not isinstance(tree, dict):
        raise InarchError("is no JSON object", where=str(path))
    return tree


_UNKNOWN = "there is no such setting"


def refusal(error: ValidationError, source: str) -> InarchError:
    """A validation error as one of ours: the first mistake and its place."""
    first = error.errors(include_url=False)[0]
    place, message = list(first["loc"]), first["msg"].removeprefix("Value error, ")
    task = place.pop(1) if place[:1] == ["data"] and len(place) > 1 and place[1] in TASKS else None
    if first["type"] == "extra_forbidden":
        message = f"{_UNKNOWN} of {task}" if task else _UNKNOWN
    elif first["type"] == "missing":
        message = f"is missing: {task} needs it" if task else "is missing"
    name = ".".join(str(part) for part in place)
    return InarchError(message, where=f"{source}: {name}" if name else source)


def validated(kind: type[_Made], values: Mapping[str, Any], source: str) -> _Made:
    """Settings from plain values.

    Raises:
        InarchError: one is out of range; it names the place.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise refusal(error, source) from None
