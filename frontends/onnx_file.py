"""ONNX file -> :class:`onnx_ir.Model`: what is read is checked, and what is heavy stays in the file.

Everything is carried through: names, shapes, metadata, functions, control flow, quantisation. Four spellings are read as the one
that the rest of inarch knows: a sparse constant as the dense tensor that it stands for (ONNX Runtime does the same), domain
``ai.onnx`` as the default domain, an unsorted graph as a sorted one, a missing import of another domain as version 1 of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from inarch.frontends.mapped import SOURCES, MappedFile
from inarch.frontends.protos import all_nodes, subgraphs, tensors_of
from inarch.frontends.schemas import fault
from inarch.frontends.wire import INLINE_LOCATION, split
from inarch.structure.errors import ModelError
from inarch.structure.nodes import every_node

MIN_OPSET = 11
MAX_OPSET = 23

_MAPPED_BYTES = 4096  # smaller inline tensors are parsed: a page is the least that mapping can save
_MAX_SPARSE_BYTES = 1 << 30
_STRING_DATA = "string_data"


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX model, of any size, with its weights left in their files.

    Args:
        path: the .onnx file. External data lies beside it or below.

    Returns:
        The model, sorted, with the type and shape of every initializer set. Tensors of 4 KB and more, and external ones, are
        views of the mapped file; :func:`~inarch.frontends.mapped.sources_of` names the files.

    Raises:
        ModelError: there is no such file, it is no valid ONNX model, or it needs something that inarch does not read.
    """
    return _Reader(Path(path)).read()


def read_proto(proto: onnx.ModelProto, folder: str | os.PathLike[str] | None = None) -> ir.Model:
    """Read an ONNX model that is in memory already, with the same checks as :func:`load_model`.

    Args:
        proto: the model; it is copied and not changed.
        folder: where its external data lie; None refuses external data.

    Returns:
        As :func:`load_model`.

    Raises:
        ModelError: it is no valid ONNX model, or it needs something that inarch does not read.
    """
    return _Reader(Path(folder, "model") if folder is not None else None, proto).read()


@dataclass
class _Scope:
    """Names of one graph or function body, and what its nodes use."""

    producer: dict[str, int] = field(default_factory=dict)  # -1 for inputs and initializers
    captured: dict[int, list[str]] = field(default_factory=dict)  # node -> names that its subgraphs take from outside
    free: dict[str, str] = field(default_factory=dict)  # name that is defined outside -> the node that uses it


