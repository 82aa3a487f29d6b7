"""model → normalise → view → select → backward → methods → graft: read this file first."""

import os
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import onnx_graphsurgeon as gs
from onnx import ModelProto

from gbprewrite.backward import cotangents as seed
from gbprewrite.backward import coverage
from gbprewrite.backward.builder import Builder
from gbprewrite.backward.lowering.targets import TARGETS
from gbprewrite.backward.magnitudes.graph import DEEP
from gbprewrite.backward.walk import WALK
from gbprewrite.errors import ModelError, UnsupportedOperators, UsageError
from gbprewrite.graft import photographs as embedded
from gbprewrite.graft import pictures as heatmaps
from gbprewrite.graft import record as report
from gbprewrite.graft.nodes import check, declare_outputs, graft, keep_only
from gbprewrite.graft.restore import blaming, load
from gbprewrite.methods.asked import Asked, keywords_of, methods_of, set_up, specs
from gbprewrite.methods.instances import Appended, Instances
from gbprewrite.methods.settings import given_inputs, layers_for, merged, reads_layer
from gbprewrite.methods.table import METHODS, rectifiers
from gbprewrite.methods.work import Method, Work
from gbprewrite.model import file as modelfile
from gbprewrite.model.file import opset_of
from gbprewrite.model.input_shapes import Shapes, fix
from gbprewrite.model.input_shapes import missing as missing_shapes
from gbprewrite.model.messages import copied, names_inside
from gbprewrite.model.tensors import Tensor
from gbprewrite.normalise.dialect import normalise
from gbprewrite.options import Settings
from gbprewrite.photos.preprocessing import Options
from gbprewrite.select import detections, inner, starts, subset
from gbprewrite.select.score import check_names, find_way, select
from gbprewrite.select.selection import Selection
from gbprewrite.select.target import aim, parse_target
from gbprewrite.view import paths, randomness
from gbprewrite.view.forward import view


