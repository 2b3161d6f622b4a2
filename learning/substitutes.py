"""What a unit of another layer could do in a unit's place: what sharing between FFNs begins with (ours).

A slot that pruning empties may read another layer's unit, which is stored anyway. A unit with vectors v and w and bias b adds
``a(v . x + b) w`` to what its layer puts out, for an input x. Read from unit k, with its bias as it was and nothing fitted, it is
``a(v_k . x + b) w_k``. What is left of the unit is ``1 - Var(difference) / Var(unit)`` over inputs, or nothing where that is
below 0: such a slot is better empty. Variances, since what is constant the layer's own bias can give. Shapes: N units, D wide, M
units of others, T inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from inarch.structure.errors import InarchError
from inarch.structure.sites import SiteTable

Floats = npt.NDArray[np.floating[Any]]
Numbers = Tensor | npt.NDArray[np.float32]
Real = Mapping[tuple[int, ...], Tensor]
"""Shape [B, L] of a layer's input -> which of its rows are more than padding."""
INPUTS = 1500
"""How many inputs of each layer are looked at."""
LIVE = 1e-6
"""Of what the loudest unit of a layer puts out, what a unit has to, to count as one that does anything."""


@dataclass(frozen=True, eq=False)
class Layer:
    """An FFN of N units, D wide, and what it was given and made of it.

    Attributes:
        up, down: [N, D] vectors that units read and write with.
        bias: [N].
        inputs: [T, D].
        hidden: [T, N] what its units computed.
        activation: of its units.
    """

    up: Tensor
    down: Tensor
    bias: Tensor
    inputs: Tensor
    hidden: Tensor
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Left:
    """What part of a layer's units' outputs is left, each unit weighted by how much it puts out.

    Attributes:
        free: where each unit reads the best of all others, in whichever layer that is.
        median: of the units' parts then, of those that put out something, whatever that is.
        live: how many do.
        part: of what the layer's units put out, what those do that were looked at.
        one: other layer -> where all read from that one, and each of its units is read once: what a plan can say.
        chance: as ``free``, where the others' numbers are shuffled.
    """

    free: float
    median: float
    live: int
    part: float
    one: Mapping[str, float]
    chance: float


def left_of(layer: Layer, up: Tensor, down: Tensor) -> Floats:
    """What part of every unit's output is left where it reads each of these units, [N, M]; below 0 where it is worse than none.

    Of a unit that puts out nothing there is nothing left.

    Args:
        layer: of N units.
        up, down: [M, D] vectors of others.
    """
    own, hidden = _puts_out(layer), layer.hidden - layer.hidden.mean(0)
    sizes, through = down.square().sum(1), layer.inputs @ up.T
    rows = []
    for unit, bias in enumerate(layer.bias):
        computed = layer.activation(through + bias)
        both = hidden[:, unit] @ computed / len(computed) * (down @ layer.down[unit])
        read = (2 * both - computed.var(0, correction=0) * sizes) / own[unit]
        rows.append(read if own[unit] > 0 else torch.zeros_like(read))
    found: Floats = torch.stack(rows).double().numpy()
    return found


def _puts_out(layer: Layer) -> Tensor:
    """How much each unit adds to what its layer puts out, [N]: the variance of its part."""
    return layer.hidden.var(0, correction=0) * layer.down.square().sum(1)


def left(layers: Mapping[str, Layer], name: str, seed: int = 0, units: int | None = None) -> Left:
    """What others as wide could do in the place of one layer's units.

    Args:
        layers: all of a model.
        name: of the one.
        seed: of the shuffling.
        units: how many of the layer's are looked at, those that put out most; None for all.

    Raises:
        InarchError: no other layer is as wide.
    """
    layer = layers[name]
    others = {key: found for key, found in layers.items() if key != name and found.up.shape[1] == layer.up.shape[1]}
    if not others:
        raise InarchError("no other FFN is as wide", where=name)
    total = float(_puts_out(layer).double().sum())
    layer = layer if units is None else _loudest(layer, units)
    worth = _puts_out(layer).double().numpy()
    live, part = worth > LIVE * worth.max(), float(worth.sum()) / (total or 1.0)
    worth = worth / (worth.sum() or 1.0)
    up, down = (torch.cat([getattr(other, kind) for other in others.values()]) for kind in ("up", "down"))
    order = torch.randperm(up.shape[1], generator=torch.Generator().manual_seed(seed))
    found, shuffled = left_of(layer, up, down).clip(0), left_of(layer, up[:, order], down[:, order]).clip(0)
    best = found.max(1)
    parts = np.split(found * worth[:, None], np.cumsum([len(other.up) for other in others.values()])[:-1], 1)
    return Left(
        free=float(best @ worth),
        median=float(np.median(best[live])) if live.any() else 0.0,
        live=int(live.sum()),
        part=part,
        one={key: float(one[linear_sum_assignment(one, maximize=True)].sum()) for key, one in zip(others, parts, strict=True)},
        chance=float(shuffled.max(1) @ worth),
    )


