"""float64, float16, bfloat16 and mixtures: every rule, a network of many operators, and the traps of 16 bits.

onnxruntime's CPU runs float16 by way of Casts, and hardly anything in bfloat16; there, ONNX's reference evaluator does.
"""

import re
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import gbprewrite
from gbprewrite.checks.reference import evaluate
from tests import small
from tests.cases import CASES, Array, Case
from tests.proof.shared_models import model as shared
from tests.proof.shared_models import needs_shared, squeezenet
from tests.test_operators import KINDS, build, relative_l2, run, truth

METHODS = ("gradient", "guided", "deconvnet")
bfloat16 = ml_dtypes.bfloat16
# Half precision → the largest relative L2 error of a rule: a few roundings of 2^-11 and 2^-8
HALVES = {np.float16: 0.01, bfloat16: 0.06}
# What ONNX's reference evaluator can't compute: numpy has no determinants of 16 bits, and its types do not fit.
UNEVALUATED = {("Det", np.float16), ("Det", bfloat16), ("GlobalLpPool", bfloat16)}
# A rounded input stands elsewhere: nearer to a pole, in another bin.
UNSTABLE = ("MaxRoiPool", "Tan")


# --- rules ------------------------------------------------------------------------------------------------------------


def allowed(case: Case, dtype: Any) -> bool:
    """Whether the standard has the operator in this type."""
    if case.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize" and dtype is bfloat16:
        return False  # there is no region of interest in bfloat16
    name = f"tensor({np.dtype(dtype).name})"
    constraints = onnx.defs.get_schema(case.operator, case.opset).type_constraints
    return any(name in c.allowed_type_strs for c in constraints)


def half_cases() -> list[Any]:
    found = []
    for dtype in HALVES:
        for case in CASES:
            if dtype is bfloat16 and case.opset >= 18:
                case = case._replace(opset=max(case.opset, 22))  # the first opset with convolutions in bfloat16
            if allowed(case, dtype):
                found.append(pytest.param(case, dtype, id=f"{case.name}-{np.dtype(dtype).name}"))
    return found


def runs_on_onnxruntime(model: onnx.ModelProto, feeds: dict[str, Array]) -> bool:
    """Whether the CPU has the kernels of a source; where not, it says so before or while it runs."""
    try:
        run(model, feeds)
    except Exception as error:  # onnxruntime's own classes have no common base
        if not re.search("NOT_IMPLEMENTED|is not supported with Scatter", str(error)):
            raise
        return False
    return True


@pytest.mark.parametrize(("case", "dtype"), half_cases())
def test_rule(case: Case, dtype: Any) -> None:
    """The converted model passes the strict check of types, keeps to them, and its cotangents are right."""
    source, feeds = build(case, dtype)
    built = gbprewrite.convert(source, "gradient", "seed", through_softmax=True)
    if case.operator != "GroupNormalization":  # of which inference gives no shape, as the check wants it
        onnx.checker.check_model(built, full_check=True)
    seed, expected = truth(case)
    engines = [] if (case.operator, dtype) in UNEVALUATED else [evaluate]
    if dtype is np.float16 and runs_on_onnxruntime(source, feeds):
        engines.append(run)
    for engine in engines:
        found = engine(built, {**feeds, "seed": seed.astype(dtype)})
        for name, cotangent in expected.items():
            got = found[f"{name}_gradient"]
            assert got.dtype == dtype
            limit = HALVES[dtype] if case.operator not in UNSTABLE else 0.2
            assert relative_l2(got.astype(np.float64), cotangent) < limit, (engine.__name__, name)


# --- a network --------------------------------------------------------------------------------------------------------

