"""Inputs that mean something to a model, on several shapes of its dynamic axes.

Random numbers are no input for a transformer: token ids have to lie in the table, a mask has to leave something, sizes that bear
one name have to be equal. What an input is for is read from the graph (what its values reach) and, where the graph does not say,
from its name. Whether a shape is one that the model accepts is not guessed: the original is run on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.runtime.session import Session
from inarch.structure.errors import RuntimeFailure

Array = npt.NDArray[Any]
Kind = Literal["ids", "positions", "segments", "mask", "image", "boxes", "float", "integer", "bool"]
DimRole = Literal["batch", "sequence", "image", "other"]

DEFAULT_IDS = 100
"""Range of ids whose table the graph does not show."""

MASKED = -1.0e4
"""What an additive mask adds where it masks: finite, and enough in fp16 as well."""

LARGEST = 1 << 25
"""Elements of an input; sizes that would make more are not tried."""

TRIES = 40
"""Shapes that are tried for one case before it is given up."""


@dataclass(frozen=True, eq=False)
class Case:
    """One set of inputs.

    Attributes:
        name: what is printed: the sizes of the dynamic axes, or the prefix in the user's file.
        feeds: input name -> array.
    """

    name: str
    feeds: Mapping[str, Array]


@dataclass(frozen=True)
class Cases:
    """Inputs that the model accepts, and what it did not accept.

    Attributes:
        cases: at least one.
        dropped: the cases that the original model itself does not run, each with ORT's message.
    """

    cases: tuple[Case, ...]
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputSpec:
    """What one graph input is for.

    Attributes:
        name: its name.
        kind: what its values mean.
        dtype: numpy dtype.
        dims: a size where it is fixed, else the name of a symbol; equal symbols get equal sizes.
        limit: ids and segments lie below it.
        keep: for a mask: the value that keeps a position (1, True, False or 0.0).
        drop: for a mask: the value that masks it.
    """

    name: str
    kind: Kind
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]
    limit: int = DEFAULT_IDS
    keep: float = 1.0
    drop: float = 0.0

    @property
    def fixed(self) -> bool:
        """Whether every dim is."""
        return all(isinstance(dim, int) for dim in self.dims)


@dataclass
class _Found:
    """What the values of an input reach."""

    tables: list[int] = field(default_factory=list)
    added: bool = False
    inverted: bool = False
    true_masks: bool | None = None

    def add_table(self, value: ir.Value | None, axis: int) -> None:
        """Note the length of a table that is indexed along an axis."""
        table = ir.convenience.get_const_tensor(value) if value is not None else None
        if table is not None and len(table.shape):
            self.tables.append(int(table.shape.numpy()[axis]))


_EMBEDDED = {0: 2, 1: 4, 8: 3}
"""Inputs of com.microsoft's EmbedLayerNormalization that are ids, and the inputs that are their tables."""

_VIEWS = frozenset({"Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Identity", "Slice", "Flatten", "Transpose", "Tile"})


def describe(model: ir.Model) -> tuple[InputSpec, ...]:
    """What each graph input is for, in graph order; inputs with a default (an initializer of the same name) are left out."""
    return tuple(_describe(value) for value in model.graph.inputs if value.name not in model.graph.initializers)


