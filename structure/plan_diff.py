"""What two plans decide differently, unit by unit: ``inarch plan diff``.

Plans are compared by what they decide, not by how it is written: the order of pairs, how they are split into entries, and axes
left out that keep everything do not differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from pydantic import JsonValue

from inarch.structure.plan_types import AXIS_NAMES, AxisPlan, Plan, SitePlan, json_path
from inarch.structure.units import Indices, format_indices


@dataclass(frozen=True)
class Pairing:
    """Units shared with units of one base.

    Attributes:
        base: the base site.
        units: the reader's units, ascending, as a range string.
        base_units: the base's units, in the same order.
    """

    base: str
    units: str
    base_units: str


@dataclass(frozen=True)
class AxisDiff:
    """What differs on one axis of one site.

    Attributes:
        site: the site.
        axis: the axis.
        pruned: units that the old plan keeps and the new one prunes, as a range string.
        restored: units that the old plan prunes and the new one keeps.
        unshared: pairs that the new plan no longer has, by base.
        shared: pairs that the new plan adds, by base. A unit that changes its base is in both.
    """

    site: str
    axis: str
    pruned: str
    restored: str
    unshared: tuple[Pairing, ...]
    shared: tuple[Pairing, ...]


@dataclass(frozen=True)
class Change:
    """A value that differs.

    Attributes:
        where: JSON path.
        old: the value in the old plan; None where it has none.
        new: the value in the new plan; None where it has none.
    """

    where: str
    old: JsonValue
    new: JsonValue


@dataclass(frozen=True)
class PlanDiff:
    """What two plans decide differently.

    Attributes:
        added: sites that only the new plan lists.
        removed: sites that only the old plan lists.
        axes: what differs on the axes, in the order of the new plan's sites, then of the removed ones. A site that a plan does
            not list keeps every unit private there.
        values: other values that differ: the model, kinds, heads, sizes, members, what is expected, provenance.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    axes: tuple[AxisDiff, ...] = ()
    values: tuple[Change, ...] = ()

    @property
    def same_decisions(self) -> bool:
        """Whether both plans prune and share the same units."""
        return not self.axes

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self == PlanDiff()

    def as_json(self) -> dict[str, JsonValue]:
        """The difference as plain JSON."""
        document: dict[str, JsonValue] = {"added": list(self.added), "removed": list(self.removed)}
        document["axes"] = [
            {
                "site": axis.site,
                "axis": axis.axis,
                "pruned": axis.pruned,
                "restored": axis.restored,
                "unshared": [asdict(pairing) for pairing in axis.unshared],
                "shared": [asdict(pairing) for pairing in axis.shared],
            }
            for axis in self.axes
        ]
        document["values"] = [{"where": change.where, "old": change.old, "new": change.new} for change in self.values]
        return document


def diff_plans(old: Plan, new: Plan) -> PlanDiff:
    """Compare two plans, each free of mistakes of its own (:func:`inarch.structure.plan.lint_plan`). O(units log units)."""
    names = [*new.sites, *(name for name in old.sites if name not in new.sites)]
    axes: list[AxisDiff] = []
    for name in names:
        before, after = old.sites.get(name), new.sites.get(name)
        for axis in AXIS_NAMES:
            was = None if before is None else before.axes.get(axis)
            now = None if after is None else after.axes.get(axis)
            difference = _diff_axis(name, axis, was, now)
            if difference is not None:
                axes.append(difference)
    return PlanDiff(
        added=tuple(name for name in new.sites if name not in old.sites),
        removed=tuple(name for name in old.sites if name not in new.sites),
        axes=tuple(axes),
        values=tuple(_diff_values(old, new)),
    )


