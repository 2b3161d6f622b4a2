"""A run folder as data: the JSON files that commands write with ``--json``, told apart by their ``format``, not their name.

Only what the report shows is read; what a newer command adds is left alone. Two files of one format are two measurements (another
provider, another task), except for plans, of which a run has one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inarch.structure.errors import InarchError
from inarch.structure.plan import MAX_BYTES, Plan, parse_plan

RUN, COMPILED, VERIFIED, BENCH = "inarch.run/1", "inarch.compiled/1", "inarch.verified/1", "inarch.bench/1"
EVALUATION, EXAMPLES, PLAN = "inarch.evaluation/1", "inarch.examples/1", "inarch.plan/1"
UNTRAINED = "inarch.untrained/1"
FORMATS = frozenset({RUN, COMPILED, VERIFIED, BENCH, EVALUATION, EXAMPLES, PLAN, UNTRAINED})

Number = float | None
"""A figure; None where it was not finite, which JSON cannot say."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in parts of the image's sides."""


class Loose(BaseModel):
    """Reads the keys that it knows."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class FileFacts(Loose):
    """One file of a run: its size in bytes, and sha256 over its content and that of the data files it names."""

    bytes: int
    sha256: str


class Run(Loose):
    """How a run was made (``run.json``); all paths are relative to the folder.

    Attributes:
        title: for people.
        about: one sentence on what was done.
        model: the dense model that was compiled.
        commands: what makes it again, in order.
        machine: what it ran on, and versions.
        files: path -> size and hash.
        seconds: chapter -> how long it took.
        settings: what was chosen.
        notes: sentences that a reader has to know.
    """

    title: str | None = None
    about: str | None = None
    model: str | None = None
    commands: tuple[str, ...] = ()
    machine: Mapping[str, Any] = Field(default_factory=dict)
    files: Mapping[str, FileFacts] = Field(default_factory=dict)
    seconds: Mapping[str, float] = Field(default_factory=dict)
    settings: Mapping[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class LegalisedEntry(Loose):
    """What is stored beyond the plan at one axis of a site, for one reason."""

    site: str
    axis: str
    reason: str
    units: int
    parameters: int


class AxisStorage(Loose):
    """How one axis of a site is stored: pruned units that stand there as zeros, and shared ones that are stored once more."""

    axis: str
    zeros: int = 0
    again: int = 0


class Decision(Loose):
    """What the lowering decided about one site: numbers of its own and in shared segments, matrix products before and after."""

    site: str
    changed: bool
    parameters: int
    own: int
    shared: int
    dense_products: int
    products: int
    axes: tuple[AxisStorage, ...] = ()


class CostUsed(Loose):
    """The cost table that a model was compiled with; ``name`` is that of a shipped one."""

    hash: str
    name: str | None = None
    prefer: str | None = None


class Compiled(Loose):
    """What ``inarch compile --json`` prints."""

    out: str | None = None
    parameters: int
    planned_parameters: int
    stored_parameters: int
    bytes: int = 0
    legalised: tuple[LegalisedEntry, ...] = ()
    decisions: tuple[Decision, ...] = ()
    cost: CostUsed | None = None
    metadata: Mapping[str, str] = Field(default_factory=dict)


class OutputCheck(Loose):
    """One output of the compiled model against the reference's."""

    output: str
    max_abs: Number
    relative: Number
    noise: Number
    tolerance: Number
    ok: bool
    reason: str = ""


class FirstSite(Loose):
    """The first site whose values differ."""

    site: str


class Equivalence(Loose):
    """Compiled against reference."""

    ok: bool
    outputs: tuple[OutputCheck, ...] = ()
    precision: str = ""
    first_site: FirstSite | None = None


class SharedTensor(Loose):
    """What became of one shared tensor in ONNX Runtime."""

    name: str
    bytes: int
    ok: bool
    reason: str = ""


