"""A plan while it is drawn: units are pruned, then readers take units from bases, and nothing contradictory gets in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from inarch.structure.plan import AXIS_NAMES, FORMAT, AxisName, AxisPlan, MemberRef, ModelRef, Plan, SharePlan, SitePlan
from inarch.structure.sites import AXIS_FACTORS, Site, SiteTable
from inarch.structure.units import Indices, format_indices

Flags = npt.NDArray[np.bool_]
Key = tuple[str, AxisName]
UNIT_AXES: tuple[AxisName, ...] = ("hidden", "qk", "vo", "vo2")


def unit_axes(site: Site) -> list[AxisName]:
    """The axes of a site that hold units, those that are frozen included."""
    return [axis for axis in UNIT_AXES if axis in site.axes]


def alike(reader: Site, base: Site, axis: str) -> bool:
    """Whether units of ``axis`` have the same weight vectors at both sites."""

    def vectors(site: Site) -> dict[str, object]:
        return {
            m.role: (m.width, tuple(f for f in m.factors if f[0] not in AXIS_FACTORS[axis] and f[1] > 1))
            for m in site.on(axis)
            if m.is_matrix
        }

    return reader.kind == base.kind and axis in reader.axes and axis in base.axes and vectors(reader) == vectors(base)


@dataclass
class Draft:
    """A plan while it is drawn.

    Attributes:
        rng: where the choices come from.
        table: the sites.
        keep: (site, axis) -> [units] what the axis itself keeps.
        heads: site -> [heads] what the head axis keeps.
        shares: (site, axis) -> (base, units, base units); the axis may be ``head``.
        roots: (site, axis) -> [units] the number of each unit's root; every unit has its own number at first.
        taken: (site, axis) -> [units] whether the unit is shared.
    """

    rng: np.random.Generator
    table: SiteTable
    keep: dict[Key, Flags] = field(init=False)
    heads: dict[str, Flags] = field(init=False)
    shares: dict[Key, list[tuple[str, Indices, Indices]]] = field(init=False)
    roots: dict[Key, Indices] = field(init=False)
    taken: dict[Key, Flags] = field(init=False)

    def __post_init__(self) -> None:
        keys = [(site.name, axis) for site in self.table.sites for axis in unit_axes(site)]
        self.keep = {(s, a): np.ones(self.table[s].axes[a].size, np.bool_) for s, a in keys}
        self.heads = {site.name: np.ones(site.heads, np.bool_) for site in self.table.sites}
        self.shares = {}
        self.taken = {key: np.zeros_like(flags) for key, flags in self.keep.items()}
        ends = np.cumsum([0, *(len(flags) for flags in self.keep.values())])
        self.roots = {key: np.arange(ends[i], ends[i + 1], dtype=np.int64) for i, key in enumerate(self.keep)}

    def pruned(self, site: Site, axis: AxisName) -> Flags:
        """[units] what is pruned, by the axis or with its head."""
        per_head = site.axes[axis].per_head
        return ~self.keep[site.name, axis] | np.repeat(~self.heads[site.name], per_head)

    def sites(self, kind: str) -> list[Site]:
        """Sites of a kind."""
        return [site for site in self.table.sites if site.kind == kind]

    def free(self, site: Site, axis: AxisName) -> bool:
        """Whether the plan may touch the axis."""
        return site.axes[axis].frozen is None

    # ---- sharing ----------------------------------------------------------------------------------------------------
    def take(self, reader: Site, base: Site, axis: AxisName, units: Indices, base_units: Indices) -> int:
        """Share the pairs that nothing contradicts; returns how many."""
        if not len(units) or not self.free(reader, axis) or not alike(reader, base, axis):
            return 0
        key, base_key = (reader.name, axis), (base.name, axis)
        roots = self.roots[base_key][base_units]
        sound = ~self.pruned(reader, axis)[units] & ~self.pruned(base, axis)[base_units] & ~self.taken[key][units]
        sound &= ~np.isin(roots, self.roots[key])
        _, first = np.unique(roots, return_index=True)
        once = np.zeros_like(sound)
        once[first] = True
        sound &= once
        units, base_units, roots = units[sound], base_units[sound], roots[sound]
        if len(units):
            self.shares.setdefault(key, []).append((base.name, units, base_units))
            self.taken[key][units] = True
            self.roots[key][units] = roots
        return len(units)

    def take_heads(self, reader: Site, base: Site, heads: Indices, base_heads: Indices) -> int:
        """Share whole heads through the head axis; only heads of which nothing is pruned or shared yet."""
        axes = unit_axes(reader)
        if not self.free(reader, "head") or axes != unit_axes(base) or not all(alike(reader, base, a) for a in axes):
            return 0
        if any(reader.axes[a].per_head != base.axes[a].per_head for a in axes):
            return 0
        pairs = []
        for head, base_head in zip(heads.tolist(), base_heads.tolist(), strict=True):
            spans = {}
            for axis in axes:
                per_head = reader.axes[axis].per_head
                mine = np.arange(head * per_head, (head + 1) * per_head)
                theirs = np.arange(base_head * per_head, (base_head + 1) * per_head)
                key, base_key = (reader.name, axis), (base.name, axis)
                blocked = self.pruned(reader, axis)[mine] | self.taken[key][mine] | self.pruned(base, axis)[theirs]
                if blocked.any() or np.isin(self.roots[base_key][theirs], self.roots[key]).any():
                    break
                spans[axis] = (mine, self.roots[base_key][theirs])
            else:
                pairs.append((head, base_head))
                for axis, (mine, roots) in spans.items():
                    self.taken[reader.name, axis][mine] = True
                    self.roots[reader.name, axis][mine] = roots
        if pairs:
            mine, theirs = np.array(pairs, np.int64).T
            self.shares.setdefault((reader.name, "head"), []).append((base.name, mine, theirs))
        return len(pairs)

    @property
    def decided(self) -> bool:
        """Whether anything is pruned or shared."""
        return bool(self.shares) or not all(flags.all() for flags in (*self.keep.values(), *self.heads.values()))

    # ---- the plan ---------------------------------------------------------------------------------------------------
    def plan(self, name: str, style: str) -> Plan:
        """The plan as it is written; sites that nothing is decided on are sometimes left out."""
        listed = {site.name: self._site(site) for site in self.table.sites}
        if self.rng.random() < 0.3:
            bases = {base for shares in self.shares.values() for base, _, _ in shares}
            listed = {n: p for n, p in listed.items() if n in bases or self._decided(p)}
        model = ModelRef(name=name, fingerprint=self.table.fingerprint)
        return Plan(format=FORMAT, model=model, sites=listed, provenance={"style": style})

    def _decided(self, plan: SitePlan) -> bool:
        return any(len(axis.kept) < axis.size or axis.share for axis in plan.axes.values())

    def _site(self, site: Site) -> SitePlan:
        members: dict[str, MemberRef | None] = {}
        for role, m in site.members.items():
            ranges = format_indices(range(m.start, m.start + m.size))
            members[role] = MemberRef(param=m.param, axis=m.axis, ranges=ranges, transposed=m.transposed)
        axes: dict[AxisName, AxisPlan] = {}
        for axis in AXIS_NAMES:
            if axis not in site.axes:
                continue
            keep = self.heads[site.name] if axis == "head" else self.keep[site.name, axis]
            share = tuple(
                SharePlan(base=base, units=format_indices(units), base_units=format_indices(base_units))
                for base, units, base_units in self.shares.get((site.name, axis), [])
            )
            axes[axis] = AxisPlan(size=len(keep), keep=format_indices(np.flatnonzero(keep)), share=share)
        return SitePlan(kind=site.kind, heads=site.heads if site.kind == "msa" else None, members=members, axes=axes)
