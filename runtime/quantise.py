"""A model in int8, by ONNX Runtime's dynamic quantisation: signed weights with one scale a column, inputs scaled as they come.

The tool quantises what it finds; what it may find is prepared here, so that sharing survives. A weight is quantised where every
node that reads it is a product with it on the right (a Gemm is made one); else it stays as it is, for all of its readers::

    a -- MatMul(W) -- x      a -- DynamicQuantizeLinear -- MatMulInteger(W_quantized) -- Cast -- Mul(scales) -- x
    b -- MatMul(W) -- y      b -- DynamicQuantizeLinear -- MatMulInteger(W_quantized) -- Cast -- Mul(scales) -- y

Tables that tokens are looked up in are quantised here, with one scale a row: the tool's have one for all of a table. With
``convolutions``, kernels are stored in int8 and made fp32 on every run. The tool holds the whole model in memory.
"""

from __future__ import annotations

import fnmatch
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from inarch.compiler.metadata import QUANTISED, SHARED, quantised_to, shared_in
from inarch.compiler.values import all_finite
from inarch.compiler.verifier import signature, verify_model
from inarch.compiler.writer import WrittenModel, write_model
from inarch.frontends.onnx_file import load_model
from inarch.passes.refresh_shapes import RefreshShapes
from inarch.passes.remove_dead import RemoveDead
from inarch.runtime.providers import onnxruntime
from inarch.structure.errors import RuntimeFailure
from inarch.structure.nodes import every_node

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

LEAST_OPSET = 13
"""Scales by column need it."""

_SUFFIXES = ("_quantized", "_scale", "_zero_point")
_TABLE_BYTES = 64 << 10
"""Tables and kernels below this are not worth the nodes that they would cost."""

_LEVELS = 127

KERNELS = "kernels of convolutions"
"""Why these are left, unless they are asked for."""


@dataclass(frozen=True)
class Int8:
    """What was quantised.

    Attributes:
        written: the files.
        quantised: weight -> its bytes in the model as it was.
        left: weight of 64 KB and more -> why it stays as it is, and its bytes.
        shared: what the model shares, by its names in the result: each is one tensor, and has the readers that it had.
    """

    written: WrittenModel
    quantised: Mapping[str, int]
    left: Mapping[str, tuple[str, int]]
    shared: Sequence[str]


def quantise_int8(
    model: ir.Model,
    out: Path,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    convolutions: bool = False,
    keep: Sequence[str] = (),
    progress: Progress | None = None,
) -> Int8:
    """Quantise a model and write it.

    Args:
        model: an fp32 model; it is not changed.
        out: the .onnx file, with a data file beside it.
        per_channel: a scale for each column of a weight, rather than one for all of it.
        reduce_range: seven bits, for processors whose int8 instructions overflow with eight (x86 before VNNI).
        convolutions: kernels too.
        keep: patterns of names of weights that stay as they are.
        progress: told the steps.

    Raises:
        RuntimeFailure: ONNX Runtime is missing or its tool fails; there is nothing to quantise; sharing would break.
        ModelError: the result cannot be written.
    """
    onnxruntime()
    report = progress or (lambda stage, done, total: None)
    report("preparing", 0, 1)
    work = _copy(model)
    wanted = signature(work)
    choice = _Choice(work, keep, convolutions)
    if not choice.sizes:
        raise RuntimeFailure("there is nothing to quantise: no fp32 matrix is read by a product or as a table")
    renamed = {name: f"{name}_quantized" for name in choice.sizes}
    shared = shared_in(model.metadata_props) or ()
    readers = {name: len(value.uses()) for name, value in work.graph.initializers.items() if name in renamed or name in shared}
    for value in choice.tables:
        _quantise_table(work.graph, value)
    with tempfile.TemporaryDirectory(prefix="inarch-") as folder:
        report("quantising", 0, 1)
        made = _by_tool(work, choice, Path(folder), per_channel, reduce_range)
        for name in choice.kernels:  # not before: the tool takes them for work of its own
            _quantise_kernel(made.graph, made.graph.initializers[name])
        _check_readers(made, readers, renamed, choice.kernels)
        _finish(model, made, renamed, {"per_channel": per_channel, "reduce_range": reduce_range})
        verify_model(made, "quantise", expect=wanted)
        written = write_model(made, out, progress=lambda done, total: report("writing", done, total))
    return Int8(written, choice.sizes, choice.left, sorted(renamed.get(name, name) for name in shared))


