"""A plan on an nn.Module: parameters that are truly tied and truly smaller, and the module computed from them.

Every weight vector that several units use is one row of one parameter; a pruned unit has none. The module's own forward pass runs
on weights put together from these rows, zeros where nothing is kept, so that any module can be structured, whatever it does with
its weights, and equals the reference (the plan applied by values) by construction. The smaller matrix products are the compiled
model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inarch.learning.functional import call_with
from inarch.learning.unit_rows import Key, UnitRows
from inarch.structure.demand import Demand, demand_of, wanted_positions
from inarch.structure.errors import InarchError, LoweringError
from inarch.structure.plan import Plan
from inarch.structure.planners.weights import tied_sites
from inarch.structure.resolve import resolve
from inarch.structure.sites import Member, SiteTable


class Structured(nn.Module):
    """A module under a plan.

    What does not learn in the module does not learn here, the frozen half of a row neither. A vector that several sites read
    learns where its owner's does. Buffers (running means) are this module's own, and part of its state as far as they are the
    module's.

    Args:
        module: any module; it is not changed but for its mode, and serves as the skeleton of the forward pass. What is made of it
            is on its device, and can be moved without it.
        table: the sites of the model in it.
        plan: the plan.
        prefix: where the model stands in the module: ``model.`` for one wrapped with its losses.

    Raises:
        PlanError, BindingError: the plan is not for this model.
        LoweringError: the plan changes sites with tied weights, which learning leaves alone, or reads from them, or asks two
            things of one bias, or a parameter is cut along two axes.
    """

    def __init__(self, module: nn.Module, table: SiteTable, plan: Plan, prefix: str = "") -> None:
        super().__init__()
        demand = demand_of(table, resolve(plan, table))
        _refuse_ties(demand)
        self.plan = plan
        self._skeleton = [module]  # in a list, so that its parameters are not this module's
        model = module.get_submodule(prefix.rstrip(".")) if prefix else module
        self._units = UnitRows(table, model)
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
        learns = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
        tied = tied_sites(table)
        sites = [number for number, site in enumerate(table.sites) if site.name not in tied]
        self.rows, self.still = nn.ParameterDict(), nn.ParameterDict()
        self.slices, self.rest = nn.ParameterDict(), nn.ParameterDict()
        self._axes: list[tuple[str, list[_Axis]]] = []
        self._columns: dict[str, Tensor] = {}  # of rows whose columns lie apart: where each is, one behind the other
        device = next(iter(parameters.values())).device
        for name, axis in demand.axes.items():
            for alike in self._alike(name, [number for number in axis.sites if number in sites]):
                self._axes.append((name, _axes(demand, name, alike, device)))
                for one in self._axes[-1][1]:
                    rows = self._units.read((one.site, name), parameters)[one.used]
                    self._keep_rows(one, rows, learns)
        self._cuts = _cuts(demand, sites, parameters)
        for cut in self._cuts:
            kept = parameters[cut.param].index_select(cut.axis, cut.kept)
            self.slices[_spelled(cut.param)] = nn.Parameter(kept.clone(), learns[cut.param])
        self._shapes = {cut.param: parameters[cut.param].shape for cut in self._cuts}
        # Where a parameter has several names, the module's own list has the first.
        first = {id(parameter): name for name, parameter in module.named_parameters()}
        own = dict(model.named_parameters(remove_duplicate=False))
        self._names = {cut.param: first[id(own[cut.param])] for cut in self._cuts}
        for name, parameter in module.named_parameters():
            if name not in self._names.values():
                self.rest[_spelled(name)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        self.buffered = nn.Module()
        lasting = module.state_dict().keys()
        for name, buffer in module.named_buffers():
            self.buffered.register_buffer(_spelled(name), buffer.detach().clone(), persistent=name in lasting)
        self.train(module.training)

    def _alike(self, axis: str, sites: Sequence[int]) -> list[list[int]]:
        """Sites by the length of their rows: only these can share."""
        groups: dict[int, list[int]] = {}
        for number in sites:
            slots = self._units.slots[self._units.table.sites[number].name, axis]
            groups.setdefault(sum(slot.columns for slot in slots), []).append(number)
        return list(groups.values())

    def _keep_rows(self, one: _Axis, rows: Tensor, learns: Mapping[str, bool]) -> None:
        """Store an axis's rows [n, D]; where some of its parameters are frozen, their columns apart."""
        columns = torch.cat([torch.full((slot.columns,), learns[slot.param]) for slot in self._units.slots[one.site, one.axis]])
        learn = bool(columns.any())
        if learn and not bool(columns.all()):
            self.still[one.spelled] = nn.Parameter(rows[:, ~columns].clone(), requires_grad=False)
            self._columns[one.spelled] = torch.cat((columns.nonzero(), (~columns).nonzero())).flatten().argsort().to(rows.device)
            rows = rows[:, columns]
        self.rows[one.spelled] = nn.Parameter(rows.clone(), learn)

    def _rows_of(self, one: _Axis) -> Tensor:
        """The rows [n, D] that an axis stores."""
        rows: Tensor = self.rows[one.spelled]
        if one.spelled in self.still:
            rows = torch.cat((rows, self.still[one.spelled]), 1)[:, self._columns[one.spelled]]
        return rows

    def train(self, mode: bool = True) -> Structured:
        """As of any module; the skeleton is in the same mode, since it is what runs."""
        self._skeleton[0].train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Structured:
        """Move, as ``to`` and ``cuda`` do, what is neither parameter nor buffer, too."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it
        device = next(self.parameters()).device
        self._axes = [(name, [one.to(device) for one in axes]) for name, axes in self._axes]
        self._cuts = [replace(cut, kept=cut.kept.to(device)) for cut in self._cuts]
        self._columns = {name: order.to(device) for name, order in self._columns.items()}
        self._units.to(device)
        return self

    def dense(self) -> dict[str, Tensor]:
        """The module's parameters in the dense layout, by name: put together from the stored ones, differentiable."""
        model: dict[str, Tensor] = {}
        for cut in self._cuts:
            kept = self.slices[_spelled(cut.param)]
            model[cut.param] = kept.new_zeros(self._shapes[cut.param]).index_copy(cut.axis, cut.kept, kept)
        rows: dict[Key, Tensor] = {}
        for name, axes in self._axes:
            stored = torch.cat([self._rows_of(one) for one in axes])
            for one in axes:
                empty = stored.new_zeros(one.size, stored.shape[1])
                rows[one.site, name] = empty.index_copy(0, one.units, stored[one.source])
        model |= self._units.write(rows, {}, model)
        result = {self._names[name]: value for name, value in model.items()}
        for name, parameter in self.rest.items():
            result[_meant(name)] = parameter
        return result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward pass on the weights of :meth:`dense`, and on this module's buffers."""
        return call_with(self._skeleton[0], self.dense() | self._buffers_by_name(), args, kwargs)

    def _buffers_by_name(self) -> dict[str, Tensor]:
        return {_meant(name): buffer for name, buffer in self.buffered.named_buffers(remove_duplicate=False)}

    @torch.no_grad()
    def write_back(self, module: nn.Module) -> None:
        """Give a module of the skeleton's kind these weights, in the dense layout, and these buffers.

        Raises:
            InarchError: it has not all of them, or in other shapes; it is not changed then.
        """
        there = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
        given = self.dense() | self._buffers_by_name()
        for name, value in given.items():
            if name not in there or there[name].shape != value.shape:
                found = f"of {list(there[name].shape)}" if name in there else "none"
                raise InarchError(f"{name} is {list(value.shape)} here, and there is {found} in the module", where="write_back")
        for name, value in given.items():
            there[name].copy_(value)