class _Reader:
    def __init__(self, path: Path | None, proto: onnx.ModelProto | None = None) -> None:
        self._path = path or Path("model")
        self._folder = path.parent if path is not None else None
        self._given = proto
        self._file: MappedFile | None = None
        self._located: dict[str, MappedFile] = {}  # external location -> file
        self._tensors: list[ir.TensorProtocol] = []
        self._unsorted: set[str] = set()  # "" for the graph, else a function's identifier

    def _refuse(self, message: str, hint: str | None = None) -> ModelError:
        return ModelError(message, where=str(self._path), hint=hint)

    def read(self) -> ir.Model:
        proto = self._parse()
        self._check_header(proto)
        self._check_texts(proto)
        for tensor in tensors_of(proto):
            self._tensor(tensor)
        self._dense(proto.graph)
        scope = self._graph_scope(proto.graph, "")
        if scope.free:
            name, node = next(iter(scope.free.items()))
            raise self._refuse(f"{node} uses {name!r}, which nothing defines", "export the model again")
        for function in proto.functions:
            self._check_function(function)
        self._check_nodes(proto)
        try:
            model = ir.serde.deserialize_model(proto)
        except Exception as error:  # onnx_ir wraps whatever goes wrong, and the cause says what it was
            raise self._refuse(f"this is not a valid ONNX model: {_root(error)}", "check it with onnx.checker") from error
        self._place(model)
        for function in model.functions.values():
            if str(function.identifier()) in self._unsorted:
                function.sort()
        if "" in self._unsorted:
            model.graph.sort()
        own = [str(self._path)] if self._file is not None else []
        model.graph.meta[SOURCES] = [*own, *(str(file.path) for file in self._located.values())]
        return model

    def _parse(self) -> onnx.ModelProto:
        """The model's protobuf without its large tensors; one that was given is copied."""
        if self._given is not None:
            copy = onnx.ModelProto()
            copy.CopyFrom(self._given)
            return copy
        if not self._path.exists():
            raise self._refuse("there is no such file")
        if not self._path.is_file():
            raise self._refuse("this is not a file", "give the .onnx file itself")
        try:
            file = self._file = MappedFile(self._path)
        except OSError as error:
            raise self._refuse(f"the file cannot be read: {error.strerror or error}") from error
        hint = "give a binary .onnx file, and check that it was copied whole"
        if not file.size:
            raise self._refuse("the file is empty", hint)
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(split(file.view(0, file.size), _MAPPED_BYTES))
        except Exception as error:  # a WireError, or protobuf's DecodeError, whose module has no types
            raise self._refuse(f"this is not an ONNX model, or it is truncated: {error}", hint) from error
        return proto

    def _check_header(self, proto: onnx.ModelProto) -> None:
        """Graph, versions; ``ai.onnx`` becomes the default domain."""
        if not proto.HasField("graph") or not proto.ir_version:
            raise self._refuse("this is not an ONNX model", "give a binary .onnx file")
        if not proto.graph.node:
            raise self._refuse("the graph is empty: it has no nodes")
        if not proto.graph.output:
            raise self._refuse("the graph has no outputs")
        if proto.training_info:
            raise self._refuse("training information is not supported", "export the model for inference")
        for owner, imports in (("the model", proto.opset_import), *((f.name, f.opset_import) for f in proto.functions)):
            versions: dict[str, int] = {}
            for opset in imports:
                if opset.domain == "ai.onnx":
                    opset.domain = ""
                if versions.setdefault(opset.domain, opset.version) != opset.version:
                    raise self._refuse(f"{owner} imports two versions of domain {opset.domain or 'ai.onnx'!r}")
            version = versions.get("", None if owner == "the model" else MIN_OPSET)
            if version is None:
                raise self._refuse("the model imports no ai.onnx operators", "the file may be truncated")
            if not MIN_OPSET <= version <= MAX_OPSET:
                raise self._refuse(
                    f"{owner} uses ai.onnx opset {version}; inarch reads {MIN_OPSET} to {MAX_OPSET}",
                    "export with a lower opset_version" if version > MAX_OPSET else "convert it with onnx.version_converter",
                )

    def _check_texts(self, proto: onnx.ModelProto) -> None:
        """Refuse text that is not UTF-8, which protobuf hands out as bytes, and attributes without a type."""
        pending: list[Any] = [proto]
        while pending:
            message = pending.pop()
            for entry, content in message.ListFields():
                if entry.type == entry.TYPE_MESSAGE:
                    pending.extend([content] if hasattr(content, "ListFields") else content)
                elif entry.type == entry.TYPE_STRING:
                    texts = [content] if isinstance(content, str | bytes) else content
                    damaged = next((text for text in texts if isinstance(text, bytes)), None)
                    if damaged is not None:
                        what = entry.full_name.removeprefix("onnx.")
                        raise self._refuse(f"the {what} {damaged!r} is not UTF-8", "the file is damaged")
            if isinstance(message, onnx.AttributeProto) and not message.type and not message.ref_attr_name:
                raise self._refuse(f"attribute {message.name!r} has no type")

    def _graph_scope(self, graph: onnx.GraphProto, root: str) -> _Scope:
        """Check names, references and order of a graph and of those inside it."""
        inputs = [info.name for info in graph.input]
        names = [tensor.name for tensor in graph.initializer]
        if len(set(names)) != len(names):
            raise self._refuse(f"two initializers are named {_twice(names)!r}")
        if "" in names or "" in inputs:
            raise self._refuse("an input or an initializer has no name")
        return self._scope(graph.node, inputs, names, [info.name for info in graph.output], root)

    def _scope(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[str],
        initializers: Iterable[str],
        outputs: Iterable[str],
        root: str,
    ) -> _Scope:
        scope = _Scope()
        if len(set(inputs)) != len(inputs):
            raise self._refuse(f"two inputs are named {_twice(inputs)!r}")
        scope.producer.update(dict.fromkeys((*inputs, *initializers), -1))
        for index, node in enumerate(nodes):
            for name in node.output:
                if name and scope.producer.setdefault(name, index) != index:
                    raise self._refuse(f"{_node(node)} defines {name!r}, which is defined already", "value names must be unique")
            if len(node.output) > 1 and len({*node.output} - {""}) != sum(map(bool, node.output)):
                raise self._refuse(f"{_node(node)} defines {_twice([n for n in node.output if n])!r} twice")
        forward = False
        for index, node in enumerate(nodes):
            used = list(node.input)
            for graph in subgraphs(node):
                inner = self._graph_scope(graph, root)
                scope.captured.setdefault(index, []).extend(inner.free)
                used.extend(inner.free)
            for name in used:
                producer = scope.producer.get(name)
                if producer is None:
                    if name:
                        scope.free.setdefault(name, _node(node))
                elif producer >= index:
                    forward = True
        if forward:
            self._refuse_cycle(nodes, scope)
            self._unsorted.add(root)
        for name in outputs:
            if name not in scope.producer:
                raise self._refuse(f"output {name!r} is defined by nothing in its graph", "export the model again")
        return scope

    def _refuse_cycle(self, nodes: Sequence[onnx.NodeProto], scope: _Scope) -> None:
        """Raise where nodes that are out of order cannot be sorted."""
        needs: list[set[int]] = []
        users: list[list[int]] = [[] for _ in nodes]
        for index, node in enumerate(nodes):
            names = (*node.input, *scope.captured.get(index, ()))
            needs.append({producer for name in names if (producer := scope.producer.get(name, -1)) >= 0})
            for producer in needs[-1]:
                users[producer].append(index)
        missing = [len(producers) for producers in needs]
        ready = [index for index, count in enumerate(missing) if not count]
        for index in ready:  # grows while it is walked
            for user in users[index]:
                missing[user] -= 1
                if not missing[user]:
                    ready.append(user)
        if len(ready) == len(nodes):
            return
        walked: dict[int, None] = {}
        at = next(index for index, count in enumerate(missing) if count)
        while at not in walked:
            walked[at] = None
            at = min(producer for producer in needs[at] if missing[producer])
        cycle = list(walked)[list(walked).index(at) :][::-1]
        shown = ", ".join(_node(nodes[index]) for index in cycle[:4]) + (" ..." if len(cycle) > 4 else "")
        raise self._refuse(f"the graph has a cycle of {len(cycle)} nodes: {shown}", "an ONNX graph must have none")

    def _check_function(self, function: onnx.FunctionProto) -> None:
        for node in function.node:
            for graph in subgraphs(node):
                self._dense(graph)
        self._dense_nodes(function.node)
        root = str((function.domain, function.name, function.overload))
        scope = self._scope(function.node, function.input, (), function.output, root)
        if scope.free:
            name, node = next(iter(scope.free.items()))
            raise self._refuse(f"function {function.name!r}: {node} uses {name!r}, which nothing defines")

    def _check_nodes(self, proto: onnx.ModelProto) -> None:
        """Check nodes by what defines their operators; import every domain that they use, as ONNX Runtime does with its own."""
        for owner, nodes in ((proto, proto.graph.node), *((f, f.node) for f in proto.functions)):
            known = {opset.domain: opset.version for opset in owner.opset_import}
            for node in all_nodes(nodes):
                domain = "" if node.domain == "ai.onnx" else node.domain
                if domain not in known:
                    known[domain] = next((o.version for o in proto.opset_import if o.domain == domain), 1)
                    owner.opset_import.add(domain=domain, version=known[domain])
                wrong = None if domain else fault(node, known[domain])
                if wrong is not None:
                    raise self._refuse(f"{_node(node)} {wrong}", "onnx.checker finds it, too: export the model again")

    def _dense(self, graph: onnx.GraphProto) -> None:
        """Turn sparse constants, which onnx_ir does not know, into dense ones that are computed when asked for."""
        for sparse in graph.sparse_initializer:
            self._densify(sparse, graph.initializer.add(name=sparse.values.name))
        del graph.sparse_initializer[:]
        self._dense_nodes(graph.node)
        for node in graph.node:
            for inner in subgraphs(node):
                self._dense(inner)

    def _dense_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant" and not node.domain:
                    self._densify(attribute.sparse_tensor, attribute.t)
                    attribute.ClearField("sparse_tensor")
                    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR

    def _densify(self, sparse: onnx.SparseTensorProto, dense: onnx.TensorProto) -> None:
        values = self._sparse_part(sparse.values)
        indices = self._sparse_part(sparse.indices)
        name, shape = sparse.values.name, tuple(sparse.dims)
        size = math.prod(shape)
        place = indices.numpy().astype(np.int64)
        if min(shape, default=0) < 0 or size * values.dtype.itemsize > _MAX_SPARSE_BYTES:
            raise self._refuse(f"sparse tensor {name!r} is too large to be made dense: shape {list(shape)}")
        count = values.size
        if place.shape == (count, len(shape)) and len(shape) != 1:
            inside = bool(np.all((place >= 0) & (place < np.asarray(shape))))
            place = place @ np.asarray([math.prod(shape[axis + 1 :]) for axis in range(len(shape))], np.int64)
        else:
            inside = place.size == count and bool(np.all((place >= 0) & (place < size)))
        if not inside:
            raise self._refuse(f"sparse tensor {name!r} has indices that do not fit shape {list(shape)}")
        flat = place.reshape(-1)

        def compute() -> ir.TensorProtocol:
            array = np.zeros(size, values.dtype.numpy())
            array[flat] = values.numpy().reshape(-1)
            return ir.Tensor(array.reshape(shape), dtype=values.dtype)

        dense.data_type = values.dtype.value
        dense.dims.extend(shape)
        self._refer(dense, ir.LazyTensor(compute, values.dtype, ir.Shape(shape)))

    def _sparse_part(self, proto: onnx.TensorProto) -> ir.TensorProtocol:
        copy = onnx.TensorProto()
        copy.CopyFrom(proto)
        self._tensor(copy)
        if copy.data_location == onnx.TensorProto.EXTERNAL:
            return self._tensors[int(copy.external_data[0].value)]
        return ir.serde.deserialize_tensor(copy)

    def _refer(self, proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> None:
        """Let ``proto`` stand for ``tensor`` until the model is built."""
        proto.data_location = onnx.TensorProto.EXTERNAL
        del proto.external_data[:]
        proto.external_data.add(key="location", value=str(len(self._tensors)))
        self._tensors.append(tensor)

    def _tensor(self, proto: onnx.TensorProto) -> None:
        """Check a tensor's data against its shape and type, wherever it lies."""
        what = f"tensor {proto.name!r}" if proto.name else "a constant without name"
        try:
            dtype = ir.DataType(proto.data_type)
        except ValueError:
            dtype = ir.DataType.UNDEFINED
        if dtype == ir.DataType.UNDEFINED:
            raise self._refuse(f"{what} has element type {proto.data_type}, which is not supported")
        if any(size < 0 for size in proto.dims):
            raise self._refuse(f"{what} has a negative dimension: {list(proto.dims)}")
        size = math.prod(proto.dims)
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            self._external(proto, what, dtype, size)
        elif proto.HasField("raw_data"):
            needed = -(-size * dtype.bitwidth // 8) if dtype != ir.DataType.STRING else -1
            if len(proto.raw_data) != needed:
                raise self._refuse(
                    f"{what} has {len(proto.raw_data)} bytes of data; {dtype.name} of shape {list(proto.dims)} needs {needed}"
                )
        else:
            self._typed(proto, what, dtype, size)

    def _typed(self, proto: onnx.TensorProto, what: str, dtype: ir.DataType, size: int) -> None:
        """Check data that lies in one of the fields for numbers."""
        storage = onnx.helper.tensor_dtype_to_field(proto.data_type)
        if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            needed = 2 * size
        elif dtype != ir.DataType.STRING and dtype.bitwidth in (2, 4):
            needed = -(-size * dtype.bitwidth // 8)
        else:
            needed = size
        found = len(getattr(proto, storage))
        if found != needed:
            raise self._refuse(
                f"{what} has {found} entries in {storage}; {dtype.name} of shape {list(proto.dims)} needs {needed}"
            )

    def _external(self, proto: onnx.TensorProto, what: str, dtype: ir.DataType, size: int) -> None:
        entries = {entry.key: entry.value for entry in proto.external_data}
        if dtype == ir.DataType.STRING:
            raise self._refuse(f"{what} holds strings in external data, which ONNX does not allow")
        numbers: dict[str, int] = {}
        for key in ("offset", "length"):
            text = entries.get(key)
            if text is not None and not (text.isascii() and text.isdigit()):
                raise self._refuse(f"{what} has {key} {text!r}, which is not a number of bytes")
            numbers[key] = int(text) if text is not None else -1
        offset = max(numbers["offset"], 0)
        needed = -(-size * dtype.bitwidth // 8)
        if numbers["length"] not in (-1, needed):
            raise self._refuse(
                f"{what} has {numbers['length']} bytes of external data; {dtype.name} of shape {list(proto.dims)} needs {needed}"
            )
        location = entries.get("location", "")
        own = self._file if location == INLINE_LOCATION else None
        file = own or self._locate(location, what)
        if offset + needed > file.size:
            raise self._refuse(
                f"{what} lies at bytes {offset} to {offset + needed} of {file.path.name!r}, which has {file.size}",
                "the file is truncated, or belongs to another model",
            )
        self._refer(proto, file.tensor(offset, dtype, tuple(proto.dims), proto.name))

    def _locate(self, location: str, what: str) -> MappedFile:
        """The external data file at ``location``, which must lie in the model's folder."""
        known = self._located.get(location)
        if known is not None:
            return known
        if self._folder is None:
            raise self._refuse(f"{what} lies in a file, and a model in memory has no folder", "give the path of the .onnx file")
        outside = f"{what} lies in {location!r}, outside of the model's folder"
        path = Path(os.path.normpath(self._folder / location))
        if not location or "\0" in location:
            raise self._refuse(f"{what} has no valid location of its external data: {location!r}")
        if os.path.isabs(location) or os.path.normpath(location).split(os.sep)[0] == os.pardir:
            raise self._refuse(outside, "external data must lie beside the .onnx file or below")
        # A model that is itself a link (as in a download cache) has its data beside the file that the link leads to.
        roots = (self._folder.resolve(), self._path.resolve().parent)
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise self._refuse(f"{outside}, through a link", "external data must lie beside the .onnx file or below")
        if not path.is_file():
            raise self._refuse(f"{what} lies in {location!r}, which is missing", "copy the data file along with the model")
        try:
            file = MappedFile(path)
        except OSError as error:
            raise self._refuse(f"{location!r} cannot be read: {error.strerror or error}") from error
        self._located[location] = file
        return file

    def _place(self, model: ir.Model) -> None:
        """Put the tensors that were left in files where they belong, and give every initializer its tensor's type and shape."""
        for graph in (*model.graphs(), *(inner for function in model.functions.values() for inner in function.subgraphs())):
            for value in graph.initializers.values():
                tensor = value.const_value
                assert tensor is not None
                if isinstance(tensor, ir.ExternalTensor):
                    value.const_value = tensor = self._found(tensor)
                if value.is_graph_input():
                    self._check_default(value, tensor)
                value.shape = ir.Shape(tensor.shape.numpy())
                value.dtype = tensor.dtype
        roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for root in roots:
            for node in every_node(root):
                for attribute in list(node.attributes.values()):
                    if attribute.is_ref():
                        continue
                    if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                        replaced = self._found(attribute.value)
                        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, replaced, attribute.doc_string)
                    elif attribute.type == ir.AttributeType.TENSORS:
                        found = [self._found(t) if isinstance(t, ir.ExternalTensor) else t for t in attribute.as_tensors()]
                        node.attributes[attribute.name] = ir.AttrTensors(attribute.name, found, attribute.doc_string)

    def _found(self, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        found = self._tensors[int(os.fspath(tensor.location))]
        found.name, found.doc_string = tensor.name, tensor.doc_string
        found.metadata_props.update(tensor.metadata_props)
        return found

    def _check_default(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        declared, actual = value.shape, tuple(tensor.shape.numpy())
        same = declared is None or (
            len(declared) == len(actual) and all(not isinstance(d, int) or d == a for d, a in zip(declared, actual, strict=True))
        )
        if not same or value.dtype not in (None, tensor.dtype):
            raise self._refuse(
                f"input {value.name!r} is declared as {value.type}{declared}, and its initializer is {tensor.dtype}{list(actual)}"
            )


def _node(node: onnx.NodeProto) -> str:
    """How a message names a node."""
    name = node.name or (node.output[0] if node.output else "")
    return f"{node.op_type} node {name!r}"


def _twice(names: Sequence[str]) -> str:
    return next(name for index, name in enumerate(names) if name in names[:index])


def _root(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