class Sharing(Loose):
    """Whether what is shared stays shared."""

    ok: bool
    tensors: tuple[SharedTensor, ...] = ()


class OutputDamage(Loose):
    """How far the plan moves one output of the original."""

    output: str
    relative: Number
    cosine: Number
    loud: bool = False


class Damage(Loose):
    """Original against reference."""

    outputs: tuple[OutputDamage, ...] = ()
    sites: Mapping[str, Number] = Field(default_factory=dict)
    warning: str | None = None


class Placement(Loose):
    """Node runs by provider, where that is not the CPU."""

    counts: Mapping[str, int] = Field(default_factory=dict)
    warning: str = ""


class Verified(Loose):
    """What ``inarch verify --json`` prints."""

    ok: bool
    equivalence: Equivalence
    sharing: Sharing
    damage: Damage
    cases: tuple[str, ...] = ()
    provider: str | None = None
    placement: Placement | None = None


class Untrained(Loose):
    """What the plan does to weights that were not trained under it (``untrained.json``)."""

    model: str = "dense"
    damage: Damage


class Timing(Loose):
    """Milliseconds."""

    median: float
    p95: float


class Latency(Loose):
    """Two models timed in interleaved pairs."""

    threads: int | None = None
    pairs: int
    dense: Timing
    compiled: Timing
    ratio: float
    low: float
    high: float
    case: str = ""


class Footprint(Loose):
    """Bytes of a process."""

    anonymous: int
    rss: int


class Memory(Loose):
    """Memory of one model in a process of its own, in bytes."""

    loaded: Footprint
    ran: Footprint
    peak_anonymous: int
    model_anonymous: int
    model_device: int | None = None


class Size(Loose):
    """Size of one model."""

    stored: int
    file_bytes: int


class Measured(Loose):
    """One model of a bench; ``latency`` is that of a plan's part, ``multiplications`` those of a run, where they are known."""

    size: Size
    memory: Memory
    multiplications: int | None = None
    latency: tuple[Latency, ...] = ()


class Bench(Loose):
    """What ``inarch bench --json`` prints; ``pruned`` and ``shared`` are the plan's parts alone, where they were asked for."""

    inputs: str = ""
    provider: str | None = None
    notes: tuple[str, ...] = ()
    dense: Measured
    pruned: Measured | None = None
    shared: Measured | None = None
    compiled: Measured
    latency: tuple[Latency, ...] = ()


class PairedFigures(Loose):
    """The model less what it is compared with, over the same samples."""

    difference: float
    low: float
    high: float
    changed: int
    samples: int


class Judged(Loose):
    """One model on a task."""

    model: str = ""
    provider: str | None = None
    overall: Mapping[str, float]


class Comparison(Loose):
    """Two models compared sample by sample: places of those that the model does better or worse."""

    metric: str
    metrics: Mapping[str, PairedFigures]
    better: tuple[int, ...] = ()
    worse: tuple[int, ...] = ()


class EvaluationFile(Loose):
    """What ``inarch evaluate --json`` prints: ``model`` is the compiled one, ``against`` the dense one where there is one."""

    task: str
    headline: str
    count: int
    model: Judged
    against: Judged | None = None
    comparison: Comparison | None = None


class Said(Loose):
    """What one model says of a sample."""

    boxes: tuple[Box, ...] = ()
    answer: str | None = None
    score: Number = None
    right: bool | None = None


class Example(Loose):
    """One sample with what both models say of it.

    Attributes:
        text: the expression or the question.
        image: a PNG or a JPEG as a ``data:`` URI.
        width, height: of the image, in pixels.
        sort: what sort of text it is.
        truth, dense, compiled: boxes or an answer each.
        changed: whether one is right where the other is wrong.
        row: which sample of the task it is.
    """

    text: str
    image: str = Field(pattern="^data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$")
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    sort: str = ""
    truth: Said
    dense: Said
    compiled: Said
    changed: bool
    row: int


