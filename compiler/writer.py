"""A model -> a pair of files, written so that a whole pair stands there at any moment.

The data file's name carries its content's hash, so that a new pair never touches an old one: both new files are written under
temporary names, the data file is renamed first, the .onnx last, and what it replaced is removed after that. The data are hashed
as they are written, one tensor at a time.

Layout of the data file: tensors of 64 KB and more first, each at a multiple of 4096 bytes (ONNX Runtime maps them), then the
others at multiples of 64. Tensors below 1 KB stay in the .onnx, where shape inference can see them.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from inarch.frontends.mapped import MappedFile, sources_of
from inarch.frontends.wire import split
from inarch.structure.errors import InarchError, ModelError
from inarch.structure.files import refuse_devices, refuse_to_replace
from inarch.structure.nodes import every_graph, every_node

if sys.platform != "win32":
    import fcntl

DATA_FILE = "inarch.data"
"""Key of the model's metadata: the name of the data file that was written with it."""

INLINE_BELOW = 1024
_PAGE_FROM = 64 << 10
_PAGE = 4096
_LINE = 64
_CHUNK = 8 << 20
_PROTOBUF_LIMIT = (1 << 31) - 1
_MARGIN = 1 << 20

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all) after each tensor."""


@dataclass(frozen=True)
class WrittenModel:
    """What was written.

    Attributes:
        path: the .onnx file.
        data_path: the data file beside it, or None where all tensors are small.
        file_bytes: size of the .onnx file.
        data_bytes: size of the data file.
        unique_bytes: bytes of all tensors, each counted once, without padding.
    """

    path: Path
    data_path: Path | None
    file_bytes: int
    data_bytes: int
    unique_bytes: int


def write_model(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> WrittenModel:
    """Write a model and its data file; the same model gives the same bytes.

    Lazy tensors are computed one at a time and not kept. The model is not changed.

    Args:
        model: the model.
        path: the .onnx file to write, in a folder that exists. What is there is replaced, with its data file where inarch
            wrote that.
        metadata: entries to add to the model's metadata.
        progress: told how far the data are.

    Returns:
        Names and sizes of what was written.

    Raises:
        ModelError: the files cannot be written, or would overwrite what the model is read from. What was there stays.
        InarchError: a lazy tensor refused. What was there stays.
    """
    target = Path(path)
    _check_target(model, target)
    replaced = _owned_data(target)
    plan = _Layout(model)
    with _folder(target) as folder:
        folder.check_space(plan.size)
        data_path: Path | None = None
        data_temporary: Path | None = None
        if plan.external:
            with folder.create() as file:
                digest = _write_data(file, plan, progress, target)
                data_temporary = file.path
            data_path = target.with_name(f"{_stem(target)}.{digest[:16]}.data")
        content = plan.serialize(data_path.name if data_path else None, metadata or {}, target)
        with folder.create() as file:
            file.write(memoryview(content))
            model_temporary = file.path
        if data_temporary is not None and data_path is not None:
            folder.rename(data_temporary, data_path, undo=not data_path.exists())
        folder.rename(model_temporary, target, undo=False)
        folder.keep()
    if replaced is not None and replaced != data_path and not _is_needed(replaced, model):
        with suppress(OSError):
            replaced.unlink()
    return WrittenModel(target, data_path, len(content), plan.size, plan.unique_bytes)


class _Layout:
    """A copy of the model, and where each of its tensors will lie.

    Attributes:
        external: (tensor, offset) in the order of the data file.
        size: bytes of the data file.
        unique_bytes: bytes of all tensors.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model.clone()
        self.unique_bytes = 0
        places: list[tuple[ir.TensorProtocol, Callable[[ir.TensorProtocol], None]]] = []
        roots: list[ir.Graph | ir.Function] = [self._model.graph, *self._model.functions.values()]
        for root in roots:
            graphs = [root, *every_graph(root)] if isinstance(root, ir.Graph) else list(every_graph(root))
            for graph in graphs:
                for value in graph.initializers.values():
                    self._initializer(value, places)
            for node in every_node(root):
                self._constants(node, places)
        self._places = sorted(places, key=lambda place: place[0].nbytes < _PAGE_FROM)  # stable: else in model order
        self.external: list[tuple[ir.TensorProtocol, int]] = []
        end = 0
        for tensor, _ in self._places:
            step = _PAGE if tensor.nbytes >= _PAGE_FROM else _LINE
            offset = -(-end // step) * step
            self.external.append((tensor, offset))
            end = offset + tensor.nbytes
        self.size = end

    def _initializer(self, value: ir.Value, places: list[tuple[ir.TensorProtocol, Callable[[ir.TensorProtocol], None]]]) -> None:
        tensor = value.const_value
        if tensor is None:
            raise ModelError(f"initializer {value.name!r} has no data", hint="load the model together with its external data")
        self.unique_bytes += tensor.nbytes

        def put(stored: ir.TensorProtocol) -> None:
            stored.name = value.name
            value.const_value = stored

        if _is_external(tensor):
            places.append((tensor, put))
        elif tensor.name == value.name:
            pass
        # onnx_ir gives the tensor the value's name as it writes it: the copy gets a tensor of its own to be named.
        elif isinstance(tensor, ir.StringTensor):
            put(ir.StringTensor(tensor.raw, shape=tensor.shape, doc_string=tensor.doc_string))
        else:
            put(ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(tensor.shape.numpy()), doc_string=tensor.doc_string))

    def _constants(self, node: ir.Node, places: list[tuple[ir.TensorProtocol, Callable[[ir.TensorProtocol], None]]]) -> None:
        for key, attribute in node.attributes.items():
            if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                continue
            tensor = attribute.as_tensor()
            self.unique_bytes += tensor.nbytes

            def put(stored: ir.TensorProtocol, key: str = key) -> None:
                node.attributes[key] = ir.AttrTensor(key, stored, node.attributes[key].doc_string)

            if _is_external(tensor):
                places.append((tensor, put))

    def serialize(self, data_name: str | None, metadata: Mapping[str, str], target: Path) -> bytes:
        """The .onnx file's bytes, with every large tensor as a reference into ``data_name``."""
        for (tensor, put), (_, offset) in zip(self._places, self.external, strict=True):
            put(
                ir.ExternalTensor(
                    data_name or "",
                    offset,
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=tensor.name or "",
                    doc_string=tensor.doc_string,
                    metadata_props=dict(tensor.metadata_props),
                )
            )
        properties = self._model.metadata_props
        properties.update(metadata)
        properties.pop(DATA_FILE, None)
        if data_name is not None:
            properties[DATA_FILE] = data_name
        try:
            proto = ir.serde.serialize_model(self._model)
        except ir.serde.SerdeError as error:
            # A small lazy tensor that refused, wrapped once for every level of the model.
            cause: BaseException | None = error
            while isinstance(cause, ir.serde.SerdeError):
                cause = cause.__cause__
            if isinstance(cause, InarchError):
                raise cause from None
            raise
        if proto.ByteSize() > _PROTOBUF_LIMIT:
            hint = "constants inside nodes are never written beside it: turn large ones into initializers first"
            raise ModelError("what is left for the .onnx file is over 2 GB", where=str(target), hint=hint)
        content: bytes = proto.SerializeToString(deterministic=True)
        return content


