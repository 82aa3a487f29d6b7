"""What a conversion is told beside method and target: parameters of methods, pictures, photographs."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, Self

from onnx import ModelProto

from gbprewrite.errors import UsageError
from gbprewrite.graft import pictures as heatmaps
from gbprewrite.methods import settings
from gbprewrite.model.tensors import fixed, numpy_dtype
from gbprewrite.photos import evidence
from gbprewrite.photos.preprocessing import Options, Preprocessing, plan
from gbprewrite.select.selection import Selection


class Settings(NamedTuple):
    """`photo` is what is said about photographs, None where the result does not depend on them."""

    methods: settings.Settings = settings.Settings()
    pictures: heatmaps.Settings = heatmaps.Settings()
    embed: bool = False
    photo: Options | None = None

    @classmethod
    def read(
        cls,
        methods: Mapping[str, Any],
        asked: Collection[str],
        pictures: Mapping[str, Any],
        embed: bool,
        photo: Options | Mapping[str, Any] | None,
    ) -> Self:
        """From the arguments of `convert`. Raises UsageError for what does not exist, and for what nothing reads."""
        made = cls(settings.settings(methods, asked), heatmaps.settings(pictures), embed)
        if isinstance(photo, Mapping):  # of a record: JSON has no tuples
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in photo.items()}
            photo = Options(**fields)
        if made._reads_photos:
            return made._replace(photo=photo or Options())
        if photo not in (None, Options()):
            raise UsageError(
                "the preprocessing (--preset, --mean, --size, ...) was given, and only --embed-preprocessing and --as "
                "overlay read it. Add one of them, or leave it out."
            )
        return made

    @property
    def _reads_photos(self) -> bool:
        return self.embed or "overlay" in self.pictures.forms

    def to_json(self) -> dict[str, Any]:
        """Under the names of `convert`'s arguments, in plain types."""
        said = None if self.photo in (None, Options()) else asdict(self.photo)
        own = {"embed_preprocessing": self.embed, "preprocessing": said}
        return {**self.methods._asdict(), **self.pictures._asdict(), **own}

    def preprocessing(self, model: ModelProto, chosen: Selection) -> Preprocessing | None:
        """What photographs go through on their way to the one input, where that is asked for. Raises as `plan`."""
        if self.photo is None:
            return None
        if len(chosen.inputs) != 1:
            raise UsageError(
                f"--embed-preprocessing and --as overlay are for one image input, and {len(chosen.inputs)} are "
                f"differentiated ({', '.join(x.name for x in chosen.inputs)}). Choose one with --input NAME."
            )
        (x,) = chosen.inputs
        shape = None if x.shape is None else [d if fixed(d) else d or "?" for d in x.shape]
        return plan(x.name, shape, numpy_dtype(x), self.photo, evidence.read(model, x.name))
