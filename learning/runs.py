"""Whole runs: dense pre-training, learning a structure, tuning; each in a folder that says how it was made and can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from inarch.learning.config import LearnConfig, TuneConfig
from inarch.learning.folders import (
    CONFIG,
    DENSE,
    DIGESTS,
    EVALUATION,
    PLAN,
    SHALLOW,
    SOURCE,
    TEACHER,
    WEIGHTS,
    claim,
    dense_folder,
    read_run,
    refuse_another,
    refuse_changed,
    refuse_other_source,
    write,
)
from inarch.learning.harden import Hardened, refuse_unreachable
from inarch.learning.matching import match
from inarch.learning.models.examples import run_eager
from inarch.learning.outline import outline
from inarch.learning.phases import LearnPhase, WeightPhase
from inarch.learning.stacking import doubled, halved
from inarch.learning.structured import Structured
from inarch.learning.tasks.aims import Aim
from inarch.learning.tasks.courses import Course, share_of
from inarch.learning.tasks.trainee import Trainee
from inarch.learning.trainer import CHECKPOINT, Progress, accelerator, run
from inarch.learning.unit_rows import UnitRows
from inarch.learning.weights import keep_weights, load_weights, model_weights, read_weights, weights_of
from inarch.learning.workshop import Workshop, gate_space, workshop
from inarch.runtime.accuracy import Arrays, Evaluation, Model, evaluate
from inarch.structure.errors import InarchError
from inarch.structure.plan import Plan, load_plan, plan_hash, save_plan


def as_model(model: nn.Module) -> Model:
    """A module as :func:`~inarch.runtime.accuracy.evaluate` runs it: arrays in, arrays out."""

    def call(feeds: Arrays) -> Arrays:
        return run_eager(model, feeds)

    return call


def train_dense(
    shop: Workshop,
    folder: Path,
    place: Accelerator,
    progress: Progress | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Dense pre-training; returns the trainee's weights, auxiliary heads included, and keeps them in the folder.

    Args:
        shop: the run.
        folder: where they are kept.
        place: processes and device.
        progress: called after every step.
        given: a trainee's weights to take instead, whatever the configuration says.
    """
    course, config = shop.pretraining(), shop.config

    def trained() -> dict[str, Tensor]:
        if given is not None:
            return dict(given)
        begun = train_shallow(shop, folder, place, progress) if config.shallow else None
        trainee = shop.trainee(course)
        if begun is not None:
            load_weights(trainee, doubled(begun, trainee.state_dict()))
        return _pretrained(trainee, config.dense.steps - config.shallow, shop, folder / "dense", place, progress)

    return _once(folder, DENSE, place, trained)


def train_shallow(shop: Workshop, folder: Path, place: Accelerator, progress: Progress | None = None) -> dict[str, Tensor]:
    """The first steps of dense pre-training, of a model with half the layers; kept in the folder."""

    def trained() -> dict[str, Tensor]:
        trainee = replace(shop, model=halved(shop.model)).trainee(shop.pretraining())
        return _pretrained(trainee, shop.config.shallow, shop, folder / "shallow", place, progress)

    return _once(folder, SHALLOW, place, trained)


def _pretrained(
    trainee: Trainee, steps: int, shop: Workshop, folder: Path, place: Accelerator, progress: Progress | None
) -> dict[str, Tensor]:
    """Train a trainee for so many steps of dense pre-training; the folder's name is the phase's."""
    course, config = shop.pretraining(), shop.config
    settings = config.dense.model_copy(update={"steps": steps})

    def phase(module: nn.Module) -> WeightPhase:
        return WeightPhase(folder.name, module, course, settings, place, config.seed)

    return _trained(trainee, None, shop, phase, folder, place, progress)


