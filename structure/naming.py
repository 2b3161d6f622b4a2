"""Names of sites: the module path that their projections have in common."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence

from inarch.structure.coupling import Projection
from inarch.structure.regions import Region
from inarch.structure.sites import Site

_SUFFIX = {"ffn": "ffn", "msa": "attn"}
_SPEAKING = ("attn", "attention", "mlp", "ffn", "feed_forward", "mixer")
_SEGMENT = re.compile(r"segment[0-9]+\.")
"""Shared weights of a compiled model belong to no module."""

_COMPILED = re.compile(r"^inarch/|(?<=weight)\.[0-9]+$|(?<=bias)\.[0-9]+$")
"""What compiling adds to a parameter's name."""

_LEAVES = ("weight", "bias", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def name_sites(sites: Sequence[Site], regions: Sequence[Region]) -> list[str]:
    """One unique name a site: the common module path of its matrices, with ``.ffn`` or ``.attn`` where that says no kind.

    A site without any path in the file is named by its kind and its place in the model, ``ffn.3``.
    """
    names: list[str] = []
    counters: Counter[str] = Counter()
    # Exporters store equal biases once, under the first one's name: that says nothing of the others' modules.
    named_by = Counter(
        param for site in sites for param in {m.param for role, m in site.members.items() if role.endswith("_bias")}
    )
    for site, region in zip(sites, regions, strict=True):
        suffix = _SUFFIX[site.kind]
        biases = {role: m.param for role, m in site.members.items() if named_by[m.param] == 1}
        paths = [path for role, p in region.projections.items() if (path := _path(p, biases.get(f"{role}_bias", "")))]
        common = _common(paths) if paths else []
        if common:
            speaks = any(word in common[-1].lower() for word in _SPEAKING)
            names.append(".".join(common) if speaks else ".".join([*common, suffix]))
        else:
            names.append(f"{suffix}.{counters[suffix]}")
        counters[suffix] += 1
    repeated: Counter[str] = Counter()
    taken = set(names)
    result: list[str] = []
    for name in names:
        repeated[name] += 1
        unique = name
        while repeated[name] > 1 and (unique := f"{name}.{repeated[name]}") in taken:
            repeated[name] += 1
        taken.add(unique)
        result.append(unique)
    return result


def _path(projection: Projection, bias: str) -> list[str] | None:
    """Module path of a projection: from its parameter's name, its bias's, the exporter's scopes, or the node's name."""
    for param in (str(projection.view.param.name), bias):
        parts = _COMPILED.sub("", param).split(".")
        if len(parts) > 1 and "::" not in param and not _SEGMENT.match(param):
            return parts[:-1] if parts[-1] in _LEAVES else parts
    scopes = projection.node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is not None:
        try:
            listed = [str(s) for s in ast.literal_eval(scopes)]
        except (ValueError, SyntaxError):
            listed = []
        # The last scope is the operator itself; before it stand the modules, each with its full path.
        for scope in reversed(listed[:-1]):
            if scope:
                return scope.split(".")
    name = (projection.node.name or "").removeprefix("inarch/")
    if "/" in name:
        return [part for piece in name.split("/")[:-1] for part in piece.split(".") if part]
    return None


def _common(paths: Sequence[list[str]]) -> list[str]:
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) != 1:
            break
        common.append(parts[0])
    return common
