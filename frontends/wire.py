"""A walk over a model file's protobuf encoding that leaves the weights where they are.

Parsing a file of 2 GB with protobuf takes 4 GB of memory, and a file above 2 GB cannot be parsed at all, though its graph is
small: the rest is ``raw_data``. :func:`split` finds each large ``raw_data``, notes where in the file it lies, and puts a
reference in its place, so that what is parsed is the graph alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx

INLINE_LOCATION = "\0inline"
"""Location of a tensor whose bytes lie in the model file itself. No file can bear this name."""

_MAX_DEPTH = 100  # protobuf's own limit on nested messages
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a protobuf encoding, or end too early."""


_NESTED: Mapping[str, Mapping[str, str]] = {
    "ModelProto": {"graph": "GraphProto", "functions": "FunctionProto"},
    "GraphProto": {"node": "NodeProto", "initializer": "TensorProto"},
    "FunctionProto": {"node": "NodeProto"},
    "NodeProto": {"attribute": "AttributeProto"},
    "AttributeProto": {"t": "TensorProto", "tensors": "TensorProto", "g": "GraphProto", "graphs": "GraphProto"},
}


def _number(message: str, field: str) -> int:
    return int(getattr(onnx, message).DESCRIPTOR.fields_by_name[field].number)


_RAW_DATA = _number("TensorProto", "raw_data")
_DATA_LOCATION = _number("TensorProto", "data_location")
_CHILDREN: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {message: {_number(message, field): child for field, child in fields.items()} for message, fields in _NESTED.items()}
)
"""Message -> number of each field that may hold tensors -> that field's message."""


def split(data: memoryview, threshold: int) -> bytes:
    """Encode the model again with every ``raw_data`` of at least ``threshold`` bytes replaced by a reference.

    Args:
        data: the whole model file, typically mapped.
        threshold: smallest ``raw_data`` to leave in the file, in bytes.

    Returns:
        An encoded ``ModelProto``. A tensor that was left in the file has ``data_location`` EXTERNAL and the external data entries
        ``location`` = :data:`INLINE_LOCATION`, ``offset`` and ``length`` (in the file).

    Raises:
        WireError: a field runs over the end of what holds it, or is of no known kind.
    """
    chunks = _split(data, 0, len(data), "ModelProto", threshold, 0)
    return bytes(data) if chunks is None else b"".join(chunks)


def _varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """The variable-length integer at ``position``, and where it ends."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise WireError(f"a number at byte {position} does not end")


def _field(data: memoryview, position: int, end: int) -> tuple[int, int, int, int]:
    """The field at ``position``: (number, wire type, where its content starts, where it ends)."""
    tag, start = _varint(data, position, end)
    kind = tag & 7
    if kind == _BYTES:
        length, start = _varint(data, start, end)
        stop = start + length
    elif kind == _VARINT:
        _, stop = _varint(data, start, end)
    elif kind == _FIXED64:
        stop = start + 8
    elif kind == _FIXED32:
        stop = start + 4
    else:
        raise WireError(f"the field at byte {position} is of no kind that ONNX has")
    if stop > end:
        raise WireError(f"the field at byte {position} needs {stop - end} bytes more than there are")
    return tag >> 3, kind, start, stop


def _split(
    data: memoryview, position: int, end: int, message: str, threshold: int, depth: int
) -> list[bytes | memoryview] | None:
    """The new encoding of a message in chunks, or None where it stays as it is."""
    if depth > _MAX_DEPTH:
        return None  # the parser refuses this by itself
    if message == "TensorProto":
        return _split_tensor(data, position, end, threshold)
    children = _CHILDREN[message]
    chunks: list[bytes | memoryview] = []
    kept = position  # everything before is in chunks
    while position < end:
        number, kind, start, stop = _field(data, position, end)
        child = children.get(number)
        if child is not None and kind == _BYTES and stop - start >= threshold:
            inner = _split(data, start, stop, child, threshold, depth + 1)
            if inner is not None:
                chunks.append(data[kept:position])
                chunks.append(_header(number, sum(len(chunk) for chunk in inner)))
                chunks.extend(inner)
                kept = stop
        position = stop
    if not chunks:
        return None
    chunks.append(data[kept:end])
    return chunks


def _split_tensor(data: memoryview, position: int, end: int, threshold: int) -> list[bytes | memoryview] | None:
    """As :func:`_split` for a tensor: one large ``raw_data`` and no other place for its data."""
    raw: tuple[int, int, int] | None = None
    first = position
    while position < end:
        number, kind, start, stop = _field(data, position, end)
        if number == _DATA_LOCATION or (number == _RAW_DATA and (raw is not None or kind != _BYTES)):
            return None  # unusual: the checks after parsing judge it
        if number == _RAW_DATA:
            raw = (position, start, stop)
        position = stop
    if raw is None or raw[2] - raw[1] < threshold:
        return None
    reference = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", INLINE_LOCATION), ("offset", str(raw[1])), ("length", str(raw[2] - raw[1]))):
        reference.external_data.add(key=key, value=value)
    return [data[first : raw[0]], data[raw[2] : end], reference.SerializeToString()]


def _header(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _encode(number << 3 | _BYTES) + _encode(length)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