@dataclass(frozen=True, eq=False)
class _Axis:
    """How one axis's rows are put together.

    Attributes:
        site, axis: its names.
        size: units.
        used: [n] its units that are stored, since somebody's value comes from them.
        units: [k] its units that are wanted or stored: what others read has its place here, also where its own head is dead.
        source: [k] where each finds its row among the stored rows of the axes that it is put together with.
    """

    site: str
    axis: str
    size: int
    used: Tensor
    units: Tensor
    source: Tensor

    @property
    def spelled(self) -> str:
        """What its rows are called among the parameters."""
        return _spelled(f"{self.site}/{self.axis}")

    def to(self, device: torch.device) -> _Axis:
        """The same on a device."""
        return replace(self, used=self.used.to(device), units=self.units.to(device), source=self.source.to(device))


def _axes(demand: Demand, name: str, sites: Sequence[int], device: torch.device) -> list[_Axis]:
    """The axes of one name and one length of rows."""
    axis = demand.axes[name]
    stored = np.zeros(len(axis.owner), np.bool_)
    for number in sites:
        span = slice(axis.offset[number], axis.offset[number] + len(axis.want[number]))
        stored[span] = axis.used[span]
    place = np.cumsum(stored) - 1
    result = []
    for number in sites:
        start, want = axis.offset[number], axis.want[number]
        mine = stored[start : start + len(want)]
        units = np.flatnonzero(want | mine)
        # What is stored here is its own root; what its site does not want has no other.
        source = np.where(mine, np.arange(start, start + len(want)), axis.root[number])[units]
        found = (np.flatnonzero(mine), units, place[source])
        result.append(_Axis(demand.table.sites[number].name, name, len(want), *(torch.from_numpy(x).to(device) for x in found)))
    return result


