"""Names of sites: the module path that their parameters, scopes or nodes have in common."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from inarch.structure.discover import discover

from tests.onnx_text import attention, attention_weights, ffn, ffn_weights, model_of


def renamed(names: dict[str, str], *, sites: str = "a") -> ir.Model:
    """FFNs whose parameters have other names."""
    body, x = "", "x"
    for i, site in enumerate(sites):
        body, x = body + ffn(site, x, y := "y" if i == len(sites) - 1 else f"h{i}"), y
    weights = ", ".join(ffn_weights(site, 4, 8) for site in sites)
    model = model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights)
    for old, new in names.items():
        model.graph.initializers[old].name = new
    return model


def names(model: ir.Model) -> list[str]:
    return [site.name for site in discover(model).table.sites]


@pytest.mark.parametrize(
    ("up", "down", "name"),
    [
        ("layer.0.fc1.weight", "layer.0.fc2.weight", "layer.0.ffn"),
        ("blocks.3.mlp.fc1.weight", "blocks.3.mlp.fc2.weight", "blocks.3.mlp"),
        ("layer.0.intermediate.dense.weight", "layer.0.output.dense.weight", "layer.0.ffn"),
        ("up", "down", "ffn.0"),
        ("onnx::MatMul_7", "onnx::MatMul_8", "ffn.0"),
    ],
)
def test_the_common_module_path(up: str, down: str, name: str) -> None:
    assert names(renamed({"a.up.weight": up, "a.down.weight": down, "a.up.bias": "b1", "a.down.bias": "b2"})) == [name]


def test_attention_and_ffn_of_one_layer_are_told_apart() -> None:
    body = attention("l", "x", "h", 2, 2) + ffn("l", "h", "y").replace("l.", "l.mlp.").replace("l.mlp.mlp.", "l.mlp.")
    weights = attention_weights("l", 4, 2, 2) + ", " + ffn_weights("l.mlp", 4, 8)
    assert names(model_of(body, inputs="float[B,S,4] x", outputs="float[B,S,4] y", weights=weights)) == ["l.attn", "l.mlp"]


def test_names_are_unique() -> None:
    same = {f"{site}.{part}.weight": f"shared.{part}.{site}" for site in "abc" for part in ("up", "down")}
    found = names(renamed(same, sites="abc"))
    assert len(set(found)) == 3
    assert found[0] == "shared.ffn"


def test_a_bias_that_kept_its_name_speaks_for_a_weight_that_lost_it() -> None:
    lost = {"a.up.weight": "onnx::MatMul_1", "a.down.weight": "onnx::MatMul_2", "a.up.bias": "enc.0.fc.bias"}
    assert names(renamed(lost)) == ["enc.0.fc.ffn"]


def test_scopes_and_node_names_speak_where_parameters_do_not() -> None:
    lost = {"a.up.weight": "val_1", "a.down.weight": "val_2", "a.up.bias": "val_3", "a.down.bias": "val_4"}
    model = renamed(lost)
    up, down = (node for node in model.graph if node.op_type == "MatMul")
    up.name, down.name = "/enc/layer.0/fc1/MatMul", "/enc/layer.0/fc2/MatMul"
    assert names(model) == ["enc.layer.0.ffn"]
    up.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'body.1', 'body.1.fc1', 'linear']"
    down.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'body.1', 'body.1.fc2', 'linear_1']"
    assert names(model) == ["body.1.ffn"]
    up.metadata_props["pkg.torch.onnx.name_scopes"] = "not a list ["
    assert names(model) != ["body.1.ffn"]


def test_a_bias_that_several_layers_read_names_none_of_them() -> None:
    lost = {f"{site}.{part}.weight": f"onnx::MatMul_{site}{part}" for site in "ab" for part in ("up", "down")}
    model = renamed(lost | {"a.up.bias": "enc.0.fc.bias", "b.up.bias": "enc.1.fc.bias"}, sites="ab")
    products = [node for node in model.graph if node.op_type == "MatMul"]
    for node, place in zip(products, ("0/fc", "0/proj", "1/fc", "1/proj"), strict=True):
        node.name = f"/enc/{place}/MatMul"
    assert names(model) == ["enc.0.ffn", "enc.1.ffn"]
    first, second = (model.graph.initializers[f"enc.{layer}.fc.bias"] for layer in (0, 1))
    second.replace_all_uses_with(first)
    assert names(model) == ["enc.0.ffn", "enc.1.ffn"]
