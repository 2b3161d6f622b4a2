"""Inputs mean something: ids in the table, masks that leave something, sizes that agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from inarch.runtime.given import as_cases, check_cases, load_npz
from inarch.runtime.inputs import MASKED, Case, describe, make_cases
from inarch.runtime.session import Session
from inarch.structure.errors import RuntimeFailure

from tests.runtime.handmade import LENGTH, VOCABULARY, Builder, encoder


def value(name: str, dtype: ir.DataType, *shape: int | str | None) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def model_of(make: Builder, inputs: list[ir.Value], output: ir.Value) -> ir.Model:
    output.type = output.type or ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        inputs, [output], nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def builder() -> Builder:
    return Builder(np.random.default_rng(0))


def made(model: ir.Model, **options: Any) -> list[Case]:
    with Session(model) as session:
        return list(make_cases(model, session, **options).cases)


def test_ids_lie_in_the_table_and_masks_are_padded_rows() -> None:
    cases = made(encoder().model)
    assert len(cases) == 4
    assert [case.feeds["input_ids"].shape for case in cases] == [(1, 7), (2, 16), (3, 5), (2, 33)]
    seen = np.concatenate([case.feeds["input_ids"].reshape(-1) for case in cases])
    assert seen.min() >= 1
    assert VOCABULARY // 2 < seen.max() < VOCABULARY
    for case in cases:
        mask = case.feeds["attention_mask"]
        assert mask.shape == case.feeds["input_ids"].shape
        assert mask[0].all(), "the first row is whole"
        assert (mask[:, 0] == 1).all(), "no row is masked entirely"
        assert (np.diff(mask, axis=1) <= 0).all(), "padding is at the end"
        assert len(mask) == 1 or not mask[1:].all(axis=1).any()


def test_inputs_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    model = encoder().model
    first, again, other = made(model), made(model), made(model, seed=1)
    assert all((a.feeds["input_ids"] == b.feeds["input_ids"]).all() for a, b in zip(first, again, strict=True))
    assert not all((a.feeds["input_ids"] == b.feeds["input_ids"]).all() for a, b in zip(first, other, strict=True))


def test_rows_are_masked_entirely_only_on_request() -> None:
    cases = made(encoder().model, whole_rows=1)
    assert all((case.feeds["attention_mask"][-1] == 0).all() for case in cases if len(case.feeds["attention_mask"]) > 1)


def test_the_range_is_found_through_casts_and_the_smallest_table_counts() -> None:
    make = builder()
    ids = value("tokens", ir.DataType.INT32, "b", "s")
    wide = make.op("Cast", make.op("Unsqueeze", ids, make.ints(0)), to=7)
    both = make.op("Add", make.op("Gather", make.weight("big", 30, 4), wide), make.op("Gather", make.weight("small", 6, 4), wide))
    model = model_of(make, [ids], both)
    specs = describe(model)
    assert (specs[0].kind, specs[0].limit, specs[0].dims) == ("ids", 6, ("b", "s"))
    assert max(case.feeds["tokens"].max() for case in made(model)) == 5


@pytest.mark.parametrize(
    ("name", "where", "keep", "drop"),
    [
        ("key_padding_mask", "masks", 0.0, 1.0),
        ("attention_mask", "keeps", 1.0, 0.0),
        ("attention_mask", "masks", 0.0, 1.0),  # what the graph does counts for more than the name
        ("key_padding_mask", "nowhere", 0.0, 1.0),
        ("visible_mask", "nowhere", 1.0, 0.0),
        ("flags", "not", 1.0, 0.0),
    ],
)
def test_the_polarity_of_a_boolean_mask_is_the_graphs(name: str, where: str, keep: float, drop: float) -> None:
    make = builder()
    mask = value(name, ir.DataType.BOOL, "b", "s")
    low, zero = make.param("low", np.array(-np.inf, np.float32)), make.param("zero", np.array(0, np.float32))
    if where == "masks":
        out = make.op("Where", make.op("Unsqueeze", mask, make.ints(1)), low, zero)
    elif where == "keeps":
        out = make.op("Where", mask, zero, low)
    elif where == "not":
        out = make.op("Where", make.op("Not", mask), low, zero)
    else:
        out = make.op("Cast", mask, to=1)
    spec = describe(model_of(make, [mask], out))[0]
    assert (spec.kind, spec.keep, spec.drop) == ("mask", keep, drop)


@pytest.mark.parametrize(("added", "keep", "drop"), [(True, 0.0, MASKED), (False, 1.0, 0.0)])
def test_a_float_mask_is_added_or_multiplied(added: bool, keep: float, drop: float) -> None:
    make = builder()
    mask = value("mask", ir.DataType.FLOAT, "b", "s")
    x = make.param("x", np.ones((1, 1), np.float32))
    spec = describe(model_of(make, [mask], make.op("Add" if added else "Mul", x, mask)))[0]
    assert (spec.kind, spec.keep, spec.drop) == ("mask", keep, drop)


@pytest.mark.parametrize(("channels", "group"), [(3, 1), (6, 2)])
def test_channels_that_have_a_name_are_those_of_the_convolution(channels: int, group: int) -> None:
    make = builder()
    x = value("pixel_values", ir.DataType.FLOAT, "batch", "num_channels", "height", "width")
    kernel = make.param("kernel", np.ones((4, channels // group, 8, 8), np.float32))
    out = make.op("Conv", make.op("Mul", x, x), kernel, strides=[8, 8], group=group)
    cases = made(model_of(make, [x], out))
    assert {case.feeds["pixel_values"].shape[1] for case in cases} == {channels}
    assert len({case.feeds["pixel_values"].shape[2] for case in cases}) > 1


def test_images_positions_and_segments() -> None:
    make = builder()
    pixels = value("pixel_values", ir.DataType.FLOAT, "batch", 3, "height", "width")
    places = value("position_ids", ir.DataType.INT64, 1, "length")
    types = value("token_type_ids", ir.DataType.INT64, 1, "length")
    table = make.op("Gather", make.weight("positions", LENGTH, 4), places)
    both = make.op("Add", table, make.op("Gather", make.weight("segments", 2, 4), types))
    out = make.op("Mul", make.op("ReduceMean", pixels, keepdims=0), make.op("ReduceMean", both, keepdims=0))
    case = made(model_of(make, [pixels, places, types], out))[1]
    image = case.feeds["pixel_values"]
    assert image.shape == (2, 3, 96, 96)
    assert image.std() == pytest.approx(1.0, abs=1e-3)
    assert np.mean(image[..., 1:] * image[..., :-1]) > 0.3, "neighbouring pixels are alike"
    assert (case.feeds["position_ids"] == np.arange(16)).all()
    assert set(np.unique(case.feeds["token_type_ids"])) == {0, 1}


def test_sizes_that_the_graph_requires_are_found_by_trying() -> None:
    make = builder()
    x = value("pixel_values", ir.DataType.FLOAT, "batch", 3, "height", "width")
    patches = make.op("Conv", x, make.weight("patch", 4, 3, 14, 14), strides=[14, 14])
    flat = make.op("Reshape", patches, make.ints(0, 4, 256))
    cases = made(model_of(make, [x], flat))
    assert {case.feeds["pixel_values"].shape[2:] for case in cases} == {(224, 224)}
    assert {len(case.feeds["pixel_values"]) for case in cases} == {1, 2, 3}


def test_shapes_that_the_original_refuses_are_dropped_and_said() -> None:
    make = builder()
    x = value("hidden_states", ir.DataType.FLOAT, "batch", "sequence", 4)
    out = make.op("Reshape", x, make.ints(1, 7, 4))
    model = model_of(make, [x], out)
    with Session(model) as session:
        found = make_cases(model, session)
    assert [case.feeds["hidden_states"].shape for case in found.cases] == [(1, 7, 4)]
    assert "batch=2, sequence=16" in " ".join(found.dropped)


def test_a_fixed_model_is_run_on_several_values() -> None:
    make = builder()
    x = value("x", ir.DataType.FLOAT, 2, 4)
    cases = made(model_of(make, [x], make.op("Relu", x)))
    assert len(cases) == 2
    assert (cases[0].feeds["x"] != cases[1].feeds["x"]).any()


def test_a_model_that_runs_on_nothing_is_refused_with_the_reason() -> None:
    make = builder()
    x = value("x", ir.DataType.FLOAT, 2, 4)
    model = model_of(make, [x], make.op("Reshape", x, make.ints(3, 3)))
    with Session(model) as session, pytest.raises(RuntimeFailure, match=r"runs on none of the inputs.*Reshape"):
        make_cases(model, session)


def save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def test_the_users_own_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", a=np.ones(2), b=np.zeros(3))
    (only,) = load_npz(tmp_path / "one.npz", ["a", "b"])
    assert sorted(only.feeds) == ["a", "b"]
    save(tmp_path / "two.npz", {"long/a": np.ones(9), "short/a": np.ones(1)})
    assert [(case.name, len(case.feeds["a"])) for case in load_npz(tmp_path / "two.npz", ["a"])] == [("long", 9), ("short", 1)]
    save(tmp_path / "slash.npz", {"x/y": np.ones(4)})
    assert load_npz(tmp_path / "slash.npz", ["x/y"])[0].feeds["x/y"].shape == (4,)


def test_the_users_own_inputs_are_checked(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", a=np.ones(2))
    np.savez(tmp_path / "extra.npz", a=np.ones(2), b=np.ones(2))
    with pytest.raises(RuntimeFailure, match="lacks b"):
        load_npz(tmp_path / "one.npz", ["a", "b"])
    with pytest.raises(RuntimeFailure, match="has a, which the model does not take"):
        load_npz(tmp_path / "extra.npz", ["b"])
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(RuntimeFailure, match="cannot be read as arrays"):
        load_npz(tmp_path / "text.npz")
    with pytest.raises(RuntimeFailure, match="cannot be read as arrays"):
        load_npz(tmp_path / "missing.npz")
    np.save(tmp_path / "one.npy", np.ones(2))
    with pytest.raises(RuntimeFailure, match="one array without a name"):
        load_npz(tmp_path / "one.npy")
    np.savez_compressed(tmp_path / "whole.npz", a=np.arange(1000) % 7)
    whole = (tmp_path / "whole.npz").read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:120] + bytes(80) + whole[200:]):
        (tmp_path / "broken.npz").write_bytes(broken)
        with pytest.raises(RuntimeFailure, match="cannot be read as arrays"):
            load_npz(tmp_path / "broken.npz")


def test_cases_in_python_are_mappings() -> None:
    (only,) = as_cases({"x": [1.0, 2.0]})
    assert only.feeds["x"].tolist() == [1.0, 2.0]
    assert [case.name for case in as_cases([{"x": 1}, only])] == ["inputs 0", "inputs 0"]
    several: list[Any] = [[], [np.ones(3)], [{"x": [[1.0], [1.0, 2.0]]}]]
    for wrong in several:
        with pytest.raises(RuntimeFailure):
            as_cases(wrong)


def test_a_large_fixed_input_is_made() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]> g (uint8[40000000] x) => (int64[1] y) { y = Shape(x) }"""
    )
    with Session(model) as session:
        assert make_cases(model, session).cases[0].feeds["x"].size == 40_000_000