BODY = """
    a = Conv <pads = [1, 1, 1, 1]> (h, w1, b1)
    b = BatchNormalization <epsilon = 0.001> (a, s1, t1, m1, v1)
    c = Relu (b)
    d = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (c)
    e = Conv <pads = [1, 1, 1, 1], group = 4> (d, w2)
    f = InstanceNormalization (e, s2, t2)
    g = Clip (f, zero, six)
    k = AveragePool <kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1]> (d)
    l = Conv (k, w3)
    l2 = LRN <size = 3, alpha = 0.1> (l)
    m = Concat <axis = 1> (g, l2)
    n = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (m, w4, b4)
    o = Conv <strides = [2, 2]> (m, w5)
    p = Add (n, o)
    q = Relu (p)
    r = Max (q, n)
    u = Transpose <perm = [0, 2, 3, 1]> (r)
    v = LayerNormalization <axis = -1> (u, s3, t3)
    z = Transpose <perm = [0, 3, 1, 2]> (v)
    pooled = GlobalAveragePool (z)
    strongest = ReduceMax <keepdims = 1> (q, space)
    both = Concat <axis = 1> (pooled, strongest)
"""
HEAD = "flat = Flatten (both_) logits = Gemm <transB = 1> (flat, w6, b6) probabilities = Softmax <axis = 1> (logits)"
SHAPES = {
    **{"w1": (8, 3, 3, 3), "b1": (8,), "s1": (8,), "t1": (8,), "m1": (8,), "v1": (8,), "w2": (8, 2, 3, 3)},
    **{"s2": (8,), "t2": (8,), "w3": (8, 8, 1, 1), "w4": (12, 16, 3, 3), "b4": (12,), "w5": (12, 16, 1, 1)},
    **{"s3": (12,), "t3": (12,), "w6": (5, 24), "b6": (5,)},
}
IN_HEAD = ("w6", "b6")


class Precision(NamedTuple):
    """The types of a network's input, of its trunk and of its head."""

    image: Any
    trunk: Any
    head: Any


PRECISIONS = {
    "float64": Precision(np.float64, np.float64, np.float64),
    "float16": Precision(np.float16, np.float16, np.float16),
    "bfloat16": Precision(bfloat16, bfloat16, bfloat16),
    "float16 trunk": Precision(np.float32, np.float16, np.float32),
    "bfloat16 trunk": Precision(np.float32, bfloat16, np.float32),
    "float16 with a float32 head": Precision(np.float16, np.float16, np.float32),
}
AUTOCAST = {"autocast to float16": np.float16, "autocast to bfloat16": bfloat16}


def weights_of(trunk: Any) -> dict[str, Array]:
    """float32 weights that the trunk's type holds exactly."""
    found = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        values = small.normal(*shape, seed=i) / np.sqrt(max(np.prod(shape[1:]), 1))
        values = np.abs(values) + 0.5 if name[0] in "vs" else values
        found[name] = values.astype(trunk).astype(np.float32)
    return found


def network(precision: Precision, weights: dict[str, Array]) -> onnx.ModelProto:
    names = {dtype: TensorProto.DataType.Name(KINDS[np.dtype(dtype)]).lower() for dtype in precision}
    numbers = {dtype: KINDS[np.dtype(dtype)] for dtype in precision}
    text = f"""cnn ({names[precision.image]}[N, 3, 24, 24] image) => ({names[precision.head]}[N, 5] probabilities) {{
        h = Cast <to = {numbers[precision.trunk]}> (image) {BODY}
        both_ = Cast <to = {numbers[precision.head]}> (both) {HEAD} }}"""
    typed = {n: v.astype(precision.head if n in IN_HEAD else precision.trunk) for n, v in weights.items()}
    bounds = {name: np.array(value, precision.trunk) for name, value in (("zero", 0), ("six", 6))}
    return small.model(text, 22, 10, **typed, **bounds, space=np.array([2, 3]))


