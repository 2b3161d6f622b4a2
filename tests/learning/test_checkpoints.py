"""Checkpoints with the released files' keys and shapes. Their values are made up: no released file could be opened."""

from __future__ import annotations

import os
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inarch.learning.models import build, load_checkpoint
from inarch.learning.models.checkpoints import CheckpointError, match
from inarch.learning.models.glip_config import GlipConfig, SwinConfig
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.parts_config import TextConfig
from inarch.structure.errors import InarchError

from tests.learning.released import FILES, GlipFile, Shapes, Text
from tests.learning.sizes import FILE, GROUNDING

POSITIONS = "transformer.text_encoder.embeddings.position_ids"


def hollow(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of these shapes that hold one number each."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def filled(shapes: Shapes, seed: int) -> OrderedDict[str, Tensor]:
    """Tensors of these shapes, each of numbers of its own."""
    rng = torch.Generator().manual_seed(seed)
    weights: OrderedDict[str, Tensor] = OrderedDict()
    for key, shape in shapes.items():
        whole = key.endswith(("position_ids", "relative_position_index"))
        weights[key] = torch.randint(0, 9, shape, generator=rng) if whole else torch.rand(shape, generator=rng)
    return weights


def wrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As DistributedDataParallel names them."""
    return {f"module.{key}": tensor for key, tensor in weights.items()}


def mdetr_file(**entries: Any) -> dict[str, Any]:
    """What MDETR's training loop saves."""
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "epoch": 39, "args": Namespace(lr=1e-4, masks=False)}
    return {"model": filled(FILE.keys(), 1), "model_ema": filled(FILE.keys(), 2)} | rest | entries


def saved(folder: Path, content: object, *, legacy: bool = False) -> Path:
    file = folder / "checkpoint.pth"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file


