"""The model parameter randomisation test of Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 3.

Weights are drawn anew, maps of the same class are computed again, and compared with those of the trained network:
`cascading` randomises from the score down to a layer, `independent` that layer alone. A method whose maps stay as they
are does not show what the network has learned. No framework: the weights are initializers of the converted file.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from gbprewrite.backward.coverage import known
from gbprewrite.backward.lowering.targets import suited
from gbprewrite.checks.sanity import METHODS, similarity
from gbprewrite.checks.sanity.layers import Layer, Weights, layers
from gbprewrite.checks.sanity.similarity import MEASURES
from gbprewrite.convert import convert
from gbprewrite.errors import DataError, NotFinite, UsageError
from gbprewrite.graft import record as report
from gbprewrite.graft.restore import load, restore
from gbprewrite.methods.asked import Asked, methods_of
from gbprewrite.model.messages import copied
from gbprewrite.photos import images
from gbprewrite.photos.labels import Labels
from gbprewrite.photos.preprocessing import Options
from gbprewrite.pictures.explain import ClassScore, PhotoExplainer
from gbprewrite.runtime.explainer import Explainer
from gbprewrite.view.forward import view

Array = npt.NDArray[Any]

CLASSES = 5  # whose maps are compared for the class sensitivity

# Which layers are random when a layer is reached; layers are numbered from the score down.
RANDOMISATIONS: dict[str, Callable[[int], Sequence[int]]] = {
    "cascading": lambda number: range(number + 1),
    "independent": lambda number: (number,),
}


class Step(NamedTuple):
    """One randomised network: what is randomised, down to which layer, by which draw."""

    randomisation: str
    layer: int
    draw: int


@dataclass(frozen=True)
class Comparison:
    """The map of one image from one randomised network against that of the trained one: measure → similarity, nan
    where it is not defined, as for a map of zeros."""

    randomisation: str
    layer: str
    draw: int
    method: str
    image: Path
    similarity: dict[str, float]


@dataclass(frozen=True)
class Photo:
    """One photograph: its file, the class explained, and method → how far the maps of its highest classes differ."""

    path: Path
    explained: ClassScore
    class_sensitivity: dict[str, float]


@dataclass(frozen=True)
class SanityReport:
    """What the test found.

    Attributes:
        methods: the kinds of maps.
        layers: from the score down; `measured` are the names of those at which maps were compared.
        photos: the images, with the class that each map explains.
        classes: how many classes the class sensitivity compares.
        comparisons: one for each randomised network, method and image.
        limits: method → what its maps can't show.
    """

    methods: tuple[str, ...]
    layers: tuple[Layer, ...]
    measured: tuple[str, ...]
    photos: tuple[Photo, ...]
    classes: int
    seed: int
    draws: int
    provider: str
    provider_note: str
    comparisons: tuple[Comparison, ...]
    limits: Mapping[str, str] = field(default_factory=dict)

    def values(self, randomisation: str, method: str, measure: str) -> Array:
        """Similarities of shape [layers measured, draws · images]."""
        found: dict[str, list[float]] = {name: [] for name in self.measured}
        for one in self.comparisons:
            if (one.randomisation, one.method) == (randomisation, method):
                found[one.layer].append(one.similarity[measure])
        return np.array(list(found.values()))

    def curve(self, randomisation: str, method: str, measure: str) -> Array:
        """The mean similarity at each layer measured, over images and draws, without those that are not defined."""
        return np.array([mean(row) for row in self.values(randomisation, method, measure)])

    def class_sensitivity(self, method: str) -> float:
        """Its mean over the images."""
        return mean(photo.class_sensitivity[method] for photo in self.photos)

    def rows(self) -> list[dict[str, Any]]:
        """The comparisons as a table: one row for each, None for what is not defined."""
        return [
            {
                **{"randomisation": one.randomisation, "layer": one.layer, "draw": one.draw, "method": one.method},
                **{"image": str(one.image), **{name: defined(value) for name, value in one.similarity.items()}},
            }
            for one in self.comparisons
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain types; None stands for what is not defined."""
        return {
            "methods": list(self.methods),
            "limits": dict(self.limits),
            "provider": self.provider,
            "provider_note": self.provider_note,
            "seed": self.seed,
            "draws": self.draws,
            "images": [
                {
                    **{"image": str(photo.path), "explained": asdict(photo.explained)},
                    "class_sensitivity": {m: defined(v) for m, v in photo.class_sensitivity.items()},
                }
                for photo in self.photos
            ],
            "layers": [layer._asdict() for layer in self.layers],
            "measures": {name: measure.title for name, measure in MEASURES.items()},
            "curves": {
                randomisation: [
                    {"layer": layer, **{m: self._means(randomisation, m, number) for m in self.methods}}
                    for number, layer in enumerate(self.measured)
                ]
                for randomisation in RANDOMISATIONS
            },
            "class_sensitivity": {
                "classes": self.classes,
                **{method: defined(self.class_sensitivity(method)) for method in self.methods},
            },
            "comparisons": self.rows(),
        }

    def _means(self, randomisation: str, method: str, number: int) -> dict[str, float | None]:
        return {name: defined(self.curve(randomisation, method, name)[number]) for name in MEASURES}


def defined(value: float) -> float | None:
    """None instead of nan, which JSON does not have."""
    return None if math.isnan(value) else float(value)