# ---- preparation ----------------------------------------------------------------------------------------------------------
def _copy(model: ir.Model) -> ir.Model:
    """A copy in the form that the tool reads: no functions, weights as initializers, products as MatMul, nodes with names.

    Raises:
        RuntimeFailure: it is quantised already, or its operators are too old.
    """
    if QUANTISED in model.metadata_props:
        before = quantised_to(model.metadata_props) or "something"
        raise RuntimeFailure(f"the model is quantised to {before} already", hint="quantise the model that it was made from")
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise RuntimeFailure(f"int8 needs opset {LEAST_OPSET}, the model has {opset}", hint="export it with a newer opset")
    work = model.clone()
    if work.functions:
        work = InlinePass()(work).model
    RemoveInitializersFromInputsPass()(work)
    _lift_constants(work)
    _replace_gemms(work)
    names: set[str | None] = {None, ""}
    for number, node in enumerate(every_node(work.graph)):
        if node.name in names:
            node.name = f"{node.op_type}.{number}"
            while node.name in names:
                node.name += "."
        names.add(node.name)
    RefreshShapes()(work)
    return work


def _lift_constants(model: ir.Model) -> None:
    """Make initializers of the matrices that are outputs of Constant nodes."""
    for node in list(model.graph):
        if node.op_type != "Constant" or "value" not in node.attributes or node.outputs[0].is_graph_output():
            continue
        tensor, old = node.attributes["value"].as_tensor(), node.outputs[0]
        if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        name = str(old.name)
        old.name = None
        value = _initializer(model.graph, name, tensor)
        ir.convenience.replace_all_uses_with(old, value)
        model.graph.remove(node, safe=True)


def _replace_gemms(model: ir.Model) -> None:
    """Make MatMul + Add of every Gemm whose weight is read by plain Gemms of its own layout alone, transposed once if need be."""
    for value in list(model.graph.initializers.values()):
        users = [user for user, _ in value.uses()]
        layouts = {user.attributes.get_int("transB", 0) for user in users if user.op_type == "Gemm"}
        plain = all(_is_plain_gemm(user, place) or user.op_type == "MatMul" for user, place in value.uses())
        if not layouts or not plain or not _is_matrix(value):
            continue
        flipped = layouts == {1}
        if layouts not in ({0}, {1}) or (flipped and any(user.op_type == "MatMul" for user in users)):
            continue
        if flipped:
            assert value.const_value is not None
            value.const_value = _transposed(value.const_value)
            value.shape = ir.Shape(value.const_value.shape.numpy())
        for user in users:
            if user.op_type == "Gemm":
                _replace_gemm(model.graph, user)


def _is_plain_gemm(node: ir.Node, place: int) -> bool:
    attributes = node.attributes
    return (
        node.op_type == "Gemm"
        and place == 1
        and attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
        and not attributes.get_int("transA", 0)
    )


def _replace_gemm(graph: ir.Graph, node: ir.Node) -> None:
    product = ir.node("MatMul", [node.inputs[0], node.inputs[1]], name=f"{node.name or node.outputs[0].name}/product")
    last, new = product, [product]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        product.outputs[0].name = f"{node.outputs[0].name}/product"
        last = ir.node("Add", [product.outputs[0], bias], name=f"{node.name or node.outputs[0].name}/bias")
        new.append(last)
    result, old = last.outputs[0], node.outputs[0]
    result.type, result.shape, result.name = old.type, old.shape, old.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [old], [result])


def _transposed(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    def flip() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(_array(tensor).T))

    return ir.LazyTensor(flip, tensor.dtype, ir.Shape(tuple(reversed(tensor.shape.numpy()))), name=tensor.name)


