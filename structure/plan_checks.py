"""What a well-formed plan may still get wrong: out-of-range units, pruned bases, circles, bases taken twice.

The same checks run on a plan alone (:func:`inarch.structure.plan.lint_plan`), where sizes that it does not state are
unknown, and on a plan bound to a model (:func:`inarch.structure.resolve.resolve`), where every size is known. All units of an
axis over all sites are one array here, so that a plan of a million units is checked in a few array operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inarch.structure.errors import (
    BaseTakenTwiceError,
    CyclicSharingError,
    InvalidValueError,
    KindMismatchError,
    MissingKeyError,
    PairingLengthError,
    PlanError,
    PrunedAndSharedError,
    PrunedBaseError,
    SharedTwiceError,
    UnitOutOfRangeError,
    UnknownKeyError,
    WidthMismatchError,
)
from inarch.structure.plan_types import AXIS_NAMES, AxisName, AxisPlan, Plan, SitePlan, json_path
from inarch.structure.sites import MATRIX_ROLES
from inarch.structure.units import MAX_UNITS, Indices

Flags = npt.NDArray[np.bool_]

AXES_OF: Mapping[str, tuple[AxisName, ...]] = {"ffn": ("hidden",), "msa": ("head", "qk", "vo", "vo2")}
"""Site kind -> the axes that it may have."""

_FFN_MATRICES = frozenset({"up", "gate", "down"})
_ROLES_OF = {"ffn": _FFN_MATRICES, "msa": MATRIX_ROLES - _FFN_MATRICES}


@dataclass(frozen=True)
class Shape:
    """What is known of a site's sizes.

    Attributes:
        kind: ``ffn`` or ``msa``.
        heads: heads of an MSA, 1 for an FFN.
        per_head: axis name -> units a head, for the axes whose size is known.
        complete: whether ``per_head`` names every axis that the site has.
    """

    kind: str
    heads: int
    per_head: Mapping[str, int]
    complete: bool

    def size(self, axis: str) -> int | None:
        """Units on the axis, or None where that is unknown."""
        per_head = self.per_head.get(axis)
        return None if per_head is None else self.heads * per_head


@dataclass(frozen=True)
class View:
    """A plan on numbered sites.

    Attributes:
        labels: name of each site, as the plan calls it where the plan has it.
        plans: what the plan says about each, or None.
        shapes: what is known about the sizes of each, or None.
        lookup: the name that a ``base`` may have -> number of the site; sharing with any other name is left out.
    """

    labels: Sequence[str]
    plans: Sequence[SitePlan | None]
    shapes: Sequence[Shape | None]
    lookup: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class UnitGraph:
    """The units of one axis over all sites: unit u of site s is node ``offsets[s] + u``.

    Attributes:
        offsets: [sites + 1] first node of each site.
        pruned: [nodes] whether the unit is pruned.
        roots: [nodes] the node at the end of the unit's chain; itself where private or pruned. Meaningless in a circle.
    """

    offsets: Indices
    pruned: Flags
    roots: Indices

    def site_of(self, nodes: Indices) -> Indices:
        """Number of the site of each node."""
        sites: Indices = np.searchsorted(self.offsets, nodes, side="right") - 1
        return sites.astype(np.int64, copy=False)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Units of one reader shared with one base, and where the plan says so."""

    reader: int
    base: int
    units: Indices
    base_units: Indices
    path: str


def view_alone(plan: Plan) -> View:
    """The plan's own sites, and the bases that it does not list, whose sizes are unknown."""
    names = dict.fromkeys(plan.sites)
    for site in plan.sites.values():
        for axis in site.axes.values():
            names.update(dict.fromkeys(share.base for share in axis.share))
    shapes: list[Shape | None] = []
    for name in names:
        known = plan.sites.get(name)
        shapes.append(None if known is None else _stated_shape(known))
    labels = tuple(names)
    return View(labels, [plan.sites.get(n) for n in labels], shapes, {n: i for i, n in enumerate(labels)})


def check_members(plan: Plan) -> Iterator[PlanError]:
    """Yield the members that no site of their kind has."""
    for name, site in plan.sites.items():
        for role in site.members:
            stem = role.split(":")[0]
            if stem != "rider" and stem.removesuffix("_bias") not in _ROLES_OF[site.kind]:
                yield UnknownKeyError(
                    f"a site of kind {site.kind} has no member {role!r}",
                    where=json_path("sites", name, "members", role),
                    hint=f"its matrices are {', '.join(sorted(_ROLES_OF[site.kind]))}, each with a _bias; and rider:...",
                )


