"""``inarch inspect MODEL``: the sites of a model, and why something is not a site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inarch.structure.kinship import kin
from inarch.tools import render
from inarch.tools.options import Debug, Json, Model

if TYPE_CHECKING:
    from inarch.structure.sites import Member, Site, SiteTable


def run(
    model: Model,
    params: Annotated[bool, typer.Option("--params", help="Also show which parameter holds each member of a site.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what can be shared and pruned in a model.

    A site is one attention (msa) or one feed-forward network (ffn). Its widths are what a plan can prune; a frozen axis
    stays as it is, and the reason is given.
    """
    from inarch.api import discover

    with render.progress(quiet=json) as report:
        report("reading the graph", 0, 0)
        discovery = discover(model)
    if json:
        render.emit_json({"format": "inarch.inspect/1", "model": model.name, **as_data(discovery.table)})
        return
    show(discovery.table, params=params)


def widths(site: Site) -> str:
    """The widths that a plan can change: ``1536`` of an FFN, ``64`` or (qk, vo) ``32/64`` a head of an MSA; ``*`` if frozen."""
    inner = [f"{axis.per_head}{_star(site, name)}" for name, axis in site.axes.items() if name != "head"]
    return inner[0] if len(set(inner)) == 1 else "/".join(inner)


def _star(site: Site, axis: str) -> str:
    return "*" if site.axes[axis].frozen else ""


def show(table: SiteTable, *, params: bool) -> None:
    """Print the sites, what is frozen, what was rejected and the totals."""
    from inarch.structure.planners.weights import site_parameters

    shown = render.table("site", "kind", ("heads", "right"), ("width", "right"), ("params", "right"), "form")
    for site in table.sites:
        heads = f"{site.heads}{_star(site, 'head')}" if site.kind == "msa" else ""
        form = site.form if site.calls == 1 else f"{site.form}, {site.calls} calls"
        render.add_row(shown, site.name, site.kind, heads, widths(site), render.count(site.parameters), form)
    render.show(shown)
    if params:
        members = render.table("site", "member", "parameter", "stored", "on axis")
        for site in table.sites:
            for role, member in site.members.items():
                stored = " x ".join(str(n) for n in member.shape)
                place = f"{member.axis}: {member.start}-{member.start + member.size - 1}"
                render.add_row(members, site.name, role, member.param, stored, place)
        render.show(members)
    frozen = [(site.name, axis.name, axis.frozen) for site in table.sites for axis in site.axes.values() if axis.frozen]
    for name, axis, why in frozen:
        render.say(f"* {name}, {axis}: cannot be changed, {why}")
    for item in table.rejected:
        render.say(f"not a site: {item.name}: {item.reason}")
    if frozen or table.rejected:
        render.say("")
    show_kin(table)
    inside = site_parameters(table)
    ffns = sum(site.kind == "ffn" for site in table.sites)
    render.say(f"{len(table.sites)} sites: {len(table.sites) - ffns} msa, {ffns} ffn")
    render.say(
        f"{render.count(table.parameters)} parameters ({render.size(table.bytes)}), "
        f"{render.count(inside)} of them in sites ({render.percent(inside, table.parameters)})"
    )
    render.say(f"fingerprint {table.fingerprint}")


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
    from inarch.structure.planners.weights import site_parameters

    return {
        "fingerprint": table.fingerprint,
        "parameters": table.parameters,
        "bytes": table.bytes,
        "site_parameters": site_parameters(table),
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
