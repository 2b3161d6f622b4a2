"""Growing a model in depth while it is pre-trained: at first with half the layers, each of which then becomes two neighbours.

Layers of a model that is trained whole have little in common (docs/measurements/substitutes.md), so that little can be shared
without loss. Neighbours that were one layer for a while have more (docs/measurements/learning-trials.md). That layers can be
doubled on the way, to save steps, is published: the whole stack repeated, Gong et al., "Efficient Training of BERT by
Progressively Stacking", ICML 2019; neighbours alike, Chang et al., "Multi-level Residual Networks from Dynamical Systems View",
ICLR 2018. To do it for the sake of sharing is ours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from inarch.learning.models.glip_config import GlipConfig, SwinConfig
from inarch.learning.models.parts_config import VitConfig
from inarch.learning.models.registry import Config
from inarch.structure.errors import InarchError

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
"""Of a module in a list, in a parameter's name."""


def halved(config: Config) -> Config:
    """The same architecture with half as many layers in every stack of transformer layers; ResNets stay as they are.

    Where a stage of a Swin is left with one block, its windows are not shifted until it has two again.

    Raises:
        InarchError: a stack has an odd number of layers.
    """
    vision = config.vision
    parts: dict[str, object] = {"text": config.text.model_copy(update={"layers": _half(config.text.layers, "text.layers")})}
    if isinstance(vision, VitConfig):
        parts["vision"] = vision.model_copy(update={"layers": _half(vision.layers, "vision.layers")})
    elif isinstance(vision, SwinConfig):
        stages = tuple(_half(layers, f"stage {stage} of vision.layers") for stage, layers in enumerate(vision.layers, 1))
        parts["vision"] = vision.model_copy(update={"layers": stages})
    if isinstance(config, GlipConfig):
        return config.model_copy(update=parts | {"blocks": _half(config.blocks, "blocks")})
    fused = {name: _half(getattr(config, name), name) for name in ("encoder_layers", "decoder_layers")}
    return config.model_copy(update=parts | fused | {"answer_layer": config.answer_layer // 2})


def _half(layers: int, name: str) -> int:
    if layers % 2:
        raise InarchError(
            f"{name} is {layers}, which has no half",
            where="shallow",
            hint="0 trains the whole model from the start",
        )
    return layers // 2


def doubled(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a trainee in which every layer of another is two; they are the other's tensors, not copies.

    Args:
        weights: of the one with half the layers.
        like: of the deeper one, whose names and shapes are wanted.

    Raises:
        InarchError: something of the deeper one has no origin, or another shape there.
    """
    deep, shallow = _lists(like), _lists(weights)
    made = {}
    for name, value in like.items():
        source = _origin(name, deep, shallow)
        if source not in weights or weights[source].shape != value.shape:
            raise InarchError(f"no {source} of its shape is in the model with half the layers", where=name)
        made[name] = weights[source]
    return made


def _lists(names: Collection[str]) -> dict[str, list[set[str]]]:
    """Lists of modules: what each of their members holds, by name."""
    found: dict[str, dict[int, set[str]]] = {}
    for name in names:
        for place in _NUMBER.finditer(name):
            found.setdefault(name[: place.start()], {}).setdefault(int(place[0]), set()).add(name[place.end() :])
    return {before: [members.get(n, set()) for n in range(max(members) + 1)] for before, members in found.items()}


def _origin(name: str, deep: Mapping[str, list[set[str]]], shallow: Mapping[str, list[set[str]]]) -> str:
    """The name of what a parameter comes from: of lists that are half as long there, two layers in a row come from one."""
    made, done = "", 0
    for place in _NUMBER.finditer(name):
        before, number = name[: place.start()], int(place[0])
        made += name[done : place.start()]
        done = place.end()
        if len(deep[before]) == 2 * len(shallow.get(made, ())):
            layer = _layer(deep[before])
            number = number // layer // 2 * layer + number % layer
        made += str(number)
    return made + name[done:]


def _layer(members: list[set[str]]) -> int:
    """How many members in a row are a layer: one, unless a layer is several modules, as GLIP's fusion is."""
    return next((n for n in range(1, len(members)) if members[n] == members[0]), len(members))
