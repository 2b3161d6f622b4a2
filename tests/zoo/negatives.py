"""What looks like a site and is none, each beside a real encoder layer that has to be found and compiled all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tests.zoo.blocks import Blocks
from tests.zoo.encoders import bert_layer, bert_names
from tests.zoo.graph import GraphWriter
from tests.zoo.model import ZooModel
from tests.zoo.registry import blocks, done, feature_inputs, form, norm_kind, pick, writer

WIDTH, HEADS, HIDDEN = 24, 3, 48


def _start(rng: np.random.Generator, low: int = 13, **fixed: Any) -> tuple[GraphWriter, Blocks, ir.Value, str]:
    """A writer, blocks, the output of one ordinary post-norm layer, and the norm that goes with the opset."""
    g = writer(rng, low, 22, **{"linear": "matmul", **fixed})
    b = blocks(g, drop=False)
    norm = norm_kind(g)
    x = g.input("features", ir.DataType.FLOAT, ["batch", "sequence", WIDTH])
    return g, b, bert_layer(b, x, "encoder.layer.0", WIDTH, HEADS, HIDDEN, "gelu_erf", norm), norm


def _end(name: str, b: Blocks, x: ir.Value, norm: str, *, runnable: bool = True, **more: ir.Value) -> ZooModel:
    y = bert_layer(b, x, "encoder.layer.9", WIDTH, HEADS, HIDDEN, "gelu_erf", norm)
    return done(name, b, {"out": y, **more}, feature_inputs("features", WIDTH), runnable=runnable)


@form("box_head", negative=True)
def box_head(rng: np.random.Generator) -> ZooModel:
    """Two layers with ReLU of the very shape of an FFN, whose output never meets the residual stream."""
    g, b, x, norm = _start(rng)
    h = b.ffn(x, "bbox_embed.layers.0", "bbox_embed.layers.1", WIDTH, HIDDEN, "relu", site=False)
    boxes = g.op("Sigmoid", g.linear(g.op("Relu", h), "bbox_embed.layers.2", WIDTH, 4))
    return _end("box_head", b, x, norm, boxes=boxes)


@form("squeeze_excite", negative=True)
def squeeze_excite(rng: np.random.Generator) -> ZooModel:
    """Two layers on the mean over the sequence, whose output scales the stream."""
    g, b, x, norm = _start(rng)
    mean = g.reduce("ReduceMean", x, [1])
    gate = g.op("Sigmoid", b.ffn(mean, "se.conv_reduce", "se.conv_expand", WIDTH, 16, "relu", site=False))
    return _end("squeeze_excite", b, g.op("Mul", x, gate), norm)


@form("dyrelu", negative=True)
def dyrelu(rng: np.random.Generator) -> ZooModel:
    """DyReLU: two layers on the mean produce four coefficients a channel; max(x a1 + b1, x a2 + b2)."""
    g, b, x, norm = _start(rng)
    mean = g.reduce("ReduceMean", x, [1])
    theta = g.linear(g.op("Relu", g.linear(mean, "relu.fc.0", WIDTH, 16)), "relu.fc.2", 16, 4 * WIDTH)
    theta = g.clip(g.op("Div", g.op("Add", theta, g.const(3.0)), g.const(6.0)), 0.0, 1.0)
    a1, b1, a2, b2 = g.split(theta, [WIDTH] * 4, -1)
    first = g.op("Add", g.op("Mul", x, a1), b1)
    second = g.op("Add", g.op("Mul", x, a2), b2)
    return _end("dyrelu", b, g.op("Max", first, second), norm)


@form("hidden_output", negative=True)
def hidden_output(rng: np.random.Generator) -> ZooModel:
    """The hidden value of an FFN is an output of the graph."""
    g, b, x, norm = _start(rng)
    h = g.activation(g.linear(x, "encoder.layer.1.fc1", WIDTH, HIDDEN), "relu")
    y = g.linear(h, "encoder.layer.1.fc2", HIDDEN, WIDTH)
    params = {"up": "encoder.layer.1.fc1.weight", "down": "encoder.layer.1.fc2.weight"}
    b.record("ffn", params, {"hidden": HIDDEN}, frozen=["hidden"])
    x = g.norm(g.op("Add", y, x), "encoder.layer.1.norm", WIDTH, norm)
    return _end("hidden_output", b, x, norm, hidden=h)


@form("attention_output", negative=True)
def attention_output(rng: np.random.Generator) -> ZooModel:
    """The attention weights [B,H,S,S] are an output: heads cannot go, units inside heads can."""
    g, b, x, norm = _start(rng)
    names, dim = bert_names("encoder.layer.1"), WIDTH // HEADS
    q, k, v = (b.split_heads(g.linear(x, n, WIDTH, WIDTH), HEADS, dim) for n in names[:3])
    scores = g.op("MatMul", g.op("Mul", q, g.const(dim**-0.5)), g.transpose(k, 0, 1, 3, 2))
    probs = g.softmax(scores)
    y = g.linear(b.merge_heads(g.op("MatMul", probs, v), HEADS, dim), names[3], WIDTH, WIDTH)
    b.record_attention(dict(zip("qkvo", names, strict=True)), HEADS, dim, frozen=["head"])
    x = g.norm(g.op("Add", y, x), "encoder.layer.1.norm", WIDTH, norm)
    return _end("attention_output", b, x, norm, attentions=g.op("Identity", probs))


@form("quantised", negative=True)
def quantised(rng: np.random.Generator) -> ZooModel:
    """An FFN with int8 weights behind DequantizeLinear, activations through QuantizeLinear and back."""
    g, b, x, norm = _start(rng)

    def stored(name: str, shape: tuple[int, int]) -> ir.Value:
        values = rng.integers(-127, 128, shape).astype(np.int8)
        scale = g.const(1.0 / (127 * np.sqrt(shape[0])))
        return g.op("DequantizeLinear", g.param(f"{name}.weight_quantized", values), scale, g.const(np.array(0), np.int8))

    def around(y: ir.Value) -> ir.Value:
        scale, zero = g.const(0.05), g.const(np.array(128), np.uint8)
        return g.op("DequantizeLinear", g.op("QuantizeLinear", y, scale, zero), scale, zero)

    h = g.op("Relu", g.op("MatMul", around(x), stored("encoder.layer.1.fc1", (WIDTH, HIDDEN))))
    y = g.op("MatMul", around(h), stored("encoder.layer.1.fc2", (HIDDEN, WIDTH)))
    x = g.norm(g.op("Add", y, x), "encoder.layer.1.norm", WIDTH, norm)
    return _end("quantised", b, x, norm)


@form("running_sum", negative=True)
def running_sum(rng: np.random.Generator) -> ZooModel:
    """An operator that mixes the hidden units (CumSum along them, or TopK) freezes them."""
    g, b, x, norm = _start(rng)

    def mix(h: ir.Value) -> ir.Value:
        if pick(rng, True, False):
            return g.op("Mul", g.op("CumSum", h, g.const(np.array(-1))), g.const(0.1))
        return g.ops("TopK", h, g.const([HIDDEN]), outputs=2, axis=-1)[0]

    y = b.ffn(x, "encoder.layer.1.fc1", "encoder.layer.1.fc2", WIDTH, HIDDEN, "relu", between=mix, frozen=True)
    x = g.norm(g.op("Add", y, x), "encoder.layer.1.norm", WIDTH, norm)
    return _end("running_sum", b, x, norm)


@form("local_function", negative=True)
def local_function(rng: np.random.Generator) -> ZooModel:
    """The activation is a function of the model's own."""
    g, b, x, norm = _start(rng)
    argument = ir.val("value", ir.DataType.FLOAT)
    node = ir.node("Tanh", [argument], name="tanh")
    node.outputs[0].name = "result"
    body = ir.Graph([argument], node.outputs, nodes=[node], opset_imports={"": g.opset})
    g.functions.append(ir.Function("zoo.local", "Squash", graph=body, attributes=[]))

    def squash(h: ir.Value) -> ir.Value:
        return g.op("Squash", h, domain="zoo.local")

    y = b.ffn(x, "encoder.layer.1.fc1", "encoder.layer.1.fc2", WIDTH, HIDDEN, "relu", between=squash, frozen=True)
    x = g.norm(g.op("Add", y, x), "encoder.layer.1.norm", WIDTH, norm)
    return _end("local_function", b, x, norm)


