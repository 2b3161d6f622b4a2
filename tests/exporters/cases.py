"""Every model that is exported: how to build it, what it takes, and the sites that its architecture implies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from tests.exporters import detr, hub, vision
from tests.exporters.inputs import (
    HEADS,
    HIDDEN,
    WIDTH,
    MakeInputs,
    features,
    fusion,
    images,
    masked_images,
    pixels,
    sequence,
    sequence_first,
    sequences,
    text_and_image,
    tokens,
)


@dataclass(frozen=True)
class Sites:
    """Sites that are alike.

    Attributes:
        count: how many.
        kind: ``ffn`` or ``msa``.
        sizes: factor -> size.
        calls: call-sites of each.
    """

    count: int
    kind: str
    sizes: Mapping[str, int]
    calls: int = 1


@dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
        name: for messages.
        build: makes the module, weights random.
        inputs: makes its inputs.
        dynamic: argument -> axis -> name of its size.
        sites: what is to be found.
        shapes: (batch, length) of the runs; the first one is exported.
        outputs: names of the results.
        unsure: factors whose size and freedom depend on the exporter: a rotary head dimension is pairs, or whole and frozen.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: MakeInputs
    dynamic: Mapping[str, Mapping[int, str]]
    sites: tuple[Sites, ...]
    shapes: tuple[tuple[int, int], ...] = ((2, 7), (3, 5))
    outputs: tuple[str, ...] = ("result",)
    unsure: frozenset[str] = frozenset()


TEXT = {0: "batch", 1: "length"}
IMAGES = ((2, 0), (3, 0))
ROTARY = ((2, 7), (3, 5), (1, 6), (1, 4))
"""onnxscript's fused RotaryEmbedding reads one row of positions: such files run on a batch of one alone."""

SAME_LENGTH = ((2, 7), (3, 5), (3, 7))
"""TorchScript bakes the length that nn.MultiheadAttention was traced with into its file, the batch it does not."""


def ffn(count: int, hidden: int = HIDDEN, calls: int = 1) -> Sites:
    return Sites(count, "ffn", {"hidden": hidden}, calls)


def msa(count: int, heads: int = HEADS, size: int = WIDTH // HEADS, calls: int = 1) -> Sites:
    return Sites(count, "msa", {"head": heads, "qk": size, "vo": size}, calls)


def _hub() -> Iterator[Case]:
    """transformers' models, with its eager attention and with scaled_dot_product_attention."""
    mask = {"input_ids": TEXT, "attention_mask": TEXT}
    image = {"pixel_values": {0: "batch"}}
    plain = (msa(2), ffn(2))
    for attention in ("eager", "sdpa"):
        for name, build in (("bert", hub.bert), ("roberta", hub.roberta), ("distilbert", hub.distilbert), ("gpt2", hub.gpt2)):
            yield Case(f"{name}-{attention}", partial(build, attention), tokens, mask, plain)
        tied = (msa(1, calls=2), ffn(1, calls=2))
        yield Case(f"albert-{attention}", partial(hub.albert, attention), tokens, mask, tied)
        yield Case(
            f"llama-{attention}",
            partial(hub.llama, attention),
            tokens,
            mask,
            (msa(2, heads=2), ffn(2)),
            shapes=ROTARY,
            unsure=frozenset({"qk"}),
        )
        for name, build in (("vit", hub.vit), ("dinov2", hub.dinov2)):
            yield Case(f"{name}-{attention}", partial(build, attention), pixels(16), image, plain, IMAGES)
        yield Case(
            f"clip-{attention}",
            partial(hub.clip, attention),
            text_and_image,
            mask | {"pixel_values": {0: "images"}},
            (*plain, msa(2, size=12), ffn(2, hidden=96)),
            outputs=("text", "image"),
        )
    turned = frozenset({"qk"})
    yield Case("phi3-eager", partial(hub.phi3, "eager"), tokens, mask, (msa(2, heads=2), ffn(2)), ROTARY, unsure=turned)
    yield Case("neox-eager", partial(hub.neox, "eager"), tokens, mask, plain, ROTARY, unsure=turned)
    yield Case("bart-eager", partial(hub.bart, "eager"), tokens, mask, (msa(6), ffn(4)))
    yield Case("dinov3-eager", partial(hub.dinov3, "eager"), pixels(16), image, plain, IMAGES, unsure=turned)
    yield Case("t5-eager", partial(hub.t5, "eager"), tokens, mask, plain)
    stages = (msa(2, heads=2), ffn(2, hidden=32), msa(2, heads=4), ffn(2, hidden=64))
    yield Case("swin-eager", partial(hub.swin, "eager"), pixels(32), image, stages, IMAGES)
    yield Case(
        "detr-eager",
        partial(hub.detr, "eager"),
        masked_images,
        {"pixel_values": {0: "batch", 2: "32*height"}, "pixel_mask": {0: "batch", 1: "32*height"}},
        (msa(6), ffn(4)),
        ((2, 5), (1, 4)),
        outputs=("logits", "boxes"),
    )


def _torch() -> Iterator[Case]:
    """Modules of torch alone."""
    yield Case(
        "detr",
        detr.Detr,
        features,
        {"features": TEXT, "pos": TEXT, "mask": TEXT},
        (msa(6), ffn(4)),
        SAME_LENGTH,
        outputs=("classes", "boxes"),
    )
    for name, first, activation in (("post", False, "relu"), ("pre", True, "gelu")):
        build = partial(detr.TorchLayers, norm_first=first, activation=activation)
        sizes = {"x": TEXT, "y": {0: "batch", 1: "target"}, "mask": TEXT}
        yield Case(f"torch-layers-{name}", build, sequences, sizes, (msa(6), ffn(4)), SAME_LENGTH)
    for name, weights in (("plain", False), ("weights", True)):
        block = partial(detr.MultiheadBlock, weights=weights)
        yield Case(f"multihead-{name}", block, sequence, {"x": TEXT, "mask": TEXT}, (msa(1),), SAME_LENGTH)
    block = partial(detr.MultiheadBlock, weights=False, batch_first=False)
    turned = {"x": {0: "length", 1: "batch"}, "mask": TEXT}
    yield Case("multihead-sequence-first", block, sequence_first, turned, (msa(1),), SAME_LENGTH)
    for name, fused in (("eager", False), ("sdpa", True)):
        transformer = partial(vision.VisionTransformer, fused=fused)
        yield Case(f"timm-{name}", transformer, pixels(16), {"pixels": {0: "batch"}}, (msa(2), ffn(2)), IMAGES)
    yield Case("chunked", vision.Chunked, sequence, {"x": TEXT, "mask": TEXT}, (msa(1), ffn(1)))
    yield Case("windows", vision.Swin, pixels(32), {"pixels": {0: "batch"}}, (msa(2), ffn(2)), IMAGES)
    sizes = {"pixels": {0: "batch", 2: "4*height", 3: "4*width"}}
    yield Case("windows-any", vision.AnySwin, images, sizes, (msa(2), ffn(2)), ((2, 14), (1, 8)))
    both = Sites(1, "msa", {"head": HEADS, "qk": 8, "vo": 8, "vo2": 8})
    yield Case(
        "fusion",
        detr.Fusion,
        fusion,
        {"visual": {0: "batch", 1: "places"}, "text": TEXT, "mask": TEXT},
        (both,),
        outputs=("v", "l"),
    )


CASES: Mapping[str, Case] = {case.name: case for case in (*_hub(), *_torch())}
