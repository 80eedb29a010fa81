"""Golden pairs and trial runs, on models of a few lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from loaders.api import Golden, InferenceFailed, InputRejected, ModelRejected, ModelSchema, TensorSchema
from loaders.trial import check_golden, difference, made_up, try_out


class Model:
    def __init__(self, run: Callable[[Mapping[str, Any]], dict[str, Any]], *inputs: TensorSchema) -> None:
        self.schema = ModelSchema(inputs, ())
        self.run = run


def test_differences_in_words() -> None:
    one = np.array([1.0, np.nan], np.float32)
    assert difference(one, one, 0, 0) == ""
    assert difference(one, one.astype(np.float64), 0, 0) == "is float32, not float64"
    assert difference(one, one[:1], 0, 0) == "has shape [2], not [1]"
    assert difference(np.array([1.5]), np.array([1.0]), 0, 0.1) == "differs by up to 0.5"
    assert difference(np.array([np.inf]), np.array([1.0]), 0, 0.1) == "has values that are not finite"
    assert difference(np.array(["a"]), np.array(["a"], dtype=object), 0, 0) == ""
    assert difference(np.array([1]), np.array([2]), 1, 1) == "has other values"


def test_a_golden_pair_refuses_what_fails_or_is_missing() -> None:
    def fails(inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise InferenceFailed("no")

    def picky(inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise InputRejected("x is missing")

    golden = Golden({}, {"y": np.ones(1)})
    for run, words in ((fails, "fails on its golden inputs"), (picky, "do not fit"), (lambda i: {}, "does not give")):
        with pytest.raises(ModelRejected, match=words):
            check_golden(Model(run), golden)
    assert check_golden(Model(lambda i: {"y": np.ones(1), "z": np.ones(2)}), golden)["z"].shape == (2,)


def test_a_trial_grows_open_axes_until_the_model_works() -> None:
    seen: list[tuple[int, ...]] = []

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(inputs["x"].shape)
        if inputs["x"].shape[1] < 32:
            raise InferenceFailed("too short")
        return {"y": inputs["x"]}

    assert try_out(Model(run, TensorSchema("x", "float32", ("N", "T"))))["y"].shape == (1, 32)
    assert seen == [(1, 1), (1, 2), (1, 16), (1, 32)]


def test_a_trial_that_never_works_says_why_and_runs_once_without_open_axes() -> None:
    calls: list[int] = []

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        calls.append(1)
        raise InferenceFailed("weights are missing")

    with pytest.raises(ModelRejected, match=r"weights are missing.*golden"):
        try_out(Model(run, TensorSchema("x", "str", ("N",))))
    assert len(calls) == 1


def test_huge_shapes_are_not_made_up() -> None:
    schema = ModelSchema((TensorSchema("x", "float32", (1 << 20, 1 << 20)),), ())
    assert made_up(schema, 1) is None
    with pytest.raises(ModelRejected, match="too large"):
        try_out(Model(lambda i: {}, *schema.inputs))
