"""Every model that is exported: how to build it, what it takes, and the sites that its architecture implies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn

from tests.exporters import detr, vision

Inputs = dict[str, npt.NDArray[Any]]
WIDTH, HEADS, HIDDEN, VOCABULARY = 32, 4, 64, 50


@dataclass(frozen=True)
class Sites:
    """Sites that are alike.

    Attributes:
        count: how many.
        kind: ``ffn`` or ``msa``.
        sizes: factor -> size.
        frozen: factors that the architecture forbids to change.
    """

    count: int
    kind: str
    sizes: Mapping[str, int]
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
        name: for messages.
        build: makes the module, weights random.
        inputs: (rng, batch, length) -> arrays by the name of forward's argument.
        dynamic: argument -> axis -> name of its size; empty for static shapes.
        sites: what is to be found.
        shapes: (batch, length) of the runs; the first one is exported.
        heavy: seconds to export: only on request.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[np.random.Generator, int, int], Inputs]
    dynamic: Mapping[str, Mapping[int, str]]
    sites: tuple[Sites, ...]
    shapes: tuple[tuple[int, int], ...] = ((2, 7), (3, 5))
    heavy: bool = False
    outputs: tuple[str, ...] = ("result",)
    options: Mapping[str, Any] = field(default_factory=dict)


def ffn(count: int, hidden: int = HIDDEN) -> Sites:
    return Sites(count, "ffn", {"hidden": hidden})


def msa(count: int, heads: int = HEADS, size: int = WIDTH // HEADS, *frozen: str) -> Sites:
    return Sites(count, "msa", {"head": heads, "qk": size, "vo": size}, frozenset(frozen))


# --- inputs ------------------------------------------------------------------------------------------------------------


def tokens(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    mask = np.ones((batch, length), np.int64)
    mask[0, length - 2 :] = 0
    return {"input_ids": rng.integers(3, VOCABULARY, (batch, length), np.int64), "attention_mask": mask}


def tokens_only(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    return {"input_ids": rng.integers(3, VOCABULARY, (batch, length), np.int64)}


def pixels(side: int) -> Callable[[np.random.Generator, int, int], Inputs]:
    def make(rng: np.random.Generator, batch: int, length: int) -> Inputs:
        return {"pixel_values": rng.normal(size=(batch, 3, side, side)).astype(np.float32)}

    return make


def padded(rng: np.random.Generator, batch: int, length: int) -> npt.NDArray[np.bool_]:
    """[B, S], True on padding; no row is all padding."""
    mask = np.zeros((batch, length), np.bool_)
    mask[0, length - 2 :] = True
    return mask


def features(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    shape = (batch, length, WIDTH)
    return {
        "features": rng.normal(size=shape).astype(np.float32),
        "pos": rng.normal(size=shape).astype(np.float32),
        "mask": padded(rng, batch, length),
    }


def sequences(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    return {
        "x": rng.normal(size=(batch, length, WIDTH)).astype(np.float32),
        "y": rng.normal(size=(batch, length + 1, WIDTH)).astype(np.float32),
        "mask": padded(rng, batch, length),
    }


def sequence(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    return {"x": rng.normal(size=(batch, length, WIDTH)).astype(np.float32), "mask": padded(rng, batch, length)}


def sequence_first(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    return {"x": rng.normal(size=(length, batch, WIDTH)).astype(np.float32), "mask": padded(rng, batch, length)}


def pair(rng: np.random.Generator, batch: int, length: int) -> Inputs:
    return tokens(rng, batch, length) | pixels(16)(rng, batch, length)


TEXT = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
IMAGE = {"pixel_values": {0: "batch"}}


# --- transformers ------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """A text encoder of transformers: only its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return cast(Tensor, self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)


class Causal(nn.Module):
    """A decoder-only model of transformers, without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return cast(Tensor, result.last_hidden_state)


class Vision(nn.Module):
    """A vision encoder of transformers: only its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, self.model(pixel_values=pixel_values).last_hidden_state)


