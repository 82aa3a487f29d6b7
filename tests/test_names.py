"""Names in messages: the nearest ones, in little time whatever a model calls its values."""

import difflib
import random
import time

import onnx
import pytest

import gbprewrite
from gbprewrite.errors import UsageError
from gbprewrite.model.names import COMPARED, LETTERS, LONGEST, RANKED, SHOWN, shortlist, similar


def _letters(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("abc/_01", k=length))


@pytest.mark.parametrize("seed", range(20))
def test_of_few_names_the_nearest_are_difflibs(seed: int) -> None:
    known = [_letters(5 + i % 9, 100 * seed + i) for i in range(RANKED)]
    wanted = difflib.get_close_matches(known[0][1:], known)
    assert wanted
    assert similar(known[0][1:], known) == wanted


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("FC", ["/head/fc/Gemm_output_0", "/body/Conv_output_0"], ["/head/fc/Gemm_output_0"]),
        ("nothing", ["a", "b"], []),
        ("", ["a", "b"], []),
        ("a" * (LONGEST + 1), ["a" * LONGEST], []),
    ],
)
def test_of_no_near_name_those_that_hold_it(name: str, known: list[str], found: list[str]) -> None:
    assert similar(name, known) == found


MANY = {
    "3,000 of 4,000 letters": [_letters(100, i) * 40 for i in range(3000)],
    "100,000 of the same letters": [f"{i:06}{'a' * (LONGEST - 6)}" for i in range(100_000)],
    "5,000 of the same letters in another order": [
        ("ab" * LONGEST)[i % 7 : LONGEST // 3] + _letters(99, i) for i in range(5000)
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", [_letters(4000, 9), "a" * LONGEST, "ab" * (LONGEST // 2), "conv1"])
@pytest.mark.parametrize("kind", MANY)
def test_many_names_take_little_time(kind: str, name: str) -> None:
    started = time.process_time()
    similar(name, MANY[kind])
    assert time.process_time() - started < 2  # 0.3 s here; difflib alone took minutes


def test_among_many_the_near_one_is_found() -> None:
    known = [f"/block{i}/conv/Conv_output_0" for i in range(2 * COMPARED)]
    assert similar("/block77/conv/Conv_output_", known)[0] == "/block77/conv/Conv_output_0"


def test_lists_stay_short() -> None:
    assert shortlist([]) == "none"
    assert shortlist(["a", "b"]) == "a, b"
    assert shortlist(map(str, range(20_000))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 19,990 more"
    assert len(shortlist(["n" * 4000] * 20_000)) < SHOWN * (LETTERS + 6) + 20


def test_an_unknown_score_of_a_model_with_long_names() -> None:
    nodes = [onnx.helper.make_node("Neg", ["x"], [f"{i}{'n' * 4000}"]) for i in range(300)]
    values = [onnx.helper.make_tensor_value_info(n.output[0], 1, ["N"]) for n in nodes]
    x = onnx.helper.make_tensor_value_info("x", 1, ["N"])
    built = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], values), ir_version=8)
    with pytest.raises(UsageError, match="and 290 more") as error:
        gbprewrite.convert(built, score="n" * 4000)
    assert len(str(error.value)) < 4000 + 2000
