"""The report's words: figures as people read them, names of sites, and the paragraph at the top."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inarch.tools.report_structure import SiteRow

MINUS, TIMES, NONE = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

KINDS = {"msa": "attention", "ffn": "FFN"}
MODALITIES = {"text": "Text backbone", "vision": "Vision backbone", "both": "After the backbones"}
AXES = {"hidden": "hidden units", "qk": "query and key units", "vo": "value and output units", "vo2": "second value units"}
FATES = {
    "base": "stored here, read by others too",
    "cross": "shared across backbones",
    "layer": "shared between layers",
    "private": "its own",
    "pruned": "pruned",
}


def count(number: float) -> str:
    """``1,234`` below 10,000, ``394.4 k`` and ``46.85 M`` above."""
    for unit, scale in (("G", 1e9), ("M", 1e6)):
        if abs(number) >= scale:
            return f"{number / scale:,.2f} {unit}".replace("-", MINUS)
    text = f"{number / 1e3:,.1f} k" if abs(number) >= 1e4 else f"{number:,.0f}"
    return text.replace("-", MINUS)


def signed_count(number: float) -> str:
    """:func:`count` with a plus where it is more than nothing."""
    return f"{'+' if number > 0 else ''}{count(number)}"


def size(number: float) -> str:
    """Bytes in decimal units: ``122.7 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:,.1f} {unit}".replace("-", MINUS)
    return f"{number:,.0f} B".replace("-", MINUS)


def percent(part: float, digits: int = 1) -> str:
    """``37.9 %`` of 0.379."""
    return f"{100 * part:.{digits}f} %".replace("-", MINUS)


def change(before: float, after: float) -> str:
    """How much larger or smaller, with its sign: ``−37.9 %``."""
    return f"{100 * (after - before) / before:+.1f} %".replace("-", MINUS) if before else NONE


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, ``+1.0`` or ``−0.4``; ``0.0`` has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def points(value: float) -> str:
    """A difference of two fractions, in percentage points."""
    return signed(100 * value)


def small(value: float | None) -> str:
    """An error in two digits, ``7.3e-07``; ``not finite`` where there is none."""
    if value is None:
        return "not finite"
    return "0" if value == 0 else f"{value:.2g}"


def milliseconds(value: float) -> str:
    """Three digits or so: ``0.84``, ``12.3``, ``283``."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def seconds(value: float) -> str:
    """``48 s``, ``6 min 12 s``."""
    whole = round(value)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def provider(name: str | None) -> str:
    """ONNX Runtime's name of a provider in short: ``CPU``."""
    return (name or "CPUExecutionProvider").removesuffix("ExecutionProvider")


def names(items: Sequence[str], most: int = 3) -> str:
    """``a, b and c``; ``a, b, c and 4 more`` where there are many."""
    shown = list(items[:most])
    more = len(items) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


@dataclass(frozen=True)
class Label:
    """A site's name for people.

    Attributes:
        tower: what it is a layer of: its name up to the layer's number, without what the whole model has in common.
        layer: its number there, or empty.
        part: ``attention``, ``cross-attention`` or ``FFN``; its own name where two parts of a layer would read alike.
    """

    tower: str
    layer: str
    part: str

    @property
    def short(self) -> str:
        """``3 attention``."""
        return f"{self.layer} {self.part}".strip()


_PLACE = re.compile(r"^(?:(?P<tower>.*?)\.)?(?P<layer>\d+)(?:\.(?P<rest>\D*))?$")


def labels(sites: Sequence[SiteRow]) -> dict[str, Label]:
    """A label for every site, unique within its tower."""
    found: dict[str, Label] = {}
    rests: dict[str, str] = {}
    for site in sites:
        place = _PLACE.match(site.name)
        part = KINDS.get(site.kind, site.kind)
        rest = (place["rest"] or "") if place else site.name
        if "cross" in rest:
            part = "cross-attention"
        rests[site.name] = rest
        found[site.name] = Label((place["tower"] or "") if place else "", place["layer"] if place else "", part)
    seen = Counter((label.tower, label.short) for label in found.values())
    return {
        name: Label(label.tower, label.layer, rests[name] or label.part) if seen[label.tower, label.short] > 1 else label
        for name, label in found.items()
    }