class TwoTowers(nn.Module):
    """CLIP: the embeddings of both towers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return result.text_embeds, result.image_embeds


_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 40,
}


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(**_BERT, attn_implementation=attention)
    return Encoder(transformers.BertModel(config, add_pooling_layer=False))


def roberta(attention: str) -> nn.Module:
    config = transformers.RobertaConfig(**_BERT, attn_implementation=attention)
    return Encoder(transformers.RobertaModel(config, add_pooling_layer=False))


def distilbert(attention: str) -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=WIDTH, n_layers=2, n_heads=HEADS, hidden_dim=HIDDEN, attn_implementation=attention
    )
    return Encoder(transformers.DistilBertModel(config))


def vit(attention: str) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        image_size=16,
        patch_size=4,
        attn_implementation=attention,
    )
    return Vision(transformers.ViTModel(config, add_pooling_layer=False))


def t5(attention: str) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=HIDDEN, num_layers=2, num_heads=HEADS, feed_forward_proj="gated-gelu"
    )
    return Encoder(transformers.T5EncoderModel(config))


def clip(attention: str) -> nn.Module:
    text = {**_BERT, "eos_token_id": 2}
    vision_tower = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    vision_tower |= {"image_size": 16, "patch_size": 4}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision_tower, projection_dim=24, attn_implementation=attention
    )
    return TwoTowers(transformers.CLIPModel(config))


def llama(attention: str) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=40,
        attn_implementation=attention,
    )
    return Causal(transformers.LlamaModel(config))


def swin(attention: str) -> nn.Module:
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, mlp_ratio=2.0
    )
    return Vision(transformers.SwinModel(config, add_pooling_layer=False))


def _text(name: str, build: Callable[[str], nn.Module], attention: str, sites: tuple[Sites, ...], **more: Any) -> Case:
    return Case(f"{name}-{attention}", lambda: build(attention), tokens, TEXT, sites, **more)


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *(_text("bert", bert, a, (msa(2), ffn(2))) for a in ("eager", "sdpa")),
        *(_text("roberta", roberta, a, (msa(2), ffn(2))) for a in ("eager", "sdpa")),
        *(_text("distilbert", distilbert, a, (msa(2), ffn(2))) for a in ("eager", "sdpa")),
        *(Case(f"vit-{a}", lambda a=a: vit(a), pixels(16), IMAGE, (msa(2), ffn(2)), ((2, 0), (3, 0))) for a in ("eager", "sdpa")),
        _text("t5", t5, "eager", (msa(2), ffn(2))),
        *(
            Case(
                f"clip-{a}",
                lambda a=a: clip(a),
                pair,
                TEXT | {"pixel_values": {0: "images"}},
                (msa(2), ffn(2), msa(2, 4, 12), ffn(2, 96)),
                outputs=("text", "image"),
            )
            for a in ("eager", "sdpa")
        ),
        *(_text("llama", llama, a, (msa(2, 2, 8), ffn(2)), shapes=((2, 7), (3, 5), (1, 6), (1, 4))) for a in ("eager", "sdpa")),
        Case("swin-eager", lambda: swin("eager"), pixels(32), IMAGE, (msa(2, 2, 8), ffn(2, 32), msa(2, 4, 8), ffn(2, 64)), ((2, 0), (3, 0))),
        Case(
            "detr",
            detr.Detr,
            features,
            {"features": {0: "batch", 1: "length"}, "pos": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
            (msa(6), ffn(4)),
            outputs=("classes", "boxes"),
        ),
        *(
            Case(
                f"torch-layers-{name}",
                lambda f=first, a=activation: detr.TorchLayers(norm_first=f, activation=a),
                sequences,
                {"x": {0: "batch", 1: "length"}, "y": {0: "batch", 1: "target"}, "mask": {0: "batch", 1: "length"}},
                (msa(6), ffn(4)),
            )
            for name, first, activation in (("post", False, "relu"), ("pre", True, "gelu"))
        ),
        *(
            Case(
                f"multihead-{name}",
                lambda w=weights, f=first: detr.MultiheadBlock(weights=w, batch_first=f),
                sequence if first else sequence_first,
                {"x": {0: "batch", 1: "length"} if first else {0: "length", 1: "batch"}, "mask": {0: "batch", 1: "length"}},
                (msa(1),),
            )
            for name, weights, first in (("plain", False, True), ("weights", True, True), ("sequence-first", False, False))
        ),
        *(
            Case(f"timm-{name}", lambda f=fused: vision.VisionTransformer(fused=f), pixels(16), {"pixels": {0: "batch"}}, (msa(2), ffn(2)), ((2, 0), (3, 0)))
            for name, fused in (("eager", False), ("sdpa", True))
        ),
        Case("windows", vision.Swin, pixels(32), {"pixels": {0: "batch"}}, (msa(2), ffn(2)), ((2, 0), (3, 0))),
    )
}
