"""Whole runs: what they leave in their folders, that they go on, what they refuse; and every method."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inarch.learning import runs
from inarch.learning import workshop as workshops
from inarch.learning.config import LearnConfig, Optimisation, TuneConfig
from inarch.learning.folders import read_run
from inarch.learning.gates import Hard
from inarch.learning.harden import as_plan
from inarch.learning.methods import LEARNED, METHODS, narrowed, obtain
from inarch.learning.models import build
from inarch.learning.models.examples import run_eager
from inarch.learning.plots import plot_run, plot_structure, site_shares
from inarch.learning.runs import judge, learn, structured_model, tune, tune_weights
from inarch.learning.tally import Tally, backbone_parameters, tally
from inarch.learning.tasks.courses import tensors
from inarch.learning.trainer import accelerator, read_log
from inarch.learning.weights import keep_weights, model_weights, read_weights, weights_of
from inarch.learning.workshop import Workshop, gate_space, replaced, task_of
from inarch.structure.errors import InarchError
from inarch.structure.plan import Plan, load_plan

from tests.learning import tiny
from tests.learning.exported import compiled, distance, off_plan
from tests.learning.tasks.annotated import make_files, settings

BRIEF = Optimisation(steps=4, warmup=1, rate=3e-3)


class Untouched(Exception):
    pass


def never(*_: object) -> None:
    raise Untouched


@pytest.fixture(scope="module")
def folder(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run."""
    made = tmp_path_factory.mktemp("runs") / "run"
    learn(tiny.CONFIG, made, device="cpu")
    return made


def names(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "tensorboard" not in str(path)
    )


def test_what_a_run_leaves(folder: Path, shop: Workshop) -> None:
    logs = ["dense/log.csv", "learning/checkpoint.pt", "learning/log.csv"]
    assert names(folder) == sorted(["config.json", "dense.safetensors", "plan.json", "weights.safetensors", *logs])
    assert read_run(folder) == tiny.CONFIG
    # Every default is written, so that a later version's others change nothing.
    assert json.loads((folder / "config.json").read_text())["structure"].keys() == tiny.CONFIG.structure.model_dump().keys()
    plan, weights = load_plan(folder / "plan.json"), model_weights(read_weights(folder / "weights.safetensors"))
    assert off_plan(shop.model, weights, plan) == []
    assert plan.expect is not None
    assert abs(plan.expect.parameters - 0.75 * shop.table.parameters) < 0.03 * shop.table.parameters