def _is_external(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= INLINE_BELOW


def _write_data(file: _Temporary, plan: _Layout, progress: Progress | None, target: Path) -> str:
    """Write all external tensors; returns the content's sha256."""
    content = hashlib.sha256()

    def put(view: memoryview) -> int:
        for start in range(0, len(view), _CHUNK):
            chunk = view[start : start + _CHUNK]
            content.update(chunk)
            file.write(chunk)
        return len(view)

    position = 0
    for tensor, offset in plan.external:
        put(memoryview(bytes(offset - position)))
        written = sum(map(put, _views(tensor, tensor)))  # no name here keeps a tensor while the next one is computed
        if written != tensor.nbytes:
            raise ModelError(f"tensor {tensor.name!r} has {written} bytes, and should have {tensor.nbytes}", where=str(target))
        position = offset + written
        if progress is not None:
            progress(position, plan.size)
    return content.hexdigest()


def _views(tensor: ir.TensorProtocol, declared: ir.TensorProtocol) -> Iterator[memoryview]:
    """A tensor's bytes as ONNX stores them, copied as little as possible."""
    while isinstance(tensor, ir.LazyTensor):
        tensor = tensor.raw()  # not through numpy(), which may keep the result
    if tensor.dtype != declared.dtype or tuple(tensor.shape.numpy()) != tuple(declared.shape.numpy()):
        raise ModelError(
            f"tensor {declared.name!r} is {tensor.dtype}{list(tensor.shape.numpy())}, and was to be "
            f"{declared.dtype}{list(declared.shape.numpy())}"
        )
    if isinstance(tensor, ir.ExternalTensor):
        yield from _external_views(tensor)
        return
    array = None if tensor.dtype.bitwidth % 8 else np.ascontiguousarray(tensor.numpy())
    if array is None or array.nbytes != math.prod(array.shape) * tensor.dtype.bitwidth // 8 or sys.byteorder != "little":
        yield memoryview(tensor.tobytes())
    elif array.size:
        yield array.reshape(-1).view(np.uint8).data


def _external_views(tensor: ir.ExternalTensor) -> Iterator[memoryview]:
    """The bytes of a tensor that onnx_ir has left in a file, read in pieces: its own mapping would stay."""
    try:
        file = open(tensor.path, "rb")  # noqa: SIM115
    except OSError as error:
        hint = "keep the model's data file beside it until it is compiled"
        raise ModelError(f"tensor {tensor.name!r} cannot be read: {error.strerror}", where=tensor.path, hint=hint) from error
    with file:
        file.seek(tensor.offset or 0)
        left = tensor.nbytes
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                hint = "the file was cut off or replaced: export the model again"
                raise ModelError(f"tensor {tensor.name!r} lies beyond the end of the file", where=tensor.path, hint=hint)
            yield memoryview(chunk)
            left -= len(chunk)


class _Temporary:
    """A file under a temporary name, locked as long as it is being written.

    Attributes:
        path: its name for now.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Made with the mode of any new file: tempfile's are for the owner alone, and would stay so.
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if sys.platform != "win32":
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: memoryview) -> None:
        """Write all of ``data``."""
        while len(data):
            data = data[os.write(self._handle, data) :]

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close it; it may be renamed before or after."""
        os.close(self._handle)


class _Folder:
    """The folder of ``target``, and the temporary files made in it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._open: list[_Temporary] = []
        self._undo: list[Path] = []

    def check_space(self, size: int) -> None:
        """Refuse early what cannot fit.

        Raises:
            OSError: there is less space than the data need.
        """
        if shutil.disk_usage(self._target.parent).free < size + _MARGIN:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def create(self) -> Iterator[_Temporary]:
        """A new temporary file, on the disk when the context ends."""
        file = _Temporary(self._target.with_name(f".{self._target.name}.{secrets.token_hex(8)}.partial"))
        self._open.append(file)
        yield file
        file.sync()

    def rename(self, source: Path, target: Path, *, undo: bool) -> None:
        """Give a temporary file its name; with ``undo``, the file goes unless :meth:`keep` follows."""
        os.replace(source, target)
        if undo:
            self._undo.append(target)
        if sys.platform != "win32":
            handle = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def keep(self) -> None:
        """All is in place: nothing is to be undone."""
        self._undo.clear()

    def clear(self) -> None:
        """Close the temporary files, and remove those that did not get their names, or got them in vain."""
        for file in self._open:
            file.close()
        for path in (*self._undo, *(file.path for file in self._open)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def clear_abandoned(self) -> None:
        """Remove temporary files for this target whose writer was killed: nobody holds their locks."""
        if sys.platform == "win32":
            return
        pattern = re.compile(re.escape(f".{self._target.name}.") + r"[0-9a-f]{16}\.partial")
        for path in self._target.parent.iterdir():
            if pattern.fullmatch(path.name):
                with suppress(OSError), open(path, "rb") as file:
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


@contextmanager
def _folder(target: Path) -> Iterator[_Folder]:
    """Temporary files that are gone at the end, whatever happens; what the system refuses becomes a ModelError."""
    folder = _Folder(target)
    try:
        folder.clear_abandoned()
        yield folder
    except InarchError:
        raise
    except MemoryError as error:
        hint = "one tensor at a time is held; end other programs, or use a machine with more memory"
        raise ModelError("there is not enough memory for the largest tensor", where=str(target), hint=hint) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        message = "no space left to write the model" if full else f"the model cannot be written: {error.strerror or error}"
        raise ModelError(message, where=str(target), hint="free some space, or write elsewhere" if full else None) from error
    finally:
        folder.clear()


def _check_target(model: ir.Model, target: Path) -> None:
    """Refuse a target that cannot be written, or that is one of the model's own files."""
    if not target.parent.is_dir():
        raise ModelError(f"there is no folder {str(target.parent)!r}", where=str(target), hint="make it, or write elsewhere")
    if target.is_dir() or not target.name:
        raise ModelError("this is a folder", where=str(target), hint="give a file name")
    try:
        refuse_devices(target)
    except OSError as error:
        raise ModelError(str(error.strerror), where=str(target), hint="give a file name") from error
    refuse_to_replace(target, sources_of(model))


def _stem(target: Path) -> str:
    return target.name.removesuffix(".onnx")


def _owned_data(target: Path) -> Path | None:
    """The data file that inarch wrote with the model at ``target``, or None."""
    if not target.is_file():
        return None
    proto = onnx.ModelProto()
    try:
        file = MappedFile(target)
        proto.ParseFromString(split(file.view(0, file.size), _PAGE))
    except Exception:  # whatever stands there is not ours
        return None
    name = next((entry.value for entry in proto.metadata_props if entry.key == DATA_FILE), "")
    if not re.fullmatch(re.escape(_stem(target)) + r"\.[0-9a-f]{16}\.data", name):
        return None
    return target.with_name(name)


def _is_needed(data: Path, model: ir.Model) -> bool:
    """Whether another model in the folder, or the given one, refers to a data file."""
    if any(source.exists() and data.exists() and source.samefile(data) for source in sources_of(model)):
        return True
    # A model may also be called what the data are called after, or be a copy (model.onnx.bak).
    for path in (*data.parent.glob("*.onnx*"), data.with_name(data.name.rsplit(".", 2)[0])):
        with suppress(OSError):
            if path.is_file() and not path.name.endswith("data") and _says(path, data.name.encode()):
                return True
    return False


def _says(path: Path, word: bytes) -> bool:
    """Whether a file has these bytes; it is read and not mapped, since whoever is writing it may shorten it meanwhile."""
    end = b""
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            if word in end + chunk:
                return True
            end = chunk[1 - len(word) :]
    return False
