"""Detectors in PyTorch with random weights, small ones written out here and the zoo's own: what `explain` says of their
strongest boxes, measured against float64. The table: python -m tests.proof.detectors [PHOTO]
"""

from __future__ import annotations

import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from PIL import Image

from gbprewrite.photos.preprocessing import Options
from gbprewrite.pictures.explain import PhotoExplainer
from tests.oracle.torch_oracle import METHODS, explain, relative_l2
from tests.proof.kinks import AwayFromKinks
from tests.proof.torch_setup import LIBRARY, torch, torchvision

nn, functional = torch.nn, torch.nn.functional
LIMIT = 1e-4


def conv(a: int, b: int, k: int = 3, stride: int = 1, act: Any = nn.ReLU) -> Any:
    return nn.Sequential(nn.Conv2d(a, b, k, stride, k // 2, bias=False), nn.BatchNorm2d(b), act())


class Trunk(nn.Module):
    """Features of strides 8 and 16, the finer ones with the coarser ones enlarged beside them, as FPN and PAN have."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.low = nn.Sequential(conv(3, 8, 3, 2, act), conv(8, 12, 3, 2, act), conv(12, 16, 3, 2, act))
        self.high, self.mix = conv(16, 20, 3, 2, act), conv(36, 16, 3, 1, act)
        self.down, self.end = conv(16, 16, 3, 2, act), conv(36, 20, 3, 1, act)

    def forward(self, x: Any) -> tuple[Any, Any]:
        low = self.low(x)
        high = self.high(low)
        fine = self.mix(torch.cat((low, functional.interpolate(high, scale_factor=2.0)), 1))
        return fine, self.end(torch.cat((self.down(fine), high), 1))


def grid(maps: Any, offset: float) -> tuple[Any, Any]:
    """Centres [2, anchors] and strides [1, anchors] of strides 8 and 16."""
    centres, strides = [], []
    for f, stride in zip(maps, (8, 16), strict=True):
        h, w = f.shape[2:]
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centres.append(torch.stack((x, y), -1).view(-1, 2).to(f) + offset)
        strides.append(torch.full((h * w, 1), float(stride)).to(f))
    return torch.cat(centres).T, torch.cat(strides).T


class YoloV8(nn.Module):
    """Distances as expectations over 16 bins, centre and size, class scores: [N, 4 + 6, anchors]."""

    def __init__(self, act: Any = nn.SiLU, corners: bool = False) -> None:
        super().__init__()
        self.trunk, self.corners = Trunk(act), corners
        self.boxes = nn.ModuleList(nn.Sequential(conv(c, 16, act=act), nn.Conv2d(16, 64, 1)) for c in (16, 20))
        self.classes = nn.ModuleList(nn.Sequential(conv(c, 12, act=act), nn.Conv2d(12, 6, 1)) for c in (16, 20))
        self.bins = nn.Conv2d(16, 1, 1, bias=False).requires_grad_(False)
        self.bins.weight.data[:] = torch.arange(16.0).view(1, 16, 1, 1) / 4

    def forward(self, x: Any) -> Any:
        maps = self.trunk(x)
        n = x.shape[0]
        made = [torch.cat((b(f), c(f)), 1) for b, c, f in zip(self.boxes, self.classes, maps, strict=True)]
        box, scores = torch.cat([m.view(n, 70, -1) for m in made], 2).split((64, 6), 1)
        sides = self.bins(box.view(n, 4, 16, -1).transpose(2, 1).softmax(1)).view(n, 4, -1)
        lt, rb = sides.chunk(2, 1)
        anchors, strides = grid(maps, 0.5)
        first, last = anchors - lt, anchors + rb
        placed = (first, last) if self.corners else ((first + last) / 2, last - first)
        return torch.cat((torch.cat(placed, 1) * strides, scores.sigmoid()), 1)


class YoloV5(nn.Module):
    """One convolution for three anchors of everything, decoded by a grid and anchor sizes: [N, anchors, 5 + 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(nn.ReLU)
        self.out = nn.ModuleList(nn.Conv2d(c, 33, 1) for c in (16, 20))

    def forward(self, x: Any) -> Any:
        found = []
        for f, out, stride in zip(self.trunk(x), self.out, (8, 16), strict=True):
            n, _, h, w = f.shape
            y = out(f).view(n, 3, 11, h, w).permute(0, 1, 3, 4, 2).contiguous()
            gy, gx = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            cells = torch.stack((gx, gy), 2).expand(1, 3, h, w, 2).to(f) - 0.5
            sizes = torch.tensor([[10.0, 13], [16, 30], [33, 23]]).view(1, 3, 1, 1, 2).expand(1, 3, h, w, 2).to(f)
            xy, wh, rest = y.sigmoid().split((2, 2, 7), 4)
            found.append(torch.cat(((xy * 2 + cells) * stride, (wh * 2) ** 2 * sizes, rest), 4).view(n, 3 * h * w, 11))
        return torch.cat(found, 1)


class YoloX(nn.Module):
    """Focus, then branches for boxes, objectness and classes, joined, moved behind and decoded: [N, anchors, 5 + 6]."""

    def __init__(self, decode: bool = True) -> None:
        super().__init__()
        self.decode, self.focus, self.trunk = decode, conv(12, 3), Trunk(nn.ReLU)
        self.boxes = nn.ModuleList(nn.Sequential(conv(c, 8), nn.Conv2d(8, 5, 1)) for c in (16, 20))
        self.classes = nn.ModuleList(nn.Sequential(conv(c, 8), nn.Conv2d(8, 6, 1)) for c in (16, 20))

    def forward(self, x: Any) -> Any:
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        maps = self.trunk(functional.interpolate(self.focus(torch.cat(parts, 1)), scale_factor=2.0))
        found = []
        for f, boxes, classes in zip(maps, self.boxes, self.classes, strict=True):
            box, sure = boxes(f).split((4, 1), 1)
            found.append(torch.cat((box, sure.sigmoid(), classes(f).sigmoid()), 1).flatten(2))
        y = torch.cat(found, 2).permute(0, 2, 1)
        if not self.decode:
            return y
        cells, strides = (v.T[None] for v in grid(maps, 0.0))
        return torch.cat(((y[..., :2] + cells) * strides, torch.exp(y[..., 2:4]) * strides, y[..., 4:]), -1)


class BlazeBlock(nn.Module):
    """Depthwise 5 x 5 and pointwise, with a shortcut that is pooled and padded with channels of zeros."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, b - a
        self.convs = nn.Sequential(nn.Conv2d(a, a, 5, stride, 2, groups=a), nn.Conv2d(a, b, 1))

    def forward(self, x: Any) -> Any:
        around = functional.max_pool2d(x, 2) if self.stride == 2 else x
        return functional.relu(self.convs(x) + functional.pad(around, (0, 0, 0, 0, 0, self.more)))


class BlazeFace(nn.Module):
    """Two outputs: [N, anchors, 16] values of boxes and key points, [N, anchors, 1] logits."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(), BlazeBlock(12, 16, 2), BlazeBlock(16, 16, 2))
        self.high = BlazeBlock(16, 24, 2)
        self.scores = nn.ModuleList((nn.Conv2d(16, 2, 1), nn.Conv2d(24, 6, 1)))
        self.boxes = nn.ModuleList((nn.Conv2d(16, 32, 1), nn.Conv2d(24, 96, 1)))

    def forward(self, x: Any) -> tuple[Any, Any]:
        low = self.low(x)
        maps, n = (low, self.high(low)), x.shape[0]

        def rows(heads: Any, width: int) -> Any:
            made = [h(f).permute(0, 2, 3, 1).reshape(n, -1, width) for h, f in zip(heads, maps, strict=True)]
            return torch.cat(made, 1)

        return rows(self.boxes, 16), rows(self.scores, 1)


class Ssd(nn.Module):
    """SSD: scores behind Softmax, and offsets decoded by prior boxes to corners, as shares of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(nn.ReLU)
        self.scores = nn.ModuleList(nn.Conv2d(c, 8, 3, padding=1) for c in (16, 20))
        self.boxes = nn.ModuleList(nn.Conv2d(c, 8, 3, padding=1) for c in (16, 20))

    def forward(self, x: Any) -> tuple[Any, Any]:
        maps, n = self.trunk(x), x.shape[0]
        scores, offsets = (
            torch.cat([h(f).permute(0, 2, 3, 1).reshape(n, -1, 4) for h, f in zip(heads, maps, strict=True)], 1)
            for heads in (self.scores, self.boxes)
        )
        cells, strides = (v.T[None].repeat_interleave(2, 1) for v in grid(maps, 0.5))
        centres = (cells + 0.2 * offsets[..., :2]) * strides
        sizes = 2 * strides * torch.exp(0.2 * offsets[..., 2:])
        corners = torch.cat((centres - sizes / 2, centres + sizes / 2), -1) / x.shape[-1]
        return torch.softmax(scores, -1), corners


@dataclass(frozen=True, eq=False)
class Detector:
    """`make` builds a network; `said` are options of `explain`; `score` takes the explained tensor out of what the
    network gives, [1, ...]; `methods` those that act on it."""

    name: str
    make: Callable[[], Any]
    size: int
    said: Mapping[str, Any] = field(default_factory=dict)
    score: Callable[[Any], Any] = lambda y: y
    methods: tuple[str, ...] = METHODS
    outputs: tuple[str, ...] = ("y",)
    exporters: tuple[str, ...] = ("torchscript", "dynamo")


def selected(y: Any) -> Any:
    """The scores that NonMaxSuppression left, of one image."""
    return y[0]["scores"][None] if isinstance(y, list) else y[1][None]


SMALL = (
    Detector("yolov8, SiLU", YoloV8, 64, {"channels": "4:"}, methods=("gradient",)),
    Detector("yolov8, ReLU", lambda: YoloV8(nn.ReLU), 64, {"channels": "4:"}),
    Detector("yolov10, corners", lambda: YoloV8(nn.ReLU, True), 64, {"channels": "4:10"}),
    Detector("yolov5", YoloV5, 64, {"channels": "5:"}),
    Detector("yolox", YoloX, 64, {"channels": "5:"}),
    Detector("yolox, objectness", YoloX, 64, {"channels": "4"}),
    Detector("yolox, not decoded", lambda: YoloX(False), 64, {"channels": "5:"}),
    Detector("blazeface", BlazeFace, 64, {"score": "scores"}, lambda y: y[1], outputs=("boxes", "scores")),
    Detector("ssd", Ssd, 64, {"score": "scores", "through_softmax": True}, lambda y: y[0], outputs=("scores", "boxes")),
)


def ultralytics(name: str) -> Callable[[], Any]:
    """Its network of this name, ready to be exported."""

    def make() -> Any:
        from ultralytics.nn.tasks import DetectionModel

        net = DetectionModel(f"{name}.yaml", ch=3, nc=80, verbose=False).eval()
        head = net.model[-1]
        head.export, head.format, head.dynamic = True, "onnx", False
        return net

    return make


class Taken(nn.Module):
    """torchvision's detectors take lists of images."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any) -> Any:
        return self.net([x[0]])


def of_torchvision(name: str, **options: Any) -> Callable[[], Any]:
    """Its detector of this name, with scores that are neither nought nor one."""

    def make() -> Any:
        net = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None, **options).eval()
        net.score_thresh, net.transform.image_mean, net.transform.image_std = 0.05, [0.5] * 3, [1.0] * 3
        return Taken(net)

    return make


_SELECTED = {"said": {"score": "scores"}, "score": selected, "outputs": ("boxes", "scores", "labels")}
ZOO = (
    Detector("ultralytics yolov8n", ultralytics("yolov8n"), 320, {"channels": "4:84"}, methods=("gradient",)),
    Detector("ultralytics yolo11n", ultralytics("yolo11n"), 320, {"channels": "4:84"}, methods=("gradient",)),
    Detector(
        "torchvision retinanet", of_torchvision("retinanet_resnet50_fpn", min_size=256, max_size=256), 256,
        exporters=("torchscript",), **_SELECTED,
    ),
    Detector("torchvision ssd300", of_torchvision("ssd300_vgg16"), 300, exporters=("torchscript",), **_SELECTED),
)  # fmt: skip


# --- weights and files ----------------------------------------------------------------------------------------------


def photograph(path: Path | None, size: int) -> Any:
    """uint8 [size, size, 3]: the middle of a photograph, or coarse blobs with noise over them."""
    if path is not None:
        with Image.open(path) as opened:
            side = min(opened.size)
            left, top = ((n - side) // 2 for n in opened.size)
            square = opened.convert("RGB").crop((left, top, left + side, top + side))
            return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 200, (6, 6, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(blobs) + rng.integers(0, 56, (size, size, 3), np.uint8)


def _last(parent: Any) -> list[Any]:
    """Convolutions of a module that no normalisation or activation of the same module follows."""
    children = list(parent.children())
    ends = children[-1:] if isinstance(parent, nn.Sequential) else children
    normed = any("Norm" in type(child).__name__ for child in children)
    return [] if normed else [child for child in ends if isinstance(child, nn.Conv2d)]


def build(detector: Detector, x: Any) -> Any:
    """The network with random weights, each convolution scaled so that its values keep one size at x, and no value on
    a kink."""

    def scale(part: Any, _inputs: Any, y: Any) -> Any:
        factor = float((0.3 if part in last else 0.8) / (y.std() + 1e-6))  # so that no Sigmoid saturates
        part.weight.mul_(factor)
        if part.bias is not None:
            part.bias.mul_(factor)
        return y * factor

    ranges = {"running_mean": (-0.1, 0.1), "running_var": (0.7, 1.4), "weight": (0.7, 1.3), "bias": (-0.2, 0.2)}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = detector.make().eval()
        for part in net.modules():
            if isinstance(part, nn.Conv2d) and part.weight.requires_grad:  # the bins of distances are given
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if part.bias is not None:
                    nn.init.normal_(part.bias, std=0.1)
            elif type(part).__name__ in ("BatchNorm2d", "FrozenBatchNorm2d"):
                for name, limits in ranges.items():
                    getattr(part, name).uniform_(*limits)
        convs = [p for p in net.modules() if isinstance(p, nn.Conv2d) and p.weight.requires_grad]
        last = {c for p in net.modules() for c in _last(p)}
        hooks = [p.register_forward_hook(scale) for p in convs]
        net(x)
        for hook in hooks:
            hook.remove()
        with AwayFromKinks():
            net(x)
    return net


def export(detector: Detector, net: Any, x: Any, exporter: str) -> onnx.ModelProto:
    """The network as one of PyTorch's exporters writes it: input x."""
    names: dict[str, Any] = {"input_names": ["x"], "output_names": list(detector.outputs)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            return torch.onnx.export(net, (x,), dynamo=True, verbose=False, **names).model_proto
        file = io.BytesIO()
        torch.onnx.export(net, (x,), file, dynamo=False, opset_version=17, **names)
    return onnx.load_from_string(file.getvalue())


def nms(boxes: Any, scores: Any, most: float) -> Any:
    """torchvision::nms, for an environment in which its compiled operators do not load."""
    b, s = boxes.detach().numpy(), scores.detach().numpy()
    areas, kept, left = (b[:, 2:] - b[:, :2]).prod(1), [], np.argsort(-s, kind="stable")
    while len(left):
        i, left = left[0], left[1:]
        kept.append(int(i))
        shared = np.minimum(b[i, 2:], b[left, 2:]) - np.maximum(b[i, :2], b[left, :2])
        inside = np.maximum(shared, 0).prod(1)
        left = left[inside <= most * (areas[i] + areas[left] - inside)]
    return torch.tensor(kept, dtype=torch.int64)


def is_there() -> bool:
    """What torchvision asks before it calls a compiled operator."""
    return True


def nothing_missing() -> None:
    """The same, as an assertion."""


if LIBRARY is not None:
    LIBRARY.impl("nms", nms, "CPU")
    torchvision.extension._has_ops = is_there
    torchvision.extension._assert_has_ops = torchvision.ops.boxes._assert_has_ops = nothing_missing


# --- the comparison -------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """Of one explained unit and method: the error of `explain`'s map against float64, and PyTorch's own in float32."""

    title: str
    method: str
    error: float
    own: float

    @property
    def right(self) -> bool:
        """Whether it is as exact as promised, or as float32 is."""
        return self.error <= max(LIMIT, 2 * self.own)


class Flat(nn.Module):
    """The explained score as [1, units]."""

    def __init__(self, detector: Detector, net: Any) -> None:
        super().__init__()
        self.net, self.score = net, detector.score

    def forward(self, x: Any) -> Any:
        return self.score(self.net(x)).flatten(1)


def strongest(detector: Detector, scores: Any, count: int) -> list[tuple[int, ...]]:
    """Numpy's: the units of the highest scores at different positions, among the channels that are looked at."""
    if scores.ndim == 1:
        return [(int(i),) for i in np.argsort(-scores, kind="stable")[:count]]
    axis = int(scores.shape[0] > scores.shape[1])  # anchors are more than channels
    start, _, stop = detector.said.get("channels", ":").partition(":")
    columns = range(scores.shape[axis])
    looked_at = list(columns[int(start or 0) : int(stop or len(columns))] if ":" in detector.said.get("channels", ":")
                     else [int(start)])  # fmt: skip
    among = np.moveaxis(scores, axis, 0)[looked_at]
    anchors = np.argsort(-among.max(0), kind="stable")[:count].tolist()
    units = [(looked_at[int(among[:, a].argmax())], a) for a in anchors]
    return [unit if axis == 0 else unit[::-1] for unit in units]


def compare(detector: Detector, exporter: str, photo: Path | None = None, count: int = 2) -> list[Compared]:
    """`explain` on a photograph against PyTorch in float64."""
    pixels = photograph(photo, detector.size)
    x = torch.tensor(pixels / np.float32(255), dtype=torch.float32).permute(2, 0, 1)[None]
    net = build(detector, x)
    source = export(detector, net, x, exporter)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photo.png")
        Image.fromarray(pixels).save(path)
        explainer = PhotoExplainer(
            source, detector.methods, f"strongest:{count}", preprocessing=Options(preset="unit"), providers="cpu",
            **detector.said,
        )  # fmt: skip
        made = explainer(path)
    single, double = Flat(detector, net), Flat(detector, net)
    with torch.no_grad():
        own_scores = detector.score(net(x))[0].numpy()
    assert [one.index for one in made.explained] == strongest(detector, own_scores, count)
    found = []
    units = [int(np.ravel_multi_index(one.index, own_scores.shape)) for one in made.explained]
    in_single = [explain(single, x, detector.methods, target=torch.tensor([u])) for u in units]
    double = double.double()
    for one, unit, rough, maps in zip(made.explained, units, in_single, made.maps, strict=True):
        truth = explain(double, x.double(), detector.methods, target=torch.tensor([unit]))
        for method in detector.methods:
            right = truth.maps[method][0].permute(1, 2, 0)
            own = relative_l2(rough.maps[method][0].permute(1, 2, 0), right)
            found.append(Compared(one.title(), method, relative_l2(maps[method], right), own))
    return found


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    for detector in (*SMALL, *ZOO):
        for exporter in detector.exporters:
            for row in compare(detector, exporter, given):
                print(f"{detector.name:24} {exporter:12} {row.method:10} {row.error:.1e} {row.own:.1e} {row.title}")
