"""How big a model is: on disk, in numbers, and once ONNX Runtime has optimised it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from inarch.frontends.mapped import sources_of
from inarch.runtime.precision import NARROW
from inarch.runtime.providers import writing_providers
from inarch.runtime.session import ModelLike, Session, SessionOptions, load, model_file
from inarch.runtime.sharing import array_digest, tensor_bytes
from inarch.structure.nodes import every_node

PLANNED_KEY = "inarch.planned"
"""Model metadata: how many parameters the plan counts."""


@dataclass(frozen=True)
class SizeReport:
    """Sizes of one model.

    Attributes:
        planned: parameters that the plan counts, where the model or the caller says so.
        stored: numbers in the file, floating-point ones and those of quantised matrices, an initializer counted once however many
            read it.
        unique: the same, initializers with equal values counted once together.
        file_bytes: the model file and the external data files it names.
        tensor_bytes: bytes of all tensors in it.
        unique_bytes: the same, tensors with equal values counted once together.
        optimised_bytes: tensor bytes after ORT's full optimisation.
    """

    planned: int | None
    stored: int
    unique: int
    file_bytes: int
    tensor_bytes: int
    unique_bytes: int
    optimised_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return asdict(self)


def measure_size(
    model: ModelLike, *, planned: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> SizeReport:
    """Measure a model; one in memory is written first, to be measured as a file.

    Args:
        model: the model.
        planned: parameters that its plan counts; read from the model's metadata where not given.
        providers: execution providers, for what ORT's optimisation makes of it.

    Raises:
        RuntimeFailure: the file cannot be read, or ORT refuses the model.
    """
    with model_file(model) as path, tempfile.TemporaryDirectory(prefix="inarch-") as folder:
        loaded = load(path)
        text = loaded.metadata_props.get(PLANNED_KEY, "")
        if planned is None and text.isdigit():
            planned = int(text)
        stored = unique = unique_bytes = 0
        seen: set[str] = set()
        for tensor in _all_tensors(loaded):
            numbers = tensor.size if tensor.dtype.is_floating_point() or _is_quantised(tensor) else 0
            stored += numbers
            digest = _digest(tensor)
            if digest not in seen:
                seen.add(digest)
                unique += numbers
                unique_bytes += tensor.nbytes
        optimised = Path(folder) / "optimised.onnx"
        Session(path, SessionOptions("all", writing_providers(providers), optimised_path=optimised)).close()
        return SizeReport(
            planned, stored, unique, file_bytes(path), tensor_bytes(loaded), unique_bytes, tensor_bytes(load(optimised))
        )


def file_bytes(path: str | Path) -> int:
    """Bytes of a model file and of every external data file that its tensors name.

    Raises:
        RuntimeFailure: the model cannot be read.
    """
    files = {source.resolve() for source in sources_of(load(Path(path)))}
    return Path(path).stat().st_size + sum(file.stat().st_size for file in files)


def _all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in every_node(model.graph):
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.attributes["value"].as_tensor()


def _is_quantised(tensor: ir.TensorProtocol) -> bool:
    """Whether it is a matrix of a quantised model; zero points and indices are none."""
    return tensor.dtype in NARROW and len(tensor.shape) >= 2


def _digest(tensor: ir.TensorProtocol) -> str:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist())
    return f"{tensor.dtype.name} {array_digest(tensor.numpy())}"
