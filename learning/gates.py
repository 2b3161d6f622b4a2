"""Gates: which units are kept and which are shared, in the shapes that the lowering can store.

All gates of a model are slices of one vector of logits, so that noise, sigmoids and counting are a few operations. A forward pass
sees hard 0/1 gates, projected onto what can be stored: one count of units a head, widths in the cost table's multiples, and for
each base one order of its units of which every reader takes a prefix. The gradient goes to the logits through the sigmoids
(straight-through; Bengio et al. 2013, with Gumbel noise: Jang et al. 2017). Which shapes, and how they are projected, is ours.

Shapes: L logits, N units of one axis, H heads of P units (N = H P; one head for an FFN), U units of all axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inarch.learning.families import Family, usable
from inarch.learning.private_numbers import private_numbers
from inarch.learning.unit_rows import Key
from inarch.structure.cost import DEFAULT_COST, Limits
from inarch.structure.demand import VALUE_AXES, unit_axes
from inarch.structure.legalise import in_head_common
from inarch.structure.resolve import AxisDecision
from inarch.structure.sites import Site, SiteTable

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AxisSpec:
    """One gated axis.

    Attributes:
        key: its site and name.
        heads, per_head: H and P. Where sites share whose heads differ, blocks that every head of each is a multiple of.
        units: its slice of all units.
        keep: its slice of the logits; where families are tied, its base's.
        share: its slice of the logits where it may read a base, else None.
        base: the axis that it may share with, or does where families are tied.
        vectors, own: parameters of a unit: weight vectors; biases and riders.
        frozen: whether every unit stays.
        uniform: whether all heads keep the same units.
    """

    key: Key
    heads: int
    per_head: int
    units: slice
    keep: slice
    share: slice | None
    base: Key | None
    vectors: int
    own: int
    frozen: bool
    uniform: bool


@dataclass(frozen=True)
class GroupSpec:
    """Sites that lose heads together: a family's MSAs, or one site. One logit a head; None where heads stay.

    Where their heads differ, a head here is the least number of units that is a whole number of heads in each.
    """

    sites: tuple[str, ...]
    heads: int
    logits: slice | None


@dataclass(frozen=True, eq=False)
class Hard:
    """A structure: [N] bool for every gated axis.

    Attributes:
        keep: units that stay.
        share: units that are their base's; a subset of ``keep``.
    """

    keep: Mapping[Key, Bools]
    share: Mapping[Key, Bools]


@dataclass(frozen=True, eq=False)
class Gates:
    """Gates of a forward pass, 0 or 1, with a gradient to the logits.

    Attributes:
        hard: the same as a structure.
        keep: [U]; in a head that goes, what would be kept if it stayed, so that the head's gate has something to gain.
        share: [U]; 0 where nothing can be shared. Where families are tied, 1 whether a unit is kept or not: what would be kept.
        heads: [heads of all groups]; 1 where a group keeps its heads.
    """

    hard: Hard
    keep: Tensor
    share: Tensor
    heads: Tensor


class GateSpace:
    """All gates of a model.

    Args:
        table: its sites. Those with tied weights are left alone.
        families: who may share.
        limits: what the lowering can store; the shipped table's by default.
        prune: whether units may be pruned (else only shared).
        least: part of its units that every axis keeps; at 0 a site may go altogether.
        tied: whether a base and its readers keep and lose the same units, all of them shared, without gates of sharing.
    """

    def __init__(
        self,
        table: SiteTable,
        families: Sequence[Family],
        limits: Limits | None = None,
        *,
        prune: bool = True,
        least: float = 0.0,
        tied: bool = False,
    ) -> None:
        self.table = table
        self.families = tuple(families)
        self.limits = limits or DEFAULT_COST.balanced
        self.prune, self.least, self.tied = prune, least, tied
        self.sites = usable(table)
        self.axes: dict[Key, AxisSpec] = {}
        base_of = {reader: family.base for family in families for reader in family.readers}
        together = self._head_groups()
        blocks = {site.name: math.lcm(*(one.heads for one in members)) for members in together for site in members}
        logits = units = 0
        keeps: dict[Key, slice] = {}
        for site in self.sites:
            for name in unit_axes(site):
                axis = site.axes[name]
                vectors, own = site.unit_parameters(name)
                share = base = None
                if site.name in base_of and axis.frozen is None and table[base_of[site.name]].axes[name].frozen is None:
                    base = (base_of[site.name], name)
                holder = base if tied and base is not None else (site.name, name)
                if holder not in keeps:
                    keeps[holder] = slice(logits, logits + axis.size)
                    logits += axis.size
                if base is not None and not tied:
                    share = slice(logits, logits + axis.size)
                    logits += axis.size
                self.axes[site.name, name] = AxisSpec(
                    (site.name, name),
                    blocks[site.name],
                    axis.size // blocks[site.name],
                    slice(units, units + axis.size),
                    keeps[holder],
                    share,
                    base,
                    vectors,
                    own,
                    axis.frozen is not None or not prune,
                    in_head_common(site, name),
                )
                units += axis.size
        self.groups: list[GroupSpec] = []
        for members in together:
            whole = prune and members[0].kind == "msa" and not any(_heads_stay(site) for site in members)
            heads = math.gcd(*(site.heads for site in members))
            where = slice(logits, logits + heads) if whole else None
            logits += heads if whole else 0
            self.groups.append(GroupSpec(tuple(site.name for site in members), heads, where))
        self.logits, self.units = logits, units
        self._prepare()

    def _head_groups(self) -> list[list[Site]]:
        """Sites that share keep the same heads: the lowering could not store their segments across different ones."""
        by_name = {site.name: site for site in self.sites}
        together = [[by_name[name] for name in (family.base, *family.readers)] for family in self.families]
        grouped = {site.name for group in together for site in group}
        return together + [[site] for site in self.sites if site.name not in grouped]

    def _prepare(self) -> None:
        """Index tensors: where each unit's logits and head lie, and what it costs."""
        keep_at = np.zeros(self.units, np.int64)
        share_at = np.full(self.units, -1, np.int64)
        head_at = np.zeros(self.units, np.int64)
        vectors = np.zeros(self.units)
        may_prune, reads = np.zeros(self.units, np.float32), np.zeros(self.units, np.float32)
        self.head_slices: list[slice] = []
        heads_of: dict[str, npt.NDArray[np.int64]] = {}
        total = 0
        for group in self.groups:
            self.head_slices.append(slice(total, total + group.heads))
            heads_of |= dict.fromkeys(group.sites, np.arange(total, total + group.heads))
            total += group.heads
        self.head_count = total
        for spec in self.axes.values():
            keep_at[spec.units] = np.arange(spec.keep.start, spec.keep.stop)
            if spec.share is not None:
                share_at[spec.units] = np.arange(spec.share.start, spec.share.stop)
            head_at[spec.units] = _stretched(heads_of[spec.key[0]], spec.heads * spec.per_head)
            vectors[spec.units] = spec.vectors
            may_prune[spec.units], reads[spec.units] = not spec.frozen, spec.base is not None
        self.keep_at, self.head_at = torch.from_numpy(keep_at), torch.from_numpy(head_at)
        self.share_at = torch.from_numpy(np.maximum(share_at, 0))
        self.may_share = torch.from_numpy((share_at >= 0).astype(np.float32))
        self.may_prune, self.reads = torch.from_numpy(may_prune), torch.from_numpy(reads)
        alive_at = [_stretched(heads_of[site.name], site.heads) for site in self.sites]
        self.alive_at = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *alive_at]))
        own, members, weights = private_numbers(self.table, self.sites, {key: spec.units for key, spec in self.axes.items()})
        self.vectors, self.own = torch.from_numpy(vectors), torch.from_numpy(own)
        self.unions, self.union_weights = torch.from_numpy(members), torch.from_numpy(weights)
        readers: dict[Key, list[AxisSpec]] = {}
        for spec in self.axes.values():
            if spec.base is not None:
                readers.setdefault(spec.base, []).append(spec)
        self.readers = readers
        self.fixed = self.table.parameters - float(vectors.sum() + own.sum() + weights.sum())
        self.head_logits = torch.tensor(
            [n for g in self.groups for n in (range(g.logits.start, g.logits.stop) if g.logits else [0] * g.heads)],
            dtype=torch.int64,
        )
        self.may_lose_heads = torch.tensor([float(g.logits is not None) for g in self.groups for _ in range(g.heads)])

    def to(self, device: torch.device) -> GateSpace:
        """The same with its tensors on a device; changes this one."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def offsets(self, keep: float, share: float, head: float, prior: Mapping[Key, Tensor] | None = None) -> Tensor:
        """A vector [L] of starting logits: how far from pruned, how far from shared, how far from losing a head.

        Args:
            keep, share, head: as said.
            prior: what is added to each unit's, [N] an axis; and to each head's the mean of its units'.
        """
        start = torch.zeros(self.logits)
        for key, spec in self.axes.items():
            start[spec.keep] = keep if prior is None else keep + prior[key]
            if spec.share is not None:
                start[spec.share] = -share
        for group in self.groups:
            if group.logits is not None:
                start[group.logits] = head
                if prior is not None:
                    of_units = [prior[key].reshape(group.heads, -1) for key in self.axes if key[0] in group.sites]
                    start[group.logits] += torch.cat(of_units, 1).mean(1)
        return start

    def gates(self, logits: Tensor, temperature: float = 0.4, noise: Tensor | None = None) -> Gates:
        """Gates from logits.

        Args:
            logits: [L].
            temperature: of the sigmoids that carry the gradient.
            noise: [L], logistic (the difference of two Gumbel variables); None for none.
        """
        noisy = logits if noise is None else logits + noise
        soft = torch.sigmoid(noisy / temperature)
        hard, heads = self.project(noisy.detach().cpu().numpy().astype(np.float32))
        alive = torch.from_numpy(heads).to(soft)
        wish = torch.maximum((noisy.detach()[self.keep_at] > 0).to(soft), 1 - self.may_prune)
        kept = torch.where(alive[self.head_at] > 0, self.flat(hard.keep).to(soft), wish)
        # What stays or goes whatever its logit says passes no gradient.
        keep = self._through(soft[self.keep_at] * self.may_prune, kept)
        shared = self.reads if self.tied else self.flat(hard.share)
        share = self._through(soft[self.share_at] * self.may_share, shared)
        return Gates(hard, keep, share, self._through(soft[self.head_logits] * self.may_lose_heads, alive))

    @staticmethod
    def _through(soft: Tensor, hard: Tensor) -> Tensor:
        # In this order the difference is exactly zero, and the gate exactly 0 or 1.
        return hard.to(soft) + (soft - soft.detach())

    def flat(self, masks: Mapping[Key, Bools]) -> Tensor:
        """Masks of all axes as one vector [U]."""
        result = np.zeros(self.units, np.float32)
        for key, mask in masks.items():
            result[self.axes[key].units] = mask
        return torch.from_numpy(result)

    def count(self, gates: Gates) -> Tensor:
        """P(m, s): parameters of the whole model, a shared unit counted once (ours; equals the plan's ``expect.parameters``).

        A base's unit is needed where the base keeps it or any reader shares it: ``1 - (1 - m) prod(1 - m_r s_r)``. Summed in
        double precision, so that it is the exact integer.
        """
        alive = gates.heads[self.alive_at].double() * self._living(gates.hard).to(gates.heads.device)
        kept = (gates.keep * gates.heads[self.head_at]).double()
        shared = kept * gates.share.double()
        need = kept - shared
        total = self.fixed + (self.vectors * need).sum()
        # Where families are tied, what readers share is what their base keeps.
        for key, specs in self.readers.items() if not self.tied else ():
            where = self.axes[key].units
            free = 1 - kept[where]
            for spec in specs:
                free = free * (1 - shared[spec.units])
            total = total + (self.vectors[where] * (1 - free - need[where])).sum()
        private = torch.cat((kept, alive))
        total = total + (self.own * private).sum()
        if len(self.unions):
            absent = torch.cat((1 - private, private.new_ones(1)))
            total = total + (self.union_weights * (1 - absent[self.unions].prod(1))).sum()
        return total

    def _living(self, hard: Hard) -> Tensor:
        """Which heads of which site put anything out or cannot go, [heads of all sites], 0 or 1."""
        living: list[Bools] = [np.empty(0, np.bool_)]
        for site in self.sites:
            out = [hard.keep[site.name, name].reshape(site.heads, -1) for name in unit_axes(site) if name in VALUE_AXES]
            living.append(np.asarray(np.concatenate(out, 1).any(axis=1) | ("head" in site.frozen), np.bool_))
        return torch.from_numpy(np.concatenate(living).astype(np.float64))

    def project(self, logits: Floats) -> tuple[Hard, Floats]:
        """Logits [L] -> the structure nearest to their signs that the lowering stores as planned; and the heads that live."""
        keep: dict[Key, Bools] = {}
        share: dict[Key, Bools] = {}
        heads = np.ones(self.head_count, np.float32)
        for group, where in zip(self.groups, self.head_slices, strict=True):
            alive = np.ones(group.heads, np.bool_) if group.logits is None else logits[group.logits] > 0
            if self.least and group.logits is not None and not alive.any():
                alive[logits[group.logits].argmax()] = True
            heads[where] = alive
            names = unit_axes(self.table[group.sites[0]])
            values = [name for name in names if name in VALUE_AXES]
            # Where heads have to stay, something has to come out of them.
            stay = group.sites if self.least or (group.logits is None and self.table[group.sites[0]].kind == "msa") else ()
            for name in values:
                self._project_axis(group, name, logits, alive, keep, share, stay, ())
            dead = [site for site in group.sites if not any(keep[site, name].any() for name in values)]
            # The lowering stores at least one unit of every axis of a head that lives, so the best ones may as well be kept.
            live = [site for site in group.sites if site not in dead]
            for name in names:
                if name not in values or any(not keep[site, name].any() for site in live):
                    self._project_axis(group, name, logits, alive, keep, share, live, dead)
        return Hard(keep, share), heads

    def all_shared(self) -> Hard:
        """The structure in which everything is kept, and everything shared that may be."""
        keep: dict[Key, Bools] = {}
        share: dict[Key, Bools] = {}
        for key, spec in self.axes.items():
            count = spec.heads * spec.per_head
            keep[key] = np.ones(count, np.bool_)
            share[key] = np.full(count, spec.base is not None)
        return Hard(keep, share)

    def _project_axis(
        self,
        group: GroupSpec,
        name: str,
        logits: Floats,
        alive: Bools,
        keep: dict[Key, Bools],
        share: dict[Key, Bools],
        some: Sequence[str],
        none: Sequence[str],
    ) -> None:
        """One axis of a family (base first) or of a single site; ``some`` sites keep a unit at least, ``none`` keep nothing."""
        specs = [self.axes[site, name] for site in group.sites]
        first = specs[0]
        rows = np.flatnonzero(_stretched(alive, first.heads))
        per_head = first.per_head
        wish = {spec.key: _by_head(logits[spec.keep], spec, rows) for spec in specs}
        want = {spec.key: _by_head(logits[spec.share], spec, rows) for spec in specs if spec.share is not None}
        step, coarse = self.steps(len(rows), per_head)
        possible = self._lengths(coarse, per_head, len(specs))
        score = wish[first.key].copy()
        for spec in specs[1:]:
            if spec.key in want:
                score += np.minimum(want[spec.key], wish[spec.key])
        order = np.argsort(-score, axis=1, kind="stable")

        def width(spec: AxisSpec, shared: int) -> int:
            """Units a head that a site keeps."""
            if spec.key[0] in none:
                return 0
            if spec.frozen:
                return per_head
            least = max(shared, max(step, -(-round(self.least * per_head) // step) * step) if spec.key[0] in some else 0)
            return max(_nearest(_mean(wish[spec.key] > 0, rows), step, per_head), least)

        lengths = {spec.key: 0 for spec in specs}
        for spec in specs[1:]:
            if self.tied and spec.base is not None:
                lengths[spec.key] = width(first, 0)
            if spec.key in want and first.key[0] not in none and spec.key[0] not in none:
                wanted = _mean((want[spec.key] > 0) & ((wish[spec.key] > 0) | spec.frozen), rows)
                lengths[spec.key] = _closest(possible, wanted)
        if any(0 < length < per_head for length in lengths.values()):
            # Who reads everything has a segment beside the others' prefix, and that is whole steps as theirs are.
            lengths = {key: min(length, per_head - per_head % step) for key, length in lengths.items()}
        for spec in specs[1:]:
            shared = _prefix(order, rows, lengths[spec.key])
            ranked = np.argsort(-np.where(shared, np.inf, wish[spec.key]), axis=1, kind="stable")
            keep[spec.key] = _prefix(ranked, rows, width(spec, lengths[spec.key])).reshape(-1)
            share[spec.key] = shared.reshape(-1)
        # What a reader stores the base has for nothing, so it keeps it.
        base = _prefix(order, rows, width(first, max(lengths.values())))
        keep[first.key], share[first.key] = base.reshape(-1), np.zeros(base.size, np.bool_)

    def steps(self, heads: int, per_head: int) -> tuple[int, int]:
        """Units a head that private widths and shared widths move by, with so many heads."""
        if not heads:
            return per_head, per_head
        step = min(self.limits.multiple // math.gcd(self.limits.multiple, heads), per_head)
        coarse = -(-self.limits.min_segment // heads)
        return step, min(-(-coarse // step) * step, per_head)

    def _lengths(self, coarse: int, per_head: int, sites: int) -> list[int]:
        """Units a head that a family of so many sites may share."""
        # The last step takes what is left over, so that no segment is smaller than the others.
        lengths = [*range(0, per_head - coarse + 1, coarse), per_head]
        if sites <= self.limits.max_segments:
            return lengths
        most = max(1, self.limits.max_segments - 1)
        return [_closest(lengths, per_head * part / most) for part in range(most + 1)]

    def decisions(self, hard: Hard) -> dict[str, dict[str, AxisDecision]]:
        """A structure as :func:`~inarch.structure.resolve.build_plan` wants it."""
        result: dict[str, dict[str, AxisDecision]] = {}
        for key, spec in self.axes.items():
            # Of a frozen axis a plan keeps everything; where its heads go, it goes with them.
            kept = None if spec.frozen or hard.keep[key].all() else np.flatnonzero(hard.keep[key])
            shared = np.flatnonzero(hard.share[key])
            if kept is None and not len(shared):
                continue
            shares = [(spec.base[0], shared, shared)] if len(shared) and spec.base is not None else []
            result.setdefault(key[0], {})[key[1]] = AxisDecision(kept, shares)
        return result


def _heads_stay(site: Site) -> bool:
    """Whether heads cannot go: they go by losing all that they put out."""
    return "head" in site.frozen or any(axis.frozen is not None for name, axis in site.axes.items() if name in VALUE_AXES)


def _stretched(values: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Every value so many times that there are ``count``."""
    return np.repeat(values, count // len(values))


def _by_head(logits: Floats, spec: AxisSpec, rows: npt.NDArray[np.int64]) -> Floats:
    """Logits [H, P]; where all heads keep the same units, the mean of the living ones in each."""
    grid = logits.reshape(spec.heads, spec.per_head)
    return np.broadcast_to(grid[rows].mean(0), grid.shape) if spec.uniform and len(rows) else grid


def _mean(mask: Bools, rows: npt.NDArray[np.int64]) -> float:
    """Units a head that a mask has, over the living heads."""
    return float(mask[rows].sum()) / max(len(rows), 1)


def _closest(lengths: Sequence[int], goal: float) -> int:
    """The length that is nearest; of two, the longer."""
    return min(lengths, key=lambda length: (abs(length - goal), -length))


def _nearest(count: float, step: int, most: int) -> int:
    """The nearest multiple of ``step``, or everything where that is as near."""
    down = min(int(count / step + 0.5) * step, most)
    return most if abs(most - count) <= abs(down - count) else down


def _prefix(order: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], length: int) -> Bools:
    """The first so many of each living head's order, as a mask [H, P]."""
    mask = np.zeros(order.shape, np.bool_)
    for row in rows:
        mask[row, order[row, :length]] = True
    return mask
