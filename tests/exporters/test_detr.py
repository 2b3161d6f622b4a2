"""A DETR-style encoder-decoder: heads are really removed, and rows that are masked entirely are treated as the contract says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import inarch
from inarch.compiler.writer import write_model
from inarch.structure.plan import FORMAT, AxisPlan, ModelRef, Plan, SitePlan
from inarch.structure.sites import SiteTable

from tests.exporters.cases import CASES
from tests.exporters.check import compiled_and_wrong, feeds_of
from tests.exporters.detr import Detr
from tests.exporters.export import How, export
from tests.exporters.inputs import HEADS, WIDTH, features
from tests.exporters.pairs import exported, found
from tests.exporters.plans import COST, handwritten
from tests.zoo.check import run_all

HEAVY = pytest.mark.heavy
HOWS = [How(dynamo=True, opset=20), How(dynamo=True, opset=18, optimize=False), How(dynamo=False, opset=17)]


def fewer_heads(table: SiteTable, keep: str = "0,2-3") -> Plan:
    """Every attention keeps some of its heads."""
    sites = {
        site.name: SitePlan(kind="msa", heads=site.heads, axes={"head": AxisPlan(size=site.heads, keep=keep)})
        for site in table.sites
        if site.kind == "msa"
    }
    return Plan(format=FORMAT, model=ModelRef(name="detr", fingerprint=table.fingerprint), sites=sites)


def floats(model: ir.Model) -> int:
    """Numbers in the model's parameters."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.size for tensor in tensors if tensor is not None and tensor.dtype == ir.DataType.FLOAT)


def size(file: Path) -> int:
    """Bytes of a model and of its data."""
    return sum(part.stat().st_size for part in file.parent.iterdir())


def per_head(width: int, heads: int) -> int:
    """Rows of W_q, W_k and W_v with their biases, and columns of W_o."""
    return (3 * (width + 1) + width) * (width // heads)


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_heads_are_really_removed(how: How) -> None:
    model, table = exported("detr", how), found("detr", how).table
    result = inarch.compile(model, fewer_heads(table), cost=COST)
    removed = 6 * per_head(WIDTH, HEADS)
    assert result.lowered.planned == result.lowered.stored == table.parameters - removed
    assert floats(model) - floats(result.model) == removed
    again = inarch.discover(result.model).table
    assert [site.heads for site in again.sites if site.kind == "msa"] == [HEADS - 1] * 6


@pytest.mark.parametrize("how", [pytest.param(how, marks=HEAVY if how.dynamo else ()) for how in HOWS], ids=str)
def test_the_file_falls_with_them(how: How, tmp_path: Path) -> None:
    width, heads = 256, 8
    case = replace(CASES["detr"], build=partial(Detr, width, heads, 512), inputs=partial(features, width=width))
    model = export(case, how)
    plan = fewer_heads(inarch.discover(model).table, keep="0-1,4-5")
    dense, file = tmp_path / "dense" / "model.onnx", tmp_path / "compiled" / "model.onnx"
    for path in (dense, file):
        path.parent.mkdir()
    write_model(model, dense)
    inarch.compile(model, plan, file)
    removed = 4 * 6 * 4 * per_head(width, heads)
    # What is left of the difference is names, shapes and stack traces of the graph, and the room between aligned tensors.
    assert size(dense) - size(file) == pytest.approx(removed, rel=0.1)


def test_the_public_way(tmp_path: Path) -> None:
    how, file = HOWS[0], tmp_path / "model.onnx"
    model = exported("detr", how)
    plan = handwritten(found("detr", how).table)
    inarch.compile(model, plan, file, cost=COST)
    verification = inarch.verify(model, plan, file, threads=1)
    assert verification.ok
    assert len(verification.cases) >= 2


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("kind", ["fewer heads", "handwritten"])
def test_rows_that_are_masked_entirely(how: How, kind: str) -> None:
    model, discovery = exported("detr", how), found("detr", how)
    feeds = feeds_of(CASES["detr"], model)
    for case in feeds:
        mask = next(name for name, array in case.items() if array.dtype == np.bool_)
        case[mask][-1] = True
    truth = run_all(model, feeds)
    finite = [np.isfinite(values) for cases in truth.values() for case in cases for values in case.values()]
    assert all(flags[:-1].all() for flags in finite), "only the masked image may have no result"
    plan = (fewer_heads if kind == "fewer heads" else handwritten)(discovery.table)
    _, wrong = compiled_and_wrong(model, discovery, plan, feeds)
    assert not wrong
