"""Output that people read: decisions in words, sites under one name, names broken where they read well; never over 80 columns."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import pytest

from inarch.compiler.metadata import quantised_to
from inarch.structure.decisions import AxisStorage, BlockDecision, SiteDecision
from inarch.structure.links import REASONS as LINK_REASONS
from inarch.structure.lowered import Legalised
from inarch.structure.units import parse_sequence
from inarch.tools import render
from inarch.tools.explain import REASONS, lines
from inarch.tools.inspect import common_name, compiled_with, together

from tests.onnx_text import ffn, ffn_weights, model_of
from tests.tools.conftest import Run

LONG = "language_backbone.body.model.encoder.layers_of_the_text_tower.block"


def narrow(text: str) -> bool:
    return all(len(line) <= 80 and line == line.rstrip() for line in text.splitlines())


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Twelve FFNs with long names, alike but for the last, which is wider."""
    names = [f"{LONG}.{layer}.mlp" for layer in range(12)]
    body = "".join(ffn(name, "x" if i == 0 else f"x{i}", "y" if i == 11 else f"x{i + 1}") for i, name in enumerate(names))
    weights = ", ".join(ffn_weights(name, 8, 64 if i < 11 else 96) for i, name in enumerate(names))
    path = tmp_path / "deep.onnx"
    ir.save(model_of(body, inputs="float[B,S,8] x", outputs="float[B,S,8] y", weights=weights), path)
    return path


def test_explain_says_of_every_changed_site_what_was_decided(inarch: Run, model: Path, plan: Path) -> None:
    done = inarch("compile", model, plan, "--dry-run", "--explain")
    assert done.code == 0
    assert narrow(done.out)
    for site in json.loads(inarch("compile", model, plan, "--dry-run", "--json").out)["decisions"]:
        if site["changed"]:
            assert f"\n{site['site']}\n" in f"\n{done.out}"
    assert "limits of the table shipped for CPUs" in done.out
    assert "alone" in done.out


def test_explain_says_why_a_segment_is_private_and_what_that_costs(inarch: Run, model: Path, plan: Path) -> None:
    done = inarch("compile", model, plan, "--dry-run", "--explain", "--cost", "gpu", "--prefer", "latency")
    text = " ".join(done.out.split())
    assert "stored here once more" in text
    assert "a shared block too small to pay for its kernels" in text
    entries = json.loads(inarch("compile", model, plan, "--dry-run", "--cost", "gpu", "--prefer", "latency", "--json").out)[
        "legalised"
    ]
    assert any(entry["reason"] == "segment-size" and entry["base"] for entry in entries)


def test_inspect_puts_sites_that_are_alike_under_one_name(inarch: Run, deep: Path) -> None:
    done = inarch("inspect", deep)
    assert narrow(done.out)
    assert "0-10.mlp" in done.out
    assert len([line for line in done.out.split("\n\n")[0].splitlines() if "ffn" in line]) == 2
    every = inarch("inspect", deep, "--all")
    assert narrow(every.out)
    assert len([line for line in every.out.split("\n\n")[0].splitlines() if "ffn" in line]) == 12


def test_a_model_that_inarch_did_not_write_has_no_origin(inarch: Run, model: Path, compiled: Path) -> None:
    assert json.loads(inarch("inspect", model, "--json").out)["compiled"] is None
    origin = json.loads(inarch("inspect", compiled, "--json").out)["compiled"]
    assert origin["cost_name"] == "cpu"
    assert origin["onnxruntime"] == ">=1.21"
    assert "with cost table shipped for CPUs" in inarch("inspect", compiled).out


def test_damaged_metadata_is_no_defect() -> None:
    origin = compiled_with({"inarch.plan": "0" * 64, "inarch.shared": "{", "inarch.stored": "many"})
    assert origin is not None
    assert (origin["shared_tensors"], origin["stored_parameters"], origin["cost"]) == (0, None, None)


def test_what_a_file_was_quantised_to() -> None:
    assert quantised_to({"inarch.quantised": '{"to": "int8", "tensors": 3}'}) == "int8"
    for text in ("{", "[]", "{}", '{"to": 8}', "null"):
        assert quantised_to({"inarch.quantised": text}) is None
    assert quantised_to({}) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.0.b", "a.1.b", "a.2.b"], "a.0-2.b"),
        (["a.0.b", "a.2.b"], "a.0,2.b"),
        (["a.0.b.1", "a.1.b.0"], "a.*.b.*"),
        (["a.7.b.0", "a.7.b.1"], "a.7.b.0-1"),
        (["plain"], "plain"),
        (["conv1"], "conv1"),
    ],
)
def test_names_that_differ_in_numbers_are_written_as_one(names: Sequence[str], expected: str) -> None:
    assert common_name(names) == expected


