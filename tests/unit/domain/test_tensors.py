from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dimnode.domain import tensors
from dimnode.errors import InvalidArgument

numeric = st.sampled_from(tensors.NUMERIC_DTYPES)


@given(numeric.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0))))
def test_a_numeric_array_survives_every_form(array: np.ndarray) -> None:
    value = tensors.from_numpy(array)
    for back in (
        tensors.to_numpy(value),
        tensors.from_npy(tensors.to_npy(array)),
        tensors.to_numpy(tensors.from_json(tensors.to_json(value))),
    ):
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        np.testing.assert_array_equal(back, array)


@given(hnp.arrays(object, hnp.array_shapes(min_side=0), elements=st.text()))
def test_strings_survive(array: np.ndarray) -> None:
    value = tensors.from_numpy(array)
    assert tensors.to_numpy(value).tolist() == array.tolist()
    assert tensors.to_numpy(tensors.from_json(tensors.to_json(value))).tolist() == array.tolist()


@pytest.mark.parametrize(
    ("obj", "field", "rule"),
    [
        (7, "t", "must be"),
        ({"dtype": "float32", "shape": [1]}, "t.data", "missing"),
        ({"dtype": "float33", "shape": [1], "data": [1]}, "t.dtype", "one of"),
        ({"dtype": "float32", "shape": [float("nan")], "data": [1]}, "t.shape", "whole numbers"),
        ({"dtype": "float32", "shape": [-1], "data": []}, "t.shape", "whole numbers"),
        ({"dtype": "float32", "shape": [1.5], "data": [1]}, "t.shape", "whole numbers"),
        ({"dtype": "float32", "shape": [True], "data": [1]}, "t.shape", "whole numbers"),
        ({"dtype": "float32", "shape": [2], "data": [1]}, "t.data", "2 elements"),
        ({"dtype": "float32", "shape": [1], "data": ["x"]}, "t.data", "numbers"),
        ({"dtype": "int8", "shape": [1], "data": [300]}, "t.data", "range"),
        ({"dtype": "int8", "shape": [1], "data": [1.5]}, "t.data", "whole"),
        ({"dtype": "bool", "shape": [1], "data": [3]}, "t.data", "true or false"),
        ({"dtype": "str", "shape": [1], "data": [3]}, "t.data", "strings"),
        ({"dtype": "float32", "shape": [1], "data": [1], "more": 1}, "t.more", "known"),
        ({"cid": "bafy", "data": []}, "t", "not both"),
        ({"cid": 3}, "t.cid", "CID"),
    ],
)
def test_bad_tensors_name_the_field_and_the_rule(obj: object, field: str, rule: str) -> None:
    with pytest.raises(InvalidArgument) as e:
        tensors.from_json(obj, "t")
    assert e.value.fields[0].field == field
    assert rule in e.value.fields[0].rule


def test_bytes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="needs 8 bytes"):
        tensors.to_numpy(tensors.TensorValue(dtype="float32", shape=(2,), raw=b"123"))
    with pytest.raises(InvalidArgument, match="npy"):
        tensors.from_npy(b"not a tensor")


def test_a_pickled_npy_is_refused() -> None:
    import io

    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidArgument):
        tensors.from_npy(out.getvalue())
