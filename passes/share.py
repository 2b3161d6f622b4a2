"""Store once what several sites share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from inarch.passes.rewrite import Workpiece


@dataclass(frozen=True, eq=False)
class Share(ir.passes.InPlacePass):
    """Write every site that reads a shared segment, pruned or not.

    Before (two FFNs, the first half of whose units is to be one)::

        x -- MatMul(up) -- Add(b) -- Gelu -- MatMul(down) -- y
        u -- MatMul(up') -- Add(b') -- Gelu -- MatMul(down') -- v

    After (S stored once, P and P' each site's own, biases cut)::

        x -- MatMul(S) -- Add -- Gelu -- MatMul(S2) -- Add -- y
         \\-- MatMul(P) -- Add -- Gelu -- MatMul(P2) --/
        u -- MatMul(S) -- Add -- Gelu -- MatMul(S2) -- Add -- v
         \\-- MatMul(P') - Add -- Gelu -- MatMul(P2') -/

    Heads split the same way; inside heads two score products are summed. O(#nodes of the sites x segments).
    """

    name: ClassVar[str] = "share"

    work: Workpiece

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place; ``modified`` tells whether there was such a site."""
        return ir.passes.PassResult(model, self.work.rewrite(model, lambda site: site.shared))
