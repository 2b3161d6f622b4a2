"""A two-layer text encoder by hand, with its sites, so that the runtime is tested without discovery and lowering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.structure.lowered import ResolvedAxis, ResolvedPlan
from inarch.structure.sites import Member, Site, SiteTable

Array = npt.NDArray[Any]
VOCABULARY, WIDTH, HEADS, HIDDEN, LENGTH = 50, 16, 2, 32, 40
Slot = tuple[ir.Node, int]


@dataclass
class Handmade:
    """The model, its sites, and who reads what: a ``SiteGraph``."""

    model: ir.Model
    table: SiteTable
    slots: dict[str, dict[str, list[Slot]]]
    results: dict[str, list[str]]

    def uses(self, site: str) -> Mapping[str, list[Slot]]:
        return self.slots[site]

    def outputs(self, site: str) -> list[str]:
        return self.results[site]

    def chains(self) -> dict[str, list[list[str]]]:
        """Site -> its result after the residual."""
        return {site: [[f"{site}.sum"]] for site in self.results}


@dataclass
class Builder:
    """Nodes in a row; initializers as they are needed."""

    rng: np.random.Generator
    dtype: Any = np.float32
    nodes: list[ir.Node] = field(default_factory=list)
    params: dict[str, ir.Value] = field(default_factory=dict)

    def param(self, name: str, array: Array) -> ir.Value:
        if name not in self.params:
            tensor = ir.Tensor(array, name=name)
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
            self.params[name] = value
        return self.params[name]

    def weight(self, name: str, *shape: int) -> ir.Value:
        scale = 1 / np.sqrt(shape[0]) if len(shape) > 1 else 0.1
        centre = 1.0 if name.endswith(".ln.w") else 0.0
        return self.param(name, (centre + self.rng.standard_normal(shape) * scale).astype(self.dtype))

    def ints(self, *numbers: int) -> ir.Value:
        return self.param("shape." + "_".join(map(str, numbers)), np.array(numbers, np.int64))

    def op(self, kind: str, *inputs: ir.Value, name: str = "", domain: str = "", **attributes: Any) -> ir.Value:
        node = ir.Node(domain, kind, inputs, ir.convenience.convert_attributes(attributes), name=name or None)
        node.outputs[0].name = name or f"{kind}.{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]


def encoder(seed: int = 0, dtype: Any = np.float32, layers: int = 2) -> Handmade:
    """ids, attention_mask -> hidden [batch, sequence, width], pooled [batch, width]; pre-norm, separate q, k, v."""
    make = Builder(np.random.default_rng(seed), dtype)
    ids = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"]))
    mask = ir.Value(name="attention_mask", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"]))
    x = make.op("Gather", make.weight("embedding", VOCABULARY, WIDTH), ids)
    one = make.param("one", np.array(1, dtype))
    kept = make.op("Cast", make.op("Unsqueeze", mask, make.ints(1, 2)), to=int(make.params["embedding"].dtype or 1))
    bias = make.op("Mul", make.op("Sub", one, kept), make.param("low", np.array(-1e4, dtype)))
    sites: list[Site] = []
    slots: dict[str, dict[str, list[Slot]]] = {}
    results: dict[str, list[str]] = {}
    for layer in range(layers):
        for kind in ("attn", "ffn"):
            name = f"layer.{layer}.{kind}"
            normed = make.op("LayerNormalization", x, make.weight(f"{name}.ln.w", WIDTH), make.weight(f"{name}.ln.b", WIDTH))
            reads: dict[str, list[Slot]] = {}
            out = (_attention if kind == "attn" else _ffn)(make, name, normed, bias, reads)
            x = make.op("Add", x, out, name=f"{name}.sum")
            sites.append(_attention_site(name) if kind == "attn" else _ffn_site(name))
            slots[name] = reads
            results[name] = [f"{name}.{'o' if kind == 'attn' else 'down'}"]
    pooled = make.op("ReduceMean", x, make.ints(1), keepdims=0, name="pooled")
    kind_of = ir.TensorType(make.params["embedding"].dtype or ir.DataType.FLOAT)
    x = make.op("Identity", x, name="hidden")
    x.type, x.shape = kind_of, ir.Shape(["batch", "sequence", WIDTH])
    pooled.type, pooled.shape = kind_of, ir.Shape(["batch", WIDTH])
    graph = ir.Graph(
        [ids, mask], [x, pooled], nodes=make.nodes, initializers=list(make.params.values()), opset_imports={"": 20}, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    return Handmade(model, SiteTable(tuple(sites), (), 0, 0), slots, results)


def _attention(make: Builder, name: str, x: ir.Value, bias: ir.Value, reads: dict[str, list[Slot]]) -> ir.Value:
    heads = {}
    for role in "qkv":
        product = make.op("MatMul", x, make.weight(f"{name}.{role}.w", WIDTH, WIDTH))
        reads[role] = [(make.nodes[-1], 1)]
        biased = make.op("Add", product, make.weight(f"{name}.{role}.b", WIDTH))
        reads[f"{role}_bias"] = [(make.nodes[-1], 1)]
        split = make.op("Reshape", biased, make.ints(0, 0, HEADS, WIDTH // HEADS))
        heads[role] = make.op("Transpose", split, perm=[0, 2, 3, 1] if role == "k" else [0, 2, 1, 3])
    scores = make.op("Mul", make.op("MatMul", heads["q"], heads["k"]), make.param("scale", np.array(0.35, make.dtype)))
    weights = make.op("Softmax", make.op("Add", scores, bias), axis=-1)
    merged = make.op("Transpose", make.op("MatMul", weights, heads["v"]), perm=[0, 2, 1, 3])
    flat = make.op("Reshape", merged, make.ints(0, 0, WIDTH))
    out = make.op("MatMul", flat, make.weight(f"{name}.o.w", WIDTH, WIDTH), name=f"{name}.o")
    reads["o"] = [(make.nodes[-1], 1)]
    return make.op("Add", out, make.weight(f"{name}.o.b", WIDTH))


def _ffn(make: Builder, name: str, x: ir.Value, bias: ir.Value, reads: dict[str, list[Slot]]) -> ir.Value:
    del bias
    product = make.op("MatMul", x, make.weight(f"{name}.up.w", WIDTH, HIDDEN))
    reads["up"] = [(make.nodes[-1], 1)]
    biased = make.op("Add", product, make.weight(f"{name}.up.b", HIDDEN))
    reads["up_bias"] = [(make.nodes[-1], 1)]
    out = make.op("MatMul", make.op("Relu", biased), make.weight(f"{name}.down.w", HIDDEN, WIDTH), name=f"{name}.down")
    reads["down"] = [(make.nodes[-1], 1)]
    return make.op("Add", out, make.weight(f"{name}.down.b", WIDTH))


def _attention_site(name: str) -> Site:
    members = {}
    for role, unit in (("q", "qk"), ("k", "qk"), ("v", "vo")):
        factors = (("head", HEADS), (unit, WIDTH // HEADS))
        members[role] = Member(role, f"{name}.{role}.w", 1, 0, (WIDTH, WIDTH), factors)
        members[f"{role}_bias"] = Member(f"{role}_bias", f"{name}.{role}.b", 0, 0, (WIDTH,), factors)
    members["o"] = Member("o", f"{name}.o.w", 0, 0, (WIDTH, WIDTH), (("head", HEADS), ("vo", WIDTH // HEADS)))
    return Site(name, "msa", members, {"head": HEADS, "qk": WIDTH // HEADS, "vo": WIDTH // HEADS})


def _ffn_site(name: str) -> Site:
    factors = (("hidden", HIDDEN),)
    members = {
        "up": Member("up", f"{name}.up.w", 1, 0, (WIDTH, HIDDEN), factors),
        "up_bias": Member("up_bias", f"{name}.up.b", 0, 0, (HIDDEN,), factors),
        "down": Member("down", f"{name}.down.w", 0, 0, (HIDDEN, WIDTH), factors),
    }
    return Site(name, "ffn", members, {"hidden": HIDDEN})


def plan_of(
    table: SiteTable,
    pruned: Mapping[tuple[str, str], list[int]] | None = None,
    shared: Mapping[tuple[str, str], tuple[str, Mapping[int, int]]] | None = None,
) -> ResolvedPlan:
    """(site, axis) -> pruned units; (site, axis) -> (base, unit -> base unit)."""
    names = tuple(site.name for site in table.sites)
    axes: dict[str, dict[str, ResolvedAxis]] = {}
    for number, site in enumerate(table.sites):
        axes[site.name] = {}
        for axis, about in site.axes.items():
            if axis == "head":
                continue
            gone = np.zeros(about.size, np.bool_)
            gone[(pruned or {}).get((site.name, axis), [])] = True
            root, unit = np.full(about.size, number), np.arange(about.size)
            base, pairs = (shared or {}).get((site.name, axis), ("", {}))
            for mine, theirs in pairs.items():
                root[mine], unit[mine] = names.index(base), theirs
            axes[site.name][axis] = ResolvedAxis(gone, root, unit)
    return ResolvedPlan(names, axes)


def array_of(model: ir.Model, name: str) -> Array:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def replace_param(model: ir.Model, name: str, array: Array) -> ir.Model:
    """A copy of a model with another tensor for one parameter."""
    copy = model.clone()
    value = copy.graph.initializers[name]
    value.const_value = ir.Tensor(array, name=name)
    value.shape = ir.Shape(array.shape)
    return copy


def nudge(model: ir.Model, name: str, by: float = 1e-3, at: int = 3) -> ir.Model:
    """A copy of a model with one number of one parameter changed."""
    array = array_of(model, name).copy()
    array.reshape(-1)[at] += by
    return replace_param(model, name, array)


def masked(slope: float, fill: float) -> ir.Model:
    """x where it is above 0, else a little of it; and a fill where it is beyond 100."""
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x) => (float[n] y) <float limit = {{100.0}}, float fill = {{{fill!r}}}>
        {{ steep = LeakyRelu<alpha = {slope!r}>(x)  beyond = Greater(x, limit)  y = Where(beyond, fill, steep) }}"""
    )
