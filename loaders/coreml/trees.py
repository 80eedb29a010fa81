"""CoreML's tree ensembles and generalised linear models as ONNX.

Field numbers are those of TreeEnsemble.proto, GLMClassifier.proto and GLMRegressor.proto. CoreML compares in float64
and ONNX's trees in float32: thresholds are rounded *down* to float32, so that every float32 input falls on the same
side (``x <= v`` holds for a float32 x exactly if ``x <= floor32(v)``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loaders.api import Array, ModelRejected
from loaders.coreml.program import Unsupported
from loaders.onnx_writer import GraphWriter
from loaders.protobuf import Message

_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
_LEAF = 6
MAX_NODES = 10_000_000


@dataclass(frozen=True, slots=True)
class Feature:
    """One input or output of the model's description."""

    name: str
    dtype: str
    width: int


@dataclass(slots=True)
class _Nodes:
    """ONNX's parallel lists of a tree ensemble."""

    lists: dict[str, list[Any]] = field(default_factory=lambda: {f"nodes_{n}": [] for n in (
        "treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "missing_value_tracks_true",
    )})  # fmt: skip
    leaves: list[tuple[int, int, int, float]] = field(default_factory=list[tuple[int, int, int, float]])
    """(tree, node, dimension, weight)"""


def floor32(value: float) -> float:
    """The largest float32 that is not above."""
    with np.errstate(over="ignore"):
        near = np.float32(value)
    return float(near if float(near) <= value else np.nextafter(near, np.float32(-np.inf)))


def tree_classifier(model: Message, inputs: list[Feature], outputs: list[Feature]) -> bytes:
    """Outputs: the label [N], the probabilities [N, C]."""
    ensemble = model.message(1)
    nodes, base = _nodes(ensemble), _base(ensemble)
    labels = _labels(model)
    transform = {0: "NONE", 1: "SOFTMAX", 2: "LOGISTIC", 3: "SOFTMAX_ZERO"}.get(model.integer(2))
    count = len(labels)
    if transform is None or transform == "SOFTMAX_ZERO":
        raise Unsupported("a tree ensemble with this transform of its scores")
    g = GraphWriter()
    x = _inputs(g, inputs)
    scores = _regression(g, nodes, base, x, len(base))
    if len(base) == 1 and count == 2:  # one score, of the second class
        probability = g.node("Sigmoid", [scores]) if transform == "LOGISTIC" else scores
        scores = g.node("Concat", [g.node("Sub", [g.constant(np.float32(1)), probability]), probability], axis=1)
    elif len(base) != count:
        raise ModelRejected("the tree ensemble has another number of scores than of classes")
    elif transform == "SOFTMAX":
        scores = g.node("Softmax", [scores], axis=1)
    elif transform == "LOGISTIC":
        scores = g.node("Sigmoid", [scores])
    _classes(g, scores, labels, outputs)
    return g.model()


def tree_regressor(model: Message, inputs: list[Feature], outputs: list[Feature]) -> bytes:
    ensemble = model.message(1)
    nodes, base = _nodes(ensemble), _base(ensemble)
    transform = model.integer(2)
    if transform not in (0, 2):
        raise Unsupported("a tree ensemble with this transform of its scores")
    g = GraphWriter()
    value = _regression(g, nodes, base, _inputs(g, inputs), len(base))
    _values(g, g.node("Sigmoid", [value]) if transform == 2 else value, outputs, len(base))
    return g.model()


def linear_regressor(model: Message, inputs: list[Feature], outputs: list[Feature]) -> bytes:
    g = GraphWriter()
    weights, offsets = _weights(model)
    value = _linear(g, _inputs(g, inputs), weights, offsets)
    transform = model.integer(3)
    if transform not in (0, 1):
        raise Unsupported("a generalised linear model with a probit transform")
    _values(g, g.node("Sigmoid", [value]) if transform == 1 else value, outputs, len(weights))
    return g.model()


def linear_classifier(model: Message, inputs: list[Feature], outputs: list[Feature]) -> bytes:
    """Of two classes with a reference class, or one against the rest. Probabilities sum to 1."""
    if model.integer(3) != 0:
        raise Unsupported("a generalised linear model with a probit transform")
    labels = _labels(model)
    weights, offsets = _weights(model)
    g = GraphWriter()
    scores = _linear(g, _inputs(g, inputs), weights, offsets)
    if model.integer(4) == 1:  # one against the rest
        if len(weights) != len(labels):
            raise ModelRejected("the linear model has another number of scores than of classes")
        each = g.node("Sigmoid", [scores])
        probabilities = g.node("Div", [each, g.node("ReduceSum", [each, g.constant(np.array([1], np.int64))], keepdims=1)])
    else:
        if len(weights) != len(labels) - 1:
            raise ModelRejected("the linear model has another number of scores than of classes")
        # the first class is the reference: its score is 0
        zero = g.node(
            "Mul", [g.node("Slice", [scores, *(g.constant(np.array([n], np.int64)) for n in (0, 1, 1))]), g.constant(np.float32(0))]
        )
        probabilities = g.node("Softmax", [g.node("Concat", [zero, scores], axis=1)], axis=1)
    _classes(g, probabilities, labels, outputs)
    return g.model()


# --- parts ---------------------------------------------------------------------------------------