def test_the_same_run_again_is_the_same(folder: Path, tmp_path: Path) -> None:
    learn(tiny.CONFIG, tmp_path, device="cpu")
    for name in ("plan.json", "dense.safetensors", "weights.safetensors", "dense/log.csv", "learning/log.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    other = tiny.config(seed=1)
    learn(other, tmp_path / "other", device="cpu")
    first, second = (read_weights(place / "dense.safetensors") for place in (tmp_path, tmp_path / "other"))
    assert all((second[name] != value).any() for name, value in first.items() if name.startswith("auxiliary.cell."))


def test_a_complete_run_is_not_done_again(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    hardened = learn(tiny.CONFIG, folder, device="cpu", progress=never)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert hardened.plan == load_plan(folder / "plan.json")


@pytest.mark.parametrize("stop", [("dense", 5), ("learning", 4)])
def test_a_killed_run_goes_on(folder: Path, tmp_path: Path, stop: tuple[str, int]) -> None:
    def kill(phase: str, done: int, _: int) -> None:
        if (phase, done) == stop:
            raise Untouched

    with pytest.raises(Untouched):
        learn(tiny.CONFIG, tmp_path, device="cpu", progress=kill)
    learn(tiny.CONFIG, tmp_path, device="cpu")
    for name in ("plan.json", "weights.safetensors", "learning/log.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.fixture(scope="module")
def taught(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with a teacher."""
    made = tmp_path_factory.mktemp("runs") / "taught"
    learn(tiny.config(distil=2.0), made, device="cpu")
    return made


def test_a_structure_is_learned_with_a_teacher(folder: Path, taught: Path, shop: Workshop) -> None:
    assert set(names(taught)) - set(names(folder)) == {"teacher.safetensors", "teacher/log.csv"}
    assert (taught / "dense.safetensors").read_bytes() == (folder / "dense.safetensors").read_bytes()
    dense, teacher = (read_weights(taught / name) for name in ("dense.safetensors", "teacher.safetensors"))
    assert any((teacher[name] != value).any() for name, value in dense.items()), "it goes on with training"
    logs = {name: read_log(taught / name / "log.csv") for name in ("dense", "teacher", "learning")}
    assert [name for name, log in logs.items() if "distil" in log] == ["learning"]
    assert max(logs["teacher"]["loss"][0]) == max(logs["learning"]["loss"][0]), "as many steps"
    # Gates start from what units are worth to the dense model; that it is taught is seen by weights and gates from then on.
    learned = [read_weights(run / "weights.safetensors") for run in (folder, taught)]
    assert any((learned[0][name] != value).any() for name, value in learned[1].items())
    plan = load_plan(taught / "plan.json")
    assert off_plan(shop.model, model_weights(learned[1]), plan) == []
    config = TuneConfig(kind="grounding", distil=0.5)
    assert all(
        torch.equal(value, teacher[name]) for name, value in runs._teacher(replaced(shop, distil=2.0), taught, config).items()
    )


@pytest.mark.parametrize("stop", [("teacher", 5), ("learning", 4)])
def test_a_killed_run_with_a_teacher_goes_on(taught: Path, tmp_path: Path, stop: tuple[str, int]) -> None:
    def kill(phase: str, done: int, _: int) -> None:
        if (phase, done) == stop:
            raise Untouched

    config = tiny.config(distil=2.0)
    with pytest.raises(Untouched):
        learn(config, tmp_path, device="cpu", progress=kill)
    learn(config, tmp_path, device="cpu")
    for name in ("plan.json", "weights.safetensors", "teacher.safetensors", "teacher/log.csv", "learning/log.csv"):
        assert (tmp_path / name).read_bytes() == (taught / name).read_bytes(), name


def test_dense_weights_of_another_run(folder: Path, tmp_path: Path) -> None:
    config = tiny.config(weights=str(folder / "dense.safetensors"))
    learn(config, tmp_path, device="cpu")
    for name in ("plan.json", "weights.safetensors"):
        # All but where the weights came from is equal.
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert not (tmp_path / "dense").exists()


def test_another_run_in_the_folder_is_refused(folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(InarchError, match="another run is here, with another seed"):
        learn(tiny.config(seed=1), folder, device="cpu", progress=never)
    assert (folder / "config.json").read_bytes() == before


def test_a_run_of_an_older_version_is_read_but_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    del document["structure"]["core"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert read_run(tmp_path) == tiny.CONFIG
    with pytest.raises(InarchError, match=r"begun by a version that had no setting structure\.core"):
        learn(tiny.CONFIG, tmp_path, device="cpu", progress=never)
    with pytest.raises(InarchError, match="another run is here, with another seed"):
        learn(tiny.config(seed=1), tmp_path, device="cpu", progress=never)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nosuch"}, "no such preset"),
        ({"data": {"side": 50}}, "patches"),
        ({"model": "small-glip", "data": {"side": 48}}, "multiple of 32"),
        ({"weights": "nosuch.safetensors"}, r"nosuch\.safetensors: is not there"),
        ({"structure": {"keep": 0.01}}, "0.01 is out of reach"),
        ({"structure": {"prune": False, "keep": 0.1}}, "0.1 is out of reach"),
    ],
)
def test_what_cannot_be_set_up_leaves_no_folder(shop: Workshop, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InarchError, match=message):
        learn(tiny.config(**changes), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_sharing_where_nothing_can_be_shared(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshops, "families", lambda table, sharing, block: [])
    with pytest.raises(InarchError, match=r"structure\.sharing: nothing of small can be shared so"):
        learn(tiny.config(structure={"sharing": "cross"}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_families_that_are_named(shop: Workshop) -> None:
    wanted = {"transformer.text_encoder.encoder.layer.1.ffn": ("backbone.0.body.layers.0.mlp",)}
    space = gate_space(replaced(shop, structure=shop.config.structure.model_copy(update={"families": wanted})))
    assert {family.base: family.readers for family in space.families} == wanted


def test_attentions_lose_heads_of_their_own_unless_they_may_share(shop: Workshop) -> None:
    for changes, together in (({}, False), ({"bound": True}, True), ({"fill": "all"}, True), ({"fill": "none"}, True)):
        space = gate_space(_with(shop, **changes))
        assert any(len(group.sites) > 1 and group.logits is not None for group in space.groups) is together, changes
        readers = {name for family in space.families for name in family.readers}
        assert any(name.endswith(("ffn", "mlp")) for name in readers)
        assert any(name.endswith("attn") for name in readers) is together, changes


def test_families_that_are_named_and_would_share_nothing(shop: Workshop) -> None:
    text, vision = "transformer.text_encoder.encoder.layer.0.attention", "backbone.0.body.layers.0.attn"
    structure = shop.config.structure.model_copy(update={"families": {text: (vision,)}})
    for fill in ("all", "none"):
        space = gate_space(replaced(shop, structure=structure.model_copy(update={"fill": fill})))
        assert [family.readers for family in space.families] == [(vision,)]
    with pytest.raises(InarchError, match=rf"structure\.families: '{text}' would share nothing: what is filled is hidden"):
        gate_space(replaced(shop, structure=structure))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("PIL")
    pytest.importorskip("tokenizers")
    return make_files(tmp_path_factory.mktemp("files"))


def on_files(files: Path, task: str, **changes: Any) -> LearnConfig:
    return LearnConfig.model_validate(tiny.config(**changes).model_dump() | {"data": settings(files, task)})


def without_sites(config: LearnConfig, shop: Workshop) -> Workshop:
    """A workshop to which sites do not matter: finding them takes an export."""
    world = workshops.world_of(config.data, tiny.MDETR)
    return Workshop(config, world.fitted(tiny.MDETR), world, shop.table)


def test_weights_of_a_run_on_other_data(shop: Workshop, folder: Path, files: Path) -> None:
    """The model's are taken; heads for other answers, and what only training on scenes needed, are not."""
    there = read_weights(folder / "dense.safetensors")
    assert {"model.answer_head.weight", "auxiliary.bias"} <= there.keys()
    for task in ("refcoco", "gqa"):
        other = without_sites(on_files(files, task, weights=str(folder / "dense.safetensors")), shop)
        found, fresh = other.given(), weights_of(other.trainee(other.pretraining()))
        assert found.keys() == fresh.keys()
        assert not any(name.startswith("auxiliary") for name in found)
        for name, value in found.items():
            heads = name.startswith(("model.answer_", "model.qa_embed."))
            torch.testing.assert_close(value, (fresh if heads else there)[name], rtol=0, atol=0)
        assert ("model.answer_obj_head.weight" in found) == (task == "gqa")


def test_a_run_on_files_goes_on_while_they_are_the_same(files: Path, tmp_path: Path, folder: Path) -> None:
    """It needs the weights that it began with no more; but data that are others now would be another run."""
    weights, train = tmp_path / "dense.safetensors", tmp_path / "train.json"
    shutil.copy(folder / "dense.safetensors", weights)
    shutil.copy(files / "refcoco-train.json", train)
    data = settings(files, "refcoco", train=str(train))
    config = LearnConfig.model_validate(tiny.config(weights=str(weights)).model_dump() | {"data": data})

    def kill(phase: str, done: int, _: int) -> None:
        if (phase, done) == ("learning", 4):
            raise Untouched

    for out in (tmp_path / "once", tmp_path / "twice"):
        with pytest.raises(Untouched) if out.name == "twice" else nullcontext():
            learn(config, out, device="cpu", progress=kill if out.name == "twice" else None)
    weights.unlink()
    learn(config, tmp_path / "twice", device="cpu")
    for name in ("plan.json", "weights.safetensors", "learning/log.csv"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name
    train.write_text(train.read_text() + " ")
    with pytest.raises(InarchError, match=r"train\.json: has changed since the run began"):
        learn(config, tmp_path / "twice", device="cpu")


def test_weights_that_were_once_named_from_another_place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of before kept a path as it was typed."""
    shutil.copy(folder / "dense.safetensors", tmp_path / "dense.safetensors")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    learn(tiny.config(weights="dense.safetensors"), run, device="cpu")
    document = json.loads((run / "config.json").read_text())
    assert document["weights"] == str(tmp_path / "dense.safetensors")
    (run / "config.json").write_text(json.dumps(document | {"weights": "dense.safetensors"}))
    learn(read_run(run), run, device="cpu")


def test_what_was_tuned_is_kept_whatever_it_is_judged_on(shop: Workshop, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "files")
    image = tmp_path / "files" / "test0.png"
    run = tmp_path / "run"
    learn(on_files(tmp_path / "files", "refcoco", dense={"steps": 2}, learning={"steps": 2}), run, device="cpu")
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(InarchError, match=r"test0\.png: cannot be read as an image"):
        tune(run, TuneConfig(kind="referring", optimisation=BRIEF), tmp_path / "tuned", device="cpu")
    assert read_weights(tmp_path / "tuned" / "weights.safetensors")
    assert not (tmp_path / "tuned" / "evaluation.json").exists()


def test_weights_of_a_released_checkpoint(shop: Workshop, files: Path, tmp_path: Path) -> None:
    """A checkpoint for grounding has no heads for questions; one of another model is refused before there is a folder."""
    released = build(tiny.MDETR, seed=5)
    path = tmp_path / "released.pth"
    torch.save({"model": {}, "model_ema": released.state_dict()}, path)
    found = without_sites(on_files(files, "gqa", weights=str(path)), shop).given()
    for name, value in released.state_dict().items():
        torch.testing.assert_close(found[f"model.{name}"], value, rtol=0, atol=0)
    assert "model.answer_type_head.weight" in found
    learn(on_files(files, "refcoco", weights=str(path), learning={"steps": 2}), tmp_path / "run", device="cpu")
    assert read_weights(tmp_path / "run" / "dense.safetensors").keys() < found.keys()
    other = tiny.MDETR.model_copy(update={"queries": 7})
    torch.save(build(other).state_dict(), path)
    with pytest.raises(InarchError, match=r"released\.pth: the checkpoint does not fit: .*query_embed\.weight \[7, 32\], here"):
        learn(on_files(files, "refcoco", weights=str(path)), tmp_path / "other", device="cpu")
    assert not (tmp_path / "other").exists()


def test_a_tuning_is_no_run(folder: Path, tmp_path: Path) -> None:
    tune(folder, TuneConfig(kind="grounding", optimisation=BRIEF), tmp_path, device="cpu")
    with pytest.raises(InarchError, match="what inarch tune made of a run"):
        read_run(tmp_path)
    with pytest.raises(InarchError, match="another run is here, with another optimisation") as caught:
        tune(folder, TuneConfig(kind="grounding"), tmp_path, device="cpu")
    assert "take another folder, or delete this one" in str(caught.value.hint)


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 64])
def test_weights_that_cannot_be_read(shop: Workshop, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "dense.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InarchError, match=r"dense\.safetensors"):
        learn(tiny.config(weights=str(path)), tmp_path / "run", device="cpu")


def test_another_models_weights(folder: Path, shop: Workshop) -> None:
    weights = model_weights(read_weights(folder / "weights.safetensors"))
    weights.pop("query_embed.weight")
    with pytest.raises(InarchError, match=r"another model's: Missing key.*query_embed"):
        shop.build(weights)


def test_backbones_alone(folder: Path, shop: Workshop) -> None:
    plan = load_plan(folder / "plan.json")
    own, kept = backbone_parameters(plan, shop.table)
    inside = [s for s in shop.table.sites if not s.name.startswith(("transformer.encoder.", "transformer.decoder."))]
    assert own == sum(site.parameters for site in inside)
    assert plan.expect is not None
    # What is saved outside of the backbones is the rest of what is saved.
    assert plan.expect.parameters <= shop.table.parameters - (own - kept)
    nothing = plan.model_copy(update={"sites": {}, "expect": None})
    assert backbone_parameters(nothing, shop.table) == (own, own)


def test_pictures(folder: Path, tmp_path: Path) -> None:
    plot_run(folder, tmp_path / "curves.png")
    plot_structure(load_plan(folder / "plan.json"), tmp_path / "structure.png")
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("curves.png", "structure.png"))
    with pytest.raises(InarchError, match="no log"):
        plot_run(tmp_path, tmp_path / "curves.png")


def test_what_becomes_of_units() -> None:
    def site(keep: str, base: str = "", shared: str = "") -> dict[str, Any]:
        share = [{"base": base, "units": shared, "base_units": shared}] if base else []
        return {"kind": "ffn", "axes": {"hidden": {"size": 8, "keep": keep, "share": share}}, "members": {}}

    text, vision = "text_encoder.layer.0.ffn", "backbone.0.body.layers.0.mlp"
    sites = {
        text: site("0-7"),
        vision: site("0-5", text, "0-2"),
        "text_encoder.layer.1.ffn": site("0-5", text, "0-1"),
        "transformer.encoder.layers.0.ffn": site("0-5", vision, "3"),
    }
    document = {"format": "inarch.plan/1", "model": {"name": "m", "fingerprint": "0" * 64}, "sites": sites, "provenance": {}}
    assert tally(Plan.model_validate(document)) == Tally(units=32, pruned=6, across=4, within=2)


def test_parts_of_units(folder: Path) -> None:
    plan = load_plan(folder / "plan.json")
    for name, site in plan.sites.items():
        kept, shared = site_shares(plan, name)
        sizes = {axis: value for axis, value in site.axes.items() if axis != "head"}
        assert kept == pytest.approx(sum(len(v.kept) for v in sizes.values()) / sum(v.size for v in sizes.values()))
        assert 0 <= shared <= kept <= 1


@pytest.mark.parametrize(("kind", "distil"), [("referring", 0.0), ("vqa", 1.0), ("grounding", 0.5)])
def test_tuning_keeps_the_structure(folder: Path, shop: Workshop, tmp_path: Path, kind: Any, distil: float) -> None:
    teacher = None
    if kind == "vqa":
        teacher = str(tmp_path / "teacher")
        tune(folder, TuneConfig(kind=kind, optimisation=BRIEF, dense=True), Path(teacher), device="cpu")
    config = TuneConfig(kind=kind, optimisation=BRIEF, distil=distil, teacher=teacher)
    judged = tune(folder, config, tmp_path / "tuned", device="cpu")
    made = ["checkpoint.pt", "config.json", "evaluation.json", "log.csv", "source.json", "weights.safetensors"]
    assert names(tmp_path / "tuned") == made
    written = json.loads((tmp_path / "tuned" / "evaluation.json").read_text())
    splits = {split: dict(found.overall) for split, found in judged.items()}
    assert list(splits) == ["test", "unseen"]
    assert splits["test"] != splits["unseen"]
    assert written == {"task": f"scenes/{kind}", "headline": judged["test"].headline, "splits": splits}
    plan, whole = load_plan(folder / "plan.json"), read_weights(tmp_path / "tuned" / "weights.safetensors")
    weights, before = model_weights(whole), model_weights(read_weights(folder / "weights.safetensors"))
    assert any((weights[name] != value).any() for name, value in before.items())
    assert off_plan(shop.model, weights, plan) == []
    assert all(judge(shop, whole, kind, split=split).overall == found.overall for split, found in judged.items())
    assert judged["unseen"].task == f"scenes-unseen/{kind}"
    feeds = task_of(tiny.CONFIG, kind).feeds(np.arange(5))
    structured = structured_model(folder, tmp_path / "tuned")(feeds)
    assert distance(structured, run_eager(shop.build(weights).eval(), feeds)) < 1e-5
    assert distance(compiled(shop.model, weights, plan).run(feeds), structured) < 1e-5


def test_tuning_stores_what_the_plan_does(folder: Path, shop: Workshop, tmp_path: Path) -> None:
    plan = load_plan(folder / "plan.json")
    tune(folder, TuneConfig(optimisation=BRIEF), tmp_path, device="cpu")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["module"]
    trainee = shop.trainee(shop.world.course("referring"))
    beside = sum(p.numel() for p in trainee.parameters()) - sum(p.numel() for p in trainee.model.parameters())
    outside = sum(p.numel() for p in trainee.model.parameters()) - shop.table.parameters
    assert plan.expect is not None
    assert sum(value.numel() for value in saved.values()) - beside - outside == plan.expect.parameters


def test_tuning_the_dense_model(folder: Path, shop: Workshop, tmp_path: Path) -> None:
    judged = tune(folder, TuneConfig(kind="vqa", optimisation=BRIEF, dense=True), tmp_path, device="cpu")
    assert judged["test"].headline == "accuracy"
    assert off_plan(shop.model, model_weights(read_weights(tmp_path / "weights.safetensors")), load_plan(folder / "plan.json"))
    with pytest.raises(InarchError, match="another run is here, with another dense"):
        tune(folder, TuneConfig(kind="vqa", optimisation=BRIEF), tmp_path, device="cpu")
    # The same settings, and another run.
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    weights = read_weights(folder / "dense.safetensors")
    keep_weights({name: value + 1 for name, value in weights.items()}, other / "dense.safetensors")
    with pytest.raises(InarchError, match="another run's model is what is tuned here"):
        tune(other, TuneConfig(kind="vqa", optimisation=BRIEF, dense=True), tmp_path, device="cpu")
    assert (other / "dense.safetensors").stat().st_mode == (other / "plan.json").stat().st_mode


def test_a_teacher_has_to_know_the_task(folder: Path, tmp_path: Path) -> None:
    config = TuneConfig(kind="vqa", optimisation=BRIEF, distil=0.5)
    with pytest.raises(InarchError, match="no teacher for vqa here") as caught:
        tune(folder, config, tmp_path / "tuned", device="cpu")
    assert caught.value.where == str(folder / "vqa-dense")
    assert f"inarch tune {folder} --task vqa --dense" in str(caught.value.hint)
    tune(folder, TuneConfig(optimisation=BRIEF, dense=True), tmp_path / "referring", device="cpu")
    tune(folder, TuneConfig(kind="vqa", optimisation=BRIEF), tmp_path / "small", device="cpu")
    for other in ("referring", "small"):
        with pytest.raises(InarchError, match="no dense model tuned for vqa"):
            tune(folder, config.model_copy(update={"teacher": str(tmp_path / other)}), tmp_path / "tuned", device="cpu")
    assert not (tmp_path / "tuned").exists()


def test_distilling_from_oneself(shop: Workshop) -> None:
    course = shop.world.course("vqa")
    student, teacher = shop.trainee(course), shop.trainee(course)
    batch = tensors(course.batch(0, 0), torch.device("cpu"))
    with torch.no_grad():
        plain = student(batch)
        losses = student.taught_by(teacher, 0.5)(batch)
        assert float(losses.pop("distil")) == pytest.approx(0, abs=1e-6)
        assert {name: float(value) for name, value in losses.items()} == {name: float(value) for name, value in plain.items()}
        for parameter in teacher.model.parameters():
            parameter.mul_(1.1)
        assert float(student(batch)["distil"]) > 1e-3


@pytest.mark.parametrize("kind", ["grounding", "vqa"])
def test_a_pass_gives_the_models_own_outputs(shop: Workshop, kind: Any) -> None:
    course = shop.world.course(kind)
    trainee = shop.trainee(course).eval()
    batch = tensors(course.batch(0, 0), torch.device("cpu"))
    with torch.no_grad():
        found = trainee.outputs(trainee.through(batch))
        wanted = trainee.model(**trainee.inputs(batch))
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_a_killed_tuning_goes_on(folder: Path, tmp_path: Path) -> None:
    config = TuneConfig(kind="grounding", optimisation=BRIEF.model_copy(update={"interval": 2}), distil=0.5)

    def kill(_: str, done: int, __: int) -> None:
        if done == 3:
            raise Untouched

    tune(folder, config, tmp_path / "whole", device="cpu")
    with pytest.raises(Untouched):
        tune(folder, config, tmp_path / "killed", device="cpu", progress=kill)
    tune(folder, config, tmp_path / "killed", device="cpu")
    for name in ("weights.safetensors", "log.csv", "evaluation.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_tuning_what_is_not_complete(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InarchError, match="no run here"):
        tune(tmp_path, TuneConfig(), tmp_path / "tuned", device="cpu")
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(InarchError, match="is not there"):
        tune(tmp_path, TuneConfig(), tmp_path / "tuned", device="cpu")
    assert not (tmp_path / "tuned").exists()
    with pytest.raises(InarchError, match="no detection with MDETR"):
        tune(folder, TuneConfig(kind="detection"), tmp_path / "tuned", device="cpu")


def test_a_heavy_plan_can_be_tuned(shop: Workshop, tmp_path: Path) -> None:
    """Of two whole sites nothing is left: their parameters are empty."""
    dense = shop.trainee(shop.pretraining()).state_dict()
    space = gate_space(_with(shop, sharing="none"))
    keep = {key: np.ones(spec.heads * spec.per_head, np.bool_) for key, spec in space.axes.items()}
    gone = [key for key in keep if key[0] in ("backbone.0.body.layers.1.attn", "transformer.encoder.layers.0.ffn")]
    assert len(gone) == 3
    for key in gone:
        keep[key][:] = False
    plan = as_plan(space, Hard(keep, {key: ~mask & False for key, mask in keep.items()}), "small", {}).plan
    weights = tune_weights(shop, dense, plan, TuneConfig(optimisation=BRIEF), tmp_path, accelerator("no", "cpu"))
    assert off_plan(shop.model, model_weights(weights), plan) == []


def _with(shop: Workshop, **structure: Any) -> Workshop:
    return replaced(shop, structure=shop.config.structure.model_copy(update=structure))


@pytest.mark.parametrize("method", METHODS)
def test_every_method(folder: Path, shop: Workshop, tmp_path: Path, method: str) -> None:
    dense = read_weights(folder / "dense.safetensors")
    brief = replaced(shop, learning=shop.config.learning.model_copy(update={"steps": 4}))
    outcome = obtain(brief, dense, method, tmp_path, accelerator("no", "cpu"))
    kept = outcome.stored / shop.table.parameters
    if method == "rule-cross":  # it cannot share more than one backbone
        assert 0.75 - 0.03 <= kept <= 0.9
    else:
        assert abs(kept - (1.0 if method == "dense" else 0.75)) < 0.03
    assert outcome.planned == outcome.stored
    assert (outcome.plan is None) == (method in ("dense", "scratch"))
    if outcome.plan is not None:
        assert off_plan(shop.model, model_weights(outcome.weights), outcome.plan) == []
        _check_kind(method, outcome.plan)
    assert judge(outcome.shop, outcome.weights, "grounding", limit=4).headline == "recall@1"


def _check_kind(method: str, plan: Plan) -> None:
    axes = [axis for site in plan.sites.values() for name, axis in site.axes.items() if name != "head"]
    shares, prunes = any(axis.share for axis in axes), any(len(axis.kept) < axis.size for axis in axes)
    if method in ("prune", "magnitude", "uniform"):
        assert (shares, prunes) == (False, True)
    if method in ("share", "rule-layer", "rule-cross"):
        assert (shares, prunes) == (True, False)


def test_there_is_no_other_method(folder: Path, shop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(InarchError, match="no method 'luck'"):
        obtain(shop, read_weights(folder / "dense.safetensors"), "luck", tmp_path, accelerator("no", "cpu"))
    assert set(LEARNED) < set(METHODS)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("small", 0.2),
        ("small", 0.6),
        ("mdetr-tiny", 0.2),
        ("mdetr-tiny", 0.6),
        ("mdetr-tiny", 0.75),
        ("mdetr-vit-s-minilm", 0.35),
    ],
)
def test_narrowed_models_have_the_size(small_presets: None, name: str, part: float) -> None:
    whole: Any = build(name, device="meta").config
    target = part * sum(p.numel() for p in build(whole, device="meta").parameters())
    config = narrowed(whole, target)
    count = sum(p.numel() for p in build(config, device="meta").parameters())
    assert count == pytest.approx(target, rel=0.01)
    assert (config.encoder_layers, config.queries) == (whole.encoder_layers, whole.queries)
    assert config.width < whole.width


def test_what_cannot_be_narrowed() -> None:
    for name in ("mdetr-tiny-resnet", "glip-tiny"):
        with pytest.raises(InarchError, match="only an MDETR of transformers"):
            narrowed(build(name, device="meta").config, 1e5)


def test_settings_in_order() -> None:
    with pytest.raises(ValueError, match="cannot arrive"):
        LearnConfig.model_validate({"structure": {"freeze": 0.8, "arrive": 0.5}})
