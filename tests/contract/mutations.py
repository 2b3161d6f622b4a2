"""Ways to break the compiler, one thing at a time, and the zoo's forms whose plans have to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler import compile as compiling
from inarch.compiler.values import MemberEdit, SiteValues
from inarch.passes import cuts, empty, region_writer, rewrite
from inarch.passes.refresh_shapes import RefreshShapes
from inarch.passes.region_writer import RegionWriter
from inarch.passes.selection import Selection
from inarch.passes.stored import Stored, as_tensor
from inarch.structure.arguments import split_sizes
from inarch.structure.graph_edit import Editor
from inarch.structure.lowered import Block, Group, LoweredPlan, ResolvedAxis, ResolvedPlan
from inarch.structure.lowering import lower
from inarch.structure.plan import Plan
from inarch.structure.resolve import resolve
from inarch.structure.sites import SiteTable
from inarch.structure.units import Indices

from tests.contract.literal import bases_of

Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]


# ---- selection: which units --------------------------------------------------------------------------------------------
def a_unit_is_stored_twice(patch: Patch) -> None:
    whole = Selection.positions

    def positions(self: Selection, factors: Any) -> Indices:
        places = whole(self, factors).copy()
        if len(places) > 1 and self.units:
            places[0] = places[1]
        return places

    patch.setattr(Selection, "positions", positions)


def heads_in_natural_order(patch: Patch) -> None:
    made = Selection.of

    def of(*args: Any) -> Selection:
        found = made(*args)
        return replace(found, heads=np.arange(len(found.heads)))

    patch.setattr(Selection, "of", staticmethod(of))


def blocks_of_a_head_in_reverse(patch: Patch) -> None:
    """A fused operator's blocks are named in another order than they are joined in."""
    joined = RegionWriter.joined

    def other(self: RegionWriter, index: int, axes: Any) -> Selection:
        found = joined(self, index, axes)
        return replace(found, units={axis: units[:, ::-1] for axis, units in found.units.items()})

    patch.setattr(RegionWriter, "joined", other)


# ---- what is stored ----------------------------------------------------------------------------------------------------
def _origins(patch: Patch, other: Callable[[SiteValues, str, str, Indices], Indices]) -> None:
    origins = SiteValues.origins
    patch.setattr(SiteValues, "origins", lambda self, site, role: other(self, site, role, origins(self, site, role)))


def any_segment_of_the_size(patch: Patch) -> None:
    _origins(patch, lambda values, site, role, found: np.zeros_like(found))


def biases_are_shared_too(patch: Patch) -> None:
    _origins(patch, lambda values, site, role, found: np.zeros_like(found) if role.endswith("_bias") else found)


def ties_are_not_forked(patch: Patch) -> None:
    def unplanned(values: SiteValues, site: str, role: str, found: Indices) -> Indices:
        return values.identity(site, role)[values.member(site, role).positions]

    _origins(patch, unplanned)


def whole_matrices_stay_as_they_were(patch: Patch) -> None:
    patch.setattr(Stored, "_untouched", lambda self, site, member: True)


def _edits(patch: Patch, other: Callable[[SiteValues, str, str, MemberEdit], MemberEdit]) -> None:
    edit = SiteValues.edit

    def edited(self: SiteValues, site: str, role: str) -> MemberEdit | None:
        found = edit(self, site, role)
        return other(self, site, role, found) if found is not None else None

    patch.setattr(SiteValues, "edit", edited)


def pruned_units_keep_their_values(patch: Patch) -> None:
    _edits(patch, lambda values, site, role, edit: replace(edit, zero=np.zeros_like(edit.zero)))


def pruned_units_keep_their_biases(patch: Patch) -> None:
    """No output shows it: the unit's other side is zero."""

    def kept(values: SiteValues, site: str, role: str, edit: MemberEdit) -> MemberEdit:
        return replace(edit, zero=edit.zero & values.member(site, role).is_matrix)

    _edits(patch, kept)


