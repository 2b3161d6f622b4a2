"""Writing models: a whole pair stands there at any moment, the same model gives the same bytes, and nothing else is touched."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import re
import resource
import shutil
import signal
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from inarch.compiler.writer import DATA_FILE, INLINE_BELOW, WrittenModel, write_model
from inarch.frontends.onnx_file import load_model
from inarch.structure.errors import InarchError, LoweringError, ModelError

from tests.zoo import FORMS, build

SEED = 3
SIZES = {"small": (4, 4), "medium": (16, 40), "large": (160, 128), "odd": (128, 131)}


def arrays(seed: int = SEED) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=size).astype(np.float32) for name, size in SIZES.items()}


def model_of(**tensors: ir.TensorProtocol) -> ir.Model:
    """A model whose outputs are its constants."""
    values = []
    for name, tensor in tensors.items():
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        values.append(ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
    nodes = []
    for value in values:
        node = ir.node("Identity", [value], name=f"copy_{value.name}")
        node.outputs[0].name = f"out_{value.name}"
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        nodes.append(node)
    graph = ir.Graph(
        [], [node.outputs[0] for node in nodes], nodes=nodes, initializers=values, opset_imports={"": 21}, name="constants"
    )
    return ir.Model(graph, ir_version=10)


def plain(seed: int = SEED) -> ir.Model:
    return model_of(**{name: ir.tensor(array, name=name) for name, array in arrays(seed).items()})


def constant(model: ir.Model, name: str) -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def described(node: ir.Node) -> tuple[object, ...]:
    """A node without its attributes' values, which the bytes below stand for."""
    values = [[value and value.name for value in side] for side in (node.inputs, node.outputs)]
    return node.op_identifier(), node.name, *values, sorted(node.attributes), sorted(node.metadata_props.items())


def holds(path: Path, seed: int = SEED) -> bool:
    """Whether the model at ``path`` is whole, and is that of ``seed``."""
    model = load_model(path)
    return all(np.array_equal(constant(model, name).numpy(), array) for name, array in arrays(seed).items())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pair(written: WrittenModel) -> set[str]:
    assert written.data_path is not None
    return {written.path.name, written.data_path.name}


def places(path: Path) -> dict[str, dict[str, str]]:
    """Initializer -> its external data entries."""
    proto = onnx.load(path, load_external_data=False)
    return {tensor.name: {e.key: e.value for e in tensor.external_data} for tensor in proto.graph.initializer}


# What is written


def test_the_pair_holds_the_model_in_the_promised_layout(tmp_path: Path) -> None:
    written = write_model(plain(), tmp_path / "m.onnx", metadata={"b": "2", "a": "1"})
    assert names(tmp_path) == pair(written)
    assert written.data_path is not None
    assert re.fullmatch(r"m\.[0-9a-f]{16}\.data", written.data_path.name)
    assert holds(written.path)
    found = places(written.path)
    assert found["small"] == {}
    sizes = {name: array.nbytes for name, array in arrays().items()}
    for name, step in (("medium", 64), ("large", 4096), ("odd", 4096)):
        assert found[name]["location"] == written.data_path.name
        assert int(found[name]["offset"]) % step == 0
        assert int(found[name]["length"]) == sizes[name]
    assert int(found["medium"]["offset"]) > int(found["odd"]["offset"])  # the small ones do not push the others off their pages
    assert written.file_bytes == written.path.stat().st_size
    assert written.data_bytes == written.data_path.stat().st_size
    assert written.unique_bytes == sum(sizes.values())
    properties = [(entry.key, entry.value) for entry in onnx.load(written.path, load_external_data=False).metadata_props]
    assert properties == [("a", "1"), ("b", "2"), (DATA_FILE, written.data_path.name)]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    (tmp_path / "new").touch()
    assert modes == {stat.S_IMODE((tmp_path / "new").stat().st_mode)}
    results = ReferenceEvaluator(str(written.path)).run(None, {})
    assert all(np.array_equal(one, other) for one, other in zip(results, arrays().values(), strict=True))


