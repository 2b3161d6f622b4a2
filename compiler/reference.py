"""The reference: the original model with the plan applied by values only, no shape changed.

It is what a compiled model is compared with, so it is made in the plainest way: parameters are replaced, nodes stay. Where the
model ties what the plan treats differently, the tie is forked first, so that every site reads its own values::

    P ── MatMul (site a)            P   ── MatMul (site a)
    └─ Transpose ─ MatMul (site b)  P_b ── Transpose' ─ MatMul (site b)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from inarch.compiler.values import SiteValues, parameter_tensors
from inarch.structure.constants import constant
from inarch.structure.errors import LoweringError, ModelError
from inarch.structure.lowered import ResolvedPlan
from inarch.structure.nodes import every_node, graphs_in
from inarch.structure.sites import SiteTable
from inarch.structure.units import Indices

Slot = tuple[ir.Node, int]
"""One input of one node."""

Uses = Callable[[str], Mapping[str, Sequence[Slot]]]
"""Site name -> role -> the node inputs through which the site reads that member, in the original model."""

_Claim = tuple[str, str]
"""(site name, role)."""


_ANY = -2
"""Origin of an index that a reader does not look at."""


@dataclass
class _Fork:
    """One set of values that a parameter takes, and who reads it.

    Attributes:
        claims: the members read.
        slots: through which inputs.
        origins: axis -> where each index of it gets its values from (:meth:`SiteValues.origins`); :data:`_ANY` where nobody
            looks.
        changed: axes on which anything differs from the original.
    """

    claims: list[_Claim]
    slots: list[Slot]
    origins: dict[int, Indices]
    changed: set[int]

    def absorb(self, other: _Fork) -> bool:
        """Take in readers that want nothing different; False, and nothing happens, where they do."""
        axes = set(self.origins) | set(other.origins)
        if len(axes) > 1 and (self.changed or other.changed):
            return False  # who reads along one axis sees every change along the other
        for axis, mine in self.origins.items():
            theirs = other.origins.get(axis, mine)
            if ((mine != theirs) & (mine != _ANY) & (theirs != _ANY)).any():
                return False
        for axis, theirs in other.origins.items():
            mine = self.origins.get(axis, theirs)
            self.origins[axis] = np.where(mine == _ANY, theirs, mine)
        self.claims += [claim for claim in other.claims if claim not in self.claims]
        self.slots += other.slots
        self.changed |= other.changed
        return True


def apply_by_values(model: ir.Model, table: SiteTable, resolved: ResolvedPlan, uses: Uses | None = None) -> ir.Model:
    """Apply a plan by values: pruned vectors and biases are zero, shared vectors are their root's.

    The new parameters are lazy: each is computed when it is written or read, and then forgotten, so at most three
    times the largest tensor is held. What would make one impossible (NaN, another dtype) is refused here, not when it is written.

    Args:
        model: the original; neither it nor its tensors change.
        table: its sites.
        resolved: the plan, bound to them.
        uses: who reads which member (``Discovery.uses``), needed to fork ties. Without it every reader of a parameter sees
            every change to it.

    Returns:
        A new model with the same nodes, names, inputs and outputs, and more initializers where ties had to be forked.

    Raises:
        ModelError: a changed member is missing, not floating-point, or holds NaN or Inf.
        LoweringError: members that are read through one input want different values of it.
    """
    reference = model.clone()
    values = SiteValues(model, table, resolved)
    slots = _SlotIndex(uses, dict(zip(every_node(model.graph), every_node(reference.graph), strict=True)))
    claims: dict[str, list[_Claim]] = {}
    for site in table.sites:
        for role, member in site.members.items():
            claims.setdefault(member.param, []).append((site.name, role))
    for param, members in claims.items():
        if any(values.edit(*claim) is not None for claim in members):
            _change(reference, param, members, values, slots)
    return reference


def carry_over(reference: ir.Model, canonical: ir.Model, original: ir.Model) -> ir.Model:
    """The reference on the original graph, so that what canonicalising did to the nodes is compared as well.

    Args:
        reference: :func:`apply_by_values` of the canonical model.
        canonical: a model of the original's parameters, by the same names, with other nodes.
        original: the model as the user has it; it is not changed.

    Returns:
        A copy of the original with the reference's parameters. Where ties had to be forked, which has no place in the original's
        nodes, the reference itself.
    """
    if set(reference.graph.initializers) - set(parameter_tensors(canonical)):
        return reference
    result = original.clone()
    before = parameter_tensors(canonical)
    for name, value in reference.graph.initializers.items():
        if value.const_value is not before[name]:
            _parameter(result, name).const_value = value.const_value
    return result


class _SlotIndex:
    """Slots of members in the cloned model, looked up once a site."""

    def __init__(self, uses: Uses | None, twin: Mapping[ir.Node, ir.Node]) -> None:
        self._uses = uses
        self._twin = twin
        self._cache: dict[str, Mapping[str, Sequence[Slot]]] = {}

    def of(self, claim: _Claim) -> list[Slot] | None:
        """Slots through which a site reads a member; None where nobody knows."""
        site, role = claim
        if self._uses is None:
            return None
        if site not in self._cache:
            self._cache[site] = self._uses(site)
        return [(self._twin[node], index) for node, index in self._cache[site].get(role, ())]


def _change(model: ir.Model, param: str, claims: list[_Claim], values: SiteValues, slots: _SlotIndex) -> None:
    """Give one parameter its new values, forking it where its readers differ."""
    for claim in claims:
        values.check(*claim)
    value = _parameter(model, param)
    readers: dict[Slot, list[_Claim]] = {}
    for claim in claims:
        claimed = slots.of(claim)
        if claimed is None:
            _wanted(claims, values, whole=True)
            value.const_value = _edited(value, claims, values)
            return
        if not claimed and _wanted([claim], values, whole=True).changed:
            raise LoweringError(f"nothing is known to read {param!r} as its {claim[1]!r}", where=claim[0])
        for slot in claimed:
            readers.setdefault(slot, []).append(claim)
    forks: list[_Fork] = []
    for slot, read in readers.items():
        wanted = _wanted(read, values, whole=slot[0].inputs[slot[1]] is value)
        wanted.slots.append(slot)
        if not any(fork.absorb(wanted) for fork in forks):
            forks.append(wanted)
    new = [fork for fork in forks if fork.changed]
    if len(new) == len(forks) and not _read_elsewhere(value, set(readers)):
        # Nobody wants the parameter as it was, so its name stays with the first readers: an untied model keeps its names. The
        # others are forked first, from the tensor as it still is.
        keeper = new.pop(0)
        for fork in new:
            _fork(model, value, fork, values)
        value.const_value = _edited(value, keeper.claims, values)
    else:
        for fork in new:
            _fork(model, value, fork, values)


def _parameter(model: ir.Model, name: str) -> ir.Value:
    """The parameter as an initializer; a Constant node is turned into one.

    Raises:
        ModelError: the model has no such parameter.
    """
    value = model.graph.initializers.get(name)
    if value is not None:
        return value
    for node in model.graph:
        old = node.outputs[0] if node.op_type == "Constant" else None
        if old is not None and old.name == name and (tensor := constant(old)) is not None:
            old.name = f"{name}_constant"
            new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor)
            model.graph.register_initializer(new)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            return new
    raise ModelError(f"the model has no parameter {name!r}")


def _wanted(claims: Sequence[_Claim], values: SiteValues, *, whole: bool) -> _Fork:
    """What members read through one input make of their parameter.

    Args:
        claims: the members.
        values: the plan by values.
        whole: whether the input is the parameter itself, so that the reader also sees what no member claims.

    Raises:
        LoweringError: two of the members want different values at one place.
    """
    fork = _Fork(list(claims), [], {}, set())
    for site, role in claims:
        member = values.member(site, role)
        own = values.identity(site, role)
        origins = fork.origins.setdefault(member.axis, np.full(len(own), _ANY))
        mine = values.origins(site, role)
        span = member.positions
        contradicted = (origins[span] != _ANY) & (origins[span] != mine)
        if contradicted.any():
            others = ", ".join(f"{name} ({part})" for name, part in claims)
            index = int(span[np.flatnonzero(contradicted)[0]])
            raise LoweringError(
                f"{others} read {member.param!r} through one input, and the plan wants different values at index {index}",
                where=site,
                hint="give them the same decision",
            )
        origins[span] = mine
        if (mine != own[span]).any():
            fork.changed.add(member.axis)
    if whole:
        for site, role in claims:
            axis = values.member(site, role).axis
            fork.origins[axis] = np.where(fork.origins[axis] == _ANY, values.identity(site, role), fork.origins[axis])
    return fork


def _edited(value: ir.Value, claims: Sequence[_Claim], values: SiteValues, name: str | None = None) -> ir.LazyTensor:
    """The parameter's tensor with the members' changes, computed when it is asked for and not kept."""
    tensor = value.const_value
    if tensor is None:
        raise ModelError(f"parameter {value.name!r} has no values", hint="load the model together with its external data")
    label = name or value.name
    changing = [claim for claim in claims if values.edit(*claim) is not None]

    def compute() -> ir.TensorProtocol:
        array = np.array(tensor.numpy())
        for site, role in changing:
            values.apply(array, site, role)
        return ir.Tensor(array, dtype=tensor.dtype, name=label)

    return ir.LazyTensor(compute, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=label)


def _read_elsewhere(value: ir.Value, claimed: set[Slot]) -> bool:
    """Whether anything but the claimed slots depends on a parameter, as it is or through views of it."""
    if value.is_graph_output():
        return True
    for node, index in value.uses():
        if (node, index) in claimed:
            continue
        if not _is_view(node) or any(_read_elsewhere(output, claimed) for output in node.outputs):
            return True
    return False


_CUTS = frozenset("Slice Split SplitToSequence SequenceAt Gather Reshape Squeeze Unsqueeze".split())
"""Operators whose other inputs say where, and not what."""


def _is_view(node: ir.Node) -> bool:
    """Whether a node computes from constants alone, as the Transpose, Split or Gather between a parameter and its reader does.

    Where it cuts may come from elsewhere: exporters compute the bounds of a packed weight from the width of an activation.
    O(#ancestors); nodes with subgraphs are no views.
    """
    if graphs_in(node):
        return False
    pending = [node]
    seen = {node}
    while pending:
        step = pending.pop()
        for value in step.inputs[:1] if step.op_type in _CUTS else step.inputs:
            if value is None or value.is_initializer():
                continue
            producer = value.producer()
            if producer is None:
                return False
            if producer not in seen:
                seen.add(producer)
                pending.append(producer)
    return True


def _fork(model: ir.Model, value: ir.Value, fork: _Fork, values: SiteValues) -> None:
    """Give some readers of a parameter an initializer of their own, through copies of the views they read it by.

    Raises:
        LoweringError: a reader does not read the parameter through views alone.
    """
    site, role = fork.claims[0]
    name = _free_name(model, f"{value.name}.{site}.{role}")
    own = ir.Value(
        name=name,
        type=value.type,
        shape=value.shape.copy() if value.shape is not None else None,
        const_value=_edited(value, fork.claims, values, name),
    )
    model.graph.register_initializer(own)
    copies: dict[ir.Value, ir.Value] = {value: own}
    for node, index in fork.slots:
        read = node.inputs[index]
        copy = _copy_views(model, read, copies) if read is not None else None
        if copy is None or copy is read:
            raise LoweringError(
                f"input {index} of node {node.name!r} does not read {value.name!r} through views alone; the tie cannot be forked",
                where=site,
                hint="leave the tied site out of the plan, or decide alike for all sites that are tied",
            )
        node.replace_input_with(index, copy)


def _copy_views(model: ir.Model, value: ir.Value | None, copies: dict[ir.Value, ir.Value]) -> ir.Value | None:
    """The value computed from the forked parameter; itself where it does not depend on it."""
    if value is None or value in copies:
        return None if value is None else copies[value]
    node = value.producer()
    if node is None or not _is_view(node):
        return value
    inputs = [_copy_views(model, read, copies) for read in node.inputs]
    if all(new is old for new, old in zip(inputs, node.inputs, strict=True)):
        copies[value] = value
        return value
    clone = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        overload=node.overload,
        num_outputs=len(node.outputs),
        version=node.version,
        name=f"{node.name}_{_tail(copies)}" if node.name else None,
        metadata_props=dict(node.metadata_props),
    )
    for old, new in zip(node.outputs, clone.outputs, strict=True):
        new.name = _free_name(model, f"{old.name}_{_tail(copies)}")
        new.type = old.type
        new.shape = old.shape.copy() if old.shape is not None else None
        copies[old] = new
    model.graph.insert_after(node, clone)
    return copies[value]


def _tail(copies: Mapping[ir.Value, ir.Value]) -> str:
    """What tells one fork's nodes and values from another's: the forked parameter's own name."""
    return next(iter(copies.values())).name or "fork"


def _free_name(model: ir.Model, wanted: str) -> str:
    """A name that no value of the main graph bears."""
    taken = set(model.graph.initializers) | {value.name for value in model.graph.inputs}
    taken |= {output.name for node in every_node(model.graph) for output in node.outputs}
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    return name
