"""Discovery: the sites of a graph, found from the axes that couple, not from names or patterns.

A projection whose contracted axis is not frozen is the *sink* of a site (``down``, ``o``); the projections that make that
axis are its *sources*. What lies between decides the kind: a softmax over a product of two sources is an MSA; a plain chain whose
result is added to the residual stream that its input comes from is an FFN.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from inarch.structure.axis_rules import RULES, SOURCES
from inarch.structure.convolved import convolved
from inarch.structure.coupling import Coupling, Projection
from inarch.structure.kinds import Found, NotASite, as_ffn, as_msa, attends, is_residual, origins
from inarch.structure.members import members_of, riders_of
from inarch.structure.naming import name_sites
from inarch.structure.nodes import graphs_in
from inarch.structure.parameters import parameters_of
from inarch.structure.regions import Region, carries
from inarch.structure.sites import AXIS_FACTORS, Rejection, Site, SiteTable
from inarch.structure.views import VIEWS

_LIMIT = 12
"""More projections than this on one axis is the residual stream of a model without norms, not a hidden axis."""

QUANTISED = frozenset(
    "MatMulInteger QLinearMatMul MatMulNBits MatMulBnb4 DynamicQuantizeMatMul MatMulIntegerToFloat QGemm QAttention".split()
)


@dataclass(frozen=True, eq=False)
class Discovery:
    """The sites of a model and where they lie in its graph.

    Attributes:
        table: the sites as data.
        regions: site name -> its call-sites.
        model: the model that was read; it is not changed.
        coupling: the analysis of its main graph.
    """

    table: SiteTable
    regions: Mapping[str, tuple[Region, ...]]
    model: ir.Model
    coupling: Coupling

    def uses(self, site: str) -> Mapping[str, list[tuple[ir.Node, int]]]:
        """Role -> the node inputs through which a site reads that member."""
        found: dict[str, list[tuple[ir.Node, int]]] = defaultdict(list)
        for region in self.regions[site]:
            for role, projection in region.projections.items():
                found[role].append((projection.node, 1))
            for rider in region.riders:
                if rider.role is not None:
                    found[rider.role].append((rider.node, rider.position))
        return found

    def outputs(self, site: str) -> list[str]:
        """Names of the values that a site's sinks write, call by call."""
        return [
            str(region.projections[role].node.outputs[0].name) for region in self.regions[site] for role in sorted(region.sinks)
        ]


def discover(model: ir.Model, coupling: Coupling | None = None) -> Discovery:
    """Find every MSA and FFN of a model's main graph.

    Packed projections are seen as separate ones only after ``frontends.canonicalize``.

    Args:
        model: any model; it is not changed and no large tensor's data is read.
        coupling: the analysis of its main graph, where the caller has it.

    Returns:
        The sites in model order, their regions, and what looks like a site but is not compilable, with the reason.
    """
    coupling = coupling or Coupling(model.graph, RULES, SOURCES)
    order = coupling.order
    found: list[tuple[Found, Site, Region]] = []
    refused: list[tuple[list[Projection], Rejection]] = []
    makers, readers = _index(coupling)
    taken: set[Projection] = set()
    placed: set[Projection] = set()
    # Frozen axes are tried last: what is found there is only reported.
    for frozen_too in (False, True):
        for sink in coupling.projections:
            if sink in taken or sink.k is None:
                continue
            group = _component(coupling, sink, makers, readers, frozen_too=frozen_too)
            if group is None:
                continue
            sources, sinks = group
            reason: str | None = None
            site: Site | None = None
            region: Region | None = None
            candidate: Found | None = None
            try:
                candidate = as_msa(coupling, sources, sinks, order) or as_ffn(coupling, sources, sinks, order)
                if candidate is None:
                    continue
                region = Region(candidate.nodes, dict(candidate.projections), candidate.sinks, candidate.names, coupling)
                site, region = _build(candidate, region)
                if all(axis.frozen for axis in site.axes.values()):
                    reason = next(axis.frozen for axis in site.axes.values() if axis.frozen)
                elif not placed.isdisjoint(candidate.projections.values()):
                    # Half of a bidirectional attention whose other half is frozen is a site without it.
                    reason = "some of its projections are another site's, which has all that is free"
            except NotASite as refusal:
                reason = str(refusal)
                taken.update(sinks)
            if candidate is not None:
                taken.update(p for role, p in candidate.projections.items() if role in candidate.sinks)
            if reason is None and site is not None and region is not None and candidate is not None:
                found.append((candidate, site, region))
                placed.update(candidate.projections.values())
            elif reason is not None:
                params = tuple(str(p.view.param.name) for p in (*sources, *sinks))
                nodes = tuple(str(p.node.name or p.node.outputs[0].name) for p in (*sources, *sinks))
                refused.append((sinks, Rejection("", reason, nodes, params)))
    # What only other sites read is the stream between them: a short one looks like a hidden axis.
    rejected = [rejection for sinks, rejection in refused if not placed.issuperset(sinks)]
    found.sort(key=lambda item: max(order[item[2].projections[role].node] for role in item[2].sinks))
    rejected.extend(_disconnected(coupling, taken))
    rejected.extend(_unreadable(coupling))
    rejected.extend(_called(model))
    rejected.extend(convolved(model.graph))
    sites, regions = _merge_calls(found)
    names = name_sites(sites, [regions[i][0] for i in range(len(sites))])
    named = tuple(replace(site, name=name) for site, name in zip(sites, names, strict=True))
    tensors = [tensor for _, tensor in parameters_of(model)]
    numbers, size = sum(int(tensor.size) for tensor in tensors), sum(int(tensor.nbytes) for tensor in tensors)
    held = held_parameters(model.graph, named, [region for several in regions.values() for region in several])
    table = SiteTable(named, tuple(_name_rejections(rejected)), numbers, size, held)
    return Discovery(table, {site.name: tuple(regions[i]) for i, site in enumerate(named)}, model, coupling)


