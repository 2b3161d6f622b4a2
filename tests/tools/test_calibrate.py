"""``inarch calibrate``: what is measured becomes a table that compiling uses. The clock is a made-up one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

import inarch.runtime.calibrate as kernels
from inarch.runtime.kernels import Shape, Variant, variants
from inarch.structure.cost import DEFAULT_COST, SHIPPED, cost_hash, load_cost
from inarch.tools import calibrate

from tests.tools.conftest import Run

SHAPES = (Shape("ffn", 8, 256, 1, 3), Shape("msa", 8, 64, 4, 3))


def narrow(text: str) -> bool:
    """Whether nothing is wider than a terminal but a path, which cannot be broken."""
    return all(len(line) <= 80 or line.startswith("/") for line in text.splitlines())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A machine on which a further block costs 1 % of a site; the list's number is how much its times scatter."""
    scatter = [0.0]
    monkeypatch.setattr(calibrate, "busy", lambda: False)

    def rounds(
        shape: Shape, forms: list[Variant], *unused: object
    ) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], bool]:
        times = np.array([form.stored / shape.units * (1 + 0.01 * (form.blocks - 1)) for form in forms])
        noise = np.random.default_rng(0).uniform(1, 1 + scatter[0], (15, len(forms)))
        return times * noise, not scatter[0]

    monkeypatch.setattr(kernels, "_rounds", rounds)
    monkeypatch.setattr(kernels, "time_kernels", partial(kernels.time_kernels, shapes=SHAPES))
    return scatter


def test_a_table_is_written_and_compiling_uses_it(
    inarch: Run, machine: list[float], model: Path, plan: Path, tmp_path: Path
) -> None:
    cost, out = tmp_path / "cost.json", tmp_path / "c.onnx"
    done = inarch("calibrate", "-o", cost, "--threads", "1,2")
    assert done.code == 0, done.err
    assert narrow(done.out)
    table = load_cost(cost)
    assert table.balanced.max_segments == 3  # 2 % for two more blocks
    assert table.measured is not None
    assert {figure.threads for figure in table.measured.figures} == {1, 2}
    assert len(table.measured.figures) == 2 * sum(len(variants(shape)) for shape in SHAPES)
    told = inarch("compile", model, plan, "-o", out, "--cost", cost)
    assert f"a table of your own ({cost_hash(table)[:12]})" in told.out
    metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert metadata["inarch.cost"] == cost_hash(table)
    assert cost_hash(table) in inarch("inspect", out).out.replace("\n", "")
    assert json.loads(inarch("inspect", out, "--json").out)["compiled"]["cost"] == cost_hash(table)


def test_json_is_the_table_and_how_sure_it_is(inarch: Run, machine: list[float], tmp_path: Path) -> None:
    document = json.loads(inarch("calibrate", "-o", tmp_path / "cost.json", "--json").out)
    table = load_cost(tmp_path / "cost.json")
    assert document["format"] == "inarch.calibrated/1"
    assert document["hash"] == cost_hash(table)
    assert (document["noise"], document["tight"]) == (0, True)
    assert document["table"]["balanced"] == table.balanced.model_dump()


def test_times_that_scatter_too_much_write_nothing(inarch: Run, machine: list[float], tmp_path: Path) -> None:
    machine[0] = 0.5
    done = inarch("calibrate", "-o", tmp_path / "cost.json")
    assert done.code == 1
    assert "Nothing was written" in done.out.replace("\n", " ")
    assert narrow(done.out)
    document = json.loads(inarch("calibrate", "-o", tmp_path / "cost.json", "--json").out)
    assert document["out"] is None
    assert document["noise"] > calibrate.TOO_NOISY
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_could_not_be_written_is_not_measured(inarch: Run, machine: list[float], tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "none" / "cost.json"):
        done = inarch("calibrate", "-o", out)
        assert (done.code, done.out) == (2, "")
        assert "hint: name a file" in done.err


def test_a_busy_machine_is_warned_about(
    inarch: Run, machine: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "busy", lambda: True)
    assert "warning:" in inarch("calibrate", "-o", tmp_path / "cost.json").err


def test_the_schema_is_the_committed_one(inarch: Run) -> None:
    committed = Path(__file__).parents[2] / "structure" / "cost.schema.json"
    assert inarch("calibrate", "--schema").out == committed.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [["--threads", "0"], ["--threads", "one"], ["--provider", "nosuch"], ["--precision", "fp16"]],
    ids=lambda value: "-".join(value).strip("-"),
)
def test_bad_input_exits_with_2_and_says_what_to_do(
    inarch: Run, machine: list[float], tmp_path: Path, arguments: list[str]
) -> None:
    done = inarch("calibrate", "-o", tmp_path / "cost.json", *arguments)
    assert done.code == 2
    assert done.err.startswith("error:")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefer", [None, "size", "latency"])
@pytest.mark.parametrize("cost", [None, "gpu"])
def test_every_table_and_preference_compiles_to_an_equivalent_model(
    inarch: Run, model: Path, plan: Path, tmp_path: Path, cost: str | None, prefer: str | None
) -> None:
    out = tmp_path / "c.onnx"
    options = [*(["--cost", cost] if cost else []), *(["--prefer", prefer] if prefer else [])]
    document = json.loads(inarch("compile", model, plan, "-o", out, *options, "--json").out)
    table = SHIPPED[cost or "cpu"]
    assert document["cost"] == {
        "hash": cost_hash(table),
        "name": cost or "cpu",
        "prefer": prefer,
        "limits": table.limits(prefer).model_dump(),
    }
    origin = json.loads(inarch("inspect", out, "--json").out)["compiled"]
    assert (origin["cost_name"], origin["prefer"]) == (cost or "cpu", prefer)
    assert origin["stored_parameters"] == document["stored_parameters"]
    assert inarch("verify", model, plan, out).code == 0


def test_preferring_size_stores_least_and_latency_has_the_fewest_products(inarch: Run, model: Path, plan: Path) -> None:
    def run(*options: str) -> tuple[int, int]:
        document = json.loads(inarch("compile", model, plan, "--dry-run", "--json", *options).out)
        return document["stored_parameters"], sum(decision["products"] for decision in document["decisions"])

    size, balanced, latency = run("--prefer", "size"), run(), run("--prefer", "latency")
    assert size[0] <= balanced[0] <= latency[0]
    assert size[1] >= balanced[1] >= latency[1]
    assert size != latency


def test_a_missing_table_names_the_shipped_ones(inarch: Run, model: Path, plan: Path, tmp_path: Path) -> None:
    done = inarch("compile", model, plan, "--dry-run", "--cost", tmp_path / "none.json")
    assert done.code == 2
    assert "cpu and gpu" in done.err
    assert DEFAULT_COST.limits() == load_cost("cpu").limits()