def same(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether each entry of the state is that of the weights."""
    return all(torch.equal(tensor, weights[key]) for key, tensor in state.items())


@pytest.mark.parametrize("name", FILES)
def test_the_full_key_set_finds_its_place(name: str) -> None:
    own = build(name, device="meta").state_dict()
    weights = hollow(FILES[name].keys())
    fitting, report = match(wrapped(weights) if name.startswith("glip") else weights, own, "model")
    assert report.complete
    assert report.lines() == []
    assert fitting.keys() == own.keys()
    assert report.loaded == len(weights) - 1 == len(own)
    assert [key.rpartition(".")[2] for key in report.dropped] == ["position_ids"]


@pytest.mark.parametrize(("ema", "source", "seed"), [(True, "model_ema", 2), (False, "model", 1)])
def test_mdetr_has_two_sets_of_weights(tmp_path: Path, ema: bool, source: str, seed: int) -> None:
    model, report = load_checkpoint(saved(tmp_path, mdetr_file()), GROUNDING, ema=ema)
    assert report.source == source
    assert report.dropped == (POSITIONS,)
    assert not model.training
    assert same(model.state_dict(), filled(FILE.keys(), seed))


def test_weights_land_where_their_names_say(tmp_path: Path) -> None:
    model, _ = load_checkpoint(saved(tmp_path, mdetr_file()), GROUNDING)
    weights = filled(FILE.keys(), 2)
    packed = weights["transformer.decoder.layers.1.cross_attn_image.in_proj_weight"]
    attention = model.get_submodule("transformer.decoder.layers.1.cross_attn_image")
    x = torch.rand(1, 1, GROUNDING.width)
    # One key: the output is the projected value, whatever query and key are.
    value = x @ packed[2 * GROUNDING.width :].T + weights["transformer.decoder.layers.1.cross_attn_image.in_proj_bias"][-16:]
    projection = weights["transformer.decoder.layers.1.cross_attn_image.out_proj.weight"]
    expected = value @ projection.T + weights["transformer.decoder.layers.1.cross_attn_image.out_proj.bias"]
    assert torch.allclose(attention(x + 1, x + 2, x), expected, atol=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
def test_glip_saves_what_ran_in_parallel(tmp_path: Path, legacy: bool) -> None:
    text = TextConfig(family="bert", vocabulary=40, positions=20, types=2, width=16, layers=1, heads=2, hidden=32)
    config = GlipConfig(
        vision=SwinConfig(width=8, layers=(1, 2, 1, 1), heads=(1, 2, 2, 4), window=3),
        text=text,
        width=32,
        blocks=2,
        fusion_heads=2,
        fusion_width=24,
        classes=6,
    )
    released = GlipFile(
        embed=8,
        depths=(1, 2, 1, 1),
        heads=(1, 2, 2, 4),
        window=3,
        blocks=2,
        text=Text(vocabulary=40, positions=20, types=2, layers=1, width=16, hidden=32, pooler=False),
        width=32,
        fusion_width=24,
        classes=6,
    )
    weights = filled(released.keys(), 3)
    file = saved(tmp_path, {"model": wrapped(weights), "iteration": 7}, legacy=legacy)
    model, report = load_checkpoint(file, config)
    assert report.source == "model", "there is no moving average in this file"
    assert report.dropped == ("language_backbone.body.model.embeddings.position_ids",)
    assert same(model.state_dict(), weights)


def test_a_file_may_be_the_weights_alone(tmp_path: Path) -> None:
    model, report = load_checkpoint(saved(tmp_path, filled(FILE.keys(), 4)), GROUNDING)
    assert report.source == ""
    assert same(model.state_dict(), filled(FILE.keys(), 4))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    weights = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in filled(FILE.keys(), 5).items()}
    model, _ = load_checkpoint(saved(tmp_path, {"model": weights}), GROUNDING)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.state_dict()["class_embed.weight"], weights["class_embed.weight"].float())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    weights = filled(FILE.keys(), 2)
    del weights["class_embed.bias"]
    weights["isfinal_embed.weight"] = torch.rand(1, 16)
    weights["query_embed.weight"] = torch.rand(9, 16)
    file = saved(tmp_path, mdetr_file(model_ema=weights))
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(file, GROUNDING)
    said = str(refusal.value)
    assert refusal.value.where == str(file)
    assert "1 keys are only in the file: isfinal_embed.weight" in said
    assert "1 keys are only in the model: class_embed.bias" in said
    assert "query_embed.weight [9, 16], here [5, 16]" in said

    model, report = load_checkpoint(file, GROUNDING, strict=False)
    assert not report.complete
    assert (report.unmapped, report.missing) == (("isfinal_embed.weight",), ("class_embed.bias",))
    assert report.misfits == ("query_embed.weight [9, 16], here [5, 16]",)
    state, fresh = model.state_dict(), build(GROUNDING).state_dict()
    left = {"class_embed.bias", "query_embed.weight"}
    assert report.loaded == len(state) - len(left)
    assert same({key: state[key] for key in left}, fresh)
    assert same({key: tensor for key, tensor in state.items() if key not in left}, weights)


def test_the_wrong_preset_is_refused_in_a_few_words(tmp_path: Path) -> None:
    file = saved(tmp_path, {"model": hollow(FILES["glip-t"].keys())})
    with pytest.raises(CheckpointError, match="and 737 more") as refusal:
        load_checkpoint(file, GROUNDING)
    assert len(str(refusal.value)) < 2000


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InarchError, match="no such preset"):
        load_checkpoint(saved(tmp_path, mdetr_file()), "mdetr-r50")


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    file = saved(tmp_path, mdetr_file(extra=Payload(f"touch {trace}")))
    with pytest.raises(CheckpointError, match=r"holds \w+\.system") as refusal:
        load_checkpoint(file, GROUNDING)
    assert "weights_only" not in str(refusal.value), "torch's own message advises to load it unsafely"
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(3), "holds Tensor, not a dictionary"),
        ({"epoch": 3}, "holds no weights"),
        ({"model": {"epoch": 3}}, "holds no weights"),
    ],
)
def test_files_without_weights(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(saved(tmp_path, content), GROUNDING)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no archive", b"\x80\x02}q\x00(X\xff\xff"])
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "checkpoint.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged, or no checkpoint of torch"):
        load_checkpoint(file, GROUNDING)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    file = saved(tmp_path, mdetr_file())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(file, GROUNDING)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "nothing.pth", GROUNDING)
    with pytest.raises(CheckpointError, match="Is a directory"):
        load_checkpoint(tmp_path, GROUNDING)


def test_a_configuration_in_place_of_a_preset(tmp_path: Path) -> None:
    """The same file fits no model of other sizes."""
    wider = MdetrConfig.model_validate(GROUNDING.model_dump() | {"queries": 6})
    with pytest.raises(CheckpointError, match=r"query_embed.weight \[5, 16\], here \[6, 16\]"):
        load_checkpoint(saved(tmp_path, mdetr_file()), wider)
