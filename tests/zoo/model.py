"""What a builder of the zoo returns, and the comparison of a discovery with what the builder knows to be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.structure.sites import MATRIX_ROLES, Kind, Site, SiteTable

Inputs = dict[str, npt.NDArray[Any]]
MakeInputs = Callable[[np.random.Generator, int], Inputs]


@dataclass(frozen=True)
class ExpectedSite:
    """A site that the builder wrote into the graph.

    Attributes:
        kind: ``ffn`` or ``msa``.
        params: role of a weight matrix -> name of its parameter.
        sizes: factor -> size, as ``Site.sizes`` without what is carried along (``group``, ``pair``).
        calls: call-sites.
        frozen: factors that nothing may change.
        unsure: factors that may be free or frozen: the design leaves it to the lowering (rotary pairs, a table that several
            sites share). Their size is compared only where they are free.
    """

    kind: Kind
    params: Mapping[str, str]
    sizes: Mapping[str, int]
    calls: int = 1
    frozen: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()

    @property
    def key(self) -> frozenset[tuple[str, str]]:
        """Identity of the site: its matrices by role; which of two value paths comes first is not part of it."""
        return _key(self.params)

    @property
    def fully_frozen(self) -> bool:
        """Whether nothing of it can change, so that leaving it out of the table is as good as listing it frozen."""
        return self.frozen >= set(self.sizes) or (self.frozen >= {"qk", "vo"})


def _key(params: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    if "v2" not in params:
        return frozenset(params.items())
    paths = sorted((params[v], params[o]) for v, o in (("v", "o"), ("v2", "o2")))
    scores = sorted((params["q"], params["k"]))
    return frozenset([("q", scores[0]), ("k", scores[1]), *((f"path {v}", o) for v, o in paths)])


@dataclass(frozen=True)
class ZooModel:
    """A small model with random weights, and what is known about it.

    Attributes:
        model: the graph.
        form: name of the builder.
        expected: its sites, in the order in which they were written.
        make_inputs: (rng, case) -> inputs; cases differ in their dynamic dimensions.
        cases: number of cases; the last one may mask whole rows.
        notes: the options that were drawn.
        loose: parameters whose sites are not compared (a tie of a part of the members).
        runnable: whether ONNX Runtime knows all its operators.
    """

    model: ir.Model
    form: str
    expected: tuple[ExpectedSite, ...]
    make_inputs: MakeInputs
    cases: int = 3
    notes: Mapping[str, Any] = field(default_factory=dict)
    loose: frozenset[str] = frozenset()
    runnable: bool = True

    def inputs(self, rng: np.random.Generator, case: int) -> Inputs:
        """Inputs of one case, name -> array."""
        return self.make_inputs(rng, case)


def matrices(site: Site) -> dict[str, str]:
    """Role -> parameter of a site's weight matrices."""
    return {role: member.param for role, member in site.members.items() if role in MATRIX_ROLES}


def differences(zoo: ZooModel, table: SiteTable) -> list[str]:
    """What a discovery got wrong, one sentence each; empty where it found exactly the expected sites."""
    wrong: list[str] = []
    expected = {site.key: site for site in zoo.expected}
    seen: set[frozenset[tuple[str, str]]] = set()
    for site in table.sites:
        params = matrices(site)
        if zoo.loose & set(params.values()):
            continue
        key = _key(params)
        if key not in expected:
            wrong.append(f"{site.name} is no site of the model: {params}")
            continue
        seen.add(key)
        wrong += _compare(site, expected[key])
    rejected = {param for rejection in table.rejected for param in rejection.params}
    for key, want in expected.items():
        if key in seen:
            continue
        if not want.fully_frozen:
            wrong.append(f"{want.kind} {dict(want.params)} was not found; rejected: {_reasons(table, want)}")
        elif not set(want.params.values()) & rejected:
            wrong.append(f"{want.kind} {dict(want.params)} is frozen, and neither listed nor rejected with a reason")
    return wrong


def _reasons(table: SiteTable, want: ExpectedSite) -> list[str]:
    params = set(want.params.values())
    return [rejection.reason for rejection in table.rejected if params & set(rejection.params)]


def _compare(site: Site, want: ExpectedSite) -> list[str]:
    wrong: list[str] = []
    if site.kind != want.kind:
        wrong.append(f"{site.name} is {site.kind}, expected {want.kind}")
    if site.calls != want.calls:
        wrong.append(f"{site.name} has {site.calls} calls, expected {want.calls}")
    paths = {"vo", "vo2"} if "vo2" in want.sizes else set()
    for factor, size in want.sizes.items():
        frozen = site.frozen.get(factor)
        if factor in want.frozen:
            if frozen is None:
                wrong.append(f"{site.name}: {factor} has to be frozen")
        elif frozen is not None:
            if factor not in want.unsure:
                wrong.append(f"{site.name}: {factor} is frozen: {frozen}")
        elif factor not in paths and site.sizes.get(factor) != size:
            wrong.append(f"{site.name}: {factor} is {site.sizes.get(factor)}, expected {size}")
    extra = set(site.sizes) & {"hidden", "head", "qk", "vo", "vo2"} - set(want.sizes)
    if extra:
        wrong.append(f"{site.name} has unexpected factors {sorted(extra)}")
    if paths and sorted(site.sizes.get(p, 0) for p in paths) != sorted(want.sizes[p] for p in paths):
        wrong.append(f"{site.name}: value paths {dict(site.sizes)}, expected {dict(want.sizes)}")
    return wrong
