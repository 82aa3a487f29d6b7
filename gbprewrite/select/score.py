"""The score: which tensor is explained, from which inputs, and how its values are counted."""

import math
from collections.abc import Sequence

import onnx_graphsurgeon as gs
from onnx import ModelProto

from gbprewrite.errors import ModelError, UsageError
from gbprewrite.model.messages import names_inside
from gbprewrite.model.names import shortlist, similar
from gbprewrite.model.tensors import Tensor, is_float
from gbprewrite.select import detections, ends, starts
from gbprewrite.select.axes import Axes
from gbprewrite.select.class_axis import Counting, counting
from gbprewrite.select.final_activation import KEEPS, MOVES, Final, final_activation
from gbprewrite.select.heads import behind_scoring
from gbprewrite.select.regrouping import UNKNOWN, Part, size_of
from gbprewrite.select.selection import Selection, Way
from gbprewrite.view import paths
from gbprewrite.view.idioms import producer
from gbprewrite.view.quantised import only_in_view, shown


def find_way(
    graph: gs.Graph, model: ModelProto, score: str | None, inputs: Sequence[str], through_softmax: bool
) -> Way:
    """Find what is explained, and with respect to what.

    Raises UsageError for unknown names, ModelError where nothing can be explained.
    """
    wanted = starts.input_tensors(graph, model, inputs)
    output = _output(graph, wanted, score)
    inner = not any(output is t for t in graph.outputs)  # named by the user, and meant
    final = final_activation(output)
    over = None if final is None or through_softmax or inner or final.picks is not None else final
    if over is not None and over.moves and output.shape is None:
        over = None  # nobody could count in it
    explained = output if over is None else over.score
    _check_score(explained, graph, wanted)
    notes = [*starts.notes(graph, model, wanted, inputs), *_notes(output, final, through_softmax or inner)]
    return Way(output, explained, final, over, wanted, paths.path(graph, wanted, explained), notes)


def select(
    graph: gs.Graph, model: ModelProto, way: Way, named_inputs: bool, class_axis: int | None, moved: bool = True
) -> Selection:
    """What is explained, and how it is counted.

    `moved`: whether the score is counted in the shape that it has behind the activation that is stepped over.

    Raises ModelError where the score does not depend on `named_inputs`, or on any input; UsageError where nobody
    can tell which axis holds the classes that were asked for.
    """
    read = {id(t) for n in way.nodes for t in paths.read_by(n)} | {id(way.score)}
    reached = [t for t in way.inputs if id(t) in read]
    unreached = [t.name for t in way.inputs if id(t) not in read]
    if unreached and (named_inputs or not reached):
        raise ModelError(
            f"the score {way.score.name!r} does not depend on {', '.join(unreached)} by differentiable steps, so there "
            "is nothing to explain there. Choose another tensor with --score NAME or another input with --input NAME."
        )
    moves = way.over.moves if way.over is not None and moved else []
    made = _counting(graph, model, way.output if moves else way.score, way.final, class_axis)
    made = made._replace(moves=moves, said_above=_said_above(made, way.score, way.final))
    stepped = [] if way.over is None else [way.over.activation]
    return Selection(way.output, way.score, stepped, made, reached, way.nodes, way.notes)


def _counting(
    graph: gs.Graph, model: ModelProto, counted: Tensor, final: Final | None, class_axis: int | None
) -> Counting:
    """How a tensor is counted: the score, or the output that shows its values behind a final activation."""
    inputs = starts.real_inputs(graph, model)
    axes = Axes(graph, inputs)
    if final is not None and final.class_axis is not None:
        behind = [] if counted is final.score else [final.activation, *final.behind]
        holds = axes.with_classes(final.score, final.class_axis, behind)
    else:
        holds = axes.of.get(id(counted))
    if holds is None:
        holds = [(Part(UNKNOWN, size_of(d)),) for d in counted.shape]
    batched = [x for x in inputs if x.shape and id(x) not in axes.unbatched]
    names = {d for x in inputs if x.shape for d in x.shape}
    shape = [d if isinstance(d, int) or d in names else None for d in counted.shape]  # others are the exporter's own
    made = counting(counted.name, shape, holds, class_axis, [x.shape[0] for x in batched])
    return made._replace(unbatched=not batched)


def _said_above(made: Counting, explained: Tensor, final: Final | None) -> float | None:
    """The score above which a position says a class, by a Sigmoid; None where it says the class of the highest."""
    if final is not None and final.activation.op == "Sigmoid":
        return 0.0 if explained is final.score else 0.5
    before = any(node.op == "Sigmoid" for node in explained.outputs)  # which makes its probabilities
    single = made.class_axis is None or made.shape[made.class_axis] == 1
    if not single or before:
        return 0.0 if before else None
    maker = behind_scoring(producer(explained)) if final is None else final.activation
    if maker is None or (final is not None and explained is final.score):
        return 0.0
    return math.log(0.5) if maker.op == "LogSoftmax" else 0.5  # of a probability


