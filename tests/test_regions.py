"""A class of a segmentation, summed over the positions that say it.

Every network is linear: z[n, c] = Σₖ w[c, k] · x[n, k] at each position. So the map of a class is w[c] where numpy
finds that a position says the class, and 0 elsewhere.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest

import gbprewrite
from tests.small import Array, model, normal, run

X = normal(3, 3, 6, 7, seed=5)
MANY, ONE = normal(4, 3, 1, 1, seed=6), normal(1, 3, 1, 1, seed=7)


class Form(NamedTuple):
    """A network, the shape of its output, the weights of its Conv, whether a position says the class of the highest
    score or each one above zero, and whether its input has the channels last."""

    text: str
    output: str
    w: Array = MANY
    highest: bool = True
    last: bool = False


CONV = "z = Conv (x, w)"
LAST = "t = Transpose <perm = [0, 3, 1, 2]> (x) z = Conv (t, w) m = Transpose <perm = [0, 2, 3, 1]> (z)"
FORMS = {
    "logits": Form(f"{CONV} y = Identity (z)", "N, 4, 6, 7"),
    "open sizes": Form(f"{CONV} y = Identity (z)", "N, 4, H, W"),
    "Softmax": Form(f"{CONV} y = Softmax <axis = 1> (z)", "N, 4, 6, 7"),
    "Sigmoid": Form(f"{CONV} y = Sigmoid (z)", "N, 4, 6, 7", highest=False),
    "channels last": Form(f"{LAST} y = Identity (m)", "N, 6, 7, 4", last=True),
    "channels last, Sigmoid": Form(f"{LAST} y = Sigmoid (m)", "N, 6, 7, 4", highest=False, last=True),
    "channels last, Softmax, moved": Form(
        f"{LAST} s = Softmax (m) y = Transpose <perm = [0, 3, 1, 2]> (s)", "N, 4, 6, 7", last=True
    ),
    "mask": Form(f"{CONV} y = Sigmoid (z)", "N, 1, 6, 7", ONE, False),
    "mask without Sigmoid": Form(f"{CONV} y = Identity (z)", "N, 1, 6, 7", ONE, False),
    "mask without an axis of classes": Form(
        f"{CONV} s = Sigmoid (z) o = Constant <value_ints = [1]> () y = Squeeze (s, o)", "N, 6, 7", ONE, False
    ),
    "mask, open sizes": Form(f"{CONV} y = Sigmoid (z)", "N, 1, H, W", ONE, False),
    "a row of positions": Form(
        f"{CONV} k = Constant <value_ints = [0, 4, -1]> () r = Reshape (z, k) y = Transpose <perm = [0, 2, 1]> (r)",
        "N, 42, 4",
    ),
}


PICKED = {
    "of a Softmax": ("Softmax", "Gather <axis = 1> (s, k)", "N, 6, 7"),
    "of a LogSoftmax": ("LogSoftmax", "Gather <axis = 1> (s, k)", "N, 6, 7"),
    "of a Softmax, kept": ("Softmax", "Slice (s, k1, k2, k1)", "N, 1, 6, 7"),
}


@pytest.mark.parametrize("name", PICKED)
def test_one_class_that_is_picked_is_said_above_one_half(name: str) -> None:
    """As binary segmentations give the probability of their foreground."""
    activation, pick, output = PICKED[name]
    operands = {"k": np.array(1), "k1": np.array([1]), "k2": np.array([2])}
    operands = {key: value for key, value in operands.items() if f" {key}" in pick}
    text = f"g (float[N, 3, 6, 7] x) => (float[{output}] y) {{ {CONV} s = {activation} <axis = 1> (z) y = {pick} }}"
    found = run(gbprewrite.convert(model(text, 18, w=MANY[:2], **operands), "gradient", "region"), x=X)
    z: Array = np.einsum("ck,nkhw->nchw", MANY[:2, :, 0, 0], X)
    foreground = z[:, 1] > z[:, 0]
    assert foreground.any()
    assert not foreground.all()
    np.testing.assert_array_equal(found["x_gradient"].any(axis=1), foreground)


def test_a_single_probability_that_is_not_stepped_over_is_said_above_one_half() -> None:
    text = f"g (float[N, 3, 6, 7] x) => (float[N, 1, 6, 7] y) {{ {CONV} y = HardSigmoid <alpha = 0.01> (z) }}"
    found = run(gbprewrite.convert(model(text, 18, w=ONE), "gradient", "region"), x=X)
    z: Array = np.einsum("ck,nkhw->nchw", ONE[:, :, 0, 0], X)
    np.testing.assert_array_equal(found["x_gradient"].any(axis=1), z[:, 0] > 0)


def said(form: Form) -> Array:
    """Whether each position says each class, [N, C, H, W]."""
    z: Array = np.einsum("ck,nkhw->nchw", form.w[:, :, 0, 0], X)
    if not form.highest:
        return np.asarray(z > 0)
    numbers = np.arange(len(form.w)).reshape(1, -1, 1, 1)
    return np.asarray(z.argmax(1)[:, None] == numbers)


def built(name: str) -> tuple[Any, Array]:
    form = FORMS[name]
    size = "H, W" if "H" in form.output else "6, 7"
    shape = f"N, {size}, 3" if form.last else f"N, 3, {size}"
    text = f"g (float[{shape}] x) => (float[{form.output}] y) {{ {form.text} }}"
    return model(text, w=form.w), np.ascontiguousarray(X.transpose(0, 2, 3, 1)) if form.last else X


def expected(form: Form, classes: Array) -> Array:
    where = said(form)[np.arange(3), classes][:, None]
    made = form.w[classes, :, :, :] * where
    return np.asarray(made.transpose(0, 2, 3, 1) if form.last else made)


@pytest.mark.parametrize("name", FORMS)
def test_the_class_of_the_largest_region(name: str) -> None:
    source, x = built(name)
    found = run(gbprewrite.convert(source, "gradient", "region"), x=x)
    classes = said(FORMS[name]).sum((2, 3)).argmax(1)
    np.testing.assert_array_equal(found["explained_index"], classes)
    np.testing.assert_allclose(found["x_gradient"], expected(FORMS[name], classes), rtol=1e-5, atol=1e-7)
    assert 0 < np.count_nonzero(found["x_gradient"]) < found["x_gradient"].size


@pytest.mark.parametrize("name", FORMS)
def test_one_class(name: str) -> None:
    source, x = built(name)
    number = len(FORMS[name].w) - 1
    found = run(gbprewrite.convert(source, ["gradient", "integrated_gradients"], f"region:{number}", steps=2), x=x)
    classes = np.full(3, number)
    np.testing.assert_array_equal(found["explained_index"], classes)
    wanted = expected(FORMS[name], classes)
    np.testing.assert_allclose(found["x_gradient"], wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["x_integrated_gradients"], x * wanted, rtol=1e-4, atol=1e-6)  # linear, from zeros


def test_some_classes_only() -> None:
    """The background, class 0 say, is everywhere; --channels leaves it out."""
    source, x = built("logits")
    found = run(gbprewrite.convert(source, "gradient", "region", channels="1:4"), x=x)
    classes = said(FORMS["logits"])[:, 1:].sum((2, 3)).argmax(1) + 1
    np.testing.assert_array_equal(found["explained_index"], classes)
    np.testing.assert_allclose(found["x_gradient"], expected(FORMS["logits"], classes), rtol=1e-5, atol=1e-7)


def test_probabilities_themselves() -> None:
    """Through the Sigmoid a position says a class above one half; the map is the probability's gradient there."""
    source, x = built("Sigmoid")
    found = run(gbprewrite.convert(source, "gradient", "region:2", through_softmax=True), x=x)
    z = np.einsum("k,nkhw->nhw", MANY[2, :, 0, 0], X)
    p = 1 / (1 + np.exp(-z))
    wanted = MANY[2].reshape(1, 3, 1, 1) * (p * (1 - p) * (p > 0.5))[:, None]
    np.testing.assert_allclose(found["x_gradient"], wanted, rtol=1e-4, atol=1e-7)