def check_sites(plan: Plan) -> Iterator[PlanError]:
    """Yield what is wrong with the sites one by one: axes, heads and sizes that do not go together."""
    total = 0
    for name, site in plan.sites.items():
        wanted = AXES_OF[site.kind]
        for axis, axis_plan in site.axes.items():
            total += axis_plan.size
            if axis not in wanted:
                yield UnknownKeyError(
                    f"a site of kind {site.kind} has no axis {axis!r}",
                    where=json_path("sites", name, "axes", axis),
                    hint=f"its axes are {', '.join(wanted)}",
                )
        heads_path = json_path("sites", name, "heads")
        if site.kind == "ffn":
            if site.heads is not None:
                yield InvalidValueError("an ffn has no heads", where=heads_path)
            continue
        if site.heads is None:
            yield MissingKeyError("an msa needs its number of heads", where=heads_path)
            continue
        for axis, axis_plan in site.axes.items():
            where = json_path("sites", name, "axes", axis, "size")
            if axis == "head" and axis_plan.size != site.heads:
                yield InvalidValueError(f"{axis_plan.size} is not the number of heads, {site.heads}", where=where)
            elif axis_plan.size % site.heads:
                yield InvalidValueError(f"{axis_plan.size} units are no multiple of {site.heads} heads", where=where)
    if total > 64 * MAX_UNITS:
        yield InvalidValueError(f"{total} units in all are more than any model has", where="sites")


def check_sharing(view: View) -> tuple[list[PlanError], dict[str, UnitGraph]]:
    """Check every axis of every site, and follow all sharing to its roots.

    Args:
        view: a plan on numbered sites.

    Returns:
        The mistakes, each once, axis by axis in the order of the sites; and axis name -> graph of its units, meaningful only
        where there are no mistakes.
    """
    found: dict[tuple[type[PlanError], str | None], PlanError] = {}
    graphs: dict[str, UnitGraph] = {}
    for axis in AXIS_NAMES:
        checker = _AxisCheck(view, axis)
        graphs[axis] = checker.run()
        for error in checker.errors:
            found.setdefault((type(error), error.where), error)
    return list(found.values()), graphs


