"""The reference: values by the plan, ties forked, nothing else touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from inarch.compiler.reference import apply_by_values
from inarch.compiler.values import SiteValues, all_finite
from inarch.structure.errors import LoweringError, ModelError
from inarch.structure.lowered import ResolvedAxis, ResolvedPlan
from inarch.structure.sites import Member, Site, SiteTable

Array = npt.NDArray[Any]
WIDTH, HIDDEN = 4, 6


def axis_of(number: int, size: int, pruned: list[int] = [], share: Mapping[int, tuple[int, int]] = {}) -> ResolvedAxis:  # noqa: B006
    """A resolved axis: ``share`` is unit -> (site number, unit)."""
    mask = np.zeros(size, np.bool_)
    mask[pruned] = True
    site, unit = np.full(size, number), np.arange(size)
    for mine, (other, theirs) in share.items():
        site[mine], unit[mine] = other, theirs
    return ResolvedAxis(mask, site, unit)


def table_of(*sites: Site) -> SiteTable:
    return SiteTable(sites, (), 0, 0)


def ffn_site(
    name: str, up: str, down: str, *, linear: bool = False, gate: str | None = None, start: int = 0, rows: int = HIDDEN
) -> Site:
    """An FFN's site; ``linear`` stores up as [hidden, width] as torch does, and ``start`` is up's place in a packed parameter."""
    factors = (("hidden", HIDDEN),)
    shape = (rows, WIDTH) if linear else (WIDTH, rows)
    members = {"up": Member("up", up, 0 if linear else 1, start, shape, factors, transposed=linear)}
    members["up_bias"] = Member("up_bias", f"{name}.up.bias", 0, 0, (HIDDEN,), factors)
    if gate is not None:
        members["gate"] = Member("gate", gate, 0 if linear else 1, HIDDEN, shape, factors, transposed=linear)
    members["down"] = Member("down", down, 0, 0, (HIDDEN, WIDTH), factors)
    return Site(name, "ffn", members, {"hidden": HIDDEN})


@dataclass
class Built:
    """A model of FFNs in a row, and who reads what."""

    model: ir.Model
    slots: dict[str, dict[str, list[tuple[ir.Node, int]]]]

    def uses(self, site: str) -> Mapping[str, list[tuple[ir.Node, int]]]:
        return self.slots[site]

    def array(self, name: str) -> Array:
        value = self.model.graph.initializers[name].const_value
        assert value is not None
        return value.numpy()


def build(params: dict[str, Array], ffns: list[tuple[str, str, str, bool]], constants: tuple[str, ...] = ()) -> Built:
    """FFNs ``(site, up, down, transpose)`` on a residual stream; an up that is stored transposed passes a Transpose node."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", WIDTH]))
    values: dict[str, ir.Value] = {}
    nodes: list[ir.Node] = []
    for name, array in params.items():
        tensor = ir.Tensor(array, name=name)
        if name in constants:
            node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)])
            node.outputs[0].name = name
            nodes.append(node)
            values[name] = node.outputs[0]
        else:
            values[name] = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    slots: dict[str, dict[str, list[tuple[ir.Node, int]]]] = {}
    stream = x
    for site, up, down, transpose in ffns:
        read = values[up]
        if transpose:
            nodes.append(ir.Node("", "Transpose", [read], [ir.AttrInt64s("perm", [1, 0])], name=f"{site}.t"))
            read = nodes[-1].outputs[0]
            read.name = f"{site}.up.t"
        first = ir.Node("", "MatMul", [stream, read], name=f"{site}.up")
        bias = ir.Node("", "Add", [first.outputs[0], values[f"{site}.up.bias"]])
        relu = ir.Node("", "Relu", [bias.outputs[0]])
        second = ir.Node("", "MatMul", [relu.outputs[0], values[down]], name=f"{site}.down")
        add = ir.Node("", "Add", [stream, second.outputs[0]])
        add.outputs[0].name = f"{site}.out"
        nodes += [first, bias, relu, second, add]
        stream = add.outputs[0]
        slots[site] = {"up": [(first, 1)], "up_bias": [(bias, 1)], "down": [(second, 1)]}
    stream.type = ir.TensorType(ir.DataType.FLOAT)
    stream.shape = ir.Shape(["n", WIDTH])
    initializers = [value for name, value in values.items() if name not in constants]
    graph = ir.Graph([x], [stream], nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="g")
    return Built(ir.Model(graph, ir_version=10), slots)