def convert(
    model: str | os.PathLike[str] | ModelProto,
    method: Asked | Sequence[Asked] = "guided",
    target: str | int | Sequence[int] | None = None,
    *,
    score: str | None = None,
    layer: str | None = None,
    inputs: Sequence[str] = (),
    class_axis: int | None = None,
    channels: str | int | slice | Sequence[int] | None = None,
    opset: int | None = None,
    through_softmax: bool = False,
    rectify: Sequence[str] = (),
    optimize_for: str = "auto",
    maps_only: bool = False,
    prefix: str = "",
    replace: bool = False,
    cam_layer: str | None = None,
    rectgrad_tau: float = 0.0,
    rectgrad_quantile: float | None = None,
    steps: int = 32,
    baseline: str = "zeros",
    samples: int = 16,
    forms: str | Sequence[str] = ("raw",),
    heatmap_dtype: str = "uint8",
    scaling: str = "percentile:99",
    colormap: str = "inferno",
    embed_preprocessing: bool = False,
    preprocessing: Options | Mapping[str, Any] | None = None,
    input_shapes: Shapes | None = None,
) -> ModelProto:
    """A model that gives, besides its own outputs, attribution maps of its inputs.

    Args:
        model: an ONNX file, or a ModelProto (which is left as it is).
        method: "guided" (Springenberg et al. 2014), "deconvnet" (Zeiler and Fergus 2013), "gradient" (Simonyan et al.
            2013), "input_x_gradient" (Shrikumar et al. 2016), "gradcam" and "guided_gradcam" (Selvaraju et al. 2017),
            "rectgrad" (Kim et al. 2019), "smoothgrad" (Smilkov et al. 2017), "integrated_gradients" (Sundararajan et
            al. 2017), or several of them, which share one forward pass. The last two put their points into the file as
            a batch, or, where the model's batch is fixed, the network itself once for each point.
        target: the class whose score is explained: "argmax" (the default), an index, several indices, "topk:K", "input"
            (a new int64 input `target` of shape [N]) or "seed" (a new input `seed` shaped like the score: the cotangent
            itself). Or one unit: "strongest" (the default with `layer`) of all, the strongest of a channel "channel:C",
            or the one at a position "unit:C,H,W". Its cotangent is 1, that of all others 0. Or the K strongest units at
            different positions (along every axis but the classes'), "strongest:K", each with its own map. Or class C of
            a segmentation, summed over the positions that say it: "region:C", or "region" for the class of the largest
            region. A position says the class of its highest score, or, behind a Sigmoid and where there is one class,
            each class whose probability is above one half. A sample without such a position has NaN maps.
        score: name of the graph output or inner tensor to explain; needed when several outputs qualify.
        layer: name of an inner tensor, or of the node that makes it, in place of `score`: where the unit is.
        inputs: names of the inputs to differentiate, or of inner tensors of floats; by default every float input that
            the score depends on, and of a model of uint8 images the first floats behind them.
        class_axis: axis of the classes, in the shape of the output; by default what a final Softmax or the node that
            makes the logits says. The record holds which one was taken, and why.
        channels: those that "argmax", "topk:K", "strongest" and "strongest:K" look at, along the class axis: "4:84",
            "0,2,3:7", a number, several, or a slice, as Python counts; all by default. `explained_index` counts in the
            whole score.
        opset: opset of the result; by default the source's, but at least 18.
        through_softmax: explain the probability itself, instead of the score before a final Softmax or Sigmoid.
        rectify: activations that guided and deconvnet treat like ReLU: ("all",) or names such as "Gelu".
        optimize_for: "cpu" writes the spellings that onnxruntime's CPU provider runs fastest, and so does "auto";
            "cuda" those that its CUDA provider has kernels for; "portable" the plainest ones, for other runtimes.
        maps_only: leave out the model's own outputs, and everything that the maps don't need. The source can't be taken
            back from such a file.
        prefix: put before every name that the file gains, where these meet names of the source.
        replace: convert the source again that a converted model was made from.
        cam_layer: name of the tensor or node at which Grad-CAM is taken; by default the last one before the score with
            channels and more than one position, which is the one before a global pool.
        rectgrad_tau: RectGrad's threshold: what goes back through a unit is activation times cotangent above it.
        rectgrad_quantile: RectGrad's threshold as a share of the units of each layer, 0.9 for the strongest tenth.
        steps: points of the integral of integrated gradients, in the middle of as many equal steps.
        baseline: where that integral begins: "zeros", or "input" for a new input `<input>_baseline` shaped like it.
        samples: number of SmoothGrad's noisy copies; the noise is a new input `<input>_noise` [samples, ...] that is
            added to every sample of the batch.
        forms: "raw", the map itself; "heatmap", the largest channel of |map|, scaled, without the axis of channels;
            "overlay", that in colour over the grey photograph, uint8 with a last axis red, green, blue. Or several.
        heatmap_dtype: "uint8", 0 to 255, or "float", 0 to 1 in the map's type.
        scaling: of heatmaps and overlays: "percentile:P", what is full strength (stronger values are clipped), or
            "minmax", from the smallest value to the largest.
        colormap: of overlays, one of matplotlib's.
        embed_preprocessing: the file takes photographs: uint8 [N, height, width, channels], red first, as
            `<input>_image` in place of its image input, and resizes and normalises them itself.
        preprocessing: what photographs go through, for embed_preprocessing and overlays; what it does not say is worked
            out from the model as `explain` does, and the file's record holds what came of it.
        input_shapes: name → shape of inputs whose shape the model leaves out, or some sizes of it open; a name or None
            in place of a number leaves a size open.

    Returns:
        The model with further outputs `<input>_<method>` (shape and dtype of the input, Grad-CAM's with one channel;
        with several classes or units an axis behind the batch) and `explained_index` (int64 [N], [N, K] for several
        classes, [N, rank-1] for a unit, [N, K, rank-1] for several units; absent for "seed"). A run-time target that
        does not exist makes the maps of its sample NaN (in uint8, which has none, nought). Heatmaps and overlays are
        `<input>_<method>_heatmap`, `..._overlay`.

    Raises:
        UsageError: unknown method, score, input, target, form, or a target out of range; a score of which nothing tells
            where its classes are; preprocessing that nothing asked for reads, or that contradicts the model.
        ModelError: no ONNX model, nothing to rectify, no layer for Grad-CAM, a name clash, or a model converted
            already.
        UnsupportedOperators: operators between score and input that have no rule; all of them are listed.
    """
    methods = methods_of(method)
    wanted, explained = aim(target, score, layer, methods)
    if optimize_for not in TARGETS:
        raise UsageError(f"--optimize-for {optimize_for!r}: choose {', '.join(TARGETS)}.")
    inputs, rectify = ((v,) if isinstance(v, str) else tuple(v) for v in (inputs, rectify))
    options: dict[str, Any] = {
        **{"method": specs(methods.values()), "target": wanted.text, "score": explained, "inputs": inputs},
        **{"class_axis": class_axis, "channels": None if channels is None else subset.text_of(channels)},
        **{"opset": opset, "through_softmax": through_softmax, "rectify": rectify},
        **{"optimize_for": optimize_for, "maps_only": maps_only, "prefix": prefix},
    }
    shapes = {name: list(sizes) for name, sizes in (input_shapes or {}).items()}
    told = {
        **{"cam_layer": cam_layer, "rectgrad_tau": rectgrad_tau, "rectgrad_quantile": rectgrad_quantile},
        **{"steps": steps, "baseline": baseline, "samples": samples},
    }
    told = merged(told, keywords_of(method))
    shown = {"forms": forms, "heatmap_dtype": heatmap_dtype, "scaling": scaling, "colormap": colormap}
    settings = Settings.read(told, methods, shown, embed_preprocessing, preprocessing)
    with blaming(model):
        source = load(model, replace)
        facts = report.source_facts(source) | {"options": {**options, **settings.to_json(), "input_shapes": shapes}}
        declared = [report.value_row(o) for o in source.graph.output]
        if replace:  # a source part has the source's history
            facts |= {"source": (report.read_record(load(model, None)) or facts)["source"]}
        fix(source, shapes)
        try:
            result, record = _converted(source, settings, **{**options, "method": methods})
        except UnsupportedOperators as error:
            hints = (modelfile.unsettled(source), missing_shapes(source))
            raise UnsupportedOperators(error.obstacles, " ".join(filter(None, hints))) from None
        except (ModelError, UsageError) as error:
            error.args = (" ".join(filter(None, (str(error), missing_shapes(source)))), *error.args[1:])
            raise
        flaw = check(result, lambda: load(model, replace)) or report.corrections(declared, result)
        report.write_record(result, facts | record | {"flaw": flaw})
    return result