class _Choice:
    """What of a model is quantised.

    Attributes:
        weights: names of matrices that products read on the right.
        nodes: names of those products.
        tables: initializers that rows are gathered from.
        kernels: names of initializers that convolutions read.
        sizes: name -> bytes of all of these.
        left: name -> why not, and its bytes.
    """

    def __init__(self, model: ir.Model, keep: Sequence[str], convolutions: bool) -> None:
        self.weights: list[str] = []
        self.nodes: list[str] = []
        self.tables: list[ir.Value] = []
        self.kernels: list[str] = []
        self.sizes: dict[str, int] = {}
        self.left: dict[str, tuple[str, int]] = {}
        taken = {value.name for value in _all_values(model)}
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2 or not value.uses():
                continue
            kind = _kind(value, model.graph)
            if kind == "kernel" and not convolutions:
                kind = KERNELS
            worth = tensor.nbytes >= _TABLE_BYTES
            reason = next((f"kept by {pattern!r}" for pattern in keep if fnmatch.fnmatchcase(name, pattern)), "")
            if not reason and any(name + suffix in taken for suffix in _SUFFIXES):
                reason = "what it would be called is called so already"
            if not reason and kind in ("weight", "table", "kernel") and (worth or kind == "weight"):
                reason = "" if all_finite(_array(tensor)) else "not finite"
                if not reason:
                    self.sizes[name] = tensor.nbytes
                    self._take(kind, name, value)
                    continue
            if worth:
                self.left[name] = (reason or kind, tensor.nbytes)

    def _take(self, kind: str, name: str, value: ir.Value) -> None:
        if kind == "weight":
            self.weights.append(name)
            self.nodes.extend(str(user.name) for user, _ in value.uses())
        elif kind == "table":
            self.tables.append(value)
        else:
            self.kernels.append(name)


def _kind(value: ir.Value, graph: ir.Graph) -> str:
    """``weight``, ``table``, ``kernel``, or why a tensor is none of them."""
    uses = value.uses()
    if value.is_graph_output():
        return "an output of the model"
    if any(user.graph is not graph for user, _ in uses):
        return "read inside a subgraph"
    readers = {(user.op_type if user.domain == "" else f"{user.domain}.{user.op_type}", place) for user, place in uses}
    if readers == {("MatMul", 1)} and _is_matrix(value):
        return "weight"
    rows = all(user.attributes.get_int("axis", 0) == 0 for user, _ in uses)
    if readers == {("Gather", 0)} and rows and _is_matrix(value):
        return "table"
    if readers == {("Conv", 1)}:
        return "kernel"
    return f"read by {', '.join(sorted({name for name, _ in readers}))}"


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) == 2 and tensor.dtype == ir.DataType.FLOAT and tensor.size > 0


