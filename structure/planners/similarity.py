"""The similarity planner: nearest units are shared, in nested reader sets, and the weakest of the rest are pruned."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from inarch.structure.planners.budget import Draft
from inarch.structure.planners.families import Channel
from inarch.structure.units import Indices

Lengths = tuple[tuple[int, ...], ...]
"""By channel, by reader: how many elements of the base's order the reader shares."""


def share(channels: Sequence[Channel], saving: float) -> tuple[Lengths, int]:
    """Extend the prefixes, nearest step first, until ``saving`` parameters are shared or everything is.

    MSAs and FFNs save in proportion to what they could: the best of 3072 units is nearer than the best of 64 by chance alone,
    so their distances don't compare, and a kind that shared everything would leave all pruning to the other.

    Returns:
        The lengths, and the parameters saved.
    """
    at = [[0] * len(channel.family.readers) for channel in channels]
    room = {kind: sum(_room(c) for c in channels if c.family.base.kind == kind) for kind in ("msa", "ffn")}
    # MSAs first: their steps are whole heads, and the finer ones of the FFNs make up for what they leave over.
    saved = 0
    if room["msa"]:
        part = saving * room["msa"] / sum(room.values()) if room["ffn"] else saving
        saved += _extend(channels, at, "msa", part)
    saved += _extend(channels, at, "ffn", saving - saved)
    lengths = tuple(tuple(channel.lengths[step] for step in row) for channel, row in zip(channels, at, strict=True))
    return lengths, saved


def _room(channel: Channel) -> int:
    """Parameters that a channel saves where every reader shares everything."""
    return channel.saving * channel.lengths[-1] * len(channel.family.readers)


def _extend(channels: Sequence[Channel], at: list[list[int]], kind: str, saving: float) -> int:
    """Extend the prefixes of one kind's channels; ``at`` holds each reader's step and is changed. Returns what is saved."""
    heap: list[tuple[float, int, int]] = []

    def offer(number: int, reader: int) -> None:
        channel = channels[number]
        step = at[number][reader] + 1
        if step < len(channel.lengths):
            part = channel.costs[reader][channel.lengths[step - 1] : channel.lengths[step]]
            heapq.heappush(heap, (float(part.mean()), number, reader))

    for number, channel in enumerate(channels):
        if channel.family.base.kind == kind:
            for reader in range(len(channel.family.readers)):
                offer(number, reader)
    saved = 0
    while heap and saved < saving:
        _, number, reader = heapq.heappop(heap)
        channel, step = channels[number], at[number][reader]
        gain = (channel.lengths[step + 1] - channel.lengths[step]) * channel.saving
        # A step that lands farther from the goal than stopping is left out; smaller ones may still fit.
        if saved + gain - saving > saving - saved:
            continue
        at[number][reader] += 1
        saved += gain
        offer(number, reader)
    return saved


def lock(drafts: Mapping[str, Draft], channels: Sequence[Channel], lengths: Lengths) -> None:
    """Keep what is shared: each reader's shared units and the base units they read."""
    for channel, row in zip(channels, lengths, strict=True):
        base = {axis: units for axis, (units, _) in pairs(channel, max(row), 0).items()}
        _lock(drafts[channel.family.base.name], channel, base)
        for number, reader in enumerate(channel.family.readers):
            own = {axis: units for axis, (_, units) in pairs(channel, row[number], number).items()}
            _lock(drafts[reader.name], channel, own)


def _lock(draft: Draft, channel: Channel, units: Mapping[str, Indices]) -> None:
    for axis, indices in units.items():
        if not len(indices):
            continue
        if channel.heads:
            draft.lock_heads(np.unique(indices // draft.site.axes[axis].per_head))
        else:
            draft.lock_units(axis, indices)


def pairs(channel: Channel, length: int, reader: int) -> dict[str, tuple[Indices, Indices]]:
    """What a reader's prefix shares: axis -> (the base's units, the reader's units), [n] each, in the base's order."""
    result = {}
    for axis, elements in channel.elements.items():
        base = elements[:length].reshape(-1)
        result[axis] = (base, channel.partners[reader][axis][base])
    return result
