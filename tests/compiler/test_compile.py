"""Compiling as a whole: what is written, what is recorded, what is refused, and the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.compile import MINIMUM_ORT, compile_model
from inarch.compiler.reference import apply_by_values
from inarch.compiler.values import parameter_tensors
from inarch.frontends.onnx_file import load_model
from inarch.structure.cost import DEFAULT_COST, cost_hash
from inarch.structure.discover import discover
from inarch.structure.errors import BindingError, CyclicSharingError, InarchError, ModelError, PlanError, UnitOutOfRangeError
from inarch.structure.plan import Plan, plan_hash, save_plan
from inarch.structure.resolve import AxisDecision, build_plan, resolve
from inarch.structure.units import parse_sequence

from tests.contract.test_equivalence import SMALL_COST, model_of, pairs_of
from tests.onnx_text import model_of as text_model
from tests.passes.case import COST, array, case_of, ffns, keep, proto, share
from tests.zoo import build
from tests.zoo.check import inputs_of, mismatches, run_all


def numbers(model: ir.Model) -> int:
    return discover(model).table.parameters


@pytest.mark.parametrize("form", ["two_tower", "two_tower_packed", "decoder_in_proj", "swiglu_split", "tied_members", "swin"])
def test_nothing_is_stored_that_the_lowering_does_not_count(form: str) -> None:
    """The file's numbers are at most the lowered plan's (constants that die with an empty site are not counted by site)."""
    for seed in range(3):
        zoo, _ = model_of(form, seed)
        for pair in pairs_of(form, seed):
            result = compile_model(zoo.model, pair.plan, None, cost=SMALL_COST, prefer=pair.prefer)
            assert numbers(result.model) <= result.lowered.stored, pair.plan.provenance["style"]
            for segment in result.lowered.segments:
                own = [v for name, v in result.model.graph.initializers.items() if name.startswith(f"{segment.id}.")]
                assert all(len(value.uses()) >= len(segment.readers) >= 2 for value in own)


def test_the_original_is_not_changed() -> None:
    zoo, _ = model_of("two_tower_packed", 0)
    before = proto(zoo.model)
    for pair in pairs_of("two_tower_packed", 0):
        compile_model(zoo.model, pair.plan, None, cost=SMALL_COST)
    assert proto(zoo.model) == before


def test_a_plan_that_decides_nothing_gives_the_model_back() -> None:
    zoo, found = model_of("packed_timm", 0)
    result = compile_model(zoo.model, build_plan(found.table, {}, "m", {}), None)
    assert result.lowered.stored == result.lowered.parameters == numbers(zoo.model)
    assert [(n.op_type, n.name) for n in result.model.graph] == [(n.op_type, n.name) for n in zoo.model.graph]
    mine, theirs = result.model.graph.initializers, zoo.model.graph.initializers
    assert {n: v.const_value for n, v in mine.items()} == {n: v.const_value for n, v in theirs.items()}
    cases = inputs_of(zoo, 0)
    for level in run_all(zoo.model, cases).items():
        other = run_all(result.model, cases)[level[0]]
        assert all(np.array_equal(a[k], b[k]) for a, b in zip(level[1], other, strict=True) for k in a)


def test_only_packed_projections_of_touched_sites_are_taken_apart() -> None:
    zoo, found = model_of("packed_timm", 0)
    first, *others = [site.name for site in found.table.sites if site.kind == "msa"]
    plan = build_plan(found.table, {first: {"head": AxisDecision(np.arange(1))}}, "m", {})
    model = compile_model(zoo.model, plan, None, cost=COST).model
    packed = {site: found.table[site].members["q"].param for site in (first, *others)}
    left = parameter_tensors(model)
    assert packed[first] not in left
    assert all(packed[site] in left for site in others)


def test_what_is_recorded() -> None:
    case = case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-3")}})
    case.model.metadata_props["author"] = "somebody"
    result = compile_model(case.model, case.plan, None, cost=COST, prefer="size")
    metadata = result.model.metadata_props
    assert metadata["author"] == "somebody"
    assert metadata["inarch.plan"] == plan_hash(case.plan)
    assert metadata["inarch.cost"] == f"{cost_hash(COST)}:size"
    assert metadata["inarch.onnxruntime"] == f">={MINIMUM_ORT}"
    assert json.loads(metadata["inarch.shared"]) == ["segment0.hidden.down", "segment0.hidden.up"]
    assert metadata["inarch.planned"] == metadata["inarch.stored"] == str(numbers(result.model))
    assert compile_model(case.model, case.plan, None).metadata["inarch.cost"] == cost_hash(DEFAULT_COST)


def test_a_compiled_model_is_compiled_again(tmp_path: Path) -> None:
    """b takes half of a; then, of the result, b's and a's private rests are pruned to one unit each."""
    case = case_of(ffns("a", "b"), {"a.ffn": {"hidden": keep("0-5")}})
    compile_model(case.model, case.plan, tmp_path / "once.onnx", cost=COST)
    once = load_model(tmp_path / "once.onnx")
    again = case_of(once, {"b.ffn": {"hidden": share("a.ffn", "0-5")}})
    result = compile_model(tmp_path / "once.onnx", again.plan, tmp_path / "twice.onnx", cost=COST)
    assert result.lowered.stored == numbers(load_model(tmp_path / "twice.onnx"))
    assert not again.wrong(load_model(tmp_path / "twice.onnx"))


def test_a_file_computes_what_the_model_in_memory_does(tmp_path: Path) -> None:
    zoo, found = model_of("two_tower", 0)
    pair = pairs_of("two_tower", 0)[0]
    ir.save(zoo.model, tmp_path / "dense.onnx", external_data="dense.data")
    result = compile_model(tmp_path / "dense.onnx", pair.plan, tmp_path / "small.onnx", cost=SMALL_COST, prefer=pair.prefer)
    assert result.written is not None
    reference = apply_by_values(found.model, found.table, resolve(pair.plan, found.table), found.uses)
    cases = inputs_of(zoo, 0)
    assert not list(mismatches(run_all(reference, cases), run_all(load_model(tmp_path / "small.onnx"), cases)))


SCRIPT = """
import hashlib, sys
from pathlib import Path
import onnx_ir as ir
from inarch.compiler.compile import compile_model
from inarch.structure.plan import load_plan
folder = Path(sys.argv[1])
out = Path(sys.argv[2])
compile_model(folder / "dense.onnx", load_plan(folder / "plan.json"), out / "small.onnx")
for path in sorted(out.iterdir()):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""


