"""Who may share with whom: families of alike sites, one base each, and the order in which a base's units are shared.

A family is a base and its readers. The units of the base stand in one order of *elements*, nearest to the readers first,
and each reader takes a prefix of it, so that k readers make at most k segments. An element is one unit of an FFN; one
head of an MSA with all that is in it; or, where heads must stay together, the units of one rank in every head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inarch.structure.kinship import tower_of
from inarch.structure.legalise import in_head_common
from inarch.structure.planners.budget import Rules
from inarch.structure.planners.matching import match_heads, match_units
from inarch.structure.planners.weights import Read, directions, unit_axes
from inarch.structure.sites import Site
from inarch.structure.units import Indices

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Family:
    """Sites that may share.

    Attributes:
        base: the site whose weights are stored.
        readers: the sites that may read them, in order.
    """

    base: Site
    readers: tuple[Site, ...]


def families(sites: Sequence[Site], read: Read, block: int) -> list[Family]:
    """Group sites into families.

    Alike are sites of one kind, with the same matrices, vector lengths, dtype and number of units. Among them, sites whose
    names differ only in numbers are one tower. Each tower is cut into as many runs of neighbouring layers as the first
    one, run i of every tower makes one family (cross-modal by relative depth, layer-wise inside a run), and the base is
    the first tower's first layer; if heads are split differently, the first site with the most heads.

    Args:
        sites: candidates in model order.
        read: parameter by name, for its dtype.
        block: most sites in a family.
    """
    classes: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        classes.setdefault(_likeness(site, read), []).append(site)
    result: list[Family] = []
    for alike in classes.values():
        towers: dict[str, list[Site]] = {}
        for site in alike:
            towers.setdefault(tower_of(site.name), []).append(site)
        first = next(iter(towers.values()))
        runs = max(1, min(len(first), math.ceil(len(alike) / block)))
        members: list[list[Site]] = [[] for _ in range(runs)]
        for tower in towers.values():
            for i, site in enumerate(tower):
                members[i * runs // len(tower)].append(site)
        for run in members:
            for start in range(0, len(run), block):
                part = run[start : start + block]
                base = max(part, key=lambda site: site.heads)
                readers = tuple(s for s in part if s is not base and _fits(base, s))
                if readers:
                    result.append(Family(base, readers))
    return result


def _likeness(site: Site, read: Read) -> tuple[object, ...]:
    matrices = sorted((m for m in site.members.values() if m.is_matrix), key=lambda m: m.role)
    vectors = tuple((m.role, m.size * m.width, m.width, str(np.asarray(read(m.param)).dtype)) for m in matrices)
    # Grouped query heads and rotary pairs are carried along whole, so they must be alike.
    carried = tuple(tuple(f for f in m.factors if f[0] not in ("hidden", "head", "qk", "vo", "vo2")) for m in matrices)
    sizes = tuple((name, site.axes[name].size) for name in unit_axes(site))
    return (
        site.kind,
        vectors,
        carried,
        sizes,
        tuple(sorted(site.frozen)),
        tuple(in_head_common(site, n) for n in unit_axes(site)),
    )


def _fits(base: Site, reader: Site) -> bool:
    """Whether heads pair up: the same heads, or one of the reader for k of the base where nothing runs over heads."""
    if base.kind == "ffn":
        return True
    if base.heads == reader.heads:
        return True
    return base.heads % reader.heads == 0 and not base.frozen and not any(in_head_common(base, n) for n in unit_axes(base))


@dataclass(frozen=True, eq=False)
class Channel:
    """One order of a base's elements, and what each reader's prefix of it costs and saves.

    Attributes:
        family: whose.
        heads: whether elements are whole heads.
        elements: axis -> the base's units, [elements, units an element], in the order in which they are shared.
        partners: by reader, axis -> the reader's unit for each unit of the base, [N].
        costs: by reader, mean cosine distance of each element, [elements].
        saving: parameters that one shared element saves.
        lengths: the prefix lengths that can be stored, ascending, 0 first.
    """

    family: Family
    heads: bool
    elements: Mapping[str, Indices]
    partners: tuple[Mapping[str, Indices], ...]
    costs: tuple[Floats, ...]
    saving: int
    lengths: tuple[int, ...]


Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""


def channels(family: Family, read: Read, rules: Rules) -> list[Channel]:
    """Match a family's readers with its base and order the base's elements by mean distance over the readers."""
    base = family.base
    free = tuple(name for name in unit_axes(base) if base.axes[name].frozen is None)
    if base.kind == "ffn":
        return [_channel(family, _match(family, free, read), _single(base), False, rules)] if free else []
    if "head" not in base.frozen:
        # Sharing a head takes all of it, so every axis must be free to be reordered.
        if len(free) < len(unit_axes(base)):
            return []
        ratio = math.lcm(*(base.heads // reader.heads for reader in family.readers))
        if base.heads % ratio:
            return []
        return [_channel(family, _match(family, free, read), _by_heads(base, ratio), True, rules)]
    found = []
    for name in free:
        matched = _match(family, (name,), read)
        mean = np.mean([distance[name] for _, distance in matched], axis=0)
        found.append(_channel(family, matched, _by_rank(base, name, mean), False, rules))
    return found


Matched = Sequence[tuple[Mapping[str, Indices], Mapping[str, Floats]]]


def _match(family: Family, axes: Sequence[str], read: Read) -> Matched:
    """By reader: axis -> the reader's unit for each base unit, and axis -> their distance."""
    base = family.base
    own = {name: directions(base, name, read) for name in axes}
    result = []
    for reader in family.readers:
        theirs = {name: directions(reader, name, read) for name in axes}
        if base.kind == "ffn":
            pairs = [match_units(own[name], theirs[name]) for name in axes]
        else:
            pairs = match_heads(
                [(own[name], theirs[name]) for name in axes],
                base.heads,
                reader.heads,
                keep_heads="head" in base.frozen,
                keep_units=[in_head_common(base, name) for name in axes],
            )
        result.append(
            (
                {name: pair[0] for name, pair in zip(axes, pairs, strict=True)},
                {name: pair[1] for name, pair in zip(axes, pairs, strict=True)},
            )
        )
    return result


