"""What a lowering decided, site by site, as plain data: for people, for reports and for ``inarch compile --json``.

Everything here is read off the lowered plan; nothing is decided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from inarch.structure.accounting import stored_numbers
from inarch.structure.demand import unit_axes
from inarch.structure.lowered import Legalised, LoweredPlan, LoweredSite, Segment
from inarch.structure.sites import Site, SiteTable


@dataclass(frozen=True)
class BlockDecision:
    """Units that a site stores together.

    Attributes:
        heads: heads that store it; 1 for an FFN.
        units: units in all of them together.
        segment: id of the shared segment, or None where the block is the site's own.
        readers: the other sites that read the segment.
    """

    heads: int
    units: int
    segment: str | None = None
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class AxisStorage:
    """One hidden axis of a site.

    Attributes:
        axis: its name.
        units: units in the dense model.
        dropped: units that are not stored.
        zeros: pruned units that are stored as zeros.
        again: units that the plan shares and that are stored here once more.
        blocks: what is stored, in stored order.
    """

    axis: str
    units: int
    dropped: int
    zeros: int
    again: int
    blocks: tuple[BlockDecision, ...]


@dataclass(frozen=True)
class SiteDecision:
    """One site.

    Attributes:
        site: its name.
        kind: ``ffn`` or ``msa``.
        changed: whether anything about it was changed.
        parameters: numbers in the dense model.
        own: numbers that the file holds for this site alone.
        shared: numbers of this site that lie in shared segments.
        dense_products: matrix products that one call-site computes in the dense model, as if nothing were packed or fused.
        products: those that it computes now: an estimate of its kernels.
        axes: its hidden axes.
        legalised: what is stored beyond the plan, by reason.
    """

    site: str
    kind: str
    changed: bool
    parameters: int
    own: int
    shared: int
    dense_products: int
    products: int
    axes: tuple[AxisStorage, ...]
    legalised: tuple[Legalised, ...]


def decisions(table: SiteTable, lowered: LoweredPlan) -> tuple[SiteDecision, ...]:
    """Every site of the model, in model order. O(sites + blocks + readers).

    Args:
        table: the sites that the plan was lowered for.
        lowered: the lowered plan.
    """
    segments = {segment.id: segment for segment in lowered.segments}
    legalised: defaultdict[str, list[Legalised]] = defaultdict(list)
    for item in lowered.legalised:
        legalised[item.site].append(item)
    return tuple(_decision(table[low.name], low, segments, tuple(legalised[low.name])) for low in lowered.sites)


def _decision(
    site: Site, lowered: LoweredSite, segments: Mapping[str, Segment], legalised: tuple[Legalised, ...]
) -> SiteDecision:
    axes = []
    shared = 0
    for name in unit_axes(site):
        blocks = []
        for group in lowered.groups:
            for block in group.blocks[name]:
                readers: tuple[str, ...] = ()
                if block.segment is not None:
                    readers = tuple(reader for reader in segments[block.segment].readers if reader != site.name)
                    shared += block.units.size * site.unit_parameters(name)[0]
                blocks.append(BlockDecision(len(group.heads), int(block.units.size), block.segment, readers))
        mine = [item for item in legalised if item.axis == name]
        stored = sum(block.units for block in blocks)
        zeros = sum(item.units for item in mine if item.base is None)
        again = sum(item.units for item in mine if item.base is not None)
        axes.append(AxisStorage(name, site.axes[name].size, site.axes[name].size - stored, zeros, again, tuple(blocks)))
    own = sum(stored_numbers(site, lowered, member) for member in site.members.values())
    dense = sum(_products(site, axis.axis) for axis in axes)
    now = sum(_products(site, axis.axis) * len(axis.blocks) for axis in axes)
    return SiteDecision(site.name, site.kind, lowered.touched, site.parameters, own, shared, dense, now, tuple(axes), legalised)


def _products(site: Site, axis: str) -> int:
    """Matrix products that one block of an axis takes part in: its projections, and on an MSA the one inside the heads."""
    return sum(member.is_matrix for member in site.on(axis)) + (site.kind == "msa")


def decision_data(decision: SiteDecision, number_bytes: float) -> dict[str, Any]:
    """A decision as plain JSON types; ``number_bytes`` is what a number of the model takes, for what legalising costs."""
    data = asdict(decision)
    for item in data["legalised"]:
        del item["site"]
        item["bytes"] = round(item["parameters"] * number_bytes)
    return data