def _nodes(ensemble: Message) -> _Nodes:
    out = _Nodes()
    found = ensemble.messages(1)
    if not 0 < len(found) <= MAX_NODES:
        raise ModelRejected("the tree ensemble has no nodes, or too many")
    for node in found:
        tree, number, behaviour = node.integer(1), node.integer(2), node.integer(3)
        leaf = behaviour == _LEAF
        if not leaf and not 0 <= behaviour < len(_MODES):
            raise Unsupported("a tree ensemble with branches of an unknown kind")
        _add(out, tree, number, "LEAF" if leaf else _MODES[behaviour], node)
        out.leaves += [(tree, number, e.integer(1), e.double(2)) for e in node.messages(20)] if leaf else []
    return out


def _add(out: _Nodes, tree: int, number: int, mode: str, node: Message) -> None:
    leaf = mode == "LEAF"
    row = {
        "treeids": tree, "nodeids": number, "modes": mode, "featureids": 0 if leaf else node.integer(10),
        "values": 0.0 if leaf else _threshold(mode, node.double(11)), "truenodeids": 0 if leaf else node.integer(12),
        "falsenodeids": 0 if leaf else node.integer(13), "missing_value_tracks_true": node.integer(14),
    }  # fmt: skip
    for name, value in row.items():
        out.lists[f"nodes_{name}"].append(value)


def _threshold(mode: str, value: float) -> float:
    """``<=`` and ``>`` split above the rounded-down value; ``<`` and ``>=`` below the next one, unless it is exact."""
    low = floor32(value)
    if mode in ("BRANCH_LEQ", "BRANCH_GT") or low == value:
        return low
    if mode in ("BRANCH_LT", "BRANCH_GTE"):
        return float(np.nextafter(np.float32(low), np.float32(np.inf)))
    return math.nan  # no float32 equals it


def _base(ensemble: Message) -> list[float]:
    dimensions = ensemble.integer(2)
    found = np.frombuffer(ensemble.wide(3), "<f8").tolist()
    if not 0 < dimensions <= 1_000_000 or len(found) not in (0, 1, dimensions):
        raise ModelRejected("the tree ensemble is malformed")
    return found * dimensions if len(found) == 1 else found or [0.0] * dimensions


def _regression(g: GraphWriter, nodes: _Nodes, base: list[float], x: str, dimensions: int) -> str:
    if any(not 0 <= leaf[2] < dimensions for leaf in nodes.leaves):
        raise ModelRejected("the tree ensemble is malformed")
    targets: dict[str, Any] = {
        f"target_{name}": [leaf[i] for leaf in nodes.leaves] for i, name in enumerate(("treeids", "nodeids", "ids", "weights"))
    }
    return g.node(
        "TreeEnsembleRegressor", [x], domain="ai.onnx.ml", n_targets=dimensions, base_values=[float(b) for b in base],
        aggregate_function="SUM", post_transform="NONE", **nodes.lists, **targets,
    )  # fmt: skip


def _labels(model: Message) -> Array:
    """Strings or int64."""
    if 100 in model:
        return np.array(model.message(100).texts(1), dtype=object)
    return np.array(model.message(101).integers(1), dtype=np.int64)


def _weights(model: Message) -> tuple[Array, Array]:
    rows = [np.frombuffer(row.wide(1), "<f8") for row in model.messages(1)]
    offsets = np.frombuffer(model.wide(2), "<f8")
    if not rows or len({r.size for r in rows}) != 1 or offsets.size not in (0, len(rows)):
        raise ModelRejected("the linear model is malformed")
    return np.stack(rows), offsets if offsets.size else np.zeros(len(rows))


def _linear(g: GraphWriter, x: str, weights: Array, offsets: Array) -> str:
    product = g.node("MatMul", [g.node("Cast", [x], to=11), g.constant(weights.T)])
    return g.node("Cast", [g.node("Add", [product, g.constant(offsets)])], to=1)


def _inputs(g: GraphWriter, inputs: list[Feature]) -> str:
    """One matrix of float32 [N, width] from the model's inputs, side by side in their order."""
    parts: list[str] = []
    for f in inputs:
        g.input(f.name, "float32", ["batch", f.width])
        parts.append(f.name)
    return parts[0] if len(parts) == 1 else g.node("Concat", parts, axis=1)


def _values(g: GraphWriter, value: str, outputs: list[Feature], width: int) -> None:
    if len(outputs) != 1:
        raise Unsupported("a regressor with more than one output")
    g.node("Identity", [value], outputs[0].name)
    g.output(outputs[0].name, "float32", ["batch", width])


def _classes(g: GraphWriter, probabilities: str, labels: Array, outputs: list[Feature]) -> None:
    if len(labels) < 2:
        raise ModelRejected("the classifier has fewer than two classes")
    label, scores = _output_names(outputs)
    g.node("Gather", [g.constant(labels), g.node("ArgMax", [probabilities], axis=1, keepdims=0)], label)
    g.output(label, "str" if labels.dtype.kind == "O" else "int64", ["batch"])
    g.node("Identity", [probabilities], scores)
    g.output(scores, "float32", ["batch", len(labels)])


def _output_names(outputs: list[Feature]) -> tuple[str, str]:
    """(label, probabilities): the dictionary is the one with probabilities; it leaves as a tensor here."""
    scores = next((f.name for f in outputs if f.dtype == "dict"), "probabilities")
    label = next((f.name for f in outputs if f.dtype != "dict"), "label")
    return label, scores
