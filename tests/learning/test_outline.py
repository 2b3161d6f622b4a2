"""A configuration is followed once, and what it is followed to has no weights of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inarch.learning import outline as outlines
from inarch.learning.models.registry import build
from inarch.learning.outline import outline
from inarch.structure.errors import InarchError

from tests.learning import tiny


def test_models_keep_the_weights_that_they_were_given(small_presets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = outline(tiny.MDETR)
    monkeypatch.setattr(outlines, "export_model", None)  # nothing is followed again
    module = build(tiny.MDETR, seed=3)
    first = outline(tiny.MDETR).filled(module.state_dict()).graph.initializers
    wanted = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items() if name in first}
    assert len(wanted) > 50
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    second = followed.filled(module.state_dict()).graph.initializers
    for name, array in wanted.items():
        one, other = first[name].const_value, second[name].const_value
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.numpy(), array)
        np.testing.assert_array_equal(other.numpy(), module.state_dict()[name].numpy())


def test_another_models_weights_are_refused(small_presets: None) -> None:
    other = build(tiny.MDETR.model_copy(update={"queries": 7})).state_dict()
    for weights in (other, {}):
        with pytest.raises(InarchError, match="another model's"):
            outline(tiny.MDETR).filled(weights)
