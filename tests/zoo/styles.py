"""Ways to prune and to share: what people, planners and gates may ask for, and what they would never.

A style prunes first and shares then. Bases come before readers in a random order of the sites, so that sharing is acyclic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from inarch.structure.plan import AxisName
from inarch.structure.sites import Site
from inarch.structure.units import Indices

from tests.zoo.draft import Draft, alike, unit_axes

Step = Callable[[Draft], None]


# ---- pruning ------------------------------------------------------------------------------------------------------------
def nothing(draft: Draft) -> None:
    """Prune nothing."""


def prune_ffn(draft: Draft) -> None:
    """Drop FFN units at random, each site at its own rate."""
    for site in draft.sites("ffn"):
        if draft.free(site, "hidden") and draft.rng.random() < 0.8:
            rate = draft.rng.uniform(0.05, 0.8)
            draft.keep[site.name, "hidden"] &= draft.rng.random(site.axes["hidden"].size) >= rate


def prune_heads(draft: Draft) -> None:
    """Drop whole heads through the head axis; one head at least stays."""
    for site in draft.sites("msa"):
        if draft.free(site, "head") and site.heads > 1 and draft.rng.random() < 0.8:
            gone = draft.rng.permutation(site.heads)[: int(draft.rng.integers(1, site.heads))]
            draft.heads[site.name][gone] = False


def _inside(draft: Draft, how: str) -> None:
    """Drop units inside heads: ``equal`` counts at own positions, ``common`` positions in every head, or ``unequal`` counts."""
    for site in draft.sites("msa"):
        for axis in unit_axes(site):
            per_head = site.axes[axis].per_head
            if not draft.free(site, axis) or draft.rng.random() < 0.2:
                continue
            keep = np.ones((site.heads, per_head), np.bool_)
            count = int(draft.rng.integers(1, per_head + 1))
            common = draft.rng.permutation(per_head)[count:]
            for head in range(site.heads):
                if how == "common":
                    keep[head, common] = False
                elif how == "equal":
                    keep[head, draft.rng.permutation(per_head)[count:]] = False
                else:
                    keep[head] = draft.rng.random(per_head) >= draft.rng.uniform(0, 0.9)
            draft.keep[site.name, axis] &= keep.reshape(-1)


def prune_inside_equal(draft: Draft) -> None:
    """Inside heads, as many in each."""
    _inside(draft, "equal")


def prune_inside_common(draft: Draft) -> None:
    """Inside heads, the same units in each."""
    _inside(draft, "common")


def prune_inside_unequal(draft: Draft) -> None:
    """Inside heads, at random."""
    _inside(draft, "unequal")


def prune_all(draft: Draft) -> None:
    """FFN units, heads and units inside heads."""
    prune_ffn(draft)
    if draft.rng.random() < 0.5:
        prune_heads(draft)
    _inside(draft, str(draft.rng.choice(["equal", "common", "unequal"])))


def _empty(draft: Draft, axis: AxisName) -> None:
    """Leave nothing of an axis at some of the sites that have it, at one at least."""
    sites = [site for site in draft.table.sites if axis in site.axes and draft.free(site, axis)]
    if not sites:
        return
    for site in [sites[int(draft.rng.integers(len(sites)))], *(s for s in sites if draft.rng.random() < 0.3)]:
        if axis == "head":
            draft.heads[site.name][:] = False
        else:
            draft.keep[site.name, axis][:] = False


def empty_hidden(draft: Draft) -> None:
    """Nothing left of an FFN."""
    _empty(draft, "hidden")


def empty_heads(draft: Draft) -> None:
    """Nothing left of an MSA, by its heads."""
    _empty(draft, "head")


def empty_qk(draft: Draft) -> None:
    """No scores left: attention becomes a mean."""
    _empty(draft, "qk")


def empty_vo(draft: Draft) -> None:
    """No values left (of one path, where there are two)."""
    _empty(draft, "vo2" if draft.rng.random() < 0.3 else "vo")


def empty_mixed(draft: Draft) -> None:
    """Something emptied, something thinned out."""
    prune_ffn(draft)
    for step in (empty_hidden, empty_heads, empty_qk, empty_vo):
        if draft.rng.random() < 0.4:
            step(draft)


def kill_base_heads(draft: Draft) -> None:
    """Prune the values of some heads and keep their scores: dead units that readers may still take."""
    for site in draft.sites("msa"):
        if draft.free(site, "vo") and site.heads > 1:
            per_head = site.axes["vo"].per_head
            head = int(draft.rng.integers(site.heads))
            for axis in unit_axes(site):
                if axis != "qk":
                    span = slice(head * per_head, (head + 1) * per_head)
                    draft.keep[site.name, axis][span] = False


# ---- sharing ------------------------------------------------------------------------------------------------------------
def _order(draft: Draft) -> list[Site]:
    """The sites, bases first: in the model's order, or in any."""
    sites = list(draft.table.sites)
    if draft.rng.random() < 0.5:
        sites = [sites[i] for i in draft.rng.permutation(len(sites))]
    return sites