def _notes(output: Tensor, final: Final | None, as_it_is: bool) -> list[str]:
    """What must be said about a final activation that is not stepped over, or about values that are sorted, although
    the user did not ask for that."""
    if as_it_is:
        return []
    if final is None:
        return _as_they_are(output)
    if final.picks is None:
        return []
    return [
        f"the final {final.activation.op} is not stepped over, since {final.picks.op} {final.picks.name!r} behind it "
        f"takes some of its values only: {output.name!r} is explained as it is. To explain the score before it, use "
        f"--score {final.score.name}."
    ]


def _as_they_are(output: Tensor) -> list[str]:
    """What must be said of values that a quantised activation gives, and of a classifier's that TopK sorted."""
    node = producer(output)
    while node is not None and node.op in (*KEEPS, *MOVES, "Saturation"):
        node = producer(node.inputs[0])
    if node is not None and node.op in ("QLinearSigmoid", "QLinearSoftmax"):
        return [
            f"{node.op} {node.name!r} is not stepped over, since the levels before it are no floats: its probability "
            "is explained, whose gradient is near 0 where it is sure. Quantise with QDQ to explain the score."
        ]
    if node is None or node.op != "TopK" or len(output.shape or ()) != 2:
        return []
    final = final_activation(node.inputs[0])
    score = node.inputs[0] if final is None else final.score
    return [
        f"TopK {node.name!r} sorts the values of {output.name!r}: indices count their ranks, and are no numbers of "
        f"classes. To explain classes, use --score {score.name}."
    ]


def _output(graph: gs.Graph, inputs: Sequence[Tensor], name: str | None) -> Tensor:
    if name is not None:
        return named(graph, name)
    made = paths.made_on_the_way(graph, inputs)
    able = [t for t in graph.outputs if ends.reached(made, t)]
    listing = shortlist(f"{t.name} {t.shape}" for t in able or graph.outputs)
    if not able:
        raise ModelError(
            f"no output depends on a float input by differentiable steps; the outputs are: {listing}. "
            f"{ends.advice(graph, inputs, graph.outputs)}"
        )
    if len(able) > 1:
        said = detections.advice(graph, able)
        raise UsageError(f"{len(able)} outputs could be explained: {listing}. Choose one with --score NAME.{said}")
    return able[0]


def named(graph: gs.Graph, name: str, option: str = "--score") -> Tensor:
    """The tensor of this name, or the first output of the node of this name.

    Raises UsageError, with the option and the names that come close, where there is neither.
    """
    tensors = {t.name: t for n in graph.nodes for t in n.outputs if not only_in_view(t)}
    tensors |= {t.name: t for t in graph.outputs}
    nodes = {n.name: shown(n.outputs[0]) for n in graph.nodes if n.outputs}
    if name in tensors or name in nodes:
        return tensors.get(name, nodes.get(name))
    close = similar(name, [*tensors, *nodes])
    advice = f" Did you mean {' or '.join(close)}?" if close else ""
    given = {t.name for t in graph.inputs} | {t.name for n in graph.nodes for t in n.inputs}
    if name in given - {""}:
        raise UsageError(
            f"{option} {name}: this is an input or a weight; name a tensor that a node computes. "
            "'gbprewrite layers MODEL' lists them."
        )
    said = f"{option} {name}{' (--layer)' if option == '--score' else ''}"
    raise UsageError(
        f"{said}: the model has no such tensor or node.{advice} Its outputs are: "
        f"{shortlist(t.name for t in graph.outputs)}; 'gbprewrite layers MODEL' lists what lies before them."
    )


def _check_score(score: Tensor, graph: gs.Graph, inputs: Sequence[Tensor]) -> None:
    if score.dtype is None or score.shape is None:
        raise ModelError(
            f"the type or rank of the score {score.name!r} can't be inferred. Export the model with shapes, or choose "
            "another tensor with --score NAME."
        )
    if not is_float(score):
        raise UsageError(
            f"--score {score.name}: it holds {score.dtype} values, and only floats have a gradient. "
            f"{ends.advice(graph, inputs, [score])}"
        )


def check_names(graph: gs.Graph, model: ModelProto, gained: Sequence[str]) -> None:
    """Raise ModelError where the source already uses a name that the result needs."""
    taken = {t.name for n in graph.nodes for t in [*n.inputs, *n.outputs]} | {t.name for t in graph.inputs}
    taken |= {t.name for t in model.graph.initializer} | names_inside(model.graph)
    clash = sorted(set(gained) & taken)
    if clash:
        raise ModelError(
            f"the model uses the name(s) {', '.join(clash)} already, which the result would need. "
            "Choose other names with --prefix TEXT."
        )
