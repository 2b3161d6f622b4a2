"""Rewrite a model with one of the tools that users run after an export: ``python runtimes_rewrite.py TOOL in.onnx out.onnx``.

It is started as a script by the Python of an environment that has the tool, imports nothing of inarch, and prints the tool's name
and version. Each tool is used as its own documentation shows, and its result is saved with its weights beside it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import Any


def _save(model: Any, out: Path) -> None:
    settings = {"save_as_external_data": True, "location": f"{out.name}.data"}
    import_module("onnx").save(model, str(out), **settings)


def save_onnx(source: Path, out: Path) -> str:
    """Read everything and write it again."""
    _save(import_module("onnx").load(str(source)), out)
    return "onnx"


def save_onnx_ir(source: Path, out: Path) -> str:
    """The same with onnx_ir."""
    ir = import_module("onnx_ir")
    ir.save(ir.load(source), out, external_data=f"{out.name}.data")
    return "onnx-ir"


def convert_version(source: Path, out: Path) -> str:
    """To opset 21."""
    onnx = import_module("onnx")
    converter = import_module("onnx.version_converter")
    _save(converter.convert_version(onnx.load(str(source)), 21), out)
    return "onnx"


def extract_model(source: Path, out: Path) -> str:
    """Everything between inputs and outputs."""
    onnx = import_module("onnx")
    graph = onnx.load(str(source), load_external_data=False).graph
    names = [value.name for value in graph.input], [value.name for value in graph.output]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.onnx"
        import_module("onnx.utils").extract_model(str(source), str(whole), *names)
        _save(onnx.load(str(whole)), out)
    return "onnx"


def onnxsim(source: Path, out: Path) -> str:
    """onnxsim."""
    model, sound = import_module("onnxsim").simplify(import_module("onnx").load(str(source)))
    if not sound:
        raise RuntimeError("onnxsim's own check failed")
    _save(model, out)
    return "onnxsim"


def onnxslim(source: Path, out: Path) -> str:
    """OnnxSlim."""
    _save(import_module("onnxslim").slim(import_module("onnx").load(str(source))), out)
    return "onnxslim"


def onnxscript(source: Path, out: Path) -> str:
    """onnxscript's optimizer, which torch.onnx.export runs."""
    ir = import_module("onnx_ir")
    model = ir.load(source)
    import_module("onnxscript.optimizer").optimize(model)
    ir.save(model, out, external_data=f"{out.name}.data")
    return "onnxscript"


def _ort_session(source: Path, out: Path, **entries: str) -> str:
    ort = import_module("onnxruntime")
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(out)
    settings.log_severity_level = 4
    for key, value in entries.items():
        settings.add_session_config_entry(f"session.{key}", value)
    ort.InferenceSession(str(source), settings, providers=["CPUExecutionProvider"])
    return "onnxruntime"


def ort_save(source: Path, out: Path) -> str:
    """ONNX Runtime's own optimised save."""
    least = {"optimized_model_external_initializers_min_size_in_bytes": "1024"}
    return _ort_session(source, out, optimized_model_external_initializers_file_name=f"{out.name}.data", **least)


def ort_packed(source: Path, out: Path) -> str:
    """The same, with the weights as ONNX Runtime packs them beside the weights themselves."""
    least = {"optimized_model_external_initializers_min_size_in_bytes": "1024"}
    packed = {"save_external_prepacked_constant_initializers": "1"}
    return _ort_session(source, out, optimized_model_external_initializers_file_name=f"{out.name}.data", **least, **packed)


def ort_format(source: Path, out: Path) -> str:
    """The .ort format of mobile and minimal builds."""
    return _ort_session(source, out, save_model_format="ORT")


def fixed_sizes(source: Path, out: Path) -> str:
    """ONNX Runtime's make_dynamic_shape_fixed, once a symbol; ``sizes.json`` beside ``out`` says which."""
    tool = import_module("onnxruntime.tools.make_dynamic_shape_fixed")
    arguments = sys.argv
    for symbol, size in json.loads((out.parent / "sizes.json").read_text(encoding="utf-8")).items():
        sys.argv = [tool.__name__, "--dim_param", symbol, "--dim_value", str(size), str(source), str(out)]
        tool.make_dynamic_shape_fixed_helper()
        source = out
    sys.argv = arguments
    return "onnxruntime"


