"""What exporters and ONNX Runtime's optimiser may write, and few do: whatever a plan asks for, the result is the reference's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.frontends.canonicalize import canonicalize
from inarch.structure.discover import discover
from inarch.structure.resolve import AxisDecision, build_plan, resolve
from inarch.structure.sites import Site

from tests.contract.test_equivalence import SMALL_COST
from tests.onnx_text import attention, attention_weights, ffn, ffn_weights, model_of
from tests.zoo.check import mismatches, run_all
from tests.zoo.plans import random_plan
from tests.zoo.styles import STYLES

WIDTH, HEADS, PER_HEAD, HIDDEN = 8, 4, 4, 16
NONE = np.empty(0, np.int64)
Feed = dict[str, npt.NDArray[Any]]
Decide = Callable[[Sequence[Site]], dict[str, dict[str, AxisDecision]]]


def block(site: str, x: str, y: str, changes: Mapping[str, str]) -> str:
    """An attention with some of its lines written in another way; ``{s}`` is the site, each line is found by what it makes."""
    text = attention(site, x, y, HEADS, PER_HEAD)
    for made, line in changes.items():
        text, found = re.subn(rf"(?m)^ *{site}\.{made} = .*$", line.replace("{s}", site), text)
        assert found == 1, made
    return text


def two(changes: Mapping[str, str], weights: str = "", *, batch: int | str = "B", opset: int = 18) -> ir.Model:
    """Two such attentions behind each other; ``{s}`` in the weights is each of them."""
    declared = [attention_weights(site, WIDTH, HEADS, PER_HEAD) for site in "ab"]
    declared += [weights.replace("{s}", site) for site in "ab" if weights]
    body = block("a", "x", "h", changes) + block("b", "h", "y", changes)
    shape = f"float[{batch},S,{WIDTH}]"
    return model_of(body, inputs=f"{shape} x", outputs=f"{shape} y", weights=", ".join(declared), opset=opset)


def numbers(model: ir.Model, batch: int = 2, length: int = 5) -> Feed:
    rng = np.random.default_rng(0)
    batch = 1 if (shape := model.graph.inputs[0].shape) is not None and shape[0] == 1 else batch
    return {str(value.name): rng.standard_normal((batch, length, WIDTH)).astype(np.float32) for value in model.graph.inputs}


def wrong(model: ir.Model, decide: Decide, cases: list[Feed] | None = None) -> list[object]:
    """Where the compiled model differs from the reference."""
    discovery = discover(canonicalize(model))
    plan = build_plan(discovery.table, decide(discovery.table.sites), "m", {})
    compiled = compile_model(model, plan, cost=SMALL_COST, prefer="size").model
    applied = apply_by_values(discovery.model, discovery.table, resolve(plan, discovery.table), discovery.uses)
    feeds = cases or [numbers(model)]
    return list(mismatches(run_all(carry_over(applied, discovery.model, model), feeds), run_all(compiled, feeds)))


def units(heads: Sequence[int], inner: Sequence[int] = range(PER_HEAD)) -> npt.NDArray[np.int64]:
    return np.array([head * PER_HEAD + unit for head in heads for unit in inner], np.int64)


def keep(axis: str, *kept: Sequence[int] | npt.NDArray[np.int64]) -> Decide:
    """Each site keeps some of an axis; the last one stands for all that follow."""

    def decide(sites: Sequence[Site]) -> dict[str, dict[str, AxisDecision]]:
        chosen = [*kept, *[kept[-1]] * len(sites)]
        return {site.name: {axis: AxisDecision(np.array(some, np.int64))} for site, some in zip(sites, chosen, strict=False)}

    return decide


def share(
    axes: Sequence[str], units: Sequence[int] | npt.NDArray[np.int64], base: Sequence[int] | npt.NDArray[np.int64]
) -> Decide:
    """The second site takes units of the first."""

    def decide(sites: Sequence[Site]) -> dict[str, dict[str, AxisDecision]]:
        first, second = sites[:2]
        taken = AxisDecision(None, [(first.name, np.array(base, np.int64), np.array(units, np.int64))])
        return {second.name: dict.fromkeys(axes, taken)}

    return decide


TURNED = "{s}.q = Transpose <perm = [0, 2, 1, 3]> ({s}.q2)"


@pytest.mark.parametrize("kind", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize(
    "decide",
    [keep("head", [0, 2], [2]), share(["vo"], units(range(4)), units([3, 1, 0, 2])), keep("vo", units([1]), NONE)],
    ids=["heads", "heads in another order", "few"],
)
def test_a_norm_whose_scale_runs_along_the_heads(kind: str, decide: Decide) -> None:
    norm = f"{TURNED}  {{s}}.q3 = {kind} <axis = -1> ({{s}}.q, {{s}}.g)"
    model = two({"q3": norm}, f"float[{HEADS},1,{PER_HEAD}] {{s}}.g", opset=23)
    assert len(discover(canonicalize(model)).table.sites) == 2
    assert not wrong(model, decide)


def test_a_factor_of_every_unit_and_head_makes_units_common_to_no_head() -> None:
    product = "{s}.v = Transpose <perm = [0, 2, 1, 3]> ({s}.v2)  {s}.v3 = Mul ({s}.v, {s}.g)"
    model = two({"v3": product}, f"float[{HEADS},1,{PER_HEAD}] {{s}}.g")
    table = discover(canonicalize(model)).table
    for seed, style in enumerate(STYLES):
        plan = random_plan(np.random.default_rng(seed), table, style, name="m")
        compile_model(model, plan, cost=SMALL_COST)


def test_a_statistic_of_a_norm_that_is_read_keeps_its_heads() -> None:
    norm = f"""{TURNED}
        {{s}}.q3, {{s}}.mean = LayerNormalization <axis = -1> ({{s}}.q, {{s}}.g)"""
    model = two({"q3": norm}, f"float[{PER_HEAD}] {{s}}.g")
    site = discover(canonicalize(model)).table.sites[0]
    assert site.axes["head"].frozen is None
    mean = next(value for node in model.graph for value in node.outputs if value.name == "a.mean")
    mean.dtype, mean.shape = ir.DataType.FLOAT, ir.Shape(["B", HEADS, "S", 1])
    model.graph.outputs.append(mean)
    table = discover(canonicalize(model)).table
    assert [site.axes["head"].frozen is None for site in table.sites][:1] == [False]


def test_a_product_with_a_factor_is_shared() -> None:
    body = f"""
        a.0 = com.microsoft.FusedMatMul <alpha = 0.5> (x, a.up)
        a.1 = Relu (a.0)
        a.2 = com.microsoft.FusedMatMul <alpha = 0.25, transB = 1> (a.1, a.down)
        h = Add (x, a.2)
        {ffn("b", "h", "y")}"""
    weights = f"float[{WIDTH},{HIDDEN}] a.up, float[{WIDTH},{HIDDEN}] a.down, {ffn_weights('b', WIDTH, HIDDEN)}"
    model = model_of(body, inputs=f"float[B,S,{WIDTH}] x", outputs=f"float[B,S,{WIDTH}] y", weights=weights)
    assert not wrong(model, share(["hidden"], range(8), range(8)))
    assert not wrong(model, share(["hidden"], range(HIDDEN), range(HIDDEN)))


def test_a_gemm_that_adds_what_it_reads() -> None:
    body = """
        f = Reshape (x, flat)
        u = Gemm (f, up, bias)
        h = Relu (u)
        o = Gemm (h, down, h)
        y = Add (f, o)"""
    weights = "int64[2] flat = {-1, 8}, float[8,8] up, float[8] bias, float[8,8] down"
    model = model_of(body, inputs="float[B,S,8] x", outputs="float[M,8] y", weights=weights)
    for site in discover(canonicalize(model)).table.sites:
        assert site.axes["hidden"].frozen is not None


def test_one_head_is_left_of_what_is_squeezed() -> None:
    lines = {
        f"{role}3": f"{{s}}.{role} = Transpose <perm = [{perm}]> ({{s}}.{role}2)  {{s}}.{role}3 = Squeeze ({{s}}.{role})"
        for role, perm in (("q", "0, 2, 1, 3"), ("k", "0, 2, 3, 1"), ("v", "0, 2, 1, 3"))
    }
    lines["c1"] = "{s}.c1 = Transpose <perm = [1, 0, 2]> ({s}.c0)"
    lines["c2"] = "{s}.c2 = Reshape ({s}.c1, {s}.whole)"
    model = two(lines, f"int64[3] {{s}}.whole = {{1, -1, {HEADS * PER_HEAD}}}", batch=1)
    assert len(discover(canonicalize(model)).table.sites) == 2
    assert not wrong(model, keep("head", [0, 2], [2]))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_slices_by_integers_of_either_size(dtype: str) -> None:
    lines = {}
    for role, perm in (("q", "0, 1, 2, 3"), ("k", "0, 1, 3, 2")):
        lines[f"{role}3"] = f"""
        {{s}}.{role}4 = Transpose <perm = [0, 2, 1, 3]> ({{s}}.{role}2)
        {{s}}.{role}5 = Slice ({{s}}.{role}4, {{s}}.0, {{s}}.2, {{s}}.3)
        {{s}}.{role}6 = Slice ({{s}}.{role}4, {{s}}.2, {{s}}.4, {{s}}.3)
        {{s}}.{role}7 = Neg ({{s}}.{role}6)
        {{s}}.{role}8 = Concat <axis = 3> ({{s}}.{role}7, {{s}}.{role}5)
        {{s}}.{role}9 = Add ({{s}}.{role}4, {{s}}.{role}8)
        {{s}}.{role}3 = Transpose <perm = [{perm}]> ({{s}}.{role}9)"""
    model = two(lines, ", ".join(f"{dtype}[1] {{s}}.{n} = {{{n}}}" for n in (0, 2, 3, 4)))
    assert not wrong(model, keep("qk", [head * 2 for head in range(HEADS)]))


def test_nothing_is_left_of_a_site_with_a_frozen_axis_that_alone_knows_its_length() -> None:
    cut = """
        {s}.q = Transpose <perm = [0, 2, 1, 3]> ({s}.q2)
        {s}.q4 = LayerNormalization <axis = -1> ({s}.q, {s}.g)
        {s}.n = Shape <start = 2, end = 3> ({s}.q)
        {s}.q3 = Slice ({s}.q4, {s}.zero, {s}.n, {s}.two)"""
    model = two({"q3": cut}, f"float[{PER_HEAD}] {{s}}.g, int64[1] {{s}}.zero = {{0}}, int64[1] {{s}}.two = {{2}}")
    assert not wrong(model, keep("vo", NONE))


def test_a_mask_of_dropout_that_nobody_reads() -> None:
    body = ffn("a", "x", "h") + ffn("b", "h", "y")
    for site in "ab":
        body = body.replace(
            f"{site}.2 = Relu ({site}.1)", f"{site}.r = Relu ({site}.1)  {site}.2, {site}.mask = Dropout ({site}.r)"
        )
    weights = ", ".join(ffn_weights(site, WIDTH, HIDDEN) for site in "ab")
    model = model_of(body, inputs=f"float[B,S,{WIDTH}] x", outputs=f"float[B,S,{WIDTH}] y", weights=weights)
    assert not wrong(model, share(["hidden"], range(8), range(8)))


@pytest.mark.parametrize("shape", [(2, 5), (0, 5), (2, 0)])
def test_fused_attention_of_an_empty_batch(shape: tuple[int, int]) -> None:
    body, weights = "", []
    for site, x, y in (("a", "x", "h"), ("b", "h", "y")):
        body += "".join(f"{site}.{role} = MatMul ({x}, {site}.{role}.weight)  " for role in "qkv")
        body += f"""
        {site}.c = com.microsoft.MultiHeadAttention <num_heads = {HEADS}> ({site}.q, {site}.k, {site}.v)
        {site}.o = MatMul ({site}.c, {site}.o.weight)
        {y} = Add ({x}, {site}.o)"""
        weights += [f"float[{WIDTH},16] {site}.{role}.weight" for role in "qkv"] + [f"float[16,{WIDTH}] {site}.o.weight"]
    model = model_of(body, inputs=f"float[B,S,{WIDTH}] x", outputs=f"float[B,S,{WIDTH}] y", weights=", ".join(weights))
    half = units(range(HEADS), (0, 1))
    assert not wrong(model, share(["qk", "vo"], half, half), [numbers(model, *shape)])


def test_weights_that_are_cast_are_shared_by_sites_that_overlap() -> None:
    text = {
        site: ffn(site, "x", y).replace(f"{site}.up.weight", f"{site}.u").replace(f"{site}.down.weight", f"{site}.d")
        for site, y in ("ay", "bz")
    }
    first = {site: body.index(f"{site}.1 =") for site, body in text.items()}
    casts = "".join(
        f"{site}.{short} = Cast <to = 1> ({site}.{name}.weight)  "
        for site in "ab"
        for short, name in (("u", "up"), ("d", "down"))
    )
    body = casts + text["b"][: first["b"]] + text["a"] + text["b"][first["b"] :]
    weights = ", ".join(ffn_weights(site, WIDTH, HIDDEN) for site in "ab").replace("float", "float16")
    for site in "ab":
        weights = re.sub(rf"float16(\[\d+\] {site}\.\w+\.bias)", r"float\1", weights)
    out = f"float[B,S,{WIDTH}]"
    model = model_of(body, inputs=f"{out} x", outputs=f"{out} y, {out} z", weights=weights)
    assert not wrong(model, share(["hidden"], range(HIDDEN), range(HIDDEN)))
    assert not wrong(model, lambda sites: share(["hidden"], range(8), range(8))(sites[::-1]))


@pytest.mark.parametrize("left", [range(8), NONE], ids=["less", "nothing"])
def test_nothing_is_left_of_a_site_that_reads_another_one_at_once(left: Sequence[int]) -> None:
    body = """
        a.0 = MatMul (x, a.up)
        a.1 = Relu (a.0)
        h = MatMul (a.1, a.down)
        b.0 = MatMul (h, b.up)
        b.1 = Relu (b.0)
        b.2 = MatMul (b.1, b.down)
        z = Add (h, b.2)
        y = Add (x, z)"""
    weights = ", ".join(f"float[{WIDTH},{HIDDEN}] {site}.up, float[{HIDDEN},{WIDTH}] {site}.down" for site in "ab")
    model = model_of(body, inputs=f"float[B,S,{WIDTH}] x", outputs=f"float[B,S,{WIDTH}] y", weights=weights)
    assert len(discover(canonicalize(model)).table.sites) == 2
    assert not wrong(model, keep("hidden", left, NONE))


@pytest.mark.parametrize("left", [range(8), NONE], ids=["less", "nothing"])
def test_a_bias_that_is_a_list_of_numbers(left: Sequence[int]) -> None:
    bias = ", ".join(f"{n / 16}" for n in range(HIDDEN))
    body = f"a.up.bias = Constant <value_floats = [{bias}]> ()" + ffn("a", "x", "y")
    weights = ffn_weights("a", WIDTH, HIDDEN).replace(f"float[{HIDDEN}] a.up.bias, ", "")
    model = model_of(body, inputs=f"float[B,S,{WIDTH}] x", outputs=f"float[B,S,{WIDTH}] y", weights=weights)
    assert not wrong(model, keep("hidden", left))


def test_a_mean_over_no_axes_is_one_over_all() -> None:
    body = ffn("a", "x", "y").replace("a.2 = Relu (a.1)", "a.m = ReduceMean (a.1, none)  a.c = Sub (a.1, a.m)  a.2 = Relu (a.c)")
    weights = f"{ffn_weights('a', WIDTH, HIDDEN)}, int64[0] none = {{}}"
    model = model_of(body, inputs=f"float[B,S,{WIDTH}] x", outputs=f"float[B,S,{WIDTH}] y", weights=weights)
    assert not [site for site in discover(canonicalize(model)).table.sites if site.axes["hidden"].frozen is None]


def test_one_slice_of_the_hidden_axis_and_of_a_length_that_is_computed() -> None:
    body = f"""
        u = MatMul (x, up)
        n = Shape <start = 1, end = 2> (u)
        e = Concat <axis = 0> (n, half)
        f = Concat <axis = 0> (n, all)
        l = Slice (u, first, e, axes)
        r = Slice (u, second, f, axes)
        g = Mul (l, r)
        d = MatMul (g, down)
        h = Add (x, d)
        {ffn("b", "h", "y")}"""
    weights = f"""float[{WIDTH},16] up, float[8,{WIDTH}] down, int64[1] half = {{8}}, int64[1] all = {{16}},
        int64[2] axes = {{1, 2}}, int64[2] first = {{0, 0}}, int64[2] second = {{0, 8}}, {ffn_weights("b", WIDTH, HIDDEN)}"""
    model = model_of(body, inputs=f"float[B,S,{WIDTH}] x", outputs=f"float[B,S,{WIDTH}] y", weights=weights)
    table = discover(canonicalize(model)).table
    assert [site.name for site in table.sites] == ["b.ffn"]
    assert "at a computed place" in table.rejected[0].reason


@pytest.mark.parametrize("shape", [(2, 5), (0, 5), (2, 0)])
def test_heads_are_picked_out_of_batch_and_heads_in_one_axis(shape: tuple[int, int]) -> None:
    batch, length = shape
    roles = "".join(
        f"""
        {role}0 = MatMul (x, {role}.weight)
        {role}1 = Reshape <allowzero = 1> ({role}0, split)
        {role}2 = Transpose <perm = [0, 2, 1, 3]> ({role}1)
        {role} = Reshape <allowzero = 1> ({role}2, flat)"""
        for role in "qkv"
    )
    body = f"""
        n = Shape (x)
        b = Gather (n, zero)
        s = Gather (n, one)
        bh = Mul (b, heads)
        split = Concat <axis = 0> (b, s, heads, each)
        flat = Concat <axis = 0> (bh, s, each)
        square = Concat <axis = 0> (bh, s, s)
        apart = Concat <axis = 0> (b, heads, s, each)
        merged = Concat <axis = 0> (b, s, inner)
        every = Concat <axis = 0> (b, heads, s, s)
        {roles}
        turned = Transpose <perm = [0, 2, 1]> (k)
        scores = MatMul (q, turned)
        wide = Expand (bias, every)
        added = Reshape <allowzero = 1> (wide, square)
        biased = Add (scores, added)
        p = Softmax <axis = -1> (biased)
        c0 = MatMul (p, v)
        c1 = Reshape <allowzero = 1> (c0, apart)
        c2 = Transpose <perm = [0, 2, 1, 3]> (c1)
        c3 = Reshape <allowzero = 1> (c2, merged)
        o = MatMul (c3, o.weight)
        y = Add (x, o)"""
    inner = HEADS * PER_HEAD
    constants = {"zero": 0, "one": 1, "heads": HEADS, "each": PER_HEAD, "inner": inner}
    weights = [f"int64[1] {name} = {{{number}}}" for name, number in constants.items()]
    weights += [f"float[{WIDTH},{inner}] {role}.weight" for role in "qkv"] + [f"float[{inner},{WIDTH}] o.weight"]
    inputs = f"float[B,S,{WIDTH}] x, float[{HEADS},S,S] bias"
    model = model_of(body, inputs=inputs, outputs=f"float[B,S,{WIDTH}] y", weights=", ".join(weights))
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal((batch, length, WIDTH)), "bias": rng.standard_normal((HEADS, length, length))}
    assert len(discover(canonicalize(model)).table.sites) == 1
    assert not wrong(model, keep("head", [0, 3]), [{name: array.astype(np.float32) for name, array in feed.items()}])
