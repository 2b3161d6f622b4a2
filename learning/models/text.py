"""Text encoders: transformers' RoBERTa and BERT, made from sizes, with random weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from inarch.learning.models.parts_config import TextConfig


def text_encoder(config: TextConfig) -> nn.Module:
    """The encoder; called with ``input_ids`` and ``attention_mask`` [B, T], its ``last_hidden_state`` is [B, T, C]."""
    sizes: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.positions,
        "type_vocab_size": config.types,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "layer_norm_eps": config.epsilon,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }
    encoder: nn.Module
    if config.family == "roberta":
        encoder = RobertaModel(RobertaConfig(**sizes, pad_token_id=1), add_pooling_layer=config.pooler)
    else:
        encoder = BertModel(BertConfig(**sizes, pad_token_id=0), add_pooling_layer=config.pooler)
    return encoder


def padding_id(config: TextConfig) -> int:
    """The token that fills short texts up."""
    return 1 if config.family == "roberta" else 0
