"""Models of one kind of site each, in the forms that a lowering can give it: what ``inarch calibrate`` times.

The dense form is what exporters write. The others are made from it by the compiler's own passes, from a lowered plan made up for
the purpose, so that the kernels that are timed are those that a compiled model runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from inarch.compiler.pipeline import passes_for, run_pipeline
from inarch.compiler.values import SiteValues
from inarch.passes.rewrite import Workpiece
from inarch.passes.stored import Stored
from inarch.structure.cost_derive import MULTIPLES
from inarch.structure.cost_figures import Form, Kind, Precision
from inarch.structure.discover import discover
from inarch.structure.lowered import Block, Group, LoweredPlan, LoweredSite
from inarch.structure.resolve import identity
from inarch.structure.sites import Site
from inarch.structure.units import Indices

BLOCKS = (2, 3, 4, 6, 8)
"""Counts of blocks that are timed."""


@dataclass(frozen=True)
class Shape:
    """A dense site.

    Attributes:
        kind: ``ffn`` or ``msa``.
        width: length of the residual stream.
        units: hidden units of an FFN; heads x units a head, of qk and of vo, for an MSA.
        heads: heads; 1 for an FFN.
        tokens: length of the sequence that it is timed on; the batch is 1.
    """

    kind: Kind
    width: int
    units: int
    heads: int
    tokens: int

    def __str__(self) -> str:
        if self.kind == "ffn":
            return f"FFN {self.width} x {self.units}"
        return f"MSA {self.width}, {self.heads} x {self.units // self.heads}"


SHAPES = (
    Shape("ffn", 768, 3072, 1, 128),
    Shape("msa", 768, 768, 12, 128),
    Shape("ffn", 256, 2048, 1, 100),
    Shape("msa", 256, 256, 8, 100),
)
"""The sites of MDETR and GLIP: a backbone's (BERT, RoBERTa, ViT-B) and a fusion transformer's."""


@dataclass(frozen=True)
class Variant:
    """One form of a site.

    Attributes:
        form: ``dense``, ``split`` (an FFN in blocks, an MSA in groups of heads), ``inside`` (every head in blocks) or ``width``.
        stored: units in all blocks together.
        blocks: blocks of a projection.
    """

    form: Form
    stored: int
    blocks: int = 1


def variants(shape: Shape) -> list[Variant]:
    """The forms of a site that are timed, the dense one first.

    Widths lie between two good ones, at some 60 % of dense: the one above the lower for every multiple, which is the worst of its
    kind, since it uses the least of its last vector register or tile.
    """
    found = [Variant("dense", shape.units)]
    per_head = shape.units // shape.heads
    pieces = shape.heads if shape.kind == "msa" else shape.units
    found += [Variant("split", shape.units, n) for n in BLOCKS if n <= pieces]
    if shape.kind == "msa":
        found += [Variant("inside", shape.units, n) for n in BLOCKS if n <= per_head]
    return found + [Variant("width", units) for units in widths(shape)]


def widths(shape: Shape) -> list[int]:
    """A good width, the next width that is a multiple of 1, 2, 4 and so on and of nothing more, and the next good width.

    An MSA's heads keep one count, so its widths are multiples of its heads; the good ones are multiples of 64 where they can be.
    """
    good = MULTIPLES[-1]
    step = int(np.lcm(shape.heads, good))
    low = max(step, round(0.6 * shape.units / step) * step)
    high = low + step
    if high > shape.units:
        return []
    worst = [
        next((units for units in range(low + shape.heads, high, shape.heads) if units & -units == multiple), None)
        for multiple in MULTIPLES[:-1]
    ]
    return [low, *sorted(units for units in worst if units is not None), high]


def kernel_model(shape: Shape, variant: Variant, *, depth: int = 1, precision: Precision = "fp32") -> ir.Model:
    """A model of ``depth`` sites of one form, one after the other, each with weights of its own.

    Args:
        shape: the dense site.
        variant: the form.
        depth: how many.
        precision: of weights and activations.

    Returns:
        A model with input ``x`` and output ``y`` [batch, sequence, width].

    Raises:
        InarchError: a defect: the compiler could not write the form.
    """
    dense = ir.from_proto(_dense(shape, depth, precision))
    if variant.form == "dense":
        return dense
    found = discover(dense)
    table = found.table
    assert len(table.sites) == depth, f"{len(table.sites)} sites found in a model made of {depth}"
    sites = tuple(LoweredSite(site.name, _groups(site, variant), touched=True) for site in table.sites)
    lowered = LoweredPlan(sites, (), (), table.parameters, table.parameters, table.parameters)
    # What is pruned is left out, whatever it holds: only the time counts.
    stored = Stored(SiteValues(found.model, table, identity(table)))
    run_pipeline(found.model, passes_for(Workpiece(lowered, stored, found)))
    return found.model


def kernel_feeds(shape: Shape, precision: Precision = "fp32") -> dict[str, npt.NDArray[np.floating]]:
    """Inputs: x [1, tokens, width], normal."""
    x = np.random.default_rng(0).standard_normal((1, shape.tokens, shape.width))
    return {"x": x.astype(np.float16 if precision == "fp16" else np.float32)}


def _groups(site: Site, variant: Variant) -> tuple[Group, ...]:
    """A site's groups and blocks in a form."""
    if site.kind == "ffn":
        parts = np.array_split(np.arange(variant.stored, dtype=np.int64), variant.blocks)
        return (Group((0,), {"hidden": tuple(Block(part.reshape(1, -1)) for part in parts)}),)
    per_head = variant.stored // site.heads
    heads = np.arange(site.heads, dtype=np.int64)
    if variant.form == "inside":
        within = np.array_split(np.arange(per_head, dtype=np.int64), variant.blocks)
        return (_heads(site, heads, within),)
    all_units = [np.arange(per_head, dtype=np.int64)]
    return tuple(_heads(site, some, all_units) for some in np.array_split(heads, variant.blocks))


