"""A module that stands under two names is its own again after a call with other parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn

from inarch.learning.functional import call_with


class Twice(nn.Module):
    """One layer under two names, and one parameter in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.last = nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(self.first(x)))  # type: ignore[no-any-return]


def test_the_module_is_not_changed() -> None:
    module = Twice()
    own = module.first.weight
    before = own.detach().clone()
    x = torch.randn(3, 4)
    for name in ("first.weight", "again.weight", "last.weight"):
        weight = torch.randn(4, 4, requires_grad=True)
        said = call_with(module, {name: weight}, [x])
        bias = module.first.bias
        wanted = ((x @ weight.T + bias) @ weight.T + bias) @ weight.T
        torch.testing.assert_close(said, wanted)
        said.sum().backward()
        assert weight.grad is not None
        assert module.first.weight is module.again.weight is module.last.weight is own
        assert torch.equal(own, before)
    copy.deepcopy(module)


def test_of_two_names_the_later_counts() -> None:
    module, x = Twice(), torch.randn(3, 4)
    one, two = torch.randn(4, 4), torch.randn(4, 4)
    torch.testing.assert_close(
        call_with(module, {"first.weight": one, "last.weight": two}, [x]), call_with(module, {"first.weight": two}, [x])
    )