def _loudest(layer: Layer, units: int) -> Layer:
    """A layer with those of its units alone that put out most."""
    chosen = _puts_out(layer).argsort(descending=True)[:units]
    up, down, bias, hidden = layer.up[chosen], layer.down[chosen], layer.bias[chosen], layer.hidden[:, chosen]
    return replace(layer, up=up, down=down, bias=bias, hidden=hidden)


def layer_of(vectors: tuple[Numbers, Numbers, Numbers], inputs: Numbers, hidden: Numbers, name: str) -> Layer:
    """A layer from what it holds, was given and made of it, as tensors or arrays; of that, as much as is looked at.

    Args:
        vectors: up and down [N, D] and bias [N].
        inputs: [T, D].
        hidden: [T, N].
        name: of the layer, for errors.

    Raises:
        InarchError: its activation is none that is known here.
    """
    up, down, bias, inputs, hidden = map(_tensor, (*vectors, inputs, hidden))
    some = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:INPUTS]
    inputs, hidden = inputs[some], hidden[some]
    return Layer(up, down, bias, inputs, hidden, _activation(inputs @ up.T + bias, hidden, name))


def _tensor(numbers: Numbers) -> Tensor:
    return numbers if isinstance(numbers, Tensor) else torch.from_numpy(np.array(numbers))


def real_rows(batch: Mapping[str, Tensor]) -> dict[tuple[int, ...], Tensor]:
    """What of an MDETR's texts is more than padding: alone, and behind the image's cells where both are read as one."""
    texts = batch["attention_mask"] > 0
    both = texts.new_ones(len(texts), batch["cells"].shape[1] + texts.shape[1])
    both[:, -texts.shape[1] :] = texts
    return {tuple(texts.shape): texts, tuple(both.shape): both}


def layers_of(table: SiteTable, trainee: nn.Module, batches: Iterable[tuple[Mapping[str, Tensor], Real]]) -> dict[str, Layer]:
    """A model's FFNs, with what they were given.

    Args:
        table: the model's sites.
        trainee: with the model under ``model``.
        batches: what it is called with, and what of that is real; see :func:`real_rows`.

    Raises:
        InarchError: an FFN is gated, or no module of its own computes it, or its activation is none that is known here.
    """
    model = trainee.get_submodule("model")
    parameters, modules = dict(model.named_parameters(remove_duplicate=False)), dict(model.named_modules())
    roles = {site.name: {m.role: m for m in site.members.values()} for site in table.sites if site.kind == "ffn"}
    seen: dict[tuple[str, str], list[Tensor]] = {}
    real: dict[tuple[int, ...], Tensor] = {}
    hooks = []
    for name, members in roles.items():
        if set(members) != {"up", "up_bias", "down"}:
            raise InarchError("only plain FFNs with a bias are compared", where=name)
        for role in ("up", "down"):

            def keep(_: nn.Module, given: tuple[Tensor, ...], __: object, place: tuple[str, str] = (name, role)) -> None:
                rows = real.get(tuple(given[0].shape[:-1]), ...)
                seen.setdefault(place, []).append(given[0].float()[rows].reshape(-1, given[0].shape[-1]))

            hooks.append(modules[members[role].param.rpartition(".")[0]].register_forward_hook(keep))
    try:
        with torch.no_grad():
            for batch, masks in batches:
                real.clear()
                real.update(masks)
                trainee(batch)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, members in roles.items():
        if (name, "up") not in seen or (name, "down") not in seen:
            raise InarchError("is not computed by the modules that hold its weights", where=name)
        up, down = (parameters[members[role].param].detach().movedim(members[role].axis, 0) for role in ("up", "down"))
        vectors = (up, down, parameters[members["up_bias"].param].detach())
        found[name] = layer_of(vectors, torch.cat(seen[name, "up"]), torch.cat(seen[name, "down"]), name)
    return found


def _activation(before: Tensor, after: Tensor, name: str) -> Callable[[Tensor], Tensor]:
    """What made one of the other."""
    for one in (functional.relu, functional.gelu):
        if (one(before) - after).abs().max() <= 1e-4 * after.abs().max():
            return one
    raise InarchError("its activation is neither ReLU nor GELU", where=name)