def _converted(
    source: ModelProto,
    settings: Settings,
    method: Mapping[str, Method],
    target: str,
    score: str | None,
    inputs: Sequence[str],
    class_axis: int | None,
    channels: str | None,
    opset: int | None,
    through_softmax: bool,
    rectify: Sequence[str],
    optimize_for: str,
    maps_only: bool,
    prefix: str,
) -> tuple[ModelProto, dict[str, Any]]:
    """The converted model, still without its record; and the record."""
    methods, wanted = set_up(method, settings.methods), parse_target(target)
    tables = [m.rules for m in methods.values()]
    known = coverage.known(tables)
    result = normalise(source, known, opset)
    only_inputs = set(inputs) <= {i.name for i in result.graph.input}
    graph = view(result, known, rearrange=only_inputs and not reads_layer(methods))
    drawing = settings.pictures
    declare_outputs(result, graph)
    moved = wanted.kind != "seed"  # which is shaped like the score itself
    way = find_way(graph, result, score, inputs, through_softmax)
    coverage.check(paths.with_branches(way.nodes, way.inputs), opset_of(result), tables)
    chosen = select(graph, result, way, bool(inputs), class_axis, moved)
    head = detections.find(graph, starts.real_inputs(graph, result), chosen, wanted, channels)
    chosen = detections.counted(chosen, head, class_axis)
    randomness.refuse_other_points(chosen.score, methods)
    masks = randomness.show_masks(result, graph, chosen.nodes, prefix)
    chosen = chosen._replace(notes=[*chosen.notes, *randomness.notes(chosen.score)])
    everywhere = list(paths.with_branches(chosen.nodes, chosen.inputs))
    found, marked = rectifiers(everywhere, methods, rectify)
    layers = layers_for(graph, chosen, methods, settings.methods, wanted, channels)
    within = inner.rows(graph, result, chosen)
    inner.refuse(result, within, methods, settings.photo is not None)
    made_of = settings.preprocessing(result, chosen)
    names = {role: prefix + role for role in ("target", "seed", "explained_index")}
    maps = {
        (x.name, m, form): prefix + heatmaps.map_name(x.name, m, form)
        for m in methods
        for x in chosen.inputs
        for form in drawing.forms
    }
    given = given_inputs(chosen, methods, settings.methods, prefix)
    image = f"{prefix}{chosen.inputs[0].name}_image"
    gained = [*maps.values(), *(names[role] for role in wanted.roles), *(g.name for g in given)]
    check_names(graph, result, [*gained, *([image] if settings.embed else [])])

    op = Builder(
        graph, opset_of(result), prefix, TARGETS[optimize_for],
        walk=WALK,
        weights=modelfile.constants(result),
        taken=(t.name for t in result.graph.initializer),
        deep=len(chosen.nodes) >= DEEP,
    )  # fmt: skip
    op.nodes += starts.added_nodes(graph, result, chosen.inputs)
    op.reserve([*gained, *names_inside(result.graph)])
    seeds = seed.seeds(op, chosen.score, wanted, chosen.counting, names, channels)
    outputs: list[Tensor] = []
    gained_inputs = {(g.kind, g.input): gs.Variable(g.name, g.dtype, g.shape) for g in given}
    begun = inner.cut(result, [row["name"] for row in within]) if within else result
    instances = cache(partial(_instances, op, begun or result, chosen, optimize_for))
    work = Work(op, graph, chosen, seeds, marked, settings.methods, layers, gained_inputs, instances)
    pictures = heatmaps.Pictures(op, chosen, seeds, drawing, made_of)
    for name, by in methods.items():
        for x, found_map in zip(chosen.inputs, by.maps(work, by), strict=True):
            made = seed.stacked(op, *found_map, seeds)
            outputs += [pictures.output(made, x, form, maps[x.name, name, form]) for form in drawing.forms]
    if seeds.indices is not None:
        outputs.append(op.output(seeds.indices, names["explained_index"]))
    added = graft(result, op, [*seeds.inputs, *gained_inputs.values()], outputs)
    if maps_only:
        keep_only(result, [t.name for t in outputs])
    record = report.record(result, added, chosen, methods, wanted, names, maps, found, marked)
    rows = [{"kind": g.kind, "input": g.input, "name": g.name} for g in given]
    record |= {"given": rows, "embedded": None, "preprocessing": None, "head": head.to_json()}
    record |= {"inner_inputs": within, "masks": masks, **report.cam_layers(chosen, layers)}
    if made_of is not None:
        record["preprocessing"] = embedded.facts(made_of)
    if settings.embed and made_of is not None:
        record["embedded"] = embedded.embed(result, chosen.inputs[0].name, image, made_of)
        record["nodes"] = len(result.graph.node)
    return result, record


def _instances(op: Builder, normal: ModelProto, chosen: Selection, optimize_for: str) -> Instances:
    """The normalised model, converted for itself, to be built once more for another batch."""
    options: dict[str, Any] = {
        **{"method": {"gradient": METHODS["gradient"]}, "target": "seed", "score": chosen.score.name},
        **{"class_axis": None, "channels": None},
        **{"inputs": [x.name for x in chosen.inputs], "opset": None, "through_softmax": True, "rectify": ()},
        **{"optimize_for": optimize_for, "maps_only": False, "prefix": f"{op.prefix}instance/"},
    }
    model, record = _converted(copied(normal), Settings(), **options)
    maps = {row["input"]: row["output"] for row in record["maps"]}
    return Instances(op, model, Appended(record["seed_name"], maps, **record["added"]))