def readers_keep_their_own_vectors(patch: Patch) -> None:
    def own(values: SiteValues, site: str, role: str, edit: MemberEdit) -> MemberEdit:
        return replace(edit, source=np.full_like(edit.source, edit.own), position=np.arange(len(edit.zero)))

    _edits(patch, own)


def _readers(patch: Patch, other: Callable[[SiteValues, str, str, Indices], Indices]) -> None:
    stored = SiteValues.stored

    def read(self: SiteValues, site: str, role: str, positions: Indices, **more: Any) -> Any:
        return stored(self, site, role, other(self, site, role, positions), **more)

    patch.setattr(SiteValues, "stored", read)


def biases_are_cut_from_the_front(patch: Patch) -> None:
    _readers(patch, lambda values, site, role, at: np.arange(len(at)) if role.endswith("_bias") else at)


def riders_are_cut_from_the_front(patch: Patch) -> None:
    _readers(patch, lambda values, site, role, at: np.arange(len(at)) if role.startswith("rider") else at)


def keys_lag_behind_queries(patch: Patch) -> None:
    _readers(patch, lambda values, site, role, at: np.roll(at, 1) if role == "k" else at)


def output_rows_lag_behind_values(patch: Patch) -> None:
    _readers(patch, lambda values, site, role, at: np.roll(at, 1) if role in ("o", "down") else at)


def stored_matrices_are_not_turned(patch: Patch) -> None:
    """[N, K] weights are taken for [K, N] ones where the numbers fit."""
    reader = Stored._reader

    def read(self: Stored, *args: Any, transpose: bool = False, **more: Any) -> Callable[[], Any]:
        plain, turned = reader(self, *args, transpose=False, **more), reader(self, *args, transpose=transpose, **more)
        return lambda: np.reshape(plain(), turned().shape)

    patch.setattr(Stored, "_reader", read)


# ---- the graph ---------------------------------------------------------------------------------------------------------
def scale_of_a_fused_operator_is_derived(patch: Patch) -> None:
    patch.setattr(region_writer._Call, "_fused_attributes", lambda self, node: [])


def sizes_are_not_restored(patch: Patch) -> None:
    """What is computed from a Shape follows the new sizes: scales, reshape targets."""
    patch.setattr(
        region_writer,
        "restored_shape",
        lambda editor, anchor, node, value, old, new: editor.clone(node, [value], anchor).outputs[0],
    )


def reshape_targets_stay(patch: Patch) -> None:
    patch.setattr(cuts, "patch_target", lambda editor, shapes, node, *args, **more: node.inputs[1])


def head_counts_stay(patch: Patch) -> None:
    patch.setattr(region_writer._Call, "_count", lambda self, value, selection: self.w._heads)


def split_sizes_stay(patch: Patch) -> None:
    patch.setattr(cuts.Cuts, "split_lengths", lambda self, node, selection: split_sizes(self._shapes, node))


def slices_stay(patch: Patch) -> None:
    patch.setattr(cuts.Cuts, "_slice_inputs", lambda self, node, inputs, selection: inputs)


def _fewer_keys(patch: Patch, method: str, which: Callable[[list[Any]], list[Any]]) -> None:
    """While ``method`` runs, some blocks are left out."""
    whole, keys = getattr(region_writer._Call, method), RegionWriter.keys

    def run(self: Any, *args: Any) -> Any:
        with Patch.context() as inner:
            inner.setattr(RegionWriter, "keys", lambda writer, axis: which(keys(writer, axis)))
            return whole(self, *args)

    patch.setattr(region_writer._Call, method, run)


def one_score_product_is_dropped(patch: Patch) -> None:
    def first(keys: list[Any]) -> list[Any]:
        return [key for i, key in enumerate(keys) if key[1] is None or key[2] == 0]

    _fewer_keys(patch, "_contraction", first)


def the_last_output_product_is_dropped(patch: Patch) -> None:
    _fewer_keys(patch, "_sink", lambda keys: keys[:-1] or keys)


