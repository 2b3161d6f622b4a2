"""The cells of the accuracy grid: which there are, what they depend on, and where they are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from inarch.structure.errors import InarchError

if TYPE_CHECKING:
    from inarch.learning.config import LearnConfig

STORE = Path("docs/measurements/accuracy")
STARTS = STORE / "starts"
"""Dense models that cells start from, so that any machine can go on with a seed."""
LARGEST_START = 2**21
"""Bytes above which a dense model is not kept there: those of the GLIP are too large for a repository."""
WORK = Path("bench-out/accuracy")
FIRST = "mdetr-tiny/scenes"
FAST = "mdetr-tiny/scenes/3e-3"
"""From the same dense models, and then all methods at twice the rates; a third part of a name is what is other than usual."""
LONG = "mdetr-tiny/scenes/3e-3-twice"
"""The same with twice the steps in which a structure is learned, or whatever else a method does in them."""
GROWN = "mdetr-tiny/scenes-grown/3e-3"
"""As ``FAST``, from dense models that had half the layers for half of their steps: neighbours are alike there."""
DISTIL = 40.0
"""Weight of the teacher's outputs in the loss of what is distilled, in learning and in tuning."""

BASELINES = ("uniform", "prune", "magnitude", "similarity", "rule-layer", "rule-cross", "share", "scratch")
ABLATIONS = ("importance", "no-alignment", "free", "per-modality", "separate", "cross", "layer", "gates")


@dataclass(frozen=True)
class Setting:
    """A model, the data that it is trained on, and how much of that it gets.

    Attributes:
        model: a preset.
        data: as of :class:`~inarch.learning.config.LearnConfig`.
        dense: of the pre-training that a seed's methods share.
        learning: what every method gets on top of that.
        tuning: task -> how every method is tuned for it.
        shallow: how many steps of pre-training a model with half the layers takes.
    """

    model: str
    data: Mapping[str, Any]
    dense: Mapping[str, float]
    learning: Mapping[str, float]
    tuning: Mapping[str, Mapping[str, float]]
    shallow: int = 0


