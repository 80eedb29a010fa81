from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patterns.aggregation import combine, concat, count_classes, trimmed_mean, weighted_mean
from patterns.api import PatternError, TaskResult
from tests.support.pattern_facts import result

METHODS = ("federated_averaging", "mean", "sum", "median", "trimmed_mean")
stacks = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6))


def results(stack: np.ndarray, rows: list[int]) -> list[TaskResult]:
    return [result(f"r0/s{i}", rows[i], f"n{i}", y=np.asarray(v)) for i, v in enumerate(stack)]


def by_numpy(method: str, stack: np.ndarray, rows: list[int], trim: float) -> np.ndarray:
    cut = math.floor(trim * len(stack))
    return {
        "federated_averaging": lambda: np.average(stack, axis=0, weights=rows),
        "mean": lambda: np.mean(stack, axis=0),
        "sum": lambda: np.sum(stack, axis=0),
        "median": lambda: np.median(stack, axis=0),
        "trimmed_mean": lambda: np.sort(stack, axis=0)[cut : len(stack) - cut].mean(axis=0),
    }[method]()


@pytest.mark.parametrize("method", METHODS)
@given(stack=stacks, data=st.data())
def test_equals_numpy_and_does_not_depend_on_the_order_of_nodes(method: str, stack: np.ndarray, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(1, 1000), min_size=len(stack), max_size=len(stack)))
    trim = data.draw(st.floats(0, 0.49))
    found = results(stack, rows)
    out, left_out = combine(method, found, trim)
    assert left_out == []
    assert out["y"].dtype == np.float64
    np.testing.assert_allclose(out["y"], by_numpy(method, stack, rows, trim), rtol=1e-9, atol=1e-6)
    other, _ = combine(method, data.draw(st.permutations(found)), trim)
    np.testing.assert_allclose(other["y"], out["y"], rtol=1e-9, atol=1e-6)


@given(stack=stacks, data=st.data())
def test_averages_stay_between_the_least_and_the_most(stack: np.ndarray, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(1, 1000), min_size=len(stack), max_size=len(stack)))
    for method in ("federated_averaging", "mean", "median", "trimmed_mean"):
        y = combine(method, results(stack, rows), 0.2)[0]["y"]
        slack = 1e-9 * np.abs(stack).max()
        assert (y >= stack.min(axis=0) - slack).all()
        assert (y <= stack.max(axis=0) + slack).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_on_one_node_stays_visible(method: str) -> None:
    stack = np.array([[1.0, 1.0], [np.nan, 2.0], [3.0, 3.0]])
    y = combine(method, results(stack, [1, 1, 1]), 0.4)[0]["y"]
    assert np.isnan(y).tolist() == [True, False]


def test_infinities_that_cancel_become_nan_without_a_warning() -> None:
    assert np.isnan(combine("sum", results(np.array([np.inf, -np.inf]), [1, 1]), 0)[0]["y"])


def test_integers_and_booleans_are_averaged_in_float64() -> None:
    found = [result("a", 1, y=np.array([2**40, 1])), result("b", 3, y=np.array([2**40, 2]))]
    assert combine("federated_averaging", found, 0)[0]["y"].tolist() == [2.0**40, 1.75]
    flags = [result("a", y=np.array([True])), result("b", y=np.array([False]))]
    assert combine("mean", flags, 0)[0]["y"].tolist() == [0.5]


def test_what_is_no_number_is_left_out_and_named() -> None:
    found = [result(k, y=np.ones(1), t=np.array(["x"], dtype=object), z=np.ones(1, dtype=complex)) for k in "ab"]
    out, left_out = combine("mean", found, 0)
    assert list(out) == ["y"]
    assert left_out == ["t", "z"]


def test_shapes_that_differ_are_a_clear_error() -> None:
    with pytest.raises(PatternError, match=r"'y' has different shapes: \[2\] on n0, \[3\] on n1"):
        combine("mean", [result("a", node="n0", y=np.ones(2)), result("b", node="n1", y=np.ones(3))], 0)


def test_an_output_that_a_node_lacks_is_a_clear_error() -> None:
    with pytest.raises(PatternError, match="'y' is missing from node n1"):
        combine("mean", [result("a", node="n0", y=np.ones(2)), result("b", node="n1")], 0)


def test_weights_of_zero_are_an_error() -> None:
    with pytest.raises(PatternError, match="weights"):
        weighted_mean(np.ones((2, 1)), [0, 0])


