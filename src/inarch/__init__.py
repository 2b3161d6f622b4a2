"""inarch: share and prune the weights of exported transformers, and prove that nothing else changed.

The public face. Names are imported when they are first used, so that ``import inarch`` costs next to nothing and brings in
neither onnx_ir nor ONNX Runtime nor torch::

    import inarch

    plan = inarch.make_plan("model.onnx", keep=0.65, method="similarity")
    inarch.compile("model.onnx", plan, "compiled.onnx")
    assert inarch.verify("model.onnx", plan, "compiled.onnx").ok
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inarch.api import Example, compile, discover, make_plan, verify
    from inarch.compiler.compile_pass import CompilePass
    from inarch.structure.errors import InarchError
    from inarch.structure.plan import Plan, load_plan, save_plan

__version__ = "0.1.0"

__all__ = [
    "CompilePass",
    "Example",
    "InarchError",
    "Plan",
    "__version__",
    "compile",
    "discover",
    "load_plan",
    "make_plan",
    "save_plan",
    "verify",
]

_HOME = {
    "CompilePass": "inarch.compiler.compile_pass",
    "Example": "inarch.api",
    "InarchError": "inarch.structure.errors",
    "Plan": "inarch.structure.plan",
    "compile": "inarch.api",
    "discover": "inarch.api",
    "load_plan": "inarch.structure.plan",
    "make_plan": "inarch.api",
    "save_plan": "inarch.structure.plan",
    "verify": "inarch.api",
}


def __getattr__(name: str) -> object:
    """Import a public name from the module it lives in, once.

    Raises:
        AttributeError: inarch has no such public name.
    """
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