def _heads(site: Site, heads: Indices, within: list[Indices]) -> Group:
    """A group of heads whose blocks hold the same in-head units on every axis."""
    blocks = {
        name: tuple(Block(heads[:, None] * site.axes[name].per_head + part) for part in within)
        for name in site.axes
        if name != "head"
    }
    return Group(tuple(heads.tolist()), blocks)


def _dense(shape: Shape, depth: int, precision: Precision) -> onnx.ModelProto:
    """The dense model, in the decomposed form of torch's exporter."""
    half = precision == "fp16"
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    body = _Body(np.random.default_rng(0), dtype)
    x = "x"
    for number in range(depth):
        y = "y" if number == depth - 1 else f"x{number + 1}"
        (body.ffn if shape.kind == "ffn" else body.msa)(f"layer.{number}", shape, x, y)
        x = y
    values: Iterator[onnx.ValueInfoProto] = (
        helper.make_tensor_value_info(name, kind, ["batch", "sequence", shape.width]) for name in "xy"
    )
    graph = helper.make_graph(body.nodes, "kernel", [next(values)], [next(values)], body.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    return model


class _Body:
    """Nodes and weights, as they are added."""

    def __init__(self, rng: np.random.Generator, dtype: type[np.floating]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = rng
        self._dtype = dtype

    def ffn(self, name: str, shape: Shape, x: str, y: str) -> None:
        """``y = x + gelu(x up + b) down + b``."""
        up = self._linear(f"{name}.up", x, shape.width, shape.units)
        down = self._linear(f"{name}.down", self._op("Gelu", [up], f"{name}.act"), shape.units, shape.width)
        self._op("Add", [x, down], y)

    def msa(self, name: str, shape: Shape, x: str, y: str) -> None:
        """``y = x + softmax(q k^T / sqrt(d)) v o`` over heads."""
        heads, size = shape.heads, shape.units // shape.heads
        split = self._constant(f"{name}.split", np.array([0, 0, heads, size], np.int64))
        merge = self._constant(f"{name}.merge", np.array([0, 0, shape.units], np.int64))
        scale = self._constant(f"{name}.scale", np.array(size**-0.5, self._dtype))
        q, k, v = (
            self._heads(f"{name}.{role}", x, shape, split, [0, 2, 3, 1] if role == "k" else [0, 2, 1, 3]) for role in "qkv"
        )
        scores = self._op("Mul", [self._op("MatMul", [q, k], f"{name}.scores"), scale], f"{name}.scaled")
        weights = self._op("Softmax", [scores], f"{name}.weights", axis=-1)
        mixed = self._op("MatMul", [weights, v], f"{name}.mixed")
        turned = self._op("Transpose", [mixed], f"{name}.turned", perm=[0, 2, 1, 3])
        joined = self._op("Reshape", [turned, merge], f"{name}.joined")
        self._op("Add", [x, self._linear(f"{name}.o", joined, shape.units, shape.width)], y)

    def _heads(self, name: str, x: str, shape: Shape, split: str, perm: list[int]) -> str:
        apart = self._op("Reshape", [self._linear(name, x, shape.width, shape.units), split], f"{name}.apart")
        return self._op("Transpose", [apart], f"{name}.heads", perm=perm)

    def _linear(self, name: str, x: str, rows: int, columns: int) -> str:
        weight = self._constant(f"{name}.weight", self._rng.standard_normal((rows, columns), np.float32) / rows**0.5)
        bias = self._constant(f"{name}.bias", self._rng.standard_normal(columns, np.float32))
        return self._op("Add", [self._op("MatMul", [x, weight], f"{name}.product"), bias], f"{name}.out")

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> str:
        stored = array.astype(self._dtype) if array.dtype.kind == "f" else array
        self.weights.append(numpy_helper.from_array(np.asarray(stored), name))
        return name

    def _op(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output
