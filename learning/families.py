"""Who may share with whom while the structure is learned: families of one base and its readers.

The text backbone is the base (ours, see the method's notes): both backbones are cut into as many blocks of layers, and in a block
every layer reads from the block's first text layer, index by index. So all reader sets of a base can be nested, and sharing is
acyclic. What stands outside the backbones (encoder, decoder, fusion) shares inside its own tower alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from inarch.structure.demand import unit_axes
from inarch.structure.errors import InarchError
from inarch.structure.kinship import kin
from inarch.structure.legalise import in_head_common
from inarch.structure.planners.weights import overlapping, tied_sites
from inarch.structure.sites import AXIS_FACTORS, Site, SiteTable

Sharing = Literal["joint", "cross", "layer", "none"]
"""``joint`` shares across modalities and inside blocks, ``cross`` and ``layer`` one of the two."""

_TEXT = re.compile(r"text|language|bert", re.IGNORECASE)
_VISION = re.compile(r"vision|visual|image|(^|\.)backbone", re.IGNORECASE)

Modality = Literal["text", "vision", "both"]


def modality(name: str) -> Modality:
    """Which backbone a site lies in, by its name; ``both`` for what comes after them."""
    # Cross-attention to an image is a decoder's, whatever it is called.
    head = name.split("cross_attn")[0]
    if re.search(r"(^|\.)(decoder|dyhead_tower|rpn)\.|^transformer\.encoder\.", head):
        return "both"
    if _TEXT.search(head):
        return "text"
    return "vision" if _VISION.search(head) else "both"


@dataclass(frozen=True)
class Family:
    """A base and those that may read its units: names of sites."""

    base: str
    readers: tuple[str, ...]


def usable(table: SiteTable) -> list[Site]:
    """Sites that learning may change: those that hold no weight together with another member, and no bias with another site.

    The compiler gives each of two sites a bias of its own where they come to differ; a module has one for both.
    """
    shared = {pair for pair in overlapping(table, lambda member: member.is_bias) if pair[0] != pair[1]}
    tied = tied_sites(table).union(*shared)
    return [site for site in table.sites if site.name not in tied]


def families(table: SiteTable, sharing: Sharing = "joint", block: int = 2) -> list[Family]:
    """Group sites into families.

    Only sites with as many units, vectors as long, carrying the same along, and of equal freedom are together. Their heads may
    differ where heads are free: 24 heads of 32 units share with 12 of 64 in blocks of 32.

    Args:
        table: the model's sites.
        sharing: what may be shared.
        block: layers of the text backbone in a block; other towers are cut into as many blocks as it has, or, where they share
            among themselves, into blocks of this size.
    """
    result: list[Family] = []
    if sharing == "none":
        return result
    for group in kin(usable(table)):
        alike: dict[object, list[tuple[Site, ...]]] = {}
        for tower in group.towers.values():
            kinds: dict[object, list[Site]] = {}
            for site in tower:
                kinds.setdefault(_likeness(site), []).append(site)
            for kind, sites in kinds.items():
                alike.setdefault(kind, []).append(tuple(sites))
        for towers in alike.values():
            result += _of_towers(towers, sharing, block)
    order = {site.name: number for number, site in enumerate(table.sites)}
    return sorted(result, key=lambda family: order[family.base])


def chosen(table: SiteTable, wanted: Mapping[str, Sequence[str]], axes: Collection[str] = ()) -> list[Family]:
    """Families as somebody wants them.

    Args:
        table: the model's sites.
        wanted: base -> those that may read from it, by the names of their sites.
        axes: names of the axes whose slots are filled; none where there are gates of sharing.

    Raises:
        InarchError: there is no such site, or its weights are tied, or a reader is unlike its base, or has two, or is one itself,
            or nothing of a family is filled.
    """
    known, free = {site.name: site for site in table.sites}, {site.name for site in usable(table)}
    taken: set[str] = set()

    def refuse(name: str, reason: str, hint: str | None = None) -> InarchError:
        return InarchError(f"{name!r} {reason}", where="structure.families", hint=hint)

    for base, readers in wanted.items():
        for name in (base, *readers):
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise refuse(
                    name, "is no site of this model", f"did you mean {near[0]!r}?" if near else "inarch inspect lists them"
                )
            if name not in free:
                raise refuse(name, "has weights that are tied already")
        for name in readers:
            if name in taken or name in wanted:
                raise refuse(name, "is in two families", "a reader has one base, and is none itself")
            taken.add(name)
            if _likeness(known[name]) != _likeness(known[base]):
                hint = "units, lengths of vectors and what is frozen must be equal, and heads that are bound"
                raise refuse(name, f"is not alike {base!r}", hint)
        if readers and axes and not _has(known[base], axes):
            hint = "set structure.fill to all, or to none for gates of sharing"
            raise refuse(base, f"would share nothing: what is filled is {', '.join(axes)}", hint)
    return [Family(base, tuple(readers)) for base, readers in wanted.items() if readers]


def sharers(table: SiteTable, found: Sequence[Family], axes: Collection[str]) -> list[Family]:
    """Families without those that could share nothing: they would only have their attentions lose heads together.

    Args:
        table: the model's sites.
        found: families.
        axes: names of the axes whose slots are filled; none where there are gates of sharing, for every axis.
    """
    return [family for family in found if not axes or _has(table[family.base], axes)]


def _has(site: Site, axes: Collection[str]) -> bool:
    return any(axis in axes for axis in unit_axes(site))


def _likeness(site: Site) -> object:
    """What must be equal for two sites' units to pair up by their numbers, whatever is pruned of either."""
    spanning = {factor for factors in AXIS_FACTORS.values() for factor in factors}
    carried = tuple(
        (member.role, member.width, tuple((name, size) for name, size in member.factors if name not in spanning))
        for member in sorted((m for m in site.members.values() if m.is_matrix), key=lambda m: m.role)
    )
    uniform = tuple(in_head_common(site, name) for name in unit_axes(site))
    free = not site.frozen and not any(uniform) and not any(factors for _, _, factors in carried)
    sizes = {name: site.axes[name].size for name in unit_axes(site)} if free else site.sizes
    return tuple(sorted(sizes.items())), carried, tuple(sorted(site.frozen)), uniform


def _of_towers(towers: Sequence[tuple[Site, ...]], sharing: Sharing, block: int) -> list[Family]:
    """Families among towers of one kind and size."""
    text = [tower for tower in towers if modality(tower[0].name) == "text"]
    vision = [tower for tower in towers if modality(tower[0].name) == "vision"]
    result: list[Family] = []
    paired: list[tuple[Site, ...]] = []
    if text and vision and sharing != "layer":
        base, paired = text[0], [text[0], *vision]
        runs = len(base) if sharing == "cross" else -(-len(base) // block)
        for run in range(runs):
            members = [site for tower in paired for site in _run(tower, run, runs)]
            if sharing == "cross":
                members = [_run(base, run, runs)[0], *(site for tower in vision for site in _run(tower, run, runs))]
            result += _family(members)
    if sharing != "cross":
        for tower in towers:
            if tower not in paired:
                runs = -(-len(tower) // block)
                for run in range(runs):
                    result += _family(_run(tower, run, runs))
    return result


def _run(tower: Sequence[Site], run: int, runs: int) -> list[Site]:
    """The sites of one of ``runs`` blocks of neighbouring layers, equal but for one."""
    return [site for place, site in enumerate(tower) if place * runs // len(tower) == run]


def _family(members: Sequence[Site]) -> list[Family]:
    return [Family(members[0].name, tuple(site.name for site in members[1:]))] if len(members) > 1 else []
