"""MDETR as a whole: what it gives, what its masks hide, and where its answers come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inarch.learning.models import build
from inarch.learning.models.mdetr import CLEVR_HEADS, GQA_HEADS, Mdetr
from inarch.learning.models.mdetr_config import MDETR_PRESETS, MdetrConfig

from tests.learning.sizes import ANSWERS, CLEVR, GQA, GROUNDING, SMALL

LENGTH = 6


def model_of(config: MdetrConfig) -> Mdetr:
    model = build(config)
    assert isinstance(model, Mdetr)
    return model


def run(model: Mdetr, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        out: dict[str, Tensor] = model(**feeds)
        return out


def close(some: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, bool]:
    """Whether each output is the same in both."""
    return {name: torch.allclose(tensor, others[name], atol=1e-5) for name, tensor in some.items()}


@pytest.mark.parametrize("config", [*SMALL.values(), MDETR_PRESETS["mdetr-tiny"]], ids=[*SMALL, "mdetr-tiny"])
@pytest.mark.parametrize(("batch", "height", "width", "length"), [(1, 64, 64, 4), (3, 96, 64, 7)])
def test_outputs(config: MdetrConfig, batch: int, height: int, width: int, length: int) -> None:
    model = model_of(config)
    outputs = run(model, model.example(batch, height, width, length))
    expected: dict[str, tuple[int, ...]] = {
        "logits": (batch, config.queries, config.spans + 1),
        "boxes": (batch, config.queries, 4),
    }
    if config.contrastive is not None:
        expected["queries"] = (batch, config.queries, config.contrastive)
        expected["tokens"] = (batch, length, config.contrastive)
    if config.final_query:
        expected["final"] = (batch, config.queries, 1)
    heads = {"gqa": GQA_HEADS, "clevr": CLEVR_HEADS}.get(str(config.answers), {})
    expected |= {f"answer_{name}": (batch, classes) for name, classes in heads.items()}
    if isinstance(config.answers, int):
        expected["answer"] = (batch, config.answers)
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == expected
    assert tuple(outputs) == model.signature.outputs, "an export names outputs by their order"
    assert all(tensor.isfinite().all() for tensor in outputs.values())
    assert ((outputs["boxes"] > 0) & (outputs["boxes"] < 1)).all()
    for name in ("queries", "tokens"):
        if name in outputs:
            assert torch.allclose(outputs[name].norm(dim=-1), torch.ones(()), atol=1e-5)


def test_answer_heads_are_the_released_ones() -> None:
    assert GQA_HEADS == {"type": 5, "obj": 3, "rel": 1594, "attr": 403, "cat": 678, "global": 111}
    assert CLEVR_HEADS == {"type": 3, "binary": 1, "reg": 20, "attr": 15}
    assert [name for name in model_of(GQA).signature.outputs if "answer" in name] == [f"answer_{name}" for name in GQA_HEADS]


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_example_inputs(config: MdetrConfig) -> None:
    model = model_of(config)
    feeds = model.example(3, 64, 96, LENGTH)
    assert tuple(feeds) == tuple(model.signature.inputs)
    pixels, real, ids, mask = feeds.values()
    assert (pixels.dtype, real.dtype, ids.dtype, mask.dtype) == (torch.float32, torch.bool, torch.int64, torch.int64)
    assert ids.max() < config.text.vocabulary
    assert ids.min() >= 0
    for part in (real, mask.bool()):
        assert part[0].all()
        assert all(row.any() and not row.all() for row in part[1:])
    assert (pixels.transpose(0, 1)[:, ~real] == 0).all()
    again, other = model.example(3, 64, 96, LENGTH), model.example(3, 64, 96, LENGTH, seed=1)
    assert all(torch.equal(feeds[name], again[name]) for name in feeds)
    assert not torch.equal(feeds["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_what_lies_on_padding_does_not_matter(config: MdetrConfig) -> None:
    model = model_of(config)
    feeds = model.example(3, 64, 96, LENGTH)
    expected = run(model, feeds)
    pixels, ids = feeds["pixel_values"].clone(), feeds["input_ids"].clone()
    pixels.transpose(0, 1)[:, ~feeds["pixel_mask"]] = 7.0
    ids[feeds["attention_mask"] == 0] = 5
    padded_text = feeds["attention_mask"][:, :, None] == 0
    for changed in (feeds | {"pixel_values": pixels}, feeds | {"input_ids": ids}):
        got = run(model, changed)
        for name, tensor in got.items():
            # A padded token has an output of its own, which nobody reads.
            hidden = padded_text if name == "tokens" else torch.zeros((), dtype=torch.bool)
            assert torch.allclose(tensor.masked_fill(hidden, 0), expected[name].masked_fill(hidden, 0), atol=1e-5), name


def test_what_is_real_does_matter() -> None:
    model = model_of(GROUNDING)
    feeds = model.example(2, 64, 96, LENGTH)
    expected = run(model, feeds)
    pixels, ids = feeds["pixel_values"] + feeds["pixel_mask"][:, None], feeds["input_ids"].clone()
    ids[:, 1] = (ids[:, 1] + 1) % 50
    for changed in (feeds | {"pixel_values": pixels}, feeds | {"input_ids": ids}):
        assert not any(close(run(model, changed), expected).values())


def test_padded_cells_hide_from_encoder_and_decoder() -> None:
    """Whatever the backbone makes of padding, nothing behind it looks there."""
    model = model_of(GROUNDING)
    feeds = model.example(2, 96, 128, LENGTH)
    feeds["pixel_mask"][1, 64:], feeds["pixel_mask"][1, :, 96:] = False, False
    expected = run(model, feeds)
    cells = model.backbone[0](feeds["pixel_values"], feeds["pixel_mask"])[1]
    assert tuple(cells.shape) == (2, 3, 4)
    assert cells[0].all()
    assert torch.equal(cells[1], torch.tensor([[True, True, True, False]] * 2 + [[False] * 4]))

    def spoiled(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return torch.where(cells[:, None], out, 50.0)

    with model.input_proj.register_forward_hook(spoiled):
        assert all(close(run(model, feeds), expected).values())


def test_a_text_among_longer_ones_says_the_same() -> None:
    for config in (GROUNDING, ANSWERS):
        model = model_of(config)
        feeds = model.example(1, 64, 96, LENGTH)
        longer = feeds | {
            "input_ids": nn.functional.pad(feeds["input_ids"], (0, 3), value=1),
            "attention_mask": nn.functional.pad(feeds["attention_mask"], (0, 3)),
        }
        got = run(model, longer)
        if "tokens" in got:
            got["tokens"] = got["tokens"][:, :LENGTH]
        assert all(close(got, run(model, feeds)).values())


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_nothing_but_padding_is_finite(config: MdetrConfig) -> None:
    model = model_of(config)
    feeds = model.example(2, 64, 64, LENGTH)
    feeds["pixel_mask"][1] = False
    expected = run(model, feeds)
    assert all(tensor.isfinite().all() for tensor in expected.values())
    feeds["attention_mask"][1] = 0
    assert all(tensor.isfinite().all() for tensor in run(model, feeds).values())


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = model_of(CLEVR)
    feeds = model.example(3, 64, 96, LENGTH)
    together = run(model, feeds)
    for row in range(3):
        alone = run(model, {name: tensor[row : row + 1] for name, tensor in feeds.items()})
        assert all(close(alone, {name: tensor[row : row + 1] for name, tensor in together.items()}).values())


@pytest.mark.parametrize(("config", "reads_first"), [(GQA, True), (CLEVR, True), (ANSWERS, False)])
def test_answers_come_from_the_layer_that_is_named(config: MdetrConfig, reads_first: bool) -> None:
    """The released question heads read the FIRST decoder layer, boxes the last."""
    model = model_of(config)
    feeds = model.example(2, 64, 64, LENGTH)
    expected = run(model, feeds)
    with torch.no_grad():
        model.get_parameter("transformer.decoder.layers.1.linear2.weight").add_(1.0)
        model.get_parameter("transformer.decoder.layers.1.linear2.bias")[0] += 3.0
    same = close(run(model, feeds), expected)
    assert not same["boxes"]
    assert {same[name] for name in same if name.startswith("answer")} == {reads_first}


def test_each_answer_has_a_query_of_its_own() -> None:
    model = model_of(GQA)
    feeds = model.example(1, 64, 64, LENGTH)
    with torch.no_grad():
        # Queries that do not see each other: self-attention gives them all the same.
        for name, parameter in model.named_parameters():
            if "decoder" in name and "self_attn.in_proj" in name:
                parameter.zero_()
        expected = run(model, feeds)
        for number, name in enumerate(GQA_HEADS):
            saved = model.qa_embed.weight[number].clone()
            model.qa_embed.weight[number] += 1.0
            same = close(run(model, feeds), expected)
            model.qa_embed.weight[number] = saved
            assert [key for key, value in same.items() if not value] == [f"answer_{name}"]


def test_training_sees_every_decoder_layer() -> None:
    model = model_of(ANSWERS)
    feeds = model.example(2, 64, 64, LENGTH)
    with torch.no_grad():
        last, earlier = model.all_layers(**feeds)
    assert all(torch.equal(tensor, last[name]) for name, tensor in run(model, feeds).items())
    assert len(earlier) == ANSWERS.decoder_layers - 1
    assert earlier[0].keys() == {name for name in last if name != "answer"}
    assert not close(earlier[0], last)["logits"]
    assert torch.equal(earlier[0]["tokens"], last["tokens"])


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_all_parameters_learn(config: MdetrConfig) -> None:
    model = model_of(config).train()
    last, earlier = model.all_layers(**model.example(2, 64, 64, LENGTH))
    total = torch.stack([tensor.square().mean() for outputs in (last, *earlier) for tensor in outputs.values()]).sum()
    torch.autograd.backward(total)
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert still == {name for name, _ in model.named_parameters() if "pooler" in name}


def test_a_vocabulary_is_a_setting() -> None:
    config = MDETR_PRESETS["mdetr-tiny"]
    larger = config.model_copy(update={"text": config.text.model_copy(update={"vocabulary": 300})})
    key = "transformer.text_encoder.embeddings.word_embeddings.weight"
    assert [model_of(c).get_parameter(key).shape[0] for c in (config, larger)] == [config.text.vocabulary, 300]
