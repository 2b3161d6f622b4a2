"""What is stored once stays stored once, whatever optimises the compiled model: ONNX Runtime at every level, onnxsim, OnnxSlim.

Two claims. The compiled model of two towers keeps its unique bytes and its outputs through every tool, with dynamic shapes and
with all of them frozen. And after ONNX Runtime's full optimisation all readers of a shared weight are one kind of operator,
however they differ: in rank, in which sizes are known, in how the original multiplied and biased, and in what stands beside the
product.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import inarch
from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.frontends.canonicalize import canonicalize
from inarch.runtime.session import load
from inarch.runtime.sharing import check_sharing, tensor_bytes
from inarch.runtime.size import measure_size
from inarch.structure.cost import DEFAULT_COST, CostTable, Limits
from inarch.structure.discover import discover
from inarch.structure.plan import Plan
from inarch.structure.resolve import resolve
from inarch.structure.sites import SiteTable

from tests.zoo.blocks import Blocks, Style
from tests.zoo.check import mismatches, run_all
from tests.zoo.draft import Draft, unit_axes
from tests.zoo.encoders import bert_layer, vit_layer
from tests.zoo.graph import GraphWriter

Feeds = dict[str, npt.NDArray[Any]]

# --- two towers through every tool -----------------------------------------------------------------------------------------

WIDTH, HEADS, HIDDEN, LAYERS = 128, 4, 512, 2
"""Wide enough that weights are nearly all of the bytes."""

SIZES = {"batch": 2, "tokens": 7, "images": 3, "positions": 5}

SLACK = 1.005
"""Bytes after a tool over the unique bytes before: folded constants and masks, never a copied matrix (the smallest is 2 %)."""

LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def towers(*, tied: bool) -> ir.Model:
    """A post-norm and a pre-norm tower; where ``tied``, the layers of the first use one set of weights."""
    g = GraphWriter(np.random.default_rng(0), opset=17)
    b = Blocks(g, Style())
    x = g.input("text", ir.DataType.FLOAT, ["batch", "tokens", WIDTH])
    y = g.input("patches", ir.DataType.FLOAT, ["images", "positions", WIDTH])
    for i in range(LAYERS):
        x = bert_layer(b, x, f"text.layer.{0 if tied else i}", WIDTH, HEADS, HIDDEN, "gelu_erf", "op")
    for i in range(LAYERS):
        y = vit_layer(b, y, f"vision.layer.{i}", WIDTH, HEADS, HIDDEN, "gelu_erf", "op")
    return g.finish({"text_features": x, "image_features": y})


def feeds_of_towers() -> Feeds:
    rng = np.random.default_rng(1)
    text, patches = (SIZES["batch"], SIZES["tokens"], WIDTH), (SIZES["images"], SIZES["positions"], WIDTH)
    return {"text": rng.standard_normal(text, np.float32), "patches": rng.standard_normal(patches, np.float32)}


def _share(draft: Draft, *, inside: bool = False, whole: bool = False) -> None:
    """Every site takes units of the first site of its kind: all, the first half, or half of each head."""
    for kind in ("ffn", "msa"):
        base, *readers = draft.sites(kind)
        for reader, axis in ((r, a) for r in readers for a in unit_axes(r)):
            size, per_head = reader.axes[axis].size, reader.axes[axis].per_head
            units = np.arange(size)
            if inside and kind == "msa":
                units = units.reshape(-1, per_head)[:, : per_head // 2].reshape(-1)
            elif not whole:
                units = units[: size // 2]
            draft.take(reader, base, axis, units, units)


def _prune(draft: Draft) -> None:
    for site in draft.table.sites:
        if site.kind == "ffn":
            draft.keep[site.name, "hidden"][3 * HIDDEN // 4 :] = False
        else:
            draft.heads[site.name][HEADS - 1 :] = False


def _half(draft: Draft) -> None:
    _share(draft)


def _whole(draft: Draft) -> None:
    _share(draft, whole=True)


def _inside(draft: Draft) -> None:
    _share(draft, inside=True)


def _heads(draft: Draft) -> None:
    base, *readers = draft.sites("msa")
    for reader in readers:
        assert draft.take_heads(reader, base, np.array([0, 1]), np.array([1, 3])) == 2
    for site in draft.sites("ffn"):  # a tie that the plan does not touch is left as it was, so it touches all
        draft.keep[site.name, "hidden"][HIDDEN // 2 :] = False


def _pruned(draft: Draft) -> None:
    _prune(draft)


def _pruned_and_shared(draft: Draft) -> None:
    _prune(draft)
    _share(draft)


BY_HAND: dict[str, Callable[[Draft], None]] = {
    "half of the units": _half,
    "whole sites": _whole,
    "heads": _heads,
    "inside heads": _inside,
    "pruned": _pruned,
    "pruned and shared": _pruned_and_shared,
}
PLANNERS = ("magnitude", "similarity", "uniform")


def plan_of(model: ir.Model, name: str) -> Plan:
    if name in PLANNERS:
        return inarch.make_plan(model, keep=0.65, method=name)
    draft = Draft(np.random.default_rng(0), inarch.discover(model).table)
    BY_HAND[name](draft)
    return draft.plan("towers", name)


def freeze(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with every named size fixed, as deployments do."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    for value in (*frozen.graph.input, *frozen.graph.output, *frozen.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in SIZES:
                dim.dim_value = SIZES[dim.dim_param]
    return frozen


def session(path: Path, level: str = "disabled", saved: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Subject:
    """A compiled model, and what has to stay."""

    path: Path
    unique: int
    outputs: list[npt.NDArray[Any]]

    @staticmethod
    def of(model: onnx.ModelProto, path: Path) -> Subject:
        onnx.save(model, path)
        size = measure_size(path)
        assert size.tensor_bytes <= SLACK * size.unique_bytes, "the compiled model holds something twice"
        return Subject(path, size.unique_bytes, session(path).run(None, feeds_of_towers()))

    def check(self, path: Path) -> None:
        """Whether what a tool made of it holds no more bytes and computes the same."""
        bytes_now = tensor_bytes(load(path))
        assert bytes_now <= SLACK * self.unique, f"{bytes_now} bytes of tensors, {self.unique} before"
        for now, before in zip(session(path).run(None, feeds_of_towers()), self.outputs, strict=True):
            np.testing.assert_allclose(now, before, rtol=0, atol=1e-5 * float(np.abs(before).max()))


CASES = [(name, False) for name in (*BY_HAND, *PLANNERS)] + [
    (name, True) for name in ("heads", "pruned", "pruned and shared", "similarity")
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}{', tied layers' if case[1] else ''}")
def subjects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """One plan carried out: with dynamic shapes, with shapes frozen afterwards, and with shapes frozen before compiling."""
    name, tied = request.param
    folder = tmp_path_factory.mktemp("towers")
    original = towers(tied=tied)
    plan = plan_of(original, name)
    dynamic = ir.to_proto(compile_model(original, plan).model)
    static = ir.to_proto(compile_model(ir.from_proto(freeze(ir.to_proto(original))), plan).model)
    made = {"dynamic": dynamic, "frozen": freeze(dynamic), "static": static}
    return {shapes: Subject.of(model, folder / f"{shapes}.onnx") for shapes, model in made.items()}


@pytest.mark.parametrize("shapes", ["dynamic", "frozen", "static"])
def test_onnxruntimes_optimised_save(subjects: dict[str, Subject], shapes: str, tmp_path: Path) -> None:
    for level in LEVELS:
        session(subjects[shapes].path, level, tmp_path / f"{level}.onnx")
        subjects[shapes].check(tmp_path / f"{level}.onnx")
    assert check_sharing(subjects[shapes].path).ok


@pytest.mark.parametrize("shapes", ["dynamic", "frozen"])
def test_onnxsim(subjects: dict[str, Subject], shapes: str, tmp_path: Path) -> None:
    onnxsim = pytest.importorskip("onnxsim")
    simplified, sound = onnxsim.simplify(onnx.load(subjects[shapes].path))
    assert sound
    onnx.save(simplified, tmp_path / "simplified.onnx")
    subjects[shapes].check(tmp_path / "simplified.onnx")


@pytest.mark.parametrize("shapes", ["dynamic", "frozen"])
def test_onnxslim(subjects: dict[str, Subject], shapes: str, tmp_path: Path) -> None:
    onnxslim = pytest.importorskip("onnxslim")
    with contextlib.redirect_stdout(io.StringIO()):
        slimmed = onnxslim.slim(onnx.load(subjects[shapes].path))
    onnx.save(slimmed, tmp_path / "slimmed.onnx")
    subjects[shapes].check(tmp_path / "slimmed.onnx")


# --- readers of every shape side by side -----------------------------------------------------------------------------------

D, F, H = 32, 64, 4

ROWS: dict[str, tuple[int | str, ...]] = {
    "2-D": ("n",),
    "2-D static": (6,),
    "3-D": ("b", "s"),
    "3-D static": (2, 3),
    "3-D, static but for the batch": ("b", 3),
    "3-D, one image": (1, "s"),
    "4-D": ("b", "h", "w"),
    "4-D static": (2, 2, 3),
    "4-D, static but for the batch": ("b", 2, 3),
}
"""Leading dimensions of a reader's input."""

