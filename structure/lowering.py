"""Lower a plan: plan + sites + cost table -> what will be stored, and why. Pure: no weights, no graph.

Legalising only ever keeps a pruned unit as zeros or stores a shared unit privately: it costs bytes, never exactness.
The steps: :mod:`demand` reads the plan, :mod:`segments` decides what is stored once, :mod:`legalise` makes the private rest
storable, :mod:`accounting` counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from inarch.structure.accounting import account
from inarch.structure.cost import DEFAULT_COST, CostTable, Limits
from inarch.structure.demand import Demand, demand_of, outside, planned_parameters, unit_axes
from inarch.structure.legalise import PrivateUnits, private_units, split_private_heads
from inarch.structure.links import clusters, links_of
from inarch.structure.lowered import Block, Group, LoweredPlan, LoweredSite, ResolvedPlan, Segment
from inarch.structure.segments import SharedBlock, SharedGroup, share_cluster
from inarch.structure.sites import SiteTable
from inarch.structure.units import Indices

__all__ = ["lower", "planned_parameters"]


def lower(table: SiteTable, resolved: ResolvedPlan, cost: CostTable = DEFAULT_COST, prefer: str | None = None) -> LoweredPlan:
    """Decide what a compiled model stores. Deterministic; O(units log units) for plans with nested reader sets.

    Args:
        table: the model's sites.
        resolved: the plan, bound to them.
        cost: the limits that shape segments and widths.
        prefer: ``size`` or ``latency`` for looser or tighter limits.

    Returns:
        Groups and blocks of every site, the shared segments, the counts, and what legalising cost by reason:
        ``stored - planned`` is the sum of its parameters.

    Raises:
        LoweringError: the plan was resolved for another model, or a unit's root has other weight vectors than the unit.
        CostError: ``prefer`` is another word.
    """
    limits = cost.limits(prefer)
    demand = demand_of(table, resolved)
    links = links_of(demand)
    shared: list[SharedGroup] = []
    for sites in clusters(demand, links):
        groups, tried = share_cluster(demand, sites, links, limits)
        shared += groups
        for name in links.why:
            for number in sites:
                if number in links.why[name]:
                    links.why[name][number] = tried.why[name][number]
    segments, ids = _name_segments(table, shared)
    private: dict[tuple[int, str], list[PrivateUnits]] = {}
    lowered = tuple(_lower_site(demand, number, shared, ids, limits, private) for number in range(len(table.sites)))
    counts = account(demand, links, lowered, segments, private)
    around = outside(table)
    return LoweredPlan(lowered, segments, counts.legalised, table.parameters, around + counts.planned, around + counts.stored)


def _name_segments(table: SiteTable, shared: Sequence[SharedGroup]) -> tuple[tuple[Segment, ...], dict[int, str]]:
    """Number the segments in the order of their first readers; also the id of each shared block by its identity."""
    found: list[tuple[int, int, str, SharedBlock]] = []
    for group in shared:
        for axis, blocks in group.blocks.items():
            found += [(min(block.readers), len(found) + i, axis, block) for i, block in enumerate(blocks)]
    segments: list[Segment] = []
    ids: dict[int, str] = {}
    for _, _, axis, block in sorted(found, key=lambda item: item[:2]):
        readers = {table.sites[number].name: units for number, units in sorted(block.readers.items())}
        name = f"segment{len(segments)}.{axis}"
        ids[id(block)] = name
        segments.append(Segment(name, axis, len(next(iter(readers.values()))), readers))
    return tuple(segments), ids


def _lower_site(
    demand: Demand,
    number: int,
    shared: Sequence[SharedGroup],
    ids: Mapping[int, str],
    limits: Limits,
    private: dict[tuple[int, str], list[PrivateUnits]],
) -> LoweredSite:
    """Put one site together: its groups that share, then its private heads; notes the private blocks."""
    site = demand.table.sites[number]
    axes = unit_axes(site)
    mine = sorted((group for group in shared if number in group.heads), key=lambda group: group.heads[number])
    taken = {head for group in mine for head in group.heads[number]}
    everything = "head" in site.frozen if site.kind == "msa" else "hidden" in site.frozen
    rest = [h for h in range(site.heads) if h not in taken and (everything or demand.alive[number][h])]
    # Private blocks are counted in every group that shares, whether there will be one or not.
    used = max(sum(1 + sum(number in b.readers for b in group.blocks.get(name, ())) for group in mine) for name in axes)
    alone = split_private_heads(demand, number, rest, limits.max_segments - used, limits)
    groups: list[Group] = []
    for heads, owner in [(group.heads[number], group) for group in mine] + [(heads, None) for heads in alone]:
        blocks: dict[str, tuple[Block, ...]] = {}
        for name in axes:
            common = [] if owner is None else [b for b in owner.blocks.get(name, ()) if number in b.readers]
            stored = [Block(b.readers[number].reshape(len(heads), -1), ids[id(b)]) for b in common]
            inside: Indices = np.concatenate([np.empty(0, np.int64), *(block.units.ravel() for block in stored)])
            mask = np.zeros(site.axes[name].size, np.bool_)
            mask[inside] = True
            own = private_units(site, name, heads, demand.axes[name].want[number], mask, demand.alive[number], limits)
            private.setdefault((number, name), []).append(own)
            if own.units.size:
                stored.append(Block(own.units))
            blocks[name] = tuple(stored)
        groups.append(Group(tuple(heads), blocks))
    reads = any(number in block.readers for group in mine for blocks_of in group.blocks.values() for block in blocks_of)
    return LoweredSite(site.name, tuple(groups), demand.changed[number] or reads)
