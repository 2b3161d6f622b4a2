"""Keys and shapes of the released files, written down from the published module trees, without looking at our modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]

BUFFERS = ("running_mean", "running_var", "position_ids", "relative_position_index")


def linear(name: str, outputs: int, inputs: int, *, bias: bool = True, kernel: int | None = None) -> Shapes:
    """A linear layer, or a convolution where a kernel is given."""
    weight = (outputs, inputs) if kernel is None else (outputs, inputs, kernel, kernel)
    return {f"{name}.weight": weight} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def frozen_norm(name: str, width: int) -> Shapes:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def merged(parts: Sequence[Shapes]) -> Shapes:
    result: Shapes = {}
    for part in parts:
        assert not result.keys() & part.keys()
        result |= part
    return result


@dataclass(frozen=True)
class Text:
    vocabulary: int = 50265
    positions: int = 514
    types: int = 1
    layers: int = 12
    width: int = 768
    hidden: int = 3072
    pooler: bool = True

    def layer(self, name: str) -> Shapes:
        own = [linear(f"{name}.attention.self.{part}", self.width, self.width) for part in ("query", "key", "value")]
        own += [linear(f"{name}.attention.output.dense", self.width, self.width)]
        own += [norm(f"{name}.attention.output.LayerNorm", self.width), norm(f"{name}.output.LayerNorm", self.width)]
        own += [linear(f"{name}.intermediate.dense", self.hidden, self.width)]
        return merged([*own, linear(f"{name}.output.dense", self.width, self.hidden)])

    def keys(self, name: str) -> Shapes:
        embeddings: Shapes = {
            f"{name}.embeddings.position_ids": (1, self.positions),
            f"{name}.embeddings.word_embeddings.weight": (self.vocabulary, self.width),
            f"{name}.embeddings.position_embeddings.weight": (self.positions, self.width),
            f"{name}.embeddings.token_type_embeddings.weight": (self.types, self.width),
        }
        layers = [self.layer(f"{name}.encoder.layer.{i}") for i in range(self.layers)]
        pooler = linear(f"{name}.pooler.dense", self.width, self.width) if self.pooler else {}
        return merged([embeddings, norm(f"{name}.embeddings.LayerNorm", self.width), *layers, pooler])


def resnet(name: str, stages: Sequence[int], stem: int, *, bottleneck: bool) -> Shapes:
    parts = [linear(f"{name}.conv1", stem, 3, bias=False, kernel=7), frozen_norm(f"{name}.bn1", stem)]
    channels = stem
    for stage, blocks in enumerate(stages):
        width = stem * 2**stage
        outputs = 4 * width if bottleneck else width
        for number in range(blocks):
            block = f"{name}.layer{stage + 1}.{number}"
            if bottleneck:
                plan = [(width, channels, 1), (width, width, 3), (outputs, width, 1)]
            else:
                plan = [(width, channels, 3), (width, width, 3)]
            for conv, (out, into, kernel) in enumerate(plan, 1):
                parts.append(linear(f"{block}.conv{conv}", out, into, bias=False, kernel=kernel))
                parts.append(frozen_norm(f"{block}.bn{conv}", out))
            if number == 0 and (bottleneck or stage):
                parts.append(linear(f"{block}.downsample.0", outputs, channels, bias=False, kernel=1))
                parts.append(frozen_norm(f"{block}.downsample.1", outputs))
            channels = outputs
    return merged(parts)


def packed_attention(name: str, width: int) -> Shapes:
    packed: Shapes = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
    return packed | linear(f"{name}.out_proj", width, width)


@dataclass(frozen=True)
class MdetrFile:
    stages: tuple[int, int, int, int] = (3, 4, 23, 3)
    bottleneck: bool = True
    stem: int = 64
    text: Text = Text()
    width: int = 256
    hidden: int = 2048
    layers: int = 6
    queries: int = 100
    spans: int = 255
    contrastive: int | None = 64
    answers: str | None = None

    def keys(self) -> Shapes:
        d, channels = self.width, 8 * self.stem * (4 if self.bottleneck else 1)
        parts = [resnet("backbone.0.body", self.stages, self.stem, bottleneck=self.bottleneck)]
        for i in range(self.layers):
            parts += [self._layer(f"transformer.encoder.layers.{i}", ("self_attn",), (1, 2))]
            parts += [self._layer(f"transformer.decoder.layers.{i}", ("self_attn", "cross_attn_image"), (1, 3, 4))]
        parts += [norm("transformer.decoder.norm", d), self.text.keys("transformer.text_encoder")]
        parts += [linear("transformer.resizer.fc", d, self.text.width), norm("transformer.resizer.layer_norm", d)]
        parts += [{"query_embed.weight": (self.queries, d)}, linear("input_proj", d, channels, kernel=1)]
        parts += [linear("class_embed", self.spans + 1, d), mlp("bbox_embed", d, 4)]
        if self.contrastive is not None:
            parts += [linear(f"contrastive_align_projection_{side}", self.contrastive, d) for side in ("image", "text")]
        if self.answers == "gqa":
            sizes = {"type": 5, "obj": 3, "rel": 1594, "attr": 403, "cat": 678, "global": 111}
            parts += [{"qa_embed.weight": (6, d)}, *(linear(f"answer_{name}_head", n, d) for name, n in sizes.items())]
        if self.answers == "clevr":
            sizes = {"type": 3, "binary": 1, "attr": 15}
            parts += [{"qa_embed.weight": (4, d)}, *(linear(f"answer_{name}_head", n, d) for name, n in sizes.items())]
            parts += [mlp("answer_reg_head", d, 20)]
        return merged(parts)

    def _layer(self, name: str, attentions: Sequence[str], norms: Sequence[int]) -> Shapes:
        ffn = linear(f"{name}.linear1", self.hidden, self.width) | linear(f"{name}.linear2", self.width, self.hidden)
        own = [packed_attention(f"{name}.{attention}", self.width) for attention in attentions]
        return merged([*own, ffn, *(norm(f"{name}.norm{number}", self.width) for number in norms)])


def mlp(name: str, width: int, outputs: int) -> Shapes:
    sizes = (width, width, outputs)
    return merged([linear(f"{name}.layers.{i}", out, width) for i, out in enumerate(sizes)])


BERT = Text(vocabulary=30522, positions=512, types=2, pooler=False)


@dataclass(frozen=True)
class GlipFile:
    embed: int = 96
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: int = 7
    blocks: int = 6
    fusion: bool = True
    text: Text = BERT
    width: int = 256
    fusion_width: int = 2048
    classes: int = 80

    def keys(self) -> Shapes:
        head, c, text = "rpn.head", self.width, self.text.width
        parts = [self._swin("backbone.body"), self._pyramid("backbone.fpn"), self.text.keys("language_backbone.body.model")]
        step = 3 if self.fusion else 1
        for block in range(self.blocks):
            tower = f"{head}.dyhead_tower"
            if self.fusion:
                parts += [self._fuse(f"{tower}.{3 * block}.b_attn"), self.text.layer(f"{tower}.{3 * block + 1}")]
            parts += [self._dynamic(f"{tower}.{step * block + step - 1}")]
        parts += [linear(f"{head}.cls_logits", self.classes, c, kernel=1)]
        parts += [linear(f"{head}.bbox_pred", 4, c, kernel=1), linear(f"{head}.centerness", 1, c, kernel=1)]
        parts += [{f"{head}.scales.{i}.scale": (1,) for i in range(5)}, linear(f"{head}.dot_product_projection_text", c, text)]
        parts += [{f"{head}.log_scale": (1,), f"{head}.bias_lang": (text,), f"{head}.bias0": (1,)}]
        parts += [{f"rpn.anchor_generator.cell_anchors.{i}": (1, 4) for i in range(5)}]
        return merged(parts)

    def _swin(self, name: str) -> Shapes:
        parts = [linear(f"{name}.patch_embed.proj", self.embed, 3, kernel=4), norm(f"{name}.patch_embed.norm", self.embed)]
        for stage, depth in enumerate(self.depths):
            d, cells = self.embed * 2**stage, self.window**2
            for number in range(depth):
                block = f"{name}.layers.{stage}.blocks.{number}"
                table: Shapes = {
                    f"{block}.attn.relative_position_bias_table": ((2 * self.window - 1) ** 2, self.heads[stage]),
                    f"{block}.attn.relative_position_index": (cells, cells),
                }
                parts += [table, linear(f"{block}.attn.qkv", 3 * d, d), linear(f"{block}.attn.proj", d, d)]
                parts += [norm(f"{block}.norm1", d), norm(f"{block}.norm2", d)]
                parts += [linear(f"{block}.mlp.fc1", 4 * d, d), linear(f"{block}.mlp.fc2", d, 4 * d)]
            if stage < 3:
                below = f"{name}.layers.{stage}.downsample"
                parts += [norm(f"{below}.norm", 4 * d), linear(f"{below}.reduction", 2 * d, 4 * d, bias=False)]
            if stage:
                parts += [norm(f"{name}.norm{stage}", d)]
        return merged(parts)

    def _pyramid(self, name: str) -> Shapes:
        parts = [linear(f"{name}.fpn_inner{i}", self.width, self.embed * 2 ** (i - 1), kernel=1) for i in (2, 3, 4)]
        parts += [linear(f"{name}.fpn_layer{i}", self.width, self.width, kernel=3) for i in (2, 3, 4)]
        return merged([*parts, *(linear(f"{name}.top_blocks.p{i}", self.width, self.width, kernel=3) for i in (6, 7))])

    def _fuse(self, name: str) -> Shapes:
        v, t, e = self.width, self.text.width, self.fusion_width
        gammas: Shapes = {f"{name}.gamma_v": (v,), f"{name}.gamma_l": (t,)}
        parts = [gammas, norm(f"{name}.layer_norm_v", v), norm(f"{name}.layer_norm_l", t)]
        parts += [linear(f"{name}.attn.{kind}v_proj", e, v) for kind in ("", "values_")]
        parts += [linear(f"{name}.attn.{kind}l_proj", e, t) for kind in ("", "values_")]
        return merged([*parts, linear(f"{name}.attn.out_v_proj", v, e), linear(f"{name}.attn.out_l_proj", t, e)])

    def _dynamic(self, name: str) -> Shapes:
        c = self.width
        parts = [linear(f"{name}.DyConv.{i}.conv", c, c, kernel=3) | norm(f"{name}.DyConv.{i}.bn", c) for i in range(3)]
        parts += [linear(f"{name}.AttnConv.1", 1, c, kernel=1), linear(f"{name}.offset", 27, c, kernel=3)]
        return merged([*parts, linear(f"{name}.relu.fc.0", c // 4, c), linear(f"{name}.relu.fc.2", 4 * c, c // 4)])


FILES: Mapping[str, MdetrFile | GlipFile] = {
    "mdetr-r101": MdetrFile(),
    "mdetr-r101-gqa": MdetrFile(contrastive=None, answers="gqa"),
    "mdetr-clevr": MdetrFile(stages=(2, 2, 2, 2), bottleneck=False, text=Text(layers=6), queries=25, answers="clevr"),
    "glip-a": GlipFile(fusion=False),
    "glip-t": GlipFile(),
    "glip-l": GlipFile(embed=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12, blocks=8),
}
"""Preset -> what its released file holds under its weights."""


def parameters(shapes: Shapes) -> int:
    """Numbers that were trained: no buffers, and no batch norms, which are frozen."""
    frozen = {key.removesuffix("running_mean") for key in shapes if key.endswith("running_mean")}
    count = 0
    for key, shape in shapes.items():
        buffer = key.endswith(BUFFERS) or "cell_anchors" in key or key.rpartition(".")[0] + "." in frozen
        size = 1
        for length in shape:
            size *= length
        count += 0 if buffer else size
    return count
