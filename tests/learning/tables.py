"""Tables of sites made by hand, of any size and without an export, and modules that hold their parameters and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from inarch.learning.gates import GateSpace
from inarch.structure.demand import Coverage
from inarch.structure.sites import Member, Site, SiteTable

Floats = npt.NDArray[np.float32]


def ffn(name: str, width: int, hidden: int, *, gated: bool = False, scale: bool = False) -> Site:
    """Linear layers as torch stores them; with ``scale`` one number a hidden unit, which no sharing touches."""
    axis = (("hidden", hidden),)
    members = [
        Member("up", f"{name}.up.weight", 0, 0, (hidden, width), axis, True),
        Member("up_bias", f"{name}.up.bias", 0, 0, (hidden,), axis),
        Member("down", f"{name}.down.weight", 1, 0, (width, hidden), axis, True),
    ]
    if gated:
        members.append(Member("gate", f"{name}.gate.weight", 0, 0, (hidden, width), axis, True))
    if scale:
        members.append(Member("rider:0", f"{name}.scale", 0, 0, (hidden,), axis))
    return Site(name, "ffn", {member.role: member for member in members}, {"hidden": hidden})


def msa(
    name: str,
    width: int,
    heads: int,
    qk: int,
    vo: int | None = None,
    *,
    packed: bool = False,
    table: int = 0,
    group: int = 1,
    frozen: Mapping[str, str] | None = None,
    uniform: bool = False,
) -> Site:
    """An attention.

    Args:
        name: of the site and of its parameters.
        width: of the residual stream.
        heads: key/value heads.
        qk: units a head.
        vo: the same of the value axis; ``qk`` where it is not given.
        packed: q, k and v are rows of one matrix.
        table: rows of a position-bias table [rows, heads]; 0 for none.
        group: query heads to a key/value head.
        frozen: factor -> why.
        uniform: whether a table [qk] runs over the units of all heads, and all heads keep the same.
    """
    value = qk if vo is None else vo
    factors: dict[str, tuple[tuple[str, int], ...]] = {
        "q": (("head", heads), ("group", group), ("qk", qk)) if group > 1 else (("head", heads), ("qk", qk)),
        "k": (("head", heads), ("qk", qk)),
        "v": (("head", heads), ("vo", value)),
    }
    rows = {role: int(np.prod([size for _, size in own])) for role, own in factors.items()}
    whole, start = sum(rows.values()), 0
    members: list[Member] = []
    for role, own in factors.items():
        if packed:
            members.append(Member(role, f"{name}.in_proj_weight", 0, start, (whole, width), own, True))
            members.append(Member(f"{role}_bias", f"{name}.in_proj_bias", 0, start, (whole,), own))
            start += rows[role]
        else:
            members.append(Member(role, f"{name}.{role}.weight", 0, 0, (rows[role], width), own, True))
            members.append(Member(f"{role}_bias", f"{name}.{role}.bias", 0, 0, (rows[role],), own))
    out = (("head", heads), ("group", group), ("vo", value)) if group > 1 else (("head", heads), ("vo", value))
    members.append(Member("o", f"{name}.o.weight", 1, 0, (width, heads * group * value), out, True))
    if table:
        members.append(Member("rider:0", f"{name}.table", 1, 0, (table, heads), (("head", heads),)))
    if uniform:
        members.append(Member("rider:1", f"{name}.rotary", 0, 0, (qk,), (("qk", qk),)))
    return Site(
        name,
        "msa",
        {member.role: member for member in members},
        {"head": heads, "qk": qk, "vo": value},
        frozen or {},
        uniform=frozenset({"qk"}) if uniform else frozenset(),
    )


def two_way(name: str, widths: tuple[int, int], heads: int, dim: int) -> Site:
    """BiMultiHeadAttention: one score and two value paths, between streams of two widths; one scale for all heads."""
    units = {"qk": (("head", heads), ("qk", dim)), "vo": (("head", heads), ("vo", dim)), "vo2": (("head", heads), ("vo2", dim))}
    one, two = widths
    inside = heads * dim
    members = [
        Member("q", f"{name}.q", 0, 0, (inside, one), units["qk"], True),
        Member("q_bias", f"{name}.q_bias", 0, 0, (inside,), units["qk"]),
        Member("k", f"{name}.k", 0, 0, (inside, two), units["qk"], True),
        Member("v", f"{name}.v", 0, 0, (inside, one), units["vo"], True),
        Member("o", f"{name}.o", 1, 0, (two, inside), units["vo"], True),
        Member("v2", f"{name}.v2", 0, 0, (inside, two), units["vo2"], True),
        Member("o2", f"{name}.o2", 1, 0, (one, inside), units["vo2"], True),
        Member("rider:0", f"{name}.scale", 0, 0, (3,), (("any", 3),)),
    ]
    return Site(name, "msa", {member.role: member for member in members}, {"head": heads, "qk": dim, "vo": dim, "vo2": dim})


def table_of(sites: Sequence[Site], around: int = 1000) -> SiteTable:
    """A table of these sites and so many numbers around them; what several members lie over counts once."""
    coverage = Coverage()
    for site in sites:
        for member in site.members.values():
            coverage.add(member, member.positions)
    total = coverage.total + around
    return SiteTable(tuple(sites), (), total, 4 * total)


def mdetr_like(
    width: int = 32, heads: int = 4, hidden: int = 64, layers: int = 4, fused: int = 2, *, inner: int = 0, around: int = 1000
) -> SiteTable:
    """The sites of an MDETR with a ViT under their names there; ``inner`` is the width of encoder and decoder."""
    inner = inner or width
    sites: list[Site] = []
    for number in range(layers):
        name = f"backbone.0.body.layers.{number}"
        sites += [msa(f"{name}.attn", width, heads, width // heads, packed=True), ffn(f"{name}.mlp", width, hidden)]
    for number in range(layers):
        name = f"transformer.text_encoder.encoder.layer.{number}"
        sites += [msa(f"{name}.attention", width, heads, width // heads), ffn(f"{name}.ffn", width, hidden)]
    for stack, kinds in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "cross_attn_image"))):
        for number in range(fused):
            name = f"transformer.{stack}.layers.{number}"
            sites += [msa(f"{name}.{kind}", inner, heads, inner // heads, packed=True) for kind in kinds]
            sites.append(ffn(f"{name}.ffn", inner, hidden))
    return table_of(sites, around)


def glip_like() -> SiteTable:
    """The sites of a GLIP: Swin stages of several widths with tables over heads, text, two-way attention, gated units."""
    sites: list[Site] = []
    for stage, (width, heads) in enumerate(((16, 1), (32, 2), (32, 2), (64, 4))):
        for number in range(2):
            name = f"backbone.body.layers.{stage}.blocks.{number}"
            sites += [
                msa(f"{name}.attn", width, heads, 16, packed=True, table=49),
                ffn(f"{name}.mlp", width, 4 * width, scale=stage > 1),
            ]
    for number in range(3):
        name = f"language_backbone.body.model.encoder.layer.{number}"
        sites += [msa(f"{name}.attention", 32, 2, 16), ffn(f"{name}.ffn", 32, 128)]
    for number in range(2):
        name = f"rpn.head.dyhead_tower.{number}"
        sites += [two_way(f"{name}.b_attn.attn", (16, 32), 2, 32), ffn(f"{name}.ffn", 32, 64, gated=True)]
    return table_of(sites)


def odd_ones() -> SiteTable:
    """Grouped queries, rotary tables, frozen axes and heads, heads of odd sizes, one table and one bias read by two sites."""
    why = "an operator without a rule runs over it"
    sites = [
        *(msa(f"text.layer.{n}.attn", 24, 3, 8, 12, group=2) for n in range(3)),
        *(msa(f"text.layer.{n}.rotary", 24, 4, 16, 8, uniform=True) for n in range(2)),
        *(msa(f"text.layer.{n}.normed", 24, 2, 16, frozen={"qk": why}) for n in range(2)),
        *(msa(f"vision.layer.{n}.fixed", 24, 4, 20, frozen={"head": why}) for n in range(2)),
        *(msa(f"vision.layer.{n}.valued", 24, 2, 32, 24, frozen={"vo": why}) for n in range(2)),
        *(msa(f"vision.layer.{n}.prime", 24, 5, 7, 40, table=9) for n in range(2)),
        *(ffn(f"text.layer.{n}.ffn", 24, 72, gated=True) for n in range(5)),
        ffn("vision.layer.0.ffn", 24, 72, gated=True),
    ]
    one, two = (replace(sites[n].members["rider:0"], param="vision.layer.table") for n in (-8, -7))
    sites[-8] = replace(sites[-8], members={**sites[-8].members, "rider:0": one})
    sites[-7] = replace(sites[-7], members={**sites[-7].members, "rider:0": two})
    tied = replace(sites[-5].members["up_bias"], param=sites[-4].members["up_bias"].param)
    sites[-5] = replace(sites[-5], members={**sites[-5].members, "up_bias": tied})
    return table_of(sites)


def splits(width: int, text: int, vision: int, layers: int = 3, table: int = 9) -> SiteTable:
    """Two towers with so many heads of one width in all; the images' have tables of so many rows over theirs."""
    return table_of(
        [
            *(msa(f"text.layer.{n}.attn", width, text, width // text) for n in range(layers)),
            *(msa(f"vision.layer.{n}.attn", width, vision, width // vision, packed=True, table=table) for n in range(layers)),
            *(ffn(f"text.layer.{n}.ffn", width, 64) for n in range(2)),
        ]
    )


def tied() -> SiteTable:
    """Two pairs of sites, one of which holds its matrices together."""
    first, second = ffn("text.layer.0.ffn", 16, 64), ffn("text.layer.1.ffn", 16, 64)
    return table_of([first, replace(first, name="text.layer.9.ffn"), second, ffn("text.layer.2.ffn", 16, 64)])


class Bare(nn.Module):
    """Parameters by their names, and no forward pass."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in parameters.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for step in path:
                if step not in place._modules:
                    place.add_module(step, nn.Module())
                place = place.get_submodule(step)
            place.register_parameter(last, nn.Parameter(value))


def bare(table: SiteTable, seed: int = 0) -> Bare:
    """A module with random parameters for every member of a table."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {member.param: member.shape for site in table.sites for member in site.members.values()}
    return Bare({name: torch.randn(shape, generator=rng) for name, shape in shapes.items()})


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, detached."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


@st.composite
def drawn_logits(draw: st.DrawFn, space: GateSpace) -> Tensor:
    """Logits with units, whole axes and whole heads that lean either way."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    keep, share, head = (draw(st.floats(-3, 3)) for _ in range(3))
    leaning = draw(st.sampled_from([0.0, 2.0]))
    logits = rng.normal(size=space.logits) + space.offsets(keep, share, head).numpy()
    for spec in space.axes.values():
        logits[spec.keep] += leaning * rng.normal()
        if spec.share is not None:
            logits[spec.share] += leaning * rng.normal()
    return torch.from_numpy(logits.astype(np.float32))
