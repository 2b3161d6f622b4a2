"""Make a plan without training: choose what to prune and share so that the compiled file holds what was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from inarch.structure.cost import DEFAULT_COST, CostTable, Limits
from inarch.structure.demand import inside
from inarch.structure.errors import InarchError
from inarch.structure.lowered import ResolvedPlan
from inarch.structure.lowering import lower, planned_parameters
from inarch.structure.plan import Plan
from inarch.structure.planners.budget import Draft, Key, Rules, spend
from inarch.structure.planners.families import Channel, Progress, channels, families
from inarch.structure.planners.magnitude import weakest
from inarch.structure.planners.similarity import Lengths, lock, pairs, share
from inarch.structure.planners.uniform import deepest, one_way
from inarch.structure.planners.weights import Read, energies, tied_sites
from inarch.structure.resolve import AxisDecision, build_plan, resolve
from inarch.structure.sites import Site, SiteTable
from inarch.structure.units import Indices

METHODS = ("magnitude", "similarity", "uniform")

SEGMENT = 64
"""Units in the smallest segment that planners make, though the table may allow smaller ones: fewer kernels."""

TOLERANCE = 0.0005
"""A fraction that falls short by less than this counts as reached."""

COARSE = 0.01
"""A plan that keeps more or less than was asked for by this fraction of the model says so."""


class UnreachableError(InarchError):
    """The fraction that was asked for cannot be reached; ``reachable`` is the smallest that can."""

    def __init__(self, keep: float, reachable: float, method: str) -> None:
        self.reachable = reachable
        less = f"ask for at least {reachable:.4f}, or let more of each layer go (a smaller minimum, --minimum)"
        super().__init__(
            f"the {method} planner cannot keep only {keep:.4g} of the model's parameters, {reachable:.4f} is the smallest",
            where="--keep",
            hint=less if reachable < 1 else "no site of this model can be changed: it has none, or their weights are tied",
        )


class OptionError(InarchError):
    """An option of a planner is out of its range."""


@dataclass(frozen=True)
class PlanResult:
    """A plan, and what it keeps.

    Attributes:
        plan: the plan.
        kept_model: parameters that the compiled model holds, as a fraction of the original's.
        kept_sites: the same of the sites' own parameters alone.
        planned: parameters that the plan counts.
        stored: parameters that the compiled model holds.
        notes: sites that were left alone, and why; and where the steps of a small model are too coarse for what was asked.
    """

    plan: Plan
    kept_model: float
    kept_sites: float
    planned: int
    stored: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """Drafts after one way of spending the budget."""

    drafts: Mapping[str, Draft]
    lengths: Lengths
    saved: int


def make_plan(
    table: SiteTable,
    read: Read,
    *,
    keep: float,
    method: str,
    name: str,
    cost: CostTable = DEFAULT_COST,
    prefer: str | None = None,
    minimum: float = 0.125,
    share_fraction: float = 0.5,
    block: int | None = None,
    progress: Progress | None = None,
) -> PlanResult:
    """Make a plan from the weights alone.

    The plan asks only for what the lowering stores as it is planned (one count of units a head, widths in the cost table's
    multiples, nested reader sets), so that planned and stored parameters agree. The same input gives the same plan.
    Left alone are frozen axes, sites that hold a number together with another site (tied weights), and sites with NaN or
    infinite weights; ``PlanResult.notes`` says which.

    Args:
        table: the model's sites.
        read: returns a parameter as it is stored, by name.
        keep: the fraction of the whole model's parameters that stays, in (0, 1].
        method: ``magnitude`` (global, by relative energy a parameter), ``uniform`` (the same fraction of every axis) or
            ``similarity`` (share the nearest units, prune the weakest of the rest).
        name: the model's name, for people.
        cost: what the lowering stores.
        prefer: ``size`` or ``latency``, as the lowering will be asked; None for balanced.
        minimum: fraction of each axis that always stays.
        share_fraction: similarity: how much of the saving comes from sharing, in [0, 1]; less where that cannot be reached.
        block: similarity: most sites in a family, the base included; at most the segments that the cost table allows a
            projection, and that many (up to 4) where it is not given.
        progress: called with a step's name, what is done and what there is.

    Returns:
        The plan and what it keeps.

    Raises:
        OptionError: an argument is out of its range.
        CostError: the cost table has no such preference.
        UnreachableError: ``keep`` is below the smallest fraction that the method reaches on this model.
    """
    keep, minimum, share_fraction = float(keep), float(minimum), float(share_fraction)  # a plan can say Python's numbers alone
    limits = cost.limits(prefer)
    if block is None:
        block = max(2, min(4, limits.max_segments))
    _check_options(keep, method, minimum, share_fraction, block, limits)
    rules = Rules(limits.multiple, max(limits.min_segment, SEGMENT), minimum)
    planner = _Planner(
        table, read, method, name, rules, progress or _silent, lambda plan: lower(table, plan, cost, prefer).stored
    )
    planner.provenance = {"planner": method, "keep": keep, "minimum": minimum}
    if prefer is not None:
        planner.provenance["prefer"] = prefer
    if method == "similarity":
        planner.provenance |= {"share_fraction": share_fraction, "block": block}
        if keep < 1:
            planner.match(block)
    return planner.aim(keep, share_fraction)


def _silent(what: str, done: int, total: int) -> None:
    """Progress for nobody."""


def _check_options(keep: float, method: str, minimum: float, share_fraction: float, block: int, limits: Limits) -> None:
    if method not in METHODS:
        raise OptionError(f"there is no planner {method!r}", where="--method", hint=f"choose one of {', '.join(METHODS)}")
    if not 0 < keep <= 1:
        raise OptionError(f"{keep!r} is not a fraction in (0, 1]", where="--keep", hint="0.65 keeps 65 % of the parameters")
    if not 0 < minimum <= 1:
        raise OptionError(f"{minimum!r} is not a fraction in (0, 1]", where="minimum")
    if not 0 <= share_fraction <= 1:
        raise OptionError(f"{share_fraction!r} is not a fraction in [0, 1]", where="share_fraction")
    most = max(2, limits.max_segments)
    if not 2 <= block <= most:
        # k readers with different prefixes and the base's private units make k + 1 blocks.
        raise OptionError(f"a family of {block} sites cannot be stored", where="block", hint=f"from 2 to {most} can")


class _Planner:
    """One model and one method; :meth:`aim` looks for the drafts that store what was asked for."""

    def __init__(
        self,
        table: SiteTable,
        read: Read,
        method: str,
        name: str,
        rules: Rules,
        progress: Progress,
        stored: Callable[[ResolvedPlan], int],
    ) -> None:
        self.table = table
        self.read = read
        self.method = method
        self.name = name
        self.stored = stored
        self.rules = rules
        self.progress = progress
        self.provenance: dict[str, JsonValue] = {}
        self.channels: list[Channel] = []
        self.notes: list[str] = []
        self.sites: list[Site] = []
        self.energies: dict[str, Mapping[str, npt.NDArray[np.float64]]] = {}
        tied = tied_sites(table)
        for done, site in enumerate(table.sites):
            progress("reading weights", done, len(table.sites))
            if site.name in tied:
                self.notes.append(f"{site.name}: left alone, its weights are tied to another member")
                continue
            measured = energies(site, read)
            if measured is None:
                self.notes.append(f"{site.name}: left alone, it holds NaN or infinite weights")
                continue
            self.sites.append(site)
            self.energies[site.name] = measured
        progress("reading weights", len(table.sites), len(table.sites))
        self.key: Key = deepest if method == "uniform" else weakest

    def match(self, block: int) -> None:
        """Find the families and pair their units."""
        found = families(self.sites, self.read, block)
        for done, family in enumerate(found):
            self.progress("matching units", done, len(found))
            self.channels.extend(channels(family, self.read, self.rules))
        self.progress("matching units", len(found), len(found))

    def aim(self, keep: float, share_fraction: float) -> PlanResult:
        """Spend until the stored count is as near to ``keep`` of the model as the rules allow."""
        total = self.table.parameters
        goal = round((1 - keep) * total)
        candidate = self._spend(goal, share_fraction)
        if goal - candidate.saved > TOLERANCE * total:
            most = self._most(goal)
            if goal - most > TOLERANCE * total:
                raise UnreachableError(keep, math.ceil((1 - most / total) * 1e4) / 1e4, self.method)
        best = self._result(candidate, keep)
        # The lowering may store a little more or less than the drafts count (a constant, a zero unit): ask for that much more.
        asked = goal
        for _ in range(3):
            missing = best.stored - (total - goal)
            if abs(missing) <= TOLERANCE * total or not goal:
                break
            asked += missing
            other = self._result(self._spend(asked, share_fraction), keep)
            if abs(other.stored - (total - goal)) >= abs(missing):
                break
            best = other
        return best

    def _drafts(self) -> dict[str, Draft]:
        drafts = {site.name: Draft(site, self.energies[site.name], self.rules) for site in self.sites}
        if self.method == "uniform":
            for draft in drafts.values():
                one_way(draft)
        return drafts

    def _try(self, goal: float, shared: float) -> _Candidate:
        """Share about ``shared`` parameters, prune the rest of ``goal``."""
        drafts = self._drafts()
        lengths, saved = share(self.channels, shared)
        lock(drafts, self.channels, lengths)
        return _Candidate(drafts, lengths, saved + spend(list(drafts.values()), goal - saved, self.key))

    def _ladder(self) -> list[float]:
        """Fixed amounts of sharing, from none to all, so that what is called reachable does not depend on what is asked."""
        if not self.channels:
            return [0.0]
        _, most = share(self.channels, math.inf)
        return [most * step / 16 for step in range(17)]

    def _spend(self, goal: int, share_fraction: float) -> _Candidate:
        """The candidate that shares what was asked, or, where pruning cannot save the rest, the nearest amount that allows it."""
        wanted = goal * share_fraction
        best = self._try(goal, wanted)
        slack = TOLERANCE * self.table.parameters
        if goal - best.saved <= slack:
            return best
        for shared in sorted(self._ladder(), key=lambda amount: abs(amount - wanted)):
            other = self._try(goal, shared)
            if abs(goal - other.saved) < abs(goal - best.saved):
                best = other
            if goal - best.saved <= slack:
                break
        return best

    def _most(self, goal: int) -> int:
        """The largest saving that the method reaches."""
        return max(self._try(math.inf, shared).saved for shared in self._ladder())

    def _result(self, candidate: _Candidate, keep: float) -> PlanResult:
        plan = build_plan(self.table, _decisions(candidate, self.channels), self.name, self.provenance)
        resolved = resolve(plan, self.table)
        stored = self.stored(resolved)
        total, own = self.table.parameters, inside(self.table).total
        kept = stored / total if total else 1.0
        notes = list(self.notes)
        if abs(kept - keep) > COARSE:
            notes.append(f"keeps {kept:.4f} of the model: in steps that can be stored, nothing nearer to {keep:.4g} was found")
        return PlanResult(
            plan,
            kept,
            (own - (total - stored)) / own if own else 1.0,
            planned_parameters(self.table, resolved),
            stored,
            tuple(notes),
        )


def _decisions(candidate: _Candidate, found: Sequence[Channel]) -> dict[str, dict[str, AxisDecision]]:
    """What the drafts decided, by site and axis; sites that stay as they are are left out."""
    shares: dict[tuple[str, str], list[tuple[str, Indices, Indices]]] = {}
    for channel, lengths in zip(found, candidate.lengths, strict=True):
        for number, (reader, length) in enumerate(zip(channel.family.readers, lengths, strict=True)):
            if not length:
                continue
            for axis, (base_units, units) in pairs(channel, length, number).items():
                # A set of pairs has no order; sorted by the base's unit it has the shortest range strings.
                order = np.argsort(base_units, kind="stable")
                shares.setdefault((reader.name, axis), []).append((channel.family.base.name, units[order], base_units[order]))
    result: dict[str, dict[str, AxisDecision]] = {}
    for name, draft in candidate.drafts.items():
        axes: dict[str, AxisDecision] = {}
        if not draft.live.all():
            axes["head"] = AxisDecision(keep=np.flatnonzero(draft.live).astype(np.int64))
        for axis in draft.axes:
            shared = tuple(shares.get((name, axis), ()))
            # A head that goes takes its units along, also those of an axis that is frozen inside heads.
            if shared or draft.kept[axis] < draft.site.axes[axis].per_head:
                axes[axis] = AxisDecision(keep=draft.keep(axis), share=shared)
        if axes:
            result[name] = axes
    return result
