"""A module's weights as units: one matrix a site axis, a row for each unit, and back into the parameters they came from.

Everything that learning does to weights (gating, sharing, aligning, counting) is then a row operation. Shapes: N units on an
axis, D numbers in the weight vectors of one unit over all members (its row of up and of gate and its column of down, ...).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from inarch.structure.demand import unit_axes
from inarch.structure.errors import BindingError, LoweringError
from inarch.structure.legalise import in_head_common
from inarch.structure.sites import AXIS_FACTORS, Member, Site, SiteTable
from inarch.structure.units import Indices

Key = tuple[str, str]
"""(site name, axis name)."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where one member's part of the rows lies in its parameter.

    Attributes:
        param: name of the parameter.
        axis: the parameter's axis that the units lie on.
        index: [N, k] positions of every unit on that axis.
        width: numbers a position.
    """

    param: str
    axis: int
    index: Tensor
    width: int

    @property
    def columns(self) -> int:
        """Numbers that it adds to a row."""
        return int(self.index.shape[1]) * self.width


class UnitRows:
    """The sites of a module, tied to its parameters.

    Args:
        table: the sites, found in the module's own graph.
        module: the module whose parameters they name.

    Raises:
        BindingError: a parameter is missing (a buffer is none), or its shape is another.
    """

    def __init__(self, table: SiteTable, module: nn.Module) -> None:
        # A tied parameter is to be found under each of its names.
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self.table = table
        self.slots: dict[Key, tuple[Slot, ...]] = {}
        self.biases: dict[Key, tuple[Slot, ...]] = {}
        self.riders: dict[Key, tuple[Slot, ...]] = {}
        self._fixed: dict[Key, tuple[str, ...]] = {}
        device = next((parameter.device for parameter in parameters.values()), torch.device("cpu"))
        for site in table.sites:
            for name in unit_axes(site):
                vectors = sorted((m for m in site.on(name) if m.is_matrix), key=lambda m: m.role)
                own = [m for m in site.on(name) if m.is_bias]
                self.slots[site.name, name] = tuple(_slot(site, name, m, parameters, device) for m in vectors)
                self.biases[site.name, name] = tuple(_slot(site, name, m, parameters, device) for m in own)
                along = [m for m in site.on(name) if not m.is_matrix and not m.is_bias]
                moved = [m for m in along if m.param in parameters]
                self.riders[site.name, name] = tuple(_slot(site, name, m, parameters, device) for m in moved)
                self._fixed[site.name, name] = tuple(m.param for m in along if m not in moved)

    def to(self, device: torch.device) -> UnitRows:
        """The same with its tensors on a device; changes this one."""
        for slots in (self.slots, self.biases, self.riders):
            slots.update({key: tuple(replace(s, index=s.index.to(device)) for s in found) for key, found in slots.items()})
        return self

    def read(self, key: Key, parameters: Mapping[str, Tensor]) -> Tensor:
        """The rows [N, D] of an axis; differentiable."""
        return torch.cat([_take(slot, parameters[slot.param]) for slot in self.slots[key]], 1)

    def write(
        self, rows: Mapping[Key, Tensor], keep: Mapping[Key, Tensor], parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Parameters with new rows, and biases scaled.

        Args:
            rows: [N, D] for some axes.
            keep: [N] for some axes: what the unit's biases are multiplied by.
            parameters: where all else comes from; they are not changed.

        Returns:
            The parameters that differ, new tensors; differentiable in rows, keep and parameters.
        """
        result: dict[str, Tensor] = {}
        for key, new in rows.items():
            start = 0
            for slot in self.slots[key]:
                part = new[:, start : start + slot.columns]
                result[slot.param] = _put(slot, result.get(slot.param, parameters[slot.param]), part)
                start += slot.columns
        for key, factor in keep.items():
            for slot in self.biases[key]:
                now = result.get(slot.param, parameters[slot.param])
                result[slot.param] = _put(slot, now, _take(slot, now) * factor.to(now)[:, None])
        return result

    @torch.no_grad()
    def store(self, key: Key, rows: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite an axis's rows in the parameters themselves."""
        start = 0
        for slot in self.slots[key]:
            _store(slot, parameters[slot.param], rows[:, start : start + slot.columns])
            start += slot.columns

    @torch.no_grad()
    def permute(self, key: Key, order: Indices, parameters: Mapping[str, Tensor]) -> None:
        """Permute an axis's units, biases and riders too, in the parameters themselves (or in moments of their shapes).

        Args:
            key: the axis.
            order: the unit that comes to each place, [N].
            parameters: tensors by the parameters' names.

        Raises:
            LoweringError: something runs along the axis that cannot be moved along; nothing has changed then.
        """
        self._check_free(key, order)
        for slot in (*self.slots[key], *self.biases[key], *self.riders[key]):
            now = _take(slot, parameters[slot.param])
            _store(slot, parameters[slot.param], now[torch.from_numpy(order).to(now.device)])

    def _check_free(self, key: Key, order: Indices) -> None:
        """Refuse an order that would part units from what belongs to them and stays.

        What is no parameter stays. What runs over heads alone, or over the units of all heads alike, does not follow one axis.
        """
        site, name = self.table[key[0]], key[1]
        axis, factor = site.axes[name], AXIS_FACTORS[name][-1]
        old = np.arange(axis.size)
        stay = list(self._fixed[key]) if (order != old).any() else []
        loose = [m for m in site.members.values() if not any(m.has(other) for other in unit_axes(site))]
        if (order // axis.per_head != old // axis.per_head).any():
            stay += [m.param for m in loose if m.has("head")]
            stay += ["what is computed for each head"] if "head" in site.ordered else []
        if factor in site.ordered and (order % axis.per_head != old % axis.per_head).any():
            stay.append("what is computed for each unit")
        if in_head_common(site, name) and (order % axis.per_head != old % axis.per_head).any():
            stay += [m.param for m in loose if factor in dict(m.factors)] or ["what all heads have in common"]
        if stay:
            message = f"units cannot be permuted: {stay[0]} would not follow"
            raise LoweringError(message, where=f"{site.name}.{name}", hint="leave them in their order")

    @torch.no_grad()
    def fade(self, key: Key, keep: Tensor, fraction: float, parameters: Mapping[str, Tensor]) -> None:
        """Move an axis's biases a fraction of the way to ``keep`` times themselves, in the parameters themselves; keep is [N]."""
        for slot in self.biases[key]:
            now = _take(slot, parameters[slot.param])
            _store(slot, parameters[slot.param], torch.lerp(now, now * keep.to(now)[:, None], fraction))

    def params(self, keys: Iterable[Key]) -> list[str]:
        """Names of the parameters that the rows of these axes lie in."""
        return sorted({slot.param for key in keys for slot in (*self.slots[key], *self.biases[key])})


def may_move(site: Site, axis: str) -> bool:
    """Whether units can change places inside a head: nothing runs along them that is computed, or the same for all heads."""
    return not in_head_common(site, axis) and AXIS_FACTORS[axis][-1] not in site.ordered


def _slot(site: Site, axis: str, member: Member, parameters: Mapping[str, Tensor], device: torch.device) -> Slot:
    found = parameters.get(member.param)
    if found is None or tuple(found.shape) != member.shape:
        what = "is missing" if found is None else f"has shape {tuple(found.shape)}, not {member.shape}"
        hint = "discover the sites of this very module; weights that are buffers have to be parameters (requires_grad=False)"
        raise BindingError(f"parameter {member.param!r} {what}", where=site.name, hint=hint)
    return Slot(member.param, member.axis, torch.from_numpy(member.index(axis)).to(device), member.width)


def _front(slot: Slot, parameter: Tensor) -> Tensor:
    """The parameter with the units' axis in front; a view."""
    return parameter.movedim(slot.axis, 0)


def _take(slot: Slot, parameter: Tensor) -> Tensor:
    """A member's part of the rows, [N, columns]."""
    return _front(slot, parameter)[slot.index.reshape(-1)].reshape(slot.index.shape[0], -1)


def _put(slot: Slot, parameter: Tensor, part: Tensor) -> Tensor:
    """The parameter with a member's part replaced; a new tensor."""
    front = _front(slot, parameter)
    new = front.index_copy(0, slot.index.reshape(-1), part.reshape(-1, *front.shape[1:]).to(front.dtype))
    return new.movedim(0, slot.axis)


def _store(slot: Slot, parameter: Tensor, part: Tensor) -> None:
    """Overwrite a member's part of the rows in place."""
    front = _front(slot, parameter)
    front.index_copy_(0, slot.index.reshape(-1), part.reshape(-1, *front.shape[1:]).to(front.dtype))
