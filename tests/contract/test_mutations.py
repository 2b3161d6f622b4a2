"""Each lowering, broken on purpose, is caught: by a difference to the reference, or by a refusal.

One thing is broken at a time, in the compiler alone; the reference is computed before. The plans are those of the contract
(:mod:`tests.contract.test_equivalence`), which pass as long as nothing is broken, so that what is caught here would be caught
there. The reference itself is held against the plan taken word for word.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from inarch.compiler import compile as compiling
from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.compiler.values import SiteValues
from inarch.structure.discover import discover
from inarch.structure.errors import InarchError
from inarch.structure.lowered import ResolvedPlan
from inarch.structure.plan import Plan
from inarch.structure.resolve import resolve

from tests.contract.literal import wrong_values
from tests.contract.mutations import (
    MUTATIONS,
    Break,
    Patch,
    chains_are_not_followed,
    pruned_heads_stay,
    pruned_units_keep_their_biases,
    pruned_units_keep_their_values,
    readers_keep_their_own_vectors,
    units_of_other_heads_are_misread,
)
from tests.contract.test_equivalence import MODELS, SMALL_COST, Pair, model_of, pairs_of
from tests.zoo import ZooModel
from tests.zoo.check import Outputs, inputs_of, mismatches, ort, run_all
from tests.zoo.plans import random_plan

REFUSALS = (InarchError, *(error for name in ("Fail", "InvalidArgument", "InvalidGraph", "RuntimeException", "NotImplemented")
                           if (error := getattr(ort.capi.onnxruntime_pybind11_state, name, None)) is not None))  # fmt: skip
"""What a broken compiler may end in: its own verifier, or ONNX Runtime that does not take the model."""


@cache
def truth(form: str, seed: int, number: int) -> tuple[Pair, dict[str, list[Outputs]]]:
    """A pair of the contract, and what the reference computes."""
    zoo, discovery = model_of(form, seed)
    pair = pairs_of(form, seed)[number]
    applied = apply_by_values(discovery.model, discovery.table, resolve(pair.plan, discovery.table), discovery.uses)
    return pair, run_all(carry_over(applied, discovery.model, zoo.model), inputs_of(zoo, pair.seed))


def caught(zoo: ZooModel, pair: Pair, wanted: dict[str, list[Outputs]]) -> str:
    """What tells that the compiler is broken, on one pair; empty where nothing does."""
    try:
        result = compile_model(zoo.model, pair.plan, None, cost=SMALL_COST, prefer=pair.prefer)
        held = discover(result.model).table.parameters
        if held > result.lowered.stored:
            return f"{held} numbers for {result.lowered.stored}"
        return next(iter(mismatches(wanted, run_all(result.model, inputs_of(zoo, pair.seed)))), "")
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}"


def pairs(forms: tuple[str, ...]) -> Iterator[tuple[ZooModel, Pair, dict[str, list[Outputs]]]]:
    for form in forms:
        for seed in range(MODELS[form]):
            for number in range(len(pairs_of(form, seed))):
                yield model_of(form, seed)[0], *truth(form, seed, number)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_broken_lowering_is_caught(mutation: Break, monkeypatch: Patch) -> None:
    for zoo, pair, wanted in pairs(MUTATIONS[mutation]):
        with monkeypatch.context() as patch:
            mutation(patch)
            if caught(zoo, pair, wanted):
                return
    pytest.fail("no plan of the contract shows it")


# ---- the reference itself ------------------------------------------------------------------------------------------------
VALUES = {
    "decoder_in_proj": ("share-chain", "prune-all"),
    "gqa": ("share-heads", "share-inside-pruned"),
    "head_splits": ("share-blocks", "share-pairing"),
    "packed_bloom": ("share-prefix-pruned", "empty-heads"),
    "rotary_half": ("share-inside", "prune-inside-common"),
    "swiglu_split": ("share-chain", "prune-ffn"),
    "tied_members": ("share-two-bases", "share-nested-pruned"),
    "two_tower": ("share-mixed", "prune-heads"),
}
"""Form -> styles of plans."""


def plans_by_word() -> Iterator[tuple[str, Pair]]:
    for form, styles in VALUES.items():
        for style in styles:
            rng = np.random.default_rng(0)
            yield form, Pair(random_plan(rng, model_of(form, 0)[1].table, style, name=form), None, 0)


def wrong_members(form: str, plan: Plan, resolved: ResolvedPlan) -> list[str]:
    discovery = model_of(form, 0)[1]
    return list(wrong_values(SiteValues(discovery.model, discovery.table, resolved), plan, discovery.table))


def test_the_reference_takes_the_plan_at_its_word() -> None:
    for form, pair in plans_by_word():
        assert not wrong_members(form, pair.plan, resolve(pair.plan, model_of(form, 0)[1].table)), form


@pytest.mark.parametrize(
    "mutation",
    [pruned_units_keep_their_values, pruned_units_keep_their_biases, readers_keep_their_own_vectors],
    ids=lambda mutation: mutation.__name__,
)
def test_a_broken_reference_is_caught(mutation: Break, monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    assert any(wrong_members(form, pair.plan, resolve(pair.plan, model_of(form, 0)[1].table)) for form, pair in plans_by_word())


@pytest.mark.parametrize("mutation", [chains_are_not_followed, units_of_other_heads_are_misread, pruned_heads_stay])
def test_a_broken_resolving_is_caught(mutation: Break, monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    broken = vars(compiling)["resolve"]
    assert any(wrong_members(form, pair.plan, broken(pair.plan, model_of(form, 0)[1].table)) for form, pair in plans_by_word())
