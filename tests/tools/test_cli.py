"""The command line as a user meets it: results on stdout, one clear error on stderr, exit codes, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import inarch.tools.inspect as inspect_command
from inarch import __version__

from tests.tools.conftest import Run

COMMANDS = tuple("inspect/plan make/plan lint/plan diff/plan schema/compile/verify/bench/passes/export/report/demo".split("/"))


def narrow(text: str) -> bool:
    return all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(inarch: Run, command: str) -> None:
    done = inarch(*command.split(), "--help")
    assert done.code == 0
    assert "--json" in done.out
    assert "--debug" in done.out
    assert narrow(done.out)


def test_help_without_arguments_is_shown_and_is_a_usage_error(inarch: Run) -> None:
    done = inarch()
    assert done.code == 2
    assert "compile" in done.out + done.err


def test_version(inarch: Run) -> None:
    assert inarch("--version").out == f"inarch {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["inspect"],
        ["inspect", "m.onnx", "--nosuch"],
        ["plan", "make", "m.onnx", "-o", "p.json"],
        ["plan", "make", "m.onnx", "--keep", "half", "-o", "p.json"],
        ["plan", "make", "m.onnx", "--keep", "0.5", "--method", "guess", "-o", "p.json"],
        ["compile", "m.onnx", "p.json"],
        ["compile", "m.onnx", "p.json", "-o", "c.onnx", "--prefer", "luck"],
        ["compile", "m.onnx", "p.json", "-o", "c.onnx", "--dry-run"],
        ["verify", "m.onnx", "p.json"],
        ["bench", "m.onnx", "c.onnx", "--pairs", "many"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_usage_errors_exit_with_2(inarch: Run, arguments: list[str], as_json: bool) -> None:
    done = inarch(*arguments, *(["--json"] if as_json else []))
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err
    if as_json:
        assert json.loads(done.err)["error"]["kind"] == "usage"
    else:
        assert done.err


def bad_input(tmp_path: Path) -> list[list[str | Path]]:
    missing, text = tmp_path / "missing.onnx", tmp_path / "text.onnx"
    return [
        ["inspect", missing],
        ["inspect", text],
        ["inspect", tmp_path],
        ["plan", "make", missing, "--keep", "0.5", "-o", tmp_path / "p.json"],
        ["plan", "lint", tmp_path / "missing.json"],
        ["plan", "lint", text],
        ["plan", "diff", tmp_path / "missing.json", tmp_path / "missing.json"],
        ["compile", missing, tmp_path / "missing.json", "-o", tmp_path / "c.onnx"],
        ["verify", missing, tmp_path / "missing.json", missing],
        ["bench", missing, missing],
        ["bench", missing, missing, "--threads", "0"],
    ]


@pytest.mark.parametrize("number", range(len(bad_input(Path()))))
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_bad_files_exit_with_2_and_one_error(inarch: Run, tmp_path: Path, number: int, as_json: bool) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    done = inarch(*bad_input(tmp_path)[number], *(["--json"] if as_json else []))
    assert done.code == 2
    assert "Traceback" not in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.onnx"]
    if as_json:
        document = json.loads(done.err or done.out)
        assert document.get("ok") is False or document["error"]["message"]
    else:
        assert done.out == ""
        assert done.err.count("error:") == 1


def test_inspect_shows_sites_within_80_columns(inarch: Run, model: Path) -> None:
    done = inarch("inspect", model, "--params")
    assert done.code == 0
    assert done.err == ""
    assert narrow(done.out)
    assert "2 sites: 0 msa, 2 ffn" in done.out
    assert "layer.1.up.weight" in done.out
    assert "the others are read by LayerNormalization 128, Add 64" in done.out


def test_inspect_json_is_the_whole_table(inarch: Run, model: Path) -> None:
    document = json.loads(inarch("inspect", model, "--json").out)
    assert document["format"] == "inarch.inspect/1"
    first, second = document["sites"]
    assert first["kind"] == second["kind"] == "ffn"
    assert first["axes"]["hidden"]["size"] == 256
    assert first["members"]["down"]["param"] == "layer.0.down.weight"
    assert first["parameters"] == 32 * 256 * 2 + 256
    assert document["parameters"] == sum(int(np.prod(t.dims)) for t in onnx.load(model).graph.initializer)
    assert document["parameters"] - document["site_parameters"] == sum(document["outside"].values()) == 192


def test_plan_make_reports_what_is_kept(inarch: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    done = inarch("plan", "make", model, "--keep", "0.7", "--method", "magnitude", "-o", path, "--json")
    document = json.loads(done.out)
    assert done.code == 0
    assert document["kept_model"] == pytest.approx(0.7, abs=0.03)
    assert document["kept_sites"] < document["kept_model"]
    assert document["axes"]["hidden"]["kept"] < document["axes"]["hidden"]["units"]
    assert json.loads(path.read_text())["format"] == "inarch.plan/1"


@pytest.mark.parametrize("prefer", [None, "size", "latency"])
def test_a_plan_loses_nothing_to_the_limits_that_it_was_made_for(
    prefer: str | None, inarch: Run, model: Path, tmp_path: Path
) -> None:
    path, asked = tmp_path / "p.json", ["--prefer", prefer] if prefer else []
    made = json.loads(inarch("plan", "make", model, "--keep", "0.7", *asked, "-o", path, "--json").out)
    assert made["planned_parameters"] == made["stored_parameters"]
    assert json.loads(path.read_text())["provenance"].get("prefer") == prefer
    compiled = json.loads(inarch("compile", model, path, *asked, "--dry-run", "--json").out)
    assert compiled["stored_parameters"] == made["stored_parameters"]


def test_plan_make_refuses_what_cannot_be_reached(inarch: Run, model: Path, tmp_path: Path) -> None:
    done = inarch("plan", "make", model, "--keep", "0.01", "-o", tmp_path / "p.json")
    assert done.code == 2
    assert "smallest" in done.err
    assert not (tmp_path / "p.json").exists()


def test_plan_lint_shows_the_json_path(inarch: Run, model: Path, plan: Path) -> None:
    assert inarch("plan", "lint", plan).code == 0
    document = json.loads(plan.read_text())
    site = next(iter(document["sites"].values()))
    site["axes"]["hidden"]["keep"] = "0-256"
    plan.write_text(json.dumps(document))
    done = inarch("plan", "lint", plan)
    assert done.code == 2
    assert "axes.hidden" in done.err
    assert str(plan) in done.err
    as_json = inarch("plan", "lint", plan, "--json")
    assert as_json.code == 2
    report = json.loads(as_json.out)
    assert report["ok"] is False
    assert report["errors"][0]["kind"] == "unit-out-of-range"


def test_plan_lint_with_the_model_counts_what_is_stored(inarch: Run, model: Path, plan: Path) -> None:
    document = json.loads(inarch("plan", "lint", plan, model, "--json").out)
    assert document["ok"] is True
    assert document["planned_parameters"] == document["expected_parameters"] < document["parameters"]


def test_plan_lint_fails_where_the_plan_expects_something_else(inarch: Run, model: Path, plan: Path) -> None:
    document = json.loads(plan.read_text())
    document["expect"]["parameters"] += 1
    plan.write_text(json.dumps(document))
    done = inarch("plan", "lint", plan, model)
    assert done.code == 1
    assert "failed:" in done.out


def test_a_plan_for_another_model_is_refused(inarch: Run, model: Path, plan: Path, tmp_path: Path) -> None:
    document = json.loads(plan.read_text())
    document["model"]["fingerprint"] = "0" * 64
    plan.write_text(json.dumps(document))
    for done in (inarch("plan", "lint", plan, model), inarch("compile", model, plan, "-o", tmp_path / "c.onnx")):
        assert done.code == 2
        assert "fingerprint" in done.err
    assert not (tmp_path / "c.onnx").exists()


def test_plan_diff(inarch: Run, model: Path, plan: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    inarch("plan", "make", model, "--keep", "0.9", "--method", "magnitude", "-o", other)
    same = inarch("plan", "diff", plan, plan)
    assert (same.code, same.out) == (0, "the plans decide the same\n")
    differs = inarch("plan", "diff", plan, other)
    assert differs.code == 1
    assert "hidden" in differs.out
    assert narrow(differs.out)
    assert json.loads(inarch("plan", "diff", plan, other, "--json").out)["same"] is False


def test_plan_schema_is_the_committed_one(inarch: Run) -> None:
    committed = Path(__file__).parents[2] / "structure" / "plan.schema.json"
    assert inarch("plan", "schema").out == committed.read_text()


def test_passes_lists_names_and_summaries(inarch: Run) -> None:
    document = json.loads(inarch("passes", "--json").out)
    names = [entry["name"] for entry in document["passes"]]
    assert len(set(names)) == len(names) >= 3
    assert all(entry["summary"] for entry in document["passes"])
    done = inarch("passes")
    assert narrow(done.out)
    assert all(name in done.out for name in names)


def test_compile_writes_a_smaller_model(inarch: Run, model: Path, plan: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    out = tmp_path / "c.onnx"
    done = inarch("compile", model, plan, "-o", out, "--json")
    document = json.loads(done.out)
    stored = sum(int(np.prod(t.dims)) for t in onnx.load(out).graph.initializer)
    assert done.code == 0
    assert document["stored_parameters"] < document["parameters"]
    assert stored == pytest.approx(document["stored_parameters"], rel=0.02)
    assert model.read_bytes() == before


def test_dry_run_writes_nothing(inarch: Run, model: Path, plan: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = inarch("compile", model, plan, "--dry-run")
    assert done.code == 0
    assert "stored" in done.out
    assert narrow(done.out)
    assert sorted(tmp_path.iterdir()) == before


def test_compile_does_not_overwrite_its_input(inarch: Run, model: Path, plan: Path) -> None:
    before = model.read_bytes()
    done = inarch("compile", model, plan, "-o", model)
    assert done.code == 2
    assert model.read_bytes() == before


def test_verify_proves_equivalence(inarch: Run, model: Path, plan: Path, compiled: Path) -> None:
    done = inarch("verify", model, plan, compiled)
    assert done.code == 0, done.out
    assert done.out.rstrip().endswith("equivalent")
    assert narrow(done.out)
    document = json.loads(inarch("verify", model, plan, compiled, "--json").out)
    assert document["ok"] is True
    assert document["damage"]["outputs"][0]["relative"] > 0


def test_verify_fails_on_another_weight(inarch: Run, model: Path, plan: Path, compiled: Path, tmp_path: Path) -> None:
    broken = onnx.load(compiled)
    tensor = next(t for t in broken.graph.initializer if t.name == "layer.1.down.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), tensor.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    done = inarch("verify", model, plan, tmp_path / "broken.onnx")
    assert done.code == 1
    assert "NOT equivalent" in done.out
    assert json.loads(inarch("verify", model, plan, tmp_path / "broken.onnx", "--json").out)["ok"] is False


def test_verify_with_own_inputs(inarch: Run, model: Path, plan: Path, compiled: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((2, 3, 32), np.float32))
    assert inarch("verify", model, plan, compiled, "--inputs", tmp_path / "in.npz").code == 0
    np.savez(tmp_path / "bad.npz", nosuch=np.ones(3, np.float32))
    done = inarch("verify", model, plan, compiled, "--inputs", tmp_path / "bad.npz")
    assert done.code == 2
    assert "nosuch" in done.err or "lacks x" in done.err


def test_bench_measures_both_models(inarch: Run, model: Path, compiled: Path) -> None:
    done = inarch("bench", model, compiled, "--threads", "1", "--json")
    document = json.loads(done.out)
    assert done.code == 0
    assert document["compiled"]["size"]["stored"] < document["dense"]["size"]["stored"]
    assert document["latency"][0]["low"] <= document["latency"][0]["ratio"] <= document["latency"][0]["high"]
    table = inarch("bench", model, compiled, "--threads", "1")
    assert table.code == 0
    assert narrow(table.out)


def test_a_defect_is_reported_as_one(inarch: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("inner workings")

    monkeypatch.setattr(inspect_command, "show", broken)
    done = inarch("inspect", model)
    assert done.code == 3
    assert "internal error: ZeroDivisionError: inner workings" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in inarch("inspect", model, "--debug").err


def test_debug_shows_the_traceback_of_a_refusal(inarch: Run, tmp_path: Path) -> None:
    done = inarch("inspect", tmp_path / "missing.onnx", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err


def test_an_interrupt_is_no_traceback(inarch: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_command, "show", interrupted)
    done = inarch("inspect", model)
    assert (done.code, done.err) == (130, "interrupted\n")


def test_what_json_cannot_say_becomes_null(inarch: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from inarch.tools import render

    render.emit_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": None}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_no_progress_where_stderr_is_no_terminal(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inarch", "inspect", str(model)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_closed_stdout_is_one_that_nobody_reads(options: list[str]) -> None:
    program = f"import sys; sys.stdout = None; from inarch.tools.cli import main; sys.exit(main({['passes', *options]!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