_Index = dict[int, list[Projection]]


def _index(coupling: Coupling) -> tuple[_Index, _Index]:
    """Leaf factor -> the projections that make it, and those that contract it."""
    makers: _Index = defaultdict(list)
    readers: _Index = defaultdict(list)
    for projection in coupling.projections:
        for leaf in dict.fromkeys(coupling.leaves(projection.n)):
            makers[leaf].append(projection)
        for leaf in dict.fromkeys(coupling.leaves(projection.k or ())):
            readers[leaf].append(projection)
    return makers, readers


def _component(
    coupling: Coupling, sink: Projection, makers: _Index, readers: _Index, *, frozen_too: bool
) -> tuple[list[Projection], list[Projection]] | None:
    """The projections that a sink's hidden factors connect; None where there are none or too many."""

    def free(factors: Iterable[int]) -> list[int]:
        return [leaf for leaf in coupling.leaves(factors) if frozen_too or coupling.frozen(leaf) is None]

    todo = free(sink.k or ())
    if not todo:
        return None
    seen = set(todo)
    sources: dict[Projection, None] = {}
    sinks: dict[Projection, None] = {sink: None}
    while todo:
        leaf = todo.pop()
        if len(makers.get(leaf, ())) + len(readers.get(leaf, ())) > _LIMIT:
            return None  # before walking along all of a deep model's residual stream, once a sink
        for projection in makers.get(leaf, ()):
            if projection not in sources:
                sources[projection] = None
                fresh = [f for f in free(projection.n) if f not in seen]
                seen.update(fresh)
                todo.extend(fresh)
        for projection in readers.get(leaf, ()):
            if projection not in sinks:
                sinks[projection] = None
                fresh = [f for f in free(projection.k or ()) if f not in seen]
                seen.update(fresh)
                todo.extend(fresh)
        if len(sources) + len(sinks) > _LIMIT:
            return None
    return (list(sources), list(sinks)) if sources else None


def _build(candidate: Found, region: Region) -> tuple[Site, Region]:
    """Members, riders and frozen factors of a candidate."""
    coupling = region.coupling
    riders, uniform, loose = riders_of(region, candidate.kind)
    region.riders.extend(riders)
    members = members_of(region)
    sizes: dict[str, int] = {}
    frozen: dict[str, str] = {}
    wanted = {name for names in AXIS_FACTORS.values() for name in names}
    for leaf, name in region.names.items():
        size = coupling.size(leaf).value
        if size is None:
            raise NotASite("a hidden axis has no fixed size")
        if name in wanted:
            sizes[name] = size
            reason = coupling.frozen(leaf) or loose.get(name)
            if reason is not None:
                frozen[name] = reason
    if candidate.kind == "msa":
        sizes.setdefault("head", 1)
    params = {p.view.param for p in region.projections.values()}
    params.update(v for r in riders if r.role is not None and (v := r.node.inputs[r.position]) is not None)
    for param in params:
        if param in coupling.captured or param.is_graph_output() or param.is_graph_input():
            how = "a subgraph captures" if param in coupling.captured else "the graph's interface has"
            frozen.update(dict.fromkeys(sizes, f"{how} its parameter {param.name}"))
    names: tuple[str, ...] = ("hidden", "head", "qk", "vo", "vo2")
    ordered = {name: sizes[name] for name in names if name in sizes}
    computed = frozenset(name for name in ordered for rider in riders if rider.role is None and carries(rider.layout, (name,)))
    site = Site("", candidate.kind, members, ordered, frozen, candidate.form, 1, uniform, computed)
    return site, region


