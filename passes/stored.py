"""The initializers that passes write: each a lazy cut out of the weights after the plan by values, one per distinct content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.passes.selection import Selection
from inarch.structure.constants import constant
from inarch.structure.coupling import Projection
from inarch.structure.dims import dim
from inarch.structure.graph_edit import Editor
from inarch.structure.lowered import StoredWeights
from inarch.structure.sites import Member
from inarch.structure.units import Indices

WANTED = "inarch.wanted"
"""Meta of a new initializer: the name it gets if that is free once the old parameters are gone."""

Array = npt.NDArray[Any]


class Stored:
    """Makes initializers. Equal content, by origin and not by looking at it, is one initializer: sharing and ties are kept so.

    Args:
        weights: the members after the plan by values.
    """

    def __init__(self, weights: StoredWeights) -> None:
        self._weights = weights
        self._made: dict[object, ir.Value] = {}
        self.shared: dict[str, ir.Value] = {}

    def matrix(
        self,
        editor: Editor,
        site: str,
        member: Member,
        projection: Projection,
        selection: Selection,
        *,
        sink: bool,
        input_major: bool,
        segment: str | None,
        anchor: ir.Node,
    ) -> ir.Value:
        """A block of a weight matrix.

        Args:
            editor: the graph.
            site: site name.
            member: the matrix's member.
            projection: the node that reads it.
            selection: the block.
            sink: whether the hidden axis is the contracted one.
            input_major: store as [K, N] whatever the node reads; else in the layout that the node reads.
            segment: id of the shared segment, for its name.
            anchor: a Cast, where there is one, goes before it.

        Returns:
            The initializer, or its Cast.
        """
        relative = selection.positions([(name, dim(size)) for name, size in member.factors])
        hidden = projection.k_axis if sink else 1 - projection.k_axis
        flip = hidden != member.axis
        if input_major and projection.transposed:
            flip = not flip
        view = projection.view
        # A part of a packed matrix is always cut out: read as a view, it would keep the other, changed parts in the file.
        alone = member.size == member.shape[member.axis]
        whole = alone and len(relative) == member.size and bool((relative == np.arange(member.size)).all())
        if whole and segment is None and not (input_major and projection.transposed) and self._untouched(site, member):
            return projection.weight
        shape = [len(relative) if i == member.axis else n for i, n in enumerate(member.shape)]
        shape = shape[::-1] if flip else shape
        # Readers of [N, K] and of [K, N] share what is stored alike, so the key says where the hidden axis ends up.
        stored = 1 - member.axis if flip else member.axis
        key = (self._content(site, member, relative), stored, tuple(shape), self._dtype(view.param))
        value = self._made.get(key)
        if value is None:
            name = f"{segment}.{member.role}" if segment is not None else member.param
            name = f"{name}.{member.role}" if not alone and segment is None else name
            value = self._lazy(editor, name, self._reader(site, member.role, relative, transpose=flip), shape, view.param)
            self._made[key] = value
        if segment is not None:
            self.shared[str(value.name)] = value
        if view.cast is None:
            return value
        cast = (key, "cast")
        if cast not in self._made:
            # Before everything: its other readers may stand before this one.
            first = editor.graph[0]
            self._made[cast] = editor.node(first, "Cast", [value], {"to": int(view.cast)}, hint=str(value.name)).outputs[0]
        return self._made[cast]

    def vector(
        self,
        editor: Editor,
        site: str,
        member: Member,
        param: ir.Value,
        parts: Sequence[Selection],
        axes: Sequence[int],
        rank: int,
    ) -> ir.Value:
        """A bias or rider, cut along its one hidden axis.

        Args:
            editor: the graph.
            site: site name.
            member: the vector's member.
            param: the value of the parameter.
            parts: selections laid one after the other.
            axes: the order in which the reader sees the parameter's axes.
            rank: axes of 1 are put in front until the value has this rank.
        """
        factors = [(name, dim(size)) for name, size in member.factors]
        relative = np.concatenate([part.positions(factors) for part in parts])
        shape = [len(relative) if i == member.axis else n for i, n in enumerate(member.shape)]
        shape = [shape[i] for i in axes]
        lead = max(rank - len(shape), 0)
        key = (self._content(site, member, relative), tuple(shape), lead, tuple(axes), self._dtype(param))
        if key not in self._made:
            read = self._reader(site, member.role, relative, axes=axes, lead=lead)
            self._made[key] = self._lazy(editor, member.param, read, [1] * lead + shape, param)
        return self._made[key]

    def packed(self, editor: Editor, site: str, pieces: Sequence[tuple[Member, Selection]], param: ir.Value) -> ir.Value:
        """Several vectors of one parameter in one new vector: the bias of MultiHeadAttention."""
        reads: list[Callable[[], Array]] = []
        total = 0
        for member, selection in pieces:
            relative = selection.positions([(name, dim(size)) for name, size in member.factors])
            total += len(relative)
            reads.append(self._reader(site, member.role, relative))
        return self._lazy(editor, str(param.name), lambda: np.concatenate([read() for read in reads]), [total], param)

    def row(self, editor: Editor, bias: ir.Value, rank: int) -> ir.Value | None:
        """A constant vector with axes of 1 in front, shape [1, ..., n]; None where it is no constant vector."""
        tensor = constant(bias)
        if tensor is None or len(tensor.shape) != 1:
            return None
        shape, dtype = [1] * (rank - 1) + [int(tensor.size)], tensor.dtype
        key = (bias, rank)
        if key not in self._made:

            def read() -> ir.TensorProtocol:
                return as_tensor(np.asarray(tensor.numpy()).reshape(shape), dtype)

            self._made[key] = editor.initializer(f"{bias.name}.row", ir.LazyTensor(read, dtype, ir.Shape(shape), cache=False))
        return self._made[key]

    def _content(self, site: str, member: Member, relative: Indices) -> object:
        """What a cut holds, by origin; zeros alone are nobody else's."""
        origins = self._weights.origins(site, member.role)[relative]
        return (site, member.role, len(origins)) if (origins < 0).all() else origins.tobytes()

    def _untouched(self, site: str, member: Member) -> bool:
        """Whether the plan leaves every value of a member as it was."""
        before = self._weights.identity(site, member.role)[member.positions]
        return bool(np.array_equal(self._weights.origins(site, member.role), before))

    @staticmethod
    def _dtype(param: ir.Value) -> ir.DataType:
        tensor = constant(param)
        assert tensor is not None
        return tensor.dtype

    def _reader(
        self,
        site: str,
        role: str,
        relative: Indices,
        *,
        transpose: bool = False,
        axes: Sequence[int] | None = None,
        lead: int = 0,
    ) -> Callable[[], Array]:
        weights = self._weights

        def read() -> Array:
            array = weights.stored(site, role, relative)
            if transpose:
                array = array.T
            if axes is not None:
                array = array.transpose(list(axes))
            return np.ascontiguousarray(array.reshape((1,) * lead + array.shape))

        return read

    def _lazy(self, editor: Editor, wanted: str, read: Callable[[], Array], shape: Sequence[int], param: ir.Value) -> ir.Value:
        dtype = self._dtype(param)

        def compute() -> ir.TensorProtocol:
            return as_tensor(read(), dtype)

        tensor = ir.LazyTensor(compute, dtype, ir.Shape(shape), cache=False)
        value = editor.initializer(wanted, tensor)
        value.meta[WANTED] = wanted
        return value


def as_tensor(array: Array, dtype: ir.DataType) -> ir.TensorProtocol:
    """A tensor of an array whose numpy type may be the raw bits of bfloat16."""
    if dtype == ir.DataType.BFLOAT16 and array.dtype != ml_dtypes.bfloat16:
        array = array.view(ml_dtypes.bfloat16)
    return ir.Tensor(array, dtype=dtype)
