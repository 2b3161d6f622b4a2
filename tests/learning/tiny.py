"""A run small enough to train in a second: an MDETR and a GLIP as presets, scenes, settings, and what steps leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from inarch.learning import phases
from inarch.learning.config import LearnConfig
from inarch.learning.models import registry
from inarch.learning.models.glip_config import GlipConfig, SwinConfig
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.parts_config import TextConfig, VitConfig
from inarch.learning.phases import LearnPhase, WeightPhase
from inarch.learning.runs import learn_phase
from inarch.learning.workshop import Workshop, replaced

_TEXT = TextConfig(
    family="bert", vocabulary=80, positions=40, width=32, layers=2, heads=2, hidden=128, epsilon=1e-12, dropout=0.0
)
MDETR = MdetrConfig(
    vision=VitConfig(image=48, patch=8, width=32, layers=2, heads=2, hidden=128),
    text=_TEXT,
    width=32,
    heads=2,
    hidden=128,
    encoder_layers=1,
    decoder_layers=1,
    dropout=0.0,
    queries=4,
    spans=39,
    contrastive=8,
)
# A ViT, since a Swin's windows take torch a minute to follow.
GLIP = GlipConfig(
    vision=VitConfig(image=64, patch=16, width=32, layers=2, heads=2, hidden=128),
    text=_TEXT,
    width=16,
    blocks=1,
    fusion_heads=2,
    fusion_width=32,
    groups=4,
    classes=None,
    levels=3,
)
SWIN = GLIP.model_copy(
    update={
        "vision": SwinConfig(width=16, layers=(1, 1, 1, 2), heads=(1, 2, 4, 4), window=2),
        "text": _TEXT.model_copy(update={"layers": 1}),
    }
)
LEAST = MDETR.model_copy(update={part: getattr(MDETR, part).model_copy(update={"layers": 1}) for part in ("vision", "text")})
PRESETS = {"small": MDETR, "small-glip": GLIP, "least": LEAST}

SETTINGS: Mapping[str, Any] = {
    "model": "small",
    "data": {"level": "easy", "scenes": 60, "held_out": 8, "texts": 2, "judged": 2, "images": 4, "each": 2},
    "dense": {"steps": 6, "warmup": 1, "interval": 4},
    "learning": {"steps": 8, "rate": 3e-3, "warmup": 1, "interval": 3},
    "structure": {"keep": 0.75, "rate": 0.02, "freeze": 0.4, "arrive": 0.7},
}
CONFIG = LearnConfig.model_validate(SETTINGS)


def config(**changes: Any) -> LearnConfig:
    """The settings, sections changed in part: ``structure={"keep": 0.5}``."""
    merged = {name: {**SETTINGS[name], **new} if isinstance(new, dict) else new for name, new in changes.items()}
    return LearnConfig.model_validate({**SETTINGS, **merged})


@contextmanager
def presets() -> Iterator[None]:
    """The small presets can be had by name; a few batches say what units are worth, and no stage waits for the collector."""
    from accelerate.utils import memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "PRESETS", {**registry.PRESETS, **PRESETS})
        patch.setattr(phases, "BATCHES", 6)
        patch.setattr(memory, "clear_device_cache", lambda garbage_collection: None)
        yield


def learning(shop: Workshop, *, steps: int | None = None, average: float = 0.0, **structure: Any) -> LearnPhase:
    """A learning phase from random weights."""
    settings = shop.config.structure.model_validate({**shop.config.structure.model_dump(), **structure})
    changes: dict[str, Any] = {"average": average} | ({} if steps is None else {"steps": steps})
    return learn_phase(replaced(shop, structure=settings, learning=shop.config.learning.model_copy(update=changes)))


def weights(shop: Workshop, **optimisation: Any) -> WeightPhase:
    """Dense training from random weights."""
    from inarch.learning.trainer import accelerator

    course = shop.pretraining()
    trainee = shop.trainee(course)
    settings = shop.config.dense.model_copy(update=optimisation)
    return WeightPhase("dense", trainee, course, settings, accelerator("no", "cpu"), shop.config.seed)


def flat(state: object, path: str = "") -> dict[str, object]:
    """The leaves of nested mappings and lists, by their place."""
    if isinstance(state, Mapping):
        pairs = [(str(key), value) for key, value in state.items()]
    elif isinstance(state, list | tuple):
        pairs = [(str(number), value) for number, value in enumerate(state)]
    else:
        return {path: state}
    return {place: leaf for key, value in pairs for place, leaf in flat(value, f"{path}/{key}").items()}


def same(one: object, other: object) -> bool:
    """Whether two leaves are equal bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))
    return type(one) is type(other) and one == other


def differing(one: object, other: object) -> list[str]:
    """Where two states differ."""
    first, second = flat(one), flat(other)
    assert first.keys() == second.keys()
    return [place for place, leaf in first.items() if not same(leaf, second[place])]
