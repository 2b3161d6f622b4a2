"""What is shipped: the wheel and the sdist hold every module, and the wheel compiles a model where there is no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("structure", "frontends", "passes", "compiler", "runtime", "learning", "tools")
SHIPPED = (*ROOMS, "src", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build in: building writes next to the sources."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    out = checkout / "wheel"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, ".", cwd=checkout)
    (built,) = out.glob("inarch-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else; dependencies come from this environment."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


def modules_of_the_checkout() -> set[str]:
    rooms = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    face = {path.name for path in (ROOT / "src" / "inarch").glob("*.py")}
    return {f"inarch/{name}" for name in rooms | face}


def data_of_the_checkout() -> set[str]:
    tables = {f"inarch/structure/{path.name}" for path in (ROOT / "structure").glob("*.json")}
    templates = {f"inarch/tools/templates/{path.name}" for path in (ROOT / "tools" / "templates").iterdir()}
    return tables | templates | {"inarch/py.typed"}


def test_the_wheel_holds_every_module_once_and_the_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = {name for name in names if name.startswith("inarch/")}
    assert inside == modules_of_the_checkout() | data_of_the_checkout()
    assert {name.split("/")[0] for name in names} == {"inarch", wheel.name.split("-py3")[0] + ".dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    build = "from setuptools import build_meta; print(build_meta.build_sdist('sdist'))"
    archive = checkout / "sdist" / run(sys.executable, "-c", build, cwd=checkout).stdout.splitlines()[-1]
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, source, cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / wheel.name) as again, zipfile.ZipFile(wheel) as first:
        assert sorted(again.namelist()) == sorted(first.namelist())


def small_model(path: Path) -> None:
    """One pre-norm FFN with a residual, 32 wide, 64 hidden."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(size=shape, scale=0.2).astype(np.float32), name)

    nodes = [
        helper.make_node("LayerNormalization", ["x", "norm.weight", "norm.bias"], ["normed"], "norm"),
        helper.make_node("MatMul", ["normed", "ffn.up.weight"], ["up"], "up"),
        helper.make_node("Add", ["up", "ffn.up.bias"], ["up_bias"], "up_bias"),
        helper.make_node("Relu", ["up_bias"], ["act"], "act"),
        helper.make_node("MatMul", ["act", "ffn.down.weight"], ["down"], "down"),
        helper.make_node("Add", ["down", "ffn.down.bias"], ["down_bias"], "down_bias"),
        helper.make_node("Add", ["x", "down_bias"], ["y"], "residual"),
    ]
    weights = [
        weight("norm.weight", 32),
        weight("norm.bias", 32),
        weight("ffn.up.weight", 32, 64),
        weight("ffn.up.bias", 64),
        weight("ffn.down.weight", 64, 32),
        weight("ffn.down.bias", 32),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", 32]) for name in "xy")
    graph = helper.make_graph(nodes, "small", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)


def test_the_installed_wheel_compiles_a_model(installed: Path, tmp_path: Path) -> None:
    small_model(tmp_path / "small.onnx")
    inarch = (sys.executable, "-m", "inarch")
    environment = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    where = run(sys.executable, "-c", "import inarch.compiler as c; print(c.__file__)", cwd=tmp_path, **environment)
    assert where.stdout.startswith(str(installed))
    options = ("--keep", "0.6", "--method", "magnitude", "-o", "plan.json", "--json")
    run(*inarch, "plan", "make", "small.onnx", *options, cwd=tmp_path, **environment)
    done = run(*inarch, "compile", "small.onnx", "plan.json", "-o", "out.onnx", "--json", cwd=tmp_path, **environment)
    report = json.loads(done.stdout)
    stored = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer)
    assert report["stored_parameters"] < report["parameters"]
    assert stored < 0.7 * report["parameters"]
    verified = run(*inarch, "verify", "small.onnx", "plan.json", "out.onnx", "--json", cwd=tmp_path, **environment)
    assert json.loads(verified.stdout)["ok"] is True


def test_the_console_command_is_installed(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "bin" / "inarch", "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.stdout.startswith("inarch ")
