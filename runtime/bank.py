"""One bank of weights for several sessions over parts of one model.

Who caches text features runs the text part of a model rarely and the rest often, in two sessions. A compiled model shares weights
between the two parts, and two sessions that pack them for themselves hold them twice. So the parts are written as models that
refer to one data file, and the data file may hold the weights as ONNX Runtime packs them::

    compiled.onnx  -- cut at "features" -->  text.onnx   ids -> features             weights.data
                                             rest.onnx   image, features -> boxes    each weight once, packed once

ORT maps that file, so every session reads the same pages, in this process and in others. At load it packs each weight again and
takes the file's form where the two are the same; on another kind of processor, or with a version that packs otherwise, it keeps
its own, and computes the same with more memory. A file whose packed form was damaged is refused.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from inarch.compiler.metadata import SHARED, shared_in
from inarch.compiler.writer import DATA_FILE
from inarch.runtime.providers import CPU, onnxruntime
from inarch.runtime.session import load, model_file, short_message
from inarch.structure.errors import RuntimeFailure
from inarch.structure.nodes import every_node, graphs_in

DATA = "weights.data"
"""Name of a bank's data file."""

PACKED = "prepacked_"
"""What ORT's keys of a tensor's external data begin with where the file holds its packed form."""

_GIVEN = ".given"
_SMALLEST_EXTERNAL = 1024
_PAGE, _PAGE_FROM = 4096, 64 << 10


@dataclass(frozen=True)
class Bank:
    """What was written.

    Attributes:
        parts: part -> its .onnx file.
        data: the data file that all of them refer to; None where the weights are so small that the parts hold them.
        shared: weights in the data file that more than one part reads.
        shared_bytes: their bytes.
    """

    parts: Mapping[str, Path]
    data: Path | None
    shared: tuple[str, ...]
    shared_bytes: int