def _pairs(draft: Draft, rate: float = 0.8) -> Iterator[tuple[Site, Site]]:
    """(reader, base) pairs; a base comes before its readers in one order, so that its roots are settled when it is read."""
    order = _order(draft)
    for place, reader in enumerate(order):
        bases = [base for base in order[:place] if any(alike(reader, base, axis) for axis in unit_axes(reader))]
        if bases and draft.rng.random() < rate:
            yield reader, bases[int(draft.rng.integers(len(bases)))]


def _common(draft: Draft, reader: Site, base: Site, axis: AxisName) -> Indices:
    """Unit numbers that are alive at both."""
    n = min(reader.axes[axis].size, base.axes[axis].size)
    return np.flatnonzero(~draft.pruned(reader, axis)[:n] & ~draft.pruned(base, axis)[:n])


def share_whole(draft: Draft) -> None:
    """Everything that both keep."""
    for reader, base in _pairs(draft):
        for axis in unit_axes(reader):
            if alike(reader, base, axis):
                units = _common(draft, reader, base, axis)
                draft.take(reader, base, axis, units, units)


def share_prefix(draft: Draft) -> None:
    """The first units of both."""
    for reader, base in _pairs(draft):
        rate = draft.rng.uniform(0.2, 0.9)
        for axis in unit_axes(reader):
            if alike(reader, base, axis):
                units = _common(draft, reader, base, axis)
                units = units[: max(1, round(rate * len(units)))]
                draft.take(reader, base, axis, units, units)


def share_scattered(draft: Draft) -> None:
    """Any units, each with its namesake."""
    for reader, base in _pairs(draft):
        rate = draft.rng.uniform(0.2, 0.9)
        for axis in unit_axes(reader):
            if alike(reader, base, axis):
                units = _common(draft, reader, base, axis)
                units = units[draft.rng.random(len(units)) < rate]
                draft.take(reader, base, axis, units, units)


def share_pairing(draft: Draft) -> None:
    """Any units with any: the pairing knows no heads."""
    for reader, base in _pairs(draft):
        rate = draft.rng.uniform(0.2, 0.9)
        for axis in unit_axes(reader):
            if alike(reader, base, axis):
                mine = draft.rng.permutation(np.flatnonzero(~draft.pruned(reader, axis)))
                theirs = draft.rng.permutation(np.flatnonzero(~draft.pruned(base, axis)))
                n = round(rate * min(len(mine), len(theirs)))
                draft.take(reader, base, axis, mine[:n], theirs[:n])


def _some_heads(draft: Draft, reader: Site, base: Site, *, permuted: bool) -> tuple[Indices, Indices]:
    """Heads of both, paired."""
    n = int(draft.rng.integers(1, min(reader.heads, base.heads) + 1))
    if not permuted:
        heads = np.sort(draft.rng.permutation(min(reader.heads, base.heads))[:n])
        return heads, heads
    return draft.rng.permutation(reader.heads)[:n], draft.rng.permutation(base.heads)[:n]