def make_cases(model: ir.Model, session: Session, *, seed: int = 0, whole_rows: int = 0) -> Cases:
    """Meaningful inputs that the model accepts, on several shapes.

    Args:
        model: the original model.
        session: the same model, loaded; every case is run on it once, and shapes that it refuses are no shapes of the model.
        seed: of the values.
        whole_rows: rows that masks mask entirely; none by default, since attention over nothing has no defined result.

    Returns:
        Up to four cases.

    Raises:
        RuntimeFailure: no shape runs; with ORT's message for the most ordinary one.
    """
    specs = describe(model)
    roles = roles_of(specs)
    hints = _size_hints(model)
    found: list[Case] = []
    dropped: list[str] = []
    working: dict[str, int] = {}
    templates = _TEMPLATES if roles else _TEMPLATES[:2]
    for number, template in enumerate(templates):
        first_error: str | None = None
        for attempt, sizes in enumerate(islice(_sizes(roles, template, hints, working), TRIES)):
            if any(math.prod(_shape(spec, sizes)) > LARGEST for spec in specs if not spec.fixed):
                continue
            rng = np.random.default_rng([seed, number])
            case = make_case(specs, sizes, rng, _label(sizes, number), whole_rows=whole_rows)
            if any(_same_shapes(case, other) for other in found) and roles:
                break
            try:
                session.run(case.feeds)
            except RuntimeFailure as error:
                first_error = first_error or f"{case.name}: {error.message}"
                continue
            if attempt:  # the model is particular about its sizes: what it took is tried first from now on
                working = {symbol: size for symbol, size in sizes.items() if roles[symbol] in ("image", "other")}
            found.append(case)
            break
        if first_error is not None:
            dropped.append(first_error)
    if not found:
        reason = dropped[0] if dropped else f"all would have more than {LARGEST} numbers"
        raise RuntimeFailure(
            f"the original model runs on none of the inputs that were made for it; {reason}",
            hint="give your own with --inputs file.npz",
        )
    return Cases(tuple(found), tuple(dropped))


def make_case(
    specs: Sequence[InputSpec], sizes: Mapping[str, int], rng: np.random.Generator, name: str, *, whole_rows: int = 0
) -> Case:
    """Values of the inputs' kinds at given sizes, symbol -> size; the other arguments as for :func:`make_cases`."""
    return Case(name, {spec.name: _make(spec, sizes, rng, whole_rows) for spec in specs})


# What inputs are for


def _describe(value: ir.Value) -> InputSpec:
    name = value.name or ""
    if value.dtype is None or value.shape is None:
        raise RuntimeFailure(f"input {name!r} declares no type and shape", hint="give inputs with --inputs file.npz")
    dtype = np.dtype(value.dtype.numpy())
    dims: list[int | str] = []
    for i, size in enumerate(value.shape):
        if isinstance(size, int):
            dims.append(size)
        else:
            unnamed = "batch" if i == 0 else "sequence" if dtype.kind in "iub" and i == 1 else f"{name}[{i}]"
            dims.append(str(size.value) if size.value is not None else unnamed)
    found = _reach(value)
    lower = name.lower()
    channels = _channels(value)
    if channels is not None and len(dims) > 1 and isinstance(dims[1], str):
        dims[1] = channels  # exporters name the axis, and only one size of it runs
    limit = min(found.tables, default=DEFAULT_IDS)
    kind: Kind
    if re.search(r"mask|padding", lower) and "masked_" not in lower:
        keep, drop = _polarity(lower, dtype, found)
        return InputSpec(name, "mask", dtype, tuple(dims), limit, keep, drop)
    if dtype.kind == "b":
        if len(dims) > 1 and (found.true_masks is not None or found.inverted):
            keep, drop = _polarity(lower, dtype, found)
            return InputSpec(name, "mask", dtype, tuple(dims), limit, keep, drop)
        kind = "bool"
    elif dtype.kind in "iu":
        if re.search(r"position", lower):
            kind = "positions"
        elif re.search(r"token_type|segment|type_ids", lower):
            kind = "segments"
        else:
            kind = "ids" if found.tables or re.search(r"ids|tokens", lower) else "integer"
    elif (len(dims) == 4 and dims[1] in (1, 3, 4)) or (re.search(r"pixel|image", lower) and len(dims) >= 3):
        kind = "image"
    else:
        kind = "boxes" if "box" in lower else "float"
    return InputSpec(name, kind, dtype, tuple(dims), limit)


