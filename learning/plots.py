"""Pictures of a run: budget, structure and loss over the steps, and what the structure looks like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from inarch.learning.families import modality
from inarch.learning.trainer import LOG, read_log
from inarch.structure.errors import InarchError
from inarch.structure.plan import AXIS_NAMES, Plan

POINTS = 80
"""Most points of a curve; each is the mean of as many rows of the log as that takes."""

_COLOURS = {"text": "#2a6fbb", "vision": "#c4622d", "both": "#6b6b6b"}
_SPOKEN = {"text": "text backbone", "vision": "vision backbone", "both": "after them"}


def plot_run(folder: Path, out: Path) -> None:
    """Draw ``shallow``, ``dense`` and ``learning`` of a run, what there is of them, as one PNG.

    Raises:
        InarchError: there is no log.
    """
    names = (name for name in ("shallow", "dense", "learning") if (folder / name / LOG).exists())
    logs = {name: read_log(folder / name / LOG) for name in names}
    if not logs:
        raise InarchError("there is no log to draw", where=str(folder))
    figure = _figure(13, 3.4)
    panels = figure.subplots(1, 3)
    for name, log in logs.items():
        if "loss" in log:
            steps, values = _smooth(*log["loss"])
            panels[0].plot(steps, values, label=name, marker=".", markersize=3)
    panels[0].set(title="loss of the weights", xlabel="step", yscale="log")
    panels[0].legend(frameon=False)
    learned = logs.get("learning", {})
    for name, panel in (("kept", 1), ("pruned", 2), ("shared", 2)):
        if name in learned:
            steps, values = _smooth(*learned[name])
            panels[panel].plot(steps, values, label=name, marker=".", markersize=3)
    panels[1].set(title="parameters kept, of the whole model", xlabel="step", ylim=(0, 1.05))
    panels[2].set(title="units pruned, and shared of those that may be", xlabel="step", ylim=(0, 1))
    if panels[2].lines:
        panels[2].legend(frameon=False)
    figure.savefig(out, dpi=110)


def plot_structure(plan: Plan, out: Path) -> None:
    """Draw a plan: for every site a bar of private, shared and pruned units, as one PNG."""
    names = list(plan.sites)
    figure = _figure(9, 0.24 * len(names) + 1.2)
    panel = figure.subplots()
    named: set[str] = set()
    for row, name in enumerate(names):
        kept, shared = site_shares(plan, name)
        colour = _COLOURS[modality(name)]
        which = modality(name)
        panel.barh(row, kept - shared, color=colour, label=None if which in named else _SPOKEN[which])
        named.add(which)
        panel.barh(row, shared, left=kept - shared, color=colour, alpha=0.35, hatch="///", edgecolor="white")
    panel.set(yticks=range(len(names)), xlim=(0, 1), xlabel="units: private, shared (hatched), pruned (empty)")
    panel.set_yticklabels([short(name) for name in names], fontsize=7)
    panel.invert_yaxis()
    panel.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    figure.savefig(out, dpi=110)


def site_shares(plan: Plan, name: str) -> tuple[float, float]:
    """Parts of a site's units that are kept, and that are shared, over the axes that hold weight vectors."""
    axes = [plan.sites[name].axes[axis] for axis in AXIS_NAMES if axis in plan.sites[name].axes and axis != "head"]
    size = sum(axis.size for axis in axes)
    if not size:
        return 1.0, 0.0
    shared = sum(len(share.reader_indices) for axis in axes for share in axis.share)
    return sum(len(axis.kept) for axis in axes) / size, shared / size


def short(name: str) -> str:
    """A site's name without what all have in common."""
    for prefix in ("transformer.", "backbone.0.body.", "language_backbone.body.model."):
        name = name.replace(prefix, "")
    return name


def _figure(width: float, height: float) -> Figure:
    mpl.use("Agg")
    return Figure(figsize=(width, height), layout="constrained")


def _smooth(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Means of runs of equal length; what is left over at the end is one shorter run."""
    each = -(-len(values) // POINTS)
    starts = range(0, len(values), each)
    means = [sum(values[i : i + each]) / len(values[i : i + each]) for i in starts]
    return [steps[min(i + each, len(steps)) - 1] for i in starts], means
