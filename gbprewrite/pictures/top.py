"""The images that excite a feature map most, and what in them does: Zeiler and Fergus 2013, figure 2.

`TopImages.search` looks at every image once and keeps only the best of each channel; `TopImages.example` then takes the
map of a winning unit. `topsheet.py` draws them.
"""

import heapq
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto
from PIL import Image

from gbprewrite.backward.lowering.targets import suited
from gbprewrite.convert import convert
from gbprewrite.errors import DataError, NotFinite, UsageError
from gbprewrite.graft import nodes as graft
from gbprewrite.graft import photographs as embedded
from gbprewrite.graft import record as report
from gbprewrite.graft import restore
from gbprewrite.graft.restore import load
from gbprewrite.model.messages import copied
from gbprewrite.photos import evidence, images
from gbprewrite.photos.preprocessing import Options, plan
from gbprewrite.pictures.explain import naming
from gbprewrite.runtime import arrays
from gbprewrite.runtime.explainer import Explainer
from gbprewrite.runtime.session import Session
from gbprewrite.select import inner

Array = npt.NDArray[Any]

METHODS = ("deconvnet", "guided", "gradient")
COUNT = 9
FLOOR = 1e-6  # of the strongest value: what is weaker is rounding, which some convolutions leave outside of a field


class Winner(NamedTuple):
    """An image that excites a channel: its file, the coordinates of its strongest unit there (as the target "unit:..."
    has them), the unit's activation, and the shape of the layer on this image."""

    image: Path
    unit: tuple[int, ...]
    activation: float
    shape: tuple[int, ...]