def _once(folder: Path, name: str, place: Accelerator, made: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Weights that are trained once, and then kept in the folder in their checkpoint's place."""
    done = folder / name
    there = done.exists()
    place.wait_for_everyone()  # nobody looks after another has written
    if there:
        return read_weights(done)
    state = made()
    if place.is_main_process:
        keep_weights(state, done)
        (folder / done.stem / CHECKPOINT).unlink(missing_ok=True)
    place.wait_for_everyone()
    place.free_memory()  # it remembers modules and optimisers that nobody else does
    return state


def train_further(
    shop: Workshop,
    weights: Mapping[str, Tensor],
    plan: Plan | None,
    folder: Path,
    place: Accelerator,
    progress: Progress | None = None,
    teacher: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Further steps of pre-training, as many and at the same rates as a structure is learned with.

    Args:
        shop: the run.
        weights: the trainee's.
        plan: held to from the start; None trains the dense model.
        folder: where its checkpoints are; its name is the phase's.
        place: processes and device.
        progress: called after every step.
        teacher: a dense trainee's weights to distil from, by ``distil``.

    Returns:
        The trainee's weights in the dense layout.
    """
    course, config = shop.pretraining(), shop.config

    def phase(module: nn.Module) -> WeightPhase:
        return WeightPhase(folder.name, module, course, config.learning, place, config.seed)

    trainee = shop.trainee(course, weights).to(place.device)
    _teach(trainee, teacher, config.distil, shop, course)
    return _trained(trainee, plan, shop, phase, folder, place, progress)


def _teach(trainee: Trainee, teacher: Mapping[str, Tensor] | None, weight: float, shop: Workshop, course: Course) -> None:
    """Put a teacher beside a trainee, on the trainee's device, if there is one and it has a say."""
    if teacher is not None and weight:
        place = next(trainee.parameters()).device
        trainee.taught_by(shop.trainee(course, teacher).to(place), weight)


def _trained(
    trainee: Trainee,
    plan: Plan | None,
    shop: Workshop,
    phase_of: Callable[[nn.Module], WeightPhase],
    folder: Path,
    place: Accelerator,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Train a trainee under a plan, or without one; returns its weights in the dense layout."""
    module = trainee if plan is None else Structured(trainee, shop.table, plan, "model.")
    run(phase_of(module), folder, main=place.is_main_process, progress=progress)
    if isinstance(module, Structured):
        module.write_back(trainee)
    return weights_of(trainee)


def learn_phase(
    shop: Workshop,
    weights: Mapping[str, Tensor] | None = None,
    place: Accelerator | None = None,
    teacher: Mapping[str, Tensor] | None = None,
) -> LearnPhase:
    """The phase in which a structure is learned, from dense weights, or from random ones.

    Args:
        shop: the run.
        weights: the trainee's.
        place: processes and device; one process on the CPU by default.
        teacher: a dense trainee's weights to distil from, by ``distil``.
    """
    course = shop.pretraining()
    trainee = shop.trainee(course, weights)
    space, config = gate_space(shop), shop.config
    if config.structure.matching:
        model = trainee.get_submodule("model")
        match(space.families, UnitRows(shop.table, model), dict(model.named_parameters(remove_duplicate=False)))
    where = place or accelerator(config.precision, "cpu")
    phase = LearnPhase(trainee, course, config.learning, config.structure, space, where, config.seed, config.model)
    _teach(trainee, teacher, config.distil, shop, course)  # what units are worth to the dense model is known by now
    return phase


def train_structure(
    shop: Workshop,
    weights: Mapping[str, Tensor],
    folder: Path,
    place: Accelerator,
    progress: Progress | None = None,
    teacher: Mapping[str, Tensor] | None = None,
) -> tuple[Hardened, dict[str, Tensor]]:
    """Learn a structure, on what the dense weights were trained on.

    Args:
        shop: the run.
        weights: the dense trainee's.
        folder: where checkpoints are.
        place: processes and device.
        progress: called after every step.
        teacher: a dense trainee's weights to distil from, by ``distil``; see :func:`train_teacher`.

    Returns:
        The structure with its plan, and the trainee's weights, which hold to it.
    """
    phase = learn_phase(shop, weights, place, teacher)
    run(phase, folder / "learning", main=place.is_main_process, progress=progress)
    return phase.harden(), weights_of(phase.trainee)


def train_teacher(
    shop: Workshop, weights: Mapping[str, Tensor], folder: Path, place: Accelerator, progress: Progress | None = None
) -> dict[str, Tensor]:
    """The dense model after as many further steps as a structure is learned in; kept in the folder.

    As it is at the start it would hold its student back: that soon knows as much.
    """
    return _once(folder, TEACHER, place, lambda: train_further(shop, weights, None, folder / "teacher", place, progress))


def learn(config: LearnConfig, folder: Path, *, device: str | None = None, progress: Progress | None = None) -> Hardened:
    """A whole run: dense pre-training, structure, plan. What is there already is not done again.

    The folder gets ``config.json``, ``dense.safetensors``, ``plan.json``, ``weights.safetensors`` (which hold to the plan), logs;
    and ``teacher.safetensors`` where a teacher is asked for.

    Raises:
        InarchError: the folder holds a run with another configuration, or training fails.
    """
    place = accelerator(config.precision, device)
    document = config.model_dump(mode="json")
    refuse_another(document, folder, "go on with that one (inarch learn --resume), or take another folder")
    shop = workshop(config)  # what cannot be set up leaves no folder behind
    check(shop, place.num_processes)
    digests = dict(shop.world.digests)
    refuse_changed(digests, folder)
    given = shop.given() if config.weights is not None and not (folder / DENSE).exists() else None
    claim(document, folder, place)
    if digests and place.is_main_process:
        write(digests, folder / DIGESTS)
    dense = train_dense(shop, folder, place, progress, given)
    teacher = train_teacher(shop, dense, folder, place, progress) if config.distil else None
    hardened, weights = train_structure(shop, dense, folder, place, progress, teacher)
    if place.is_main_process:
        keep_weights(weights, folder / WEIGHTS)
        save_plan(hardened.plan, folder / PLAN)
    place.wait_for_everyone()  # what is written is read next
    return hardened


def check(shop: Workshop, processes: int = 1) -> None:
    """Refuse what would fail only after hours.

    Args:
        shop: the run.
        processes: how many train it.

    Raises:
        InarchError: the data cannot be learned from, nothing can be shared as it is asked for, the budget is out of reach, or
            images cannot be dealt out to the processes.
    """
    shop.world.check(shop.world.first)
    config, structure = shop.config, shop.config.structure
    if config.shallow:
        halved(shop.model)
    space = gate_space(shop)
    if structure.sharing in ("cross", "layer") and not space.readers:
        raise InarchError(
            f"nothing of {config.model} can be shared so",
            where="structure.sharing",
            hint="joint, or structure.fill all if attentions may share, or none to prune alone",
        )
    refuse_unreachable(space, structure.keep, config.model, filled=bool(structure.filled))
    share_of(config.data.images, processes)


def tune(
    run_folder: Path,
    config: TuneConfig,
    folder: Path,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """Fine-tune a run's model on one kind of task, structured by its plan, or dense.

    The folder gets ``config.json``, ``weights.safetensors`` (in the dense layout) and ``evaluation.json``.

    Returns:
        Every held-out split, with how the model does there.

    Raises:
        InarchError: the run is not complete, the folder holds another tuning, or training fails.
    """
    learned = read_run(run_folder)
    place = accelerator(config.precision, device)
    document = config.model_dump(mode="json")
    refuse_another(document, folder, "the same settings go on with it; for others take another folder, or delete this one")
    given = run_folder / (DENSE if config.dense else WEIGHTS)
    source = read_weights(given)
    plan = None if config.dense else load_plan(run_folder / PLAN)
    with given.open("rb") as file:
        begun = {"model": hashlib.file_digest(file, "sha256").hexdigest()}
    if plan is not None:
        begun["plan"] = plan_hash(plan)
    refuse_other_source(begun, folder)
    shop = workshop(learned)
    shop.world.check(config.kind)
    refuse_changed(shop.world.digests, run_folder)
    teacher = None if not config.distil else _teacher(shop, run_folder, config)
    claim(document, folder, place)
    if place.is_main_process:
        write(begun, folder / SOURCE)
    weights = tune_weights(shop, source, plan, config, folder, place, teacher, progress)
    if place.is_main_process:
        keep_weights(weights, folder / WEIGHTS)  # whatever is wrong with what is judged on, they are there
    place.free_memory()  # it remembers the trainee, beside which the model is to find room
    where = place.device
    judged = {one: judge(shop, weights, config.kind, split=one, device=where, progress=progress) for one in shop.world.splits}
    if place.is_main_process:
        write(summary(judged), folder / EVALUATION)
    place.wait_for_everyone()  # what is written is read next
    return judged


def _teacher(shop: Workshop, run_folder: Path, config: TuneConfig) -> dict[str, Tensor]:
    """The weights of a dense model that knows what is tuned for.

    Raises:
        InarchError: there is none, or the folder that was named holds something else.
    """
    if config.teacher is None and config.kind == shop.world.first:
        return read_weights(run_folder / (TEACHER if shop.config.distil else DENSE))
    folder = dense_folder(run_folder, config.kind) if config.teacher is None else Path(config.teacher)
    hint = f"inarch tune {run_folder} --task {config.kind} --dense makes one"
    try:
        there = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InarchError(f"there is no teacher for {config.kind} here", where=str(folder), hint=hint) from None
    if not (isinstance(there, dict) and there.get("dense") is True and there.get("kind") == config.kind):
        raise InarchError(f"what is here is no dense model tuned for {config.kind}", where=str(folder), hint=hint)
    return read_weights(folder / WEIGHTS, hint)


def summary(judged: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Evaluations by split as a document: the task, its headline, and every metric by split."""
    first = next(iter(judged.values()))
    splits = {split: dict(found.overall) for split, found in judged.items()}
    return {"task": first.task, "headline": first.headline, "splits": splits}


def tune_weights(
    shop: Workshop,
    weights: Mapping[str, Tensor],
    plan: Plan | None,
    config: TuneConfig,
    folder: Path,
    place: Accelerator,
    teacher: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Train a trainee on a kind of task from given weights, under a plan if there is one.

    Args:
        shop: the run.
        weights: the trainee's.
        plan: held to by truly tied and truly smaller parameters; None trains the dense model.
        config: of the tuning.
        folder: where its checkpoints are.
        place: processes and device.
        teacher: a dense trainee's weights to distil from, by ``config.distil``.
        progress: called after every step.

    Returns:
        The trainee's weights in the dense layout.
    """
    course = shop.world.course(config.kind)
    trainee = shop.trainee(course, weights).to(place.device)  # before a structure or a teacher is put beside it
    _teach(trainee, teacher, config.distil, shop, course)

    def phase(module: nn.Module) -> WeightPhase:
        return WeightPhase(f"tune-{config.kind}", module, course, config.optimisation, place, config.seed)

    return _trained(trainee, plan, shop, phase, folder, place, progress)


def export_tuned(run_folder: Path, folder: Path) -> onnx_ir.Model:
    """Export tuned weights in the dense layout: the model that is compiled with the run's plan.

    Raises:
        InarchError: the run or the weights are missing.
    """
    shop = workshop(read_run(run_folder))
    model = shop.build(model_weights(read_weights(folder / WEIGHTS)))
    return outline(shop.model).filled(model.state_dict())


def structured_model(run_folder: Path, folder: Path) -> Model:
    """A tuned model under its run's plan, its parameters tied and small, from arrays to arrays."""
    shop = workshop(read_run(run_folder))
    model = shop.build(model_weights(read_weights(folder / WEIGHTS))).eval()
    structured = Structured(model, shop.table, load_plan(run_folder / PLAN)).eval()
    return as_model(structured)


def judge(
    shop: Workshop,
    weights: Mapping[str, Tensor],
    kind: Aim,
    *,
    limit: int | None = None,
    split: str = "test",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Evaluation:
    """A trainee's weights on held-out samples."""
    model = as_model(shop.build(model_weights(weights)).eval().to(device))
    return evaluate(model, shop.world.task(kind, split), batch=shop.world.batch, limit=limit, progress=progress)