def test_trimming_cuts_whole_nodes_at_both_ends() -> None:
    values = np.array([0.0, 1.0, 2.0, 3.0, 100.0])
    assert trimmed_mean(values, 0.2) == 2.0
    assert trimmed_mean(values, 0.19) == pytest.approx(21.2)


class TestConcat:
    @given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), width=st.integers(1, 3))
    def test_rows_come_back_in_order(self, sizes: list[int], width: int) -> None:
        whole = np.arange(sum(sizes) * width).reshape(-1, width)
        edges = np.cumsum([0, *sizes])
        found = [result(f"r0/s{i}", n, y=whole[edges[i] : edges[i + 1]]) for i, n in enumerate(sizes)]
        out, left_out = concat(found, frozenset({"y"}))
        assert (out["y"] == whole).all()
        assert left_out == []

    def test_text_has_rows_too_and_what_has_none_is_named(self) -> None:
        found = [result(k, 1, y=np.array([k], dtype=object), w=np.ones(3)) for k in "ab"]
        out, left_out = concat(found, frozenset({"y"}))
        assert out["y"].tolist() == ["a", "b"]
        assert left_out == ["w"]

    @pytest.mark.parametrize(
        ("a", "b", "said"),
        [
            (np.ones((1, 2)), np.ones((1, 3)), "different shapes"),
            (np.ones((2, 2)), np.ones((1, 2)), "1 rows went in"),
            (np.array(1.0), np.ones(1), "1 rows went in"),
            (np.ones(1), np.array(["x"], dtype=object), "numbers on some nodes"),
        ],
    )
    def test_rows_that_do_not_fit_are_a_clear_error(self, a: np.ndarray, b: np.ndarray, said: str) -> None:
        with pytest.raises(PatternError, match=said):
            concat([result("a", 1, y=a), result("b", 1, y=b)], frozenset({"y"}))

    def test_nothing_with_rows_is_an_error(self) -> None:
        with pytest.raises(PatternError, match="no output has the batch axis"):
            concat([result("a", y=np.ones(1))], frozenset())


def counts(key: str, classes: list[object], n: list[int], rows: int | None = None) -> TaskResult:
    made = np.array(classes, dtype=object if classes and isinstance(classes[0], str) else None)
    return result(key, sum(n) if rows is None else rows, **{"class": made, "counts": np.array(n, dtype=np.int64)})


class TestClassCounts:
    @given(st.lists(st.lists(st.integers(0, 4), max_size=20), min_size=1, max_size=5).filter(any))
    def test_counts_over_all_rows(self, labels: list[list[int]]) -> None:
        found = []
        for i, some in enumerate(labels):
            c, n = np.unique(np.array(some, dtype=np.int64), return_counts=True)
            found.append(result(f"s{i}", len(some), **{"class": c, "counts": n}))
        out, details = count_classes(found)
        c, n = np.unique(np.concatenate([np.array(x, dtype=np.int64) for x in labels]), return_counts=True)
        assert (out["class"] == c).all()
        assert (out["counts"] == n).all()
        assert out["counts"].dtype == np.int64
        assert details["winner"] == c[n.argmax()]

    def test_a_tie_goes_to_the_smallest_and_is_listed(self) -> None:
        _, details = count_classes([counts("a", ["x", "b"], [2, 1]), counts("b", ["b"], [1])])
        assert details["winner"] == "b"
        assert details["ties"] == ["b", "x"]
        assert details["agreement"] == 0.5

    def test_rows_without_a_vote_are_counted(self) -> None:
        assert count_classes([counts("a", [1], [3], rows=5)])[1]["without_vote"] == 2

    def test_a_node_without_any_vote_does_not_decide_the_kind(self) -> None:
        out, _ = count_classes([counts("a", ["x"], [1]), result("b", 1, **{"class": np.array([]), "counts": np.array([], dtype=np.int64)})])
        assert out["class"].tolist() == ["x"]

    @pytest.mark.parametrize(
        ("found", "said"),
        [
            ([counts("a", [1], [1]), counts("b", ["x"], [1])], "strings"),
            ([counts("a", [], [], rows=2)], "no row has a vote"),
            ([result("a", **{"class": np.array([1, 2]), "counts": np.array([1])})], "do not fit"),
            ([result("a", y=np.ones(1))], "missing"),
        ],
    )
    def test_counts_that_make_no_sense_are_an_error(self, found: list[TaskResult], said: str) -> None:
        with pytest.raises(PatternError, match=said):
            count_classes(found)
