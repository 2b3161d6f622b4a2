"""Who may share with whom."""

from __future__ import annotations

import pytest

from inarch.learning.families import Family, Sharing, chosen, families, modality, sharers, usable
from inarch.learning.gates import GateSpace
from inarch.structure.demand import unit_axes
from inarch.structure.errors import InarchError
from inarch.structure.planners.weights import tied_sites
from inarch.structure.sites import SiteTable

from tests.learning.tables import ffn, glip_like, mdetr_like, msa, odd_ones, splits, table_of, tied

TABLES = {"mdetr": mdetr_like(), "narrow": mdetr_like(width=32, inner=16), "glip": glip_like(), "odd": odd_ones(), "tied": tied()}
SHARING: tuple[Sharing, ...] = ("joint", "cross", "layer", "none")


@pytest.mark.parametrize("block", [1, 2, 3, 12])
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("name", TABLES)
def test_families_are_apart_and_of_equal_sites(name: str, sharing: Sharing, block: int) -> None:
    table = TABLES[name]
    found = families(table, sharing, block)
    members = [site for family in found for site in (family.base, *family.readers)]
    assert len(members) == len(set(members)), "a site in two families could make a cycle"
    assert not set(members) & tied_sites(table)
    assert all(family.readers for family in found)
    order = [site.name for site in table.sites]
    assert [order.index(family.base) for family in found] == sorted(order.index(family.base) for family in found)
    for family in found:
        base = table[family.base]
        for reader in (table[name] for name in family.readers):
            assert (reader.kind, reader.sizes, reader.uniform) == (base.kind, base.sizes, base.uniform)
            assert reader.frozen == base.frozen
            for axis in unit_axes(base):
                vectors = [
                    sorted((m.role, m.size, m.width, len(m.factors)) for m in s.on(axis) if m.is_matrix) for s in (base, reader)
                ]
                assert vectors[0] == vectors[1]


def test_nothing_is_shared_where_nothing_may_be() -> None:
    assert families(TABLES["mdetr"], "none") == []


def kinds(table: SiteTable, sharing: Sharing, block: int) -> dict[str, tuple[str, ...]]:
    return {family.base: family.readers for family in families(table, sharing, block)}


TEXT, VISION = "transformer.text_encoder.encoder.layer", "backbone.0.body.layers"
ENCODER, DECODER = "transformer.encoder.layers", "transformer.decoder.layers"


def test_families_can_be_chosen() -> None:
    table = TABLES["mdetr"]
    wanted = {
        f"{VISION}.1.mlp": [f"{TEXT}.0.ffn", f"{VISION}.0.mlp"],
        f"{TEXT}.0.attention": [f"{TEXT}.3.attention"],
        f"{TEXT}.1.ffn": [],
    }
    found = chosen(table, wanted)
    assert found == [
        Family(f"{VISION}.1.mlp", (f"{TEXT}.0.ffn", f"{VISION}.0.mlp")),
        Family(f"{TEXT}.0.attention", (f"{TEXT}.3.attention",)),
    ]
    GateSpace(table, found)


@pytest.mark.parametrize(
    ("name", "wanted", "message", "hint"),
    [
        ("mdetr", {f"{TEXT}.0.fn": [f"{TEXT}.1.ffn"]}, "is no site of this model", f"did you mean '{TEXT}.0.ffn'"),
        ("mdetr", {f"{TEXT}.0.ffn": [f"{TEXT}.1.attention"]}, "is not alike", None),
        ("narrow", {f"{TEXT}.0.ffn": [f"{ENCODER}.0.ffn"]}, "is not alike", "lengths of vectors"),
        ("mdetr", {f"{TEXT}.0.ffn": [f"{TEXT}.0.ffn"]}, "is in two families", "none itself"),
        ("mdetr", {f"{TEXT}.0.ffn": [f"{TEXT}.1.ffn"], f"{TEXT}.1.ffn": [f"{TEXT}.2.ffn"]}, "is in two families", "none itself"),
        ("mdetr", {f"{TEXT}.0.ffn": [f"{TEXT}.2.ffn"], f"{TEXT}.1.ffn": [f"{TEXT}.2.ffn"]}, "is in two families", "one base"),
    ],
)
def test_families_that_cannot_be(name: str, wanted: dict[str, list[str]], message: str, hint: str | None) -> None:
    with pytest.raises(InarchError, match=message) as caught:
        chosen(TABLES[name], wanted)
    assert caught.value.where == "structure.families"
    assert hint is None or hint in str(caught.value.hint)


def test_tied_sites_are_in_no_family() -> None:
    table = TABLES["tied"]
    bound = sorted(tied_sites(table))
    free = next(site.name for site in table.sites if site.name not in bound)
    with pytest.raises(InarchError, match="tied already"):
        chosen(table, {free: [bound[0]]})


def test_jointly_both_backbones_read_the_first_text_layer_of_their_block() -> None:
    found = kinds(TABLES["mdetr"], "joint", 2)
    assert found[f"{TEXT}.0.ffn"] == (f"{TEXT}.1.ffn", f"{VISION}.0.mlp", f"{VISION}.1.mlp")
    assert found[f"{TEXT}.2.attention"] == (f"{TEXT}.3.attention", f"{VISION}.2.attn", f"{VISION}.3.attn")
    assert found[f"{DECODER}.0.cross_attn_image"] == (f"{DECODER}.1.cross_attn_image",)
    assert found[f"{ENCODER}.0.ffn"] == (f"{ENCODER}.1.ffn",)
    assert len(found) == 4 + 5


