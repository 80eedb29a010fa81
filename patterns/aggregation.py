"""How the nodes' values of one round become one value: pure numpy, float64 throughout.

Every function takes the values of one output stacked by node, [nodes, ...], and gives [...]. A NaN or
an infinity in a node's value stays visible in the aggregate; it is never averaged away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterns.api import Array, PatternError, TaskResult
from patterns.reduce import CLASS, COUNTS
from patterns.votes import alike, is_real

Stack = NDArray[np.float64]


def weighted_mean(values: Stack, weights: Sequence[float]) -> Array:
    """Sum of weight x value over the sum of the weights, which must be above 0."""
    w = np.asarray(weights, dtype=np.float64)
    total = w.sum()
    if not total > 0:
        raise PatternError("INVALID_ARGUMENT", "all weights are 0")
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.tensordot(w / total, values, axes=1))


def median(values: Stack) -> Array:
    """Middle value by element; the mean of the two middle ones for an even count."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.median(values, axis=0))


def trimmed_mean(values: Stack, trim: float) -> Array:
    """By element: the share ``trim`` (rounded down to whole nodes) is cut at each end, the rest averaged."""
    cut = int(trim * len(values))
    with np.errstate(invalid="ignore", over="ignore"):
        kept = np.sort(values, axis=0)[cut : len(values) - cut]
        out = np.asarray(kept.mean(axis=0))
    return np.where(np.isnan(values).any(axis=0), np.nan, out)


def _sum(values: Stack) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(values.sum(axis=0))


def combine(method: str, results: Sequence[TaskResult], trim: float) -> tuple[dict[str, Array], list[str]]:
    """Aggregate every output made of real numbers; the names of the others come second.

    ``results`` are the nodes' reduced outputs, in a fixed order. Raises `PatternError` if an output is
    missing on some nodes or the shapes differ.
    """
    weights = [float(r.rows) for r in results]
    ways: dict[str, Callable[[Stack], Array]] = {
        "federated_averaging": lambda v: weighted_mean(v, weights),
        "mean": lambda v: weighted_mean(v, [1.0] * len(v)),
        "sum": _sum,
        "median": median,
        "trimmed_mean": lambda v: trimmed_mean(v, trim),
    }
    out: dict[str, Array] = {}
    left_out: list[str] = []
    for name in _names(results):
        if all(is_real(r.outputs[name]) for r in results if name in r.outputs):
            out[name] = ways[method](_stack(name, results))
        else:
            left_out.append(name)
    return out, left_out


def _names(results: Sequence[TaskResult]) -> list[str]:
    return list(dict.fromkeys(name for r in results for name in r.outputs))


def _require(name: str, results: Sequence[TaskResult]) -> None:
    missing = [r.node for r in results if name not in r.outputs]
    if missing:
        raise PatternError("INVALID_ARGUMENT", f"output {name!r} is missing from node {missing[0]}", "All nodes must run the same model.")


def _stack(name: str, results: Sequence[TaskResult]) -> Stack:
    _require(name, results)
    shapes = {r.outputs[name].shape: r.node for r in results}
    if len(shapes) > 1:
        shown = ", ".join(f"{list(shape)} on {node}" for shape, node in sorted(shapes.items()))
        raise PatternError(
            "INVALID_ARGUMENT",
            f"output {name!r} has different shapes: {shown}",
            "Values are combined element by element. If axis 0 is the batch axis, give batch_axis when the model is added.",
        )
    return np.stack([r.outputs[name].astype(np.float64) for r in results])


def concat(results: Sequence[TaskResult], batched: frozenset[str]) -> tuple[dict[str, Array], list[str]]:
    """Rows of every batched output one after the other, in the order of ``results``; the names of outputs
    without the batch axis come second. Raises `PatternError` on rows that do not fit together."""
    out: dict[str, Array] = {}
    left_out: list[str] = []
    for name in _names(results):
        if name not in batched:
            left_out.append(name)
            continue
        _require(name, results)
        out[name] = _joined(name, results)
    if not out:
        raise PatternError(
            "INVALID_ARGUMENT",
            "no output has the batch axis, so there are no rows to put together",
            "Give batch_axis when the model is added.",
        )
    return out, left_out


def _joined(name: str, results: Sequence[TaskResult]) -> Array:
    arrays = [r.outputs[name] for r in results]
    for r, array in zip(results, arrays, strict=True):
        if array.ndim == 0 or array.shape[0] != r.rows:
            raise PatternError("INVALID_ARGUMENT", f"output {name!r} of node {r.node} is {list(array.shape)} where {r.rows} rows went in")
    tails = sorted({a.shape[1:] for a in arrays})
    if len(tails) > 1:
        shown = " and ".join(str(list(t)) for t in tails)
        raise PatternError("INVALID_ARGUMENT", f"rows of output {name!r} have different shapes: {shown}")
    if len({is_real(a) for a in arrays}) > 1:
        raise PatternError("INVALID_ARGUMENT", f"output {name!r} is made of numbers on some nodes and not on others")
    return np.concatenate(arrays, axis=0)


def count_classes(results: Sequence[TaskResult]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Sum the nodes' class counts: outputs ``class`` (sorted) and ``counts``; details name the winner
    (of several the smallest), the tie if there is one, and rows without a vote."""
    for name in (CLASS, COUNTS):
        _require(name, results)
    for r in results:
        if r.outputs[CLASS].ndim != 1 or r.outputs[CLASS].shape != r.outputs[COUNTS].shape:
            raise PatternError("INVALID_ARGUMENT", f"class counts of node {r.node} do not fit together")
    classes = np.concatenate(alike([r.outputs[CLASS] for r in results if r.outputs[CLASS].size] or [results[0].outputs[CLASS]]))
    counts = np.concatenate([r.outputs[COUNTS] for r in results]).astype(np.int64)
    unique, where = np.unique(classes, return_inverse=True)
    total = np.zeros(len(unique), dtype=np.int64)
    np.add.at(total, where, counts)
    if not total.sum() > 0:
        raise PatternError("INVALID_ARGUMENT", "no row has a vote")
    top = unique[total == total.max()].tolist()
    details: dict[str, Any] = {
        "winner": top[0],
        "agreement": float(total.max() / total.sum()),
        "ties": top if len(top) > 1 else [],
        "without_vote": int(sum(r.rows for r in results) - total.sum()),
    }
    return {CLASS: unique, COUNTS: total}, details
