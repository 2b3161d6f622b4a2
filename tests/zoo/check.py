"""Is a compiled model what its plan asks for? The contract, checked from outside: numpy and raw ONNX Runtime sessions.

The reference is the original with the plan applied by values; reference and compiled run with ONNX Runtime's optimisation off and
on, and every output is compared wherever the reference is finite. This does not use ``inarch.runtime.equivalence``, so that the
checker that users get and the one that guards the compiler do not share a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from inarch.structure.constants import tensor_in

from tests.zoo.model import Inputs, ZooModel

ort = pytest.importorskip("onnxruntime")

Outputs = dict[str, npt.NDArray[Any]]

LEVELS = {"off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL, "on": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}

RELATIVE = 1e-5
"""Largest difference over the output's scale, in fp32."""

NOISE = 8.0
"""Largest difference over the reference's difference to itself, optimised and not ..."""

ROUNDING = 32 * 2.0**-23
"""... or over this much of the output's scale, where optimisation happens to change nothing."""


def run_all(model: ir.Model, cases: list[Inputs]) -> dict[str, list[Outputs]]:
    """Level -> outputs of each case."""
    data = ir.to_proto(model).SerializeToString()
    results: dict[str, list[Outputs]] = {}
    for level, value in LEVELS.items():
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = value
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        results[level] = [dict(zip(names, session.run(None, case), strict=True)) for case in cases]
    return results


def inputs_of(zoo: ZooModel, seed: int) -> list[Inputs]:
    """Every case of a model."""
    rng = np.random.default_rng(seed)
    return [zoo.inputs(rng, case) for case in range(zoo.cases)]


def float_numbers(model: ir.Model) -> int:
    """Numbers in all the float tensors that a model holds, as initializers or Constant nodes, subgraphs included."""
    count = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        tensors = [value.const_value for value in graph.initializers.values()]
        constants = [node.attributes.get("value") for node in graph if node.op_type == "Constant"]
        tensors += [tensor_in(constant) for constant in constants if constant is not None]
        count += sum(tensor.size for tensor in tensors if tensor is not None and tensor.dtype == ir.DataType.FLOAT)
    return count


def mismatches(reference: Mapping[str, list[Outputs]], compiled: Mapping[str, list[Outputs]]) -> Iterator[str]:
    """One sentence for every output that is not what the reference says."""
    for level, cases in reference.items():
        for case, wanted in enumerate(cases):
            if list(wanted) != list(compiled[level][case]):
                yield f"outputs {list(compiled[level][case])} for {list(wanted)}"
                continue
            for name, want in wanted.items():
                got, other = compiled[level][case][name], reference["off" if level == "on" else "on"][case][name]
                wrong = compare(want, got, other)
                if wrong:
                    yield f"{name}, case {case}, optimisation {level}: {wrong}"


def compare(want: npt.NDArray[Any], got: npt.NDArray[Any], again: npt.NDArray[Any]) -> str:
    """What is wrong with ``got``; empty where nothing is. ``again`` is ``want`` at the other level: the noise floor."""
    if want.shape != got.shape or want.dtype != got.dtype:
        return f"{got.dtype}{list(got.shape)} for {want.dtype}{list(want.shape)}"
    if want.dtype.kind != "f":
        return "" if np.array_equal(want, got) else "differs"
    finite = np.isfinite(want)
    if not np.isfinite(got[finite]).all():
        return "not finite where the reference is"
    if not finite.any():
        return ""
    scale = max(float(np.abs(want[finite]).max()), 1e-6)
    worst = float(np.abs(want[finite] - got[finite]).max())
    both = finite & np.isfinite(again)
    noise = float(np.abs(want[both] - again[both]).max()) if both.any() else 0.0
    allowed = min(RELATIVE * scale, max(NOISE * noise, ROUNDING * scale))
    return "" if worst <= allowed else f"differs by {worst:.3g}, allowed {allowed:.3g} (scale {scale:.3g}, noise {noise:.3g})"
