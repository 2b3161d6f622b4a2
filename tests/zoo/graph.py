"""A small writer of ONNX graphs: what an exporter emits for an operator, at any opset from 11 on.

Shape legend used in the zoo: B batch, S sequence, E model width, H heads, d head dim, F hidden width of an FFN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

Array = npt.NDArray[Any]
Dim = int | str

MICROSOFT = "com.microsoft"


class GraphWriter:
    """Appends nodes to a growing graph; every method returns the value that the operator produces.

    Args:
        rng: source of the random weights.
        opset: version of the default domain; operators take the form that it prescribes.
        weights: ``initializer`` or ``constant``: how parameters appear.
        constants: the same for shapes, scales and other small constants.
        linear: how a linear layer appears: ``matmul`` ([in, out]), ``transpose`` (an [out, in] parameter through a Transpose
            node), ``gemm`` (flattened input, transB=1) or ``gemm0`` (flattened input, transB=0).
        bias_first: MatMul + Add writes the bias as the first operand, as dynamo does not and TorchScript does.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        opset: int = 17,
        weights: str = "initializer",
        constants: str = "initializer",
        linear: str = "matmul",
        bias_first: bool = False,
    ) -> None:
        self.rng = rng
        self.opset = opset
        self.weights = weights
        self.constants = constants
        self.linear_style = linear
        self.bias_first = bias_first
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.initializers: list[ir.Value] = []
        self.params: dict[str, ir.Value] = {}
        self.arrays: dict[str, Array] = {}
        self.functions: list[ir.Function] = []
        self.domains: dict[str, int] = {"": opset}
        self._count = 0

    # ---- nodes and values -------------------------------------------------------------------------------------------
    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        """Append a node and return all its outputs."""
        if domain and domain not in self.domains:
            self.domains[domain] = 1
        given = {key: value for key, value in attributes.items() if value is not None}
        node = ir.node(op_type, list(inputs), given, domain=domain, num_outputs=outputs, name=f"node_{op_type}_{self._count}")
        for value in node.outputs:
            value.name = f"{op_type.lower()}_{self._count}"
            self._count += 1
        self.nodes.append(node)
        return list(node.outputs)

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append a node with one output and return it."""
        return self.ops(op_type, *inputs, domain=domain, **attributes)[0]

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Declare a graph input."""
        value = ir.val(name, dtype, list(shape))
        self.inputs.append(value)
        return value

    def _constant(self, name: str, array: Array, mode: str) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        if mode == "constant":
            node = ir.node("Constant", [], {"value": tensor}, name=f"node_{name}")
            node.outputs[0].name = name
            node.outputs[0].dtype = tensor.dtype
            node.outputs[0].shape = ir.Shape(array.shape)
            self.nodes.append(node)
            return node.outputs[0]
        value = ir.val(name, tensor.dtype, list(array.shape), const_value=tensor)
        self.initializers.append(value)
        return value

    def const(self, array: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> ir.Value:
        """A small constant: a shape, an index, a scale. Integers are int64, everything else float32 unless told."""
        given = np.asarray(array)
        if dtype is None:
            dtype = np.int64 if given.dtype.kind in "iu" else np.bool_ if given.dtype.kind == "b" else np.float32
        self._count += 1
        return self._constant(f"const_{self._count}", given.astype(dtype), self.constants)

    def param(self, name: str, array: Array) -> ir.Value:
        """A named parameter; the same name twice is the same value (a tie)."""
        if name not in self.params:
            self.params[name] = self._constant(name, array, self.weights)
            self.arrays[name] = array
        return self.params[name]

    def normal(self, name: str, shape: Sequence[int], scale: float | None = None, mean: float = 0.0) -> ir.Value:
        """A random parameter; ``scale`` defaults to 1/sqrt of the first dimension."""
        if name in self.params:
            return self.params[name]
        scale = 1 / math.sqrt(shape[0]) if scale is None else scale
        return self.param(name, (mean + scale * self.rng.standard_normal(tuple(shape))).astype(np.float32))

    def finish(
        self,
        outputs: Mapping[str, ir.Value],
        *,
        infer: bool = True,
        ranks: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ir.Model:
        """Close the graph.

        Args:
            outputs: name -> value.
            ranks: ranks of outputs whose shape inference does not find; 3 unless told.
            infer: write the shapes of all values, as exporters do.
            metadata: the model's metadata.
        """
        for name, value in outputs.items():
            value.name = name
        graph = ir.Graph(
            self.inputs,
            list(outputs.values()),
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports=self.domains,
            name="main_graph",
        )
        ir_version = 11 if self.opset >= 23 else 10 if self.opset >= 21 else 8
        model = ir.Model(
            graph, ir_version=ir_version, producer_name="zoo", functions=self.functions, metadata_props=dict(metadata or {})
        )
        for value in outputs.values():
            if value.dtype is None:
                value.dtype = ir.DataType.FLOAT
        if infer:
            ShapeInferencePass(check_type=True, strict_mode=False, data_prop=True)(model)
        for name, value in outputs.items():
            if value.shape is None:
                # an output has to have a rank; inference loses it where a shape is computed
                value.shape = ir.Shape([None] * (ranks or {}).get(name, 3))
        return model

    # ---- operators whose form depends on the opset ------------------------------------------------------------------
    def unsqueeze(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Unsqueeze: an attribute below opset 13, an input from there."""
        if self.opset < 13:
            return self.op("Unsqueeze", x, axes=list(axes))
        return self.op("Unsqueeze", x, self.const(list(axes)))

    def squeeze(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Squeeze, as :meth:`unsqueeze`."""
        if self.opset < 13:
            return self.op("Squeeze", x, axes=list(axes))
        return self.op("Squeeze", x, self.const(list(axes)))

    def split(self, x: ir.Value, sizes: Sequence[int], axis: int) -> list[ir.Value]:
        """Split: sizes are an attribute below opset 13; from 18 on equal parts may be written as num_outputs."""
        if self.opset < 13:
            return self.ops("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))
        if self.opset >= 18 and len(set(sizes)) == 1 and self.rng.random() < 0.5:
            return self.ops("Split", x, outputs=len(sizes), axis=axis, num_outputs=len(sizes))
        if len(set(sizes)) == 1 and self.opset < 18 and self.rng.random() < 0.3:
            return self.ops("Split", x, outputs=len(sizes), axis=axis)
        return self.ops("Split", x, self.const(list(sizes)), outputs=len(sizes), axis=axis)

    def slice(self, x: ir.Value, start: int, end: int, axis: int, step: int | None = None) -> ir.Value:
        """Slice on one axis."""
        tail = [] if step is None else [self.const([step])]
        return self.op("Slice", x, self.const([start]), self.const([end]), self.const([axis]), *tail)

    def reduce(self, kind: str, x: ir.Value, axes: Sequence[int], keepdims: int = 1) -> ir.Value:
        """ReduceMean, ReduceMax ...: axes are an attribute below opset 18 (13 for ReduceSum)."""
        if self.opset < (13 if kind == "ReduceSum" else 18):
            return self.op(kind, x, axes=list(axes), keepdims=keepdims)
        return self.op(kind, x, self.const(list(axes)), keepdims=keepdims)

    def clip(self, x: ir.Value, low: float, high: float) -> ir.Value:
        """Clip with constant bounds."""
        return self.op("Clip", x, self.const(low), self.const(high))

    def transpose(self, x: ir.Value, *perm: int) -> ir.Value:
        """Transpose by ``perm``."""
        return self.op("Transpose", x, perm=list(perm))

    def softmax(self, x: ir.Value, axis: int = -1) -> ir.Value:
        """Softmax over one axis."""
        return self.op("Softmax", x, axis=axis)

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Cast."""
        return self.op("Cast", x, to=int(dtype))

    def dim(self, x: ir.Value, axis: int) -> ir.Value:
        """One dimension of ``x`` as an int64 vector of length 1, read at run time as TorchScript does."""
        return self.unsqueeze(self.op("Gather", self.op("Shape", x), self.const(axis), axis=0), [0])

    def reshape(self, x: ir.Value, *dims: int | ir.Value) -> ir.Value:
        """Reshape; where a dimension is a value, the shape is put together by Concat."""
        if all(isinstance(d, int) for d in dims):
            return self.op("Reshape", x, self.const([d for d in dims if isinstance(d, int)]))
        parts = [self.const([d]) if isinstance(d, int) else d for d in dims]
        return self.op("Reshape", x, self.op("Concat", *parts, axis=0))

    def expand(self, x: ir.Value, *dims: int | ir.Value) -> ir.Value:
        """Expand; dimensions as in :meth:`reshape`."""
        if all(isinstance(d, int) for d in dims):
            return self.op("Expand", x, self.const([d for d in dims if isinstance(d, int)]))
        parts = [self.const([d]) if isinstance(d, int) else d for d in dims]
        return self.op("Expand", x, self.op("Concat", *parts, axis=0))

    # ---- layers -----------------------------------------------------------------------------------------------------
    def weight(self, name: str, n_in: int, n_out: int, *, style: str | None = None) -> ir.Value:
        """The parameter ``name`` as a value [in, out] (or as stored, for the gemm styles)."""
        style = style or self.linear_style
        if style in ("matmul", "gemm0"):
            return self.normal(name, (n_in, n_out), 1 / math.sqrt(n_in))
        stored = self.normal(name, (n_out, n_in), 1 / math.sqrt(n_in))
        return stored if style == "gemm" else self.op("Transpose", stored, perm=[1, 0])

    def linear(
        self, x: ir.Value, name: str, n_in: int, n_out: int, *, bias: bool = True, rank: int = 3, style: str | None = None
    ) -> ir.Value:
        """A linear layer with parameters ``name.weight`` and ``name.bias``.

        Args:
            x: [..., n_in].
            name: prefix of the parameters.
            n_in: input width.
            n_out: output width.
            bias: whether there is one.
            rank: rank of ``x``; the gemm styles flatten what is not 2.
            style: overrides the writer's style.
        """
        style = style or self.linear_style
        weight = self.weight(f"{name}.weight", n_in, n_out, style=style)
        offset = self.normal(f"{name}.bias", (n_out,), 0.3) if bias else None
        if style in ("matmul", "transpose"):
            y = self.op("MatMul", x, weight)
            if offset is None:
                return y
            return self.op("Add", offset, y) if self.bias_first else self.op("Add", y, offset)
        flat = x if rank == 2 else self.op("Reshape", x, self.const([-1, n_in]))
        y = self.op("Gemm", flat, weight, offset, transB=1 if style == "gemm" else None)
        if rank == 2:
            return y
        return self.reshape(y, *(self.dim(x, i) for i in range(rank - 1)), n_out)

    def norm(self, x: ir.Value, name: str, width: int, kind: str = "op", bias: bool = True, eps: float = 1e-5) -> ir.Value:
        """A norm over the last axis: ``op`` (LayerNormalization), ``decomposed``, ``rms`` or ``rms_op`` (opset 23)."""
        scale = self.normal(f"{name}.weight", (width,), 0.1, 1.0)
        if kind == "rms_op":
            return self.op("RMSNormalization", x, scale, axis=-1, epsilon=eps)
        if kind == "rms":
            mean = self.reduce("ReduceMean", self.op("Pow", x, self.const(2.0)), [-1])
            root = self.op("Sqrt", self.op("Add", mean, self.const(eps)))
            if self.rng.random() < 0.5:
                return self.op("Mul", scale, self.op("Mul", x, self.op("Reciprocal", root)))
            return self.op("Mul", self.op("Div", x, root), scale)
        offset = self.normal(f"{name}.bias", (width,), 0.1) if bias else None
        if kind == "op":
            return self.op("LayerNormalization", x, scale, offset, axis=-1, epsilon=eps)
        centred = self.op("Sub", x, self.reduce("ReduceMean", x, [-1]))
        variance = self.reduce("ReduceMean", self.op("Pow", centred, self.const(2.0)), [-1])
        y = self.op("Div", centred, self.op("Sqrt", self.op("Add", variance, self.const(eps))))
        y = self.op("Mul", y, scale)
        return y if offset is None else self.op("Add", y, offset)

    def activation(self, x: ir.Value, kind: str) -> ir.Value:
        """ReLU, or one of the spellings of GELU and SiLU."""
        match kind:
            case "relu":
                return self.op("Relu", x)
            case "relu6":
                return self.clip(x, 0.0, 6.0)
            case "gelu_erf":
                inner = self.op("Erf", self.op("Div", x, self.const(math.sqrt(2))))
                return self.op("Mul", self.op("Mul", x, self.op("Add", inner, self.const(1.0))), self.const(0.5))
            case "gelu_erf_half":
                inner = self.op("Erf", self.op("Mul", x, self.const(math.sqrt(0.5))))
                return self.op("Mul", self.op("Mul", self.const(0.5), x), self.op("Add", self.const(1.0), inner))
            case "gelu_tanh":
                cube = self.op("Mul", self.const(0.044715), self.op("Pow", x, self.const(3.0)))
                inner = self.op("Tanh", self.op("Mul", self.const(math.sqrt(2 / math.pi)), self.op("Add", x, cube)))
                return self.op("Mul", self.op("Mul", self.const(0.5), x), self.op("Add", inner, self.const(1.0)))
            case "gelu_op":
                return self.op("Gelu", x)
            case "gelu_op_tanh":
                return self.op("Gelu", x, approximate="tanh")
            case "silu":
                return self.op("Mul", x, self.op("Sigmoid", x))
            case "quick_gelu":
                return self.op("Mul", x, self.op("Sigmoid", self.op("Mul", self.const(1.702), x)))
        raise ValueError(f"no activation {kind!r}")
