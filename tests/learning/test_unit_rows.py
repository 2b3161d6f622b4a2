"""A module's weights as rows of units, and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from inarch.learning.unit_rows import UnitRows
from inarch.structure.errors import BindingError, LoweringError
from inarch.structure.sites import SiteTable

from tests.learning.tables import Bare, bare, ffn, glip_like, mdetr_like, msa, odd_ones, parameters_of, table_of

TABLES = {"mdetr": mdetr_like(), "glip": glip_like(), "odd": odd_ones()}


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_the_weight_vectors(name: str) -> None:
    table = TABLES[name]
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    for site in table.sites:
        for axis in site.axes:
            if axis == "head":
                continue
            rows = units.read((site.name, axis), parameters)
            assert tuple(rows.shape) == (site.axes[axis].size, site.unit_parameters(axis)[0])
            for number in {0, site.axes[axis].size // 2, site.axes[axis].size - 1}:
                vectors = []
                for member in sorted((m for m in site.on(axis) if m.is_matrix), key=lambda m: m.role):
                    for position in member.index(axis)[number].tolist():
                        vectors.append(parameters[member.param].select(member.axis, position).flatten())
                assert torch.equal(rows[number], torch.cat(vectors))


@pytest.mark.parametrize("name", TABLES)
def test_what_is_written_is_read_and_nothing_else_changes(name: str) -> None:
    table = TABLES[name]
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    before = {key: value.clone() for key, value in parameters.items()}
    same = units.write({key: units.read(key, parameters) for key in units.slots}, {}, parameters)
    assert all(torch.equal(value, parameters[key]) for key, value in same.items())
    new = {key: torch.randn_like(units.read(key, parameters)) for key in units.slots}
    half = {key: torch.full((len(rows),), 0.5) for key, rows in new.items()}
    written = parameters | units.write(new, half, parameters)
    assert all(torch.equal(units.read(key, written), rows) for key, rows in new.items())
    assert all(torch.equal(parameters[key], value) for key, value in before.items())
    matrices = {member.param for site in table.sites for member in site.members.values() if member.is_matrix}
    biases = {member.param for site in table.sites for member in site.members.values() if member.is_bias}
    for key, value in written.items():
        if key not in matrices | biases:
            assert torch.equal(value, before[key])
    readers = [
        member.param for site in table.sites for member in site.members.values() if member.is_bias and len(member.factors) < 3
    ]
    for param in set(readers):
        times = sum(m.param == param and m.start == 0 for site in table.sites for m in site.members.values() if m.is_bias)
        torch.testing.assert_close(written[param], before[param] * 0.5**times)


@pytest.mark.parametrize("name", TABLES)
def test_what_is_stored_is_what_would_be_written(name: str) -> None:
    table = TABLES[name]
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    new = {key: torch.randn_like(units.read(key, parameters)) for key in units.slots}
    written = parameters | units.write(new, {}, parameters)
    for key, rows in new.items():
        units.store(key, rows, parameters)
    assert all(torch.equal(module.get_parameter(key), value) for key, value in written.items())


def test_only_some_axes_are_written() -> None:
    table = TABLES["mdetr"]
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    key = (table.sites[0].name, "vo")
    written = units.write({key: torch.zeros_like(units.read(key, parameters))}, {}, parameters)
    weight, out = f"{key[0]}.in_proj_weight", f"{key[0]}.o.weight"
    assert set(written) == {weight, out} == set(units.params([key])) - {f"{key[0]}.in_proj_bias"}
    width = len(parameters[weight]) // 3
    assert torch.equal(written[weight][: 2 * width], parameters[weight][: 2 * width])
    assert not written[weight][2 * width :].any()
    assert not written[out].any()


def test_gradients_flow_through_reading_and_writing() -> None:
    table = table_of([ffn("a", 4, 6), msa("b", 4, 2, 3, packed=True)])
    module = bare(table)
    units, parameters = UnitRows(table, module), dict(module.named_parameters())
    rows = {key: units.read(key, parameters) * 2 for key in units.slots}
    keep = {key: torch.full((len(value),), 3.0, requires_grad=True) for key, value in rows.items()}
    written = units.write(rows, keep, parameters)
    torch.autograd.backward(torch.stack([value.sum() for value in written.values()]).sum())
    for name, parameter in parameters.items():
        expected = torch.full_like(parameter, 3.0 if name.endswith("bias") else 2.0)
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected)
    gained = keep["a", "hidden"].grad
    assert gained is not None
    torch.testing.assert_close(gained, parameters["a.up.bias"].detach())


def test_biases_fade_a_part_of_the_way() -> None:
    table = table_of([msa("b", 4, 2, 3, packed=True)])
    module = bare(table)
    units, parameters = UnitRows(table, module), parameters_of(module)
    before = parameters["b.in_proj_bias"].clone()
    keep = torch.tensor([1.0, 0, 1, 1, 0, 1])
    units.fade(("b", "qk"), keep, 0.25, parameters)
    factor = torch.cat((1 - 0.25 * (1 - keep), 1 - 0.25 * (1 - keep), torch.ones(6)))
    torch.testing.assert_close(parameters["b.in_proj_bias"], before * factor)


def test_rows_of_a_wider_kind_are_stored_in_the_parameters_own() -> None:
    table = table_of([ffn("a", 4, 6)])
    module = bare(table).to(torch.bfloat16)
    units, parameters = UnitRows(table, module), parameters_of(module)
    rows = units.read(("a", "hidden"), parameters).float()
    written = units.write({("a", "hidden"): rows}, {("a", "hidden"): torch.ones(6)}, parameters)
    assert all(value.dtype == torch.bfloat16 for value in written.values())
    assert torch.equal(written["a.up.weight"], parameters["a.up.weight"])


def test_a_tied_parameter_is_found_under_each_of_its_names() -> None:
    table = table_of([ffn("a", 4, 6)])
    module = bare(table)
    other = Bare({"first": torch.zeros(1)})
    other.add_module("z", module)
    other.get_submodule("z").add_module("again", module.get_submodule("a"))
    renamed = {role: replace(m, param=m.param.replace("a.", "z.again.", 1)) for role, m in table.sites[0].members.items()}
    units = UnitRows(table_of([replace(table.sites[0], members=renamed)]), other)
    assert units.params(units.slots) == ["z.again.down.weight", "z.again.up.bias", "z.again.up.weight"]


@pytest.mark.parametrize(("change", "word"), [("shape", "has shape"), ("name", "is missing")])
def test_another_module_is_refused(change: str, word: str) -> None:
    site = ffn("a", 4, 6)
    module = bare(table_of([site if change == "name" else ffn("a", 4, 7)]))
    if change == "name":
        site = replace(site, members={role: replace(m, param=f"b.{m.param}") for role, m in site.members.items()})
    with pytest.raises(BindingError, match=word):
        UnitRows(SiteTable((site,), (), 100, 400), module)


def scaled_ffn(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """What an FFN with one number a hidden unit computes."""
    inside = (x @ parameters["a.up.weight"].T + parameters["a.up.bias"]).relu() * parameters["a.scale"]
    return inside @ parameters["a.down.weight"].T


def test_riders_go_with_their_units() -> None:
    table = table_of([ffn("a", 4, 6, scale=True)])
    module = bare(table)
    units, parameters, x = UnitRows(table, module), parameters_of(module), torch.randn(5, 4)
    before, old = scaled_ffn(parameters, x), {name: value.clone() for name, value in parameters.items()}
    order = np.array([3, 1, 5, 0, 4, 2])
    units.permute(("a", "hidden"), order, parameters)
    torch.testing.assert_close(scaled_ffn(parameters, x), before)
    assert torch.equal(parameters["a.scale"], old["a.scale"][order])
    assert torch.equal(parameters["a.up.bias"], old["a.up.bias"][order])


def test_what_would_not_follow_is_not_permuted() -> None:
    """A buffer along the units, a table over heads, a table inside them: nothing changes where they would be parted."""
    table = table_of([ffn("a", 4, 6, scale=True), msa("b", 4, 3, 2, table=5), msa("c", 4, 3, 2, uniform=True)])
    module = bare(table)
    scale = module.get_parameter("a.scale").detach()
    del module.get_submodule("a")._parameters["scale"]
    module.get_submodule("a").register_buffer("scale", scale)
    units, parameters = UnitRows(table, module), parameters_of(module)
    before = {name: value.clone() for name, value in parameters.items()}
    heads, inside, none = (np.array(order) for order in ([2, 3, 0, 1, 4, 5], [1, 0, 3, 2, 4, 5], [0, 1, 2, 3, 4, 5]))
    for key, order, name in (
        (("a", "hidden"), heads, r"a\.scale"),
        (("b", "qk"), heads, r"b\.table"),
        (("b", "vo"), heads, r"b\.table"),
        (("c", "qk"), inside, r"c\.rotary"),
    ):
        with pytest.raises(LoweringError, match=f"{key[0]}\\.{key[1]}: units cannot be permuted: {name} would not follow"):
            units.permute(key, order, parameters)
        units.permute(key, none, parameters)
    assert all(torch.equal(value, before[name]) for name, value in parameters.items())
    for key, order in ((("b", "qk"), inside), (("b", "vo"), inside), (("c", "qk"), heads), (("c", "vo"), inside)):
        units.permute(key, order, parameters)
        assert not torch.equal(units.read(key, parameters), units.read(key, before))