BIASES = ("both", "none", "sources", "sinks")


@dataclass(frozen=True)
class Reader:
    """How one site is spelled.

    Attributes:
        rows: key of :data:`ROWS`.
        linear: style of its linear layers, see ``GraphWriter``.
        biases: which of its linear layers have a bias.
        bias_first: bias + product, not product + bias.
        inner: the activation of an FFN; of an MSA, what is scaled where not the scores: ``queries``, right after their
            projection, or ``both`` queries and keys.
        turned: the residual stream is channels-first, so that a Transpose stands right before the projection.
        posed: it is turned, and what is projected is the sum of two such inputs (a DETR's features and their positions).
        after: what follows the last product: nothing, ``layer scale``, ``scalar`` or ``divided``.
    """

    rows: str = "3-D"
    linear: str = "matmul"
    biases: str = "both"
    bias_first: bool = False
    inner: str = ""
    turned: bool = False
    posed: bool = False
    after: str = ""


def _swap(g: GraphWriter, x: ir.Value, rank: int) -> ir.Value:
    return g.transpose(x, *range(rank - 2), rank - 1, rank - 2)


def _ffn(g: GraphWriter, x: ir.Value, name: str, reader: Reader, rank: int, *, gated: bool) -> ir.Value:
    sources = reader.biases in ("both", "sources")
    h = g.linear(x, f"{name}.gate" if gated else f"{name}.up", D, F, bias=sources, rank=rank, style=reader.linear)
    h = g.activation(h, reader.inner or ("silu" if gated else "gelu_erf"))
    if gated:
        h = g.op("Mul", h, g.linear(x, f"{name}.up", D, F, bias=sources, rank=rank, style=reader.linear))
    return g.linear(h, f"{name}.down", F, D, bias=reader.biases in ("both", "sinks"), rank=rank, style=reader.linear)


