"""``inarch report RUN``: a run folder as one page that people read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inarch.structure.files import refuse_to_replace
from inarch.tools import render
from inarch.tools.options import Debug, Json


def run(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder; docs/report.md says what is in it.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page; RUN/report.html by default.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="MODEL", help="The dense model that was compiled, where RUN does not hold it.", show_default=False
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's report: what became smaller, whether it is still right, and who shares what with whom.

    One HTML file without anything from outside. What RUN has no data for is left out, with the command that gives it.
    """
    target = out or folder / "report.html"
    with render.progress(quiet=json) as report:
        report("writing the report", 0, 0)
        document = write_report(folder, target, model)
    if json:
        render.emit_json(document)
        return
    missing = document["missing"]
    if isinstance(missing, list) and missing:
        render.say(f"left out, for want of data: {', '.join(missing)}")
    render.say(f"wrote {target} ({render.size(target.stat().st_size)})")


def write_report(folder: Path, out: Path, model: Path | None = None) -> dict[str, object]:
    """Write the page; returns what ``report --json`` prints.

    Raises:
        InarchError: the folder is no run's, the plan is not for the model, jinja2 is missing, or the page cannot be written.
    """
    from inarch.tools.report_collect import collect
    from inarch.tools.report_page import render_page, write_page

    refuse_to_replace(out, (path for path in (model, *folder.rglob("*")) if path is not None and path.suffix != ".html"))
    page = collect(folder, model)
    write_page(render_page(page), out)
    return {
        "format": "inarch.report/1",
        "out": str(out),
        "bytes": out.stat().st_size,
        "state": page.state,
        "summary": " ".join(page.summary),
        "missing": list(page.missing),
    }
