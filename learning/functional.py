"""A module computed from other parameters and buffers than its own, whatever of it is tied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(
    module: nn.Module, values: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Call a module with some parameters and buffers replaced, which are its own again afterwards.

    torch's ``functional_call`` puts a tensor under every name of a parameter that is tied. Where one module stands under two
    names, the second exchange finds what the first put there, and that is what the module is left with. Here each place is
    exchanged once.

    Args:
        module: the module; it is not changed.
        values: parameters and buffers, by any of their names; of two names of one the later counts. What the forward pass does to
            a buffer happens to the one that is given here.
        args, kwargs: of its forward pass.
    """
    names = {name: id(tensor) for name, tensor in _tensors(module, recurse=True)}
    given = {names[name]: value for name, value in values.items()}
    places: dict[str, Tensor] = {}
    for prefix, part in module.named_modules():
        for name, tensor in _tensors(part, recurse=False):
            if id(tensor) in given:
                places[f"{prefix}.{name}" if prefix else name] = given[id(tensor)]
    put = dict(places)
    result = functional_call(module, places, tuple(args), dict(kwargs or {}), tie_weights=False)
    for place, tensor in put.items():
        if places[place] is not tensor:  # torch says what a forward pass has put in its place
            tensor.data.copy_(places[place])
    return result


def _tensors(module: nn.Module, *, recurse: bool) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, under each of their names."""
    parameters = module.named_parameters(recurse=recurse, remove_duplicate=False)
    return chain(parameters, module.named_buffers(recurse=recurse, remove_duplicate=False))
