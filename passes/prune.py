"""Cut the weights of pruned sites down to the units that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from inarch.passes.rewrite import Workpiece


@dataclass(frozen=True, eq=False)
class Prune(ir.passes.InPlacePass):
    """Write every site that is pruned and shares nothing.

    Before (FFN of 3072 units, 2048 of them kept)::

        x -- MatMul(up [768, 3072]) -- Add(b [3072]) -- Gelu -- MatMul(down [3072, 768]) -- y

    After::

        x -- MatMul(up [768, 2048]) -- Add(b [2048]) -- Gelu -- MatMul(down [2048, 768]) -- y

    Reshape targets, split sizes and head counts follow; what an operator derives from a head dimension is pinned. A site of which
    nothing is left becomes zeros. O(#nodes of the sites).
    """

    name: ClassVar[str] = "prune"

    work: Workpiece

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place; ``modified`` tells whether there was such a site."""
        return ir.passes.PassResult(model, self.work.rewrite(model, lambda site: not site.shared))
