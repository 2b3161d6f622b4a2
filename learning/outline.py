"""A configuration's graph and sites: torch takes seconds to minutes to follow a model, and weights change nothing in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx_ir as ir
from torch import Tensor

from inarch.frontends.canonicalize import discover_canonical
from inarch.learning.models.export import export_model
from inarch.learning.models.registry import Config, build
from inarch.structure.errors import InarchError
from inarch.structure.sites import SiteTable


@dataclass(frozen=True, eq=False)
class Outline:
    """A model but for its weights.

    Attributes:
        table: its sites.
    """

    table: SiteTable
    _graph: ir.Model

    def filled(self, weights: Mapping[str, Tensor]) -> ir.Model:
        """The model with weights: what :func:`~inarch.learning.models.export.export_model` gives for a module that has them.

        Args:
            weights: a module's state. The model has copies of them.

        Raises:
            InarchError: they are another model's.
        """
        model = self._graph.clone()
        for name, value in model.graph.initializers.items():
            if value.const_value is None:
                tensor = weights.get(name)
                if tensor is None or value.shape != tuple(tensor.shape):
                    raise InarchError(f"these are another model's: {name!r} is not there, or of another shape", where="weights")
                array = np.array(tensor.detach().cpu().numpy(), order="C", copy=True)
                value.const_value = ir.Tensor(array, value.dtype, name=name)
        return model


@cache
def outline(config: Config) -> Outline:
    """What a configuration is followed to, once."""
    module = build(config, seed=0)
    model = export_model(module)
    table = discover_canonical(model).table
    for name in module.state_dict().keys() & model.graph.initializers.keys():
        model.graph.initializers[name].const_value = None  # others come in its place, and it would take their memory twice
    return Outline(table, model)
