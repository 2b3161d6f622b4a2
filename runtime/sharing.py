"""Does a compiled model stay shared once ONNX Runtime has optimised it?

ORT may fold a shared tensor into copies, or make a Gemm of one of its readers and a MatMul of another and pack it twice. So the
graph that ORT really runs is written out at its full optimisation level and looked at: every shared tensor has to be there once,
and all its readers have to be one kind of operator.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from inarch.compiler.metadata import shared_in
from inarch.runtime.providers import writing_providers
from inarch.runtime.session import Array, ModelLike, Session, SessionOptions, load
from inarch.structure.nodes import every_node

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "FusedMatMul"})
"""Operators that pack a weight for themselves."""


@dataclass(frozen=True)
class SharedTensor:
    """What became of one shared initializer.

    Attributes:
        name: its name in the compiled model.
        bytes: its size.
        copies: initializers of the optimised graph that hold its values, as they are, transposed, or fp16 cast to fp32.
        readers: kinds of its readers, e.g. ``MatMul[1]`` (operator and input), with how many of each.
        ok: stored once, read by one kind of operator.
        reason: why not.
    """

    name: str
    bytes: int
    copies: int
    readers: Mapping[str, int]
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class SharingReport:
    """What is shared in the graph that ORT runs.

    Attributes:
        tensors: every shared initializer.
        stored_bytes: tensor bytes of the compiled model, each initializer as often as it is there.
        optimised_bytes: the same after ORT's full optimisation.
        listed: whether the model says what it shares; if not, matrices that several products read were taken.
    """

    tensors: tuple[SharedTensor, ...]
    stored_bytes: int
    optimised_bytes: int
    listed: bool

    @property
    def ok(self) -> bool:
        """Every shared tensor is stored once and read by one kind of operator."""
        return all(tensor.ok for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {**asdict(self), "ok": self.ok}


def check_sharing(compiled: ModelLike, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> SharingReport:
    """Optimise a compiled model as ORT does before running it, and look at every shared tensor.

    Args:
        compiled: the model.
        providers: execution providers; which optimisations run depends on them.

    Raises:
        RuntimeFailure: ORT refuses the model.
    """
    model = load(compiled)
    listed = shared_in(model.metadata_props) is not None
    names = shared_names(model)
    with tempfile.TemporaryDirectory(prefix="inarch-") as folder:
        path = Path(folder) / "optimised.onnx"
        Session(compiled, SessionOptions("all", writing_providers(providers), optimised_path=path)).close()
        optimised = load(path)
        tensors = _look(model, optimised, names)
        return SharingReport(tensors, tensor_bytes(model), tensor_bytes(optimised), listed)


def shared_names(model: ir.Model) -> tuple[str, ...]:
    """Initializers that a model shares: those its metadata lists, else matrices that several products read as they are."""
    listed = shared_in(model.metadata_props)
    if listed is not None:
        return tuple(listed)
    return tuple(
        name
        for name, value in model.graph.initializers.items()
        if value.dtype is not None and value.dtype.is_floating_point() and _is_matrix(value)
        and sum(node.op_type in PRODUCTS for node, _ in value.uses()) > 1
    )  # fmt: skip


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) >= 2 and min(value.shape.numpy()) > 1


def tensor_bytes(model: ir.Model) -> int:
    """Bytes of all initializers and Constant nodes, in the main graph and in subgraphs."""
    total = sum(tensor.nbytes for graph in model.graphs() for tensor in _tensors(graph.initializers.values()))
    for node in every_node(model.graph):
        if node.op_type == "Constant" and "value" in node.attributes:
            total += node.attributes["value"].as_tensor().nbytes
    return total


def _tensors(values: Iterable[ir.Value]) -> list[ir.TensorProtocol]:
    return [value.const_value for value in values if value.const_value is not None]


def _look(model: ir.Model, optimised: ir.Model, names: Sequence[str]) -> tuple[SharedTensor, ...]:
    """Match shared tensors to the optimised graph's by content, since ORT may rename what it moves."""
    originals: dict[str, ir.TensorProtocol] = {}
    for name in names:
        value = model.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            originals[name] = value.const_value
    sizes = {tensor.nbytes * factor for tensor in originals.values() for factor in (1, 2)}
    found: dict[str, list[ir.Value]] = {}
    for value in optimised.graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes in sizes:
            found.setdefault(array_digest(value.const_value.numpy()), []).append(value)
    digests = {name: _digests(tensor.numpy()) for name, tensor in originals.items()}
    alike = Counter(digests.values())
    result: list[SharedTensor] = []
    for name in names:
        if name not in originals:
            result.append(SharedTensor(name, 0, 0, {}, False, "the model has no such initializer"))
            continue
        tensor = originals[name]
        copies = [value for digest in sorted(digests[name]) for value in found.get(digest, ())]
        if 1 < len(copies) <= alike[digests[name]]:  # the model itself has a weight and its transpose, or two of equal numbers
            copies = [value for value in copies if value.name == name] or copies[:1]
        readers: dict[str, int] = {}
        for value in copies:
            for node, index in value.uses():
                kind = _kind(node, index)
                readers[kind] = readers.get(kind, 0) + 1
        reason = ""
        if not copies:
            reason = "ONNX Runtime folded it into something else"
        elif len(copies) > 1:
            reason = f"ONNX Runtime keeps {len(copies)} copies: {', '.join(str(value.name) for value in copies)}"
        elif len(readers) > 1:
            reason = f"it is packed once for each kind of reader: {', '.join(sorted(readers))}"
        result.append(SharedTensor(name, tensor.nbytes, len(copies), readers, not reason, reason))
    return tuple(result)


def _digests(array: Array) -> frozenset[str]:
    """Hashes of a tensor in every form that ONNX Runtime may give it."""
    forms = [array, array.T] if array.ndim == 2 else [array]
    if array.dtype == np.float16:
        forms += [form.astype(np.float32) for form in forms]  # what the CPU makes of it before it runs
    return frozenset(array_digest(form) for form in forms)


def _kind(node: ir.Node, index: int) -> str:
    """What decides how ORT packs a weight: operator, input, and the flags that transpose it."""
    flags = [f"{name}=1" for name in ("transA", "transB", "transBatchB") if node.attributes.get_int(name, 0)]
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    return f"{domain}{node.op_type}[{index}]" + (f"({', '.join(flags)})" if flags else "")


def array_digest(array: Array) -> str:
    """Hash of an array's shape, type and values; a view that is not contiguous is copied a strip at a time."""
    digest = hashlib.blake2b(f"{array.shape}{array.dtype.str}".encode(), digest_size=16)
    array = np.atleast_1d(array)
    step = len(array) if array.flags.c_contiguous else max(1, (1 << 22) * len(array) // max(1, array.size))
    for first in range(0, len(array), max(1, step)):
        digest.update(np.ascontiguousarray(array[first : first + step]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