def _diff_axis(site: str, axis: str, old: AxisPlan | None, new: AxisPlan | None) -> AxisDiff | None:
    size = max((plan.size for plan in (old, new) if plan is not None), default=0)
    was, now = _kept(old, size), _kept(new, size)
    old_pairs, new_pairs = _pairs(old), _pairs(new)
    unshared, shared = [], []
    for base in dict.fromkeys([*old_pairs, *new_pairs]):
        before, after = old_pairs.get(base, _NO_PAIRS), new_pairs.get(base, _NO_PAIRS)
        unshared += _pairing(base, _without(before, after))
        shared += _pairing(base, _without(after, before))
    difference = AxisDiff(
        site,
        axis,
        pruned=format_indices(np.setdiff1d(was, now)),
        restored=format_indices(np.setdiff1d(now, was)),
        unshared=tuple(unshared),
        shared=tuple(shared),
    )
    return difference if difference != AxisDiff(site, axis, "", "", (), ()) else None


def _kept(plan: AxisPlan | None, size: int) -> Indices:
    return np.arange(size, dtype=np.int64) if plan is None else plan.kept


_NO_PAIRS: Indices = np.empty((0, 2), dtype=np.int64)


def _pairs(plan: AxisPlan | None) -> dict[str, Indices]:
    """Base -> its pairs [n, 2] of (unit, base unit), ascending by unit."""
    by_base: dict[str, list[Indices]] = {}
    for share in plan.share if plan is not None else ():
        if share.units:
            by_base.setdefault(share.base, []).append(np.stack([share.reader_indices, share.base_indices], axis=1))
    joined = {base: np.concatenate(parts) for base, parts in by_base.items()}
    return {base: pairs[np.argsort(pairs[:, 0])] for base, pairs in joined.items()}


def _without(pairs: Indices, others: Indices) -> Indices:
    """The pairs that are not among the others; the others have each unit once, so a place to look is found by the unit."""
    if not len(others):
        return pairs
    place = np.minimum(np.searchsorted(others[:, 0], pairs[:, 0]), len(others) - 1)
    left: Indices = pairs[np.any(others[place] != pairs, axis=1)]
    return left


def _pairing(base: str, pairs: Indices) -> list[Pairing]:
    return [Pairing(base, format_indices(pairs[:, 0]), format_indices(pairs[:, 1]))] if len(pairs) else []


def _diff_values(old: Plan, new: Plan) -> Iterator[Change]:
    yield from _changes(_heading(old), _heading(new))
    common = [name for name in new.sites if name in old.sites]
    was, now = [n for n in old.sites if n in new.sites], common
    if was != now:
        yield Change("sites", list(was), list(now))
    for name in common:
        before, after = old.sites[name], new.sites[name]
        yield from _changes(_site_values(name, before), _site_values(name, after))
        for axis in AXIS_NAMES:
            if axis in before.axes and axis in after.axes and before.axes[axis].size != after.axes[axis].size:
                where = json_path("sites", name, "axes", axis, "size")
                yield Change(where, before.axes[axis].size, after.axes[axis].size)


def _changes(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> Iterator[Change]:
    for where in dict.fromkeys([*new, *old]):
        if old.get(where) != new.get(where):
            yield Change(where, old.get(where), new.get(where))


def _heading(plan: Plan) -> dict[str, JsonValue]:
    """JSON path -> value, of everything but the sites."""
    values: dict[str, JsonValue] = {"model.name": plan.model.name, "model.fingerprint": plan.model.fingerprint}
    if plan.expect is not None:
        values |= {"expect.parameters": plan.expect.parameters, "expect.bytes": plan.expect.bytes}
    return values | {json_path("provenance", key): value for key, value in plan.provenance.items()}


def _site_values(name: str, site: SitePlan) -> dict[str, JsonValue]:
    """JSON path -> value, of everything about a site but its axes."""
    values: dict[str, JsonValue] = {json_path("sites", name, "kind"): site.kind, json_path("sites", name, "heads"): site.heads}
    for role, member in site.members.items():
        values[json_path("sites", name, "members", role)] = None if member is None else member.model_dump()
    return values