def _reach(value: ir.Value) -> _Found:
    """Follow a value through views to what uses it: tables it indexes, sums it is added to, conditions it decides."""
    found = _Found()
    pending: list[tuple[ir.Value, bool]] = [(value, False)]
    seen: set[tuple[ir.Value, bool]] = set()
    while pending:
        item = pending.pop()
        if item in seen:
            continue
        seen.add(item)
        current, negated = item
        for node, index in current.uses():
            op = node.op_type
            if op == "Gather" and index == 1:
                found.add_table(node.inputs[0], node.attributes.get_int("axis", 0))
            elif op == "EmbedLayerNormalization" and index in _EMBEDDED and _EMBEDDED[index] < len(node.inputs):
                found.add_table(node.inputs[_EMBEDDED[index]], 0)
            elif op == "Where" and index == 0:
                masks = _where_masks(node)
                if masks is not None:
                    found.true_masks = masks != negated
            elif op == "Not":
                found.inverted = True
                pending.append((node.outputs[0], not negated))
            elif op == "Equal":
                other = node.inputs[1 - index]
                constant = _scalar(other)
                if constant is not None:
                    pending.append((node.outputs[0], negated != (constant == 0)))
            elif op == "Sub" and index == 1:
                found.inverted = True
            elif op == "Add":
                found.added = True
            elif (op in _VIEWS and index == 0) or op in ("And", "Or"):
                pending.append((node.outputs[0], negated))
    return found


def _channels(value: ir.Value) -> int | None:
    """Channels that a convolution wants of an input, straight or after it was normalised; None where none reads it."""
    pending, seen = [value], {value}
    while pending:
        for node, index in pending.pop().uses():
            if node.op_type == "Conv" and index == 0:
                weight = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
                return int(weight.shape.numpy()[1]) * node.attributes.get_int("group", 1) if weight is not None else None
            if node.op_type in ("Cast", "Identity", "Add", "Sub", "Mul", "Div") and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
    return None


def _where_masks(node: ir.Node) -> bool | None:
    """Whether a Where puts a hugely negative number where its condition is True; None where neither branch is one."""
    for index, masks in ((1, True), (2, False)):
        constant = _scalar(node.inputs[index])
        if constant is not None and constant < -100.0:
            return masks
    return None


def _scalar(value: ir.Value | None) -> float | None:
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    return float(np.asarray(tensor.numpy()).reshape(-1)[0])


def _polarity(name: str, dtype: np.dtype[Any], found: _Found) -> tuple[float, float]:
    """(value that keeps, value that masks), from the graph first, then from torch's and transformers' naming."""
    if found.true_masks is not None:
        return (0.0, 1.0) if found.true_masks else (1.0, 0.0)
    if dtype.kind == "f" and found.added and not found.inverted:
        return 0.0, MASKED
    if dtype.kind == "b" and "padding" in name:
        return 0.0, 1.0
    return 1.0, 0.0


# Which sizes the dynamic axes take

_TEMPLATES: tuple[Mapping[str, int], ...] = (
    {"batch": 1, "sequence": 7, "image": 64, "other": 5},
    {"batch": 2, "sequence": 16, "image": 96, "other": 8},
    {"batch": 3, "sequence": 5, "image": 64, "other": 5},
    {"batch": 2, "sequence": 33, "image": 128, "other": 8},
)
_SEQUENCES = (16, 8, 12, 32, 4, 2, 1, 64, 77, 128)
_IMAGES = (224, 64, 32, 56, 112, 128, 96, 28, 16, 256, 384, 336, 518)
_OTHERS = (8, 4, 1, 16, 2, 3, 32, 64)


def roles_of(specs: Sequence[InputSpec]) -> dict[str, DimRole]:
    """What every symbol of the inputs' shapes is."""
    roles: dict[str, DimRole] = {}
    for spec in specs:
        for i, dim in enumerate(spec.dims):
            if not isinstance(dim, str):
                continue
            role: DimRole
            if (i == 0 and len(spec.dims) > 1) or "batch" in dim.lower():
                role = "batch"
            elif (spec.kind == "image" and i >= 1) or re.search(r"height|width|image", dim.lower()):
                role = "image"
            elif i >= 1 and (spec.kind in ("ids", "positions", "segments", "mask") or (len(spec.dims) == 3 and i == 1)):
                role = "sequence"
            else:
                role = "sequence" if re.search(r"seq|len|tok", dim.lower()) else "other"
            if roles.get(dim, "other") == "other":
                roles[dim] = role
    return roles


