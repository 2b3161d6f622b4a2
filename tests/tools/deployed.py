"""Models with the inputs and outputs of an MDETR or a GLIP, a few numbers large, and nothing learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.onnx_text import model_of

QUERIES, SLOTS = 12, 40
CELLS = 64 + 16 + 4
"""Of an image of 64 pixels, on three feature maps."""

PIXELS = """
    small = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (pixel_values)
    flat = ReduceMean <keepdims = 0> (small, channel)
    rows = Reshape (flat, rows_shape)"""
WORDS = """
    words = Gather (table, input_ids)
    real = Cast <to = 1> (attention_mask)
    column = Unsqueeze (real, last)
    masked = Mul (words, column)
    text = ReduceSum <keepdims = 0> (masked, tokens)
    seen = MatMul (rows, see)
    both = Add (seen, text)
    hidden = Tanh (both)"""
CONSTANTS = (
    "int64[1] channel = {1}, int64[2] rows_shape = {0, -1}, int64[1] last = {2}, int64[1] tokens = {1}, float[200,16] table"
)
INPUTS = "int64[B,T] input_ids, int64[B,T] attention_mask"


def mdetr(
    side: int = 48, *, answers: int = 0, slots: int = SLOTS, seed: int = 0, masked: bool = True, batch: str = "B"
) -> ir.Model:
    """``logits`` and ``boxes`` of queries, and ``answer`` or GQA's answers (``answers`` = -1)."""
    cells = (side // 8) ** 2
    body = f"""{PIXELS}{WORDS}
        l0 = MatMul (hidden, say)
        logits = Reshape (l0, logits_shape)
        b0 = MatMul (hidden, place)
        b1 = Sigmoid (b0)
        boxes = Reshape (b1, boxes_shape)"""
    outputs = [f"float[{batch},{QUERIES},{slots + 1}] logits", f"float[{batch},{QUERIES},4] boxes"]
    weights = [
        CONSTANTS,
        f"int64[3] logits_shape = {{0, {QUERIES}, {slots + 1}}}, int64[3] boxes_shape = {{0, {QUERIES}, 4}}",
        f"float[{cells},16] see, float[16,{QUERIES * (slots + 1)}] say, float[16,{QUERIES * 4}] place",
    ]
    heads = {"answer": answers} if answers > 0 else {}
    if answers < 0:
        heads = {"answer_type": 5, "answer_obj": 3, "answer_attr": 3, "answer_rel": 1, "answer_global": 1, "answer_cat": 3}
    for name, width in heads.items():
        body += f" {name} = MatMul (hidden, {name}_head)"
        outputs.append(f"float[{batch},{width}] {name}")
        weights.append(f"float[16,{width}] {name}_head")
    inputs = f"float[{batch},3,{side},{side}] pixel_values, {INPUTS}"
    if masked:
        inputs = inputs.replace(" pixel_values", f" pixel_values, bool[{batch},{side},{side}] pixel_mask")
    inputs = inputs.replace("[B,", f"[{batch},")
    return model_of(body, inputs=inputs, outputs=", ".join(outputs), weights=", ".join(weights), seed=seed)


def anywhere(*, answers: int = 0) -> ir.Model:
    """An MDETR that takes images of any size, and looks at the middle of each alone."""
    model = mdetr(8, answers=answers)
    for value in model.graph.inputs:
        if value.name == "pixel_values":
            value.shape = ir.Shape(["B", 3, "H", "W"])
        elif value.name == "pixel_mask":
            value.shape = ir.Shape(["B", "H", "W"])
    (pool,) = [node for node in model.graph if node.op_type == "AveragePool"]
    mean = ir.node("GlobalAveragePool", [pool.inputs[0]], name="pool")
    mean.outputs[0].name = pool.outputs[0].name
    ir.convenience.replace_nodes_and_values(model.graph, pool, [pool], [mean], list(pool.outputs), list(mean.outputs))
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return model


def glip(seed: int = 0) -> ir.Model:
    """``logits``, ``boxes`` and ``centerness`` of the cells of an image of 64 pixels."""
    body = f"""{PIXELS}{WORDS}
        a0 = MatMul (hidden, say)
        a1 = Reshape (a0, cell_shape)
        row = Unsqueeze (real, tokens)
        logits = Mul (a1, row)
        b0 = MatMul (hidden, place)
        boxes = Reshape (b0, boxes_shape)
        centerness = MatMul (hidden, centre)"""
    weights = [
        CONSTANTS,
        f"int64[3] cell_shape = {{0, {CELLS}, 1}}, int64[3] boxes_shape = {{0, {CELLS}, 4}}",
        f"float[64,16] see, float[16,{CELLS}] say, float[16,{CELLS * 4}] place, float[16,{CELLS}] centre",
    ]
    outputs = f"float[B,{CELLS},T] logits, float[B,{CELLS},4] boxes, float[B,{CELLS}] centerness"
    inputs = f"float[B,3,64,64] pixel_values, {INPUTS}"
    return model_of(body, inputs=inputs, outputs=outputs, weights=", ".join(weights), seed=seed)


def near(model: ir.Model, by: float = 0.3) -> ir.Model:
    """The model with its weights moved a little, so that some of what it says changes."""
    rng, moved = np.random.default_rng(1), model.clone()
    for value in moved.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            array = tensor.numpy()
            noise = rng.standard_normal(array.shape).astype(np.float32) * by * float(array.std())
            value.const_value = ir.tensor(array + noise, name=value.name)
    return moved


def saved(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    return path