@dataclass(frozen=True)
class CutPoint:
    """A value at which a model can be cut.

    Attributes:
        name: its name.
        dtype: its type, as ONNX names it.
        shape: its sizes; a symbol's name, or ``?``, where one is not fixed.
        depth: nodes on the longest way to it over floating-point values.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    depth: int


def cut_points(model: str | os.PathLike[str], inputs: Sequence[str]) -> tuple[CutPoint, ...]:
    """Values that some inputs alone decide and that what other inputs decide reads: what can be computed once and kept.

    Args:
        model: the model's file.
        inputs: names of the inputs, those of the text for instance.

    Returns:
        Floating-point values of known type, deepest first: the features of a text come before what only its size decides.

    Raises:
        RuntimeFailure: the file cannot be read, or the model has no such input.
    """
    graph = load(Path(model)).graph
    named = {value.name: value for value in graph.inputs}
    unknown = [name for name in inputs if name not in named]
    if unknown:
        raise RuntimeFailure(f"the model has no input {unknown[0]!r}; it has {', '.join(map(str, named))}", where=str(model))
    own = {named[name] for name in inputs}
    needs: dict[ir.Value, frozenset[ir.Value]] = {value: frozenset([value]) for value in graph.inputs}
    depth: dict[ir.Value, int] = {}
    border: dict[ir.Value, None] = {}
    for node in graph:
        read = _read(node)
        wanted = frozenset[ir.Value]().union(*(needs.get(value, frozenset()) for value in read))
        deeper = 1 + max((depth.get(value, 0) for value in read if value.dtype is None or _is_float(value)), default=0)
        for value in node.outputs:
            needs[value], depth[value] = wanted, deeper
        if not wanted <= own:
            border.update((value, None) for value in read if needs.get(value) and needs[value] <= own and value in depth)
    found = []
    for value in border:
        if value.dtype is not None and _is_float(value):
            sizes = (size if isinstance(size, int) else size.value for size in value.shape or ())
            shape = tuple("?" if size is None else str(size) for size in sizes)
            found.append(CutPoint(value.name or "", value.dtype.name, shape, depth[value]))
    return tuple(sorted(found, key=lambda point: -point.depth))


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _read(node: ir.Node) -> list[ir.Value]:
    """Values that a node reads, and those that its subgraphs read, their own among them."""
    inner = [value for body in graphs_in(node) for inside in every_node(body) for value in inside.inputs]
    return [value for value in (*node.inputs, *inner) if value is not None]


def write_bank(
    model: str | os.PathLike[str],
    parts: Mapping[str, Sequence[str]],
    folder: str | os.PathLike[str],
    *,
    at: Sequence[str] = (),
    packed: bool = True,
) -> Bank:
    """Write parts of a model that share one data file.

    Args:
        model: the model's file; it is not changed.
        parts: name of a part -> the outputs that it computes: outputs of the model, or values it is cut at.
        folder: where the files go, whole or not at all; made, or there and empty.
        at: values at which the model is cut. The part that has such a value among its outputs computes it, to the others that use
            it it is an input of the same name.
        packed: whether the data file holds the weights as ORT packs them on this machine, beside the weights themselves. It is
            then nearly twice as large, and sessions hold almost none of it as memory of their own.

    Raises:
        RuntimeFailure: a name that the model does not have, a part that would need a value and compute it too, a folder with
            something in it, or ORT refuses the model.
        InarchError: the files cannot be written.
    """
    source, target = Path(model), Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RuntimeFailure("there is something already", where=str(target), hint="name a folder that is empty, or none yet")
    if not source.is_file():
        raise RuntimeFailure("no such model file", where=str(source))
    whole = load(source)
    _cut(whole, parts, at)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-", suffix=".part") as place:
            draft = Path(place) / "bank"  # a folder of its own: the temporary one is for this user alone
            draft.mkdir()
            stored = _store(whole, Path(place), draft, packed=packed)
            readers: Counter[str] = Counter()
            for name, outputs in parts.items():
                proto = _part(stored, name, outputs, whole.metadata_props)
                readers.update(tensor.name for tensor in proto.graph.initializer if tensor.external_data)
                (draft / f"{name}.onnx").write_bytes(proto.SerializeToString(deterministic=True))
            data = (draft / DATA).exists() and (draft / DATA).stat().st_size > 0
            if not data:
                (draft / DATA).unlink(missing_ok=True)
            os.replace(draft, target)
    except OSError as error:
        raise RuntimeFailure(f"cannot be written: {error.strerror or error}", where=str(target)) from error
    shared = tuple(name for name, count in readers.items() if count > 1)
    tensors = (stored.model.graph.initializers[name].const_value for name in shared)
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return Bank({name: target / f"{name}.onnx" for name in parts}, target / DATA if data else None, shared, size)


def _cut(model: ir.Model, parts: Mapping[str, Sequence[str]], at: Sequence[str]) -> None:
    """Make each value of ``at`` an output, and a new input of what its readers read."""
    graph = model.graph
    inner = {value.name: value for node in graph for value in node.outputs if value.name}
    outputs = {value.name for value in graph.outputs}
    computed = Counter(output for wanted in parts.values() for output in wanted)
    for name in at:
        value = inner.get(name)
        if value is None:
            raise RuntimeFailure("no node of the model computes it, so it cannot be cut there", where=name)
        if value.type is None:
            raise RuntimeFailure(
                "its type is not known, so it cannot be an input", where=name, hint="infer the model's shapes first"
            )
        if not computed[name]:
            raise RuntimeFailure("no part has it among its outputs", where=name, hint="give it to the part that is to compute it")
        given = ir.Value(name=name + _GIVEN, type=value.type, shape=value.shape)
        value.replace_all_uses_with(given)
        graph.inputs.append(given)
        if name not in outputs:
            graph.outputs.append(value)
    for part, wanted in parts.items():
        missing = [name for name in wanted if name not in outputs and name not in at]
        if missing or not wanted:
            what = f"the model has no output {missing[0]!r}" if missing else "it computes nothing"
            hint = f"its outputs are {', '.join(sorted(str(name) for name in outputs))}; inner values can be named in 'at' too"
            raise RuntimeFailure(what, where=f"part {part!r}", hint=hint)


@dataclass(frozen=True)
class _Stored:
    """The cut model as it was stored.

    Attributes:
        model: to take graphs from; its tensors refer to the data file.
        tensors: initializer -> its message, with every key that ORT wrote.
    """

    model: ir.Model
    tensors: Mapping[str, onnx.TensorProto]


def _store(model: ir.Model, place: Path, draft: Path, *, packed: bool) -> _Stored:
    """Write the cut model with its data in ``draft``; its graph goes to ``place`` when it has been read."""
    path = draft / "whole.onnx"
    if packed:
        _pack(model, path)
    else:
        ir.save(
            model,
            path,
            external_data=DATA,
            size_threshold_bytes=_SMALLEST_EXTERNAL,
            alignment=_PAGE,
            align_threshold=_PAGE_FROM,
        )
    proto = onnx.load(path, load_external_data=False)
    path.unlink()
    tensors = {}
    for tensor in proto.graph.initializer:
        whole = onnx.TensorProto()
        whole.CopyFrom(tensor)
        tensors[tensor.name] = whole
        plain = [entry for entry in tensor.external_data if not entry.key.startswith(PACKED)]  # onnx_ir warns of the others
        del tensor.external_data[:]
        tensor.external_data.extend(plain)
    return _Stored(ir.from_proto(proto), tensors)


def _pack(model: ir.Model, path: Path) -> None:
    """Let ORT write the graph that it runs, with each weight and its packed form."""
    runtime = onnxruntime()
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(path)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", DATA)
    size = str(_SMALLEST_EXTERNAL)
    settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", size)
    settings.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    with model_file(model) as cut:
        try:
            runtime.InferenceSession(str(cut), settings, providers=[CPU])
        except Exception as error:  # ORT's exceptions have no base of their own
            raise RuntimeFailure(f"ONNX Runtime refuses the model: {short_message(error)}") from error


def _part(stored: _Stored, name: str, outputs: Sequence[str], props: Mapping[str, str]) -> onnx.ModelProto:
    """The part of the stored model that computes some outputs."""
    whole = stored.model
    inputs = [value for value in whole.graph.inputs if value.name not in whole.graph.initializers]
    graph = ir.convenience.extract(whole.graph, inputs, list(outputs))
    for value in [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]:
        graph.inputs.remove(value)
    for value in graph.inputs:
        value.name = (value.name or "").removesuffix(_GIVEN)
        if value.name in outputs:
            reason = f"it would compute {value.name!r} and need it"
            raise RuntimeFailure(reason, where=f"part {name!r}", hint="give what comes after it to another part")
    graph.name = name
    part = ir.Model(graph, ir_version=whole.ir_version, producer_name="inarch", functions=list(whole.functions.values()))
    part.metadata_props.update({key: value for key, value in props.items() if key not in (DATA_FILE, SHARED)})
    if SHARED in props:
        kept = [tensor for tensor in shared_in(props) or () if tensor in graph.initializers]
        part.metadata_props[SHARED] = json.dumps(kept)
    proto = ir.to_proto(part)
    for tensor in proto.graph.initializer:
        if tensor.name in stored.tensors:
            tensor.CopyFrom(stored.tensors[tensor.name])
    return proto
