"""Models of transformers, small and with random weights."""

from __future__ import annotations

from typing import Any, cast

import transformers
from torch import Tensor, nn

from tests.exporters.inputs import HEADS, HIDDEN, VOCABULARY, WIDTH


class Encoder(nn.Module):
    """A text encoder: only its last hidden state."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options)
        return cast(Tensor, result.last_hidden_state)


class EncoderDecoder(nn.Module):
    """A text encoder and decoder that read the same tokens: the decoder's last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=input_ids, use_cache=False)
        return cast(Tensor, result.last_hidden_state)


class Vision(nn.Module):
    """A vision encoder: only its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, self.model(pixel_values=pixel_values).last_hidden_state)


class Detector(nn.Module):
    """A DETR: the logits and boxes of its queries."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        result = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        return result.logits, result.pred_boxes


class TwoTowers(nn.Module):
    """CLIP: the embeddings of both towers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return result.text_embeds, result.image_embeds


def _config(name: str, **options: Any) -> Any:
    """A configuration: the classes' own signatures do not name what they inherit."""
    return getattr(transformers, name)(**options)


_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 40,
}

_BART = {"layers": 2, "attention_heads": HEADS, "ffn_dim": HIDDEN}

_IMAGE = {"num_hidden_layers": 2, "num_attention_heads": HEADS, "image_size": 16, "patch_size": 4}


def bert(attention: str) -> nn.Module:
    config = _config("BertConfig", **_TEXT, attn_implementation=attention)
    return Encoder(transformers.BertModel(config, add_pooling_layer=False))


def roberta(attention: str) -> nn.Module:
    config = _config("RobertaConfig", **_TEXT, attn_implementation=attention)
    return Encoder(transformers.RobertaModel(config, add_pooling_layer=False))


def albert(attention: str) -> nn.Module:
    """Both layers have the same weights."""
    config = _config("AlbertConfig", **_TEXT, embedding_size=16, attn_implementation=attention)
    return Encoder(transformers.AlbertModel(config, add_pooling_layer=False))


def distilbert(attention: str) -> nn.Module:
    config = _config(
        "DistilBertConfig",
        vocab_size=VOCABULARY,
        dim=WIDTH,
        n_layers=2,
        n_heads=HEADS,
        hidden_dim=HIDDEN,
        attn_implementation=attention,
    )
    return Encoder(transformers.DistilBertModel(config))


def t5(attention: str) -> nn.Module:
    """A gated FFN, a bias of relative positions that all layers read, heads without a scale."""
    config = _config(
        "T5Config",
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=HIDDEN,
        num_layers=2,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        attn_implementation=attention,
    )
    return Encoder(transformers.T5EncoderModel(config))


def llama(attention: str) -> nn.Module:
    """Grouped queries, rotary positions, SwiGLU, a causal mask."""
    config = _config("LlamaConfig", **_TEXT, num_key_value_heads=2, attn_implementation=attention)
    return Encoder(transformers.LlamaModel(config), use_cache=False)


def phi3(attention: str) -> nn.Module:
    """Grouped queries in one matrix with keys and values, gate and up in one; the unturned rest of each head is empty."""
    config = _config("Phi3Config", **_TEXT, num_key_value_heads=2, pad_token_id=0, attn_implementation=attention)
    return Encoder(transformers.Phi3Model(config), use_cache=False)


def neox(attention: str) -> nn.Module:
    """q, k and v interleaved head by head; only a quarter of each head is turned."""
    config = _config("GPTNeoXConfig", **_TEXT, rotary_pct=0.25, attn_implementation=attention)
    return Encoder(transformers.GPTNeoXModel(config), use_cache=False)


def bart(attention: str) -> nn.Module:
    """An encoder, and a decoder with cross-attention."""
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in _BART.items()}
    config = _config(
        "BartConfig", vocab_size=VOCABULARY, d_model=WIDTH, max_position_embeddings=40, **sizes, attn_implementation=attention
    )
    return EncoderDecoder(transformers.BartModel(config))


def gpt2(attention: str) -> nn.Module:
    """Packed q, k, v as a Gemm with a [K, N] weight, and a causal mask."""
    config = _config(
        "GPT2Config",
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        n_inner=HIDDEN,
        n_positions=40,
        attn_implementation=attention,
    )
    return Encoder(transformers.GPT2Model(config), use_cache=False)


def vit(attention: str) -> nn.Module:
    config = _config("ViTConfig", hidden_size=WIDTH, intermediate_size=HIDDEN, **_IMAGE, attn_implementation=attention)
    return Vision(transformers.ViTModel(config, add_pooling_layer=False))


def dinov3(attention: str) -> nn.Module:
    """Rotary positions for the patches alone, from a table that is made for the image's size."""
    config = _config("DINOv3ViTConfig", hidden_size=WIDTH, intermediate_size=HIDDEN, **_IMAGE, attn_implementation=attention)
    return Vision(transformers.DINOv3ViTModel(config))


def dinov2(attention: str) -> nn.Module:
    """LayerScale."""
    config = _config("Dinov2Config", hidden_size=WIDTH, mlp_ratio=HIDDEN // WIDTH, **_IMAGE, attn_implementation=attention)
    return Vision(transformers.Dinov2Model(config))


def swin(attention: str) -> nn.Module:
    """Two stages of windows, each with a shifted block."""
    config = _config(
        "SwinConfig",
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        mlp_ratio=2.0,
        attn_implementation=attention,
    )
    return Vision(transformers.SwinModel(config, add_pooling_layer=False))


def detr(attention: str) -> nn.Module:
    """A small ResNet with DETR's encoder and decoder, whose positions are sums over the mask of what is no padding."""
    images = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    layers = {f"{part}_{what}": value for part in ("encoder", "decoder") for what, value in _BART.items()}
    config = _config("DetrConfig", backbone_config=images, d_model=WIDTH, num_queries=5, attn_implementation=attention, **layers)
    return Detector(transformers.DetrForObjectDetection(config))


def clip(attention: str) -> nn.Module:
    """Two towers of different widths."""
    config = _config(
        "CLIPConfig",
        text_config={**_TEXT, "eos_token_id": 2},
        vision_config={"hidden_size": 48, "intermediate_size": 96, **_IMAGE},
        projection_dim=24,
        attn_implementation=attention,
    )
    return TwoTowers(transformers.CLIPModel(config))