_DENSE, _LEARNING = {"steps": 8000, "rate": 3e-3}, {"steps": 2000, "rate": 1.5e-3, "warmup": 100}
_TUNING = {"steps": 2000, "rate": 1e-3, "warmup": 100}
_FAST = Setting(
    "mdetr-tiny",
    {"task": "scenes", "level": "medium"},
    _DENSE,
    _LEARNING | {"rate": 3e-3},
    {"referring": _TUNING | {"rate": 2e-3}},
)
SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        FIRST: Setting(
            "mdetr-tiny",
            {"task": "scenes", "level": "medium"},
            _DENSE,
            _LEARNING,
            {"referring": _TUNING, "vqa": _TUNING | {"steps": 6000}},
        ),
        "glip-tiny/scenes": Setting(
            "glip-tiny",
            {"task": "scenes", "level": "easy"},
            {"steps": 3000, "rate": 1e-3},
            {"steps": 1000, "rate": 5e-4, "warmup": 50},
            {kind: {"steps": 1000, "rate": 3e-4, "warmup": 50} for kind in ("referring", "detection")},
        ),
        "mdetr-tiny/easy-vqa": Setting(
            "mdetr-tiny",
            {"task": "easy-vqa"},
            {"steps": 6000, "rate": 3e-3},
            {"steps": 1500, "rate": 1.5e-3, "warmup": 50},
            {"vqa": {"steps": 500, "rate": 1e-3, "warmup": 50}},
        ),
        "mdetr-tiny/sprites": Setting(
            "mdetr-tiny", {"task": "sprites", "level": "medium"}, _DENSE, _LEARNING, {"referring": _TUNING}
        ),
        FAST: _FAST,
        LONG: replace(_FAST, learning={**_FAST.learning, "steps": 4000}),
        GROWN: replace(_FAST, shallow=4000),
    }
)


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        kind: the task that is tuned for and judged on.
        method: see :data:`inarch.learning.methods.METHODS`.
        keep: fraction of the whole model's parameters that is stored.
        seed: of weights, batches and noise; the data are the same.
        setting: one of :data:`SETTINGS`.
        distilled: whether the seed's tuned dense model teaches it while it is tuned, as far as :data:`DISTIL` goes.
        taught: whether the dense model after as many further steps teaches it before that, too; only of what is distilled.
    """

    kind: str
    method: str
    keep: float
    seed: int
    setting: str = FIRST
    distilled: bool = False
    taught: bool = False

    @property
    def label(self) -> str:
        """The method, and how it was tuned where that is not as usual."""
        return self.method + self.how

    @property
    def how(self) -> str:
        """Whether, and for how long, it had a teacher; nothing where it had none."""
        return ", distilled throughout" if self.taught else ", distilled" if self.distilled else ""

    @property
    def teacher(self) -> Cell:
        """The cell of the dense model that was tuned for the same."""
        return Cell(self.kind, "dense", 1.0, self.seed, self.setting)

    @property
    def about(self) -> tuple[str, str]:
        """What it is compared within: setting and task."""
        return self.setting, self.kind


_TAUGHT = (("referring", 0.6, 5), ("vqa", 0.6, 3), *(("referring", keep, 3) for keep in (0.4, 0.5, 0.3)))
"""Task, fraction, and seeds of what is distilled."""


_KEPT = (5, 6, 7)
"""Seeds whose dense models are kept: any machine goes on with them. Those of 0 to 4 were not."""


def grid() -> Iterator[Cell]:
    """All cells, the most telling first; some come up twice."""
    for seed in _KEPT:
        yield Cell("referring", "dense", 1.0, seed)
        for keep in (0.3, 0.2, 0.6, 0.5, 0.4):
            for method in ("joint", "unbound", "prune", "magnitude"):
                yield Cell("referring", method, keep, seed, distilled=True, taught=True)
        for method in ("dense", "joint", "prune", "magnitude"):
            taught = method != "dense"
            yield Cell("vqa", method, 0.6 if taught else 1.0, seed, distilled=taught, taught=taught)
    for seed in _KEPT:
        yield Cell("referring", "dense", 1.0, seed, FAST)
        for keep in (0.3, 0.6, 0.5, 0.2, 0.65):
            for method in ("unbound", "prune", "magnitude"):
                yield Cell("referring", method, keep, seed, FAST, distilled=True, taught=True)
        for method in ("unbound", *BASELINES):
            yield Cell("referring", method, 0.6, seed, FAST)
    for seed in _KEPT:
        yield Cell("referring", "dense", 1.0, seed, GROWN)
        for keep in (0.2, 0.3, 0.4):
            for method in ("tied", "prune", "unbound"):
                yield Cell("referring", method, keep, seed, GROWN, distilled=True, taught=True)
    for seed in _KEPT:
        yield Cell("referring", "dense", 1.0, seed, LONG)
        for keep in (0.3, 0.2):
            for method in ("unbound", "prune"):
                yield Cell("referring", method, keep, seed, LONG, distilled=True, taught=True)
    for seed in _KEPT:
        for kind in SETTINGS[FIRST].tuning:
            yield Cell(kind, "dense", 1.0, seed)
            for method in ("joint", "unbound", *BASELINES):
                yield Cell(kind, method, 0.6, seed)
        for method in ABLATIONS:
            yield Cell("referring", method, 0.4, seed)
    for seed in range(3):
        yield Cell("referring", "dense", 1.0, seed)
        for keep in (0.6, 0.4):
            for method in ("joint", "prune", "uniform"):
                yield Cell("referring", method, keep, seed)
    for seed in range(3):
        for kind in SETTINGS[FIRST].tuning:
            yield Cell(kind, "dense", 1.0, seed)
            for method in ("joint", *BASELINES):
                yield Cell(kind, method, 0.6, seed)
        for keep in (0.5, 0.65, 0.3, 0.2):
            for method in ("joint", "prune", "uniform", "magnitude", "scratch"):
                yield Cell("referring", method, keep, seed)
    for seed in range(2):
        for method in ABLATIONS:
            yield Cell("referring", method, 0.4, seed)
    for seed in (3, 4):
        for method, keep in (("dense", 1.0), ("joint", 0.6), ("prune", 0.6), ("uniform", 0.6)):
            yield Cell("referring", method, keep, seed)
    for kind, keep, seeds in _TAUGHT:
        for seed in range(seeds):
            for method in ("joint", "prune", "uniform"):
                yield Cell(kind, method, keep, seed, distilled=True)
    for keep, seeds in ((0.6, 5), (0.5, 3), (0.4, 3), (0.3, 3), (0.65, 3)):
        for seed in range(seeds):
            for method in ("joint", "prune", "magnitude", "uniform"):
                yield Cell("referring", method, keep, seed, distilled=True, taught=True)
    for seed in range(3):
        for name in (name for name in SETTINGS if name not in (FIRST, FAST, GROWN, LONG)):
            for kind in SETTINGS[name].tuning:
                for method, keep in (("dense", 1.0), ("joint", 0.6), ("prune", 0.6), ("uniform", 0.6)):
                    yield Cell(kind, method, keep, seed, name)
                for method in ("joint", "prune"):
                    yield Cell(kind, method, 0.6, seed, name, distilled=True, taught=True)


def base_config(seed: int, setting: str = FIRST) -> LearnConfig:
    """What all cells of a seed and setting have in common."""
    from inarch.learning.config import LearnConfig

    chosen = SETTINGS[setting]
    return LearnConfig.model_validate(
        {
            "model": chosen.model,
            "data": dict(chosen.data),
            "dense": dict(chosen.dense),
            "shallow": chosen.shallow,
            "learning": dict(chosen.learning),
            # Attentions were bound when the grid was begun; "unbound", today's default, is a method of its own.
            "structure": {"bound": True},
            "precision": "bf16",
            "seed": seed,
        }
    )


def key_of(cell: Cell) -> str:
    """The cell's name: readable, with a hash of every setting that it depends on behind it."""
    about: list[Any] = [_settings(cell), dict(SETTINGS[cell.setting].tuning[cell.kind])]
    if cell.distilled:
        about += [DISTIL, key_of(cell.teacher)]
    how = ("-distilled" if cell.distilled else "") + ("-taught" if cell.taught else "")
    return f"{_prefix(cell.setting)}{cell.kind}-{cell.method}{how}-{cell.keep:.2f}-{cell.seed}-{_digest(about)}"


