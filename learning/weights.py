"""Weights as files, and as what modules take and give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from inarch.structure.errors import InarchError
from inarch.structure.files import whole


def keep_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write weights; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as draft:
        draft.write_bytes(save(dict(state)))  # save_file's would be for its owner's eyes alone


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights, on the CPU and its own no longer."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str = "weights") -> None:
    """Give a module weights.

    Raises:
        InarchError: names or shapes are others.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        lines = str(error).splitlines()
        reason = (lines[1] if len(lines) > 1 else lines[0]).strip()
        raise InarchError(f"these are another model's: {reason[:200]}", where=source) from None


def read_weights(path: Path, hint: str = "a run that was stopped goes on with inarch learn --resume") -> dict[str, Tensor]:
    """Weights from a file.

    Args:
        path: the file.
        hint: what to do if it is not there.

    Raises:
        InarchError: it cannot be read, or is not there: the run that makes it is not complete.
    """
    if not path.exists():
        raise InarchError("is not there", where=str(path), hint=hint)
    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InarchError(f"cannot be read: {error}", where=str(path)) from None


def model_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own part of a trainee's weights."""
    return {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
