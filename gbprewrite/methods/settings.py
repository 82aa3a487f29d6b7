"""What some methods can be told, under the names of the arguments of convert."""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

from gbprewrite.errors import UsageError
from gbprewrite.model import bounds
from gbprewrite.select.channels import FeatureLayer, feature_layers
from gbprewrite.select.explained import explained
from gbprewrite.select.selection import Selection
from gbprewrite.select.target import Target


class Settings(NamedTuple):
    """What some methods can be told; see `gbprewrite.convert`."""

    cam_layer: str | None = None
    rectgrad_tau: float = 0.0
    rectgrad_quantile: float | None = None
    steps: int = 32
    baseline: str = "zeros"
    samples: int = 16


# Option → the methods that it is for.
READ_BY = {
    "cam_layer": ("gradcam", "guided_gradcam"),
    "rectgrad_tau": ("rectgrad",),
    "rectgrad_quantile": ("rectgrad",),
    "steps": ("integrated_gradients",),
    "baseline": ("integrated_gradients",),
    "samples": ("smoothgrad",),
}
BASELINES = ("zeros", "input")


def merged(keywords: Mapping[str, Any], on_methods: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `convert`, and what the methods themselves say. Raises UsageError where they differ."""
    for name, value in on_methods.items():
        if keywords[name] not in (Settings._field_defaults[name], value):
            raise UsageError(
                f"{name}={keywords[name]!r}: the method itself says {value!r}. Set it in one place, on the method or "
                "as a keyword."
            )
    return {**keywords, **on_methods}


def settings(given: Mapping[str, Any], methods: Collection[str]) -> Settings:
    """The settings, checked. Raises UsageError for a value out of range and for one that no method asked for reads."""
    made = Settings(**given)
    for name, users in READ_BY.items():
        if getattr(made, name) != Settings._field_defaults[name] and not set(users) & set(methods):
            raise UsageError(f"{_option(name)} is for --method {' or '.join(users)}, which is not among the methods.")
    if not 0 <= made.rectgrad_tau < math.inf:
        raise UsageError(f"--rectgrad-tau {made.rectgrad_tau}: a threshold of 0 or more.")
    if made.rectgrad_quantile is not None and not 0 <= made.rectgrad_quantile < 1:
        raise UsageError(f"--rectgrad-quantile {made.rectgrad_quantile}: a share from 0 to 1, such as 0.9.")
    if made.rectgrad_quantile is not None and made.rectgrad_tau:
        raise UsageError("--rectgrad-tau and --rectgrad-quantile both set the threshold; choose one.")
    for name in ("steps", "samples"):
        if getattr(made, name) < 1:
            raise UsageError(f"--{name} {getattr(made, name)}: at least 1.")
        if getattr(made, name) > bounds.POINTS:
            raise UsageError(f"--{name} {getattr(made, name)}: at most {bounds.POINTS:,}; hundreds are many.")
    if made.baseline not in BASELINES:
        raise UsageError(f"--baseline {made.baseline!r}: choose {' or '.join(BASELINES)}.")
    return made


def layers_for(
    graph: gs.Graph,
    chosen: Selection,
    methods: Collection[str],
    settings: Settings,
    target: Target,
    channels: str | None,
) -> list[FeatureLayer]:
    """Grad-CAM's layer of each input, if a method needs them. Raises as `feature_layers`."""
    if not reads_layer(methods):
        return []
    return feature_layers(graph, chosen, settings.cam_layer, explained(graph, chosen, target, channels))


def reads_layer(methods: Collection[str]) -> bool:
    """Whether a method needs the cotangent of an inner layer."""
    return not set(READ_BY["cam_layer"]).isdisjoint(methods)


class Given(NamedTuple):
    """An input that the file gains besides a target or seed: "noise" [samples, ...] or "baseline", for one input."""

    kind: str
    input: str
    name: str
    dtype: Any
    shape: list[int | str | None]


def given_inputs(chosen: Selection, methods: Collection[str], settings: Settings, prefix: str) -> list[Given]:
    """What the methods need at run time."""
    found = []
    for x in chosen.inputs:
        if "smoothgrad" in methods:
            found.append(Given("noise", x.name, f"{prefix}{x.name}_noise", x.dtype, [settings.samples, *x.shape[1:]]))
        if "integrated_gradients" in methods and settings.baseline == "input":
            found.append(Given("baseline", x.name, f"{prefix}{x.name}_baseline", x.dtype, list(x.shape)))
    return found


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
