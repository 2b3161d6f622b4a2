"""The contract: whatever the plan, the compiled model computes what the original computes with the plan applied by values.

Random (model, plan) pairs over every form of the zoo: each model is discovered (exactly the sites that were written have to
be found), each plan is compiled in memory under some cost table, and reference and compiled run in ONNX Runtime, optimised and
not. A pair that fails is shrunk to a small plan that still fails, which the failure prints.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest

from inarch.compiler.compile import compile_model
from inarch.compiler.reference import apply_by_values, carry_over
from inarch.frontends.canonicalize import canonicalize
from inarch.structure.cost import DEFAULT_COST, CostTable, Limits
from inarch.structure.discover import Discovery, discover
from inarch.structure.errors import PlanError
from inarch.structure.plan import Plan, dump_plan
from inarch.structure.resolve import resolve

from tests.zoo import FORMS, NEGATIVE, ZooModel, build, differences
from tests.zoo.check import float_numbers, inputs_of, mismatches, run_all
from tests.zoo.plans import has_empty_axis, is_partial, random_plan, shrink
from tests.zoo.styles import STYLES

PLANS = 3
"""Plans of each model."""

MODELS = {form: 7 if form == "head_splits" else 4 for form in FORMS}
"""Models of each form."""

FAMILIES = {
    "small encoders": ("encoder_post_norm", "encoder_pre_norm", "encoder_torchscript"),
    "decoders with cross-attention": ("decoder_cross", "decoder_in_proj", "decoder_plain", "contrib_cross"),
    "packed QKV": ("packed_split", "packed_slice", "packed_timm", "packed_timm_split", "packed_bloom", "packed_in_proj"),
    "separate QKV": ("encoder_post_norm", "encoder_pre_norm", "gemm_weights", "transposed_weights", "constant_weights"),
    "post-norm": ("encoder_post_norm", "guarded_masks", "wrapped"),
    "pre-norm": ("encoder_pre_norm", "layer_scale"),
    "GELU": ("encoder_gelu_op", "encoder_gelu_tanh", "encoder_torchscript"),
    "ReLU": ("encoder_relu", "static_batch", "single_head"),
    "SwiGLU": ("swiglu", "swiglu_split", "swiglu_slice"),
    "grouped queries": ("gqa", "packed_gqa", "attention_gqa"),
    "rotary": ("rotary_half", "rotary_interleaved"),
    "Attention of opset 23": ("attention_3d", "attention_4d", "attention_gqa"),
    "com.microsoft operators": ("contrib_mha", "contrib_attention", "contrib_cross"),
    "tied layers": ("tied_layers", "tied_members"),
    "Swin windows with bias tables": ("swin", "swin_constant_bias"),
    "differing head splits": ("head_splits",),
}
"""What the contract is promised for -> the forms that are it."""

STRIDE = 7
"""From one plan's style to the next one's, so that the plans of one model have little in common."""

FINE = Limits(multiple=1, rounding=0.0, min_segment=1, max_segments=16)
"""Nothing is too small to be shared: the lowering has to express everything that it can."""

MIDDLE = Limits(multiple=4, rounding=0.25, min_segment=4, max_segments=4)
"""The shipped table's proportions, for sites as small as the zoo's."""

SLACK = 0.02
"""Part of a model's numbers that new constants (zeros for a mean, a scale) may come to at the widths of the zoo."""

SMALL_COST = CostTable(
    format="inarch.cost/1", description="for the widths of the zoo", balanced=MIDDLE, size=FINE, latency=DEFAULT_COST.balanced
)


@dataclass(frozen=True)
class Pair:
    """A plan for a model, and how it is to be lowered.

    Attributes:
        plan: the plan.
        prefer: which limits of :data:`SMALL_COST`.
        seed: of the inputs.
    """

    plan: Plan
    prefer: str | None
    seed: int


@cache
def model_of(form: str, seed: int) -> tuple[ZooModel, Discovery]:
    """A model of a form, and what was found in it."""
    zoo = build(form, seed)
    return zoo, discover(canonicalize(zoo.model))


def pairs_of(form: str, seed: int) -> list[Pair]:
    """The plans of one model. Styles take turns, so that each form meets most of them and all of them are met equally often."""
    _, discovery = model_of(form, seed)
    offset = zlib.crc32(form.encode())
    styles = list(STYLES)
    assert len(styles) % STRIDE
    pairs = []
    for i in range(PLANS):
        number = offset + (seed * PLANS + i) * STRIDE
        rng = np.random.default_rng([offset, seed, i])
        plan = random_plan(rng, discovery.table, styles[number % len(styles)], name=form)
        pairs.append(Pair(plan, ("size", "size", None, "latency")[int(rng.integers(4))], number))
    return pairs


