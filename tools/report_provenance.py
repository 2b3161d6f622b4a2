"""Where a report's figures come from: hashes, versions, machine, and the commands that make the run again."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inarch import __version__
from inarch.structure.cost import shipped_name
from inarch.structure.plan import plan_hash
from inarch.tools import report_words as words
from inarch.tools.report_data import Provenance
from inarch.tools.report_files import RunFolder

SPELT = {
    "cpu": "Processor",
    "cores": "Cores",
    "memory_gb": "Memory, GB",
    "load_before": "Load before",
    "system": "System",
    "python": "Python",
    "packages": "Packages",
    "date": "Date",
}


def provenance_of(run: RunFolder, source: Path | None) -> Provenance:
    """Facts, files and commands of a run; what its ``run.json`` does not say is looked up in the files."""
    facts = [("Model", run.plan.model.name), ("Sites' fingerprint", run.plan.model.fingerprint), ("Plan", plan_hash(run.plan))]
    facts += [(f"Plan's {name}", text) for name, value in run.plan.provenance.items() if (text := _plain(value))]
    facts += _metadata(run)
    facts += [(SPELT.get(name, name), str(value)) for name, value in run.run.machine.items()]
    if not run.run.machine:
        facts.append(("Report made with", f"inarch {__version__} on {datetime.datetime.now(datetime.UTC).date().isoformat()}"))
    facts += [(name[:1].upper() + name[1:], str(value)) for name, value in run.run.settings.items()]
    if run.run.seconds:
        total = words.seconds(sum(run.run.seconds.values()))
        parts = ", ".join(f"{name} {words.seconds(value)}" for name, value in run.run.seconds.items())
        facts.append(("Time", f"{total} ({parts})"))
    files = {name: (facts_.bytes, facts_.sha256) for name, facts_ in run.run.files.items()}
    if not files:
        found = [path for path in (source, compiled_file(run)) if path is not None]
        files = {path.name: file_facts(path) for path in found}
    rows = tuple((name, words.size(size), digest) for name, (size, digest) in files.items())
    return Provenance(tuple(facts), rows, run.run.commands or _commands(run, source))


def compiled_file(run: RunFolder) -> Path | None:
    """The compiled model, where the folder or compile's own words lead to it."""
    said = run.compiled.out if run.compiled else None
    places = [run.path / Path(said).name, Path(said)] if said else [run.path / "compiled.onnx"]
    return next((place for place in places if place.is_file()), None)


def model_files(path: Path) -> tuple[Path, ...]:
    """A model's file, and the data files that it names, in the order of their names."""
    import onnx

    from inarch.frontends.protos import tensors_of

    proto = onnx.load_model(path, load_external_data=False)
    outside = [t for t in tensors_of(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
    data = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    return (path, *(path.parent / name for name in sorted(data)))


def file_facts(path: Path) -> tuple[int, str]:
    """Bytes of a model and sha256 (hex) over the model file and then the data files that it names, in the order of their names.

    Raises:
        InarchError: a data file is missing.
    """
    digest, size = hashlib.sha256(), 0
    for file in model_files(path):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
                size += len(block)
    return size, digest.hexdigest()


def metadata_of(run: RunFolder) -> Mapping[str, str]:
    """What the compiled file says of itself: as compile printed it, or read from the file; empty where there is neither."""
    if run.compiled is not None and run.compiled.metadata:
        return run.compiled.metadata
    file = compiled_file(run)
    if file is None:
        return {}
    import onnx

    return {entry.key: entry.value for entry in onnx.load_model(file, load_external_data=False).metadata_props}


def _metadata(run: RunFolder) -> list[tuple[str, str]]:
    metadata = metadata_of(run)
    facts = []
    if "inarch.plan" in metadata:
        same = metadata["inarch.plan"] == plan_hash(run.plan)
        facts.append(("Compiled with", "that plan" if same else f"another plan, {metadata['inarch.plan']}"))
    if "inarch.cost" in metadata:
        digest, _, prefer = metadata["inarch.cost"].partition(":")
        name = run.compiled.cost.name if run.compiled and run.compiled.cost else None
        shipped = f", the one shipped for {name.upper()}s" if name else ""
        facts.append(("Cost table", f"{digest}{shipped}{f', preferring {prefer}' if prefer else ''}"))
    if "inarch.onnxruntime" in metadata:
        facts.append(("ONNX Runtime wanted", metadata["inarch.onnxruntime"]))
    return facts


def _plain(value: Any) -> str:
    """A provenance value that fits a line, or nothing."""
    text = str(value) if isinstance(value, str | int | float | bool) else ""
    return text if len(text) <= 200 else ""


def cost_options(metadata: Mapping[str, str]) -> str:
    """The options of compile that choose the cost table that a file was compiled with."""
    digest, _, prefer = metadata.get("inarch.cost", "").partition(":")
    name = shipped_name(digest) if digest else "cpu"
    return ("" if name == "cpu" else f" --cost {name or 'TABLE.json'}") + (f" --prefer {prefer}" if prefer else "")


def _commands(run: RunFolder, source: Path | None) -> tuple[str, ...]:
    """The commands that fill such a folder, for one that does not say how it was made."""
    model = source.name if source else "model.onnx"
    compiled = "compiled.onnx"
    return (
        f"inarch compile {model} {run.plan_file} -o {compiled}{cost_options(metadata_of(run))} --json > compile.json",
        f"inarch verify {model} {run.plan_file} {compiled} --json > verify.json",
        f"inarch bench {model} {compiled} --json > bench.json",
    )
