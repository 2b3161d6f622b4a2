"""Presets by name, and models made from them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch

from inarch.learning.models.glip import Glip
from inarch.learning.models.glip_config import GLIP_PRESETS, GlipConfig
from inarch.learning.models.mdetr import Mdetr
from inarch.learning.models.mdetr_config import MDETR_PRESETS, MdetrConfig
from inarch.structure.errors import InarchError

Config = MdetrConfig | GlipConfig
Model = Mdetr | Glip

PRESETS: Mapping[str, Config] = {**MDETR_PRESETS, **GLIP_PRESETS}
"""Preset name -> configuration."""


def preset(name: str) -> Config:
    """The configuration of this name.

    Raises:
        InarchError: there is none; it names the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 3, 0.4) or list(PRESETS)
        raise InarchError("there is no such preset", where=name, hint=f"there are {', '.join(near)}")
    return PRESETS[name]


def build(model: str | Config, *, seed: int = 0, device: str = "cpu") -> Model:
    """A model with random weights, in evaluation mode.

    Args:
        model: a preset's name, or a configuration.
        seed: of the weights; torch's own generator is left as it was.
        device: where it lives; ``meta`` allocates nothing.

    Raises:
        InarchError: there is no such preset.
    """
    config = preset(model) if isinstance(model, str) else model
    # Made on the CPU whatever the device, so that a seed means the same weights everywhere.
    place = "meta" if torch.device(device).type == "meta" else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(place):
        torch.manual_seed(seed)
        built: Model = Mdetr(config) if isinstance(config, MdetrConfig) else Glip(config)
    return built.eval().to(device)