def _sizes(
    roles: Mapping[str, DimRole], template: Mapping[str, int], hints: Sequence[int], working: Mapping[str, int]
) -> Iterator[dict[str, int]]:
    """Sizes for all symbols, the wanted ones first; then others, the batch last, since that is what models take most freely."""
    groups = sorted({roles[symbol] for symbol in roles})
    choices: dict[str, list[int]] = {
        "batch": [template["batch"], 1],
        "sequence": [template["sequence"], *_SEQUENCES, *hints],
        "image": [*(size for symbol, size in working.items() if roles[symbol] == "image"), template["image"], *_IMAGES],
        "other": [template["other"], *_OTHERS, *hints],
    }
    ordered = {group: list(dict.fromkeys(choices[group])) for group in groups}
    wanted = [(0,) * len(groups)]
    spans = [range(len(ordered[group])) for group in groups]
    # By the sum of how far each choice is down its list, so that one awkward axis does not starve the others.
    rest = sorted((combo for combo in product(*spans) if sum(combo)), key=lambda combo: (sum(combo), max(combo)))
    for combo in [*wanted, *rest]:
        size = {group: ordered[group][i] for group, i in zip(groups, combo, strict=True)}
        yield {symbol: working.get(symbol, size[role]) if not sum(combo) else size[role] for symbol, role in roles.items()}


def _size_hints(model: ir.Model) -> list[int]:
    """Lengths that position tables and the like are made for: sizes of small axes of constants that are not a width."""
    sizes: dict[int, int] = {}
    for value in model.graph.initializers.values():
        shape = value.shape
        if shape is not None and len(shape) in (2, 3):
            size = shape[len(shape) - 2]
            if isinstance(size, int) and 1 < size <= 1024:
                sizes[size] = sizes.get(size, 0) + 1
    return sorted(sizes, key=lambda size: (sizes[size], size))[:8]


def _label(sizes: Mapping[str, int], number: int) -> str:
    return ", ".join(f"{symbol}={size}" for symbol, size in sizes.items()) or f"values {number + 1}"


def _same_shapes(case: Case, other: Case) -> bool:
    return all(array.shape == other.feeds[name].shape for name, array in case.feeds.items())


# Values


def _shape(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims)


def _make(spec: InputSpec, sizes: Mapping[str, int], rng: np.random.Generator, whole_rows: int) -> Array:
    shape = _shape(spec, sizes)
    array: Array
    match spec.kind:
        case "ids":
            array = rng.integers(min(1, spec.limit - 1), spec.limit, shape)
        case "positions":
            array = np.broadcast_to(np.arange(shape[-1] if shape else 1) % spec.limit, shape)
        case "segments":
            array = np.broadcast_to(np.arange(shape[-1] if shape else 1) * 2 // max(1, shape[-1] if shape else 1), shape)
            array = np.minimum(array, spec.limit - 1)
        case "mask":
            array = np.where(_kept(shape, whole_rows), spec.keep, spec.drop)
        case "image":
            array = _smooth(rng.standard_normal(shape))
        case "boxes":
            array = rng.uniform(0.05, 0.95, shape)
        case "bool":
            array = rng.integers(0, 2, shape)
        case "integer":
            array = rng.integers(0, max(1, min(2, spec.limit)), shape)
        case "float":
            array = rng.standard_normal(shape)
    return np.ascontiguousarray(array).astype(spec.dtype)


def _kept(shape: tuple[int, ...], whole_rows: int) -> npt.NDArray[np.bool_]:
    """Which positions of a mask's last axis are kept: the first row whole, the others with padding at the end."""
    kept = np.ones(shape, np.bool_)
    if not shape:
        return kept
    length = shape[-1]
    rows = shape[0] if len(shape) > 1 else 1
    for row in range(rows):
        # Every mask of one case pads row i alike, whatever its rank, as the masks of one batch do.
        padding = 0 if row == 0 else min(length - 1, max(1, length * row // (rows + 1)))
        if len(shape) > 1 and rows - row <= whole_rows:
            padding = length
        if padding:
            kept[(row, ..., slice(length - padding, None))] = False
    return kept


def _smooth(noise: Array) -> Array:
    """Neighbouring pixels alike, as in a photograph, at unit variance."""
    for axis in range(max(1, noise.ndim - 2), noise.ndim):
        noise = sum((np.roll(noise, step, axis) for step in (-2, -1, 1, 2)), start=noise)
    deviation = float(noise.std())
    return noise / deviation if deviation else noise
