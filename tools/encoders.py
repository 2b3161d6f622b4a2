"""Transformer encoders written straight into an ONNX graph: what the demo and the benchmarks build their models with.

Shape legend: B batch, S sequence, D width of the residual stream, H heads, K units a head, F hidden units of the FFN.
Matrices are stored [in, out], the layout that MatMul reads without a Transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

OPSET: Final = 17
"""Newest opset whose operators are all unchanged for the graphs that the demo joins (18 moves axes of reductions to inputs)."""

IR_VERSION: Final = 8
"""The ONNX IR version that was current at opset 17."""

Dims = Sequence[int | str]
Weights = Callable[[str, tuple[int, ...]], ir.TensorProtocol]
"""Gives the tensor of a parameter: (name, shape) -> tensor. A lazy tensor keeps a large model out of memory."""


class GraphBuilder:
    """Appends nodes in order, giving every value a name, a type and a shape.

    Args:
        prefix: put before every name of the graph, like ``text.``.
        weights: where parameters come from.
    """

    def __init__(self, prefix: str, weights: Weights) -> None:
        self.prefix = prefix
        self._weights = weights
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Dims) -> ir.Value:
        """Add a graph input."""
        value = ir.Value(name=self.prefix + name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._inputs.append(value)
        return value

    def parameter(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """Add a parameter, or return it where it was added before (a tie)."""
        known = self._initializers.get(self.prefix + name)
        return known if known is not None else self._initializer(name, self._weights(name, shape))

    def constant(self, name: str, array: npt.ArrayLike) -> ir.Value:
        """Add a constant; the same name is the same constant."""
        known = self._initializers.get(self.prefix + name)
        return known if known is not None else self._initializer(name, ir.tensor(np.asarray(array)))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        full = self.prefix + name
        tensor.name = full
        value = ir.Value(name=full, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._initializers[full] = value
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        shape: Dims,
        *,
        dtype: ir.DataType = ir.DataType.FLOAT,
        attributes: Mapping[str, int | float | Sequence[int]] | None = None,
    ) -> ir.Value:
        """Append a node with one output.

        Args:
            op_type: operator of the standard domain.
            inputs: its inputs.
            name: path of the module that the node computes, like ``encoder.layer.0.output.dense``.
            shape: shape of the output.
            dtype: element type of the output.
            attributes: the node's attributes.
        """
        path = (self.prefix + name).replace(".", "/") + "/" + op_type
        output = ir.Value(name=path + "_output", shape=ir.Shape(shape), type=ir.TensorType(dtype))
        attrs = ir.convenience.convert_attributes(dict(attributes or {}))
        self._nodes.append(ir.Node("", op_type, inputs, attrs, outputs=[output], name=path))
        return output

    def rename(self, value: ir.Value, name: str) -> ir.Value:
        """Give a value the name of a graph output."""
        value.name = self.prefix + name
        return value

    def model(self, outputs: Sequence[ir.Value], name: str) -> ir.Model:
        """Close the graph."""
        graph = ir.Graph(
            self._inputs,
            list(outputs),
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="inarch")


@dataclass(frozen=True)
class LayerNames:
    """What the parts of one encoder layer are called, below the layer's own name.

    Attributes:
        q: query projection; ``k``, ``v``, ``o`` likewise.
        attention_norm: norm before (pre-norm) or after (post-norm) attention.
        up: first matrix of the FFN.
        down: second matrix of the FFN.
        ffn_norm: norm before or after the FFN.
    """

    q: str
    k: str
    v: str
    o: str
    attention_norm: str
    up: str
    down: str
    ffn_norm: str


BERT_NAMES: Final = LayerNames(
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    ffn_norm="output.LayerNorm",
)
VIT_NAMES: Final = LayerNames(
    q="attn.q", k="attn.k", v="attn.v", o="attn.proj", attention_norm="norm1", up="mlp.fc1", down="mlp.fc2", ffn_norm="norm2"
)


@dataclass(frozen=True)
class Encoder:
    """Sizes and style of an encoder; its methods append layers to a graph.

    Attributes:
        width: D.
        heads: H.
        head_dim: K.
        hidden: F.
        names: names of a layer's parts.
        pre_norm: True for x + f(norm(x)), False for norm(x + f(x)).
        epsilon: of the norms.
    """

    width: int
    heads: int
    head_dim: int
    hidden: int
    names: LayerNames
    pre_norm: bool
    epsilon: float

    def linear(self, graph: GraphBuilder, x: ir.Value, name: str, n_in: int, n_out: int, rows: Dims) -> ir.Value:
        """x [*rows, n_in] -> x W + b [*rows, n_out]."""
        shape = (*rows, n_out)
        product = graph.op("MatMul", [x, graph.parameter(name + ".weight", (n_in, n_out))], name, shape)
        return graph.op("Add", [product, graph.parameter(name + ".bias", (n_out,))], name, shape)

    def norm(self, graph: GraphBuilder, x: ir.Value, name: str, rows: Dims) -> ir.Value:
        """LayerNormalization over the width."""
        weight, bias = (graph.parameter(f"{name}.{part}", (self.width,)) for part in ("weight", "bias"))
        attributes = {"axis": -1, "epsilon": self.epsilon}
        return graph.op("LayerNormalization", [x, weight, bias], name, (*rows, self.width), attributes=attributes)

    def gelu(self, graph: GraphBuilder, x: ir.Value, name: str, shape: Dims) -> ir.Value:
        """The exact GELU, x (1 + erf(x / sqrt 2)) / 2, as exporters write it below opset 20."""
        scaled = graph.op("Div", [x, graph.constant("sqrt_2", np.float32(np.sqrt(2)))], name + ".gelu", shape)
        erf = graph.op("Erf", [scaled], name + ".gelu", shape)
        shifted = graph.op("Add", [erf, graph.constant("one", np.float32(1))], name + ".gelu", shape)
        product = graph.op("Mul", [x, shifted], name + ".gelu", shape)
        return graph.op("Mul", [product, graph.constant("half", np.float32(0.5))], name + ".gelu.half", shape)

    def attention(self, graph: GraphBuilder, x: ir.Value, layer: str, rows: tuple[str, str], mask: ir.Value | None) -> ir.Value:
        """Multi-head self-attention of x [B, S, D]; ``mask`` [B, 1, 1, S] is added to the scores."""
        batch, sequence = rows
        inner = self.heads * self.head_dim
        split = graph.constant(f"heads_{self.heads}_{self.head_dim}", np.array([0, 0, self.heads, self.head_dim]))
        heads: dict[str, ir.Value] = {}
        for role, perm in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
            name = f"{layer}.{getattr(self.names, role)}"
            flat = self.linear(graph, x, name, self.width, inner, rows)
            shape: list[int | str] = [batch, sequence, self.heads, self.head_dim]
            parted = graph.op("Reshape", [flat, split], name, shape)
            heads[role] = graph.op("Transpose", [parted], name, [shape[i] for i in perm], attributes={"perm": perm})
        name = f"{layer}.attention"
        square = (batch, self.heads, sequence, sequence)
        scores = graph.op("MatMul", [heads["q"], heads["k"]], name + ".scores", square)
        root = graph.constant(f"sqrt_{self.head_dim}", np.float32(np.sqrt(self.head_dim)))
        scores = graph.op("Div", [scores, root], name + ".scores", square)
        if mask is not None:
            scores = graph.op("Add", [scores, mask], name + ".scores", square)
        weights = graph.op("Softmax", [scores], name, square, attributes={"axis": -1})
        mixed = graph.op("MatMul", [weights, heads["v"]], name, (batch, self.heads, sequence, self.head_dim))
        mixed = graph.op(
            "Transpose", [mixed], name, (batch, sequence, self.heads, self.head_dim), attributes={"perm": (0, 2, 1, 3)}
        )
        merge = graph.constant(f"width_{inner}", np.array([0, 0, inner]))
        mixed = graph.op("Reshape", [mixed, merge], name, (batch, sequence, inner))
        return self.linear(graph, mixed, f"{layer}.{self.names.o}", inner, self.width, rows)

    def feed_forward(self, graph: GraphBuilder, x: ir.Value, layer: str, rows: Dims) -> ir.Value:
        """The FFN of x [B, S, D]."""
        up = f"{layer}.{self.names.up}"
        hidden = self.linear(graph, x, up, self.width, self.hidden, rows)
        hidden = self.gelu(graph, hidden, up, (*rows, self.hidden))
        return self.linear(graph, hidden, f"{layer}.{self.names.down}", self.hidden, self.width, rows)

    def layer(
        self, graph: GraphBuilder, x: ir.Value, layer: str, rows: tuple[str, str], mask: ir.Value | None = None
    ) -> ir.Value:
        """One layer: attention and FFN with their norms and residuals; x [B, S, D] -> [B, S, D]."""
        shape = (*rows, self.width)
        for part, norm_name in (("attention", self.names.attention_norm), ("ffn", self.names.ffn_norm)):
            norm_name = f"{layer}.{norm_name}"
            source = self.norm(graph, x, norm_name, rows) if self.pre_norm else x
            if part == "attention":
                branch = self.attention(graph, source, layer, rows, mask)
            else:
                branch = self.feed_forward(graph, source, layer, rows)
            x = graph.op("Add", [branch, x], f"{layer}.{part}.residual", shape)
            if not self.pre_norm:
                x = self.norm(graph, x, norm_name, rows)
        return x
