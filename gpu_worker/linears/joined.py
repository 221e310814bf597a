"""In compiled code, too, layers that read the same input compute together: see `fused`.

Traced code calls one layer after the other. A pass over its graph finds the calls of siblings with
one input, and puts one call in their place.
"""

import hashlib
import operator as python_operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from gpu_worker import opaque
from gpu_worker.linears.fused import SharedProduct
from gpu_worker.linears.opaque_linear import linear_operator
from gpu_worker.opaque import all_numbered, numbered, operator


def _outputs(x: torch.Tensor, _: int, sizes: Sequence[int]) -> list[torch.Tensor]:
    return [x.new_empty(*x.shape[:-1], size) for size in sizes]


@operator("linears(Tensor x, int product, int[] out_features) -> Tensor[]", _outputs)
def _linears(x: torch.Tensor, product: int, _: Sequence[int]) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = numbered(product).outputs_of(x)
    return outputs


def join_siblings(graph: Graph) -> None:
    """Changes the graph where all layers of a product are called with the same input."""
    calls: dict[tuple[Node, SharedProduct], dict[int, Node]] = {}
    for node in graph.find_nodes(op="call_function", target=linear_operator):
        x, layer, _ = node.args
        product: SharedProduct | None = getattr(numbered(layer), "shared", None)
        if product is not None:
            calls.setdefault((x, product), {})[layer] = node
    for (_, product), nodes in calls.items():
        if len(nodes) == len(product.layers):
            first = next(iter(nodes.values()))
            _join(graph, first, product, [nodes[layer.number] for layer in product.layers])


def _join(graph: Graph, first: Node, product: SharedProduct, nodes: Sequence[Node]) -> None:
    """Puts one call in the place of these nodes, of the product's layers in their order."""
    x, sizes = first.args[0], [node.args[2] for node in nodes]
    with graph.inserting_before(first):
        call = graph.call_function(_linears, (x, product.number, sizes))
    call.meta["val"] = [node.meta["val"] for node in nodes]
    for place, node in enumerate(nodes):
        with graph.inserting_before(node):
            output = graph.call_function(python_operator.getitem, (call, place))
        output.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(output)
        graph.erase_node(node)


def joining_pass() -> Any:
    """`join_siblings` as torch's compiler takes it."""
    from torch._inductor.custom_graph_pass import CustomGraphPass  # noqa: PLC0415 — slow to load

    class JoinSiblings(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            join_siblings(graph)

        def uuid(self) -> str:
            return _siblings_key()

    return JoinSiblings()


def _siblings_key() -> str:
    """Changes with all that code depends on: operators, this pass, which layers are siblings."""
    digest = hashlib.sha256()
    for source in opaque.sources():  # this file's is one of them
        digest.update(source.read_bytes())
    for product in all_numbered(SharedProduct):
        digest.update(repr((product.number, [x.number for x in product.layers])).encode())
    return digest.hexdigest()
