"""A module's weights as rows of units, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inarch.learning.unit_rows import UnitRows
from inarch.structure.errors import BindingError
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