def test_a_model_of_small_tensors_is_one_file(tmp_path: Path) -> None:
    written = write_model(model_of(w=ir.tensor(np.zeros(INLINE_BELOW // 4 - 1, np.float32), name="w")), tmp_path / "m.onnx")
    assert written.data_path is None
    assert written.data_bytes == 0
    assert names(tmp_path) == {"m.onnx"}
    load_model(written.path)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_of_the_zoo_survives_writing_and_reading(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody cuts the power here, and a disk may be slow
    model = build(form).model
    before = ir.serde.serialize_model(model)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    first = write_model(model, tmp_path / "m.onnx")
    assert ir.serde.serialize_model(model) == before
    assert all(value.const_value is tensor for value, tensor in zip(model.graph.initializers.values(), tensors, strict=True))
    read = load_model(first.path)
    assert [described(node) for node in read.graph] == [described(node) for node in model.graph]
    for name in model.graph.initializers:
        assert constant(read, name).tobytes() == constant(model, name).tobytes()
    second_folder = tmp_path / "again"
    second_folder.mkdir()
    second = write_model(read, second_folder / "m.onnx")
    assert names(second_folder) == names(tmp_path) - {"again"}
    for name in names(second_folder):
        assert (second_folder / name).read_bytes() == (tmp_path / name).read_bytes()
    assert second.unique_bytes == first.unique_bytes


def test_constants_in_attributes_and_subgraphs_become_external(tmp_path: Path) -> None:
    big = arrays()["large"]
    model = ir.from_onnx_text("""
<ir_version: 9, opset_import: ["" : 17]>
g (float[160,128] x, bool c) => (float[160,128] y)
{
    y = If(c) <then_branch = a () => (float[160,128] p) {p = Add(x, x)}, else_branch = b () => (float[160,128] q) {q = Neg(x)}>
}
""")
    branch = model.graph[0].attributes["then_branch"].as_graph()
    inner = ir.Value(name="inner", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(big.shape))
    inner.const_value = ir.tensor(big, name="inner")
    branch.initializers.add(inner)
    branch[0].replace_input_with(1, inner)
    node = ir.node("Constant", [], attributes={"value": ir.tensor(big + 1)})
    node.outputs[0].name = "K"
    model.graph.insert_before(model.graph[0], node)
    model.graph[1].attributes["else_branch"].as_graph()[0].replace_input_with(0, node.outputs[0])
    written = write_model(model, tmp_path / "m.onnx")
    assert written.file_bytes < 2000
    assert written.data_bytes == 2 * big.nbytes
    assert np.array_equal(node.attributes["value"].as_tensor().numpy(), big + 1)
    again = load_model(written.path)
    assert np.array_equal(again.graph[0].attributes["value"].as_tensor().numpy(), big + 1)
    tensor = again.graph[1].attributes["then_branch"].as_graph().initializers["inner"].const_value
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), big)


def test_tensors_of_every_kind_are_written_as_onnx_stores_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    matrix = rng.normal(size=(300, 200)).astype(np.float32)
    stored = tmp_path / "stored"
    stored.mkdir()
    ir.save(model_of(e=ir.tensor(matrix, name="e")), stored / "e.onnx", external_data="e.data")
    unpacked = np.arange(6000).reshape(3, 2000) % 16
    made = {
        "transposed": ir.tensor(matrix.T, name="transposed"),
        "strided": ir.tensor(matrix[::2, ::-1], name="strided"),
        "half": ir.tensor(matrix.astype(np.float16), name="half"),
        "brain": ir.tensor(matrix.astype(ir.DataType.BFLOAT16.numpy()), name="brain"),
        "nibble": ir.tensor(unpacked.astype(ir.DataType.UINT4.numpy()), ir.DataType.UINT4, name="nibble"),
        "flag": ir.tensor(matrix > 0, name="flag"),
        "text": ir.tensor(["a", "b" * 2000], name="text"),
        "empty": ir.tensor(np.zeros((0, 4), np.float32), name="empty"),
        "external": constant(ir.load(stored / "e.onnx"), "e"),
        "fields": ir.serde.TensorProtoTensor(onnx.helper.make_tensor("fields", onnx.TensorProto.INT64, [400], range(400))),
        "other_name": ir.tensor(matrix, name="misnamed"),
        "small_other_name": ir.tensor(matrix[0, :3], name="misnamed"),
    }
    made["external"].name = "external"
    written = write_model(model_of(**made), tmp_path / "m.onnx")
    assert made["other_name"].name == made["small_other_name"].name == "misnamed"
    read = load_model(written.path)
    for name, tensor in made.items():
        found = constant(read, name)
        assert (found.dtype, found.shape, found.name) == (tensor.dtype, tensor.shape, name)
        assert np.array_equal(found.numpy(), tensor.numpy()), name


def test_lazy_tensors_are_computed_once_one_at_a_time_and_not_kept(tmp_path: Path) -> None:
    alive: list[int] = []
    computed: list[str] = []

    class Watched(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            if self.base is None:
                alive.pop()

    def lazily(name: str, array: np.ndarray[Any, Any]) -> ir.LazyTensor:
        def compute() -> ir.TensorProtocol:
            assert not alive, "another tensor is still in memory"
            alive.append(1)
            computed.append(name)
            watched = Watched(array.shape, np.float32)
            watched[:] = array
            return ir.Tensor(watched, ir.DataType.FLOAT)

        return ir.LazyTensor(compute, ir.DataType.FLOAT, ir.Shape(array.shape), cache=True, name=name)

    kept = {name: lazily(name, array) for name, array in arrays().items() if name != "small"}
    told: list[tuple[int, int]] = []
    written = write_model(model_of(**kept), tmp_path / "m.onnx", progress=lambda done, total: told.append((done, total)))
    assert sorted(computed) == sorted(kept)
    assert not alive
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (written.data_bytes, written.data_bytes)
    model = load_model(written.path)
    assert all(np.array_equal(constant(model, name).numpy(), arrays()[name]) for name in kept)


# What is replaced


def test_what_is_replaced_goes_with_its_data(tmp_path: Path) -> None:
    write_model(plain(1), tmp_path / "m.onnx")
    (tmp_path / "m.0123456789abcdef.data").write_bytes(b"not referred to by what is replaced")
    written = write_model(plain(2), tmp_path / "m.onnx")
    assert names(tmp_path) == pair(written) | {"m.0123456789abcdef.data"}
    assert holds(written.path, 2)
    assert write_model(plain(2), tmp_path / "m.onnx") == written
    assert holds(written.path, 2)


def test_data_that_another_model_refers_to_stay(tmp_path: Path) -> None:
    first = write_model(plain(1), tmp_path / "m.onnx")
    shutil.copy(tmp_path / "m.onnx", tmp_path / "copy.onnx")
    second = write_model(plain(2), tmp_path / "m.onnx")
    assert names(tmp_path) == {"copy.onnx"} | pair(first) | pair(second)
    assert holds(tmp_path / "copy.onnx", 1)


@pytest.mark.parametrize("other", ["m", "m.onnx.bak"])
def test_data_of_another_name_of_the_same_stem_stay(tmp_path: Path, other: str) -> None:
    first = write_model(plain(1), tmp_path / "m.onnx")
    shutil.copy(tmp_path / "m.onnx", tmp_path / other)
    second = write_model(plain(2), tmp_path / "m.onnx")
    assert names(tmp_path) == {other} | pair(first) | pair(second)


def test_data_that_inarch_did_not_write_stay(tmp_path: Path) -> None:
    ir.save(plain(1), tmp_path / "m.onnx", external_data="m.data")
    written = write_model(plain(2), tmp_path / "m.onnx")
    assert names(tmp_path) == {"m.data"} | pair(written)
    foreign = plain(1)
    foreign.metadata_props[DATA_FILE] = "../precious"
    (tmp_path.parent / "precious").touch()
    ir.save(foreign, tmp_path / "m.onnx")
    write_model(plain(2), tmp_path / "m.onnx")
    assert (tmp_path.parent / "precious").exists()


def test_the_models_own_files_are_not_overwritten(tmp_path: Path) -> None:
    written = write_model(plain(), tmp_path / "m.onnx")
    model = load_model(written.path)
    (tmp_path / "link.onnx").symlink_to(written.path)
    before = names(tmp_path)
    for target in (written.path, tmp_path / "link.onnx", written.data_path):
        assert target is not None
        with pytest.raises(InarchError, match="a file that is read"):
            write_model(model.clone(), target)
    with pytest.raises(InarchError, match="a file that is read"):
        write_model(ir.load(written.path), written.data_path or "")
    assert names(tmp_path) == before
    assert holds(written.path)


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        write_model(plain(), tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(ModelError, match="this is a folder"):
        write_model(plain(), tmp_path)
    assert not names(tmp_path)


# What goes wrong


def nth(number: int, real: Callable[..., Any], error: OSError) -> Callable[..., Any]:
    """``real``, but its call ``number`` fails."""
    calls = iter(range(1, 10_000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise error
        return real(*args, **kwargs)

    return call


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
DENIED = OSError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(
    ("function", "number", "error", "message"),
    [
        ("write", 1, FULL, "no space left"),
        ("write", 3, FULL, "no space left"),
        ("write", 4, FULL, "no space left"),  # the .onnx file
        ("fsync", 1, FULL, "no space left"),
        ("fsync", 2, OSError(errno.EIO, os.strerror(errno.EIO)), "cannot be written"),
        ("open", 1, DENIED, "Permission denied"),
        ("replace", 1, DENIED, "Permission denied"),
        ("replace", 2, DENIED, "Permission denied"),
    ],
)
@pytest.mark.parametrize("standing", [True, False])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int,
    error: OSError,
    message: str,
    standing: bool,
) -> None:
    target = tmp_path / "m.onnx"
    if standing:
        write_model(plain(1), target)
    before = names(tmp_path)
    gc.collect()  # the mappings of models that are gone
    handles = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, function, nth(number, getattr(os, function), error))
        with pytest.raises(ModelError, match=message) as caught:
            write_model(plain(2), target)
    assert str(caught.value).startswith(str(target))
    assert names(tmp_path) == before
    assert len(os.listdir("/proc/self/fd")) == handles
    assert not standing or holds(target, 1)


def test_a_disk_that_is_too_small_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(ModelError, match="no space left"):
        write_model(plain(), tmp_path / "m.onnx")
    assert not names(tmp_path)


def test_a_limit_of_the_system_on_file_sizes(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(ModelError, match="too large"):
            write_model(plain(), tmp_path / "m.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not names(tmp_path)


def refusing() -> ir.TensorProtocol:
    raise LoweringError("a changed weight holds NaN", where="odd")


def exhausting() -> ir.TensorProtocol:
    raise MemoryError


def growing() -> ir.TensorProtocol:
    return ir.tensor(np.zeros((5, 5), np.float32))


def retyping() -> ir.TensorProtocol:
    return ir.tensor(np.zeros(SIZES["odd"], np.float64))


@pytest.mark.parametrize(
    ("compute", "kind", "message"),
    [
        (refusing, LoweringError, "NaN"),
        (exhausting, ModelError, "not enough memory"),
        (growing, ModelError, r"'odd' is FLOAT\[5, 5\]"),
        (retyping, ModelError, "'odd' is DOUBLE"),
    ],
)
def test_a_tensor_that_cannot_be_computed(
    tmp_path: Path, compute: Callable[[], ir.TensorProtocol], kind: type[Exception], message: str
) -> None:
    write_model(plain(1), tmp_path / "m.onnx")
    before = names(tmp_path)
    tensors = {name: ir.tensor(array, name=name) for name, array in arrays(2).items()}
    lazy = ir.LazyTensor(compute, ir.DataType.FLOAT, ir.Shape(SIZES["odd"]), name="odd")
    with pytest.raises(kind, match=message):
        write_model(model_of(**{**tensors, "odd": lazy}), tmp_path / "m.onnx")
    assert names(tmp_path) == before
    assert holds(tmp_path / "m.onnx", 1)


def test_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_model(plain(), tmp_path / "m.onnx", progress=interrupt)
    assert not names(tmp_path)


def killed_while_writing(target: Path, function: str, number: int, late: bool) -> int:
    """Write in a process that kills itself at a call of ``function``, before or after its effect; returns how it ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process may have threads; the other one needs none of them
        process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        owner = Path if function == "unlink" else os
        real, calls = getattr(owner, function), iter(range(1, 10_000))

        def dying(*args: Any, **kwargs: Any) -> Any:
            last = next(calls) == number
            result = None if last and not late else real(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, function, dying)
        write_model(plain(2), target)
    finally:
        os._exit(1)


@pytest.mark.parametrize(
    ("function", "number", "late", "survivor"),
    [
        ("write", 3, True, 1),  # inside the data
        ("fsync", 1, True, 1),  # the data are there under their temporary name
        ("replace", 1, True, 1),  # the data have their name
        ("replace", 2, False, 1),
        ("replace", 2, True, 2),
        ("unlink", 1, False, 2),  # the old data are about to go
    ],
)
def test_a_killed_writer_leaves_a_whole_pair(tmp_path: Path, function: str, number: int, late: bool, survivor: int) -> None:
    target = tmp_path / "m.onnx"
    write_model(plain(1), target)
    assert killed_while_writing(target, function, number, late) == -signal.SIGKILL
    assert holds(target, survivor)
    written = write_model(plain(2), target)
    assert holds(target, 2)
    left = names(tmp_path) - pair(written)
    assert not any(name.endswith(".partial") for name in left)
    assert all(name.endswith(".data") for name in left)
    assert not left or survivor == 2  # the old data, whose .onnx was gone before they were


def test_temporary_files_of_a_living_writer_and_of_others_stay(tmp_path: Path) -> None:
    abandoned = tmp_path / ".m.onnx.0123456789abcdef.partial"
    living = tmp_path / ".m.onnx.fedcba9876543210.partial"
    other = tmp_path / ".n.onnx.0123456789abcdef.partial"
    for path in (abandoned, living, other):
        path.touch()
    with open(living, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        written = write_model(plain(), tmp_path / "m.onnx")
    assert names(tmp_path) == pair(written) | {living.name, other.name}
