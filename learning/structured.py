"""A plan on an nn.Module: parameters that are truly tied and truly smaller, and the module computed from them.

Every weight vector that several units use is one row of one parameter; a pruned unit has none. The module's own forward pass runs
on weights put together from these rows, zeros where nothing is kept, so that any module can be structured, whatever it does with
its weights, and equals the reference (the plan applied by values) by construction. The smaller matrix products are the compiled
model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from inarch.learning.unit_rows import Key, UnitRows
from inarch.structure.demand import AxisDemand, Demand, demand_of, wanted_positions
from inarch.structure.errors import LoweringError
from inarch.structure.plan import Plan
from inarch.structure.planners.weights import tied_sites
from inarch.structure.resolve import resolve
from inarch.structure.sites import SiteTable


class Structured(nn.Module):
    """A module under a plan.

    Args:
        module: any module; it is not changed but for its mode, and serves as the skeleton of the forward pass. It stays on the
            device that it is on.
        table: the sites of the model in it.
        plan: the plan.
        prefix: where the model stands in the module: ``model.`` for one wrapped with its losses.

    Raises:
        PlanError, BindingError: the plan is not for this model.
        LoweringError: the plan changes sites with tied weights, which learning leaves alone, or a parameter is cut along two
            axes.
    """

    def __init__(self, module: nn.Module, table: SiteTable, plan: Plan, prefix: str = "") -> None:
        super().__init__()
        demand = demand_of(table, resolve(plan, table))
        _refuse_ties(demand)
        self.plan = plan
        self._skeleton = [module]  # in a list, so that its parameters are not this module's
        self._prefix = prefix
        model = module.get_submodule(prefix.rstrip(".")) if prefix else module
        self._units = UnitRows(table, model)
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        sites = [number for number, site in enumerate(table.sites) if site.name not in tied_sites(table)]
        self.rows, self.slices, self.rest = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self._axes: dict[str, list[_Axis]] = {}
        device = next(iter(parameters.values())).device
        for name, axis in demand.axes.items():
            self._axes[name] = _axes(demand, axis, sites, device)
            for one in self._axes[name]:
                rows = self._units.read((one.site, name), parameters)[one.used]
                self.rows[_spelled(f"{one.site}/{name}")] = nn.Parameter(rows.clone())
        self._cuts = _cuts(demand, sites, device)
        for cut in self._cuts:
            kept = parameters[cut.param].index_select(cut.axis, cut.kept)
            self.slices[_spelled(cut.param)] = nn.Parameter(kept.clone())
        inside = {prefix + cut.param for cut in self._cuts}
        for name, parameter in module.named_parameters():
            if name not in inside:
                self.rest[_spelled(name)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        self._shapes = {cut.param: parameters[cut.param].shape for cut in self._cuts}

    def train(self, mode: bool = True) -> Structured:
        """As of any module; the skeleton is in the same mode, since it is what runs."""
        self._skeleton[0].train(mode)
        return super().train(mode)

    def dense(self) -> dict[str, Tensor]:
        """The module's parameters in the dense layout, by name: put together from the stored ones, differentiable."""
        model: dict[str, Tensor] = {}
        for cut in self._cuts:
            kept = self.slices[_spelled(cut.param)]
            model[cut.param] = kept.new_zeros(self._shapes[cut.param]).index_copy(cut.axis, cut.kept, kept)
        rows: dict[Key, Tensor] = {}
        for name, axes in self._axes.items():
            if not axes:
                continue
            stored = torch.cat([self.rows[_spelled(f"{one.site}/{name}")] for one in axes])
            for one in axes:
                empty = stored.new_zeros(one.size, stored.shape[1])
                rows[one.site, name] = empty.index_copy(0, one.units, stored[one.source])
        model |= self._units.write(rows, {}, model)
        result = {self._prefix + name: value for name, value in model.items()}
        for name, parameter in self.rest.items():
            result[_meant(name)] = parameter
        return result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward pass on the weights of :meth:`dense`."""
        return functional_call(self._skeleton[0], self.dense(), args, kwargs)

    @torch.no_grad()
    def write_back(self, module: nn.Module) -> None:
        """Give a module of the skeleton's kind these weights, in the dense layout."""
        parameters = dict(module.named_parameters())
        for name, value in self.dense().items():
            parameters[name].copy_(value)


@dataclass(frozen=True, eq=False)
class _Axis:
    """How one axis's rows are put together.

    Attributes:
        site: its site.
        size: units.
        used: [n] its units that are stored, since somebody's value comes from them.
        units: [k] its units that are wanted.
        source: [k] where each finds its row among the stored rows of all axes of the name.
    """

    site: str
    size: int
    used: Tensor
    units: Tensor
    source: Tensor


def _axes(demand: Demand, axis: AxisDemand, sites: Sequence[int], device: torch.device) -> list[_Axis]:
    mine = [number for number in axis.sites if number in sites]
    stored = np.zeros(len(axis.owner), np.bool_)
    for number in mine:
        span = slice(axis.offset[number], axis.offset[number] + len(axis.want[number]))
        stored[span] = axis.used[span]
    place = np.cumsum(stored) - 1
    result = []
    for number in mine:
        start, want = axis.offset[number], axis.want[number]
        used, units = np.flatnonzero(stored[start : start + len(want)]), np.flatnonzero(want)
        found = (used, units, place[axis.root[number][units]])
        result.append(_Axis(demand.table.sites[number].name, len(want), *(torch.from_numpy(x).to(device) for x in found)))
    return result


@dataclass(frozen=True, eq=False)
class _Cut:
    """A parameter of which only part is stored: positions along one axis. Weight vectors are stored as rows, so of a matrix only
    what no site holds is left."""

    param: str
    axis: int
    kept: Tensor


def _cuts(demand: Demand, sites: Sequence[int], device: torch.device) -> list[_Cut]:
    """The sites' parameters, and what of each is stored outside the rows.

    Raises:
        LoweringError: a parameter is cut along two axes.
    """
    axes: dict[str, int] = {}
    kept: dict[str, npt.NDArray[np.bool_]] = {}
    for number in sites:
        site = demand.table.sites[number]
        for member in site.members.values():
            if axes.setdefault(member.param, member.axis) != member.axis:
                raise LoweringError(f"{member.param!r} is cut along two axes", where=site.name)
            mask = kept.setdefault(member.param, np.ones(member.shape[member.axis], np.bool_))
            mask[member.positions] = False
            if not member.is_matrix:
                mask[wanted_positions(demand, number, member)] = True
    return [_Cut(param, axes[param], torch.from_numpy(np.flatnonzero(mask)).to(device)) for param, mask in kept.items()]


def _refuse_ties(demand: Demand) -> None:
    table = demand.table
    for name in tied_sites(table):
        number = next(n for n, site in enumerate(table.sites) if site.name == name)
        if demand.changed[number]:
            raise LoweringError(
                "the plan changes a site with tied weights", where=name, hint="compile it; it cannot be fine-tuned"
            )


def _spelled(name: str) -> str:
    """A name without dots, which torch reads as a path."""
    return name.replace(".", "|")


def _meant(name: str) -> str:
    return name.replace("|", ".")
