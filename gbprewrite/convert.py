"""load → normalise → view → select → differentiate → graft: read this file first."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from gbprewrite import differentiate, modelfile, policies, report, seed, select
from gbprewrite.errors import GbprewriteError, ModelError, UsageError
from gbprewrite.graft import check, declare_outputs, graft, restore
from gbprewrite.lowering import Builder
from gbprewrite.modelfile import opset_of
from gbprewrite.normalise import normalise, parameters
from gbprewrite.policies import METHODS
from gbprewrite.tensors import Tensor, is_float
from gbprewrite.view import view


@contextlib.contextmanager
def blaming(model: str | os.PathLike[str] | ModelProto) -> Iterator[None]:
    """Turn a crash on a damaged model into a ModelError that says what is wrong with the model."""
    try:
        yield
    except GbprewriteError:
        raise
    except Exception as error:
        try:
            onnx.checker.check_model(load(model, replace=None))
        except Exception as flaw:
            raise ModelError(
                f"the model is not valid ONNX: {str(flaw).strip().splitlines()[0]} Export it again; "
                "onnx.checker.check_model shows the flaw."
            ) from error
        raise ModelError(
            f"the model can't be worked on ({type(error).__name__}: {error}). It passes onnx.checker, so either its "
            "values contradict each other, or this is a defect of gbprewrite: please report it with the model."
        ) from error


def convert(
    model: str | os.PathLike[str] | ModelProto,
    method: str | Sequence[str] = "guided",
    target: str | int | Sequence[int] = "argmax",
    *,
    score: str | None = None,
    inputs: Sequence[str] = (),
    class_axis: int | None = None,
    opset: int | None = None,
    through_softmax: bool = False,
    rectify: Sequence[str] = (),
    optimize_for: str = "auto",
    prefix: str = "",
    replace: bool = False,
) -> ModelProto:
    """A model that gives, besides its own outputs, attribution maps of its inputs.

    Args:
        model: an ONNX file, or a ModelProto (which is left as it is).
        method: "guided" (Springenberg et al. 2014), "deconvnet" (Zeiler and Fergus 2013), "gradient" (Simonyan et al.
            2013), or several of them, which share one forward pass.
        target: the class whose score is explained: "argmax", an index, several indices, "topk:K", "unit:C,H,W" (one
            position of the score), "input" (a new int64 input `target` of shape [N]) or "seed" (a new input `seed`
            shaped like the score: the cotangent itself).
        score: name of the graph output or inner tensor to explain; needed when several outputs qualify.
        inputs: names of the inputs to differentiate; by default every float input that the score depends on.
        class_axis: axis of the classes, 1 by default, or the axis of a final Softmax.
        opset: opset of the result; by default the source's, but at least 18.
        through_softmax: explain the probability itself, instead of the score before a final Softmax or Sigmoid.
        rectify: activations that guided and deconvnet treat like ReLU: ("all",) or names such as "Gelu".
        optimize_for: "auto" writes the spellings that onnxruntime runs fastest, "portable" the plainest ones.
        prefix: put before every name that the file gains, where these meet names of the source.
        replace: convert the source again that a converted model was made from.

    Returns:
        The model with further outputs `<input>_<method>` (shape and dtype of the input; with several classes an axis
        behind the batch) and `explained_index` (int64 [N], [N, K] for several classes, [N, rank-1] for a unit; absent
        for "seed"). A run-time target that does not exist makes the maps of its sample NaN.

    Raises:
        UsageError: unknown method, score, input, target, or a target out of range.
        ModelError: no ONNX model, nothing to rectify, a name clash, or a model converted already.
        UnsupportedOperators: operators between score and input that have no rule; all of them are listed.
    """
    methods = select.methods(method)
    wanted = seed.parse(target)
    if optimize_for not in ("auto", "portable"):
        raise UsageError(f"--optimize-for {optimize_for!r}: choose auto or portable.")
    inputs, rectify = ((v,) if isinstance(v, str) else tuple(v) for v in (inputs, rectify))
    options: dict[str, Any] = {
        **{"method": methods, "target": wanted.text, "score": score, "inputs": inputs, "class_axis": class_axis},
        **{"opset": opset, "through_softmax": through_softmax, "rectify": rectify, "optimize_for": optimize_for},
        "prefix": prefix,
    }
    with blaming(model):
        source = load(model, replace)
        facts = report.source_facts(source) | {"options": options}
        if replace:  # a source part has the source's history
            facts |= {"source": (report.read_record(load(model, None)) or facts)["source"]}
        result, record = _converted(source, **options)
        flaw = check(result, lambda: load(model, replace))
        report.write_record(result, facts | record | {"flaw": flaw})
    return result


def _converted(
    source: ModelProto,
    method: Sequence[str],
    target: str,
    score: str | None,
    inputs: Sequence[str],
    class_axis: int | None,
    opset: int | None,
    through_softmax: bool,
    rectify: Sequence[str],
    optimize_for: str,
    prefix: str,
) -> tuple[ModelProto, dict[str, Any]]:
    """The converted model, still without its record; and the record."""
    methods, wanted = method, seed.parse(target)
    result = normalise(source, opset)
    graph = view(result)
    declare_outputs(result, graph)
    chosen = select.select(graph, result, score, inputs, class_axis, through_softmax, opset_of(result))
    found, marked = select.rectifiers(chosen.nodes, methods, rectify)
    names = {role: prefix + role for role in ("target", "seed", "explained_index")}
    maps = {(x.name, m): f"{prefix}{x.name}_{m}" for m in methods for x in chosen.inputs}
    gained = [*maps.values(), *(names[role] for role in wanted.roles)]
    select.check_names(graph, result, gained)

    op = Builder(graph, opset_of(result), prefix, optimize_for == "portable")
    op.reserve(gained)
    seeds = seed.seeds(op, chosen.score, wanted, chosen.class_axis, names)
    outputs: list[Tensor] = []
    for name in methods:
        rule_of = partial(policies.rule_of, combine=METHODS[name], marked=marked)
        pulled = differentiate.pull_back(op, chosen, rule_of, seeds.cotangents, "grad" if name == "gradient" else name)
        for x, cotangents in zip(chosen.inputs, pulled, strict=True):
            outputs.append(seed.as_output(op, x, cotangents, seeds, maps[x.name, name]))
    if seeds.indices is not None:
        outputs.append(op.output(seeds.indices, names["explained_index"]))
    added = graft(result, op, seeds.inputs, outputs)
    return result, report.record(result, added, chosen, methods, wanted, names, maps, found, marked)


def inspect(model: str | os.PathLike[str] | ModelProto) -> report.Inspection:
    """What a model is, and which rule each nonlinearity and pool meets under each method.

    Of a converted model, the source part is looked at and `record` says what was done to it. Raises ModelError.
    """
    with blaming(model):
        return _inspected(load(model, replace=None))


def _inspected(given: ModelProto) -> report.Inspection:
    facts = report.describe(given)
    source = restore(given)
    facts["parameters"] = parameters(source)  # the conversion's own constants are none of the model's
    normal = normalise(source)
    graph = view(normal)
    inputs = [t for t in select.real_inputs(graph, normal) if is_float(t)]
    nodes: dict[int, gs.Node] = {}
    for output in graph.outputs:
        nodes.update({id(n): n for n in differentiate.path(graph, inputs, output)})
    found = [n for n in map(policies.nonlinearity, nodes.values()) if n]
    return report.Inspection(
        **facts,
        nonlinearities=report.treatments(found, list(METHODS), policies.rectified(found)),
        pools=report.pools(nodes.values()),
        missing=differentiate.missing(nodes.values(), opset_of(normal)),
    )


def load(model: str | os.PathLike[str] | ModelProto, replace: bool | None = False) -> ModelProto:
    """A model of our own to work on.

    A converted one is refused with ModelError; `replace` gives its source part, and None leaves it as it is.
    """
    if isinstance(model, ModelProto):
        source = ModelProto()
        source.CopyFrom(model)
    else:
        source = modelfile.load(model)
    record = report.read_record(source)
    if record is None or replace is None:
        return source
    if not replace:
        raise ModelError(
            f"the model is a converted one already (methods {', '.join(record['methods'])}, target "
            f"{record['target']}). Convert its source instead, or use --replace to convert the source part of this "
            "file again."
        )
    return restore(source)
