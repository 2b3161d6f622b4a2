"""What trained weights are in ONNX: under a plan by values, and compiled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from torch import Tensor

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values
from inarch.frontends.canonicalize import discover_canonical
from inarch.learning.models.registry import Config, build
from inarch.learning.outline import outline
from inarch.runtime.accuracy import Arrays
from inarch.runtime.session import Session, SessionOptions
from inarch.structure.plan import Plan
from inarch.structure.resolve import resolve

Weights = Mapping[str, Tensor]


def exported(config: Config, weights: Weights) -> ir.Model:
    """The graph with these weights; what they leave out is random."""
    return outline(config).filled({**build(config).state_dict(), **weights})


def off_plan(config: Config, weights: Weights, plan: Plan) -> list[str]:
    """Parameters that the reference, the plan applied by values, has otherwise: none where weights hold to the plan."""
    found = discover_canonical(exported(config, weights))
    reference = apply_by_values(found.model, found.table, resolve(plan, found.table), found.uses)
    apart = []
    for name, value in found.model.graph.initializers.items():
        new = reference.graph.initializers[name].const_value
        assert value.const_value is not None
        assert new is not None
        if not np.array_equal(value.const_value.numpy(), new.numpy()):
            apart.append(name)
    return apart


def compiled(config: Config, weights: Weights, plan: Plan) -> Session:
    """The compiled model in ONNX Runtime."""
    return Session(compile_model(exported(config, weights), plan).model, SessionOptions(threads=1))


def distance(found: Arrays, expected: Arrays) -> float:
    """The largest difference of two models' outputs, relative to each output's largest number."""
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)
