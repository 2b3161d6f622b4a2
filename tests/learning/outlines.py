"""Outlines that the processes of one test run have in common: following a model takes torch up to a minute."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import pytest
from filelock import FileLock

from inarch.frontends.fx import OPSET
from inarch.learning import models, outline
from inarch.learning.models.export import export_model
from inarch.learning.models.registry import Model


@contextmanager
def shared(temporary: pytest.TempPathFactory) -> Iterator[None]:
    """Whichever process needs a configuration first follows it; the others read what it found."""
    base = temporary.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "outlines"
    folder.mkdir(exist_ok=True)

    def follow(model: Model, *, opset: int = OPSET, deform_conv: bool = True) -> ir.Model:
        text = f"{type(model).__name__} {opset} {deform_conv} {model.config.model_dump_json()}"
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.onnx"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                ir.save(export_model(model, opset=opset, deform_conv=deform_conv), path)
        return ir.load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline, "export_model", follow)
        patch.setattr(models, "export_model", follow)
        yield
