"""How much a model multiplies on given inputs: what its latency would be a matter of, if nothing else took time.

Counted are products of matrices, convolutions and attention, from the shapes in ONNX Runtime's own profile: sizes that the graph
computes are the real ones. A shared weight is multiplied by each of its readers, so pruning alone makes them fewer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from inarch.runtime.placement import is_subgraph, nodes_run
from inarch.runtime.providers import CPU
from inarch.runtime.session import Array, ModelLike, Session, SessionOptions

Shape = Sequence[int]

_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"})
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "ConvInteger", "DeformConv"})
_ATTENTIONS = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})
_UNKNOWN = frozenset({"Einsum", "LSTM", "GRU", "RNN", "QLinearMatMul", "QLinearConv"})
"""These multiply too, by what their attributes say, which a profile does not."""


def count_multiplications(model: ModelLike, feeds: Mapping[str, Array], provider: str = CPU) -> int | None:
    """Multiplications of one run.

    Args:
        model: the model; it is run once, as it is written.
        feeds: inputs that it accepts.
        provider: ORT's name of the provider that runs it.

    Returns:
        Multiplications, each with its addition; None where a node multiplies in a way that is not counted here, or a provider
        has made one node of many.

    Raises:
        RuntimeFailure: ONNX Runtime is missing, or refuses the model or the inputs.
    """
    with tempfile.TemporaryDirectory(prefix="inarch-") as folder:
        options = SessionOptions("off", (provider,), profile=Path(folder) / "profile", packs=False)
        with Session(model, options) as session:
            session.run(feeds)
            nodes = list(nodes_run(session))
    total = 0
    for about in nodes:
        inputs, outputs = (_shapes(about.get(key)) for key in ("input_type_shape", "output_type_shape"))
        found = of_node(about.get("op_name", ""), inputs, outputs)
        if found is None:
            return None
        total += found
    return total


def of_node(operator: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """Multiplications of one node, by the shapes of what it reads and makes; None where they do not tell."""
    if operator in _UNKNOWN or is_subgraph(operator):
        return None
    known = operator in _PRODUCTS | _CONVOLUTIONS | _ATTENTIONS | {"Gemm", "ConvTranspose"}
    if not known:
        return 0
    if len(inputs) < 2 or not outputs:
        return None
    first, second, made = inputs[0], inputs[1], prod(outputs[0])
    if operator in _PRODUCTS:
        # A FusedMatMul may read its first operand transposed.
        turned = operator == "FusedMatMul" and len(first) > 1 and first[-1] not in second[-2:]
        return made * first[-2 if turned else -1]
    if operator == "Gemm":
        return made * (prod(first) // outputs[0][0] if outputs[0][0] else 0)
    if operator in _CONVOLUTIONS:
        return made * prod(second[1:])
    if operator == "ConvTranspose":
        return prod(first) * prod(second[1:])
    return _attention(first, second)


def _attention(first: Shape, second: Shape) -> int:
    """Scores and weighted sums; of com.microsoft's Attention, which reads [B, S, D] and [D, 3 H], the projections too."""
    if len(second) == 2:
        batch, length, _ = first
        width = second[1] // 3
        return prod(first) * second[1] + 2 * batch * length * length * width
    return 2 * prod(first) * second[-2]


def _shapes(told: object) -> list[Shape]:
    """``[{"float": [2, 3]}, ...]`` as shapes; what is left out is none."""
    rows = told if isinstance(told, list) else []
    return [shape for row in rows if isinstance(row, dict) for shape in row.values()]
