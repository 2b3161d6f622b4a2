"""The public face: what people are likely to give its functions, and what it says of what it cannot use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import inarch
from inarch.structure.plan import dump_plan

from tests.zoo import build
from tests.zoo.check import inputs_of

pytest.importorskip("onnxruntime")


def test_inputs_are_mappings_from_names_to_arrays() -> None:
    zoo = build("encoder_relu", 0)
    plan = inarch.make_plan(zoo.model, keep=0.8)
    compiled = inarch.compile(zoo.model, plan).model
    feeds = inputs_of(zoo, 1)[0]
    found = inarch.verify(zoo.model, plan, compiled, inputs=[feeds])
    assert found.ok
    assert found.cases == ("inputs 0",)
    with pytest.raises(inarch.InarchError, match="runs on none of the inputs"):
        inarch.verify(zoo.model, plan, compiled, inputs=[{"nosuch": np.zeros(3, np.float32)}])
    with pytest.raises(inarch.InarchError, match="-1 is no seed"):
        inarch.verify(zoo.model, plan, compiled, seed=-1)


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    zoo = build("encoder_relu", 0)
    plan = inarch.make_plan(zoo.model, keep=0.8)
    for given, what in ((plan.model_dump(), "a dict"), (dump_plan(plan), "a plan's text"), (3, "a int")):
        with pytest.raises(inarch.InarchError, match=f"plan: {what} is no path of a plan"):
            inarch.compile(zoo.model, cast(Any, given), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_an_example_takes_one_tensor() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    one = inarch.discover(inarch.Example(module, torch.zeros(2, 5, 32))).table
    assert one == inarch.discover(inarch.Example(module, (torch.zeros(2, 5, 32),))).table
    assert [site.kind for site in one.sites] == ["msa", "ffn"]
