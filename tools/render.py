"""What the command line shows: tables that fit 80 columns, numbers, JSON, progress bars and errors.

Results go to stdout, everything else to stderr, so that a result can be piped.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from inarch.structure.errors import InarchError, PlanError
from inarch.structure.files import whole

Report = Callable[[str, int, int], None]
"""Called as ``report(stage, done, total)``; ``total`` 0 means that the end is not known."""

WIDTH = 80


def out() -> Console:
    """The console for results. Not a terminal: 80 columns and no colour."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH, highlight=False, emoji=False)


def err() -> Console:
    """The console for errors, warnings and progress."""
    return Console(file=sys.stderr, width=None if sys.stderr.isatty() else WIDTH, highlight=False, emoji=False, soft_wrap=True)


def emit_json(value: object) -> None:
    """Print one JSON document to stdout. What JSON cannot say (NaN, infinities) becomes null."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write one JSON document to a file, whole or not at all.

    Raises:
        InarchError: it cannot be written.
    """
    try:
        with whole(path) as draft:
            draft.write_text(json.dumps(plain(document), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InarchError(f"cannot be written: {error.strerror or error}", where=str(path)) from error


def plain(value: object) -> object:
    """The value as what JSON has: mappings, lists, strings, numbers, booleans and None.

    Raises:
        TypeError: a value of a type that has no place in a report.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"a report cannot hold a {type(value).__name__}")


def table(*columns: str | tuple[str, str], title: str | None = None) -> Table:
    """An empty table; a column is its header, or ``(header, "right")`` for numbers. Long words fold instead of widening it."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, title=title, title_justify="left", title_style="bold")
    for column in columns:
        header, justify = (column, "left") if isinstance(column, str) else column
        right = justify == "right"
        made.add_column(header, justify="right" if right else "left", overflow="fold", no_wrap=right, header_style="bold")
    return made


class Dotted:
    """A name such as ``text.layer.0.ffn`` or a path: where it must be broken, it is broken after a dot, slash or underscore."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._pieces = re.findall(r"[^./_]*[./_]+|[^./_]+", text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widest = max(map(len, self._pieces), default=0)
        return Measurement(min(widest, options.max_width), min(len(self.text), options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = [""]
        for piece in self._pieces:
            if lines[-1] and len(lines[-1]) + len(piece) > options.max_width:
                lines.append("")
            lines[-1] += piece
        yield Text("\n".join(lines), overflow="fold")


def add_row(made: Table, *cells: object, style: str | None = None) -> None:
    """Add a row; cells are shown as they are, never read as markup, and names are broken where they read well."""
    made.add_row(*(_cell(str(cell), made.columns[i].justify) for i, cell in enumerate(cells)), style=style)


def _cell(text: str, justify: JustifyMethod) -> Text | Dotted:
    return Dotted(text) if justify == "left" and re.fullmatch(r"\S*[./_]\S+", text) else Text(text)


def show(made: Table) -> None:
    """Print a table and an empty line to stdout; without the padding at the ends of lines where it is no terminal."""
    console = out()
    if console.is_terminal:
        console.print(made)
    else:
        with console.capture() as capture:
            console.print(made)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
    console.print()


def say(text: str, *, style: str | None = None, indent: int = 0) -> None:
    """Print one paragraph to stdout: no markup, wrapped between words alone, so that a path stays whole."""
    console = out()
    first = " " * indent
    lines = textwrap.wrap(
        text,
        console.width,
        break_long_words=False,
        break_on_hyphens=False,
        initial_indent=first,
        subsequent_indent=first + "  " if indent else "",
    ) or [""]
    console.print(Text("\n".join(lines)), style=style, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    err().print(f"[bold yellow]warning:[/] {escape(text)}")


def count(number: int) -> str:
    """A count for people: ``1,234`` below a million, ``85.65 M`` from there, and ``12.34 G`` from ten thousand millions."""
    if abs(number) < 1_000_000:
        return f"{number:,}"
    return f"{number / 1e6:,.2f} M" if abs(number) < 10_000_000_000 else f"{number / 1e9:,.2f} G"


def size(number: float) -> str:
    """Bytes for people, in decimal units as file sizes are: ``649.1 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number:,.0f} B"


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole`` in per cent; ``-`` of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def change(before: float, after: float) -> str:
    """How much smaller or larger in per cent: ``-37.5 %``; ``-`` where there was nothing before."""
    return f"{100 * (after - before) / before:+.1f} %" if before else "-"


def number(value: float) -> str:
    """A difference or error in three digits: ``1.2e-06``, ``0``."""
    return "0" if value == 0 else f"{value:.2g}"


def wrapped_list(items: Sequence[str], limit: int = 4) -> str:
    """The first few items, and how many more there are."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Report]:
    """Show how far a long job is, on stderr, while the block runs.

    Args:
        quiet: show nothing; nothing is shown either where stderr is not a terminal.

    Yields:
        ``report(stage, done, total)``; each stage gets a bar of its own.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=err(),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(escape(stage), total=total or None)
        bar.update(tasks[stage], completed=done, total=total or None)

    with bar:
        yield report


def show_error(error: InarchError, *, as_json: bool) -> None:
    """Print a refusal to stderr: what, where and what to do."""
    source = error.source if isinstance(error, PlanError) else None
    if as_json:
        kind = error.code if isinstance(error, PlanError) else type(error).__name__
        fail_json(kind, error.message, source=source, where=error.where, hint=error.hint)
        return
    console = err()
    place = ": ".join(part for part in (source, error.where) if part)
    console.print(f"[bold red]error:[/] {escape(f'{place}: {error.message}' if place else error.message)}")
    if error.hint:
        console.print(f"[bold]hint:[/] {escape(error.hint)}")


def fail_json(kind: str, message: str, **more: str | None) -> None:
    """Print an error as one line of JSON to stderr."""
    sys.stderr.write(json.dumps({"error": {"kind": kind, "message": message, **more}}, ensure_ascii=False) + "\n")
