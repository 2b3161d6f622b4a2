"""From a run folder to a page: what is read, what is said, and what is left out."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from inarch.structure.errors import InarchError
from inarch.structure.plan import load_plan, save_plan
from inarch.tools import report_words as words
from inarch.tools.report import write_report
from inarch.tools.report_collect import collect
from inarch.tools.report_data import Page
from inarch.tools.report_page import render_page

from tests.report.run_folder import bench_document, make_run, rewrite
from tests.tools.conftest import Run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "run")


def said(page: Page) -> str:
    return " ".join(page.summary)


def figures(page: Page) -> dict[str, str]:
    return {figure.label: figure.value for figure in page.figures}


def test_a_whole_run(made: Path) -> None:
    page = collect(made)
    assert page.state == "equivalent"
    assert not page.missing
    assert not page.notes
    assert said(page).startswith("Two small towers were joined. The compiled model holds ")
    assert "to float rounding" in said(page)
    assert "On 120 held-out samples of scenes/referring, precision@1 is 60.0 %, 60.0 % for the dense model: 0.0 p" in said(page)
    assert "a run takes 0.50 of the dense model's time (1 thread) and loading it takes 50 % less memory." in said(page)
    assert figures(page) | {"fewer parameters": "24.0 %"} == {
        "fewer parameters": "24.0 %",
        "points of precision@1": "0.0",
        "equivalent": "Yes",
        "of the latency": f"0.50{words.TIMES}",
        "memory of the model": f"{words.MINUS}50.0 %",
    }


def test_the_waterfall_leads_from_dense_to_compiled(made: Path) -> None:
    page = collect(made)
    steps = page.steps
    report = json.loads((made / "compile.json").read_bytes())
    assert (steps[0].amount, steps[-1].amount) == (report["parameters"], report["stored_parameters"])
    assert [step.label for step in steps[1:4]] == ["Pruned", "Shared across", "Shared between layers"]
    at = steps[0].amount
    for step in steps[1:-1]:
        assert at in (step.low, step.high)
        assert step.high - step.low == abs(step.amount)
        at += step.amount
    assert at == steps[-1].amount


def test_what_legalising_gives_back_is_a_step_of_its_own(folder: Path) -> None:
    report = json.loads((folder / "compile.json").read_bytes())
    entry = {"site": "text.encoder.layer.0.ffn", "axis": "hidden", "reason": "multiple", "units": 3, "parameters": 291}
    rewrite(folder / "compile.json", stored_parameters=report["stored_parameters"] + 291, legalised=[*report["legalised"], entry])
    page = collect(folder)
    (step,) = [step for step in page.steps if step.label == "Given back" and step.amount == 291]
    assert "multiples that the hardware likes" in step.note
    assert page.given_back["text.encoder.layer.0.ffn"] == (3, 291)
    (row,) = [row for row in page.decisions if row.site == "text.encoder.layer.0.ffn"]
    assert row.reasons[-1].startswith("+291 on hidden")


def test_a_wrong_model_is_said_first_and_loud(folder: Path) -> None:
    verified = json.loads((folder / "verify.json").read_bytes())
    first = {"site": "vision.encoder.layer.1.ffn", "value": "v", "max_abs": 1.0}
    wrong = verified["equivalence"] | {"ok": False, "first_site": first}
    rewrite(folder / "verify.json", ok=False, equivalence=wrong)
    page = collect(folder)
    assert page.state == "different"
    assert "It does not compute what the plan asks for, first at vision.encoder.layer.1.ffn: do not use it." in said(page)
    assert figures(page)["equivalent"] == "No"
    assert "lead-bad" in render_page(page)


def test_sharing_that_is_lost_is_said(folder: Path) -> None:
    verified = json.loads((folder / "verify.json").read_bytes())
    first, *others = verified["sharing"]["tensors"]
    broken = [first | {"ok": False, "reason": "ONNX Runtime keeps 2 copies"}, *others]
    rewrite(folder / "verify.json", ok=False, sharing=verified["sharing"] | {"ok": False, "tensors": broken})
    page = collect(folder)
    assert page.state == "unshared"
    assert "keeps 2 copies" in page.proofs[0].bad_tensors[0]


def test_a_folder_filled_by_hand(folder: Path) -> None:
    for name in ("run.json", "evaluation-referring.json", "evaluation-vqa.json", "examples-referring.json", "examples-vqa.json"):
        (folder / name).unlink()
    page = collect(folder)
    assert list(page.missing) == ["accuracy", "examples"]
    assert "inarch evaluate" in page.missing["accuracy"].command
    assert page.title == "two-tower"
    assert any("inarch verify model.onnx plan.json compiled.onnx" in command for command in page.provenance.commands)
    assert {name for name, _, _ in page.provenance.files} == {"model.onnx", "compiled.onnx"}
    text = render_page(page)
    assert "How right the model" in text
    assert "inarch evaluate compiled.onnx --against dense.onnx --task TASK --json &gt; evaluation.json" in text


def test_a_plan_alone_is_a_map(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "plan.json", tmp_path / "any-name.json")
    page = collect(tmp_path)
    assert set(page.missing) == {"structure", "size", "proof", "damage", "accuracy", "speed", "examples"}
    assert page.state == "unverified"
    assert len(page.structure.sites) == 12
    assert figures(page)["fewer parameters"] == words.NONE
    assert page.summary[0] == "This is a plan for two-tower; no compiled model is here."
    assert "Whether it computes what the plan asks for was not verified." in page.summary
    assert 'data-name="vision.encoder.layer.0.ffn"' in render_page(page)


def test_the_model_may_lie_elsewhere(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "plan.json", tmp_path)
    page = collect(tmp_path, made / "model.onnx")
    assert "structure" not in page.missing
    assert page.steps[-1].label == "Planned"
    with pytest.raises(InarchError, match="no such file"):
        collect(tmp_path, tmp_path / "absent.onnx")


def test_files_of_two_runs_are_seen(folder: Path) -> None:
    plan = load_plan(folder / "plan.json")
    save_plan(plan.model_copy(update={"provenance": {"by": "another hand"}}), folder / "plan.json")
    assert "was made with another plan than plan.json" in collect(folder).notes[0]
    assert len(collect(folder).notes) == 1
    rewrite(folder / "bench.json", compiled=bench_document()["compiled"])
    assert "measured a file of 200,000 bytes" in collect(folder).notes[1]
    rewrite(folder / "compile.json", planned_parameters=7)
    assert any("may be of another plan" in note for note in collect(folder).notes)
    rewrite(folder / "compile.json", parameters=7)
    assert any("a model of 7 parameters was compiled" in note for note in collect(folder).notes)


def test_several_providers_stand_beside_each_other(folder: Path) -> None:
    (folder / "bench-cuda.json").write_text(json.dumps(bench_document(provider="CUDAExecutionProvider")), encoding="utf-8")
    page = collect(folder)
    assert [speed.provider for speed in page.speed] == ["CPU", "CUDA"]
    assert "<h3>CUDA</h3>" in render_page(page)


def test_the_plans_parts_have_bars_of_their_own(folder: Path) -> None:
    whole = bench_document()
    part = whole["compiled"] | {"latency": whole["latency"]}
    (folder / "bench.json").write_text(json.dumps(whole | {"pruned": part, "shared": part}), encoding="utf-8")
    (speed,) = collect(folder).speed
    assert [bar.model for bar in speed.latency[0].bars] == ["dense", "pruned", "shared", "compiled"]
    assert [bar.ratio for bar in speed.latency[0].bars] == ["", *[f"0.500{words.TIMES} [0.480, 0.520]"] * 3]


def test_multiplications_stand_beside_the_time_where_they_are_known_of_all(folder: Path) -> None:
    document = bench_document()
    (folder / "bench.json").write_text(json.dumps(document), encoding="utf-8")
    assert "Multiplications" not in [item.label for item in collect(folder).speed[0].latency]
    for name, count in (("dense", 34_669_000_000), ("compiled", 27_735_000_000)):
        document[name]["multiplications"] = count
    (folder / "bench.json").write_text(json.dumps(document), encoding="utf-8")
    work = collect(folder).speed[0].latency[-1]
    assert (work.label, [(bar.text, bar.ratio) for bar in work.bars]) == (
        "Multiplications",
        [("34.67 G", ""), ("27.73 G", f"{words.MINUS}20.0 %")],
    )


def test_a_model_alone_has_no_difference(folder: Path) -> None:
    document = json.loads((folder / "evaluation-vqa.json").read_bytes())
    (folder / "evaluation-referring.json").unlink()
    del document["against"], document["comparison"]
    (folder / "evaluation-vqa.json").write_text(json.dumps(document), encoding="utf-8")
    page = collect(folder)
    assert figures(page)["accuracy"] == "60.0 %"
    assert page.accuracy[0].headline.difference is None
    assert "accuracy" in render_page(page)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bench.json", "", "an empty file"),
        ("bench.json", "{", "is no JSON.*move it elsewhere"),
        ("bench.json", '{"format": "inarch.bench/1", "latency": []}', "dense: Field required"),
        ("second.json", '{"format": "inarch.compiled/1", "parameters": 1}', "two things|Field required"),
        ("more.json", '{"format": "inarch.examples/1", "task": "t", "samples": 1, "changed": 0, "examples": [{}]}', "examples.0"),
    ],
)
def test_a_broken_file_is_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(InarchError, match=message) as caught:
        collect(folder)
    assert name in str(caught.value)


def test_one_plan_is_wanted(folder: Path) -> None:
    shutil.copy(folder / "plan.json", folder / "other.json")
    assert collect(folder).structure.sites  # plan.json is the one
    (folder / "plan.json").rename(folder / "third.json")
    with pytest.raises(InarchError, match="both plans"):
        collect(folder)
    for name in ("other.json", "third.json"):
        (folder / name).unlink()
    with pytest.raises(InarchError, match="no plan"):
        collect(folder)


def test_other_files_are_left_alone(folder: Path) -> None:
    (folder / "config.json").write_text('{"seed": 1}', encoding="utf-8")
    (folder / "list.json").write_text("[1]", encoding="utf-8")
    assert collect(folder).state == "equivalent"


class Outside(HTMLParser):
    """Whatever a page would load from somewhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster") and not (value or "").startswith(("#", "data:")):
                self.found.append(f"{tag} {name}={value}")


