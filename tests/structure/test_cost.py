"""The cost table: strict in, one hash out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inarch.structure.cost import DEFAULT_COST, CostError, CostTable, cost_hash, load_cost, parse_cost


def written(tmp_path: Path, table: dict[str, object] | str) -> Path:
    path = tmp_path / "cost.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def test_the_default_holds_the_measured_rules() -> None:
    limits = DEFAULT_COST.limits()
    assert (limits.multiple, limits.max_segments) == (16, 4)
    size, latency = DEFAULT_COST.limits("size"), DEFAULT_COST.limits("latency")
    assert size.max_segments > limits.max_segments > latency.max_segments
    assert size.min_segment < limits.min_segment < latency.min_segment


def test_a_table_is_read_back_with_the_same_hash(tmp_path: Path) -> None:
    again = load_cost(written(tmp_path, DEFAULT_COST.model_dump()))
    assert again == DEFAULT_COST
    assert cost_hash(again) == cost_hash(DEFAULT_COST)


def test_the_hash_is_of_the_figures_alone() -> None:
    told = DEFAULT_COST.model_copy(update={"description": "elsewhere"})
    moved = DEFAULT_COST.model_copy(update={"size": DEFAULT_COST.latency})
    assert cost_hash(told) == cost_hash(DEFAULT_COST) != cost_hash(moved)
    assert len(cost_hash(told)) == 64


def test_a_preference_that_is_unknown_is_refused() -> None:
    with pytest.raises(CostError, match="'speed'"):
        DEFAULT_COST.limits("speed")


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("format",), "inarch.cost/2", "format"),
        (("balanced", "multiple"), 0, "balanced.multiple"),
        (("balanced", "multiple"), 16.0, "balanced.multiple"),
        (("balanced", "multiple"), "16", "balanced.multiple"),
        (("size", "rounding"), 1.5, "size.rounding"),
        (("latency", "max_segments"), 0, "latency.max_segments"),
        (("latency", "surprise"), 1, "latency.surprise"),
        (("surprise",), 1, "surprise"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(path: tuple[str, ...], value: object, where: str, tmp_path: Path) -> None:
    table = DEFAULT_COST.model_dump()
    inside = table
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    with pytest.raises(CostError) as caught:
        load_cost(written(tmp_path, table))
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"cost.json: {where}")


def test_a_missing_figure_is_refused() -> None:
    table = DEFAULT_COST.model_dump()
    del table["balanced"]["rounding"]
    with pytest.raises(CostError, match=r"balanced\.rounding"):
        parse_cost(json.dumps(table))


def test_what_is_no_json_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CostError, match="JSON"):
        load_cost(written(tmp_path, "{"))
    with pytest.raises(CostError, match="cannot be read"):
        load_cost(tmp_path / "none.json")


def test_a_table_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(DEFAULT_COST, "description", "x")  # noqa: B010  A type checker refuses the plain assignment.
    assert isinstance(DEFAULT_COST, CostTable)