class Box(NamedTuple):
    """A part of an image in pixels; bottom and right are the first ones outside."""

    top: int
    left: int
    bottom: int
    right: int

    def cut(self, pixels: Array) -> Array:
        """This part of an image or map, [H,W,...]."""
        return pixels[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Example:
    """A winner, the image as the network saw it (uint8 [H,W,3] or [H,W]), the map of its unit ([H,W,C], red first) and
    the part of the image that the unit sees."""

    winner: Winner
    photo: npt.NDArray[np.uint8]
    map: Array
    box: Box


class TopImages:
    """Finds the images that excite the channels of a layer most. Memory does not grow with the number of images.

    Attributes:
        layer: name of the tensor. channels, method, count: as given.
        preprocessing: how photographs become the model's input.
        provider, provider_note: where it runs.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelProto,
        layer: str,
        channels: Sequence[int],
        method: str = "deconvnet",
        *,
        count: int = COUNT,
        preprocessing: Options | None = None,
        providers: str = "auto",
        **options: Any,
    ) -> None:
        """Convert a model (of a converted one, its source part) so that it explains any unit of the layer.

        Args:
            model: an ONNX file or a ModelProto.
            layer: a tensor of rank 2 or more, or the node that makes it; `gbprewrite.layers` lists them.
            channels: the feature maps, counted from 0 along the class axis.
            method: "deconvnet", "guided" or "gradient".
            count: how many images to keep for each channel.
            preprocessing: what is known about the model's input; the rest is guessed, see `preprocessing.guesses`.
            providers, options: as for `gbprewrite.Explainer`.

        Raises:
            UsageError: an unknown layer or method, a channel out of range, or a model of several inputs.
            ModelError, RuntimeUnavailable: as `gbprewrite.Explainer`.
            DataError: the model's input is no image.
        """
        if method not in METHODS:
            raise UsageError(f"--method {method}: choose from {', '.join(METHODS)}.")
        if count < 1 or not channels:
            raise UsageError("--count and --channels: ask for one image and one channel at least.")
        self.channels, self.method, self.count = tuple(dict.fromkeys(channels)), method, count
        whole = load(model, replace=None)
        own = embedded.agreed(report.read_record(whole), preprocessing)
        source = restore.restore(whole)
        methods = tuple(dict.fromkeys((method, "gradient")))  # the gradient shows how far the unit sees
        options = {"optimize_for": suited(providers), **options}
        converted = convert(source, methods, "seed", layer=layer, **options)
        self._explainer = Explainer(converted, providers=providers)
        record = self._explainer.record
        self.layer, self._axis = record["score"], record["class_axis"]
        self._session = Session(_up_to(converted, self.layer), providers)
        self.provider, self.provider_note = self._session.provider, self._session.note
        if len(self._explainer.inputs) != 1:
            raise UsageError(
                f"the model takes {len(self._explainer.inputs)} inputs ({arrays.listing(self._explainer.inputs)}), and "
                "a photograph fills one."
            )
        self._input = self._explainer.inputs[0]
        seed = next(s for s in self._explainer.slots if s.name == record["seed_name"])
        self._check_channels(seed.shape or ())
        told = evidence.read(source, self._input.name)
        taken = self._input.name, self._input.shape, self._input.dtype
        self.preprocessing = own or replace(plan(*taken, preprocessing, told), map_layout=inner.layout(record))
        self._best: dict[int, list[tuple[float, int, Winner]]] = {c: [] for c in self.channels}

    def _check_channels(self, shape: Sequence[int | str]) -> None:
        rank = len(shape)
        if rank < 2 or not self._axis or self._explainer.record["batch_axis"] != 0:
            raise UsageError(
                f"the layer {self.layer!r} of shape {list(shape)} has no axis that is known to hold channels. Choose "
                "another with --layer NAME ('gbprewrite layers MODEL' lists them), or say where they are: --class-axis "
                "AXIS."
            )
        number = shape[self._axis]
        beyond = [c for c in self.channels if isinstance(number, int) and not 0 <= c < number]
        if beyond:
            raise UsageError(
                f"--channels {','.join(map(str, beyond))}: out of range, the layer {self.layer!r} has {number} "
                f"channels (axis {self._axis} of {list(shape)}), 0 to {int(number) - 1}."
            )

    def search(self, paths: Iterable[Path]) -> Iterator[tuple[Path, DataError | None]]:
        """Look at each image and keep it where it is among the best; gives it back, with the error that stopped it.

        Raises DataError in the end when no image could be used.
        """
        seen = 0
        for order, path in enumerate(paths):
            error = None
            try:
                self._look_at(path, order)
                seen += 1
            except DataError as stop:
                error = stop
            yield path, error
        if not seen:
            raise DataError("none of the images can be used, so there is nothing to draw.")

    def _look_at(self, path: Path, order: int) -> None:
        image = images.read(path)
        with naming(path):
            feeds = arrays.fit({self._input.name: self._array(images.fit(self.preprocessing, image))}, [self._input])
            values = self._session.run(feeds, [self.layer])[self.layer][:1]
            if not np.isfinite(values).all():
                raise DataError(f"the layer {self.layer!r} is not finite on this image.")
            if max(self.channels) >= values.shape[self._axis]:
                raise DataError(f"the layer {self.layer!r} has {values.shape[self._axis]} channels on this image.")
        for channel, best in self._best.items():
            plane = values.take([channel], axis=self._axis)
            place = list(np.unravel_index(plane.argmax(), plane.shape))[1:]
            place[self._axis - 1] = channel
            winner = Winner(path, tuple(map(int, place)), float(plane.max()), values.shape)
            entry = (winner.activation, -order, winner)
            if winner.activation <= 0:
                continue
            if len(best) < self.count:
                heapq.heappush(best, entry)
            else:
                heapq.heappushpop(best, entry)

    def _array(self, image: Image.Image) -> Array:
        """The model's input; a fixed batch is filled up with the one image."""
        batch = self._input.shape[0] if self._input.shape else 1
        return np.repeat(self.preprocessing.array(image), batch if isinstance(batch, int) else 1, axis=0)

    def setting(self) -> dict[str, Any]:
        """What holds for every image, as plain types."""
        made = self.preprocessing
        return {
            **{"layer": self.layer, "method": self.method, "count": self.count},
            **{"provider": self.provider, "provider_note": self.provider_note},
            "preprocessing": {**asdict(made), "dtype": str(made.dtype), "text": made.text()},
        }

    def winners(self, channel: int) -> list[Winner]:
        """The images found so far whose strongest unit in the channel is positive, by its activation."""
        return [winner for _, _, winner in sorted(self._best[channel], reverse=True)]

    def example(self, winner: Winner) -> Example:
        """The map of a winning unit. Raises DataError when the image can't be read any more, or the map overflowed."""
        image = images.read(winner.image)
        with naming(winner.image):
            photo = images.fit(self.preprocessing, image)
            seed = np.zeros(winner.shape)
            seed[(0, *winner.unit)] = 1
            with warnings.catch_warnings(action="ignore", category=NotFinite):  # an error below
                found = self._explainer(self.preprocessing.array(photo), seed=seed)
            if not all(np.isfinite(found.map(m)).all() for m in (self.method, "gradient")):
                raise DataError(f"the map of the unit {winner.unit} of {self.layer!r} is not finite.")
        maps = {m: self.preprocessing.channels_last(found.map(m)[0]) for m in (self.method, "gradient")}
        return Example(winner, np.asarray(photo), maps[self.method], field(list(maps.values())))


def _up_to(converted: ModelProto, layer: str) -> ModelProto:
    """The forward part that ends in a layer."""
    model = restore.restore(copied(converted))
    if layer not in {o.name for o in model.graph.output}:
        model.graph.output.append(onnx.ValueInfoProto(name=layer))
    graft.keep_only(model, [layer])
    return model


def field(maps: Sequence[Array]) -> Box:
    """The bounding box of what is not zero in any of these maps of one unit, [H,W,C]: its receptive field, as far as
    the maps show it. The whole image where all are zero."""
    seen = np.any([np.abs(m).max(axis=2) > FLOOR * np.abs(m).max() for m in maps], axis=0)
    if not seen.any():
        return Box(0, 0, *seen.shape)
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