def test_the_page_is_one_file(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    write_report(made, out)
    text = out.read_text(encoding="utf-8")
    outside = Outside()
    outside.feed(text)
    assert outside.found == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert out.stat().st_size < 1_500_000
    assert not list(tmp_path.glob("*.part"))


def test_names_are_never_markup(folder: Path) -> None:
    rewrite(folder / "run.json", title="<script>alert(1)</script>", settings={"<b>": "</dl>"})
    text = render_page(collect(folder))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_images_are_data_alone(folder: Path) -> None:
    document: dict[str, Any] = json.loads((folder / "examples-vqa.json").read_bytes())
    document["examples"][0]["image"] = "https://example.org/a.png"
    (folder / "examples-vqa.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InarchError, match=r"examples\.0\.image"):
        collect(folder)


def test_the_command(made: Path, tmp_path: Path, inarch: Run) -> None:
    out = tmp_path / "page.html"
    done = inarch("report", made, "--out", out)
    assert done.code == 0, done.err
    assert f"wrote {out}" in done.out.replace("\n", " ")
    done = inarch("report", made, "-o", out, "--json")
    document = json.loads(done.out)
    assert (document["format"], document["state"], document["missing"]) == ("inarch.report/1", "equivalent", [])
    assert inarch("report", tmp_path / "absent").code == 2
