"""A module computed from other parameters than its own, whatever of it is tied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(
    module: nn.Module, parameters: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Call a module with some parameters replaced, which are its own again afterwards.

    torch's ``functional_call`` puts a tensor under every name of a parameter that is tied. Where one module stands under two
    names, the second exchange finds what the first put there, and that is what the module is left with. Here each place is
    exchanged once.

    Args:
        module: the module; it is not changed.
        parameters: by any of their names; of two names of one parameter the later counts.
        args, kwargs: of its forward pass.
    """
    names = {name: id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}
    given = {names[name]: value for name, value in parameters.items()}
    places: dict[str, Tensor] = {}
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in given:
                places[f"{prefix}.{name}" if prefix else name] = given[id(parameter)]
    return functional_call(module, places, tuple(args), dict(kwargs or {}), tie_weights=False)
