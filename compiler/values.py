"""The plan by values: what every stored weight vector is worth once the plan has been applied, without changing a shape.

Both the reference (:mod:`inarch.compiler.reference`) and the passes read weights through :class:`SiteValues`, so that what is
compiled and what it is compared with come from one rule:

- a pruned unit is zero, in the matrices and in the biases;
- a shared unit has, in the matrices, the weight vectors of its root at the root's own site, as the ORIGINAL model holds them
  (also where the root's site prunes that unit for itself); its biases stay its own;
- everything else is as it was.

Shapes: ``size`` is a member's positions on its parameter's axis, ``width`` the numbers at each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.structure.constants import constant
from inarch.structure.errors import LoweringError, ModelError
from inarch.structure.lowered import ResolvedPlan
from inarch.structure.sites import Member, SiteTable
from inarch.structure.units import Indices

Array = npt.NDArray[Any]

UNIT_AXES = ("hidden", "qk", "vo", "vo2")
"""Axes that a resolved plan decides on; decisions on ``head`` are folded into them."""

_CHUNK = 1 << 22
"""Numbers that are looked at together where a whole member is scanned (16 MB of fp32), so that no scan needs a second copy."""

_MAY_SHARE = "inarch inspect MODEL lists which sites may share with which"


@dataclass(frozen=True, eq=False)
class MemberEdit:
    """What the plan does to the positions of one member, relative to the member's start.

    Attributes:
        zero: [size] bool; positions that become zero.
        source: [size] int; index into ``ResolvedPlan.names`` of the site whose weight vector is taken; the own site where the
            position keeps its value.
        position: [size] int; position of that weight vector in the source site's member of the same role, relative to its start.
        own: index of the member's own site.
    """

    zero: npt.NDArray[np.bool_]
    source: Indices
    position: Indices
    own: int

    @property
    def changed(self) -> npt.NDArray[np.bool_]:
        """[size] bool; positions whose value the plan decides on."""
        return self.zero | self.borrowed

    @property
    def borrowed(self) -> npt.NDArray[np.bool_]:
        """[size] bool; positions that take a weight vector from elsewhere."""
        here = np.arange(len(self.zero))
        taken: npt.NDArray[np.bool_] = ~self.zero & ((self.source != self.own) | (self.position != here))
        return taken


def all_finite(array: Array) -> bool:
    """Whether an array holds neither NaN nor Inf; fp16 and bf16 are looked at as bits, so nothing is converted."""
    if array.dtype.itemsize == 2:
        exponent = np.uint16(0x7C00 if array.dtype == np.float16 else 0x7F80)
        bits = array.view(np.uint16)
        return not bool(((bits & exponent) == exponent).any())
    # min and max carry a NaN and show an Inf, in one pass each and without a temporary.
    return array.size == 0 or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def parameter_tensors(model: ir.Model) -> Mapping[str, ir.TensorProtocol]:
    """Name -> tensor of everything in the main graph that can be a parameter: initializers and outputs of Constant nodes."""
    tensors: dict[str, ir.TensorProtocol] = {
        name: value.const_value for name, value in model.graph.initializers.items() if value.const_value is not None
    }
    for node in model.graph:
        known = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
        if known and not any(attribute.is_ref() for attribute in node.attributes.values()):
            name, tensor = node.outputs[0].name, constant(node.outputs[0])
            if name is not None and tensor is not None:
                tensors.setdefault(name, tensor)
    return tensors


class SiteValues:
    """Reads members after the plan has been applied by values; nothing is computed before it is asked for.

    Args:
        model: the ORIGINAL model; only its tensors are read. They are looked up now, so the graph may be rewritten afterwards.
        table: its sites.
        resolved: the plan, bound to them.
    """

    def __init__(self, model: ir.Model, table: SiteTable, resolved: ResolvedPlan) -> None:
        self._tensors = parameter_tensors(model)
        self._table = table
        self._resolved = resolved
        self._number = {name: i for i, name in enumerate(resolved.names)}
        self._edits: dict[tuple[str, str], MemberEdit | None] = {}
        self._finite: dict[tuple[str, str], bool] = {}
        self._homes: dict[tuple[str, int], int] = {}

    def member(self, site: str, role: str) -> Member:
        """The member of a site.

        Raises:
            LoweringError: the site has no such member.
        """
        member = self._table[site].members.get(role)
        if member is None:
            message = f"the site has no member {role!r}, whose weight vectors are to be shared"
            raise LoweringError(message, where=site, hint=_MAY_SHARE)
        return member

    def original(self, site: str, role: str) -> Array:
        """The whole parameter that holds a member, as the original model stores it (mapped where it is external).

        Raises:
            ModelError: the model has no such parameter, or it is not a floating-point tensor.
        """
        member = self.member(site, role)
        tensor = self._tensors.get(member.param)
        if tensor is None:
            raise ModelError(f"the model has no parameter {member.param!r}", where=site)
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
            message = f"parameter {member.param!r} is {tensor.dtype.name}; only floating-point weights change"
            raise ModelError(message, where=site, hint="compile first and quantise then, or leave the site out of the plan")
        if tuple(tensor.shape) != member.shape:
            shape = list(tensor.shape)
            raise ModelError(f"parameter {member.param!r} has shape {shape}, its site expects {list(member.shape)}", where=site)
        return tensor.numpy()

    def edit(self, site: str, role: str) -> MemberEdit | None:
        """What the plan does to a member; None where it leaves every position as it is.

        Raises:
            LoweringError: a weight vector is to come from a member that has none of that kind.
        """
        key = (site, role)
        if key not in self._edits:
            self._edits[key] = self._compute_edit(site, role)
        return self._edits[key]

    def origins(self, site: str, role: str) -> Indices:
        """Where each position of a member gets its value from, as numbers that are equal where the values are the same place.

        Two members of one parameter want the same of it where their origins are equal, whichever sites the plan names.

        Returns:
            Shape [size], int64: -1 for zero, else a number for (parameter, axis, position on it).
        """
        member = self.member(site, role)
        edit = self.edit(site, role)
        if edit is None:
            return self._home(member) + member.positions
        result = np.full(member.size, -1, dtype=np.int64)
        for number in np.unique(edit.source[~edit.zero]):
            root = self.member(self._resolved.names[number], role)
            chosen = ~edit.zero & (edit.source == number)
            result[chosen] = self._home(root) + root.positions[edit.position[chosen]]
        return result

    def identity(self, site: str, role: str) -> Indices:
        """:meth:`origins` of a parameter's whole axis where no plan touches it: shape [length of the axis]."""
        member = self.member(site, role)
        return self._home(member) + np.arange(member.shape[member.axis], dtype=np.int64)

    def check(self, site: str, role: str) -> None:
        """Refuse now what :meth:`stored` would refuse later.

        A changed member must be finite, and so must the weight vectors that it takes, and both be of one dtype.

        Raises:
            ModelError: NaN or Inf, or no such floating-point parameter.
            LoweringError: weight vectors of another dtype.
        """
        edit = self.edit(site, role)
        if edit is None:
            return
        self._refuse_unless_finite(site, role)
        mine = self.original(site, role)
        borrowed = edit.borrowed
        for number in np.unique(edit.source[borrowed]):
            base = self._resolved.names[number]
            self._refuse_unless_finite(base, role, edit.position[borrowed & (edit.source == number)])
            theirs = self.original(base, role)
            if theirs.dtype != mine.dtype:
                raise LoweringError(
                    f"{self.member(site, role).param!r} is {mine.dtype.name}, and {self.member(base, role).param!r} of {base}, "
                    f"whose weight vectors it takes, is {theirs.dtype.name}",
                    where=site,
                    hint="share among sites of one precision, or export the model in one",
                )

    def stored(self, site: str, role: str, positions: Indices, *, relative: bool = True) -> Array:
        """Part of a member after the plan by values, in the parameter's own layout and dtype.

        Args:
            site: site name.
            role: the member's role.
            positions: positions on the member's axis, in the order they are wanted.
            relative: True where they count from the member's start, False where they are positions of the parameter's axis
                (as :meth:`Member.index` returns them).

        Returns:
            A new array of the parameter's shape, with ``len(positions)`` on the member's axis. Besides it, at most the weight
            vectors that come from other sites are held, one source site at a time.

        Raises:
            ModelError: the member changes and holds NaN or Inf.
            LoweringError: as :meth:`edit` and :meth:`check`.
        """
        member = self.member(site, role)
        wanted = np.asarray(positions, dtype=np.int64)
        if not relative:
            place = np.full(member.shape[member.axis], -1, dtype=np.int64)
            place[member.positions] = np.arange(member.size)
            wanted = place[wanted]
        array = self.original(site, role)
        edit = self.edit(site, role)
        result = _take(array, member.positions[wanted], member.axis)
        if edit is not None:
            self.check(site, role)
            self._overwrite(result, member, role, edit, wanted, np.arange(len(wanted)))
        return result

    def matrix(self, site: str, role: str) -> Array:
        """A whole member after the plan by values, in the parameter's own layout: :meth:`stored` of every position."""
        return self.stored(site, role, np.arange(self.member(site, role).size))

    def vectors(self, site: str, role: str, positions: Indices, *, relative: bool = True) -> Array:
        """:meth:`stored`, with one row a position whatever the parameter's layout: shape [len(positions), width]."""
        member = self.member(site, role)
        return as_vectors(self.stored(site, role, positions, relative=relative), member.axis)

    def apply(self, array: Array, site: str, role: str) -> None:
        """Write the plan's values of one member into a whole parameter, in place.

        Args:
            array: the parameter, in the shape it is stored, writable.
            site: site name.
            role: the member's role.

        Raises:
            ModelError: the member changes and holds NaN or Inf.
            LoweringError: as :meth:`edit` and :meth:`check`.
        """
        edit = self.edit(site, role)
        if edit is None:
            return
        self.check(site, role)
        member = self.member(site, role)
        everywhere = np.arange(member.size)
        self._overwrite(array, member, role, edit, everywhere, member.positions)

    def change(self, site: str) -> float:
        """||W - W_reference|| / ||W|| over every member of a site that the plan may change (Frobenius, float64).

        Raises:
            ModelError: a changed member holds NaN or Inf.
        """
        difference = norm = 0.0
        for role, member in self._table[site].members.items():
            if not (member.is_matrix or member.is_bias):
                continue
            array = self.original(site, role)
            edit = self.edit(site, role)
            step = max(1, _CHUNK // max(1, member.width))
            for first in range(0, member.size, step):
                positions = np.arange(first, min(member.size, first + step))
                before = _take(array, member.positions[positions], member.axis).astype(np.float64)
                norm += float(np.vdot(before, before))
                if edit is not None and edit.changed[positions].any():
                    before -= self.stored(site, role, positions)
                    difference += float(np.vdot(before, before))
        return float(np.sqrt(difference / norm)) if norm else 0.0

    def _home(self, member: Member) -> int:
        """A number for (parameter, axis), spaced so that positions can be added."""
        return self._homes.setdefault((member.param, member.axis), len(self._homes)) << 32

    def _compute_edit(self, site: str, role: str) -> MemberEdit | None:
        member = self.member(site, role)
        own = self._number[site]
        here = np.arange(member.size, dtype=np.int64)
        zero = np.zeros(member.size, dtype=np.bool_)
        source = np.full(member.size, own, dtype=np.int64)
        position = here.copy()
        if not (member.is_matrix or member.is_bias):
            return None
        for axis, plan in self._resolved.axes[site].items():
            if axis not in UNIT_AXES or not member.has(axis):
                continue
            index = member.relative(axis)
            zero[index[plan.pruned].reshape(-1)] = True
            if not member.is_matrix:
                continue
            units = np.arange(len(plan.pruned))
            moved = ~plan.pruned & ((plan.root_site != own) | (plan.root_unit != units))
            for number in np.unique(plan.root_site[moved]):
                chosen = np.flatnonzero(moved & (plan.root_site == number))
                positions = self._root_positions(site, member, axis, int(number), plan.root_unit[chosen])
                source[index[chosen].reshape(-1)] = number
                position[index[chosen].reshape(-1)] = positions.reshape(-1)
        edit = MemberEdit(zero, source, position, own)
        return edit if edit.changed.any() else None

    def _root_positions(self, site: str, member: Member, axis: str, number: int, units: Indices) -> Indices:
        """Positions of a root's units in the root site's member, relative to it: [units, positions a unit]."""
        base = self._resolved.names[number]
        root = self._table[base].members.get(member.role)
        if root is None or not root.has(axis):
            message = f"shares {axis} units with {base}, which has no {member.role!r} on that axis"
            raise LoweringError(message, where=site, hint=_MAY_SHARE)
        if root.width != member.width:
            message = f"weight vectors of {member.role!r} are {member.width} long, those of {base} {root.width}"
            raise LoweringError(message, where=site, hint=_MAY_SHARE)
        index = root.relative(axis)
        mine = member.size // len(self._resolved.axes[site][axis].pruned)
        if index.shape[1] != mine:
            message = f"a unit of {axis} is {mine} weight vectors of {member.role!r} here and {index.shape[1]} at {base}"
            raise LoweringError(message, where=site, hint=_MAY_SHARE)
        return index[units]

    def _overwrite(self, out: Array, member: Member, role: str, edit: MemberEdit, wanted: Indices, slots: Indices) -> None:
        """Put the plan's values for member positions ``wanted`` at indices ``slots`` of ``out``'s axis."""
        view = np.moveaxis(out, member.axis, 0)
        view[slots[edit.zero[wanted]]] = 0
        borrowed = edit.borrowed[wanted]
        for number in np.unique(edit.source[wanted[borrowed]]):
            chosen = np.flatnonzero(borrowed & (edit.source[wanted] == number))
            base = self._resolved.names[number]
            root = self.member(base, role)
            array = self.original(base, role)
            # A piece at a time: the weight vectors of a whole member would be one more copy of it.
            step = max(1, _CHUNK // max(1, member.width))
            for first in range(0, len(chosen), step):
                part = chosen[first : first + step]
                rows = as_vectors(_take(array, root.positions[edit.position[wanted[part]]], root.axis), root.axis)
                view[slots[part]] = rows.reshape(len(part), *view.shape[1:])

    def _refuse_unless_finite(self, site: str, role: str, taken: Indices | None = None) -> None:
        """Refuse a member that holds NaN or Inf, or, where only ``taken`` positions of it are read, one that does so there."""
        key = (site, role)
        member = self.member(site, role)
        array = self.original(site, role)
        if key not in self._finite:
            span = [slice(None)] * array.ndim
            span[member.axis] = slice(member.start, member.start + member.size)
            self._finite[key] = all(all_finite(part) for part in _pieces(array[tuple(span)]))
        if self._finite[key]:
            return
        if taken is not None:
            step = max(1, _CHUNK // max(1, member.width))
            parts = (member.start + taken[first : first + step] for first in range(0, len(taken), step))
            if all(all_finite(_take(array, part, member.axis)) for part in parts):
                return
        raise ModelError(
            f"parameter {member.param!r} holds NaN or Inf, and the plan changes it or takes from it",
            where=site,
            hint="only finite weights can be shared or pruned; leave this site out of the plan",
        )


def as_vectors(array: Array, axis: int) -> Array:
    """One row for every index of ``axis``: shape [indices, everything else], a view where that is possible."""
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(moved.shape[0], -1)


def _take(array: Array, positions: Indices, axis: int) -> Array:
    """Indices of an axis as a new array; a run of indices is copied as a block, which is several times faster."""
    if len(positions) and int(positions[-1]) - int(positions[0]) == len(positions) - 1 and bool((np.diff(positions) == 1).all()):
        span = [slice(None)] * array.ndim
        span[axis] = slice(int(positions[0]), int(positions[-1]) + 1)
        return np.array(array[tuple(span)], order="C")
    return np.take(array, positions, axis=axis)


def _pieces(array: Array) -> Iterator[Array]:
    """Parts of at most about :data:`_CHUNK` numbers, along the first axis."""
    if array.ndim == 0:
        yield array.reshape(1)
        return
    step = max(1, _CHUNK // max(1, array.size // max(1, array.shape[0])))
    for first in range(0, array.shape[0], step):
        yield array[first : first + step]