def test_what_is_said_of_many_is_said_once() -> None:
    items = [(("too wide",), "a.0"), (("too wide",), "a.1"), (("frozen",), "a.2"), (("too wide",), "b")]
    assert list(together(items)) == [(("too wide",), "a.0-1 (2 times)"), (("frozen",), "a.2"), (("too wide",), "b")]


def test_names_are_broken_after_dots(capsys: pytest.CaptureFixture[str]) -> None:
    shown = render.table("site", ("units", "right"), "why")
    render.add_row(shown, f"{LONG}.10.attention", "1,234", "a reason that takes some room, and then a little more of it")
    render.show(shown)
    out = capsys.readouterr().out
    assert narrow(out)
    pieces = [line.split()[0] for line in out.splitlines()[2:] if line.strip() and line[0] != " "]
    assert "".join(pieces).startswith(f"{LONG}.10.attention")
    assert all(piece[-1] in "._" for piece in pieces[:-1])


def test_a_word_without_dots_that_is_too_long_is_folded(capsys: pytest.CaptureFixture[str]) -> None:
    shown = render.table("name", "value")
    render.add_row(shown, "x" * 100 + "." + "y" * 100, "1")
    render.show(shown)
    out = capsys.readouterr().out
    assert narrow(out)
    assert out.count("x") == out.count("y") == 100


def test_plan_diff_sums_the_axes(inarch: Run, model: Path, plan: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    inarch("plan", "make", model, "--keep", "0.9", "--method", "magnitude", "-o", other)
    done = inarch("plan", "diff", plan, other)
    assert narrow(done.out)
    (total,) = [line.split() for line in done.out.splitlines() if line.startswith("all sites")]
    axes = json.loads(inarch("plan", "diff", plan, other, "--json").out)["axes"]
    counts = [sum(len(parse_sequence(axis[key])) for axis in axes) for key in ("pruned", "restored")]
    counts += [sum(len(parse_sequence(one["units"])) for axis in axes for one in axis[key]) for key in ("shared", "unshared")]
    assert [int(cell.replace(",", "")) for cell in total[3:]] == [count for count in counts if count]


def test_lint_lowers_with_the_preference_that_compiling_gets(inarch: Run, model: Path, plan: Path) -> None:
    def stored(*arguments: str | Path) -> int:
        return int(json.loads(inarch(*arguments, "--cost", "gpu", "--prefer", "latency", "--json").out)["stored_parameters"])

    assert stored("plan", "lint", plan, model) == stored("compile", model, plan, "--dry-run")


@pytest.mark.parametrize("command", ["calibrate", "completion", "inspect", "compile", "plan lint"])
def test_help_reads_well(inarch: Run, command: str) -> None:
    done = inarch(*command.split(), "--help")
    assert done.code == 0
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert {"--json", "--debug"} <= set(done.out.split())


def test_every_kind_of_decision_has_its_words() -> None:
    legalised = (
        Legalised("me", "hidden", "multiple", 6, 600),
        Legalised("me", "hidden", "segment-size", 1, 100, "other"),
        Legalised("me", "hidden", "segment-limit", 2, 200, "me"),
        Legalised("me", "hidden", "tied", 0, 50),
    )
    blocks = (BlockDecision(1, 40, "segment0.hidden", ("a", "b", "c")), BlockDecision(1, 20))
    axis = AxisStorage("hidden", 64, 4, 6, 3, blocks)
    told = list(lines(SiteDecision("me", "ffn", True, 4096, 100, 2000, 2, 4, (axis,), legalised), 4.0))
    assert told == [
        "4,096 -> 2,100 parameters, 2,000 of them shared; 2 -> 4 matrix products",
        "hidden: 64 units: 40 shared with a, b and 1 more; 20 alone, 4 pruned",
        "+ 6 hidden units kept as zeros (600 numbers, 2.4 kB): widths are multiples that the hardware likes",
        "+ 1 hidden unit of other stored here once more (100 numbers, 400 B): a shared block too small to pay for its kernels",
        "+ 2 hidden units kept though others read the same (200 numbers, 800 B): more shared blocks than a projection may have",
        "+ 50 numbers, 200 B on hidden: what the dense model ties and the site now holds alone",
    ]
    gone = SiteDecision("me", "ffn", True, 4096, 0, 0, 2, 0, (AxisStorage("hidden", 64, 64, 0, 0, ()),), ())
    assert list(lines(gone, 4.0)) == ["4,096 -> 0 parameters; 2 -> 0 matrix products", "hidden: all 64 units pruned"]


def test_every_reason_has_its_words() -> None:
    fields = str(Legalised.__doc__)
    named = set(re.findall(r"``([a-z-]+)``", fields))
    assert named == set(REASONS)
    assert set(LINK_REASONS) <= named