@form("unknown_operator", negative=True)
def unknown_operator(rng: np.random.Generator) -> ZooModel:
    """An operator of nobody's domain inside the FFN; ONNX Runtime cannot run the model, the compiler carries it through."""
    g, b, x, norm = _start(rng)

    def mystery(h: ir.Value) -> ir.Value:
        value = g.op("Mystery", h, domain="zoo.unknown")
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(["batch", "sequence", HIDDEN])
        return value

    y = b.ffn(x, "encoder.layer.1.fc1", "encoder.layer.1.fc2", WIDTH, HIDDEN, "relu", between=mystery, frozen=True)
    x = g.norm(g.op("Add", y, x), "encoder.layer.1.norm", WIDTH, norm)
    return _end("unknown_operator", b, x, norm, runnable=False)


def _branches(g: GraphWriter, condition: ir.Value, then: list[ir.Node], otherwise: list[ir.Node], rank: int) -> ir.Value:
    """An If whose branches end in the last node's output, a single number of the given rank."""
    graphs = []
    for label, nodes in (("then", then), ("else", otherwise)):
        for i, node in enumerate(nodes):
            for value in node.outputs:
                value.name = f"{label}_{i}"
        result = nodes[-1].outputs[0]
        result.dtype, result.shape = ir.DataType.FLOAT, ir.Shape([1] * rank)
        graphs.append(ir.Graph([], [result], nodes=nodes, name=label))
    value = g.op("If", condition, then_branch=graphs[0], else_branch=graphs[1])
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([1] * rank)
    return value