class _AxisCheck:
    """The checks of one axis over all sites."""

    def __init__(self, view: View, axis: AxisName) -> None:
        self.view = view
        self.axis = axis
        self.errors: list[PlanError] = []

    def run(self) -> UnitGraph:
        """Collect the axis's units and pairs, check them, follow the chains."""
        kept_pairs: list[_Pairs] = []
        pruned_by_site: list[Flags | None] = []
        for site in range(len(self.view.labels)):
            pruned, pairs = self._site(site)
            pruned_by_site.append(pruned)
            kept_pairs += pairs
        # A base of unknown size has as many units as are read from it; all of them are kept.
        sizes = np.array([0 if p is None else len(p) for p in pruned_by_site], dtype=np.int64)
        for pair in kept_pairs:
            if pruned_by_site[pair.base] is None and len(pair.base_units):
                sizes[pair.base] = max(sizes[pair.base], int(pair.base_units.max()) + 1)
        offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        pruned_all = np.zeros(int(offsets[-1]), dtype=np.bool_)
        for site, pruned in enumerate(pruned_by_site):
            if pruned is not None:
                pruned_all[offsets[site] : offsets[site + 1]] = pruned
        return self._follow(offsets, pruned_all, kept_pairs)

    def _site(self, site: int) -> tuple[Flags | None, list[_Pairs]]:
        """Which units of a site are pruned (None: its size is unknown), and its sound pairs."""
        plan, shape = self.view.plans[site], self.view.shapes[site]
        size = None if shape is None else shape.size(self.axis)
        if size is None or shape is None:
            return None, []
        if plan is None:
            return np.zeros(size, dtype=np.bool_), []
        here = plan.axes.get(self.axis)
        pruned = self._pruned(site, size, here)
        head_pairs: list[_Pairs] = []
        head = plan.axes.get("head") if self.axis in ("qk", "vo", "vo2") else None
        if head is not None:
            per_head = shape.per_head[self.axis]
            heads_pruned = np.ones(shape.heads, dtype=np.bool_)
            kept = head.kept
            heads_pruned[kept[kept < shape.heads]] = False
            pruned |= np.repeat(heads_pruned, per_head)
            head_pairs = self._head_pairs(site, shape, head, pruned)
        taken = np.zeros(size, dtype=np.bool_)
        for pair in head_pairs:
            taken[pair.units] = True
        return pruned, head_pairs + (self._own_pairs(site, shape, here, pruned, taken) if here is not None else [])

    def _pruned(self, site: int, size: int, here: AxisPlan | None) -> Flags:
        """Which units the axis's own ``keep`` prunes."""
        if here is None:
            return np.zeros(size, dtype=np.bool_)
        pruned = np.ones(size, dtype=np.bool_)
        kept = here.kept
        inside = kept[kept < size]
        pruned[inside] = False
        if len(inside) < len(kept):
            self._say(UnitOutOfRangeError, _beyond(kept, size), self._path(site, "keep"))
        return pruned

    def _own_pairs(self, site: int, shape: Shape, here: AxisPlan, pruned: Flags, taken: Flags) -> list[_Pairs]:
        """The axis's own sound ``share`` entries."""
        pairs = []
        for number, share in enumerate(here.share):
            units, base_units = share.reader_indices, share.base_indices
            path = self._path(site, "share", number)
            base = self.view.lookup.get(share.base)
            if base is None:
                continue  # reported where the bases are bound
            before = len(self.errors)
            self._check_base(site, shape, base, f"{path}.base")
            if len(units) != len(base_units):
                self._say(PairingLengthError, f"{len(units)} units and {len(base_units)} base units", f"{path}.base_units")
            if len(units) and int(units.max()) >= len(pruned):
                self._say(UnitOutOfRangeError, _beyond(units, len(pruned)), f"{path}.units")
            base_shape = self.view.shapes[base]
            base_size = None if base_shape is None else base_shape.size(self.axis)
            if len(base_units) and int(base_units.max()) >= (MAX_UNITS if base_size is None else base_size):
                self._say(UnitOutOfRangeError, _beyond(base_units, base_size), f"{path}.base_units")
            if len(self.errors) > before:
                continue
            if pruned[units].any():
                unit = int(units[np.argmax(pruned[units])])
                self._say(PrunedAndSharedError, f"{self._unit(site, unit)} is pruned and shared", f"{path}.units")
            elif taken[units].any():
                unit = int(units[np.argmax(taken[units])])
                self._say(SharedTwiceError, f"{self._unit(site, unit)} is already shared by another entry", f"{path}.units")
            else:
                pairs.append(_Pairs(site, base, units, base_units, path))
            taken[units] = True
        return pairs

    def _head_pairs(self, site: int, shape: Shape, head: AxisPlan, pruned: Flags) -> list[_Pairs]:
        """The sharing of whole heads, spelt out on the units inside them."""
        pairs = []
        per_head = shape.per_head[self.axis]
        for number, share in enumerate(head.share):
            path = json_path("sites", self.view.labels[site], "axes", "head", "share", number)
            base = self.view.lookup.get(share.base)
            heads, base_heads = share.reader_indices, share.base_indices
            if base is None or base == site or len(heads) != len(base_heads) or not len(heads):
                continue  # the head axis's own checks report it
            base_shape = self.view.shapes[base]
            if base_shape is not None:
                if int(base_heads.max()) >= base_shape.heads or base_shape.kind != shape.kind:
                    continue
                theirs = base_shape.per_head.get(self.axis)
                if theirs is None and base_shape.complete:
                    self._say(KindMismatchError, f"the base has no {self.axis} axis, the reader has one", f"{path}.base")
                    continue
                if theirs is not None and theirs != per_head:
                    what = f"a head of the reader has {per_head} {self.axis} units, a head of the base {theirs}"
                    self._say(WidthMismatchError, what, f"{path}.base", hint=f"share units on {self.axis} instead of whole heads")
                    continue
            if int(heads.max()) >= shape.heads:
                continue
            inside = np.arange(per_head)
            units = (heads[:, None] * per_head + inside).reshape(-1)
            base_units = (base_heads[:, None] * per_head + inside).reshape(-1)
            if pruned[units].any():
                unit = int(units[np.argmax(pruned[units])])
                self._say(
                    PrunedAndSharedError,
                    f"{self._unit(site, unit)} is pruned, and its head is shared whole",
                    f"{path}.units",
                    hint=f"share the units that are kept on {self.axis} instead",
                )
                continue
            pairs.append(_Pairs(site, base, units, base_units, path))
        return pairs

    def _check_base(self, site: int, shape: Shape, base: int, where: str) -> None:
        """Check that reader and base are two sites of one kind that both have the axis."""
        base_shape = self.view.shapes[base]
        if base == site:
            what = "a site that shares with itself takes its own units twice"
            self._say(BaseTakenTwiceError, what, where, hint="name another site as the base")
        elif base_shape is not None and base_shape.kind != shape.kind:
            self._say(KindMismatchError, f"an {shape.kind} cannot share with an {base_shape.kind}", where)
        elif base_shape is not None and base_shape.complete and self.axis not in base_shape.per_head:
            self._say(KindMismatchError, f"the base has no axis {self.axis!r}", where)

    def _follow(self, offsets: Indices, pruned: Flags, pairs: list[_Pairs]) -> UnitGraph:
        """Check the pairs of all sites together, and follow them to their roots."""
        nodes = np.arange(len(pruned), dtype=np.int64)
        if not pairs:
            return UnitGraph(offsets, pruned, nodes)
        bases = nodes.copy()
        entry = np.full(len(nodes), -1, dtype=np.int64)
        for number, pair in enumerate(pairs):
            readers = offsets[pair.reader] + pair.units
            targets = offsets[pair.base] + pair.base_units
            if pruned[targets].any():
                unit = int(pair.base_units[np.argmax(pruned[targets])])
                self._say(PrunedBaseError, f"{self._unit(pair.base, unit)} is pruned", f"{pair.path}.base_units")
                continue
            bases[readers] = targets
            entry[readers] = number
        # Pointer doubling: a chain of n links ends after log2(n) rounds; a circle never ends at a fixed point of ``bases``.
        roots = bases
        for _ in range(int(np.count_nonzero(entry >= 0)).bit_length() + 1):
            further = roots[roots]
            if np.array_equal(further, roots):
                break
            roots = further
        graph = UnitGraph(offsets, pruned, roots)
        on_circle = bases[roots] != roots
        if on_circle.any():
            self._report_circles(graph, bases, entry, pairs, np.unique(roots[on_circle]))
        self._report_taken_twice(graph, entry, pairs, ~on_circle)
        return graph

    def _report_circles(self, graph: UnitGraph, bases: Indices, entry: Indices, pairs: list[_Pairs], circle: Indices) -> None:
        reported: set[int] = set()
        for start in circle.tolist():
            if int(entry[start]) in reported:
                continue
            steps = [start]
            reported.add(int(entry[start]))
            node = int(bases[start])
            while node != start:
                steps.append(node)
                reported.add(int(entry[node]))
                node = int(bases[node])
            names = [self._node(graph, n) for n in steps[:8]] + (["..."] if len(steps) > 8 else []) + [self._node(graph, start)]
            path = f"{pairs[int(entry[start])].path}.base_units"
            self._say(CyclicSharingError, f"sharing runs in a circle: {' -> '.join(names)}", path)

    def _report_taken_twice(self, graph: UnitGraph, entry: Indices, pairs: list[_Pairs], sound: Flags) -> None:
        # Only the units of readers can meet at a root; private units of other sites are their own.
        readers = np.zeros(len(graph.offsets) - 1, dtype=np.bool_)
        readers[[pair.reader for pair in pairs]] = True
        nodes = np.flatnonzero(np.repeat(readers, np.diff(graph.offsets)) & sound & ~graph.pruned)
        sites, roots = graph.site_of(nodes), graph.roots[nodes]
        order = np.lexsort((entry[nodes], roots, sites))
        same = (np.diff(sites[order]) == 0) & (np.diff(roots[order]) == 0)
        reported: set[int] = set()
        for place in np.flatnonzero(same):
            first, second = nodes[order[place]], nodes[order[place + 1]]
            number = int(entry[second])
            if number in reported:
                continue
            reported.add(number)
            root = self._node(graph, int(graph.roots[second]))
            what = f"{self._node(graph, int(first))} and {self._node(graph, int(second))} both end at {root}"
            self._say(BaseTakenTwiceError, what, f"{pairs[number].path}.base_units")

    def _path(self, site: int, *rest: str | int) -> str:
        return json_path("sites", self.view.labels[site], "axes", self.axis, *rest)

    def _unit(self, site: int, unit: int) -> str:
        return f"unit {unit} of {self.axis} of {self.view.labels[site]!r}"

    def _node(self, graph: UnitGraph, node: int) -> str:
        site = int(graph.site_of(np.array([node]))[0])
        return f"{self.view.labels[site]}[{node - int(graph.offsets[site])}]"

    def _say(self, kind: type[PlanError], what: str, where: str, hint: str | None = None) -> None:
        self.errors.append(kind(what, where=where, hint=hint))


def _stated_shape(site: SitePlan) -> Shape:
    """What a plan says about the sizes of its own site."""
    heads = site.heads or 1
    known: dict[str, int] = {axis: plan.size // heads for axis, plan in site.axes.items() if plan.size % heads == 0}
    if site.kind == "msa":
        known["head"] = 1
    return Shape(site.kind, heads, known, complete=False)


def _beyond(units: Indices, size: int | None) -> str:
    """What is wrong with units that an axis of so many, or where that is not known any axis, does not have."""
    if size is None:
        return f"unit {int(units[np.argmax(units >= MAX_UNITS)])} is out of range: no axis has more than {MAX_UNITS} units"
    return f"unit {int(units[np.argmax(units >= size)])} is out of range: the axis has {size} units, 0-{size - 1}"