def _msa(g: GraphWriter, x: ir.Value, name: str, reader: Reader, rank: int) -> ir.Value:
    sources, dim = reader.biases in ("both", "sources"), D // H
    q, k, v = (g.linear(x, f"{name}.{role}", D, D, bias=sources, rank=rank, style=reader.linear) for role in "qkv")
    if reader.inner == "queries":
        q = g.op("Mul", q, g.const(dim**-0.5))
    if reader.inner == "both":
        q, k = (g.op("Mul", value, g.const(dim**-0.25)) for value in (q, k))
    lead = [0] * (rank - 1)
    perm = (*range(rank - 2), rank - 1, rank - 2, rank)
    q, k, v = (g.transpose(g.reshape(value, *lead, H, dim), *perm) for value in (q, k, v))
    scores = g.op("MatMul", q, g.transpose(k, *range(rank - 1), rank, rank - 1))
    if not reader.inner:
        scores = g.op("Mul", scores, g.const(dim**-0.5))
    mixed = g.reshape(g.transpose(g.op("MatMul", g.softmax(scores), v), *perm), *lead, D)
    return g.linear(mixed, f"{name}.o", D, D, bias=reader.biases in ("both", "sinks"), rank=rank, style=reader.linear)


def readers_model(kind: str, readers: list[Reader], *, tied: bool = False) -> tuple[ir.Model, Feeds]:
    """One site a reader, each with an input and an output of its own; where ``tied``, all of them on the same weights."""
    rng = np.random.default_rng(0)
    g = GraphWriter(rng, opset=20)
    outputs, feeds = {}, {}
    for i, reader in enumerate(readers):
        g.bias_first = reader.bias_first
        lead = ROWS[reader.rows]
        rank = len(lead) + 1
        dims = [*(f"{size}{i}" if isinstance(size, str) else size for size in lead), D]
        sizes = [*(size if isinstance(size, int) else 2 + place for place, size in enumerate(lead)), D]
        if reader.turned:
            dims[-1], dims[-2] = dims[-2], dims[-1]
            sizes[-1], sizes[-2] = sizes[-2], sizes[-1]
        x = g.input(f"x{i}", ir.DataType.FLOAT, dims)
        feeds[f"x{i}"] = rng.standard_normal(sizes, np.float32)
        name = "site" if tied else f"site{i}"
        h = _swap(g, x, rank) if reader.turned else g.norm(x, f"norm{i}", D)
        if reader.posed:
            feeds[f"p{i}"] = rng.standard_normal(sizes, np.float32)
            h = g.op("Add", h, _swap(g, g.input(f"p{i}", ir.DataType.FLOAT, dims), rank))
        y = _msa(g, h, name, reader, rank) if kind == "msa" else _ffn(g, h, name, reader, rank, gated=kind == "gated ffn")
        match reader.after:
            case "layer scale":
                y = g.op("Mul", y, g.normal(f"gamma{i}", (D,)))
            case "scalar":
                y = g.op("Mul", y, g.const(0.5))
            case "divided":
                y = g.op("Div", y, g.const(np.array([2.0])))
        outputs[f"y{i}"] = g.op("Add", x, _swap(g, y, rank) if reader.turned else y)
    return g.finish(outputs), feeds


