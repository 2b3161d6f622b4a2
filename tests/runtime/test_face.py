"""What a model takes and gives, which tasks fit it, and how it is run: fixed sizes, other types."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from inarch.runtime.face import Face, check_fit, face_of, runner
from inarch.runtime.session import Session
from inarch.structure.errors import RuntimeFailure

from tests.onnx_text import model_of

Arrays = dict[str, npt.NDArray[Any]]


def two_inputs(batch: str = "B", kind: str = "float") -> ir.Model:
    model = model_of(
        "c = Cast <to = 1> (ids) s = ReduceSum (c, axes) y = Add (x, two) z = Add (s, s)",
        inputs=f"{kind}[{batch},3] x, int64[{batch},T] ids",
        outputs=f"{kind}[{batch},3] y, float[{batch},1] z",
        weights=f"int64[1] axes = {{1}}, {kind}[1] two",
    )
    number = ir.tensor(np.array([2], np.float16 if kind == "float16" else np.float32), name="two")
    model.graph.initializers["two"].const_value = number
    return model


FEEDS: Arrays = {"x": np.ones((1, 3), np.float32), "ids": np.ones((1, 5), np.int64)}


def test_the_face() -> None:
    face = face_of(two_inputs(), "m")
    assert dict(face.inputs) == {"x": (ir.DataType.FLOAT, ("B", 3)), "ids": (ir.DataType.INT64, ("B", "T"))}
    assert dict(face.outputs) == {"y": ("B", 3), "z": ("B", 1)}
    assert (face.size("x", 1), face.size("x", -1), face.size("x", 0), face.size("ids", 1), face.size("x", 7)) == (
        3,
        3,
        None,
        None,
        None,
    )
    assert face.size("nosuch", 0) is None
    assert (face.batch, face_of(two_inputs("4"), "m").batch) == (None, 4)


def test_inputs_with_a_default_are_not_asked_for() -> None:
    model = two_inputs()
    model.graph.inputs.append(model.graph.initializers["two"])
    assert set(face_of(model, "m").inputs) == {"x", "ids"}


@pytest.mark.parametrize("optional", [(), ("mask",)])
def test_what_fits(optional: tuple[str, ...]) -> None:
    feeds = dict(FEEDS) | {name: np.ones((1, 2), np.bool_) for name in optional}
    check_fit(face_of(two_inputs(), "m"), feeds, ["y"], "a task", optional)


@pytest.mark.parametrize(
    ("changes", "outputs", "message"),
    [
        ({"ids": None}, ["y"], "m: the model's input 'ids' is nothing that a task gives .*there are x"),
        ({"x": np.ones((1, 4), np.float32)}, ["y"], r"input 'x' has the sizes \[B, 3\], and a task gives \[1, 4\]"),
        ({"x": np.ones((1, 3, 1), np.float32)}, ["y"], r"gives \[1, 3, 1\]"),
        ({"x": np.ones((1, 3), np.int64)}, ["y"], "input 'x' is float, and a task gives int64"),
        ({"mask": np.ones((1, 3), np.bool_)}, ["y"], "a task gives 'mask', which is no input of the model .*there are x, ids"),
        ({}, ["boxes"], "a task reads the output 'boxes', which the model does not have .*there are y, z"),
    ],
)
def test_what_does_not_fit_is_named(changes: Arrays, outputs: list[str], message: str) -> None:
    given: dict[str, Any] = {**FEEDS, **changes}
    feeds = {name: array for name, array in given.items() if array is not None}
    with pytest.raises(RuntimeFailure, match=message):
        check_fit(face_of(two_inputs(), "m"), feeds, outputs, "a task")


def test_only_what_is_read_is_given_back() -> None:
    model = two_inputs()
    with Session(model) as session:
        found = runner(session, face_of(model, "m"), ["z"])({**FEEDS, "more": np.ones(1)})
    assert {name: values.tolist() for name, values in found.items()} == {"z": [[10.0]]}


def test_a_fixed_number_of_samples_is_filled_up() -> None:
    model = two_inputs("4")
    feeds: Arrays = {"x": np.arange(9, dtype=np.float32).reshape(3, 3), "ids": np.arange(6).reshape(3, 2)}
    with Session(model) as session:
        run = runner(session, face_of(model, "m"), ["y", "z"])
        found = run(feeds)
        whole = run({name: np.concatenate([array, array[:1]]) for name, array in feeds.items()})
    np.testing.assert_array_equal(found["y"], feeds["x"] + 2)
    assert found["z"].shape == (3, 1)
    assert whole["y"].shape == (4, 3)


def test_numbers_go_in_as_the_model_wants_them_and_come_out_as_fp32() -> None:
    model = two_inputs(kind="float16")
    with Session(model) as session:
        found = runner(session, face_of(model, "m"), ["y", "z"])({"x": FEEDS["x"], "ids": FEEDS["ids"].astype(np.int32)})
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["y"], FEEDS["x"] + 2)


def test_a_face_of_unknown_sizes_takes_anything() -> None:
    face = Face("m", {"x": (None, None), "ids": (ir.DataType.INT64, None)}, {"y": None})
    check_fit(face, FEEDS, ["y"], "a task")
    assert face.batch is None
