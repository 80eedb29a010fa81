from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patterns.api import PatternError
from patterns.reduce import reduce_outputs

B = frozenset({"y"})


def test_rows_are_left_alone() -> None:
    y = np.arange(3)
    assert reduce_outputs({"y": y}, 3, B, "rows", None)["y"] is y


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5), elements=st.floats(-1e6, 1e6, width=32)))
def test_mean_is_taken_over_the_rows_in_float64(y: np.ndarray) -> None:
    out = reduce_outputs({"y": y}, len(y), B, "mean", None)["y"]
    assert out.dtype == np.float64
    assert out.shape == y.shape[1:]
    np.testing.assert_allclose(out, y.astype(np.float64).mean(axis=0))


def test_what_has_no_batch_axis_stays_as_it_is_and_text_stays_at_home() -> None:
    w = np.arange(4.0)
    out = reduce_outputs({"w": w, "names": np.array(["a"]), "y": np.array(["p", "q"])}, 2, B, "mean", None)
    assert list(out) == ["w"]
    assert out["w"] is w


def test_a_mean_over_no_rows_is_left_out() -> None:
    assert reduce_outputs({"y": np.zeros((0, 2)), "w": np.ones(1)}, 0, B, "mean", None).keys() == {"w"}


def test_nan_stays_visible() -> None:
    assert np.isnan(reduce_outputs({"y": np.array([1.0, np.nan])}, 2, B, "mean", None)["y"])


def test_votes_leave_only_class_counts() -> None:
    out = reduce_outputs({"p": np.eye(3), "y": np.array([5, 5, 2])}, 3, frozenset({"p", "y"}), "votes", None)
    assert {k: v.tolist() for k, v in out.items()} == {"class": [2, 5], "counts": [1, 2]}


def test_a_named_output_votes() -> None:
    out = reduce_outputs({"p": np.eye(3), "y": np.array([5, 5, 2])}, 3, frozenset({"p", "y"}), "votes", "p")
    assert out["class"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("how", ["mean", "votes"])
@pytest.mark.parametrize("y", [np.ones(3), np.array(1.0)])
def test_an_output_without_its_rows_is_refused(how: str, y: np.ndarray) -> None:
    with pytest.raises(PatternError, match="2 rows"):
        reduce_outputs({"y": y}, 2, B, how, None)  # type: ignore[arg-type]
