"""Configurations small enough to run in milliseconds, of every kind that the full models are made of."""

from __future__ import annotations

from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.parts_config import ResNetConfig, TextConfig, VitConfig

from tests.learning.released import MdetrFile, Text

ROBERTA = TextConfig(vocabulary=60, positions=34, width=32, layers=2, heads=4, hidden=64, dropout=0.0, pooler=True)
BERT = TextConfig(family="bert", vocabulary=50, positions=24, types=2, width=32, layers=1, heads=4, hidden=64, epsilon=1e-12)
BOTTLENECK = ResNetConfig(stages=(1, 2, 1, 1), stem=8)
BASIC = ResNetConfig(block="basic", stages=(1, 1, 1, 2), stem=8)
VIT = VitConfig(image=32, patch=8, width=32, layers=2, heads=4, hidden=64)

GROUNDING = MdetrConfig(
    vision=BOTTLENECK,
    text=ROBERTA,
    width=16,
    heads=4,
    hidden=32,
    encoder_layers=2,
    decoder_layers=2,
    dropout=0.0,
    queries=5,
    spans=7,
    contrastive=8,
)
GQA = GROUNDING.model_copy(update={"answers": "gqa", "contrastive": None})
CLEVR = GROUNDING.model_copy(update={"answers": "clevr", "vision": BASIC})
ANSWERS = GROUNDING.model_copy(update={"answers": 11, "answer_layer": 1, "vision": VIT, "text": BERT, "final_query": True})

SMALL = {"grounding": GROUNDING, "gqa": GQA, "clevr": CLEVR, "answers": ANSWERS}

_TEXT = Text(vocabulary=60, positions=34, layers=2, width=32, hidden=64)
FILE = MdetrFile(stages=(1, 2, 1, 1), stem=8, text=_TEXT, width=16, hidden=32, layers=2, queries=5, spans=7, contrastive=8)
"""What a released file of :data:`GROUNDING` would hold."""
