"""Which sites may share weight vectors: those of one kind whose vectors have one length, within a tower and across towers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inarch.structure.sites import Site


@dataclass(frozen=True, eq=False)
class Kin:
    """Sites that may share with each other.

    Attributes:
        kind: ``msa`` or ``ffn``.
        lengths: length of the weight vectors, by role; one number where all are equal.
        towers: pattern of names that differ in numbers only -> its sites, in model order. Sites of one tower share layer-wise,
            those of different towers across.
    """

    kind: str
    lengths: Mapping[str, int]
    towers: Mapping[str, tuple[Site, ...]]

    @property
    def sites(self) -> int:
        """How many sites."""
        return sum(len(sites) for sites in self.towers.values())


def tower_of(name: str) -> str:
    """The pattern of a site's name: its numbers are stars."""
    return re.sub(r"\d+", "*", name)


def kin(sites: Sequence[Site]) -> list[Kin]:
    """Group sites by kind and vector lengths, in the order of their first members; who may share with none stands alone."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        groups.setdefault((site.kind, *sorted(_lengths(site).items())), []).append(site)
    found = []
    for members in groups.values():
        towers: dict[str, list[Site]] = {}
        for site in members:
            towers.setdefault(tower_of(site.name), []).append(site)
        found.append(Kin(members[0].kind, _lengths(members[0]), {name: tuple(own) for name, own in towers.items()}))
    return found


def _lengths(site: Site) -> dict[str, int]:
    return {member.role: member.width for member in site.members.values() if member.is_matrix}