def weights(seed: int = 0, dtype: Any = np.float32, **shapes: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name.replace("__", "."): rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def two(dtype: Any = np.float32) -> tuple[Built, SiteTable]:
    """Site a stored [in, out], site b's up stored [out, in]: the same weight vectors in two layouts."""
    params = weights(
        dtype=dtype,
        a__up=(WIDTH, HIDDEN), a__up__bias=(HIDDEN,), a__down=(HIDDEN, WIDTH),
        b__up=(HIDDEN, WIDTH), b__up__bias=(HIDDEN,), b__down=(HIDDEN, WIDTH),
    )  # fmt: skip
    built = build(params, [("a", "a.up", "a.down", False), ("b", "b.up", "b.down", True)])
    return built, table_of(ffn_site("a", "a.up", "a.down"), ffn_site("b", "b.up", "b.down", linear=True))


def plan(**axes: ResolvedAxis) -> ResolvedPlan:
    return ResolvedPlan(tuple(axes), {name: {"hidden": axis} for name, axis in axes.items()})


def after(model: ir.Model) -> dict[str, Array]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value is not None}


def test_pruned_units_are_zero_with_their_biases() -> None:
    built, table = two()
    result = after(apply_by_values(built.model, table, plan(a=axis_of(0, HIDDEN, [1, 4]), b=axis_of(1, HIDDEN)), built.uses))
    assert (result["a.up"][:, [1, 4]] == 0).all()
    assert (result["a.down"][[1, 4]] == 0).all()
    assert (result["a.up.bias"][[1, 4]] == 0).all()
    rest = [0, 2, 3, 5]
    assert (result["a.up"][:, rest] == built.array("a.up")[:, rest]).all()
    assert (result["a.up.bias"][rest] == built.array("a.up.bias")[rest]).all()
    assert all((result[name] == built.array(name)).all() for name in ("b.up", "b.down", "b.up.bias"))


def test_shared_units_take_the_roots_vectors_across_layouts_and_keep_their_bias() -> None:
    built, table = two()
    resolved = plan(a=axis_of(0, HIDDEN), b=axis_of(1, HIDDEN, share={0: (0, 5), 3: (0, 2)}))
    result = after(apply_by_values(built.model, table, resolved, built.uses))
    assert (result["b.up"][[0, 3]] == built.array("a.up")[:, [5, 2]].T).all()
    assert (result["b.down"][[0, 3]] == built.array("a.down")[[5, 2]]).all()
    assert (result["b.up.bias"] == built.array("b.up.bias")).all()
    assert (result["b.up"][[1, 2, 4, 5]] == built.array("b.up")[[1, 2, 4, 5]]).all()


def test_readers_take_a_dead_roots_original_vectors() -> None:
    built, table = two()
    resolved = plan(a=axis_of(0, HIDDEN, [5]), b=axis_of(1, HIDDEN, share={0: (0, 5)}))
    result = after(apply_by_values(built.model, table, resolved, built.uses))
    assert (result["a.up"][:, 5] == 0).all()
    assert (result["b.up"][0] == built.array("a.up")[:, 5]).all()
    assert (result["b.up"][0] != 0).any()