def output_bias_is_added_for_every_block(patch: Patch) -> None:
    """A Gemm's own bias goes into each of its blocks."""
    product = region_writer._Call._product

    def biased(self: Any, anchor: ir.Node, x: Any, *args: Any, **more: Any) -> Any:
        made = product(self, anchor, x, *args, **more)
        if self.role_of.get(anchor) in self.region.sinks and len(anchor.inputs) > 2:
            return self.editor.node(anchor, "Add", [made, anchor.inputs[2]]).outputs[0]
        return made

    patch.setattr(region_writer._Call, "_product", biased)


def tables_are_not_cut(patch: Patch) -> None:
    """Side inputs that are computed in the graph keep all heads."""
    patch.setattr(cuts.Cuts, "_gathered", lambda self, node, value, layout, selection: value)


def fused_results_are_parted_in_reverse(patch: Patch) -> None:
    part = region_writer._Call._part

    def reverse(self: Any, node: ir.Node, value: ir.Value, out: ir.Value, g: int, axis: Any, whole: Any, versions: Any) -> None:
        part(self, node, value, out, g, axis, whole, versions)
        mine = [key for key in versions if key[0] == g]
        versions.update(zip(mine, [versions[key] for key in reversed(mine)], strict=True))

    patch.setattr(region_writer._Call, "_part", reverse)


def nothing_left_is_one(patch: Patch) -> None:
    patch.setattr(empty, "as_tensor", lambda array, dtype: as_tensor(array + np.ones_like(array), dtype))


def nothing_left_loses_the_output_bias(patch: Patch) -> None:
    written, node = empty.write_empty, Editor.node

    def without(self: Editor, anchor: ir.Node, op: str, inputs: Any, *args: Any, **more: Any) -> ir.Node:
        return (
            node(self, anchor, "Identity", inputs[:1], **more) if op == "Add" else node(self, anchor, op, inputs, *args, **more)
        )

    def write(editor: Editor, region: Any) -> bool:
        with Patch.context() as inner:
            inner.setattr(Editor, "node", without)
            return written(editor, region)

    patch.setattr(rewrite, "write_empty", write)


def second_calls_are_forgotten(patch: Patch) -> None:
    """Only the first call-site of tied weights is written."""
    write = rewrite.Workpiece._write

    def first(self: Any, editor: Editor, found: Any, lowered: Any) -> None:
        regions = {**found.regions, lowered.name: found.regions[lowered.name][:1]}
        write(self, editor, replace(found, regions=regions), lowered)

    patch.setattr(rewrite.Workpiece, "_write", first)


def shapes_are_copied_and_stay(patch: Patch) -> None:
    clone = Editor.clone

    def with_shapes(self: Editor, node: ir.Node, *args: Any) -> ir.Node:
        copy = clone(self, node, *args)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.shape = old.shape
        return copy

    patch.setattr(Editor, "clone", with_shapes)
    patch.setattr(RefreshShapes, "call", lambda self, model: ir.passes.PassResult(model, modified=False))


def packed_parts_change_places(patch: Patch) -> None:
    """k is taken for v and v for k where a packed projection is taken apart, if the parts are equally large."""
    from inarch.frontends import canonicalize

    part = canonicalize._Packed.part

    def other(self: Any, anchor: ir.Node, pieces: Any, pick: int, bounds: Any = None) -> ir.Value:
        return part(self, anchor, pieces, (0, 2, 1)[pick] if pieces[1] == 3 else pick, bounds)

    patch.setattr(canonicalize._Packed, "part", other)


# ---- the lowering and the plan -----------------------------------------------------------------------------------------
def _lowered(patch: Patch, other: Callable[[LoweredPlan], LoweredPlan]) -> None:
    patch.setattr(compiling, "lower", lambda *args: other(lower(*args)))