def share_heads(draft: Draft) -> None:
    """Whole heads through the head axis, each with its namesake."""
    for reader, base in _pairs(draft):
        if reader.kind == "msa":
            draft.take_heads(reader, base, *_some_heads(draft, reader, base, permuted=False))
    _some_ffn(draft)


def share_heads_permuted(draft: Draft) -> None:
    """Whole heads through the head axis, in any pairing."""
    for reader, base in _pairs(draft):
        if reader.kind == "msa":
            draft.take_heads(reader, base, *_some_heads(draft, reader, base, permuted=True))
    _some_ffn(draft)


def _some_ffn(draft: Draft) -> None:
    """FFN units by prefix, where the step before left FFNs alone."""
    sites = draft.sites("ffn")
    for place, reader in enumerate(sites[1:], 1):
        base = sites[int(draft.rng.integers(place))]
        if (reader.name, "hidden") not in draft.shares and draft.rng.random() < 0.5:
            units = _common(draft, reader, base, "hidden")
            draft.take(reader, base, "hidden", units[: len(units) // 2], units[: len(units) // 2])


def share_inside(draft: Draft) -> None:
    """Units inside heads: heads are paired, and in each pair as many units, the first ones or any."""
    for reader, base in _pairs(draft):
        if reader.kind != "msa":
            continue
        heads, base_heads = _some_heads(draft, reader, base, permuted=bool(draft.rng.random() < 0.5))
        if draft.rng.random() < 0.5:
            n = min(reader.heads, base.heads)
            heads, base_heads = np.arange(n), draft.rng.permutation(base.heads)[:n]
        first = bool(draft.rng.random() < 0.5)
        for axis in unit_axes(reader):
            if not alike(reader, base, axis):
                continue
            mine, theirs = reader.axes[axis].per_head, base.axes[axis].per_head
            n = int(draft.rng.integers(1, min(mine, theirs) + 1))
            common = draft.rng.permutation(min(mine, theirs))[:n]
            for head, base_head in zip(heads.tolist(), base_heads.tolist(), strict=True):
                inside = np.arange(n) if first else common
                draft.take(reader, base, axis, head * mine + inside, base_head * theirs + inside)
    _some_ffn(draft)


def share_chain(draft: Draft) -> None:
    """Each site takes from the one before it, of the same units and fewer each time: reader -> reader -> root."""
    last: list[Site] = []
    rate = draft.rng.uniform(0.4, 0.9)
    orders: dict[tuple[AxisName, int], Indices] = {}
    for reader in _order(draft):
        base = next((s for s in reversed(last) if any(alike(reader, s, axis) for axis in unit_axes(reader))), None)
        last.append(reader)
        if base is None:
            continue
        for axis in unit_axes(reader):
            if alike(reader, base, axis):
                n = min(reader.axes[axis].size, base.axes[axis].size)
                order = orders.setdefault((axis, n), draft.rng.permutation(n) if draft.rng.random() < 0.5 else np.arange(n))
                units = order[: round(rate * n)]
                draft.take(reader, base, axis, units, units)
        rate *= draft.rng.uniform(0.6, 1.0)


def _several(draft: Draft, *, nested: bool) -> None:
    """One base for all sites that are like it."""
    order = _order(draft)
    for base in order:
        if any(base.name == shared for shared, _ in draft.shares):
            continue
        readers = [s for s in order[order.index(base) + 1 :] if all((s.name, a) not in draft.shares for a in unit_axes(s))]
        for axis in unit_axes(base):
            ranking = draft.rng.permutation(base.axes[axis].size)
            for reader in readers:
                if not alike(reader, base, axis):
                    continue
                units = ranking[ranking < reader.axes[axis].size]
                n = int(draft.rng.integers(0, len(units) + 1))
                units = units[:n] if nested else np.sort(draft.rng.permutation(units)[:n])
                draft.take(reader, base, axis, units, units)


def share_nested(draft: Draft) -> None:
    """Several readers of a base, each taking a prefix of one order of its units."""
    _several(draft, nested=True)


def share_crossing(draft: Draft) -> None:
    """Several readers of a base, their choices unrelated: up to 2^k segments."""
    _several(draft, nested=False)


def share_two_bases(draft: Draft) -> None:
    """A reader takes some units from one base and some from another."""
    order = _order(draft)
    for place, reader in enumerate(order):
        for axis in unit_axes(reader):
            bases = [base for base in order[:place] if alike(reader, base, axis)]
            if len(bases) < 2:
                continue
            for base in (bases[i] for i in draft.rng.permutation(len(bases))[:2]):
                units = _common(draft, reader, base, axis)
                units = units[draft.rng.random(len(units)) < 0.4]
                draft.take(reader, base, axis, units, units)


def share_blocks(draft: Draft) -> None:
    """Runs of units by their flat number, whatever the heads: what sites with other heads of the same width share."""
    for reader, base in _pairs(draft, 0.9):
        for axis in unit_axes(reader):
            if not alike(reader, base, axis):
                continue
            block = max(2, int(np.gcd(reader.axes[axis].per_head, base.axes[axis].per_head)))
            n = min(reader.axes[axis].size, base.axes[axis].size) // block
            if n == 0:
                continue
            count = int(draft.rng.integers(1, n + 1))
            blocks = np.sort(draft.rng.permutation(n)[:count])
            mine = (blocks[:, None] * block + np.arange(block)).reshape(-1)
            if draft.rng.random() < 0.3:
                blocks = draft.rng.permutation(blocks)
            draft.take(reader, base, axis, mine, (blocks[:, None] * block + np.arange(block)).reshape(-1))


def share_mixed(draft: Draft) -> None:
    """Two ways of sharing, one after the other where both fit, on disjoint readers."""
    steps = (share_heads_permuted, share_inside, share_prefix, share_pairing, share_blocks)
    steps[int(draft.rng.integers(len(steps)))](draft)


STYLES: dict[str, tuple[Step, Step]] = {
    "prune-ffn": (prune_ffn, nothing),
    "prune-heads": (prune_heads, nothing),
    "prune-inside-equal": (prune_inside_equal, nothing),
    "prune-inside-common": (prune_inside_common, nothing),
    "prune-inside-unequal": (prune_inside_unequal, nothing),
    "prune-all": (prune_all, nothing),
    "empty-hidden": (empty_hidden, nothing),
    "empty-heads": (empty_heads, nothing),
    "empty-qk": (empty_qk, nothing),
    "empty-vo": (empty_vo, nothing),
    "empty-shared": (empty_mixed, share_prefix),
    "share-whole": (nothing, share_whole),
    "share-whole-pruned": (prune_all, share_whole),
    "share-prefix": (nothing, share_prefix),
    "share-prefix-pruned": (prune_all, share_prefix),
    "share-scattered": (prune_ffn, share_scattered),
    "share-pairing": (nothing, share_pairing),
    "share-heads": (prune_ffn, share_heads),
    "share-heads-permuted": (prune_heads, share_heads_permuted),
    "share-inside": (nothing, share_inside),
    "share-inside-pruned": (prune_inside_common, share_inside),
    "share-chain": (nothing, share_chain),
    "share-nested": (nothing, share_nested),
    "share-nested-pruned": (prune_all, share_nested),
    "share-crossing": (nothing, share_crossing),
    "share-two-bases": (prune_ffn, share_two_bases),
    "share-blocks": (nothing, share_blocks),
    "share-dead-base": (kill_base_heads, share_inside),
    "share-mixed": (prune_all, share_mixed),
}
"""Name -> what is pruned, then what is shared."""

EMPTYING = tuple(name for name in STYLES if name.startswith("empty"))
"""Styles that leave nothing of an axis."""
