"""The zoo: small transformers with random weights in every form that exporters emit, and random plans for them."""

from tests.zoo import decoders, encoders, fused, negatives, packed, towers, vision
from tests.zoo.model import ExpectedSite, Inputs, ZooModel, differences, matrices
from tests.zoo.registry import FORMS, NEGATIVE, build

__all__ = [
    "FORMS",
    "NEGATIVE",
    "ExpectedSite",
    "Inputs",
    "ZooModel",
    "build",
    "differences",
    "matrices",
]

BUILDERS = (decoders, encoders, fused, negatives, packed, towers, vision)
"""Importing these modules registers their forms."""