def _blocks(plan: LoweredPlan, other: Callable[[str, str, Block], Block | None]) -> LoweredPlan:
    """Every block of every touched site replaced; None takes it away, unless it is the only one."""
    sites = []
    for site in plan.sites:
        groups = []
        for group in site.groups:
            blocks = {}
            for axis, row in group.blocks.items():
                kept = [made for block in row if (made := other(site.name, axis, block)) is not None]
                blocks[axis] = tuple(kept) if kept else row
            groups.append(Group(group.heads, blocks))
        sites.append(replace(site, groups=tuple(groups)) if site.touched else site)
    return replace(plan, sites=tuple(sites))


def a_kept_unit_is_dropped(patch: Patch) -> None:
    def fewer(site: str, axis: str, block: Block) -> Block:
        return block if block.segment is not None or block.per_head < 2 else Block(block.units[:, :-1])

    _lowered(patch, lambda plan: _blocks(plan, fewer))


def private_blocks_are_dropped(patch: Patch) -> None:
    _lowered(patch, lambda plan: _blocks(plan, lambda site, axis, block: block if block.segment is not None else None))


def a_shared_segment_is_dropped(patch: Patch) -> None:
    _lowered(patch, lambda plan: _blocks(plan, lambda site, axis, block: None if block.segment is not None else block))


def a_group_of_heads_is_dropped(patch: Patch) -> None:
    def fewer(plan: LoweredPlan) -> LoweredPlan:
        return replace(plan, sites=tuple(replace(s, groups=s.groups[:-1] or s.groups) if s.touched else s for s in plan.sites))

    _lowered(patch, fewer)


def segments_are_stored_for_each_reader(patch: Patch) -> None:
    """Equal content is not recognised: nothing is shared, and every number is right."""
    counter = iter(range(1, 10**6))
    _origins(patch, lambda values, site, role, found: found + (next(counter) << 44))


def packed_matrices_stay_beside_their_parts(patch: Patch) -> None:
    """What the plan leaves alone of a packed matrix is still read from the whole one."""
    matrix = Stored.matrix

    def viewed(self: Stored, editor: Editor, site: str, member: Any, projection: Any, *args: Any, **more: Any) -> ir.Value:
        made = matrix(self, editor, site, member, projection, *args, **more)
        packed = member.size != member.shape[member.axis]
        tensor = made.const_value
        same = tensor is not None and tuple(tensor.shape.numpy()) == tuple(projection.view.shape) and more["segment"] is None
        return projection.weight if packed and same and self._untouched(site, member) else made

    patch.setattr(Stored, "matrix", viewed)


def rows_are_stored_for_each_call(patch: Patch) -> None:
    row = Stored.row

    def again(self: Stored, editor: Editor, bias: ir.Value, rank: int) -> ir.Value | None:
        self._made.pop((bias, rank), None)
        return row(self, editor, bias, rank)

    patch.setattr(Stored, "row", again)


def nothing_left_keeps_a_unit(patch: Patch) -> None:
    patch.setattr(rewrite, "write_empty", lambda editor, region: False)


def _direct(resolved: ResolvedPlan, plan: Plan, table: SiteTable) -> ResolvedPlan:
    """Each shared unit ends at the unit that the plan names, though that may be shared itself."""
    number = {name: i for i, name in enumerate(resolved.names)}
    axes = {
        site: {name: ResolvedAxis(a.pruned, a.root_site.copy(), a.root_unit.copy()) for name, a in of_site.items()}
        for site, of_site in resolved.axes.items()
    }
    for (site, axis, unit), (base, _, other) in bases_of(plan, table).items():
        axes[site][axis].root_site[unit] = number[base]
        axes[site][axis].root_unit[unit] = other
    return ResolvedPlan(resolved.names, axes)


def chains_are_not_followed(patch: Patch) -> None:
    patch.setattr(compiling, "resolve", lambda plan, table: _direct(resolve(plan, table), plan, table))


