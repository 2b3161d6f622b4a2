"""The page of ``make bench-runtimes``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inarch.tools.benchmarks.runtimes_bank import WAYS, Banked
from inarch.tools.benchmarks.runtimes_consumers import CONSUMERS, Cell, Consumer, fall, is_same
from inarch.tools.benchmarks.runtimes_subjects import Subject, sharing_of
from inarch.tools.benchmarks.runtimes_tools import Row, keeps


@dataclass
class Results:
    """What was measured on one subject.

    Attributes:
        subject: the pair of models.
        cells: consumer -> form -> what was measured.
        problems: consumer -> why it was not.
        tools: one row a tool.
        ways: way -> what was measured.
        shared: how many weights both parts read, and their bytes.
    """

    subject: Subject
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    tools: list[Row] = field(default_factory=list)
    ways: dict[str, Banked] = field(default_factory=dict)
    shared: tuple[int, int] = (0, 0)


def as_text(results: Sequence[Results], about: Mapping[str, object]) -> str:
    """The measurement as a Markdown page."""
    lines = ["# Other runtimes and tools", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += [
        "MB are 10^6 bytes. Memory is what loading and one run add to a process of its own (a browser: all its processes),",
        "anonymous memory unless it says otherwise; *of saved* is how much of the tensor bytes that compiling saved it falls by.",
        "It can be more than all: a runtime may hold a weight of the dense model twice, one behind a Transpose for instance.",
        "*Apart* is the largest difference of any output to ONNX Runtime's CPU provider over that output's largest magnitude;",
        "*noise* is what ONNX Runtime's own optimisation, on against off, makes of the compiled model's outputs. No latency: the",
        "machine was busy.",
    ]
    for found in results:
        dense, compiled = sharing_of(found.subject.dense), sharing_of(found.subject.compiled)
        lines += ["", f"## {found.subject.name}", ""]
        lines += [
            f"{_mb(dense.stored)} MB of tensors dense, {_mb(compiled.stored)} MB compiled: {_mb(found.subject.saved)} MB saved.",
            f"{compiled.tensors} matrices have {compiled.readers} readers beyond their first.",
            f"Noise: {_small(found.subject.noise)}.",
            "Inputs: " + ", ".join(f"{name} {list(array.shape)}" for name, array in found.subject.feeds.items()) + ".",
        ]
        if found.cells or found.problems:
            lines += ["", "### Runtimes", "", *_consumers(found)]
        if found.tools:
            lines += ["", "### Tools that rewrite the file", "", *_tools(found)]
        if found.ways:
            lines += ["", "### Two sessions, text part and rest", "", *_ways(found)]
    return "\n".join(lines) + "\n"


def _consumers(found: Results) -> list[str]:
    lines = ["| runtime | version | same outputs | apart | MB dense | MB compiled | of saved |", "|---|---|---|---|---|---|---|"]
    remarks = []
    for consumer in CONSUMERS:
        if consumer.key in found.problems:
            lines.append(f"| {consumer.title} | | not measured | | | | |")
            remarks.append(f"- {consumer.title}: {found.problems[consumer.key]}")
        elif consumer.key in found.cells:
            lines.append(_consumer(consumer, found))
            remarks += _remarks(consumer, found)
    return [*lines, "", *remarks] if remarks else lines


def _consumer(consumer: Consumer, found: Results) -> str:
    dense, compiled = (found.cells[consumer.key][form] for form in ("dense", "compiled"))
    same = is_same(compiled.difference, found.subject.noise)
    answer = "yes" if same else "no, nor dense" if not is_same(dense.difference, found.subject.noise) else "no"
    version = str(compiled.said.get("version", ""))
    version = f"onnxruntime-web {version}" if consumer.runtime == "web" else version
    cells = [consumer.title, version, answer, _small(compiled.difference)]
    cells += [_mb(dense.anonymous), _mb(compiled.anonymous), f"{100 * fall(dense, compiled, found.subject.saved):.0f} %"]
    return "| " + " | ".join(cells) + " |"


def _remarks(consumer: Consumer, found: Results) -> list[str]:
    said = found.cells[consumer.key]["compiled"].said
    words = []
    if "where" in said:
        words.append(f"in {said['where']}")
    if said.get("adapter"):
        words.append(f"adapter {said['adapter']}")
    if said.get("nodes"):
        words.append("node runs: " + ", ".join(f"{count:,} {name}" for name, count in sorted(said["nodes"].items())))
    if consumer.heap:
        words.append("MB are the WASM heap")
    if consumer.vulkan:
        words.append("device memory is this process's memory, since the device is software")
    return [f"- {consumer.title}: {'; '.join(words)}"] if words and (consumer.vulkan or consumer.heap) else []


def _tools(found: Results) -> list[str]:
    lines = ["| tool | version | keeps the sharing | apart | files MB, dense | compiled | memory MB, dense | compiled |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    remarks = []
    for row in found.tools:
        dense, compiled = row.forms.get("dense"), row.forms.get("compiled")
        for reason in dict.fromkeys(row.problems.values()):
            forms = " and ".join(form for form, said in row.problems.items() if said == reason)
            remarks.append(f"- {row.tool.title}, {forms}: {reason}")
        if compiled is None:
            lines.append(f"| {row.tool.title} | | not measured | | | | | |")
            continue
        cells = [row.tool.title, compiled.version, keeps(row, found.subject), _small(compiled.difference)]
        for size in ("file_bytes", "anonymous"):
            cells += ["-" if form is None else _mb(getattr(form, size)) for form in (dense, compiled)]
        lines.append("| " + " | ".join(cells) + " |")
        if not is_same(compiled.difference, found.subject.noise):
            also = f"; the dense model's by {_small(dense.difference)}" if dense is not None else ""
            remarks.append(f"- {row.tool.title}: it moves the compiled model's outputs by {_small(compiled.difference)}{also}")
    return [*lines, "", *remarks] if remarks else lines


def _ways(found: Results) -> list[str]:
    count, size = found.shared
    lines = [f"Both parts read {count} weights of {_mb(size)} MB. Anonymous memory, RSS and PSS after both have run.", ""]
    lines += ["| | anonymous MB | RSS MB | PSS MB | files MB | apart |", "|---|---|---|---|---|---|"]
    for way in WAYS:
        if way.key in found.ways:
            item = found.ways[way.key]
            cells = [way.title, _mb(item.ran.anonymous), _mb(item.ran.rss), _mb(item.ran.pss), _mb(item.file_bytes)]
            lines.append("| " + " | ".join([*cells, _small(item.difference)]) + " |")
    return lines


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f}"


def _small(value: float) -> str:
    return "0" if value == 0 else "not comparable" if math.isinf(value) else f"{value:.1e}"
