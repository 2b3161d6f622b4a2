"""The ``inarch`` command.

Exit codes: 0 ok, 1 a check failed, 2 bad input, 3 a defect of inarch, 130 interrupted, 143 ended by SIGTERM. Errors are one
message on stderr; ``--debug`` adds the traceback, ``--json`` makes them JSON.
"""

from __future__ import annotations

import gc
import io
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from inarch import __version__
from inarch.structure.errors import InarchError
from inarch.tools import (
    bench,
    calibrate,
    compile,
    completion,
    demo,
    evaluate,
    export,
    inspect,
    learn,
    passes,
    plan,
    quantize,
    render,
    report,
    tune,
    verify,
)

OK, FAILED, BAD_INPUT, DEFECT, INTERRUPTED, ENDED = 0, 1, 2, 3, 130, 128 + signal.SIGTERM

app = typer.Typer(
    name="inarch",
    help="Share and prune the weights of exported transformers, and prove that nothing else changed.",
    epilog="Exit codes: 0 ok, 1 a check failed, 2 bad input. A first look: inarch inspect MODEL",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        render.say(f"inarch {__version__}")
        raise typer.Exit(OK)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Share and prune the weights of exported transformers, and prove that nothing else changed."""


app.command("inspect")(inspect.run)
app.add_typer(plan.app, name="plan")
app.command("compile")(compile.run)
app.command("verify")(verify.run)
app.command("bench")(bench.run)
app.command("evaluate")(evaluate.run)
app.command("quantize")(quantize.run)
app.command("calibrate")(calibrate.run)
app.command("passes")(passes.run)
app.command("completion")(completion.run)
app.command("export")(export.run)
app.command("learn")(learn.run)
app.command("tune")(tune.run)
app.command("report")(report.run)
app.add_typer(demo.app, name="demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code.
    """
    # Either is None where it was closed by whoever started this, who does not want to read it.
    sys.stdout, sys.stderr = (stream or io.StringIO() for stream in (sys.stdout, sys.stderr))
    # A graph is millions of small objects that stay to the end; looking through them as often as usual takes a third of the time.
    gc.set_threshold(100_000, 20, 100)
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json, debug = "--json" in options, "--debug" in options
    command = typer.main.get_command(app)
    completion.prepare()
    try:
        with _ended_cleanly():
            result = command.main(args=arguments, prog_name="inarch", standalone_mode=not as_json)
        code = result if isinstance(result, int) else OK
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else BAD_INPUT
    except InarchError as error:
        _traceback(debug)
        render.show_error(error, as_json=as_json)
        code = BAD_INPUT
    except OSError as error:  # a full disk under the output or the temporary files, not a defect
        _traceback(debug)
        hint = "the disk may be full, or a folder not writable; TMPDIR names the one for temporary files"
        render.show_error(InarchError(error.strerror or str(error), where=error.filename, hint=hint), as_json=as_json)
        code = BAD_INPUT
    except typer.TyperException as error:
        render.fail_json("usage", error.format_message())
        code = error.exit_code
    except Exception as error:  # the last line of defence: a defect is reported as one, not as a traceback
        _traceback(debug)
        _show_defect(error, as_json=as_json)
        code = DEFECT
    if code == INTERRUPTED:
        render.err().print("interrupted")
    return code


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """A process that is asked to end cleans up first: no half a file and no temporary folder stays."""

    asked = False

    def leave(*_: object) -> NoReturn:
        nonlocal asked
        asked = True
        raise SystemExit(ENDED)

    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except Exception:
        if asked:  # an import, say, makes an error of its own of what ends it
            raise SystemExit(ENDED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_defect(error: Exception, *, as_json: bool) -> None:
    message = f"{type(error).__name__}: {error}"
    if as_json:
        render.fail_json("internal", message, hint="run with --debug")
    else:
        render.err().print(f"internal error: {message}; run with --debug for the traceback", markup=False)


def _traceback(wanted: bool) -> None:
    if wanted:
        traceback.print_exc()