def transformers_fusion(source: Path, out: Path) -> str:
    """onnxruntime.transformers: fused attention, layer normalisation and GELU; head counts are found."""
    optimizer = import_module("onnxruntime.transformers.optimizer")
    options = import_module("onnxruntime.transformers.fusion_options").FusionOptions("bert")
    options.use_multi_head_attention = True
    fused = optimizer.optimize_model(str(source), "bert", opt_level=0, optimization_options=options)
    _save(fused.model, out)
    return "onnxruntime"


def float16(source: Path, out: Path) -> str:
    """onnxruntime.transformers.float16: every weight in fp16, inputs and outputs as they were, resizing in fp32."""
    converter = import_module("onnxruntime.transformers.float16")
    blocked = [*converter.DEFAULT_OP_BLOCK_LIST, "Resize"]
    model = import_module("onnx").load(str(source))
    _save(converter.convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked), out)
    return "onnxruntime"


def quantize_dynamic(source: Path, out: Path) -> str:
    """onnxruntime.quantization.quantize_dynamic: MatMul weights in signed int8, one scale a tensor."""
    quantization = import_module("onnxruntime.quantization")
    settings = {"weight_type": quantization.QuantType.QInt8, "op_types_to_quantize": ["MatMul", "Gemm"]}
    quantization.quantize_dynamic(str(source), str(out), use_external_data_format=True, **settings)
    return "onnxruntime"


def olive_peephole(source: Path, out: Path) -> str:
    """Olive's peephole optimizer, as a workflow."""
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "input_model": {"type": "ONNXModel", "model_path": str(source)},
            "passes": {"peephole": {"type": "OnnxPeepholeOptimizer"}},
            "output_dir": str(Path(folder) / "out"),
            "cache_dir": str(Path(folder) / "cache"),
            "evaluate_input_model": False,
        }
        import_module("olive.workflows").run(config)
        (made,) = (Path(folder) / "out").rglob("*.onnx")
        _save(import_module("onnx").load(str(made)), out)
    return "olive-ai"


def openvino(source: Path, out: Path) -> str:
    """OpenVINO's own format, weights as they are."""
    ov = import_module("openvino")
    ov.save_model(ov.Core().read_model(str(source)), str(out.with_suffix(".xml")), compress_to_fp16=False)
    return "openvino"


def nncf(source: Path, out: Path) -> str:
    """NNCF's weight compression to int8."""
    onnx = import_module("onnx")
    library = import_module("nncf")
    copy = out.with_name("nncf-source.onnx")
    _save(onnx.load(str(source)), copy)
    _save(library.compress_weights(onnx.load(str(copy)), mode=library.CompressWeightsMode.INT8_SYM), out)
    for path in (copy, copy.with_name(f"{copy.name}.data")):
        path.unlink()
    return "nncf"


TOOLS: Mapping[str, Callable[[Path, Path], str]] = {
    "onnx-save": save_onnx,
    "onnx-ir-save": save_onnx_ir,
    "version-converter": convert_version,
    "extract-model": extract_model,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxscript": onnxscript,
    "ort-save": ort_save,
    "ort-packed": ort_packed,
    "ort-format": ort_format,
    "fixed-sizes": fixed_sizes,
    "transformers-fusion": transformers_fusion,
    "float16": float16,
    "quantize-dynamic": quantize_dynamic,
    "olive-peephole": olive_peephole,
    "openvino": openvino,
    "nncf": nncf,
}


def main() -> int:
    """Run one tool; on failure the message on stderr, exit status 1."""
    tool, source, out = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            package = TOOLS[tool](source, out)
    except Exception as error:  # whatever a tool raises
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(json.dumps({"version": f"{package} {metadata.version(package)}"}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