def failure(zoo: ZooModel, discovery: Discovery, pair: Pair) -> str:
    """What is wrong with the compiled model; empty where it is equivalent and as small as the lowering says."""
    result = compile_model(zoo.model, pair.plan, None, cost=SMALL_COST, prefer=pair.prefer)
    applied = apply_by_values(discovery.model, discovery.table, resolve(pair.plan, discovery.table), discovery.uses)
    reference = carry_over(applied, discovery.model, zoo.model)
    cases = inputs_of(zoo, pair.seed)
    wrong = list(mismatches(run_all(reference, cases), run_all(result.model, cases)))
    if wrong:
        return "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    saved, claimed = float_numbers(zoo.model) - float_numbers(result.model), result.lowered.parameters - result.lowered.stored
    if saved < claimed - SLACK * result.lowered.parameters:
        return f"the model holds {saved} numbers less than the original, and the lowering says {claimed}"
    return ""


def attempt(zoo: ZooModel, discovery: Discovery, pair: Pair) -> str:
    """:func:`failure`, where an exception is a failure too."""
    try:
        return failure(zoo, discovery, pair)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def smallest(zoo: ZooModel, discovery: Discovery, pair: Pair, wrong: str) -> Plan:
    """A simpler plan that fails in the same way: by a difference, or by the same kind of exception."""
    kind = wrong.split(":")[0] if not wrong.split(":")[0].count(" ") else "differs"

    def fails(plan: Plan) -> bool:
        try:
            resolve(plan, discovery.table)
        except PlanError:
            return False
        again = attempt(zoo, discovery, Pair(plan, pair.prefer, pair.seed))
        return bool(again) and (again.startswith(kind + ":") or kind == "differs")

    return shrink(pair.plan, fails)


@pytest.mark.parametrize(("form", "seed"), [(form, seed) for form, count in MODELS.items() for seed in range(count)])
def test_compiled_equals_reference(form: str, seed: int) -> None:
    zoo, discovery = model_of(form, seed)
    assert not differences(zoo, discovery.table)
    before = ir.to_proto(zoo.model).SerializeToString(deterministic=True)
    for pair in pairs_of(form, seed):
        wrong = attempt(zoo, discovery, pair)
        if wrong:
            small = smallest(zoo, discovery, pair, wrong)
            again = attempt(zoo, discovery, Pair(small, pair.prefer, pair.seed))
            pytest.fail(
                f"{form} {seed} ({pair.plan.provenance['style']}, prefer {pair.prefer}): {wrong}\n"
                f"model: {dict(zoo.notes)}\nshrunk, it says: {again}\n{dump_plan(small)}",
                pytrace=False,
            )
    assert ir.to_proto(zoo.model).SerializeToString(deterministic=True) == before, "compiling changed the original"


@pytest.mark.parametrize("form", NEGATIVE)
def test_what_is_no_site_is_carried_through(form: str) -> None:
    zoo, discovery = model_of(form, 0)
    assert not differences(zoo, discovery.table)
    for pair in pairs_of(form, 0):
        if zoo.runnable:
            wrong = failure(zoo, discovery, pair)
            assert not wrong, f"{pair.plan.provenance['style']}, prefer {pair.prefer}: {wrong}\n{dump_plan(pair.plan)}"
        else:
            compiled = compile_model(zoo.model, pair.plan, None, cost=SMALL_COST, prefer=pair.prefer).model
            kinds = Counter(node.op_type for node in compiled.graph)
            assert kinds["Mystery"] == 1


@pytest.mark.parametrize("form", ["encoder_post_norm", "two_tower", "two_tower_packed", "decoder_cross", "swiglu", "gqa"])
def test_what_is_planned_is_stored_where_nothing_is_too_small(form: str) -> None:
    """Plans that need no legalising cost no more than they say."""
    zoo, discovery = model_of(form, 0)
    dense = float_numbers(zoo.model)
    for style in ("prune-ffn", "prune-heads", "prune-inside-equal", "share-whole", "share-prefix", "share-heads", "share-inside"):
        plan = random_plan(np.random.default_rng(3), discovery.table, style, name=form)
        result = compile_model(zoo.model, plan, None, cost=SMALL_COST, prefer="size")
        planned = result.lowered.parameters - result.lowered.planned
        assert planned > 0
        assert dense - float_numbers(result.model) >= planned - SLACK * dense, f"{style}\n{dump_plan(plan)}"


def test_pairs_cover_what_the_contract_names() -> None:
    """At least 500 pairs, 20 of each family, 30 % with partial sharing, 20 with an axis of which nothing is left."""
    plans = {form: [pair.plan for seed in range(count) for pair in pairs_of(form, seed)] for form, count in MODELS.items()}
    every = [plan for group in plans.values() for plan in group]
    assert len(every) >= 500
    for family, forms in FAMILIES.items():
        assert sum(len(plans[form]) for form in forms) >= 20, family
    assert sum(is_partial(plan) for plan in every) >= 0.3 * len(every)
    assert sum(has_empty_axis(plan) for plan in every) >= 20
    drawn = Counter(str(plan.provenance["style"]) for plan in every)
    assert set(drawn) == set(STYLES), "a style is never drawn"