@pytest.mark.parametrize("form", ["two_tower_packed", "tied_members"])
def test_the_same_input_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    """In processes of their own, with other hash seeds, so that no order of a set gets into the file."""
    zoo, _ = model_of(form, 0)
    plan = pairs_of(form, 0)[0].plan
    ir.save(zoo.model, tmp_path / "dense.onnx", external_data="dense.data")
    save_plan(plan, tmp_path / "plan.json")
    printed = set()
    for seed in ("0", "1"):
        out = tmp_path / seed
        out.mkdir()
        source = str(Path(__file__).parents[2] / "src")
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": source}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(out)]
        printed.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    here = tmp_path / "here"
    here.mkdir()
    compile_model(tmp_path / "dense.onnx", plan, here / "small.onnx")
    lines = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in sorted(here.iterdir())]
    printed.add("".join(lines))
    assert len(printed) == 1
    assert len(lines) == 2


def plan_of(model: ir.Model, units: str) -> Plan:
    return build_plan(discover(model).table, {"a.ffn": {"hidden": AxisDecision(parse_sequence(units))}}, "m", {})


def test_plans_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    case = case_of(ffns("a", "b"), {"b.ffn": {"hidden": share("a.ffn", "0-3")}})
    out = tmp_path / "out.onnx"
    other = ffns("a", "b", hidden=6)
    with pytest.raises((PlanError, BindingError)):
        compile_model(other, case.plan, out)
    sites = dict(case.plan.sites)
    axis = sites["a.ffn"].axes["hidden"]
    back = sites["b.ffn"].axes["hidden"].share[0].model_copy(update={"base": "b.ffn"})
    circular = sites["a.ffn"].model_copy(update={"axes": {"hidden": axis.model_copy(update={"share": (back,)})}})
    with pytest.raises(CyclicSharingError):
        compile_model(case.model, case.plan.model_copy(update={"sites": sites | {"a.ffn": circular}}), out)
    far = sites["a.ffn"].model_copy(update={"axes": {"hidden": axis.model_copy(update={"keep": "0-99"})}})
    with pytest.raises(UnitOutOfRangeError):
        compile_model(case.model, case.plan.model_copy(update={"sites": sites | {"a.ffn": far}}), out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("written", [True, False])
def test_a_changed_weight_that_is_not_finite_is_refused(written: bool, tmp_path: Path) -> None:
    model = ffns("a")
    value = model.graph.initializers["a.up.weight"]
    bad = array(model, "a.up.weight").copy()
    bad[1, 7] = np.nan
    value.const_value = ir.tensor(bad, name="a.up.weight")
    with pytest.raises(ModelError, match=r"a\.up\.weight"):
        compile_model(model, plan_of(model, "0-3"), tmp_path / "out.onnx" if written else None, cost=COST)
    assert not list(tmp_path.iterdir())


def test_an_unchanged_weight_may_be_anything() -> None:
    """A mask of minus infinities and a site that the plan leaves alone."""
    model = ffns("a", "b")
    value = model.graph.initializers["b.up.weight"]
    value.const_value = ir.tensor(np.full((4, 8), -np.inf, np.float32), name="b.up.weight")
    result = compile_model(model, plan_of(model, "0-3"), None, cost=COST)
    assert np.isinf(array(result.model, "b.up.weight")).all()


def test_progress_is_told_from_reading_to_writing(tmp_path: Path) -> None:
    told: list[str] = []
    model = ffns("a")
    compile_model(model, plan_of(model, "0-3"), tmp_path / "out.onnx", progress=lambda stage, done, total: told.append(stage))
    stages = list(dict.fromkeys(told))
    assert stages[:2] == ["reading the model", "lowering the plan"]
    assert {"prune", "share", "refresh-shapes"} <= set(stages)
    assert set(stages[stages.index("passes") + 1 :]) <= {"writing"}


def test_stack_traces_are_not_written_and_other_metadata_is() -> None:
    model = ffns("a")
    node = next(iter(model.graph))
    node.metadata_props.update({"pkg.torch.onnx.stack_trace": 'File "/home/x/y.py", line 3', "pkg.own": "kept"})
    text = proto(compile_model(model, plan_of(model, "0-3"), None, cost=COST).model)
    assert b"/home/x" not in text
    assert b"pkg.own" in text


def test_every_refusal_is_an_inarch_error() -> None:
    _, found = model_of("two_tower", 0)
    plan = build_plan(found.table, {}, "m", {})
    for form in ("swiglu", "gqa", "tied_layers"):
        with pytest.raises(InarchError):
            compile_model(build(form, 0).model, plan, None)


def attention_of_hidden_heads() -> ir.Model:
    """An attention whose heads are counted by -1, between sizes of another input: only its exporter knew how many there are."""
    body = """
        s = Shape (m)
        lead = Slice (s, zero, two)
        split = Concat <axis = 0> (lead, minus, four)
        together = Concat <axis = 0> (lead, minus)"""
    for name in "qkv":
        body += f"""
        {name}1 = MatMul (x, w{name})
        {name}2 = Reshape ({name}1, split)
        {name} = Transpose <perm = [{"0, 2, 3, 1" if name == "k" else "0, 2, 1, 3"}]> ({name}2)"""
    body += """
        scores = MatMul (q, k)
        scaled = Mul (scores, half)
        weights = Softmax <axis = -1> (scaled)
        seen = MatMul (weights, v)
        back = Transpose <perm = [0, 2, 1, 3]> (seen)
        flat = Reshape (back, together)
        o = MatMul (flat, wo)
        y = Add (o, x)"""
    weights = ", ".join(f"float[16,16] w{name}" for name in "qkvo")
    constants = "int64[1] zero = {0}, int64[1] two = {2}, int64[1] minus = {-1}, int64[1] four = {4}, float half = {0.5}"
    model = text_model(
        body, inputs="float[B,S,16] x, float[C,T,2] m", outputs="float[B,S,16] y", weights=f"{weights}, {constants}"
    )
    values = ir.convenience.create_value_mapping(model.graph)
    for name in "qkv":
        values[f"{name}2"].shape = ir.Shape(["B", "S", 4, 4])
    values["flat"].shape = ir.Shape(["B", "S", 16])
    return model


def test_sizes_that_only_the_exporter_knew_are_known_of_the_compiled_model() -> None:
    model = attention_of_hidden_heads()
    (name,) = (site.name for site in discover(model).table.sites)
    case = case_of(model, {name: {"head": keep("0,2-3"), "qk": keep("0-1,4-5,8-9,12-13")}})
    result = compile_model(model, case.plan, None, cost=COST)
    (site,) = discover(result.model).table.sites
    assert (site.kind, site.heads, site.axes["qk"].per_head, site.axes["vo"].per_head) == ("msa", 3, 2, 4)
    assert not case.wrong(result.model, {"C": 2, "T": 3})
