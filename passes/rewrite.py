"""What pruning and sharing have in common: sites are found in the model at hand and written as a lowered plan says."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from inarch.passes.empty import write_empty
from inarch.passes.region_writer import RegionWriter
from inarch.passes.stored import WANTED, Stored
from inarch.structure.discover import Discovery, discover
from inarch.structure.errors import PassError
from inarch.structure.graph_edit import Editor, drop_dead
from inarch.structure.lowered import Block, Group, LoweredPlan, LoweredSite
from inarch.structure.nodes import every_node
from inarch.structure.sites import Site


class Workpiece:
    """A model on its way through the passes: what is known of its sites, and the initializers made so far.

    Args:
        lowered: what to store.
        stored: makes the initializers; one for all passes, so that ties between sites of different passes stay ties.
        discovery: the sites of the model that the first pass gets; without it they are looked for.
    """

    def __init__(self, lowered: LoweredPlan, stored: Stored, discovery: Discovery | None = None) -> None:
        self.lowered = lowered
        self.stored = stored
        self._discovery = discovery

    def rewrite(self, model: ir.Model, wanted: Callable[[LoweredSite], bool]) -> bool:
        """Write every touched site that ``wanted`` picks; returns whether there was one.

        Raises:
            PassError: the model does not have the plan's sites, or a site cannot be written.
        """
        picked = [site for site in self.lowered.sites if site.touched and wanted(site)]
        if not picked:
            return False
        found = self._discovery
        if found is None or found.model is not model:
            found = discover(model)
        missing = [site.name for site in picked if site.name not in found.regions]
        if missing:
            raise PassError(
                "the model has no such site", where=missing[0], hint="canonicalise it as it was when the plan was lowered"
            )
        editor = Editor(model.graph, "inarch/")
        for lowered in picked:
            self._write(editor, found, lowered)
        _settle_names(model.graph)
        return True

    def _write(self, editor: Editor, found: Discovery, lowered: LoweredSite) -> None:
        site = found.table[lowered.name]
        for region in found.regions[lowered.name]:
            if lowered.groups or not write_empty(editor, region):
                target = lowered if lowered.groups else _one_zero_unit(site)
                RegionWriter(editor, self.stored, site, target).write(region)
            drop_dead(editor.graph, region.nodes)


def _one_zero_unit(site: Site) -> LoweredSite:
    """The smallest form of a site of which nothing is left, where the size of its result is known only to its own nodes."""
    sizes = {name: axis.per_head if axis.frozen else 1 for name, axis in site.axes.items() if name != "head"}
    blocks = {name: (Block(np.arange(size, dtype=np.int64)[None]),) for name, size in sizes.items()}
    return LoweredSite(site.name, (Group((0,), blocks),), touched=True)


def _settle_names(graph: ir.Graph) -> None:
    """Drop parameters that nothing reads any more, and give new ones the names that are free now."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
    taken = set(graph.initializers) | {str(v.name) for v in _values(graph)}
    for value in list(graph.initializers.values()):
        wanted = value.meta.get(WANTED)
        if isinstance(wanted, str) and wanted not in taken:
            old = str(value.name)
            value.name = wanted
            taken.discard(old)
            taken.add(wanted)


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    for node in every_node(graph):
        yield from node.outputs
