"""A session on a GPU provider: bound, profiled, and refused where there is no device."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from inarch.runtime.inputs import Case
from inarch.runtime.latency import measure_latency
from inarch.runtime.placement import measure_placement
from inarch.runtime.providers import short_name, software_device
from inarch.runtime.session import Session, SessionOptions
from inarch.structure.errors import RuntimeFailure

from tests.runtime.handmade import encoder

pytestmark = pytest.mark.gpu

FEEDS = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), np.int64)}

WITHOUT = """
from inarch.runtime.session import Session, SessionOptions
from inarch.structure.errors import RuntimeFailure
from tests.runtime.handmade import encoder
try:
    Session(encoder().model, SessionOptions(providers=("WebGpuExecutionProvider",)))
except RuntimeFailure as error:
    print("refused:", error)
"""


def test_what_is_bound_computes_what_is_given(provider: str) -> None:
    with Session(encoder().model, SessionOptions(providers=(provider,))) as session:
        plain = session.run(FEEDS)
        with session.bind(FEEDS) as bound:
            for _ in range(2):
                bound.run()
                for name, values in zip(session.outputs, bound.outputs(), strict=True):
                    assert np.array_equal(np.asarray(values), plain[name])


def test_the_profile_counts_what_ran_on_the_device(provider: str) -> None:
    placement = measure_placement(encoder().model, FEEDS, provider)
    assert placement.counts[provider] > 0.9 * sum(placement.counts.values())
    assert not placement.warning
    assert placement.summary.startswith(f"{placement.counts[provider]} of ")


def test_times_are_taken_of_a_gpu_alone(provider: str) -> None:
    model, case = encoder().model, Case("three words", FEEDS)
    if software_device(provider):
        with pytest.raises(RuntimeFailure, match="latency is reported from a real GPU alone"):
            measure_latency(model, model, case, threads=(0,), providers=(provider,))
    else:
        (report,) = measure_latency(model, model, case, threads=(0,), providers=(provider,))
        assert report.dense.median > 0


def test_without_a_device_the_provider_is_refused(provider: str) -> None:
    if short_name(provider) != "webgpu":
        pytest.skip("the driver of another provider cannot be hidden")
    hidden = {**os.environ, "VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=hidden, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("refused: "), "and ONNX Runtime prints nothing of its own to stdout"
    assert "No supported adapters" in done.stdout