def test_what_would_be_too_large_is_not_made() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[n, 40000000] x) => (int64[2] y) { y = Shape(x) }"""
    )
    with Session(model) as session, pytest.raises(RuntimeFailure, match="all would have more than 33554432 numbers"):
        make_cases(model, session)


def test_the_users_own_inputs_have_to_run() -> None:
    model = encoder().model
    good = {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.ones((1, 3), np.int64)}
    bad = {**good, "attention_mask": np.ones((1, 4), np.int64)}
    with Session(model) as session:
        found = check_cases([Case("good", good), Case("bad", bad)], session)
        assert [case.name for case in found.cases] == ["good"]
        assert found.dropped[0].startswith("bad: ONNX Runtime could not run the model")
        with pytest.raises(RuntimeFailure, match="none of the inputs"):
            check_cases([Case("bad", bad)], session)


def test_the_tables_of_a_fused_embedding_are_found() -> None:
    make = builder()
    ids, kinds, places = (value(name, ir.DataType.INT32, "b", "s") for name in ("a", "b", "c"))
    tables = [make.weight(name, size, 4) for name, size in (("words", 30), ("where", 20), ("which", 3))]
    out = make.op("EmbedLayerNormalization", ids, kinds, *tables, make.weight("g", 4), make.weight("h", 4))
    node = out.producer()
    assert node is not None
    node.domain = "com.microsoft"
    node.resize_inputs(9)
    node.replace_input_with(8, places)
    specs = describe(model_of(make, [ids, kinds, places], out))
    assert [(spec.kind, spec.limit) for spec in specs] == [("ids", 30), ("ids", 3), ("ids", 20)]
