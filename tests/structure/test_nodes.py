"""Walks over graphs inside graphs: what onnx_ir finds, in its order."""

from __future__ import annotations

import onnx_ir as ir

from inarch.structure.nodes import every_graph, every_node, graphs_in

from tests.onnx_text import model_of


def nested() -> ir.Model:
    """An If in the branch of an If, with nodes before and behind both."""

    def choice(name: str, inner: str) -> str:
        return f"""
            {name} = If (c) <
                then_branch = {name}_then () => (float[2] {name}_t) {{ {inner} }},
                else_branch = {name}_else () => (float[2] {name}_e) {{ {name}_e = Neg (x) }}
            >"""

    deep = choice("low", "low_t = Abs (x)") + "  high_t = Exp (low)"
    return model_of(f"a = Relu (x) {choice('high', deep)} y = Add (a, high)", inputs="float[2] x, bool c", outputs="float[2] y")


def test_nodes_and_graphs_are_those_that_onnx_ir_finds() -> None:
    graph = nested().graph
    assert list(every_node(graph)) == list(graph.all_nodes())
    assert [node.op_type for node in every_node(graph)] == ["Relu", "If", "If", "Abs", "Neg", "Exp", "Neg", "Add"]
    assert list(every_graph(graph)) == [inner for inner in graph.subgraphs() if inner is not graph]
    assert [inner.name for inner in every_graph(graph)] == ["high_then", "low_then", "low_else", "high_else"]


def test_a_node_without_graphs_has_none() -> None:
    graph = nested().graph
    assert [len(graphs_in(node)) for node in graph] == [0, 2, 0]
