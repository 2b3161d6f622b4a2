"""The cost table: strict in, one hash out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inarch.structure.cost import (
    DEFAULT_COST,
    SHIPPED,
    CostError,
    CostTable,
    cost_hash,
    load_cost,
    parse_cost,
    save_cost,
    schema_text,
    shipped_name,
)


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


MEASURED = {
    "provider": "CPUExecutionProvider",
    "device": "a machine",
    "cores": 2,
    "system": "Linux x86_64",
    "onnxruntime": "1.32.0",
    "inarch": "0.1.0",
    "precision": "fp32",
    "date": "2026-11-26",
    "seconds": 120,
    "tight": True,
    "figures": [
        {
            "kind": "ffn",
            "width": 768,
            "units": 3072,
            "heads": 1,
            "tokens": 128,
            "threads": 1,
            "form": "split",
            "stored": 3072,
            "blocks": 2,
            "rounds": 60,
            "milliseconds": 15.5,
            "spread": 0.01,
            "ratio": 1.01,
            "low": 1.005,
            "high": 1.015,
        }
    ],
}


def with_timings() -> dict[str, object]:
    return DEFAULT_COST.model_dump(exclude_none=True) | {"measured": json.loads(json.dumps(MEASURED))}


def test_a_table_may_carry_its_timings_and_keeps_its_hash(tmp_path: Path) -> None:
    table = load_cost(written(tmp_path, with_timings()))
    assert table.measured is not None
    assert table.measured.figures[0].ratio == 1.01
    assert cost_hash(table) == cost_hash(DEFAULT_COST)
    save_cost(table, tmp_path / "again.json")
    assert load_cost(tmp_path / "again.json") == table


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("measured", "surprise"), 1, "measured.surprise"),
        (("measured", "precision"), "int4", "measured.precision"),
        (("measured", "date"), "yesterday", "measured.date"),
        (("measured", "figures", 0, "ratio"), 0, "measured.figures.0.ratio"),
        (("measured", "figures", 0, "blocks"), 2.5, "measured.figures.0.blocks"),
        (("measured", "figures", 0, "form"), "folded", "measured.figures.0.form"),
    ],
)
def test_timings_are_read_strictly(path: tuple[str | int, ...], value: object, where: str) -> None:
    table = with_timings()
    inside: Any = table
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    with pytest.raises(CostError) as caught:
        parse_cost(json.dumps(table), "cost.json")
    assert caught.value.where == f"cost.json: {where}"


def test_what_is_shipped_is_known_by_name() -> None:
    assert load_cost("cpu") is DEFAULT_COST
    gpu = load_cost("gpu")
    assert gpu == SHIPPED["gpu"]
    assert shipped_name(cost_hash(gpu)) == "gpu"
    assert shipped_name("0" * 64) is None


def test_the_table_for_gpus_says_that_it_is_not_measured_and_wants_fewer_and_wider_blocks() -> None:
    gpu = SHIPPED["gpu"]
    assert "not measured" in gpu.description
    for wish in (None, "size", "latency"):
        assert gpu.limits(wish).max_segments <= DEFAULT_COST.limits(wish).max_segments
        assert gpu.limits(wish).min_segment >= DEFAULT_COST.limits(wish).min_segment
        assert gpu.limits(wish).multiple >= DEFAULT_COST.limits(wish).multiple


def test_a_file_that_is_called_like_a_shipped_table_is_named_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, DEFAULT_COST.model_dump(exclude_none=True)).rename(tmp_path / "gpu")
    monkeypatch.chdir(tmp_path)
    assert load_cost("gpu") == SHIPPED["gpu"]
    assert load_cost(tmp_path / "gpu") == DEFAULT_COST


def test_a_table_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "cost.json").mkdir()
    with pytest.raises(CostError, match="cannot be written"):
        save_cost(DEFAULT_COST, tmp_path / "cost.json")
    assert [path.name for path in tmp_path.iterdir()] == ["cost.json"]


def test_the_committed_schema_is_the_one_of_the_types() -> None:
    committed = Path(__file__).parents[2] / "structure" / "cost.schema.json"
    assert committed.read_text(encoding="utf-8") == schema_text(), "run: inarch calibrate --schema > structure/cost.schema.json"
