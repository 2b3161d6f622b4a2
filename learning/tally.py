"""What a plan does to units, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from inarch.learning.families import modality
from inarch.structure.lowering import lower
from inarch.structure.plan import AXIS_NAMES, Plan
from inarch.structure.resolve import resolve
from inarch.structure.sites import SiteTable


@dataclass(frozen=True)
class Tally:
    """Units of the axes that hold weight vectors, whole heads aside.

    Attributes:
        units: all that sites in the plan have.
        pruned: that nobody stores or reads at their place.
        across: that a site reads from another backbone.
        within: that a site reads from its own, or that are shared after the backbones.
    """

    units: int
    pruned: int
    across: int
    within: int


def tally(plan: Plan) -> Tally:
    """Count a plan's decisions."""
    units = kept = across = within = 0
    for name, site in plan.sites.items():
        for axis in (site.axes[one] for one in AXIS_NAMES if one != "head" and one in site.axes):
            units += axis.size
            kept += len(axis.kept)
            for share in axis.share:
                if modality(share.base) == modality(name):
                    within += len(share.reader_indices)
                else:
                    across += len(share.reader_indices)
    return Tally(units, units - kept, across, within)


def backbone_parameters(plan: Plan, table: SiteTable) -> tuple[int, int]:
    """Parameters of the sites of the two backbones, and how many of them the compiled model stores.

    Weight vectors that a backbone shares with what is outside of it count where they are stored first.
    """
    inside = {site.name for site in table.sites if modality(site.name) != "both"}
    own = sum(site.parameters for site in table.sites if site.name in inside)
    only = plan.model_copy(update={"sites": {name: site for name, site in plan.sites.items() if name in inside}})
    stored = lower(table, resolve(only, table)).stored
    return own, own - (table.parameters - stored)
