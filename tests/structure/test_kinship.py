"""Who may share with whom."""

from __future__ import annotations

import inarch
from inarch.structure.kinship import kin, tower_of

from tests.exporters.pairs import TORCHSCRIPT, found
from tests.tools.conftest import two_ffns


def test_layers_of_one_tower_share_layer_wise() -> None:
    (group,) = kin(inarch.discover(two_ffns()).table.sites)
    assert (group.kind, set(group.lengths.values()), group.sites) == ("ffn", {32}, 2)
    assert {tower: [site.name for site in sites] for tower, sites in group.towers.items()} == {
        "layer.*.ffn": ["layer.0.ffn", "layer.1.ffn"]
    }


def test_towers_of_one_width_share_across_and_others_do_not() -> None:
    """CLIP's text tower is 32 wide, its vision tower 48; DETR's encoder and decoder have one width."""
    groups = kin(found("clip-eager", TORCHSCRIPT[-1]).table.sites)
    assert sorted((g.kind, max(g.lengths.values()), len(g.towers), g.sites) for g in groups) == [
        ("ffn", 32, 1, 2), ("ffn", 48, 1, 2), ("msa", 32, 1, 2), ("msa", 48, 1, 2),
    ]  # fmt: skip
    groups = kin(found("detr", TORCHSCRIPT[-1]).table.sites)
    assert sorted((g.kind, len(g.towers), g.sites) for g in groups) == [("ffn", 2, 4), ("msa", 3, 6)]


def test_numbers_of_a_name_are_stars() -> None:
    assert tower_of("backbone.0.layers.11.attn") == "backbone.*.layers.*.attn"
