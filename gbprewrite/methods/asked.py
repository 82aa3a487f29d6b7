"""The methods that a user asks for: by name, by the place of one of his own, or as objects with their parameters."""

import importlib
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeAlias

from gbprewrite.errors import UsageError, first_line
from gbprewrite.methods import combinators
from gbprewrite.methods.settings import Settings
from gbprewrite.methods.table import METHODS
from gbprewrite.methods.work import Method

PLACE = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # module:NAME


class Parameters:
    """A method of this package with its parameters; `keywords` are those of `gbprewrite.convert`."""

    name: ClassVar[str]

    def keywords(self) -> dict[str, Any]:
        """The parameters under the names that `gbprewrite.convert` has for them."""
        raise NotImplementedError


@dataclass(frozen=True)
class GradCAM(Parameters):
    """Grad-CAM (Selvaraju et al. 2017, section 3) at a layer: the name of a tensor or node, None for the last one with
    channels and more than one position."""

    layer: str | None = None
    name: ClassVar[str] = "gradcam"

    def keywords(self) -> dict[str, Any]:
        """See `Parameters`."""
        return {"cam_layer": self.layer}


@dataclass(frozen=True)
class GuidedGradCAM(GradCAM):
    """Guided Grad-CAM (Selvaraju et al. 2017, section 3.2) at a layer, as for `GradCAM`."""

    name: ClassVar[str] = "guided_gradcam"


@dataclass(frozen=True)
class RectGrad(Parameters):
    """RectGrad (Kim et al. 2019): what goes back through a unit is activation times cotangent above a threshold: the
    number `tau`, or the `quantile` of each layer and sample."""

    tau: float = 0.0
    quantile: float | None = None
    name: ClassVar[str] = "rectgrad"

    def keywords(self) -> dict[str, Any]:
        """See `Parameters`."""
        return {"rectgrad_tau": self.tau, "rectgrad_quantile": self.quantile}


@dataclass(frozen=True)
class SmoothGrad(Parameters):
    """SmoothGrad (Smilkov et al. 2017): the mean gradient of noisy copies."""

    samples: int = 16
    name: ClassVar[str] = "smoothgrad"

    def keywords(self) -> dict[str, Any]:
        """See `Parameters`."""
        return {"samples": self.samples}


@dataclass(frozen=True)
class IntegratedGradients(Parameters):
    """Integrated gradients (Sundararajan et al. 2017) by the midpoint rule, from a `baseline`: "zeros" or "input"."""

    steps: int = 32
    baseline: str = "zeros"
    name: ClassVar[str] = "integrated_gradients"

    def keywords(self) -> dict[str, Any]:
        """See `Parameters`."""
        return {"steps": self.steps, "baseline": self.baseline}


Asked: TypeAlias = str | Method | Parameters


def methods_of(asked: Asked | Sequence[Asked]) -> dict[str, Method]:
    """Name → method, each once. Raises UsageError for an unknown name, and for two methods of one name."""
    found: dict[str, Method] = {}
    items = _listed(asked)
    unknown = [m for m in items if isinstance(m, str) and m not in METHODS and not re.fullmatch(PLACE, m)]
    if unknown or not items:
        raise UsageError(f"--method {', '.join(unknown) or 'is empty'}: choose from {', '.join(METHODS)}.")
    for item in items:
        method = _method(item)
        if found.setdefault(method.name, method) is not method or METHODS.get(method.name, method) is not method:
            raise UsageError(f"--method {method.name}: two methods have this name. Give yours another one.")
    return found


def by_name(asked: Asked | Sequence[Asked], held: Collection[str] = ()) -> dict[str, Asked]:
    """Name → what was asked for; a name that a file holds is taken as it is. Raises as `methods_of`."""
    return {m if isinstance(m, str) and m in held else next(iter(methods_of(m))): m for m in _listed(asked)}


def keywords_of(asked: Asked | Sequence[Asked]) -> dict[str, Any]:
    """What objects among the methods say of their parameters. Raises UsageError where two contradict each other."""
    found: dict[str, Any] = {}
    for item in _listed(asked):
        for name, value in item.keywords().items() if isinstance(item, Parameters) else ():
            if found.setdefault(name, value) != value:
                raise UsageError(f"--method: {name} is {found[name]!r} for one method, and {value!r} for another.")
    return found


def set_up(methods: Mapping[str, Method], settings: Settings) -> dict[str, Method]:
    """The methods, with what the settings say of their combinators."""
    rectgrad = partial(combinators.rectgrad, tau=settings.rectgrad_tau, share=settings.rectgrad_quantile)
    return {n: replace(m, rectifier=rectgrad) if n == "rectgrad" else m for n, m in methods.items()}


def place_of(method: Method) -> str | None:
    """Where a method of one's own can be imported from, module:NAME; None where that is nowhere, or in a script."""
    for module, held in list(sys.modules.items()):  # in the order in which they were loaded: where it is made is first
        if module != "__main__" and not module.startswith("gbprewrite."):
            for name, value in list(vars(held).items()) if hasattr(held, "__dict__") else ():
                if value is method and re.fullmatch(PLACE, f"{module}:{name}"):
                    return f"{module}:{name}"
    return None


def specs(methods: Iterable[Method]) -> list[str]:
    """What `methods_of` reads again, in another process too: names, and the places of methods of one's own."""
    return [m.name if m.name in METHODS else place_of(m) or m.name for m in methods]


def own(methods: Iterable[Method]) -> list[Method]:
    """Those that are not of this package."""
    return [m for m in methods if m.name not in METHODS]


def _listed(asked: Asked | Sequence[Asked]) -> list[Asked]:
    items: list[Any] = [asked]
    if isinstance(asked, Iterable) and not isinstance(asked, (str, Mapping)):
        items = list(asked)
    wrong = [item for item in items if not isinstance(item, (str, Method, Parameters))]
    if wrong:
        raise UsageError(
            f"--method {wrong[0]!r}: a {type(wrong[0]).__name__} is not a method. Give a name, or a Method "
            "(gbprewrite.extend) made of your function."
        )
    return list(dict.fromkeys(items))


def _method(item: Asked) -> Method:
    if isinstance(item, Method):
        return item
    if isinstance(item, Parameters):
        return METHODS[item.name]
    return METHODS[item] if item in METHODS else _imported(item)


def _imported(place: str) -> Method:
    module, _, name = place.partition(":")
    try:
        method = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise UsageError(
            f"--method {place}: it can't be imported ({type(error).__name__}: {first_line(error)}). Give module:NAME "
            "of a module that Python finds, as with 'python -c \"import module\"'."
        ) from error
    if not isinstance(method, Method):
        raise UsageError(f"--method {place}: it is a {type(method).__name__}, not a Method (see gbprewrite.extend).")
    return method
