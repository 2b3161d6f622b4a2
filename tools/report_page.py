"""Lays the report out: templates, style and script from ``templates/``, put together as one file that needs no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inarch import __version__
from inarch.structure.errors import InarchError
from inarch.structure.files import whole
from inarch.tools import report_words as words
from inarch.tools.report_data import Accuracy, Page
from inarch.tools.report_structure import Lane, Segment, SiteRow, Structure
from inarch.tools.torch_extra import needs

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")

SECTIONS = (
    ("summary", "Summary"),
    ("map", "Sharing map"),
    ("size", "Size"),
    ("accuracy", "Accuracy"),
    ("speed", "Speed"),
    ("proof", "Equivalence"),
    ("layers", "Layers"),
    ("examples", "Examples"),
    ("provenance", "Provenance"),
)


@dataclass(frozen=True)
class Tower:
    """Sites of one modality that are layers of one thing."""

    name: str
    sites: tuple[SiteRow, ...]


@dataclass(frozen=True)
class Ends:
    """Ends of a task's two scales: of its scores, and of the differences (which is as long on both sides of zero)."""

    low: float
    high: float
    apart: float


def render_page(page: Page) -> str:
    """The page as HTML.

    Raises:
        InarchError: jinja2 is not installed.
    """
    numbers = {site.name: number for number, site in enumerate(page.structure.sites)}

    def spoken(site: SiteRow, lane: Lane, segment: Segment) -> str:
        return describe(page, site, lane, segment)

    text: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            version=__version__,
            sections=SECTIONS,
            css=_asset("report.css"),
            js=_asset("report.js"),
            numbers=numbers,
            towers=towers_of(page.structure, page.labels),
            modalities=words.MODALITIES,
            kinds=words.KINDS,
            fates=words.FATES,
            spoken=spoken,
            interval_ends=interval_ends,
        )
    )
    return text


def write_page(text: str, out: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        InarchError: it cannot be written.
    """
    try:
        with whole(out) as draft:
            draft.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InarchError(f"cannot be written: {error.strerror or error}", where=str(out)) from error


def towers_of(structure: Structure, labels: Mapping[str, words.Label]) -> dict[str, tuple[Tower, ...]]:
    """Modality -> its towers, in model order."""
    found: dict[str, tuple[Tower, ...]] = {}
    for modality in words.MODALITIES:
        own = [site for site in structure.sites if site.modality == modality]
        order = {labels[site.name].tower: None for site in own}
        found[modality] = tuple(Tower(name, tuple(s for s in own if labels[s.name].tower == name)) for name in order)
    return found


def interval_ends(task: Accuracy) -> Ends:
    """Scales on which all of a task's marks lie, with a little room."""
    scores = [score for metric in task.metrics for score in metric.scores]
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    low, high = max(0.0, int(low * 20) / 20), min(1.0, -int(-high * 20 - 1) / 20)
    reach = [abs(end) for metric in task.metrics if metric.difference is not None for end in (metric.low, metric.high)]
    return Ends(low, high if high > low else low + 0.05, max(reach, default=0.01) * 1.1 or 0.01)


def describe(page: Page, site: SiteRow, lane: Lane, segment: Segment) -> str:
    """One segment in a sentence or two: what a screen reader says of it, and what stands in the panel."""
    where = page.labels[site.name].short
    tower = site.modality if site.modality != "both" else ""
    units = f"{tower} {where}: {segment.units:,} of {lane.size:,} {words.AXES[lane.axis]}"
    parameters = f", {words.count(segment.parameters)} parameters" if segment.parameters is not None else ""
    lead = units.strip()
    if segment.fate == "base":
        readers = words.names([_who(page, site, name) for name in segment.readers], 4)
        return f"{lead} are stored here and read by {readers} too{parameters}."
    if segment.fate in ("cross", "layer"):
        saved = parameters.replace(" parameters", " parameters saved")
        return f"{lead} are those of {_who(page, site, segment.base or '')}, stored there once{saved}."
    if segment.fate == "pruned":
        return f"{lead} are pruned{parameters} fewer." if parameters else f"{lead} are pruned."
    return f"{lead} are its own{parameters}."


def _who(page: Page, site: SiteRow, name: str) -> str:
    """Another site, with its modality where that is another one."""
    label = page.labels.get(name)
    if label is None:
        return name
    other = next(row.modality for row in page.structure.sites if row.name == name)
    return label.short if other == site.modality or other == "both" else f"{other} {label.short}"


def _environment() -> Environment:
    needs(("jinja2",), "a report", "report")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": words.count,
        "signed_count": words.signed_count,
        "size": words.size,
        "percent": words.percent,
        "points": words.points,
        "small": words.small,
        "provider": words.provider,
        "number_of": lambda name, numbers: numbers[name],
    }
    environment.tests["hash"] = _is_hash
    return environment


def _is_hash(value: Any) -> bool:
    return bool(re.fullmatch(r"[0-9a-f]{64}(:\w+)?", str(value)))


def _asset(name: str) -> Any:
    """Style or script, as it is."""
    from markupsafe import Markup

    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
