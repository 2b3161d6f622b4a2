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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inarch.learning.families import Family, usable
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
        heads, per_head: H and P.
        units: its slice of all units.
        keep: its slice of the logits.
        share: its slice of the logits where it reads a base, else None.
        base: the axis that it may share with.
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
    """Sites that lose heads together: a family's MSAs, or one site. One logit a head; None where heads stay."""

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
        keep: [U].
        share: [U]; 0 where nothing can be shared.
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
    """

    def __init__(self, table: SiteTable, families: Sequence[Family], limits: Limits | None = None, *, prune: bool = True) -> None:
        self.table = table
        self.families = tuple(families)
        self.limits = limits or DEFAULT_COST.balanced
        self.prune = prune
        self.sites = usable(table)
        self.axes: dict[Key, AxisSpec] = {}
        base_of = {reader: family.base for family in families for reader in family.readers}
        logits = units = 0
        for site in self.sites:
            for name in unit_axes(site):
                axis = site.axes[name]
                vectors, own = site.unit_parameters(name)
                keep = slice(logits, logits + axis.size)
                logits += axis.size
                share = base = None
                if site.name in base_of and axis.frozen is None:
                    share, base = slice(logits, logits + axis.size), (base_of[site.name], name)
                    logits += axis.size
                self.axes[site.name, name] = AxisSpec(
                    (site.name, name),
                    axis.heads,
                    axis.per_head,
                    slice(units, units + axis.size),
                    keep,
                    share,
                    base,
                    vectors,
                    own,
                    axis.frozen is not None or not prune,
                    in_head_common(site, name),
                )
                units += axis.size
        self.groups: list[GroupSpec] = []
        for members in self._head_groups():
            whole = prune and members[0].kind == "msa" and not any("head" in site.frozen for site in members)
            where = slice(logits, logits + members[0].heads) if whole else None
            logits += members[0].heads if whole else 0
            self.groups.append(GroupSpec(tuple(site.name for site in members), members[0].heads, where))
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
        vectors, own = np.zeros(self.units), np.zeros(self.units)
        self.head_slices: list[slice] = []
        first_head: dict[str, int] = {}
        total = 0
        for group in self.groups:
            self.head_slices.append(slice(total, total + group.heads))
            first_head |= dict.fromkeys(group.sites, total)
            total += group.heads
        self.head_count = total
        for spec in self.axes.values():
            keep_at[spec.units] = np.arange(spec.keep.start, spec.keep.stop)
            if spec.share is not None:
                share_at[spec.units] = np.arange(spec.share.start, spec.share.stop)
            head_at[spec.units] = first_head[spec.key[0]] + np.repeat(np.arange(spec.heads), spec.per_head)
            vectors[spec.units], own[spec.units] = spec.vectors, spec.own
        self.keep_at, self.head_at = torch.from_numpy(keep_at), torch.from_numpy(head_at)
        self.share_at = torch.from_numpy(np.maximum(share_at, 0))
        self.may_share = torch.from_numpy((share_at >= 0).astype(np.float32))
        self.vectors = torch.from_numpy(vectors.astype(np.float32))
        self.own = torch.from_numpy(own.astype(np.float32))
        riders = np.zeros(self.head_count, np.float32)
        for group, where in zip(self.groups, self.head_slices, strict=True):
            for name in group.sites:
                riders[where] += _head_riders(self.table[name])
        self.riders = torch.from_numpy(riders)
        readers: dict[Key, list[AxisSpec]] = {}
        for spec in self.axes.values():
            if spec.base is not None:
                readers.setdefault(spec.base, []).append(spec)
        self.readers = readers
        self.fixed = self.table.parameters - float(vectors.sum() + own.sum() + riders.sum())
        self.head_logits = torch.tensor(
            [n for g in self.groups for n in (range(g.logits.start, g.logits.stop) if g.logits else [0] * g.heads)]
        )
        self.may_lose_heads = torch.tensor([float(g.logits is not None) for g in self.groups for _ in range(g.heads)])

    def to(self, device: torch.device) -> GateSpace:
        """The same with its tensors on a device; changes this one."""
        for name in ("keep_at", "head_at", "share_at", "may_share", "vectors", "own", "riders", "head_logits", "may_lose_heads"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def offsets(self, keep: float, share: float, head: float) -> Tensor:
        """A vector [L] of starting logits: how far from pruned, how far from shared, how far from losing a head."""
        start = torch.zeros(self.logits)
        for spec in self.axes.values():
            start[spec.keep] = keep
            if spec.share is not None:
                start[spec.share] = -share
        for group in self.groups:
            if group.logits is not None:
                start[group.logits] = head
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
        keep = self._through(soft[self.keep_at], self.flat(hard.keep))
        share = self._through(soft[self.share_at] * self.may_share, self.flat(hard.share))
        # A gate that projection fixed passes no gradient; those of heads that always stay neither.
        of_heads = self._through(soft[self.head_logits] * self.may_lose_heads, torch.from_numpy(heads).to(soft))
        return Gates(hard, keep, share, of_heads)

    @staticmethod
    def _through(soft: Tensor, hard: Tensor) -> Tensor:
        return hard.to(soft) + soft - soft.detach()

    def flat(self, masks: Mapping[Key, Bools]) -> Tensor:
        """Masks of all axes as one vector [U]."""
        result = np.zeros(self.units, np.float32)
        for key, mask in masks.items():
            result[self.axes[key].units] = mask
        return torch.from_numpy(result)

    def count(self, gates: Gates) -> Tensor:
        """P(m, s): parameters of the whole model, a shared unit counted once (ours; equals the plan's ``expect.parameters``).

        A base's unit is needed where the base keeps it or any reader shares it: ``1 - (1 - m) prod(1 - m_r s_r)``.
        """
        alive = gates.heads[self.head_at]
        kept = gates.keep * alive
        shared = kept * gates.share
        need = kept - shared
        pieces = []
        for key, specs in self.readers.items():
            where = self.axes[key].units
            free = 1 - kept[where]
            for spec in specs:
                free = free * (1 - shared[spec.units])
            pieces.append((self.vectors[where] * (1 - free - need[where])).sum())
        total = self.fixed + (self.vectors * need).sum() + (self.own * kept).sum() + (self.riders * gates.heads).sum()
        return total + (torch.stack(pieces).sum() if pieces else 0.0)

    def project(self, logits: Floats) -> tuple[Hard, Floats]:
        """Logits [L] -> the structure nearest to their signs that the lowering stores as planned; and the heads that live."""
        keep: dict[Key, Bools] = {}
        share: dict[Key, Bools] = {}
        heads = np.ones(self.head_count, np.float32)
        for group, where in zip(self.groups, self.head_slices, strict=True):
            alive = np.ones(group.heads, np.bool_) if group.logits is None else logits[group.logits] > 0
            heads[where] = alive
            names = unit_axes(self.table[group.sites[0]])
            for name in names:
                specs = [self.axes[site, name] for site in group.sites]
                self._project_axis(specs, logits, alive, keep, share)
            for site in group.sites:
                values = [name for name in names if name in VALUE_AXES]
                if not any(keep[site, name].any() for name in values):
                    for name in names:  # nothing comes out, so nothing is needed, and nobody can read it
                        readers = [spec.key for spec in self.readers.get((site, name), ())]
                        for key in [(site, name), *readers]:
                            share[key] = np.zeros_like(share[key])
                        if not self.axes[site, name].frozen:
                            keep[site, name] = np.zeros_like(keep[site, name])
        return Hard(keep, share), heads

    def _project_axis(
        self, specs: Sequence[AxisSpec], logits: Floats, alive: Bools, keep: dict[Key, Bools], share: dict[Key, Bools]
    ) -> None:
        """One axis of a family (base first) or of a single site."""
        first = specs[0]
        grid = (first.heads, first.per_head)
        rows = np.flatnonzero(alive)
        wish = {spec.key: _by_head(logits[spec.keep], spec) for spec in specs}
        want = {spec.key: _by_head(logits[spec.share], spec) for spec in specs if spec.share is not None}
        step, coarse = self._steps(len(rows), first.per_head)
        score = wish[first.key].copy()
        for spec in specs[1:]:
            if spec.key in want:
                score += np.minimum(want[spec.key], wish[spec.key])
        order = np.argsort(-score, axis=1, kind="stable")
        base = np.zeros(grid, np.bool_)
        lengths = [0]
        for spec in specs[1:]:
            both = (
                np.zeros(grid, np.bool_) if spec.key not in want else (want[spec.key] > 0) & ((wish[spec.key] > 0) | spec.frozen)
            )
            length = _nearest(_mean(both, rows), coarse, first.per_head)
            if len(specs) > self.limits.max_segments:
                length = self._level(length, coarse, first.per_head)
            lengths.append(length)
            shared = _prefix(order, rows, length)
            kept = _nearest(_mean(wish[spec.key] > 0, rows), step, first.per_head)
            mine = shared.copy()
            if spec.frozen:
                mine[rows] = True
            elif kept > length:
                ranked = np.argsort(-np.where(shared, np.inf, wish[spec.key]), axis=1, kind="stable")
                mine = _prefix(ranked, rows, kept)
            keep[spec.key], share[spec.key] = mine.reshape(-1), shared.reshape(-1)
        # What a reader stores the base has for nothing, so it keeps it.
        kept = max(_nearest(_mean(wish[first.key] > 0, rows), step, first.per_head), *lengths)
        base = _prefix(order, rows, first.per_head if first.frozen else kept)
        keep[first.key], share[first.key] = base.reshape(-1), np.zeros(base.size, np.bool_)

    def _steps(self, heads: int, per_head: int) -> tuple[int, int]:
        """Units a head that private widths and shared widths move by, with so many heads."""
        if not heads:
            return per_head, per_head
        step = min(self.limits.multiple // math.gcd(self.limits.multiple, heads), per_head)
        coarse = -(-self.limits.min_segment // heads)
        return step, min(-(-coarse // step) * step, per_head)

    def _level(self, length: int, coarse: int, per_head: int) -> int:
        """The nearest of the few prefix lengths that a large family may have."""
        most = max(1, self.limits.max_segments - 1)
        levels = [0, *(_nearest(per_head * i / most, coarse, per_head) for i in range(1, most + 1))]
        return min(levels, key=lambda n: (abs(n - length), n))

    def decisions(self, hard: Hard) -> dict[str, dict[str, AxisDecision]]:
        """A structure as :func:`~inarch.structure.resolve.build_plan` wants it."""
        result: dict[str, dict[str, AxisDecision]] = {}
        for key, spec in self.axes.items():
            kept = np.flatnonzero(hard.keep[key])
            shared = np.flatnonzero(hard.share[key])
            if len(kept) == spec.heads * spec.per_head and not len(shared):
                continue
            shares = [(spec.base[0], shared, shared)] if len(shared) and spec.base is not None else []
            result.setdefault(key[0], {})[key[1]] = AxisDecision(kept, shares)
        return result


def _head_riders(site: Site) -> int:
    """Parameters of one head that run over heads and over no unit axis (a column of a position-bias table)."""
    axes = unit_axes(site)
    return sum(
        member.size // site.heads * member.width
        for member in site.members.values()
        if member.has("head") and not any(member.has(name) for name in axes)
    )


def _by_head(logits: Floats, spec: AxisSpec) -> Floats:
    grid = logits.reshape(spec.heads, spec.per_head)
    return np.broadcast_to(grid.mean(0), grid.shape) if spec.uniform else grid


def _mean(mask: Bools, rows: npt.NDArray[np.int64]) -> float:
    """Units a head that a mask has, over the living heads."""
    return float(mask[rows].sum()) / max(len(rows), 1)


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
