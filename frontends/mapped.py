"""Tensors whose bytes stay in a file until they are needed.

:class:`onnx_ir.ExternalTensor` maps the whole file once for every tensor, which uses up a process's file handles at about a
thousand tensors, and writes itself as a file name, which is wrong for any other folder. Here all tensors of a file are views of
one mapping, and a tensor writes itself as its bytes.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

SOURCES = "inarch.sources"
"""Key of ``model.graph.meta``: the files that the model was read from, which must not be overwritten (list of str)."""


class MappedFile:
    """A file mapped for reading; what it held stays readable when its name is given to another file.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened or mapped.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b"")

    def view(self, offset: int, length: int) -> memoryview:
        """Bytes ``offset .. offset + length``, read-only and not copied."""
        return self._bytes[offset : offset + length]

    def tensor(self, offset: int, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> ir.TensorProtocol:
        """The tensor that starts at byte ``offset``, little-endian as ONNX stores it, read-only and not copied.

        Args:
            offset: its first byte; the caller has checked that it fits.
            dtype: its element type (not strings).
            shape: its shape.
            name: its name.
        """
        count = int(np.prod(shape, dtype=np.int64))
        data = self.view(offset, -(-count * dtype.bitwidth // 8))
        if dtype.bitwidth % 8:
            return ir.PackedTensor(np.frombuffer(data, np.uint8), dtype, shape=ir.Shape(shape), name=name)
        stored = np.dtype(dtype.numpy())
        if stored.isbuiltin == 1:  # the types of ml_dtypes have no byte order of their own
            stored = stored.newbyteorder("<")
        return ir.Tensor(np.frombuffer(data, stored).reshape(shape), dtype, name=name)


def map_external(model: ir.Model) -> None:
    """Make every external tensor of a model a view of its file, which is mapped once; the files become its sources.

    Raises:
        OSError: a file cannot be opened or mapped.
        ValueError: it is too short for its tensor.
    """
    files: dict[Path, MappedFile] = {}

    def mapped(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        path = Path(tensor.path)
        file = files.get(path) or files.setdefault(path, MappedFile(path))
        return file.tensor(tensor.offset or 0, tensor.dtype, tuple(tensor.shape.numpy()), str(tensor.name))

    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = mapped(value.const_value)
        for node in graph:
            for attribute in list(node.attributes.values()):
                if isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, mapped(attribute.value))
    if files:
        model.graph.meta[SOURCES] = [str(path) for path in files]


def sources_of(model: ir.Model) -> set[Path]:
    """The files that a model was read from: its own, and those that its tensors lie in."""
    paths = {Path(path) for path in model.graph.meta.get(SOURCES, ())}
    for graph in model.graphs():
        tensors = (value.const_value for value in graph.initializers.values())
        paths.update(Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor))
    return paths
