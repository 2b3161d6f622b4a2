"""The zoo checks itself: every builder makes a valid model that ONNX Runtime runs, with finite outputs at more than one shape."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from tests.zoo.model import ZooModel
from tests.zoo.registry import FORMS, NEGATIVE, build

ort = pytest.importorskip("onnxruntime")

ALL = [*FORMS, *NEGATIVE]


@cache
def first(name: str) -> ZooModel:
    """The form's model for seed 0."""
    return build(name, 0)


def run(zoo: ZooModel, data: bytes, cases: int) -> list[dict[str, npt.NDArray[Any]]]:
    """Outputs by name, of each case."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [
        dict(zip(names, session.run(None, zoo.inputs(np.random.default_rng(case), case)), strict=True)) for case in range(cases)
    ]


@pytest.mark.parametrize("name", ALL)
def test_builder_makes_a_model_that_runs(name: str) -> None:
    zoo = first(name)
    proto = ir.to_proto(zoo.model)
    data = proto.SerializeToString()
    if not zoo.runnable:
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail):
            run(zoo, data, 1)
        return
    if not any(node.domain == "com.microsoft" for node in proto.graph.node):
        onnx.checker.check_model(proto, full_check=True)
    for case, outputs in enumerate(run(zoo, data, min(zoo.cases, 2))):
        for output, value in outputs.items():
            assert np.isfinite(value).all(), f"{output} of case {case}"
            assert np.abs(value).max() > 1e-3, f"{output} of case {case}"


@pytest.mark.parametrize("name", ALL)
def test_seed_decides_the_model(name: str) -> None:
    wanted, same, other = (
        ir.to_proto(zoo.model).SerializeToString(deterministic=True) for zoo in (first(name), build(name, 0), build(name, 1))
    )
    assert wanted == same
    assert wanted != other


@pytest.mark.parametrize("name", ALL)
def test_expected_sites_name_parameters_of_the_model(name: str) -> None:
    zoo = first(name)
    assert zoo.expected
    constants = {value.name for node in zoo.model.graph if node.op_type == "Constant" for value in node.outputs}
    for site in zoo.expected:
        assert site.calls >= 1
        for param in site.params.values():
            assert param in zoo.model.graph.initializers or param in constants


@pytest.mark.parametrize("name", ALL)
def test_cases_differ_in_shape(name: str) -> None:
    zoo = first(name)
    cases = [zoo.inputs(np.random.default_rng(0), case) for case in range(zoo.cases)]
    shapes = {tuple(sorted((key, value.shape) for key, value in case.items())) for case in cases}
    assert len(shapes) == zoo.cases
    declared = {value.name: value for value in zoo.model.graph.inputs}
    assert set(cases[0]) == set(declared)
    if zoo.cases == 1:
        assert all(value.shape is not None and value.shape.is_static() for value in declared.values())
