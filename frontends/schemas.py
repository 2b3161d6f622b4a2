"""What the definition of an operator asks of a node, so that nothing behind the frontends meets a node that ONNX forbids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import onnx

_TYPE = onnx.AttributeProto.AttributeType
_NUMBER = {getattr(onnx.defs.OpSchema.AttrType, name): number for name, number in _TYPE.items() if number}


@dataclass(frozen=True)
class _Definition:
    inputs: tuple[int, int]  # least and most
    outputs: tuple[int, int]
    types: Mapping[str, int]  # attribute -> its type
    required: frozenset[str]


@lru_cache(maxsize=512)
def schema_of(op_type: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    """The definition of an operator in an opset; None where ONNX has none."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def fault(node: onnx.NodeProto, version: int) -> str | None:
    """What is wrong with a node of ai.onnx, in the words of a message; None where nothing is.

    The count of inputs and of outputs, attributes that are missing and those of another type. An attribute that the definition
    does not have is left alone, and so is an operator that has none in any opset, which some exporters write and runtimes know.

    Args:
        node: one whose domain is ai.onnx.
        version: the opset that its owner imports.
    """
    definition = _definition(node.op_type, version)
    if definition is None:
        return None
    for what, names, (least, most) in (("input", node.input, definition.inputs), ("output", node.output, definition.outputs)):
        if not least <= len(names) <= most:
            bound, allowed = ("at least", least) if len(names) < least else ("at most", most)
            return f"has {len(names)} {what}s; {node.op_type} has {bound} {allowed}"
    missing = definition.required.difference(attribute.name for attribute in node.attribute)
    if missing:
        return f"has no attribute {min(missing)!r}"
    for attribute in node.attribute:
        expected = definition.types.get(attribute.name, attribute.type)
        if attribute.type != expected and not attribute.ref_attr_name:
            return f"has {attribute.name!r} as {_TYPE.Name(attribute.type)}; {node.op_type} takes {_TYPE.Name(expected)}"
    return None


@lru_cache(maxsize=512)
def _definition(op_type: str, version: int) -> _Definition | None:
    # One that came later is held to what it is now: ONNX Runtime had LayerNormalization before ONNX.
    schema = schema_of(op_type, "", version) or schema_of(op_type, "", onnx.defs.onnx_opset_version())
    if schema is None:
        return None
    return _Definition(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {name: _NUMBER[attribute.type] for name, attribute in schema.attributes.items()},
        frozenset(name for name, attribute in schema.attributes.items() if attribute.required),
    )
