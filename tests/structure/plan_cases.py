"""Random tables of sites and random valid plans on them, with the naive answer to where every unit ends.

Nothing here uses the code under test but the site types: documents are plain JSON, and roots are found by walking one unit at
a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inarch.structure.sites import Member, Rejection, Site, SiteTable

WIDTH = 24

Node = tuple[str, int]
"""Site name and unit, on some axis."""


def member(role: str, param: str, factors: tuple[tuple[str, int], ...], width: int, *, start: int = 0, total: int = 0) -> Member:
    """A member on the rows of an [out, in] parameter, or the columns where it is a sink, or of a vector."""
    size = int(np.prod([n for _, n in factors]))
    rows = total or size
    if role.split(":")[0].endswith("_bias") or role.startswith("rider"):
        return Member(role, param, 0, start, (rows,), factors)
    if role in ("down", "o", "o2"):
        return Member(role, param, 1, start, (width, rows), factors, transposed=True)
    return Member(role, param, 0, start, (rows, width), factors, transposed=True)


def ffn(name: str, hidden: int, *, width: int = WIDTH, gated: bool = False, prefix: str | None = None, **extra: Any) -> Site:
    prefix = prefix or name
    factors = (("hidden", hidden),)
    roles = ["up", "up_bias", *(["gate"] if gated else []), "down"]
    members = {role: member(role, f"{prefix}.{role}", factors, width) for role in roles}
    return Site(name, "ffn", members, {"hidden": hidden}, **extra)


def msa(
    name: str,
    heads: int,
    qk: int,
    vo: int,
    *,
    width: int = WIDTH,
    group: int = 1,
    pair: int = 1,
    packed: bool = False,
    two_values: bool = False,
    prefix: str | None = None,
    **extra: Any,
) -> Site:
    """An MSA; ``packed``: q, k and v lie in one parameter."""
    prefix = prefix or name
    pairs = (("pair", pair),) if pair > 1 else ()
    groups = (("group", group),) if group > 1 else ()
    on_q = (("head", heads), *groups, *pairs, ("qk", qk))
    on_k = (("head", heads), *pairs, ("qk", qk))
    on_v = (("head", heads), ("vo", vo))
    on_o = (("head", heads), *groups, ("vo", vo))
    sizes = {"head": heads, "qk": qk, "vo": vo}
    if packed:
        parts = [int(np.prod([n for _, n in factors])) for factors in (on_q, on_k, on_v)]
        total, param = sum(parts), f"{prefix}.in_proj"
        members = {
            "q": member("q", param, on_q, width, start=0, total=total),
            "k": member("k", param, on_k, width, start=parts[0], total=total),
            "v": member("v", param, on_v, width, start=parts[0] + parts[1], total=total),
        }
    else:
        members = {r: member(r, f"{prefix}.{r}", f, width) for r, f in (("q", on_q), ("k", on_k), ("v", on_v), ("v_bias", on_v))}
    members["o"] = member("o", f"{prefix}.o", on_o, width)
    if two_values:
        on_v2 = (("head", heads), ("vo2", vo))
        sizes["vo2"] = vo
        members |= {role: member(role, f"{prefix}.{role}", on_v2, width) for role in ("v2", "o2")}
    return Site(name, "msa", members, sizes, **extra)


def table_of(*sites: Site, rejected: Iterable[Rejection] = ()) -> SiteTable:
    parameters = sum(site.parameters for site in sites) + 1000
    return SiteTable(tuple(sites), tuple(rejected), parameters, 4 * parameters)


def spell(units: Iterable[int]) -> str:
    """A range string of single indices: long, and correct without a formatter."""
    return ",".join(str(int(u)) for u in units)


def read(text: str) -> list[int]:
    """The indices of a range string, one at a time."""
    units: list[int] = []
    for item in text.split(",") if text else []:
        first, _, last = item.partition("-")
        units += range(int(first), int(last or first) + 1)
    return units


def document_of(table: SiteTable) -> dict[str, Any]:
    """The plan that changes nothing, as JSON."""
    sites: dict[str, Any] = {}
    for site in table.sites:
        members: dict[str, Any] = {}
        for role, m in site.members.items():
            ranges = f"{m.start}-{m.start + m.size - 1}" if m.size > 1 else str(m.start)
            members[role] = {"param": m.param, "axis": m.axis, "ranges": ranges, "transposed": m.transposed}
        axes = {name: {"size": a.size, "keep": spell(range(a.size)), "share": []} for name, a in site.axes.items()}
        sites[site.name] = {"kind": site.kind, "members": members, "axes": axes}
        if site.kind == "msa":
            sites[site.name]["heads"] = site.heads
    return {
        "format": "inarch.plan/1",
        "model": {"name": "random", "fingerprint": table.fingerprint},
        "sites": sites,
        "expect": {"parameters": 7, "bytes": 28},
        "provenance": {"seed": 1, "notes": ["by", "chance"]},
    }


def text_of(document: Mapping[str, Any]) -> str:
    return json.dumps(document)


@dataclass
class Case:
    """A valid plan: its document, its table, and what becomes of every unit.

    ``parent[axis]`` holds unit -> base unit; ``pruned[axis]`` the units that are pruned, those of pruned heads among them.
    """

    table: SiteTable
    document: dict[str, Any]
    parent: dict[str, dict[Node, Node]] = field(default_factory=dict)
    pruned: dict[str, set[Node]] = field(default_factory=dict)

    def root(self, axis: str, node: Node) -> Node:
        seen = {node}
        while node in self.parent[axis]:
            node = self.parent[axis][node]
            assert node not in seen
            seen.add(node)
        return node

    def share(self, site: str, axis: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.document["sites"][site]["axes"][axis]["share"]
        return entries

    def entries(self, axis: str | None = None) -> list[tuple[str, str, int, dict[str, Any]]]:
        """(site, axis, number, entry) of every share entry that is not empty."""
        return [
            (site, name, number, entry)
            for site, plan in self.document["sites"].items()
            for name, decisions in plan["axes"].items()
            if axis in (None, name)
            for number, entry in enumerate(decisions["share"])
            if entry["units"]
        ]


def random_case(seed: int) -> Case:
    """A valid plan on a random table: prunings, chains across sites, unit-level back and forth, whole heads shared."""
    rng = np.random.default_rng(seed)
    sites: list[Site] = [ffn(f"text.{i}.ffn", int(rng.choice([6, 9, 12]))) for i in range(3)]
    sites += [msa(f"vision.{i}.attn", *((4, 3, 2) if rng.random() < 0.7 else (2, 6, 4)), packed=bool(i % 2)) for i in range(3)]
    sites += [ffn("gated é.0", 6, gated=True), ffn("gated é.1", 9, gated=True), msa("bi.attn", 4, 3, 2, two_values=True)]
    table = table_of(*(sites[i] for i in rng.permutation(len(sites))))
    case = Case(table, document_of(table))
    for axis in ("hidden", "qk", "vo", "vo2"):
        case.parent[axis], case.pruned[axis] = {}, set()
    often = rng.choice([0.2, 1.0])
    by_heads = {site.name: site.kind == "msa" and bool(rng.random() < often) for site in table.sites}
    for site in table.sites:
        _prune(case, site, by_heads[site.name], rng)
    like = [(a, b) for a in table.sites for b in table.sites if a is not b and _alike(a, b)]
    for number in rng.permutation(len(like))[:12]:
        reader, base = like[number]
        for axis in [a for a in reader.axes if a != "head"] if not by_heads[reader.name] else ["head"]:
            _share(case, reader, base, axis, rng)
    return case


def _alike(a: Site, b: Site) -> bool:
    return a.kind == b.kind and a.members.keys() - {"v_bias"} == b.members.keys() - {"v_bias"}


def _prune(case: Case, site: Site, by_heads: bool, rng: np.random.Generator) -> None:
    axes = case.document["sites"][site.name]["axes"]
    for name, axis in site.axes.items():
        keep = np.ones(axis.size, dtype=bool)
        if (name != "head" and not by_heads) or name == "head":
            keep = rng.random(axis.size) < 0.8
        axes[name]["keep"] = spell(np.flatnonzero(keep))
        gone = {int(u) for u in np.flatnonzero(~keep)}
        if name != "head":
            case.pruned[name] |= {(site.name, u) for u in gone}
            continue
        for inner, of in site.axes.items():
            if inner != "head":
                case.pruned[inner] |= {(site.name, u) for u in range(of.size) if u // of.per_head in gone}


def _share(case: Case, reader: Site, base: Site, axis: str, rng: np.random.Generator) -> None:
    """Try random pairs, keep those that leave the plan valid, write them as one or two entries."""
    pairs: list[tuple[int, int]] = []
    inner = [axis] if axis != "head" else [a for a in reader.axes if a != "head"]
    if axis == "head" and any(reader.axes[a].per_head != base.axes[a].per_head for a in inner):
        return
    size, base_size = reader.axes[axis].size, base.axes[axis].size
    for unit, base_unit in zip(rng.permutation(size), rng.permutation(base_size), strict=False):
        added: list[tuple[str, Node]] = []
        for name in inner:
            per_head = 1 if axis != "head" else reader.axes[name].per_head
            for j in range(per_head):
                node, target = (reader.name, int(unit) * per_head + j), (base.name, int(base_unit) * per_head + j)
                if not _may(case, name, node, target):
                    break
                case.parent[name][node] = target
                added.append((name, node))
            else:
                continue
            for undo, node in added:
                del case.parent[undo][node]
            break
        else:
            pairs.append((int(unit), int(base_unit)))
    cut = int(rng.integers(len(pairs) + 1))
    for part in (pairs[:cut], pairs[cut:]):
        if part:
            units, base_units = zip(*part, strict=True)
            case.share(reader.name, axis).append({"base": base.name, "units": spell(units), "base_units": spell(base_units)})


def _may(case: Case, axis: str, node: Node, target: Node) -> bool:
    parent, pruned = case.parent[axis], case.pruned[axis]
    if node in parent or node in pruned or target in pruned:
        return False
    root = case.root(axis, target)
    if root == node:
        return False  # a circle
    # Everything that ends at the node would end at the root: no site may come to have two such units.
    ends: dict[Node, list[str]] = {node: [], root: []}
    for site in {s for s, _ in (*parent, node, root)}:
        units = {u for s, u in (*parent, *parent.values(), node, root) if s == site}
        for unit in units:
            end = case.root(axis, (site, unit))
            if end in ends:
                ends[end].append(site)
    return not set(ends[node]) & set(ends[root])
