"""Which requests run together, on virtual time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.daemon.batching import Batcher, BatchSettings
from dimnode.daemon.rows import independent, join, row_count, signature, split
from loaders.api import InferenceFailed, ModelSchema, TensorSchema

S = BatchSettings(most_requests=4, most_rows=10, most_bytes=1000, delay=0.01)


def items(due: object) -> list[object]:
    assert isinstance(due, list)
    return [w.item for w in due]


def crowded() -> Batcher[object]:
    """Requests have been finding company."""
    batcher: Batcher[object] = Batcher(S)
    for _ in range(3):
        for i in range(4):
            batcher.add(i, "k", 1, 1, 0.0)
        assert len(items(batcher.due(0.0))) == 4
    return batcher


def test_a_lonely_request_never_waits() -> None:
    batcher: Batcher[object] = Batcher(S)
    for now in range(10):
        assert batcher.due(now) is None
        batcher.add(now, "k", 1, 1, float(now))
        assert items(batcher.due(now)) == [now]


def test_what_gathered_while_agents_were_busy_runs_together_in_order() -> None:
    batcher: Batcher[object] = Batcher(S)
    for i in range(6):
        batcher.add(i, "k", 1, 1, 0.0)
    assert items(batcher.due(5.0)) == [0, 1, 2, 3]
    assert items(batcher.due(5.0)) == [4, 5]
    assert batcher.due(5.0) is None


def test_waiting_is_bounded_and_ends_when_the_batch_is_full() -> None:
    batcher = crowded()
    batcher.add("a", "k", 1, 1, 1.0)
    assert batcher.due(1.0) == pytest.approx(1.01)
    batcher.add("b", "k", 1, 1, 1.005)
    assert batcher.due(1.005) == pytest.approx(1.01)
    assert items(batcher.due(1.01)) == ["a", "b"]
    for i in range(4):
        batcher.add(i, "k", 1, 1, 2.0)
    assert items(batcher.due(2.0)) == [0, 1, 2, 3]


def test_waiting_stops_once_it_does_not_pay() -> None:
    batcher = crowded()
    for i in range(8):
        batcher.add(i, "k", 1, 1, float(i))
        batcher.due(i + 0.01)
    batcher.add("last", "k", 1, 1, 100.0)
    assert items(batcher.due(100.0)) == ["last"]


def test_unlike_requests_rows_and_bytes_are_kept_apart() -> None:
    batcher: Batcher[object] = Batcher(S)
    for item, key, rows, size in (("a", "x", 4, 1), ("b", "y", 1, 1), ("c", "x", 4, 1), ("d", "x", 4, 1), ("e", "y", 1, 1000)):
        batcher.add(item, key, rows, size, 0.0)
    assert [items(batcher.due(9.0)) for _ in range(4)] == [["a", "c"], ["b"], ["d"], ["e"]]


def test_cancelled_requests_are_gone_and_others_stay() -> None:
    batcher: Batcher[object] = Batcher(S)
    a, b = batcher.add("a", "k", 1, 1, 0.0), batcher.add("b", "k", 1, 1, 0.0)
    assert batcher.cancel(a)
    assert not batcher.cancel(a)
    assert items(batcher.due(0.0)) == ["b"]
    assert not batcher.cancel(b)


@given(st.lists(st.tuples(st.sampled_from("xy"), st.integers(1, 10), st.floats(0, 0.02)), max_size=40), st.integers(1, 5))
def test_everything_runs_once_within_the_delay_and_the_bounds(arrivals: list[tuple[str, int, float]], most: int) -> None:
    settings = BatchSettings(most_requests=most, most_rows=10, most_bytes=1000, delay=0.01)
    batcher: Batcher[int] = Batcher(settings)
    now, ran = 0.0, []
    for i, (key, rows, pause) in enumerate(arrivals):
        now += pause
        batcher.add(i, key, rows, 1, now)
        if i % 3 == 0:
            while isinstance(due := batcher.due(now), list):
                ran.append([w.item for w in due])
    while (due := batcher.due(now)) is not None:
        if isinstance(due, list):
            assert len(due) <= most
            assert len({w.key for w in due}) == 1
            assert len(due) == 1 or sum(w.rows for w in due) <= 10
            ran.append([w.item for w in due])
        else:
            assert now < due <= now + settings.delay
            now = due
    assert sorted(i for batch in ran for i in batch) == list(range(len(arrivals)))


class Model:
    """A model in this process."""

    def __init__(self, function, dtype: str = "float32") -> None:
        self.schema = ModelSchema((TensorSchema("x", dtype, ("N", 3)),), (TensorSchema("y", "float32", ("N",)),))
        self._function = function

    def run(self, inputs):
        return {"y": self._function(inputs["x"])}


def failing(x):
    raise InferenceFailed("no")


@pytest.mark.parametrize(
    ("function", "dtype", "fits"),
    [
        (lambda x: x.sum(axis=1), "float32", True),
        (lambda x: x @ np.ones(3, np.float32), "float32", True),
        (lambda x: x.sum(axis=1), "int64", True),
        (lambda x: x.sum(axis=1) - x.mean(), "float32", False),
        (lambda x: np.cumsum(x[:, 0]), "float32", False),
        (lambda x: x.mean(axis=0), "float32", False),
        (lambda x: np.float32(x.sum()), "float32", False),
        (failing, "float32", False),
        (lambda x: x, "str", False),
    ],
)
def test_only_models_that_treat_rows_one_by_one_are_batched(function, dtype: str, fits: bool) -> None:
    assert independent(Model(function, dtype)) is fits


def test_rows_are_put_together_and_apart() -> None:
    a, b = {"x": np.arange(6).reshape(2, 3)}, {"x": np.arange(3).reshape(1, 3)}
    both = join([a, b])
    assert [p["x"].tolist() for p in split(both, [2, 1])] == [a["x"].tolist(), b["x"].tolist()]
    assert (row_count(a), row_count({**a, "z": np.zeros(5)}), row_count({"s": np.float32(1)})) == (2, None, None)
    assert signature(a) == signature(b) != signature({"x": np.zeros((2, 4))})
    with pytest.raises(ValueError, match="not one row"):
        split(both, [2, 2])