def _single(base: Site) -> dict[str, Indices]:
    return {"hidden": np.arange(base.axes["hidden"].size, dtype=np.int64)[:, None]}


def _by_heads(base: Site, ratio: int) -> dict[str, Indices]:
    """Elements of ``ratio`` neighbouring heads."""
    return {name: np.arange(base.axes[name].size, dtype=np.int64).reshape(base.heads // ratio, -1) for name in unit_axes(base)}


def _by_rank(base: Site, name: str, distance: Floats) -> dict[str, Indices]:
    """Elements of one unit a head, nearest first inside each head; the same unit of every head where the axis wants that."""
    axis = base.axes[name]
    table = distance.reshape(axis.heads, axis.per_head)
    if in_head_common(base, name):
        table = np.broadcast_to(table.mean(axis=0), table.shape)
    order = np.argsort(table, axis=1, kind="stable")
    return {name: (order + np.arange(axis.heads)[:, None] * axis.per_head).T.astype(np.int64)}


def _channel(family: Family, matched: Matched, elements: Mapping[str, Indices], heads: bool, rules: Rules) -> Channel:
    vectors = {name: family.base.unit_parameters(name)[0] for name in elements}
    saving = sum(vectors[name] * units.shape[1] for name, units in elements.items())
    costs = []
    for _, distance in matched:
        lost = sum(distance[name][units].sum(axis=1) * vectors[name] for name, units in elements.items())
        costs.append(np.asarray(lost, np.float64) / saving)
    order = np.argsort(np.mean(costs, axis=0), kind="stable")
    return Channel(
        family,
        heads,
        {name: units[order] for name, units in elements.items()},
        tuple(partner for partner, _ in matched),
        tuple(cost[order] for cost in costs),
        saving,
        _lengths(len(order), [units.shape[1] for units in elements.values()], rules),
    )


def _lengths(count: int, widths: Sequence[int], rules: Rules) -> tuple[int, ...]:
    """Prefix lengths whose segments are all storable, however the readers differ: multiples of one step, and everything.

    The last step takes what is left over, so that no segment comes out smaller than the others.
    """
    if any(count * width < rules.segment for width in widths):
        return (0,)

    def storable(length: int) -> bool:
        # Quarters are fine enough, since they are taken where they are nearest, and wide segments cost fewer kernels.
        return all(length * w % rules.multiple == 0 and length * w >= max(rules.segment, count * w // 4) for w in widths)

    step = next((length for length in range(1, count) if storable(length)), count)
    return (*range(0, count - step + 1, step), count) if count % step else tuple(range(0, count + 1, step))