def test_heads_may_differ_where_they_are_free() -> None:
    found = kinds(splits(96, 4, 6), "cross", 2)
    assert found == {f"text.layer.{n}.attn": (f"vision.layer.{n}.attn",) for n in range(3)}
    why = "an operator without a rule runs over it"
    for bound in ({"frozen": {"head": why}}, {"uniform": True}, {"group": 2}):
        for heads, together in ((6, False), (4, True)):
            text = [msa(f"text.layer.{n}.attn", 96, 4, 24, **bound) for n in range(2)]
            vision = [msa(f"vision.layer.{n}.attn", 96, heads, 96 // heads, **bound) for n in range(2)]
            assert bool(kinds(table_of([*text, *vision]), "cross", 2)) is together, bound


@pytest.mark.parametrize("vision", [4, 6], ids=["heads alike", "heads that differ"])
def test_heads_are_bound_only_for_what_is_shared(vision: int) -> None:
    table = splits(96, 4, vision)
    found = families(table, "joint", 2)
    attention = [family for family in found if family.base.endswith("attn")]
    assert attention
    assert sharers(table, found, ("hidden",)) == [one for one in found if one not in attention]
    assert sharers(table, found, ("hidden", "qk")) == found
    assert sharers(table, found, ()) == found, "where nothing is filled, gates of sharing may share anything"


def test_across_a_vision_layer_reads_the_text_layer_at_its_depth_alone() -> None:
    found = kinds(TABLES["mdetr"], "cross", 2)
    pairs = {f"{TEXT}.{n}.{text}": (f"{VISION}.{n}.{vision}",) for n in range(4) for text, vision in PAIRS}
    assert found == pairs


PAIRS = (("attention", "attn"), ("ffn", "mlp"))


def test_across_towers_of_different_depths_the_relative_depth_counts() -> None:
    vision = [ffn(f"backbone.layers.{n}.mlp", 8, 32) for n in range(6)]
    text = [ffn(f"text.layer.{n}.ffn", 8, 32) for n in range(3)]
    found = kinds(table_of([*vision, *text]), "cross", 2)
    assert found == {
        f"text.layer.{n}.ffn": (f"backbone.layers.{2 * n}.mlp", f"backbone.layers.{2 * n + 1}.mlp") for n in range(3)
    }
    few = kinds(table_of([*vision[:1], *text]), "joint", 2)
    assert few == {"text.layer.0.ffn": ("text.layer.1.ffn", "backbone.layers.0.mlp")}


@pytest.mark.parametrize(("block", "families_a_tower"), [(1, 0), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_by_layers_every_tower_is_cut_into_blocks(block: int, families_a_tower: int) -> None:
    found = kinds(TABLES["mdetr"], "layer", block)
    for tower in (TEXT, VISION):
        mine = {base: readers for base, readers in found.items() if base.startswith(tower)}
        assert len(mine) == 2 * families_a_tower
        assert all(reader.startswith(tower) for readers in mine.values() for reader in readers)
        assert all(len(readers) < block for readers in mine.values())


@pytest.mark.parametrize("sharing", ["joint", "cross"])
def test_bases_are_text_and_what_comes_after_stands_alone(sharing: Sharing) -> None:
    for base, readers in kinds(TABLES["mdetr"], sharing, 2).items():
        towers = {modality(name) for name in (base, *readers)}
        if towers & {"text", "vision"}:
            assert modality(base) == "text"
            assert "both" not in towers
        else:
            assert len({name.split(".")[1] for name in (base, *readers)}) == 1


def test_widths_that_differ_share_inside_their_tower_alone() -> None:
    found = kinds(TABLES["glip"], "joint", 2)
    # Of three stages only the one of the text's width, and with its number of heads, reads text.
    across = {base: readers for base, readers in found.items() if modality(base) == "text"}
    assert {reader for readers in across.values() for reader in readers if modality(reader) == "vision"} == {
        f"backbone.body.layers.{stage}.blocks.{n}.{part}" for stage in (1, 2) for n in range(2) for part in ("attn", "mlp")
    }
    # Of the widest and the narrowest stage two layers make a family.
    assert found["backbone.body.layers.3.blocks.0.attn"] == ("backbone.body.layers.3.blocks.1.attn",)


def test_modality_is_read_from_names() -> None:
    assert modality("transformer.text_encoder.encoder.layer.3.attention") == "text"
    assert modality("language_backbone.body.model.encoder.layer.0.ffn") == "text"
    assert modality("backbone.0.body.layers.1.mlp") == "vision"
    assert modality("transformer.decoder.layers.0.cross_attn_image") == "both"
    assert modality("transformer.encoder.layers.0.ffn") == "both"
    assert modality("rpn.head.dyhead_tower.0.b_attn.attn") == "both"


def test_tied_sites_are_left_alone() -> None:
    assert [site.name for site in usable(TABLES["tied"])] == ["text.layer.1.ffn", "text.layer.2.ffn"]


def test_who_carries_more_along_or_is_less_free_is_no_relative() -> None:
    plain = [msa(f"text.layer.{n}.attn", 24, 2, 8) for n in range(2)]
    others = [
        msa("text.layer.2.attn", 24, 2, 8, frozen={"qk": "a norm"}),
        msa("text.layer.3.attn", 24, 2, 8, uniform=True),
        msa("text.layer.4.attn", 24, 2, 8, group=2),
    ]
    found = kinds(table_of([*plain, *others]), "layer", 9)
    assert found == {"text.layer.0.attn": ("text.layer.1.attn",)}
