"""GLIP: its size, what its parts compute against plain formulas, its export, its sites."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import inarch
from inarch.frontends.fx import from_torch
from inarch.learning.models import build
from inarch.learning.models.attention import padding_bias
from inarch.learning.models.dyhead import DyConv
from inarch.learning.models.glip_config import GlipConfig, SwinConfig
from inarch.learning.models.parts_config import VitConfig
from inarch.learning.models.swin import Swin, SwinBlock
from inarch.learning.models.vlfuse import BiAttention
from inarch.learning.outline import outline
from inarch.structure.sites import SiteTable

from tests.learning.tiny import GLIP, SWIN


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("glip-a", 151_430_526), ("glip-b", 231_780_222), ("glip-t", 231_780_222), ("glip-l", 430_422_384)],
)
def test_parameters_are_the_published_ones(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in build(name, device="meta").parameters()) == parameters


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="groups"):
        GlipConfig(groups=7)
    with pytest.raises(ValueError, match="fusion width"):
        GlipConfig(fusion_heads=7)
    with pytest.raises(ValueError, match="patch"):
        GlipConfig(vision=VitConfig(patch=14))


def test_a_vit_stands_behind_a_pyramid() -> None:
    model = build(GLIP)
    inputs = model.example(2, 64, 96, 6)
    with torch.no_grad():
        out = model(**inputs)
    assert out["boxes"].shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 4)


@pytest.mark.parametrize("fusion", [True, False])
def test_what_lies_in_padded_text_changes_nothing(fusion: bool) -> None:
    model = build(SWIN.model_copy(update={"fusion": fusion}))
    inputs = model.example(3, 64, 64, 8)
    real = inputs["attention_mask"].bool()
    other = inputs | {"input_ids": torch.where(real, inputs["input_ids"], 9)}
    with torch.no_grad():
        before, after = model(**inputs), model(**other)
    assert list(before) == list(model.signature.outputs)
    torch.testing.assert_close(before["boxes"], after["boxes"])
    torch.testing.assert_close(before["centerness"], after["centerness"])
    kept = real[:, None].expand_as(before["logits"])
    torch.testing.assert_close(before["logits"][kept], after["logits"][kept])


def naive_window_attention(block: SwinBlock, x: Tensor) -> Tensor:
    """Cell by cell: who shares a window of the shifted map, and did so before the shift, sees the other."""
    w, shift, attn = block.window, block.shift, block.attn
    _, height, width, channels = x.shape
    rows, columns = -(-height // w) * w, -(-width // w) * w
    full = torch.zeros(rows, columns, channels)
    full[:height, :width] = block.norm1(x)[0]
    q, k, v = attn.qkv(full).reshape(rows, columns, 3, attn.heads, -1).permute(2, 0, 1, 3, 4)
    out = torch.zeros(rows, columns, channels)

    def place(at: int, size: int) -> tuple[int, int, int]:
        """Window, place in it, and whether the shift brought the cell here from the other side."""
        moved = (at - shift) % size
        return moved // w, moved % w, int(moved != at - shift)

    cells = [(r, c) for r in range(rows) for c in range(columns)]
    for r, c in cells:
        own = place(r, rows), place(c, columns)
        scores, values = [], []
        for a, b in cells:
            other = place(a, rows), place(b, columns)
            if any(mine[0] != theirs[0] for mine, theirs in zip(own, other, strict=True)):
                continue
            down, across = (mine[1] - theirs[1] + w - 1 for mine, theirs in zip(own, other, strict=True))
            score = (q[r, c] * k[a, b]).sum(-1) * q.shape[-1] ** -0.5
            score = score + attn.relative_position_bias_table[down * (2 * w - 1) + across]
            apart = any(mine[2] != theirs[2] for mine, theirs in zip(own, other, strict=True))
            scores.append(score - 100.0 * apart)
            values.append(v[a, b])
        out[r, c] = (torch.stack(scores).softmax(0)[:, :, None] * torch.stack(values)).sum(0).flatten()
    result: Tensor = attn.proj(out)[None, :height, :width]
    return result


@pytest.mark.parametrize("number", [0, 1])
def test_windows_are_the_naive_ones(number: int) -> None:
    torch.manual_seed(0)
    swin = Swin(SwinConfig(width=8, layers=(1, 2, 1, 1), heads=(1, 2, 4, 4), window=4)).eval()
    x = torch.randn(1, 6, 7, 16)
    block = swin.layers[1].get_submodule("blocks").get_submodule(str(number))
    assert isinstance(block, SwinBlock)
    assert bool(block.shift) == bool(number)
    with torch.no_grad():
        want = x + naive_window_attention(block, x)
        want = want + block.mlp(block.norm2(want))
        torch.testing.assert_close(block(x), want, atol=1e-5, rtol=1e-4)


def test_patches_are_merged_in_the_released_order() -> None:
    swin = Swin(SwinConfig(width=8, layers=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=4))
    merge = swin.layers[0].get_submodule("downsample")
    x = torch.randn(1, 3, 4, 8)
    padded = torch.cat((x, torch.zeros(1, 1, 4, 8)), 1)
    cell = torch.cat([padded[0, 2 + row, 2 + column] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))])
    norm, reduction = merge.get_submodule("norm"), merge.get_submodule("reduction")
    with torch.no_grad():
        torch.testing.assert_close(merge(x)[0, 1, 1], reduction(norm(cell)))


def test_two_way_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    attention = BiAttention(12, 20, 16, 2).eval()
    v, t = torch.randn(1, 5, 12), torch.randn(1, 4, 20)
    mask = torch.tensor([[True, True, True, False]])
    with torch.no_grad():
        to_v, to_t = attention(v, t, padding_bias(mask))
        heads_v, heads_t = [], []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            scores = attention.v_proj(v)[0, :, part] @ attention.l_proj(t)[0, :, part].T * 8**-0.5
            heads_v.append(scores.masked_fill(~mask, -math.inf).softmax(-1) @ attention.values_l_proj(t)[0, :, part])
            heads_t.append(scores.T.softmax(-1) @ attention.values_v_proj(v)[0, :, part])
        torch.testing.assert_close(to_v[0], attention.out_v_proj(torch.cat(heads_v, -1)), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(to_t[0], attention.out_l_proj(torch.cat(heads_t, -1)), atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def graph(small_presets: None) -> ir.Model:
    return outline(SWIN).filled(build(SWIN).state_dict())


def opened(model: ir.Model) -> ort.InferenceSession:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def assert_same(session: ort.InferenceSession, inputs: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    got = session.run(list(want), {key: tensor.numpy() for key, tensor in inputs.items()})
    for key, array in zip(want, got, strict=True):
        scale = float(want[key].abs().max())
        np.testing.assert_allclose(array, want[key].numpy(), rtol=0, atol=1e-4 * scale, err_msg=key)


def convolutions(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph} & {"DeformConv", "GridSample"}


def test_onnx_runtime_computes_what_torch_computes(graph: ir.Model) -> None:
    model, exported = build(SWIN), graph
    assert [value.name for value in exported.graph.inputs] == list(model.signature.inputs)
    assert [value.name for value in exported.graph.outputs] == list(model.signature.outputs)
    assert convolutions(exported) == {"DeformConv"}
    session = opened(exported)
    for batch, height, width, length in ((2, 160, 192, 9), (3, 64, 96, 5), (1, 32, 32, 3)):
        inputs = model.example(batch, height, width, length)
        with torch.no_grad():
            assert_same(session, inputs, model(**inputs))


class Tower(nn.Module):
    """A block of the head on two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.block = DyConv(8, 2, 2)

    def forward(self, fine: Tensor, coarse: Tensor) -> dict[str, Tensor]:
        one, other = self.block([fine, coarse])
        return {"one": one, "other": other}