def test_the_input_model_is_untouched_and_tensors_are_lazy() -> None:
    built, table = two()
    before = {name: array.copy() for name, array in after(built.model).items()}
    nodes = len(list(built.model.graph))
    reference = apply_by_values(built.model, table, plan(a=axis_of(0, HIDDEN, [0]), b=axis_of(1, HIDDEN)), built.uses)
    assert isinstance(reference.graph.initializers["a.up"].const_value, ir.LazyTensor)
    assert reference.graph.initializers["b.up"].const_value is built.model.graph.initializers["b.up"].const_value
    assert len(list(reference.graph)) == nodes == len(list(built.model.graph))
    after(reference)
    assert all((array == before[name]).all() for name, array in after(built.model).items())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_keeps_its_dtype_and_bits(dtype: Any) -> None:
    built, table = two(dtype)
    resolved = plan(a=axis_of(0, HIDDEN, [1]), b=axis_of(1, HIDDEN, share={0: (0, 5)}))
    result = after(apply_by_values(built.model, table, resolved, built.uses))
    assert result["b.up"].dtype == dtype
    assert (result["b.up"][0] == built.array("a.up")[:, 5]).all()
    assert (result["a.up"][:, 1] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_or_inf_in_a_changed_member_is_refused_before_anything_is_written(bad: float, dtype: Any) -> None:
    built, table = two(dtype)
    built.array("a.down")[2, 1] = bad
    with pytest.raises(ModelError, match=r"a: parameter 'a.down' holds NaN or Inf"):
        apply_by_values(built.model, table, plan(a=axis_of(0, HIDDEN, [0]), b=axis_of(1, HIDDEN)), built.uses)
    with pytest.raises(ModelError, match=r"'a.down'"):  # b takes the very vector
        apply_by_values(built.model, table, plan(a=axis_of(0, HIDDEN), b=axis_of(1, HIDDEN, share={0: (0, 2)})), built.uses)
    # What nobody takes from an unchanged base is nobody's concern.
    apply_by_values(built.model, table, plan(a=axis_of(0, HIDDEN), b=axis_of(1, HIDDEN, share={0: (0, 1)})), built.uses)
    apply_by_values(built.model, table, plan(a=axis_of(0, HIDDEN), b=axis_of(1, HIDDEN, [0])), built.uses)  # a does not change


def tied() -> tuple[Built, SiteTable]:
    """Sites a, b and c that read one up, b and c through a Transpose of their own; their downs are their own."""
    params = weights(
        up=(WIDTH, WIDTH), a__up__bias=(WIDTH,), b__up__bias=(WIDTH,), c__up__bias=(WIDTH,),
        a__down=(WIDTH, WIDTH), b__down=(WIDTH, WIDTH), c__down=(WIDTH, WIDTH),
    )  # fmt: skip
    built = build(params, [("a", "up", "a.down", False), ("b", "up", "b.down", True), ("c", "up", "c.down", True)])
    sites = []
    for name, axis in (("a", 1), ("b", 0), ("c", 0)):
        factors = (("hidden", WIDTH),)
        members = {
            "up": Member("up", "up", axis, 0, (WIDTH, WIDTH), factors, axis == 0),
            "up_bias": Member("up_bias", f"{name}.up.bias", 0, 0, (WIDTH,), factors),
            "down": Member("down", f"{name}.down", 0, 0, (WIDTH, WIDTH), factors),
        }
        sites.append(Site(name, "ffn", members, {"hidden": WIDTH}))
    return built, table_of(*sites)


def reads(model: ir.Model, node: str) -> tuple[str | None, str | None]:
    """(initializer, its view) that a node's weight comes from."""
    value = next(n for n in model.graph if n.name == node).inputs[1]
    assert value is not None
    producer = value.producer()
    source = producer.inputs[0] if producer is not None else value
    assert source is not None
    return source.name, value.name


def test_a_tie_is_forked_through_its_views_only_where_the_plan_splits_it() -> None:
    built, table = tied()
    resolved = plan(a=axis_of(0, WIDTH), b=axis_of(1, WIDTH, [1]), c=axis_of(2, WIDTH, [1]))
    reference = apply_by_values(built.model, table, resolved, built.uses)
    result = after(reference)
    assert (result["up"] == built.array("up")).all()
    assert reads(reference, "a.up") == ("up", "up")
    fork, view = reads(reference, "b.up")
    assert fork == reads(reference, "c.up")[0] != "up", "b and c want the same values, so they stay tied"
    assert (result[str(fork)][1] == 0).all()
    assert view != "b.up.t"
    assert set(result) - set(after(built.model)) == {fork}
    order = [node.name for node in reference.graph]
    producer = next(n for n in reference.graph if n.name == "b.up").inputs[1]
    assert producer is not None
    made = producer.producer()
    assert made is not None
    assert order.index(made.name) < order.index("b.up")


def test_readers_outside_the_sites_keep_the_original_values() -> None:
    built, table = tied()
    small = SiteTable(table.sites[1:], (), 0, 0)  # a's MatMul reads the parameter and belongs to no site
    resolved = plan(b=axis_of(0, WIDTH, [1]), c=axis_of(1, WIDTH, [1]))
    reference = apply_by_values(built.model, small, resolved, built.uses)
    assert reads(reference, "a.up")[0] == "up"
    assert (after(reference)["up"] == built.array("up")).all()
    assert reads(reference, "b.up")[0] == reads(reference, "c.up")[0] != "up"


def test_a_tie_whose_readers_all_agree_keeps_its_name() -> None:
    built, table = tied()
    resolved = plan(**{name: axis_of(number, WIDTH, [1]) for number, name in enumerate("bc")})
    del built.slots["a"]
    ones = ir.Tensor(np.ones((WIDTH, WIDTH), np.float32))
    other = ir.Value(name="other", type=ir.TensorType(ir.DataType.FLOAT), const_value=ones)
    built.model.graph.register_initializer(other)
    next(n for n in built.model.graph if n.name == "a.up").replace_input_with(1, other)
    reference = apply_by_values(built.model, SiteTable(table.sites[1:], (), 0, 0), resolved, built.uses)
    assert reads(reference, "b.up")[0] == reads(reference, "c.up")[0] == "up"
    assert (after(reference)["up"][1] == 0).all()


def test_sharing_with_ones_own_tie_changes_nothing() -> None:
    built, table = tied()
    resolved = plan(a=axis_of(0, WIDTH), b=axis_of(1, WIDTH), c=axis_of(2, WIDTH, share={1: (1, 1)}))
    reference = apply_by_values(built.model, table, resolved, built.uses)
    assert reads(reference, "c.up")[0] == "up"
    assert (after(reference)["c.down"][1] == built.array("b.down")[1]).all(), "down is not tied, so it does change"


def test_without_uses_contradicting_ties_are_refused() -> None:
    built, table = tied()
    with pytest.raises(LoweringError, match="through one input"):
        apply_by_values(
            built.model, SiteTable(table.sites[1:], (), 0, 0), plan(b=axis_of(0, WIDTH, [1]), c=axis_of(1, WIDTH)), None
        )


def test_packed_members_change_one_parameter_in_place() -> None:
    params = weights(pack=(WIDTH, 2 * HIDDEN), a__up__bias=(HIDDEN,), a__down=(HIDDEN, WIDTH))
    built = build(params, [])
    site = ffn_site("a", "pack", "a.down", gate="pack", rows=2 * HIDDEN)
    result = after(apply_by_values(built.model, table_of(site), plan(a=axis_of(0, HIDDEN, [0], {1: (0, 2)}))))
    pack = built.array("pack")
    assert (result["pack"][:, [0, HIDDEN]] == 0).all()
    assert (result["pack"][:, 1] == pack[:, 2]).all()
    assert (result["pack"][:, HIDDEN + 1] == pack[:, HIDDEN + 2]).all()
    assert set(result) == set(params)


def test_a_constant_node_becomes_an_initializer_of_the_same_name() -> None:
    params = weights(a__up=(WIDTH, HIDDEN), a__up__bias=(HIDDEN,), a__down=(HIDDEN, WIDTH))
    built = build(params, [("a", "a.up", "a.down", False)], constants=("a.up",))
    table = table_of(ffn_site("a", "a.up", "a.down"))
    reference = apply_by_values(built.model, table, plan(a=axis_of(0, HIDDEN, [3])), built.uses)
    assert (after(reference)["a.up"][:, 3] == 0).all()
    assert not [node for node in reference.graph if node.op_type == "Constant"]
    assert reads(reference, "a.up")[0] == "a.up"


def grouped(name: str, group: int) -> Site:
    """Grouped-query attention: 2 key/value heads of 2, ``group`` query heads each."""
    q = (("head", 2), ("group", group), ("qk", 2))
    members = {
        "q": Member("q", f"{name}.q", 1, 0, (WIDTH, 4 * group), q),
        "k": Member("k", f"{name}.k", 1, 0, (WIDTH, 4), (("head", 2), ("qk", 2))),
    }
    return Site(name, "msa", members, {"head": 2, "qk": 2, "vo": 2})


def attention_plan(*sites: ResolvedAxis) -> ResolvedPlan:
    names = tuple("ab"[: len(sites)])
    free = {name: axis_of(i, 4) for i, name in enumerate(names)}
    return ResolvedPlan(names, {name: {"qk": axis, "vo": free[name]} for name, axis in zip(names, sites, strict=True)})


def test_a_grouped_unit_is_every_query_head_of_its_group() -> None:
    params = weights(a__q=(WIDTH, 8), a__k=(WIDTH, 4), b__q=(WIDTH, 8), b__k=(WIDTH, 4))
    built = build(params, [])
    table = table_of(grouped("a", 2), grouped("b", 2))
    values = SiteValues(built.model, table, attention_plan(axis_of(0, 4, [1]), axis_of(1, 4, share={2: (0, 3)})))
    q = values.matrix("a", "q")  # columns are (head, group, unit)
    assert (q[:, [1, 3]] == 0).all()
    assert (q[:, [0, 2, 4, 5, 6, 7]] == params["a.q"][:, [0, 2, 4, 5, 6, 7]]).all()
    assert (values.stored("b", "q", np.array([6, 4])) == params["a.q"][:, [7, 5]]).all()
    assert (values.vectors("b", "k", np.array([2])) == params["a.k"][:, 3]).all()


def test_groups_that_differ_are_refused() -> None:
    params = weights(a__q=(WIDTH, 8), a__k=(WIDTH, 4), b__q=(WIDTH, 4), b__k=(WIDTH, 4))
    table = table_of(grouped("a", 2), grouped("b", 1))
    with pytest.raises(LoweringError, match="1 weight vectors of 'q' here and 2 at a"):
        apply_by_values(build(params, []).model, table, attention_plan(axis_of(0, 4), axis_of(1, 4, share={2: (0, 3)})))


def test_widths_and_dtypes_that_differ_are_refused() -> None:
    built, table = two()
    wide = replace(table.sites[0].members["up"], shape=(WIDTH + 1, HIDDEN))
    odd = replace(table.sites[0], members={**table.sites[0].members, "up": wide})
    resolved = plan(a=axis_of(0, HIDDEN), b=axis_of(1, HIDDEN, share={0: (0, 1)}))
    with pytest.raises(LoweringError, match="4 long, those of a 5"):
        apply_by_values(built.model, table_of(odd, table.sites[1]), resolved, built.uses)
    half = two(np.float16)[0].model.graph.initializers["a.up"].const_value
    built.model.graph.initializers["a.up"].const_value = half
    with pytest.raises(LoweringError, match="float16"):
        apply_by_values(built.model, table, resolved, built.uses)


def test_integer_weights_are_refused() -> None:
    built, table = two()
    built.model.graph.initializers["a.up"].const_value = ir.Tensor(np.ones((WIDTH, HIDDEN), np.int8), name="a.up")
    with pytest.raises(ModelError, match="INT8"):
        apply_by_values(built.model, table, plan(a=axis_of(0, HIDDEN, [0]), b=axis_of(1, HIDDEN)), built.uses)


def test_change_is_the_relative_distance_of_the_site() -> None:
    built, table = two()
    resolved = plan(a=axis_of(0, HIDDEN, [1]), b=axis_of(1, HIDDEN))
    values = SiteValues(built.model, table, resolved)
    before, now = after(built.model), after(apply_by_values(built.model, table, resolved))
    names = ("a.up", "a.up.bias", "a.down")
    gone = sum(float(((before[n] - now[n]) ** 2).sum()) for n in names)
    assert values.change("a") == pytest.approx((gone / sum(float((before[n] ** 2).sum()) for n in names)) ** 0.5)
    assert values.change("b") == 0


def test_all_finite_looks_at_every_number() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        array = np.full((3, 5), 60000.0 if dtype == np.float16 else 1e30).astype(dtype)
        assert all_finite(array)
        for bad in (np.nan, np.inf, -np.inf):
            for place in ((0, 0), (2, 4)):
                broken = array.copy()
                broken[place] = bad
                assert not all_finite(broken)