def units_of_other_heads_are_misread(patch: Patch) -> None:
    """Where the base splits its width into other heads, each unit takes the one beside the one it was given."""

    def misread(plan: Plan, table: SiteTable) -> ResolvedPlan:
        found = resolve(plan, table)
        axes: dict[str, dict[str, ResolvedAxis]] = {}
        for number, site in enumerate(table.sites):
            axes[site.name] = {}
            for name, axis in found.axes[site.name].items():
                unit = axis.root_unit.copy()
                for other in set(axis.root_site.tolist()) - {number}:
                    taken = np.flatnonzero((axis.root_site == other) & ~axis.pruned)
                    if table.sites[other].axes[name].per_head != site.axes[name].per_head:
                        unit[taken] = np.roll(unit[taken], 1)
                axes[site.name][name] = replace(axis, root_unit=unit)
        return ResolvedPlan(found.names, axes)

    patch.setattr(compiling, "resolve", misread)


def pruned_heads_stay(patch: Patch) -> None:
    def ignored(plan: Plan, table: SiteTable) -> ResolvedPlan:
        found = resolve(plan, table)
        axes: dict[str, dict[str, ResolvedAxis]] = {}
        for name, resolved in found.axes.items():
            listed = plan.sites[name].axes if name in plan.sites else {}
            axes[name] = {}
            for axis, its in resolved.items():
                kept = next((p.kept for a, p in listed.items() if a == axis), np.arange(len(its.pruned)))
                axes[name][axis] = replace(its, pruned=~np.isin(np.arange(len(its.pruned)), kept))
        return ResolvedPlan(found.names, axes)

    patch.setattr(compiling, "resolve", ignored)


MUTATIONS: dict[Break, tuple[str, ...]] = {
    a_unit_is_stored_twice: ("encoder_relu",),
    heads_in_natural_order: ("encoder_pre_norm",),
    blocks_of_a_head_in_reverse: ("contrib_mha",),
    any_segment_of_the_size: ("two_tower",),
    biases_are_shared_too: ("two_tower",),
    ties_are_not_forked: ("tied_members",),
    whole_matrices_stay_as_they_were: ("encoder_relu",),
    pruned_units_keep_their_values: ("encoder_relu",),
    readers_keep_their_own_vectors: ("two_tower",),
    biases_are_cut_from_the_front: ("encoder_relu",),
    riders_are_cut_from_the_front: ("swin_constant_bias",),
    keys_lag_behind_queries: ("encoder_pre_norm",),
    output_rows_lag_behind_values: ("encoder_pre_norm",),
    stored_matrices_are_not_turned: ("gemm_weights",),
    scale_of_a_fused_operator_is_derived: ("attention_4d",),
    sizes_are_not_restored: ("scale_from_shape",),
    reshape_targets_stay: ("encoder_pre_norm",),
    head_counts_stay: ("attention_3d",),
    split_sizes_stay: ("rotary_half",),
    slices_stay: ("rotary_half",),
    one_score_product_is_dropped: ("two_tower",),
    the_last_output_product_is_dropped: ("two_tower",),
    output_bias_is_added_for_every_block: ("gemm_weights",),
    tables_are_not_cut: ("rotary_half",),
    fused_results_are_parted_in_reverse: ("attention_4d",),
    nothing_left_is_one: ("gqa",),
    nothing_left_loses_the_output_bias: ("gemm_weights",),
    second_calls_are_forgotten: ("tied_layers",),
    shapes_are_copied_and_stay: ("encoder_relu",),
    packed_parts_change_places: ("packed_timm",),
    segments_are_stored_for_each_reader: ("two_tower",),
    packed_matrices_stay_beside_their_parts: ("packed_split",),
    rows_are_stored_for_each_call: ("tied_layers",),
    nothing_left_keeps_a_unit: ("layer_scale",),
    a_kept_unit_is_dropped: ("encoder_relu",),
    private_blocks_are_dropped: ("two_tower",),
    a_shared_segment_is_dropped: ("two_tower",),
    a_group_of_heads_is_dropped: ("two_tower",),
    units_of_other_heads_are_misread: ("head_splits",),
    chains_are_not_followed: ("two_tower",),
    pruned_heads_stay: ("encoder_relu",),
}
"""What is broken -> the forms whose plans have to show it."""
