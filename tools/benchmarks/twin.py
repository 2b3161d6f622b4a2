"""The benchmarks' model: a text and a vision encoder of equal width with seeded random weights, 649 MiB at full size.

Weights are made while they are written, one tensor at a time, so a model larger than memory can be built. Equal arguments
give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.tools.encoders import BERT_NAMES, VIT_NAMES, Encoder, GraphBuilder
from inarch.tools.towers import save_model

OUTPUT = "sum"
INPUTS = ("text.x", "vision.x")


@dataclass(frozen=True)
class TwinEncoders:
    """Sizes of the two-tower model.

    Attributes:
        layers: layers of each encoder.
        width: of the residual streams.
        heads: of each attention; heads times head_dim is the width.
        hidden: units of each FFN.
        seed: of the weights.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    seed: int = 0

    @property
    def head_dim(self) -> int:
        """Units a head."""
        return self.width // self.heads

    def encoder(self, *, text: bool) -> Encoder:
        """One tower: post-norm like BERT, or pre-norm like a ViT."""
        names, epsilon = (BERT_NAMES, 1e-12) if text else (VIT_NAMES, 1e-6)
        return Encoder(self.width, self.heads, self.head_dim, self.hidden, names, pre_norm=not text, epsilon=epsilon)

    def build(self) -> ir.Model:
        """The model, its weights lazy: inputs :data:`INPUTS` [batch, sequence, width], output :data:`OUTPUT`, their sum."""
        graph = GraphBuilder("", self._weights)
        rows = ("batch", "sequence")
        shape = (*rows, self.width)
        text, vision = (graph.input(name, ir.DataType.FLOAT, shape) for name in INPUTS)
        for number in range(self.layers):
            text = self.encoder(text=True).layer(graph, text, f"text.layer.{number}", rows)
        for number in range(self.layers):
            vision = self.encoder(text=False).layer(graph, vision, f"vision.layer.{number}", rows)
        vision = self.encoder(text=False).norm(graph, vision, "vision.norm", rows)
        total = graph.rename(graph.op("Add", [text, vision], "sum", shape), OUTPUT)
        return graph.model([total], "twin_encoders")

    def save(self, folder: Path) -> Path:
        """Write the model into ``folder``, unless it is there already; the name says what it is.

        Returns:
            The path of the ``.onnx`` file; its data lies beside it.
        """
        label = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        path = folder / f"twin_{self.layers}x{self.width}_{label}.onnx"
        if not path.is_file():
            save_model(self.build(), path)
        return path

    def _weights(self, name: str, shape: tuple[int, ...]) -> ir.TensorProtocol:
        def make() -> ir.TensorProtocol:
            return ir.tensor(draw(name, shape, self.seed))

        return ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape(shape))


def draw(name: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """A parameter's values: matrices of gain 1, norms near the identity, small biases; of the name and the seed alone."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    values = np.random.default_rng([seed, key]).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        values *= np.float32(shape[0] ** -0.5)
    else:
        values *= np.float32(0.02)
        if "norm" in name.lower() and name.endswith(".weight"):
            values += np.float32(1)
    return values


def feeds(model: TwinEncoders, rows: Sequence[int] = (1, 128), seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Inputs of (batch, sequence) ``rows``."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((*rows, model.width), dtype=np.float32) for name in INPUTS}
