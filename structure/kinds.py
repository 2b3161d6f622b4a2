"""What connected projections are: an MSA, an FFN, or neither, and which projection plays which role."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from inarch.structure.arguments import data_inputs
from inarch.structure.constants import constant
from inarch.structure.coupling import ENUMERATED, Contraction, Coupling, Projection
from inarch.structure.regions import FUSED
from inarch.structure.sites import Kind

NORM_LIKE = frozenset(
    """LayerNormalization RMSNormalization SimplifiedLayerNormalization InstanceNormalization Sub Div Pow Sqrt Reciprocal
    ReduceMean Cast Identity Dropout Reshape Transpose Unsqueeze Squeeze Flatten Slice Pad Expand""".split()
)
"""Operators that a residual stream passes on its way into a block."""

NONLINEAR = frozenset(
    """Relu Gelu FastGelu BiasGelu QuickGelu Erf Tanh Sigmoid HardSigmoid HardSwish Swish Mish Elu Selu Celu LeakyRelu Softplus
    Softsign ThresholdedRelu PRelu Clip Max Min Pow Exp Sin Cos""".split()
)


class NotASite(Exception):
    """Connected projections that look like a site but are not one that can be compiled; the message says why."""


@dataclass(frozen=True, eq=False)
class Found:
    """A recognised site at one call.

    Attributes:
        kind: ``ffn`` or ``msa``.
        form: ``decomposed``, or the fused operator's name.
        projections: role -> projection, sources before sinks.
        sinks: roles of the sinks.
        names: leaf factor -> name.
        nodes: nodes of the region in graph order.
    """

    kind: Kind
    form: str
    projections: Mapping[str, Projection]
    sinks: frozenset[str]
    names: dict[int, str]
    nodes: list[ir.Node]


def region_nodes(
    coupling: Coupling, sources: Iterable[Projection], sinks: Iterable[Projection], order: Mapping[ir.Node, int]
) -> list[ir.Node]:
    """Every node that a hidden axis of the sources reaches, sinks included, in graph order."""
    stop = {p.node for p in sinks}
    sources = list(sources)
    roots = {leaf for p in sources for leaf in coupling.leaves(p.n)}
    for p in sinks:
        roots.update(coupling.leaves(p.k or ()))
    nodes: dict[ir.Node, None] = dict.fromkeys(p.node for p in sources)
    todo = [p.node.outputs[0] for p in sources]
    while todo:
        value = todo.pop()
        for node in value.consumers():
            if node in nodes:
                continue
            nodes[node] = None
            if node in stop:
                continue
            for out in node.outputs:
                axes = coupling.axes(out)
                if any(leaf in roots for factors in axes or () for leaf in coupling.leaves(factors)):
                    todo.append(out)
    return sorted(nodes, key=lambda node: order.get(node, -1))


def origins(coupling: Coupling, value: ir.Value, makers: Mapping[ir.Node, Projection]) -> list[Projection]:
    """The projections that a value is made of, following data inputs back to the first projection on each path."""
    found: dict[Projection, None] = {}
    todo, seen = [value], {value}
    while todo:
        item = todo.pop()
        node = item.producer()
        if node is None:
            continue
        if node in makers:
            found[makers[node]] = None
            continue
        for source in data_inputs(node):
            if source is not None and source in coupling.projected and source not in seen:
                seen.add(source)
                todo.append(source)
        if len(seen) > 256:
            break
    return list(found)


def as_msa(
    coupling: Coupling, sources: Sequence[Projection], sinks: Sequence[Projection], order: Mapping[ir.Node, int]
) -> Found | None:
    """Recognise an MSA.

    Returns:
        The MSA, or None where no product of two activations lies between sources and sinks.

    Raises:
        NotASite: attention of a form that cannot be compiled.
    """
    nodes = region_nodes(coupling, sources, sinks, order)
    if not any(node in coupling.contractions for node in nodes):
        return None
    makers = coupling.projection_of
    ordered = sorted(sinks, key=lambda p: order[p.node])
    scores: dict[ir.Node, Contraction] = {}
    values: list[Projection] = []
    for sink in ordered:
        score, value = _attention_of(coupling, sink, makers)
        scores[score.node] = score
        values.append(value)
    if len(scores) != 1 or len(ordered) > 2:
        raise NotASite("its keys or values are shared with another attention")
    score = next(iter(scores.values()))
    q = _only(coupling, score, score.left, makers, "queries")
    k = _only(coupling, score, score.right, makers, "keys")
    roles: dict[str, Projection] = {"q": q, "k": k, "v": values[0]}
    if len(values) == 2:
        roles["v2"] = values[1]
    if len({p.node for p in roles.values()}) != len(roles):
        raise NotASite("q, k and v are read off one projection that could not be taken apart")
    strangers = [p for p in sources if p not in roles.values()]
    if strangers:
        raise NotASite(f"another projection ({strangers[0].view.param.name}) takes part in its heads")
    source_roles = dict(roles)
    roles["o"] = ordered[0]
    if len(ordered) == 2:
        roles["o2"] = ordered[1]
    names = _attention_names(coupling, roles, score)
    region = region_nodes(coupling, source_roles.values(), ordered, order)
    form = score.node.op_type if score.node.op_type in FUSED else "decomposed"
    return Found("msa", form, roles, frozenset(r for r in roles if r.startswith("o")), names, region)


def _only(coupling: Coupling, score: Contraction, position: int, makers: Mapping[ir.Node, Projection], what: str) -> Projection:
    value = score.node.inputs[position]
    found = origins(coupling, value, makers) if value is not None else []
    if len(found) != 1:
        raise NotASite(f"its {what} come from {len(found)} projections")
    return found[0]


def _attention_of(coupling: Coupling, sink: Projection, makers: Mapping[ir.Node, Projection]) -> tuple[Contraction, Projection]:
    """The score product and the value projection behind an output projection."""
    hidden = set(coupling.leaves(sink.k or ()))
    mixing = _behind(coupling, sink.x, makers)
    if mixing is None:
        raise NotASite("no product of probabilities and values lies before its output projection")
    if mixing.node.op_type in FUSED:
        value = mixing.node.inputs[2]
        made = origins(coupling, value, makers) if value is not None else []
        if len(made) != 1:
            raise NotASite(f"its values come from {len(made)} projections")
        return mixing, made[0]
    operands = [mixing.node.inputs[mixing.left], mixing.node.inputs[mixing.right]]
    own = [_last_two(coupling, v) & hidden if v is not None else set() for v in operands]
    if bool(own[0]) == bool(own[1]):
        raise NotASite("which operand of the value product holds the values is ambiguous")
    value, probabilities = (operands[0], operands[1]) if own[0] else (operands[1], operands[0])
    if value is None or probabilities is None:
        raise NotASite("a product misses an operand")
    made = origins(coupling, value, makers)
    if len(made) != 1:
        raise NotASite(f"its values come from {len(made)} projections")
    score, softmax = _score(coupling, probabilities, makers)
    if score is None or not softmax:
        raise NotASite("no softmax over a product of queries and keys lies before the value product")
    return score, made[0]


def attends(coupling: Coupling, sink: Projection, makers: Mapping[ir.Node, Projection]) -> bool:
    """Whether a softmax lies between a sink and the projections behind it."""
    todo, seen = [sink.x], {sink.x}
    while todo and len(seen) < 128:
        node = todo.pop().producer()
        if node is None or node in makers:
            continue
        if node.op_type in ("Softmax", *FUSED):
            return True
        fresh = [v for v in data_inputs(node) if v is not None and v in coupling.projected and v not in seen]
        seen.update(fresh)
        todo.extend(fresh)
    return False


def _last_two(coupling: Coupling, value: ir.Value) -> set[int]:
    axes = coupling.axes(value) or ()
    return {leaf for factors in axes[-2:] for leaf in coupling.leaves(factors)}


def _behind(coupling: Coupling, value: ir.Value, makers: Mapping[ir.Node, Projection]) -> Contraction | None:
    """The nearest product of two activations behind a value."""
    todo, seen = [value], {value}
    while todo and len(seen) < 64:
        node = todo.pop(0).producer()
        if node is None or node in makers:
            continue
        if node in coupling.contractions:
            return coupling.contractions[node]
        for source in data_inputs(node):
            if source is not None and source in coupling.projected and source not in seen:
                seen.add(source)
                todo.append(source)
    return None


def _score(coupling: Coupling, value: ir.Value, makers: Mapping[ir.Node, Projection]) -> tuple[Contraction | None, bool]:
    """The score product behind the probabilities, and whether a softmax (or its exponential) lies between."""
    todo, seen, softmax = [value], {value}, False
    found: Contraction | None = None
    while todo and len(seen) < 128:
        node = todo.pop(0).producer()
        if node is None or node in makers:
            continue
        if node in coupling.contractions:
            if found is not None and found.node is not node:
                raise NotASite("its probabilities come from two score products")
            found = coupling.contractions[node]
            continue
        softmax = softmax or node.op_type in ("Softmax", "Exp")
        for source in data_inputs(node):
            if source is not None and source in coupling.projected and source not in seen:
                seen.add(source)
                todo.append(source)
    return found, softmax


def _attention_names(coupling: Coupling, roles: Mapping[str, Projection], score: Contraction) -> dict[int, str]:
    """Name every leaf factor of an MSA: head, group, qk, pair, vo, vo2."""
    q, k = coupling.leaves(roles["q"].n), coupling.leaves(roles["k"].n)
    inner = coupling.leaves(score.factors)
    heads = [leaf for leaf in k if leaf in q and leaf not in inner]
    pairs = [(roles["v"], roles["o"], "vo")] + ([(roles["v2"], roles["o2"], "vo2")] if "v2" in roles else [])
    names: dict[int, str] = {}
    if len(heads) > 1:
        raise NotASite("its heads are spread over several axes")
    for leaf in heads:
        names[leaf] = "head"
    _name_inner(coupling, [leaf for leaf in inner if leaf in k], "qk", names)
    if not any(leaf in k for leaf in inner) and _name_cut(coupling, q, names) != _name_cut(coupling, k, names):
        raise NotASite("its queries and keys are cut in different ways")
    for leaf in (*q, *k):
        # Interleaved halves are picked apart and stacked again: the parts of q are another factor than those of the stack.
        if leaf not in names and coupling.frozen(leaf) == ENUMERATED:
            names[leaf] = "pair"
    group = [leaf for leaf in q if leaf not in names]
    for leaf in group:
        names[leaf] = "group"
    if len(group) > 1 or any(leaf not in names for leaf in (*q, *k)):
        raise NotASite("its query heads are spread over several axes")
    for value, out, label in pairs:
        v, o = coupling.leaves(value.n), coupling.leaves(out.k or ())
        if [leaf for leaf in v if leaf in heads] != heads:
            raise NotASite("its values have other heads than its queries")
        _name_inner(coupling, [leaf for leaf in v if leaf not in names], label, names)
        if sorted(o) != sorted({*v, *group}):
            raise NotASite("its output projection reads other axes than its values have")
    sizes = set(names.values())
    if "qk" not in sizes or not all(label in sizes for _, _, label in pairs):
        raise NotASite("a head dimension of 1 is not followed")
    return names


def _name_cut(coupling: Coupling, leaves: list[int], names: dict[int, str]) -> list[int]:
    """A head dimension that is cut into unequal parts and put together again before the product (rotary on a part of it).

    It is frozen, and carried whole; heads and values are free all the same.

    Returns:
        Sizes of its factors.
    """
    rest = [leaf for leaf in leaves if leaf not in names and coupling.frozen(leaf) is not None]
    sizes = [coupling.size(leaf).coef for leaf in rest]
    for leaf, size in zip(rest, sizes, strict=True):
        names[leaf] = "qk" if size == max(sizes) and "qk" not in [names.get(other) for other in rest] else "pair"
    return sizes


def _name_inner(coupling: Coupling, leaves: list[int], label: str, names: dict[int, str]) -> None:
    """One factor is the axis inside heads; enumerated ones (rotary halves) are carried along."""
    plain = [leaf for leaf in leaves if coupling.frozen(leaf) != ENUMERATED]
    if not plain and leaves:
        plain = [max(leaves, key=lambda leaf: coupling.size(leaf).coef)]
    if len(plain) > 1:
        raise NotASite("its head dimension is reshaped into several axes")
    for leaf in leaves:
        names[leaf] = label if leaf in plain else "pair" if label == "qk" else f"{label}.part"


def as_ffn(
    coupling: Coupling, sources: Sequence[Projection], sinks: Sequence[Projection], order: Mapping[ir.Node, int]
) -> Found | None:
    """Recognise an FFN.

    Returns:
        The FFN, or None where the projections are no chain of one or two sources into one sink.

    Raises:
        NotASite: a chain of two projections that is no FFN.
    """
    if len(sinks) != 1 or not 1 <= len(sources) <= 2:
        return None
    sink = sinks[0]
    hidden = coupling.leaves(sink.k or ())
    plain = [leaf for leaf in hidden if coupling.frozen(leaf) != ENUMERATED]
    if not plain:
        return None
    nodes = region_nodes(coupling, sources, sinks, order)
    if any(node in coupling.contractions for node in nodes) or sink.node not in nodes:
        return None
    ordered = sorted(sources, key=lambda p: order[p.node])
    active = any(node.op_type in NONLINEAR for node in nodes)
    if not all(is_residual(source.x, sink.node.outputs[0]) for source in ordered):
        if not active:
            return None
        raise NotASite("its output is not added to the residual stream that its input comes from")
    if not active:
        raise NotASite("no activation lies between its two projections")
    if len(plain) > 1:
        raise NotASite("its hidden axis is reshaped into several axes")
    names = {leaf: "hidden" if leaf in plain else "part" for leaf in hidden}
    for source in ordered:
        for leaf in coupling.leaves(source.n):
            names.setdefault(leaf, "part")
        if plain[0] not in coupling.leaves(source.n):
            raise NotASite("a projection inside it makes another axis")
    roles: dict[str, Projection] = {}
    if len(ordered) == 1:
        roles["up"] = ordered[0]
    else:
        gate = _gate(ordered)
        roles["up"] = next(p for p in ordered if p is not gate)
        roles["gate"] = gate
    roles["down"] = sink
    return Found("ffn", "decomposed", roles, frozenset({"down"}), names, nodes)


def _gate(sources: Sequence[Projection]) -> Projection:
    """Of two sources the one whose values pass an activation before they meet; the first where both or neither do."""

    def own(projection: Projection) -> set[ir.Node]:
        seen: set[ir.Node] = set()
        todo = [projection.node.outputs[0]]
        while todo and len(seen) < 64:
            for node in todo.pop().consumers():
                if node not in seen:
                    seen.add(node)
                    todo.extend(node.outputs)
        return seen

    first, second = (own(p) for p in sources)
    active = [any(node.op_type in NONLINEAR for node in mine - other) for mine, other in ((first, second), (second, first))]
    return sources[1] if active == [False, True] else sources[0]


def is_residual(x: ir.Value, y: ir.Value) -> bool:
    """Whether ``y``, through scales and norms, is added to a value that ``x`` is, through norms, made of.

    Or to a sum with that value: parallel blocks may be added one after the other.
    """
    behind = {x}
    todo = [x]
    while todo and len(behind) < 64:
        node = todo.pop().producer()
        if node is None:
            continue
        if node.op_type in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
            behind.update(v for v in (*node.inputs[:2], *node.outputs) if v is not None)
            continue
        scaled = node.op_type in ("Add", "Mul") and any(constant(v) is not None for v in node.inputs)
        dynamic = node.op_type == "Mul" and not scaled
        if node.op_type not in NORM_LIKE and not scaled and not dynamic:
            continue
        for source in data_inputs(node):
            if source is not None and source not in behind and constant(source) is None:
                behind.add(source)
                todo.append(source)
    ahead, steps, adds = [y], 0, 0
    while ahead and steps < 48:
        value = ahead.pop(0)
        steps += 1
        for node in value.consumers():
            if node.op_type in ("Add", "Sum", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
                others = [v for v in node.inputs[:2] if v is not None and v is not value]
                if any(v in behind or _added_to(v, behind) for v in others):
                    return True
                if all(constant(v) is not None for v in others):
                    ahead.append(node.outputs[0])
                elif adds < 3:
                    adds += 1
                    ahead.append(node.outputs[0])
            elif node.op_type in NORM_LIKE or node.op_type == "Mul":
                ahead.append(node.outputs[0])
    return False


def _added_to(value: ir.Value, stream: Collection[ir.Value]) -> bool:
    """Whether a value is the sum of one in a stream and of something else."""
    node = value.producer()
    return node is not None and node.op_type in ("Add", "Sum") and any(v in stream for v in node.inputs if v is not None)