def _merge_calls(found: list[tuple[Found, Site, Region]]) -> tuple[list[Site], dict[int, list[Region]]]:
    """Call-sites that read the same weights are one site."""
    sites: list[Site] = []
    regions: dict[int, list[Region]] = defaultdict(list)
    places: dict[object, int] = {}
    for _, site, region in found:
        key = tuple((m.role, m.param, m.axis, m.start, m.runs, m.factors) for m in site.members.values())
        if key in places:
            at = places[key]
            sites[at] = replace(
                sites[at],
                calls=sites[at].calls + 1,
                frozen={**site.frozen, **sites[at].frozen},
                uniform=sites[at].uniform | site.uniform,
                ordered=sites[at].ordered | site.ordered,
            )
        else:
            at = places[key] = len(sites)
            sites.append(site)
        regions[at].append(region)
    return sites, regions


def held_parameters(graph: ir.Graph, sites: Iterable[Site], regions: Iterable[Region]) -> frozenset[str]:
    """Names of the sites' parameters that something reads which is none of these regions."""
    own = {(projection.node, 1) for region in regions for projection in region.projections.values()}
    own |= {(rider.node, rider.position) for region in regions for rider in region.riders}
    names = {member.param for site in sites for member in site.members.values()}
    made = [value for node in graph if node.op_type == "Constant" for value in node.outputs]
    found: set[str] = set()
    for param in (value for value in (*graph.initializers.values(), *made) if value.name in names):
        pending = [param]
        while pending:
            value = pending.pop()
            if value.is_graph_output():
                found.add(str(param.name))
            for node, index in value.uses():
                if (node, index) in own:
                    continue
                if index == 0 and node.op_type in VIEWS:
                    pending.extend(node.outputs)
                elif any(output.uses() or output.is_graph_output() for output in node.outputs):
                    found.add(str(param.name))
    return frozenset(found)


def _disconnected(coupling: Coupling, taken: set[Projection]) -> Iterable[Rejection]:
    """What would be a site if an operator inside it had a rule: its sink has no factor in common with its sources."""
    nodes = coupling.projection_of
    for sink in coupling.projections:
        leaves = coupling.leaves(sink.k or ())
        reason = next((r for leaf in leaves if (r := coupling.frozen(leaf))), None)
        if sink in taken or not leaves or reason is None:
            continue
        sources = origins(coupling, sink.x, nodes)
        out = sink.node.outputs[0]
        ffn = 1 <= len(sources) <= 2 and all(is_residual(p.x, out) for p in sources)
        if ffn or (len(sources) == 3 and attends(coupling, sink, nodes)):
            params = tuple(str(p.view.param.name) for p in (*sources, sink))
            yield Rejection("", reason, tuple(str(p.node.name or p.node.outputs[0].name) for p in (*sources, sink)), params)


def _unreadable(coupling: Coupling) -> Iterable[Rejection]:
    """Weights and operators that no rule reads: quantised products, weights computed in the graph or given by the caller."""
    for node, reason in coupling.opaque_weights.items():
        weight = node.inputs[1]
        params = (str(weight.name),) if weight is not None and weight.is_initializer() else ()
        yield Rejection("", reason, (str(node.name or node.outputs[0].name),), params)
    for node in coupling.graph:
        name = str(node.name or node.outputs[0].name)
        if node.op_type in QUANTISED:
            yield Rejection("", f"quantised weight ({node.op_type})", (name,))
        elif node.op_type in ("GroupQueryAttention", "PackedAttention") or (
            node.op_type == "Attention" and node.domain == "com.microsoft"
        ):
            reason = next(
                (r for f in (coupling.axes(node.outputs[0]) or ()) for x in coupling.leaves(f) if (r := coupling.frozen(x))), ""
            )
            yield Rejection("", reason or f"{node.op_type} is not followed", (name,))
        elif graphs_in(node) and not coupling.aside(node):
            yield Rejection("", f"control flow ({node.op_type}) is carried through untouched", (name,))


def _called(model: ir.Model) -> Iterable[Rejection]:
    """Functions of the model's own, whose inside is not followed."""
    callers: dict[ir.OperatorIdentifier, list[str]] = defaultdict(list)
    for node in model.graph:
        if node.op_identifier() in model.functions:
            callers[node.op_identifier()].append(str(node.name or node.outputs[0].name))
    for (_, name, _), nodes in callers.items():
        reason = f"what the model's function {name} computes is not followed; onnx.inliner puts it into the graph"
        yield Rejection("", reason, tuple(nodes))


def _name_rejections(rejected: list[Rejection]) -> Iterable[Rejection]:
    for item in rejected:
        dotted = next((p.removesuffix(".weight") for p in item.params if "." in p), None)
        yield replace(item, name=dotted or (item.nodes[0] if item.nodes else "?"))