@form("subgraph_weight", negative=True)
def subgraph_weight(rng: np.random.Generator) -> ZooModel:
    """A weight of the FFN is also read inside a branch of If."""
    g, b, x, norm = _start(rng, weights="initializer")
    y = b.ffn(x, "encoder.layer.1.fc1", "encoder.layer.1.fc2", WIDTH, HIDDEN, "relu", frozen=True)
    x = g.norm(g.op("Add", y, x), "encoder.layer.1.norm", WIDTH, norm)
    condition = g.op("Greater", g.reduce("ReduceMean", x, [0, 1, 2], keepdims=0), g.const(0.0))
    weight = g.params["encoder.layer.1.fc2.weight"]
    mean = ir.node("ReduceMax", [weight], {"keepdims": 1})
    flat = ir.node("Identity", [g.const(np.zeros((1, 1)))])
    picked = _branches(g, condition, [mean], [flat], 2)
    return _end("subgraph_weight", b, g.op("Add", x, picked), norm)


@form("subgraph_value", negative=True)
def subgraph_value(rng: np.random.Generator) -> ZooModel:
    """The hidden value of the FFN is captured by a branch of If."""
    g, b, x, norm = _start(rng)
    caught: list[ir.Value] = []

    def capture(h: ir.Value) -> ir.Value:
        caught.append(h)
        return h

    y = b.ffn(x, "encoder.layer.1.fc1", "encoder.layer.1.fc2", WIDTH, HIDDEN, "relu", between=capture, frozen=True)
    x = g.norm(g.op("Add", y, x), "encoder.layer.1.norm", WIDTH, norm)
    condition = g.op("Greater", g.reduce("ReduceMean", x, [0, 1, 2], keepdims=0), g.const(0.0))
    mean = ir.node("ReduceMax", [caught[0]], {"keepdims": 1})
    flat = ir.node("Identity", [g.const(np.zeros((1, 1, 1)))])
    picked = _branches(g, condition, [mean], [flat], 3)
    return _end("subgraph_value", b, g.op("Add", x, picked), norm)