def every_reader(kind: str) -> Iterator[Reader]:
    """All shapes with and without biases, as MatMul and as Gemm; then one more difference at a time."""
    yield from (Reader(rows, biases=biases) for rows, biases in product(ROWS, BIASES))
    inner = {
        "ffn": ("relu", "gelu_op", "gelu_tanh", "quick_gelu", "silu"),
        "gated ffn": ("gelu_erf",),
        "msa": ("queries", "both"),
    }
    for rows in ("2-D", "3-D", "3-D static", "4-D"):
        yield from (Reader(rows, "gemm", biases) for biases in ("both", "none"))
        yield Reader(rows, bias_first=True)
        # Without a bias nothing stands between the product and what is beside it.
        bare = Reader(rows, biases="none")
        yield from (replace(bare, turned=True, posed=posed) for posed in (False, True)[: 1 + (kind == "msa")])
        yield from (replace(bare, linear=linear) for linear in ("transpose", "gemm0"))
        yield from (replace(bare, after=after) for after in ("layer scale", "scalar", "divided"))
        yield from (replace(bare, inner=name) for name in inner[kind])


def shared_plan(table: SiteTable, how: str) -> Plan:
    """Every site shares with the first: all units, the first half of them, or every second unit (half of each head)."""
    draft = Draft(np.random.default_rng(0), table)
    base, *readers = table.sites
    for reader, axis in ((r, a) for r in readers for a in unit_axes(r)):
        units = np.arange(reader.axes[axis].size)
        if how == "half":
            units = units[: len(units) // 2]
        elif how == "every second":
            units = units[::2]
        assert draft.take(reader, base, axis, units, units) == len(units)
    return draft.plan("readers", how)


FINE = Limits(multiple=1, rounding=0.0, min_segment=1, max_segments=8)
COST = CostTable(
    format="inarch.cost/1", description="nothing is too small", balanced=FINE, size=FINE, latency=DEFAULT_COST.latency
)


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in ("ffn", "gated ffn", "msa") for how in ("whole", "half")] + [("msa", "every second")],
)
def test_all_readers_of_a_shared_weight_are_one_operator(kind: str, how: str) -> None:
    readers = list(every_reader(kind))
    model, feeds = readers_model(kind, readers)
    found = discover(canonicalize(model))
    assert len(found.table.sites) == len(readers)
    plan = shared_plan(found.table, how)
    compiled = compile_model(model, plan, cost=COST).model
    report = check_sharing(compiled)
    assert len(report.tensors) == {"ffn": 2, "gated ffn": 3, "msa": 4}[kind]
    assert not [f"{tensor.name}: {tensor.reason}" for tensor in report.tensors if not tensor.ok]
    assert all(sum(tensor.readers.values()) == len(readers) for tensor in report.tensors)
    applied = apply_by_values(found.model, found.table, resolve(plan, found.table), found.uses)
    reference = carry_over(applied, found.model, model)
    assert not list(mismatches(run_all(reference, [feeds]), run_all(compiled, [feeds])))


@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim"])
def test_no_tool_joins_the_shared_products_of_one_input(tool: str) -> None:
    """Three products of one input are made one, and their weights one packed copy, wherever a simplifier recognises them."""
    simplifier = pytest.importorskip(tool)
    spellings = product(("2-D", "3-D", "3-D static"), ("matmul", "gemm"), ("both", "none"), (False, True))
    readers = [Reader(rows, linear, biases, turned=turned) for rows, linear, biases, turned in spellings]
    model, _ = readers_model("msa", readers)
    compiled = ir.to_proto(compile_model(model, shared_plan(inarch.discover(model).table, "whole"), cost=COST).model)
    with contextlib.redirect_stdout(io.StringIO()):
        after = simplifier.simplify(compiled)[0] if tool == "onnxsim" else simplifier.slim(compiled)
    matrices = [
        {numpy_helper.to_array(tensor).tobytes() for tensor in proto.graph.initializer if np.prod(tensor.dims) >= D * D}
        for proto in (compiled, after)
    ]
    assert len(matrices[0]) == 4
    assert matrices[0] == matrices[1]
    assert sum(np.prod(tensor.dims) >= D * D for tensor in after.graph.initializer) == 4


def test_without_care_the_readers_are_several_operators() -> None:
    """The same weights read by layers as exporters write them: ONNX Runtime packs each of them several times."""
    readers = [Reader("2-D"), Reader("3-D"), Reader("3-D static", biases="none")]
    model, _ = readers_model("ffn", readers, tied=True)
    report = check_sharing(model)
    assert {tensor.name for tensor in report.tensors if not tensor.ok} == {"site.up.weight", "site.down.weight"}