# ---- tables and kernels ---------------------------------------------------------------------------------------------------
def _quantise_table(graph: ir.Graph, value: ir.Value) -> None:
    """Gather rows of int8 and their scales, and multiply the two."""
    table, scale = _in_int8(graph, value)
    for user, _ in list(value.uses()):
        ids, old = user.inputs[1], user.outputs[0]
        rows = ir.node("Gather", [table, ids], {"axis": 0}, name=f"{user.name}/rows")
        numbers = ir.node("Cast", [rows.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{user.name}/numbers")
        scales = ir.node("Gather", [scale, ids], {"axis": 0}, name=f"{user.name}/scales")
        product = ir.node("Mul", [numbers.outputs[0], scales.outputs[0]], name=str(user.name))
        for node in (rows, numbers, scales):
            node.outputs[0].name = node.name
        result = product.outputs[0]
        result.type, result.shape, result.name = old.type, old.shape, old.name
        ir.convenience.replace_nodes_and_values(graph, user, [user], [rows, numbers, scales, product], [old], [result])
    del graph.initializers[str(value.name)]


def _quantise_kernel(graph: ir.Graph, value: ir.Value) -> None:
    """Make a kernel fp32 before the first node that reads it, for all of them."""
    users = [user for user, _ in value.uses()]
    first = next(node for node in graph if node in users)
    stored, scale = _in_int8(graph, value, flat=True)
    node = ir.node("DequantizeLinear", [stored, scale], {"axis": 0}, name=f"{value.name}/dequantised")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = node.name, value.type, value.shape
    graph.insert_before(first, node)
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    del graph.initializers[str(value.name)]


def _in_int8(graph: ir.Graph, value: ir.Value, *, flat: bool = False) -> tuple[ir.Value, ir.Value]:
    """A tensor as int8, computed when it is written, and its scales [n, 1, ...] (or [n]), one for each row."""
    tensor = value.const_value
    assert tensor is not None
    name, shape = str(value.name), tensor.shape.numpy()
    rest = tuple(range(1, len(shape)))
    array = _array(tensor)
    largest = np.maximum(array.max(rest, keepdims=True), -array.min(rest, keepdims=True)).astype(np.float32)
    scale = np.where(largest > 0, largest / _LEVELS, 1).astype(np.float32)

    def compute() -> ir.TensorProtocol:
        return ir.tensor(np.rint(_array(tensor) / scale).astype(np.int8), name=f"{name}_quantized")

    lazy = ir.LazyTensor(compute, ir.DataType.INT8, ir.Shape(shape), name=f"{name}_quantized")
    stored = _initializer(graph, f"{name}_quantized", lazy)
    return stored, _initializer(graph, f"{name}_scale", ir.tensor(scale.reshape(-1) if flat else scale))


# ---- the tool -------------------------------------------------------------------------------------------------------------
def _by_tool(work: ir.Model, choice: _Choice, folder: Path, per_channel: bool, reduce_range: bool) -> ir.Model:
    """Run ONNX Runtime's tool over a folder's copy of the model.

    Raises:
        RuntimeFailure: it fails, or the temporary folder is full.
    """
    if not choice.nodes:
        RemoveDead()(work)
        return work
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, result = folder / "model.onnx", folder / "int8.onnx"
    # The tool asks for its own preprocessing where this is missing: everything that it would do is done.
    work.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    try:
        ir.save(work, source, external_data="model.data", size_threshold_bytes=1024)
        quantize_dynamic(
            source,
            result,
            op_types_to_quantize=["MatMul"],
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=choice.nodes,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
        )
    except OSError as error:
        reason = f"a temporary copy of the model cannot be written: {error.strerror or error}"
        raise RuntimeFailure(reason, where=str(folder), hint="TMPDIR names a folder with more space") from error
    except MemoryError as error:
        raise RuntimeFailure("ONNX Runtime's tool holds the whole model in memory, and there is too little") from error
    except Exception as error:  # the tool raises whatever its parts raise
        raise RuntimeFailure(f"ONNX Runtime's tool failed: {error}", where="quantize_dynamic") from error
    return load_model(result)


def _check_readers(made: ir.Model, readers: Mapping[str, int], renamed: Mapping[str, str], kernels: Collection[str]) -> None:
    """See that everything quantised or shared is one tensor, read by as many nodes as before.

    Raises:
        RuntimeFailure: one is not.
    """
    there = made.graph.initializers
    for name, count in readers.items():
        stored = there.get(renamed.get(name, name))
        if stored is not None and name in kernels:  # read through the node that makes it fp32
            stored = next(user.outputs[0] for user, _ in stored.uses())
        found = len({user for user, _ in stored.uses()}) if stored is not None else 0
        if found != count or (name in renamed and name in there):
            raise RuntimeFailure(
                f"the weight has {count} readers, and {found} once it is quantised",
                where=name,
                hint=f"--keep '{name}' leaves it as it is; this is a defect of the tool, or of inarch",
            )


def _finish(model: ir.Model, made: ir.Model, renamed: Mapping[str, str], how: Mapping[str, Any]) -> None:
    """Give the result the metadata of the model that it was made from, and say what was done."""
    props = dict(model.metadata_props)
    if SHARED in props:
        props[SHARED] = json.dumps(sorted(renamed.get(name, name) for name in shared_in(model.metadata_props) or ()))
    props[QUANTISED] = json.dumps({"to": "int8", "tensors": len(renamed), **how}, sort_keys=True)
    declared = {value.name: value.shape for value in (*model.graph.inputs, *model.graph.outputs)}
    for value in (*made.graph.inputs, *made.graph.outputs):
        value.shape = declared[value.name]  # the tool has put what it can infer in the place of names
    made.metadata_props.clear()
    made.metadata_props.update(props)
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    made.graph.name, made.doc_string = model.graph.name, model.doc_string


def _initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
    for node in every_node(model.graph):
        yield from node.outputs


def _array(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """A tensor's numbers; a lazy one is computed and not kept."""
    return tensor.raw().numpy() if isinstance(tensor, ir.LazyTensor) else tensor.numpy()