def test_a_sample_that_does_not_say_it_has_no_map() -> None:
    source, x = built("mask")
    x = x.copy()
    x[1] = -10 * ONE.reshape(3, 1, 1) * np.ones((3, 6, 7), np.float32)  # z < 0 everywhere
    converted = gbprewrite.convert(source, "gradient", "region:0")
    maps = run(converted, x=x)["x_gradient"]
    assert [np.isnan(m).all() for m in maps] == [False, True, False]
    with pytest.raises(gbprewrite.DataError, match=r"no position says the class of target region:0.*of sample 1"):
        gbprewrite.Explainer(converted, providers="cpu")(x)


@pytest.mark.parametrize(
    "name", ["logits", "channels last, Softmax, moved", "mask without an axis of classes", "Sigmoid"]
)
@pytest.mark.parametrize("target", ["region", "region:0"])
def test_verify(name: str, target: str) -> None:
    found = gbprewrite.verify(gbprewrite.convert(built(name)[0], "gradient", target), providers="cpu")
    assert {check.status for check in found.checks} == {"passed"}, found


WRONG = {
    "no positions": ("g (float[N, 3] x) => (float[N, 4] y) { y = MatMul (x, v) }", "region", "no positions"),
    "out of range": ("g (float[N, 3, 6, 7] x) => (float[N, 4, 6, 7] y) { y = Conv (x, w) }", "region:4", "0 to 3"),
    "two": ("g (float[N, 3, 6, 7] x) => (float[N, 4, 6, 7] y) { y = Conv (x, w) }", "region:1,2", "not understood"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_wishes(name: str) -> None:
    text, target, message = WRONG[name]
    weights = {"v": MANY[:, :, 0, 0].T.copy()} if "v)" in text else {"w": MANY}
    with pytest.raises(gbprewrite.UsageError, match=message):
        gbprewrite.convert(model(text, **weights), "gradient", target)