def method_key(cell: Cell) -> str:
    """The name of what a method gives before it is tuned, which all tasks share."""
    how = "-taught" if cell.taught else ""
    return f"{_prefix(cell.setting)}{cell.method}{how}-{cell.keep:.2f}-{cell.seed}-{_digest(_settings(cell))}"


def dense_key(seed: int, setting: str = FIRST) -> str:
    """The name of a seed's dense model, with a hash of what its pre-training depends on."""
    settings = base_config(seed, setting).model_dump(mode="json")
    names = ("model", "data", "dense", "precision", "seed", *(("shallow",) if settings["shallow"] else ()))
    digest = _digest([settings[name] for name in names])
    return f"{_prefix(_pretrained(setting))}dense-{seed}-{digest}"


def _pretrained(setting: str) -> str:
    """The setting whose dense models it starts from: model and data."""
    return "/".join(setting.split("/")[:2])


def _prefix(setting: str) -> str:
    return "" if setting == FIRST else f"{setting.replace('/', '-')}-"


def _settings(cell: Cell) -> dict[str, Any]:
    """All settings of a run of the cell's method, but for what is kept, which is in the name."""
    from inarch.learning.methods import LEARNED

    settings = base_config(cell.seed, cell.setting).model_dump(mode="json")
    # Settings that came later: where they are not used, names stay as they were.
    if settings["structure"]["families"] is None:
        del settings["structure"]["families"]
    del settings["structure"]["bound"], settings["structure"]["tied"]
    del settings["distil"]
    if not settings["shallow"]:
        del settings["shallow"]
    if cell.taught:
        settings["distil"] = DISTIL
    if cell.method in LEARNED:
        settings["structure"] |= LEARNED[cell.method]
    else:
        del settings["structure"]
    return settings


def _digest(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def closed(cell: Cell, others: Mapping[Cell, Mapping[str, Any]]) -> bool:
    """Whether cells of the same setting and seed do not say which dense model they started from: none can be put beside them."""
    return any("dense" not in result for _, result in _beside(cell, others))


def check_start(cell: Cell, dense: str, others: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Refuse a cell beside others of its seed that started from another dense model: differences would not be paired.

    Args:
        cell: to be computed.
        dense: digest of the dense model here.
        others: what is stored.

    Raises:
        InarchError: one that is to start from the same has another digest.
    """
    for other, result in _beside(cell, others):
        if result.get("dense") != dense:
            raise InarchError(
                f"the dense model of seed {cell.seed} here is {dense}, that of {key_of(other)} is {result.get('dense')}",
                where=str(WORK / dense_key(cell.seed, cell.setting)),
                hint="on an equal processor --threads 1 makes the same one; or remove this seed's cells and fill them anew",
            )


def check_teacher(cell: Cell, teacher: Mapping[str, Any], others: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Refuse a cell whose teacher is not the dense model that it is compared with: another processor trains another one.

    Args:
        cell: to be computed.
        teacher: what is known of the dense model after as many further steps here.
        others: what is stored.

    Raises:
        InarchError: the dense cell that is stored was worth something else then.
    """
    there = others.get(cell.teacher)
    if there is not None and there["before"] != teacher["before"]:
        raise InarchError(
            f"the teacher here is worth {teacher['before']:.4f}, that of {key_of(cell.teacher)} {there['before']:.4f}",
            where=str(WORK / method_key(cell.teacher)),
            hint="fill it where that one was made, or remove that one and what it taught, and fill them anew",
        )


def _beside(cell: Cell, others: Mapping[Cell, Mapping[str, Any]]) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """Those that start from the same dense model."""
    start = _pretrained(cell.setting), cell.seed
    return ((other, result) for other, result in others.items() if (_pretrained(other.setting), other.seed) == start)


def stored(store: Path) -> dict[Cell, dict[str, Any]]:
    """The cells that are done, under the present settings."""
    found = {}
    for cell in dict.fromkeys(grid()):
        path = store / f"{key_of(cell)}.json"
        if path.exists():
            found[cell] = json.loads(path.read_text(encoding="utf-8"))
    return found