class ExamplesFile(Loose):
    """Samples of one task, to look at.

    Attributes:
        task: its name.
        chosen: in words, how they were.
        samples: of the whole task; changed: how many of them changed.
        examples: those that are shown.
    """

    task: str
    chosen: str = ""
    samples: int
    changed: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds.

    Attributes:
        path: the folder.
        plan: its plan, and its file's name.
        run: how it was made, where ``run.json`` says so.
        compiled, verified, benches, evaluations, examples, untrained: what there is, in the order of the files' names.
        ignored: JSON files that are none of these.
    """

    path: Path
    plan: Plan
    plan_file: str
    run: Run
    compiled: Compiled | None
    verified: tuple[Verified, ...]
    benches: tuple[Bench, ...]
    evaluations: tuple[EvaluationFile, ...]
    examples: tuple[ExamplesFile, ...]
    untrained: tuple[Untrained, ...]
    ignored: tuple[str, ...] = field(default=())


Model = TypeVar("Model", bound=Loose)


def read_folder(path: Path) -> RunFolder:
    """Read the JSON files that lie directly in a folder.

    Raises:
        InarchError: there is no such folder, no plan or more than one in it, or a file lacks what its format promises.
    """
    if not path.is_dir():
        hint = "inarch demo makes one; docs/report.md says what is in it"
        raise InarchError("there is no such folder", where=str(path), hint=hint)
    found: dict[str, list[tuple[Path, Any]]] = defaultdict(list)
    ignored = []
    for file in sorted(path.glob("*.json")):
        document = _load(file)
        name = document.get("format") if isinstance(document, dict) else None
        if isinstance(name, str) and name in FORMATS:
            found[name].append((file, document))
        else:
            ignored.append(file.name)
    plan, plan_file = _plan(path, [file for file, _ in found[PLAN]])

    def read(name: str, kind: type[Model]) -> tuple[Model, ...]:
        return tuple(_validated(kind, document, file) for file, document in found[name])

    runs, compiled = read(RUN, Run), read(COMPILED, Compiled)
    if len(compiled) > 1 or len(runs) > 1:
        twice = found[COMPILED if len(compiled) > 1 else RUN]
        what = f"{twice[0][0].name} and {twice[1][0].name} say two things of one run"
        raise InarchError(what, where=str(path), hint="keep one")
    return RunFolder(
        path,
        plan,
        plan_file,
        runs[0] if runs else Run(),
        compiled[0] if compiled else None,
        read(VERIFIED, Verified),
        read(BENCH, Bench),
        read(EVALUATION, EvaluationFile),
        read(EXAMPLES, ExamplesFile),
        read(UNTRAINED, Untrained),
        tuple(ignored),
    )


def _load(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InarchError(f"longer than {MAX_BYTES} bytes, which none of inarch's files is", where=str(file))
        return json.loads(file.read_bytes())
    except OSError as error:
        raise InarchError(f"cannot be read: {error.strerror or error}", where=str(file)) from error
    except (ValueError, RecursionError) as error:
        hint = "a command that failed leaves an empty file: run it again"
        if file.stat().st_size:
            hint = "if it is none of inarch's, move it elsewhere"
        raise InarchError(f"is no JSON: {error}", where=str(file), hint=hint) from None


def _plan(folder: Path, files: list[Path]) -> tuple[Plan, str]:
    if len(files) > 1 and folder / "plan.json" in files:
        files = [folder / "plan.json"]
    if len(files) != 1:
        what = f"{files[0].name} and {files[1].name} are both plans" if files else "there is no plan here"
        hint = "keep one, or call it plan.json" if files else "copy the plan that was compiled into the folder"
        raise InarchError(what, where=str(folder), hint=hint)
    return parse_plan(files[0].read_bytes(), str(files[0])), files[0].name


def _validated(kind: type[Model], document: Any, file: Path) -> Model:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InarchError(f"{place}: {first['msg']}", where=str(file), hint="write it again with inarch's --json") from None
