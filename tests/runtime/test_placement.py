"""Where a model ran, by ONNX Runtime's own count; a provider that ran nothing is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from inarch.runtime import placement as room
from inarch.runtime.placement import Placement, measure_placement, require
from inarch.runtime.session import SessionOptions
from inarch.structure.errors import RuntimeFailure

from tests.runtime.handmade import encoder

FEEDS = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
CPU, GPU = "CPUExecutionProvider", "WebGpuExecutionProvider"


def test_every_node_is_counted_once_a_run() -> None:
    model = encoder().model
    found = measure_placement(model, FEEDS, options=SessionOptions("off"))
    assert found.runs == {CPU: Counter(node.op_type for node in model.graph)}
    assert found.counts == {CPU: len(model.graph)}
    assert found.summary == f"{len(model.graph)} of {len(model.graph)} node runs on cpu"
    assert not found.warning
    json.dumps(found.to_json())


def test_what_ran_elsewhere_is_told_with_its_share() -> None:
    found = Placement(GPU, {CPU: {"Shape": 3, "MatMul": 1, "FusedConv": 2}, GPU: {"MatMul": 9, "Add": 5}})
    assert found.counts == {GPU: 14, CPU: 6}
    assert found.summary == "14 of 20 node runs on webgpu, 6 on cpu"
    assert found.strayed == {"FusedConv": 2, "MatMul": 1}
    assert found.warning == "3 of 12 heavy operators (25%) did not run on webgpu: FusedConv 2, MatMul 1"


@pytest.mark.parametrize("node", ["OpenVINO-EP-subgraph_1", "TRTKernel_graph_main_1"])
def test_a_compiled_subgraph_is_work(node: str) -> None:
    found = Placement(GPU, {GPU: {node: 3}, CPU: {"Gemm": 1, "Cast": 8}})
    assert found.warning == "1 of 4 heavy operators (25%) did not run on webgpu: Gemm 1"


def test_small_work_on_the_cpu_is_no_matter() -> None:
    assert not Placement(GPU, {CPU: {"Shape": 30, "Gather": 4}, GPU: {"MatMul": 1}}).warning


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "names no node"),
        ({CPU: {"MatMul": 7}}, f"{GPU} started and ran none of the model's nodes: 7 on cpu"),
        ({CPU: {"MatMul": 7}, GPU: {}}, "ran none"),
    ],
)
def test_a_provider_that_ran_nothing_is_refused(runs: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(RuntimeFailure, match=message):
        require(Placement(GPU, runs))


def test_a_session_that_lists_a_provider_and_runs_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As ORT does with a model that the provider can do nothing with."""
    profile = tmp_path / "profile.json"
    events = [
        {"cat": "Session", "name": "session_initialization", "args": {}},
        {"cat": "Node", "name": "up_kernel_time", "args": {"provider": CPU, "op_name": "MatMul"}},
        {"cat": "Node", "name": "up_fence_before", "args": {"op_name": "MatMul"}},
    ]
    profile.write_text(json.dumps(events))

    class Listed:
        def __init__(self, model: object, options: SessionOptions) -> None:
            assert options.providers == (GPU,)
            assert options.profile is not None

        def run(self, feeds: object) -> None:
            """On the CPU."""

        def end_profile(self) -> Path:
            return profile

        def __enter__(self) -> Listed:
            return self

        def __exit__(self, *unused: object) -> None:
            """Nothing was opened."""

    monkeypatch.setattr(room, "Session", Listed)
    with pytest.raises(RuntimeFailure, match="ran none of the model's nodes: 1 on cpu"):
        measure_placement(encoder().model, FEEDS, GPU)
