"""``inarch inspect MODEL``: the sites of a model, and why something is not a site."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from inarch.structure.demand import inside
from inarch.structure.kinship import kin, tower_of
from inarch.tools import render
from inarch.tools.options import Debug, Json, Model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from inarch.structure.sites import Member, Site, SiteTable

_NUMBER = re.compile(r"\d+")
_READERS = 4
"""Operators that are named of those that read what is in no site."""


def run(
    model: Model,
    every: Annotated[bool, typer.Option("--all", help="A row for each site, even where they differ in a number only.")] = False,
    params: Annotated[bool, typer.Option("--params", help="Also show which parameter holds each member of a site.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what can be shared and pruned in a model.

    A site is one attention (msa) or one feed-forward network (ffn). Its widths are what a plan can prune; a frozen axis
    stays as it is, and the reason is given. Of a compiled model it also shows what it was compiled with.
    """
    from inarch.api import discover, open_model
    from inarch.compiler.metadata import quantised_to
    from inarch.structure.parameters import read_outside

    with render.progress(quiet=json) as report:
        report("reading the graph", 0, 0)
        opened = open_model(model)
        discovery = discover(opened)
        table, elsewhere = discovery.table, read_outside(discovery.model, discovery.table)
        origin, kind = compiled_with(opened.metadata_props), quantised_to(opened.metadata_props)
    if json:
        data = {
            "format": "inarch.inspect/1",
            "model": model.name,
            **as_data(table),
            "outside": elsewhere,
            "compiled": origin,
            "quantised": kind,
        }
        render.emit_json(data)
        return
    show(table, elsewhere, every=every, params=params)
    if origin is not None:
        show_origin(origin)
    if kind is not None:
        rest = ": what reads its weights now is no site, so compile first and quantise last" if kind == "int8" else ""
        render.say(f"quantised to {kind} by inarch{rest}")


def compiled_with(metadata: Mapping[str, str]) -> dict[str, object] | None:
    """What a compiled model records of its compilation; None for a model that inarch did not write."""
    from inarch.compiler.metadata import shared_in
    from inarch.structure.cost import shipped_name

    if "inarch.plan" not in metadata:
        return None
    digest, _, prefer = metadata.get("inarch.cost", "").partition(":")
    return {
        "plan": metadata["inarch.plan"],
        "cost": digest or None,
        "cost_name": shipped_name(digest),
        "prefer": prefer or None,
        "onnxruntime": metadata.get("inarch.onnxruntime"),
        "shared_tensors": len(shared_in(metadata) or ()),
        "planned_parameters": _integer(metadata.get("inarch.planned")),
        "stored_parameters": _integer(metadata.get("inarch.stored")),
    }


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def show_origin(origin: Mapping[str, object]) -> None:
    """Print what a compiled model was compiled with."""
    name, prefer = origin["cost_name"], origin["prefer"]
    table = f"shipped for {str(name).upper()}s" if name else f"of {origin['cost']}"
    render.say("")
    shared, runtime = origin["shared_tensors"], origin["onnxruntime"]
    render.say(f"compiled by inarch: {shared} shared tensors; onnxruntime {runtime} keeps them so")
    render.say(f"with plan {origin['plan']}")
    render.say(f"with cost table {table}" + (f", preferring {prefer}" if prefer else ""))


def heads(site: Site) -> str:
    """Heads of an MSA; ``*`` if none of them can go."""
    return f"{site.heads}{_star(site, 'head')}" if site.kind == "msa" else ""


def widths(site: Site) -> str:
    """The widths that a plan can change: ``1536`` of an FFN, ``64`` or (qk, vo) ``32/64`` a head of an MSA; ``*`` if frozen."""
    inner = [f"{axis.per_head}{_star(site, name)}" for name, axis in site.axes.items() if name != "head"]
    return inner[0] if len(set(inner)) == 1 else "/".join(inner)


def _star(site: Site, axis: str) -> str:
    return "*" if axis in site.axes and site.axes[axis].frozen else ""


def show(table: SiteTable, elsewhere: Mapping[str, int], *, every: bool = False, params: bool = False) -> None:
    """Print the sites, what is frozen, what was rejected and the totals; ``elsewhere``: what reads the parameters of no site."""
    each = "params" if every else "params\neach"
    shown = render.table("site", "kind", ("heads", "right"), ("width", "right"), (each, "right"), ("sites", "right"), "form")
    for name, sites in families(table.sites, every=every):
        site = sites[0]
        form = site.form if site.calls == 1 else f"{site.form}, {site.calls} calls"
        render.add_row(shown, name, site.kind, heads(site), widths(site), render.count(site.parameters), len(sites), form)
    render.show(shown)
    if params:
        members = render.table("site", "member", "parameter", "stored", "on axis")
        for site in table.sites:
            for role, member in site.members.items():
                stored = " x ".join(str(n) for n in member.shape)
                place = f"{member.axis}: {member.start}-{member.start + member.size - 1}"
                render.add_row(members, site.name, role, member.param, stored, place)
        render.show(members)
    frozen = [((axis.name, axis.frozen), site.name) for site in table.sites for axis in site.axes.values() if axis.frozen]
    for (axis_name, why), names in together(frozen):
        render.say(f"* {names}, {axis_name}: cannot be changed, {why}")
    for (reason,), names in together([((item.reason,), item.name) for item in table.rejected]):
        render.say(f"not a site: {names}: {reason}")
    if frozen or table.rejected:
        render.say("")
    show_kin(table)
    own = inside(table).total
    ffns = sum(site.kind == "ffn" for site in table.sites)
    render.say(f"{len(table.sites)} sites: {len(table.sites) - ffns} msa, {ffns} ffn")
    render.say(
        f"{render.count(table.parameters)} parameters ({render.size(table.bytes)}), "
        f"{render.count(own)} of them in sites ({render.percent(own, table.parameters)})"
    )
    if elsewhere:
        render.say(f"the others are read by {_readers(elsewhere)}")
    render.say(f"fingerprint {table.fingerprint}")


