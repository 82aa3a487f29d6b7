"""Every error survives pickling, so that one raised in a worker process arrives where it was called."""

import concurrent.futures
import multiprocessing
import pickle
from collections.abc import Iterator

import pytest

import gbprewrite
from gbprewrite import errors
from gbprewrite.errors import GbprewriteError, Obstacle, UnsupportedOperators
from tests.small import model

OBSTACLES = [Obstacle("a node", "Their::Op", "no rule yet"), Obstacle("another", "Loop", "a loop")]


def _tree(root: type[GbprewriteError]) -> Iterator[type[GbprewriteError]]:
    yield root
    for branch in root.__subclasses__():
        if branch.__module__ == errors.__name__:  # tests have some of their own
            yield from _tree(branch)


def test_the_tree_is_the_one_of_the_docstring() -> None:
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in _tree(GbprewriteError) if kind.__name__ not in errors.__doc__] == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [*_tree(GbprewriteError)], ids=lambda kind: kind.__name__)
def test_errors_pickle(kind: type[GbprewriteError], protocol: int) -> None:
    raised = kind(OBSTACLES, "A hint.") if kind is UnsupportedOperators else kind("what, where, why, what to do")
    back = pickle.loads(pickle.dumps(raised, protocol))
    assert type(back) is kind
    assert str(back) == str(raised)
    assert vars(back) == vars(raised)
    assert back.exit_status == raised.exit_status


def _convert(text: str) -> int:
    return len(gbprewrite.convert(model(text)).graph.node)


def test_an_error_in_a_pool_arrives() -> None:
    text = "g (float[N, 3] x) => (float[N, 3] y) { a = Relu (x) y = Scale (a) }"
    processes = multiprocessing.get_context("spawn")
    with processes.Pool(1) as pool, pytest.raises(UnsupportedOperators) as error:
        pool.apply_async(_convert, (text,)).get(timeout=60)
    assert [o.operator for o in error.value.obstacles] == ["Scale"]
    with concurrent.futures.ProcessPoolExecutor(1, processes) as workers, pytest.raises(UnsupportedOperators):
        workers.submit(_convert, text).result(timeout=60)
