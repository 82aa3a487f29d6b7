"""A converted file back to its source.

And what every command begins with: a model to work on, and errors that blame the right one.
"""

import contextlib
import os
from collections.abc import Iterator

from onnx import ModelProto
from onnx.shape_inference import InferenceError
from onnx_graphsurgeon.logger import G_LOGGER

from gbprewrite.errors import GbprewriteError, ModelError, first_line
from gbprewrite.graft import photographs as embedded
from gbprewrite.graft import record as report
from gbprewrite.model import attributes, soundness
from gbprewrite.model import file as modelfile
from gbprewrite.model.messages import copied
from gbprewrite.view import randomness

BEYOND_NUMBERS = ("overflow", "Invalid dimension value")  # what onnx says of sizes that no tensor has


def restore(model: ModelProto) -> ModelProto:
    """The source part of a converted model, in place: what the conversion added is taken away again.

    (Normalising stays: the opset is the result's.) A model without a record comes back as it is.
    """
    record = report.read_record(embedded.take_out(model))
    if record is None:
        return model
    if report.holds_only_maps(record):
        raise ModelError(
            "the file holds only maps (it was converted with --maps-only), so that its source can't be taken back from "
            "it. Use the source model itself."
        )
    if record["nodes"] != len(model.graph.node):
        raise ModelError(
            f"the converted file had {record['nodes']:,} nodes when it was written, and has {len(model.graph.node):,}: "
            "another program changed it, so that its source can't be taken back from it. Use the source model itself."
        )
    own = len(model.graph.node) - record["added"]["nodes"]
    made = {name for node in model.graph.node[own:] for name in node.output}
    del model.graph.node[own:]
    randomness.hide_masks(model, record["masks"])
    del model.graph.initializer[len(model.graph.initializer) - record["added"]["initializers"] :]
    gained = {m["output"] for m in record["maps"]} | {record["explained_index_name"]}
    given = report.given_names(record)
    for values, added in (
        (model.graph.output, gained), (model.graph.input, given), (model.graph.value_info, made)
    ):  # fmt: skip
        kept = [v for v in values if v.name not in added]
        del values[:]
        values.extend(kept)
    entries = [e for e in model.metadata_props if e.key != report.KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(entries)
    return model


@contextlib.contextmanager
def blaming(model: str | os.PathLike[str] | ModelProto) -> Iterator[None]:
    """Turn a crash on a damaged model into a ModelError that says what is wrong with the model."""
    try:
        with G_LOGGER.suppress(G_LOGGER.ERROR):  # onnx reads bfloat16 by now; and warnings would go to stdout
            yield
    except GbprewriteError:
        raise
    except MemoryError as error:
        raise ModelError(
            "the model asks for more memory than there is. If it is of a usual size, close other programs; else its "
            "shapes or attributes are damaged: export it again."
        ) from error
    except Exception as error:
        if isinstance(error, InferenceError) and any(words in str(error) for words in BEYOND_NUMBERS):
            raise ModelError(
                f"the model's sizes are beyond what can be computed with: {first_line(error)}. Check the shapes of its "
                "inputs and the kernels, dilations and pads of its nodes, and export it again."
            ) from error
        given = load(model, replace=None)
        words = soundness.flaw(given)
        if words:
            raise ModelError(f"the model is not valid: {words}. Export it again.") from error
        what = f"the model can't be worked on ({type(error).__name__}: {first_line(error)})"
        if report.read_record(given) is not None:
            raise ModelError(
                f"{what}. It is a converted one, so its record may have been changed since. Convert the source again; "
                "if that does not help, this is a defect of gbprewrite: please report it with both files."
            ) from error
        raise ModelError(
            f"{what}. It passes ONNX's full check, and onnxruntime loads it where that is installed, so this is a "
            "defect of gbprewrite: please report it with the model."
        ) from error


def load(model: str | os.PathLike[str] | ModelProto, replace: bool | None = False) -> ModelProto:
    """A model of our own to work on.

    A converted one is refused with ModelError; `replace` gives its source part, and None leaves it as it is.
    """
    if isinstance(model, ModelProto):
        source = copied(model)
        modelfile.check_text(source)
        modelfile.check_references(source)
    else:
        source = modelfile.load(model)
    soundness.check_weights(source)
    attributes.check(source)  # before any runtime reads them
    record = report.read_record(source)
    if record is None or replace is None:
        return source
    if not replace:
        if report.holds_only_maps(record):
            return restore(source)  # says why it can't
        raise ModelError(
            f"the model is a converted one already (methods {', '.join(record['methods'])}, target "
            f"{record['target']}). Convert its source instead, or use --replace to convert the source part of this "
            "file again."
        )
    return restore(source)
