"""What a lowering decided, in words: ``inarch compile --explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inarch.tools import render

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inarch.structure.cost import CostTable
    from inarch.structure.decisions import AxisStorage, SiteDecision
    from inarch.structure.lowered import Legalised

REASONS = {
    "head-counts": "every head of a site keeps the same number of units",
    "multiple": "widths are multiples that the hardware likes",
    "segment-size": "a shared block too small to pay for its kernels",
    "segment-limit": "more shared blocks than a projection may have",
    "pairing": "units of one head that are shared with several",
    "heads-differ": "heads of two sites that cannot be matched",
    "zero-unit": "one zero unit where an axis would be empty",
    "rotary": "rotary pairs that stay together",
    "frozen": "axes that the graph does not allow to change",
    "form": "an operator that needs equal widths",
    "tied": "what the dense model ties and the site now holds alone",
}


def show_decisions(decided: Sequence[SiteDecision], number_bytes: float) -> None:
    """Print every site that changed: its parameters, its kernels, its blocks and what is stored beyond the plan.

    Args:
        decided: all sites.
        number_bytes: what a number of the model takes.
    """
    changed = [decision for decision in decided if decision.changed]
    for decision in changed:
        render.say(decision.site, style="bold")
        for line in lines(decision, number_bytes):
            render.say(line, indent=2)
    rest = len(decided) - len(changed)
    if rest:
        render.say(f"{rest} more {'site stays as it is' if rest == 1 else 'sites stay as they are'}")
    render.say("")


def lines(decision: SiteDecision, number_bytes: float) -> Iterator[str]:
    """What was decided about one site, a paragraph each."""
    stored = decision.own + decision.shared
    counts = f"{render.count(decision.parameters)} -> {render.count(stored)} parameters"
    if decision.shared:
        counts += f", {'all' if not decision.own else render.count(decision.shared)} of them shared"
    more = decision.products != decision.dense_products
    yield counts + (f"; {decision.dense_products} -> {decision.products} matrix products" if more else "")
    said: dict[str, list[str]] = {}
    for axis in decision.axes:
        said.setdefault(_blocks(axis), []).append(axis.axis)
    for text, names in said.items():
        yield f"{' and '.join(names)}: {text}"
    for item in decision.legalised:
        yield f"+ {_beyond(decision, item, number_bytes)}"


def _blocks(axis: AxisStorage) -> str:
    """What is stored of one axis."""
    if not axis.blocks:
        return f"all {axis.units:,} units pruned"
    parts = []
    for block in axis.blocks:
        heads = f" in {block.heads} head{'' if block.heads == 1 else 's'}" if axis.axis != "hidden" else ""
        who = f"shared with {render.wrapped_list(block.readers, 2)}" if block.segment else "alone"
        parts.append(f"{block.units:,}{heads} {who}")
    gone = f", {axis.dropped:,} pruned" if axis.dropped else ""
    return f"{axis.units:,} units: {'; '.join(parts)}{gone}"


def _beyond(decision: SiteDecision, item: Legalised, number_bytes: float) -> str:
    """One entry of what is stored beyond the plan."""
    why = REASONS.get(item.reason, item.reason)
    cost = f"{render.count(item.parameters)} numbers, {render.size(item.parameters * number_bytes)}"
    if not item.units:
        return f"{cost} on {item.axis}: {why}"
    units = f"{item.units:,} {item.axis} unit{'' if item.units == 1 else 's'}"
    if item.base is None:
        return f"{units} kept as zeros ({cost}): {why}"
    whose = "kept though others read the same" if item.base == decision.site else f"of {item.base} stored here once more"
    return f"{units} {whose} ({cost}): {why}"


def limits_text(table: CostTable, prefer: str | None) -> str:
    """The limits that were kept, and where they come from."""
    from inarch.structure.cost import cost_hash, shipped_name

    limits = table.limits(prefer)
    name = shipped_name(cost_hash(table))
    whose = f"the table shipped for {name.upper()}s" if name else f"a table of your own ({cost_hash(table)[:12]})"
    wish = f", preferring {prefer}" if prefer else ""
    return (
        f"limits of {whose}{wish}: at most {limits.max_segments} blocks a projection, shared ones of {limits.min_segment} units "
        f"or more, widths in multiples of {limits.multiple}"
    )