def mean(values: Iterable[float]) -> float:
    """The mean of the values that are not nan; nan where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


class RandomisationTest:
    """The test, ready to run: `run` one of the `steps` after the other, and make a `report` of what comes out."""

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelProto,
        paths: Sequence[str | os.PathLike[str]],
        method: Sequence[Asked] = METHODS,
        *,
        preprocessing: Options | None = None,
        labels: Labels | None = None,
        layer: Sequence[str] = (),
        seed: int = 0,
        draws: int = 1,
        classes: int = CLASSES,
        providers: str = "auto",
        **options: Any,
    ) -> None:
        """Convert the model, explain each image with the trained weights, and find the layers.

        Args:
            model, method, providers, options: as for `gbprewrite.Explainer`.
            paths: image files.
            preprocessing, labels: as for `PhotoExplainer`.
            layer: names of layers at which maps are compared; all by default.
            seed: of the random values; draws: how often each network is randomised.
            classes: how many of the highest classes the class sensitivity compares.

        Raises:
            UsageError: an unknown layer, method or score, or a number that is too small.
            ModelError: a model that can't be converted, or has no weights to randomise.
            DataError: an image that can't be used.
            RuntimeUnavailable: no SciPy, scikit-image or onnxruntime.
        """
        similarity.check_libraries()
        for name, value, least in (("draws", draws, 1), ("classes", classes, 1), ("seed", seed, 0)):
            if value < least:
                raise UsageError(f"--{name} {value}: at least {least}.")
        source = load(model, bool(options.pop("replace", False)))
        self.methods = tuple(methods_of(method))
        self.seed, self.draws = seed, draws
        options = {"optimize_for": suited(providers), **options}
        given_class = {name: value for name, value in options.items() if name != "channels"}  # these restrict topk
        self._converted = convert(source, method, "input", **given_class)
        self.layers = layers(self._converted)
        self._measured = self._chosen(layer)
        self.classes = _classes(self._converted, classes)
        trained = PhotoExplainer(
            source, method, f"topk:{self.classes}",
            preprocessing=preprocessing, labels=labels, providers=providers, **options,
        )  # fmt: skip
        self.preprocessing = trained.preprocessing
        explainer = trained.explainer
        self.provider, self.provider_note = explainer.provider, explainer.provider_note
        self.photos, self._originals = zip(*(self._trained(trained, Path(path)) for path in paths), strict=True)
        self._inputs = [self._input(photo.path) for photo in self.photos]
        self._weights = Weights(self._converted, self.layers, seed)
        self.steps = [
            Step(randomisation, number, draw)
            for randomisation in RANDOMISATIONS
            for draw in range(draws)
            for number in self._measured
        ]

    def run(self, step: Step) -> list[Comparison]:
        """Randomise, explain and compare. Raises DataError where the randomised network gives no finite maps."""
        self._weights.randomise(RANDOMISATIONS[step.randomisation](step.layer), step.draw)
        explainer = Explainer(self._converted, providers=self.provider)
        found = []
        for photo, values, originals in zip(self.photos, self._inputs, self._originals, strict=True):
            with warnings.catch_warnings(action="ignore", category=NotFinite):  # an error below
                explanation = explainer(values, targets=photo.explained.index[0])
            for method in self.methods:
                after = self._finite(explanation.map(method)[0], step, method)
                alike = similarity.compare(originals[method], similarity.features(after))
                name = self.layers[step.layer].name
                found.append(Comparison(step.randomisation, name, step.draw, method, photo.path, alike))
        return found

    def report(self, comparisons: Iterable[Comparison]) -> SanityReport:
        """Everything that is known after the steps."""
        return SanityReport(
            self.methods, tuple(self.layers), tuple(self.layers[number].name for number in self._measured),
            self.photos, self.classes, self.seed, self.draws, self.provider, self.provider_note, tuple(comparisons),
            report.limits(report.read_record(self._converted) or {}),
        )  # fmt: skip

    def _chosen(self, names: Sequence[str]) -> list[int]:
        known = [layer.name for layer in self.layers]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UsageError(
                f"--layer {', '.join(unknown)}: the model has no such weighted layer. From the score down they are: "
                f"{', '.join(known)}."
            )
        return [number for number, name in enumerate(known) if not names or name in names]

    def _input(self, path: Path) -> Array:
        return self.preprocessing.array(images.fit(self.preprocessing, images.read(path)))

    def _trained(self, explainer: PhotoExplainer, path: Path) -> tuple[Photo, dict[str, dict[str, Array]]]:
        """What the trained network says, and what the measures see in each method's map of the class explained."""
        explained = explainer(path)
        differing = {m: similarity.class_sensitivity([maps[m] for maps in explained.maps]) for m in self.methods}
        seen = {m: similarity.features(explained.maps[0][m]) for m in self.methods}
        return Photo(path, explained.explained[0], differing), seen

    def _finite(self, values: Array, step: Step, method: str) -> Array:
        if not np.isfinite(values).all():
            where = f"{step.randomisation}, layer {self.layers[step.layer].name!r}"
            raise DataError(
                f"with random weights ({where}) the network overflows: its {method} map is not finite. Try another "
                "--seed, or compare only at layers above (--layer)."
            )
        return self.preprocessing.channels_last(values)


def _classes(converted: ModelProto, wanted: int) -> int:
    """As many classes as wanted, or all that the score has."""
    record = report.read_record(converted)
    assert record is not None
    graph = view(restore(copied(converted)), known())
    counted = record["output" if record["moved"] else "score"]
    score = next(t for n in graph.nodes for t in n.outputs if t.name == counted)
    number = 1 if record["class_axis"] is None else score.shape[record["class_axis"]]
    return min(wanted, number) if isinstance(number, int) else wanted


def sanity(
    model: str | os.PathLike[str] | ModelProto, paths: Sequence[str | os.PathLike[str]], **options: Any
) -> SanityReport:
    """Run the whole test; arguments and errors as for `RandomisationTest`."""
    test = RandomisationTest(model, paths, **options)
    return test.report(comparison for step in test.steps for comparison in test.run(step))
