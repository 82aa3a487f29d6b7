"""The order in which nodes can run: nodes that stand in another order are sorted, and cycles are refused.

ONNX wants the nodes of every graph sorted ("the nodes must be topologically sorted",
https://github.com/onnx/onnx/blob/main/docs/IR.md#graphs); onnxruntime runs files in which they are not. The method is
A. B. Kahn's: Topological sorting of large networks, Communications of the ACM 5 (11), 1962.
"""

import heapq
from collections import Counter
from collections.abc import Sequence

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from gbprewrite.errors import ModelError
from gbprewrite.model.messages import graphs, put_nodes, reads

SHOWN = 6  # nodes of a cycle that a message names
FunctionKey = tuple[str, str, str]


def sort(model: ModelProto) -> None:
    """Sort, in place, the nodes of every graph and of every local function; sorted ones stay as they are.

    Raises ModelError for a cycle, which it names, for a function that calls itself, where two nodes or weights of one
    graph have the same name for what they make, and where a node reads, or the model gives, what nothing makes.
    """
    function_order(model)
    _check_made(model.graph)
    for graph in [model.graph, *(f for f in model.functions)]:
        for inner in [*reversed(_graphs_inside(graph)), graph]:  # sorting a graph copies those inside it
            _sort_nodes(inner)


def function_order(model: ModelProto) -> list[FunctionProto]:
    """The local functions of a model, each behind those that it calls.

    Raises ModelError for a function that calls itself, by itself or by way of others, and for one that is there twice.
    """
    functions = {function_key(f): f for f in model.functions}
    if len(functions) < len(model.functions):
        raise ModelError("the model defines a local function twice. Export it again.")
    places = {key: i for i, key in enumerate(functions)}
    needs = [sorted({places[c] for c in called(f) if c in places}) for f in functions.values()]
    order = _kahn(needs)
    if len(order) < len(needs):
        names = [f.name for f in functions.values()]
        raise ModelError(
            f"the model's local functions call themselves: {_circle(needs, order, names)}. Functions are bodies to be "
            "put in place, so this one would never end. Export the model again."
        )
    every = list(functions.values())
    return [every[i] for i in order]


def function_key(function: FunctionProto) -> FunctionKey:
    """What a node names to call a function: domain, name, overload."""
    return _domain(function.domain), function.name, function.overload


def call_key(node: NodeProto) -> FunctionKey:
    """The function that a node would call, if the model has it."""
    return _domain(node.domain), node.op_type, node.overload


def called(body: FunctionProto | GraphProto) -> list[FunctionKey]:
    """What the nodes of a body name, and those of the graphs inside them."""
    return [call_key(node) for graph in [body, *_graphs_inside(body)] for node in graph.node]


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _graphs_inside(body: FunctionProto | GraphProto) -> list[GraphProto]:
    held = (a for node in body.node for a in node.attribute)
    return [inner for a in held for g in [*([a.g] if a.HasField("g") else []), *a.graphs] for inner in graphs(g)]


def _sort_nodes(graph: GraphProto | FunctionProto) -> None:
    makers: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if makers.setdefault(name, i) != i:
                raise ModelError(
                    f"two nodes both make the value {name!r}: {_title(graph.node[makers[name]])} and {_title(node)}. "
                    "In ONNX each value is made once. Export the model again."
                )
    needs = [sorted({makers[name] for name in reads(node) if name in makers}) for node in graph.node]
    if all(not needed or needed[-1] < i for i, needed in enumerate(needs)):
        return
    order = _kahn(needs)
    if len(order) < len(needs):
        titles = [_title(node) for node in graph.node]
        raise ModelError(
            f"the model's nodes wait for each other: {_circle(needs, order, titles)}. A graph with a cycle can't run. "
            "Export the model again."
        )
    put_nodes(graph, [graph.node[i] for i in order])


def _check_made(graph: GraphProto) -> None:
    """Raise ModelError for what nothing makes, and for weights of one name: runtimes would choose one of them."""
    weights = Counter(t.name for t in graph.initializer)
    twice = [name for name, count in weights.items() if count > 1]
    if twice:
        raise ModelError(f"the model has {weights[twice[0]]} weights of the name {twice[0]!r}. Export the model again.")
    given = {*weights, *(i.name for i in graph.input)}
    known = given | {name for node in graph.node for name in node.output}
    for node in graph.node:
        for name in filter(None, node.output):
            if name in given:
                raise ModelError(
                    f"{_title(node)} makes {name!r}, which is an input or a weight already. In ONNX each value is made "
                    "once. Export the model again."
                )
        for name in reads(node):
            if name not in known:
                raise ModelError(f"{_title(node)} reads {name!r}, which nothing makes. Export the model again.")
    for output in graph.output:
        if output.name not in known:
            raise ModelError(f"the model gives {output.name!r} as an output, and nothing makes it. Export it again.")


def _title(node: NodeProto) -> str:
    """A node as a message names it."""
    return f"{node.op_type} {node.name or next(iter(node.output), '')!r}"


def _kahn(needs: Sequence[Sequence[int]]) -> list[int]:
    """An order in which everything stands behind what it needs, as near to the given one as that allows.

    What lies on a cycle, or behind one, is not in it.
    """
    waiting = [len(needed) for needed in needs]
    read_by: list[list[int]] = [[] for _ in needs]
    for i, needed in enumerate(needs):
        for j in needed:
            read_by[j].append(i)
    ready = [i for i, count in enumerate(waiting) if not count]  # sorted, so a heap
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for i in read_by[order[-1]]:
            waiting[i] -= 1
            if not waiting[i]:
                heapq.heappush(ready, i)
    return order


def _circle(needs: Sequence[Sequence[int]], order: Sequence[int], titles: Sequence[str]) -> str:
    """One cycle among what is not in the order, in words: each needs the next one."""
    done = set(order)
    current = next(i for i in range(len(needs)) if i not in done)
    path: dict[int, None] = {}
    while current not in path:  # all that is left needs something that is left
        path[current] = None
        current = next(j for j in needs[current] if j not in done)
    cycle = list(path)[list(path).index(current) :]
    shown = [titles[i] for i in cycle[:SHOWN]]
    more = f"... ({len(cycle) - SHOWN} more)" if len(cycle) > SHOWN else ""
    return " needs ".join([*shown, *([more] if more else []), titles[cycle[0]]])