def test_older_runtimes_get_grid_sample() -> None:
    torch.manual_seed(0)
    tower = Tower().eval()
    inputs = {"fine": torch.randn(2, 8, 8, 12), "coarse": torch.randn(2, 8, 4, 6)}
    exported = from_torch(tower, kwargs=inputs, output_names=["one", "other"])
    assert convolutions(exported) == {"GridSample"}
    with torch.no_grad():
        assert_same(opened(exported), inputs, tower(**inputs))


def counted(table: SiteTable) -> dict[str, int]:
    return {kind: sum(site.kind == kind for site in table.sites) for kind in ("msa", "ffn")}


def test_sites_are_those_of_the_architecture(graph: ir.Model) -> None:
    table = inarch.discover(graph).table
    assert counted(table) == {"msa": 5 + 1 + 2, "ffn": 5 + 1 + 1}
    assert not [site.name for site in table.sites if site.frozen]
    params = [m.param for site in table.sites for m in site.members.values()]
    assert not [param for param in params if any(part in param for part in ("relu.fc", "dot_product", "offset", "bbox"))]
    fused = [site for site in table.sites if "b_attn" in site.name]
    assert [dict(site.sizes) for site in fused] == [{"head": 2, "qk": 16, "vo": 16, "vo2": 16}]


def test_the_compiled_model_equals_its_reference(graph: ir.Model) -> None:
    plan = inarch.make_plan(graph, keep=0.85, method="similarity")
    compiled = inarch.compile(graph, plan)
    assert compiled.lowered.stored < compiled.lowered.parameters
    assert inarch.verify(graph, plan, compiled.model).ok