def autocast(weights: dict[str, Array], half: Any) -> onnx.ModelProto:
    """As PyTorch exports autocast: weights in float32, a Cast before and behind every convolution and product."""
    source = network(Precision(np.float32, np.float32, np.float32), weights)
    nodes = []
    for node in source.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            nodes.append(node)
            continue
        halves = [f"{node.output[0]}_{name}" for name in node.input]
        for name, narrow in zip(node.input, halves, strict=True):
            nodes.append(helper.make_node("Cast", [name], [narrow], to=KINDS[np.dtype(half)]))
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        nodes.append(helper.make_node(node.op_type, halves, [f"{node.output[0]}_half"], **attributes))
        nodes.append(helper.make_node("Cast", [f"{node.output[0]}_half"], [node.output[0]], to=TensorProto.FLOAT))
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del source.graph.node[:]
    source.graph.node.extend(copies)
    return source


def cosine(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("name", [*PRECISIONS, *AUTOCAST])
def test_network(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Maps in the input's type, as those of the float32 twin with the same weights; the outputs stay the source's."""
    precision = PRECISIONS.get(name) or Precision(np.float32, AUTOCAST[name], np.float32)
    on_onnxruntime = bfloat16 not in precision and np.float64 not in precision  # its CPU lacks these convolutions
    weights = weights_of(np.float32 if precision.trunk is np.float64 else precision.trunk)
    source = autocast(weights, AUTOCAST[name]) if name in AUTOCAST else network(precision, weights)
    image = small.normal(2, 3, 24, 24, seed=9).astype(precision.trunk).astype(precision.image)
    built = gbprewrite.convert(source, METHODS, 2)
    assert capsys.readouterr().out == ""  # graphsurgeon would warn of bfloat16
    onnx.checker.check_model(built, full_check=True)

    def engine(model: onnx.ModelProto) -> dict[str, Array]:
        if not on_onnxruntime:
            return evaluate(model, {"image": image})
        return small.run(model, optimise=False, image=image)

    found = engine(built)
    np.testing.assert_array_equal(found["probabilities"], engine(source)["probabilities"])
    twin = gbprewrite.convert(network(Precision(np.float32, np.float32, np.float32), weights), METHODS, 2)
    expected = small.run(twin, image=image.astype(np.float32))
    for method in METHODS:
        got = found[f"image_{method}"]
        assert got.dtype == precision.image
        assert cosine(got, expected[f"image_{method}"]) > (1 - 1e-9 if name == "float64" else 0.99), method
    if on_onnxruntime:  # as onnxruntime optimises it, which drops Casts; and rounded to 16 bits after every operator
        for again in (small.run(built, image=image), evaluate(built, {"image": image})):
            for method in METHODS:
                assert cosine(again[f"image_{method}"], expected[f"image_{method}"]) > 0.99, method


# --- the traps of float16: 65504 is its greatest number ---------------------------------------------------------------

GRAPH = "g ({type}[2, 4, {size}, {size}] x) => ({type}[A, B, C, D] y)"
TRAPS = {  # body → (size, magnitude of the input): squares, sums and counts beyond 65504
    "y = InstanceNormalization (x, s, t)": (6, 800),
    "y = LayerNormalization <axis = -1> (x, c, c)": (6, 800),
    "y = RMSNormalization <axis = -1> (x, c)": (6, 800),
    "y = LRN <size = 3, alpha = 0.01> (x)": (6, 800),
    "y = LpNormalization <axis = 1, p = 2> (x)": (6, 60),
    "y = BatchNormalization (x, s, t, t, s)": (6, 800),
    'y = Gelu <approximate = "tanh"> (x)': (6, 800),
    "y = Gelu (x)": (6, 800),
    "y = Mish (x)": (6, 800),
    "y = Softmax <axis = 1> (x)": (6, 4),
    "y = ReduceLogSumExp (x, space)": (6, 800),
    "y = GlobalAveragePool (x)": (300, 1),
    "y = ReduceMean (x, space)": (300, 1),
    # onnxruntime's CPU leaves convolutions unrounded in float32, but not what it compares them with
    "a = Conv (x, w) b = Conv (x, w2) y = Max (a, b)": (6, 1),
    "a = Conv (x, w) b = Conv (x, w2) y = Min (a, b)": (6, 1),
    "a = Conv (x, w) y = ReduceMax (a, space)": (6, 1),
    "a = Conv (x, w) y = GlobalMaxPool (a)": (6, 1),
    "a = Conv (x, w) y = MaxPool <kernel_shape = [3, 3], strides = [1, 1]> (a)": (6, 1),
    # and it has no kernel that scatters and adds
    "y = GatherND (x, nd)": (6, 1),
    "y = GatherElements <axis = 1> (x, elements)": (6, 1),
    "y = Gather <axis = 1> (x, twice)": (6, 1),
}


def trap(body: str, dtype: Any) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The converted model, and what to feed it, in either type."""
    size, magnitude = TRAPS[body]
    weights = {
        **{"s": np.float32([1, 2, 0.5, 1]), "t": np.float32([0, 1, -1, 0.5]), "c": small.normal(size)},
        **{"w": small.normal(4, 4, 3, 3), "w2": small.normal(4, 4, 3, 3, seed=1)},
    }
    integers = {
        **{"space": np.array([2, 3]), "twice": np.array([0, 3, 3]), "elements": np.zeros((2, 2, size, size), np.int64)},
        "nd": np.array([[[0, 1], [1, 1]], [[0, 1], [0, 2]]]),
    }
    words = set(re.findall(r"\w+", body))
    used = {n: v.astype(np.float16).astype(dtype) for n, v in weights.items()} | integers
    text = f"{GRAPH.format(type='float16' if dtype is np.float16 else 'float', size=size)} {{ {body} }}"
    source = small.model(text, 23, 11, **{n: v for n, v in used.items() if n in words})
    x = (magnitude * small.normal(2, 4, size, size)).astype(np.float16).astype(dtype)
    shape = small.run(source, x=x)["y"].shape
    seed = small.normal(*shape, seed=3).astype(np.float16).astype(dtype)
    return gbprewrite.convert(source, "gradient", "seed", through_softmax=True), {"x": x, "seed": seed}


@pytest.mark.parametrize("engine", ["onnxruntime", "reference"])
@pytest.mark.parametrize("body", TRAPS)
def test_trap(body: str, engine: str) -> None:
    """A float16 model's map is that of its float32 twin where 16 bits alone would overflow.

    onnxruntime's CPU computes in float32 between its Casts; the reference evaluator rounds after every operator.
    """
    built, feeds = trap(body, np.float16)
    with np.errstate(over="ignore", invalid="ignore"):  # of the forward operators, which compute as they like
        half = (evaluate(built, feeds) if engine == "reference" else small.run(built, **feeds))["x_gradient"]
    twin, feeds = trap(body, np.float32)
    expected = small.run(twin, **feeds)["x_gradient"]
    assert half.dtype == np.float16
    assert np.abs(expected).max() > 0
    assert cosine(half, expected) > 0.99


@needs_shared
@pytest.mark.parametrize("photo", ["coffee", "chelsea"])
def test_float16_as_it_was_shipped(photo: str) -> None:
    """SqueezeNet in float16 against the float32 file with the same weights, as onnxruntime runs both."""
    feeds = squeezenet(photo)
    index = int(small.run(shared("squeezenet11"), **feeds)["softmaxout_1"].argmax())
    maps = []
    for name, dtype in (("squeezenet11_fp16", np.float16), ("squeezenet11", np.float32)):
        built = gbprewrite.convert(shared(name), METHODS, index)
        maps.append(small.run(built, **{n: v.astype(dtype) for n, v in feeds.items()}))
    half, twin = maps
    for method in METHODS:
        assert half[f"data_0_{method}"].dtype == np.float16
        assert cosine(half[f"data_0_{method}"], twin[f"data_0_{method}"]) > 0.99, method
