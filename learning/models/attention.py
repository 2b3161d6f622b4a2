"""Multi-head attention with the parameter names of ``torch.nn.MultiheadAttention``, which exports to plain operators.

Shapes: B batch, L queries, S keys, C width, H heads, D = C / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def padding_bias(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What is added to scores so that padding gets no weight.

    The lowest finite number stands for minus infinity, so that a row with nothing but padding stays finite: it attends to all of
    it alike.

    Args:
        mask: [B, S] bool, True on what is real.
        dtype: of the scores.

    Returns:
        [B, 1, 1, S].
    """
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)[:, None, None, :]


def parts(x: Tensor, count: int, axis: int) -> list[Tensor]:
    """``x`` cut into ``count`` equal parts.

    ``chunk`` does the same, and exporters write it as a sequence of tensors, which ONNX Runtime cuts anew on every run.
    """
    size = x.shape[axis] // count
    return [x.narrow(axis, number * size, size) for number in range(count)]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., L, C] -> [..., H, L, D]."""
    return torch.unflatten(x, -1, (heads, x.shape[-1] // heads)).transpose(-3, -2)


def join_heads(x: Tensor) -> Tensor:
    """[..., H, L, D] -> [..., L, C]."""
    return x.transpose(-3, -2).flatten(-2)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, head by head.

    Args:
        query: [B, L, C].
        key: [B, S, C].
        value: [B, S, C].
        heads: H.
        bias: broadcast to [B, H, L, S].
        dropout: probability of dropping a weight, in training.

    Returns:
        [B, L, C].
    """
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return join_heads(weights @ v)


class Attention(nn.Module):
    """Attention whose query, key and value projections lie in one matrix ``in_proj_weight`` [3 C, C].

    Args:
        width: C.
        heads: H.
        dropout: of the attention weights, in training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """[B, L, C] from query [B, L, C], key and value [B, S, C] and a bias as :func:`padding_bias` makes it."""
        q, k, v = (
            F.linear(x, weight, offset)
            for x, weight, offset in zip(
                (query, key, value), parts(self.in_proj_weight, 3, 0), parts(self.in_proj_bias, 3, 0), strict=True
            )
        )
        out: Tensor = self.out_proj(attend(q, k, v, self.heads, bias, self.dropout if self.training else 0.0))
        return out
