"""A small model on disk, a plan for it, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from inarch.tools.cli import main

WIDTH, HIDDEN = 32, 256


@dataclass(frozen=True)
class Done:
    """What one run of the command line left."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def inarch(capsys: pytest.CaptureFixture[str]) -> Run:
    """``inarch("inspect", path)`` runs the command in this process."""

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


def two_ffns() -> onnx.ModelProto:
    """Two pre-norm FFNs with residuals, 32 wide, 256 hidden; x and y are [batch, tokens, 32]."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        weights.append(numpy_helper.from_array(rng.normal(size=shape, scale=0.2).astype(np.float32), name))
        return name

    def op(kind: str, inputs: list[str], output: str) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], output))
        return output

    x = "x"
    for layer in ("layer.0", "layer.1"):
        scale, shift = weight(f"{layer}.norm.weight", WIDTH), weight(f"{layer}.norm.bias", WIDTH)
        normed = op("LayerNormalization", [x, scale, shift], f"{layer}.normed")
        up = op("MatMul", [normed, weight(f"{layer}.up.weight", WIDTH, HIDDEN)], f"{layer}.up")
        act = op("Relu", [op("Add", [up, weight(f"{layer}.up.bias", HIDDEN)], f"{layer}.up_bias")], f"{layer}.act")
        down = op("MatMul", [act, weight(f"{layer}.down.weight", HIDDEN, WIDTH)], f"{layer}.down")
        biased = op("Add", [down, weight(f"{layer}.down.bias", WIDTH)], f"{layer}.down_bias")
        x = op("Add", [x, biased], "y" if layer == "layer.1" else f"{layer}.out")
    values = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", WIDTH]) for name in "xy")
    graph = helper.make_graph(nodes, "two_ffns", [next(values)], [next(values)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The two FFNs as a file."""
    path = tmp_path / "model.onnx"
    onnx.save(two_ffns(), path)
    return path


@pytest.fixture
def plan(model: Path, inarch: Run) -> Path:
    """A plan for it that prunes and shares."""
    path = model.with_name("plan.json")
    done = inarch("plan", "make", model, "--keep", "0.6", "--method", "similarity", "--out", path)
    assert done.code == 0, done.err
    return path


@pytest.fixture
def compiled(model: Path, plan: Path, inarch: Run) -> Path:
    """The plan carried out."""
    path = model.with_name("compiled.onnx")
    done = inarch("compile", model, plan, "--out", path)
    assert done.code == 0, done.err
    return path
