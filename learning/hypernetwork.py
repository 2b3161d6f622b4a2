"""The hypernetwork: from fixed random inputs, one a site, to the logits of every gate.

Published: one hypernetwork generates the sharing and the pruning vectors of both modalities, so that it captures how layers and
modalities depend on each other. Ours: its form (design, section 7): N(0, 1) inputs, a bidirectional GRU over the sites in model
order, LayerNorm, GELU, a linear map without bias for each axis. Shapes: S sites, C inputs a site, F features a site, L logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from inarch.learning.families import modality
from inarch.learning.gates import GateSpace

Kind = Literal["joint", "per-modality", "separate", "free"]
"""``joint``: one network for everything. ``per-modality``: one for each backbone and one for the rest. ``separate``: one for
pruning and one for sharing. ``free``: no network, the logits are parameters."""


class _Recurrent(nn.Module):
    """Logits of some sites' gates."""

    inputs: Tensor

    def __init__(self, sites: Sequence[int], owner: Tensor, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("inputs", torch.randn(len(sites), width, generator=rng))
        self.gru = nn.GRU(width, width, bidirectional=True)
        self.norm = nn.LayerNorm(2 * width)
        self.heads = nn.Parameter(torch.randn(len(owner), 2 * width, generator=rng) * 0.02)
        place = {site: number for number, site in enumerate(sites)}
        self.register_buffer("owner", torch.tensor([place[site] for site in owner.tolist()]), persistent=False)

    def forward(self) -> Tensor:
        """One logit for each of its gates."""
        hidden, _ = self.gru(self.inputs)
        features = nn.functional.gelu(self.norm(hidden))
        owner: Tensor = self.get_buffer("owner")
        return (self.heads * features[owner]).sum(-1)


class Hypernetwork(nn.Module):
    """Generates the logits of all gates.

    Args:
        space: the gates.
        offsets: [L] what is added to what the network says, so that training starts dense and private.
        kind: how many networks there are.
        width: C, and half of F.
        seed: of its inputs and weights.
    """

    offsets: Tensor

    def __init__(self, space: GateSpace, offsets: Tensor, *, kind: Kind = "joint", width: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("offsets", offsets)
        self.parts = nn.ModuleList()
        self.places: list[Tensor] = []
        if kind == "free":
            self.free = nn.Parameter(torch.zeros(space.logits))
            return
        rng = torch.Generator().manual_seed(seed)
        owner, shares = _owners(space)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reach the accelerators' generators too, which are not put back.
            torch.default_generator.manual_seed(seed)
            for mask in _divide(space, owner, shares, kind):
                index = mask.nonzero()[:, 0]
                sites = sorted(set(owner[index].tolist()))
                self.parts.append(_Recurrent(sites, owner[index], width, rng))
                self.register_buffer(f"index{len(self.places)}", index, persistent=False)
                self.places.append(index)

    def forward(self) -> Tensor:
        """The logits [L]."""
        if not self.parts:
            return self.offsets + self.free
        made = [part() for part in self.parts]
        index = torch.cat([self.get_buffer(f"index{number}") for number in range(len(made))])
        return self.offsets.index_add(0, index, torch.cat(made))


def _owners(space: GateSpace) -> tuple[Tensor, Tensor]:
    """The site that each logit belongs to, [L], and whether it is one of sharing, [L]."""
    numbers = {site.name: number for number, site in enumerate(space.sites)}
    owner = torch.zeros(space.logits, dtype=torch.int64)
    shares = torch.zeros(space.logits, dtype=torch.bool)
    for spec in space.axes.values():
        owner[spec.keep] = numbers[spec.key[0]]
        if spec.share is not None:
            owner[spec.share] = numbers[spec.key[0]]
            shares[spec.share] = True
    for group in space.groups:
        if group.logits is not None:
            owner[group.logits] = numbers[group.sites[0]]
    return owner, shares


def _divide(space: GateSpace, owner: Tensor, shares: Tensor, kind: Kind) -> list[Tensor]:
    """Which logits each network makes: masks [L] that are disjoint and cover everything."""
    if kind == "separate":
        return [mask for mask in (~shares, shares) if bool(mask.any())]
    if kind == "per-modality":
        of_site = [modality(site.name) for site in space.sites]
        masks = [torch.tensor([of_site[n] == which for n in owner.tolist()]) for which in ("text", "vision", "both")]
        return [mask for mask in masks if bool(mask.any())]
    return [torch.ones_like(shares)]