@dataclass(frozen=True, eq=False)
class _Cut:
    """A parameter of which only part is stored: positions along one axis. Weight vectors are stored as rows, so of a matrix only
    what no site holds is left."""

    param: str
    axis: int
    kept: Tensor


def _cuts(demand: Demand, sites: Sequence[int], parameters: Mapping[str, Tensor]) -> list[_Cut]:
    """The sites' parameters, and what of each is stored outside the rows.

    Args:
        demand: the plan.
        sites: numbers of those whose weights are not tied.
        parameters: the module's; tables that only the graph has are none of them, and stay as they are.

    Raises:
        LoweringError: a parameter is cut along two axes, or two sites want different things of one bias.
    """
    axes: dict[str, int] = {}
    members: dict[str, list[tuple[int, Member]]] = {}
    for number, site in enumerate(demand.table.sites):
        for member in site.members.values():
            if member.param not in parameters or (member.is_matrix and number not in sites):
                continue
            if axes.setdefault(member.param, member.axis) != member.axis:
                raise LoweringError(f"{member.param!r} is cut along two axes", where=site.name)
            members.setdefault(member.param, []).append((number, member))
    result = []
    for param, found in members.items():
        inside, kept, gone = (np.zeros(found[0][1].shape[axes[param]], np.bool_) for _ in range(3))
        for number, member in found:
            inside[member.positions] = True
            if member.is_matrix:
                continue
            wanted = wanted_positions(demand, number, member)
            kept[wanted] = True
            gone[np.setdiff1d(member.positions, wanted)] |= member.is_bias
        if (kept & gone).any():
            where = demand.table.sites[found[0][0]].name
            raise LoweringError(f"sites that read {param!r} together do not keep the same of it", where=where)
        positions = torch.from_numpy(np.flatnonzero(~inside | kept)).to(parameters[param].device)
        result.append(_Cut(param, axes[param], positions))
    return result


def _refuse_ties(demand: Demand) -> None:
    table = demand.table
    names = tied_sites(table)
    tied = [number for number, site in enumerate(table.sites) if site.name in names]
    for number, site in enumerate(table.sites):
        roots = [axis.owner[axis.root[number][axis.want[number]]] for axis in demand.axes.values() if number in axis.sites]
        reads = number not in tied and any(np.isin(owners, tied).any() for owners in roots)
        if reads or (number in tied and demand.changed[number]):
            what = "the plan reads from a site with tied weights" if reads else "the plan changes a site with tied weights"
            raise LoweringError(what, where=site.name, hint="compile it; it cannot be fine-tuned")


def _spelled(name: str) -> str:
    """A name without dots, which torch reads as a path, and, where it has none, one that no attribute of a module has."""
    escaped = name.replace("%", "%25").replace("|", "%7C").replace(".", "|")
    return escaped if "|" in escaped else f"|{escaped}"


def _meant(name: str) -> str:
    return name.removeprefix("|").replace("|", ".").replace("%7C", "|").replace("%25", "%")