def _readers(elsewhere: Mapping[str, int]) -> str:
    """The operators that read most, and one number for all others."""
    shown = [f"{name} {render.count(numbers)}" for name, numbers in list(elsewhere.items())[:_READERS]]
    rest = sum(list(elsewhere.values())[_READERS:])
    return ", ".join([*shown, *([f"others {render.count(rest)}"] if rest else [])])


def families(sites: Sequence[Site], *, every: bool) -> Iterator[tuple[str, Sequence[Site]]]:
    """Sites that differ in the numbers of their names alone, under one name; each by itself where ``every`` is wanted."""
    groups: dict[object, list[Site]] = {}
    for number, site in enumerate(sites):
        alike = site.kind, heads(site), widths(site), site.parameters, site.form, site.calls
        key = number if every else (tower_of(site.name), *alike)
        groups.setdefault(key, []).append(site)
    for members in groups.values():
        yield common_name([site.name for site in members]), members


def common_name(names: Sequence[str]) -> str:
    """One name for names that differ in numbers: ``layer.0-11.ffn``, and ``*`` where more than one number differs."""
    from inarch.structure.units import format_indices

    numbers = [[int(n) for n in _NUMBER.findall(name)] for name in names]
    parts = _NUMBER.split(names[0])
    columns = list(zip(*numbers, strict=True))
    varying = sum(len(set(column)) > 1 for column in columns)
    shown = []
    for column in columns:
        values = np.array(sorted(set(column)), np.int64)
        shown.append("*" if len(values) > 1 and varying > 1 else format_indices(values))
    return "".join(part + number for part, number in zip_longest(parts, shown, fillvalue=""))


def together(items: Sequence[tuple[tuple[str, ...], str]]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(what is said, of whom) with names that differ in numbers and have the same said of them under one name."""
    groups: dict[object, tuple[tuple[str, ...], list[str]]] = {}
    for said, name in items:
        groups.setdefault((said, tower_of(name)), (said, []))[1].append(name)
    for said, names in groups.values():
        count = f" ({len(names)} times)" if len(names) > 1 else ""
        yield said, common_name(names) + count


def show_kin(table: SiteTable) -> None:
    """Print who may share with whom, a block of rows for each group; names stand for all that differ in numbers only."""
    groups = kin(table.sites)
    shown = render.table("may share: sites", "kind", ("vectors", "right"), ("sites", "right"), ("params", "right"), "how")
    for group in groups:
        lengths = "/".join(str(n) for n in sorted(set(group.lengths.values())))
        across = len(group.towers) > 1
        for name, sites in group.towers.items():
            ways = [way for way, can in (("across", across), ("layer-wise", len(sites) > 1)) if can]
            parameters = render.count(sum(site.parameters for site in sites))
            render.add_row(shown, name, group.kind, lengths, str(len(sites)), parameters, ", ".join(ways) or "pruned only")
    if groups:
        render.show(shown)
        render.say("Sites of one kind share where their vectors have one length; all can be pruned.")
        render.say("")


def as_data(table: SiteTable) -> dict[str, object]:
    """The table for ``--json``."""
    return {
        "fingerprint": table.fingerprint,
        "parameters": table.parameters,
        "bytes": table.bytes,
        "site_parameters": inside(table).total,
        "sites": [_site_data(site) for site in table.sites],
        "kin": [
            {"kind": g.kind, "lengths": dict(g.lengths), "towers": {t: [s.name for s in own] for t, own in g.towers.items()}}
            for g in kin(table.sites)
        ],
        "rejected": [
            {"name": r.name, "reason": r.reason, "nodes": list(r.nodes), "params": list(r.params)} for r in table.rejected
        ],
    }


def _site_data(site: Site) -> dict[str, object]:
    return {
        "name": site.name,
        "kind": site.kind,
        "form": site.form,
        "calls": site.calls,
        "heads": site.heads if site.kind == "msa" else None,
        "parameters": site.parameters,
        "axes": {
            name: {"size": axis.size, "heads": axis.heads, "per_head": axis.per_head, "frozen": axis.frozen}
            for name, axis in site.axes.items()
        },
        "members": {role: _member_data(member) for role, member in site.members.items()},
    }


def _member_data(member: Member) -> dict[str, object]:
    return {
        "param": member.param,
        "axis": member.axis,
        "start": member.start,
        "size": member.size,
        "shape": list(member.shape),
        "transposed": member.transposed,
    }
