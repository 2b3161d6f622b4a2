"""A model exported once, and other weights put into the graph: exporting takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import onnx_ir as ir
from torch import Tensor

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values
from inarch.frontends.canonicalize import discover_canonical
from inarch.learning.models.export import export_model
from inarch.learning.models.registry import Config, Model, build
from inarch.runtime.accuracy import Arrays
from inarch.runtime.session import Session, SessionOptions
from inarch.structure.plan import Plan
from inarch.structure.resolve import resolve

Weights = Mapping[str, Tensor]


@cache
def _bare(config: Config) -> ir.Model:
    return export_model(build(config))


def export(model: Model) -> ir.Model:
    """As ``export_model``, but a configuration is followed by torch only once."""
    return exported(model.config, dict(model.named_parameters()))


def exported(config: Config, weights: Weights) -> ir.Model:
    """The graph with these weights."""
    model = _bare(config).clone()
    for name, value in model.graph.initializers.items():
        if name in weights:
            assert value.const_value is not None
            array = weights[name].detach().numpy()
            assert value.const_value.numpy().shape == array.shape
            value.const_value = ir.tensor(array, name=name)
    return model


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
