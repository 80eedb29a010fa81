"""MIL operators that work value by value, and reductions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loaders.coreml.mil import Operation
from loaders.coreml.program import Handler, Translation, Unsupported, out
from loaders.onnx_writer import ONNX_TYPES


def _unary(name: str) -> Handler:
    def handler(t: Translation, op: Operation) -> None:
        t.graph.node(name, [t.tensor(op)], out(op))

    return handler


def _binary(name: str) -> Handler:
    def handler(t: Translation, op: Operation) -> None:
        t.graph.node(name, [t.tensor(op, "x"), t.tensor(op, "y")], out(op))

    return handler


def _negated(name: str) -> Handler:
    def handler(t: Translation, op: Operation) -> None:
        t.graph.node("Not", [t.graph.node(name, [t.tensor(op, "x"), t.tensor(op, "y")])], out(op))

    return handler


def _reduction(name: str) -> Handler:
    """MIL's reductions: ``axes`` (all if left out), ``keep_dims``."""

    def handler(t: Translation, op: Operation) -> None:
        axes = t.integers(op, "axes", range(t.rank(op)))
        keep = int(t.flag(op, "keep_dims"))
        if name == "ReduceSum":  # the only one that takes its axes as an input in this operator set
            t.graph.node(name, [t.tensor(op), t.long(axes)], out(op), keepdims=keep)
        else:
            t.graph.node(name, [t.tensor(op)], out(op), axes=axes, keepdims=keep)

    return handler


def _arg(name: str) -> Handler:
    def handler(t: Translation, op: Operation) -> None:
        found = t.graph.node(name, [t.tensor(op)], axis=t.integer(op, "axis", -1), keepdims=int(t.flag(op, "keep_dims")))
        t.cast(found, op.outputs[0][1].dtype, out(op))

    return handler


def _activation(name: str, **parameters: tuple[str, float]) -> Handler:
    """An ONNX attribute from a MIL parameter with its default."""

    def handler(t: Translation, op: Operation) -> None:
        attributes: dict[str, Any] = {attribute: t.number(op, parameter, default) for attribute, (parameter, default) in parameters.items()}
        t.graph.node(name, [t.tensor(op)], out(op), **attributes)

    return handler


def _with_epsilon(name: str, default: float) -> Handler:
    """log, rsqrt and inverse add ``epsilon`` first."""

    def handler(t: Translation, op: Operation) -> None:
        x, epsilon = t.tensor(op), t.number(op, "epsilon", default)
        if epsilon:
            x = t.graph.node("Add", [x, t.scalar(epsilon, t.kind(op).dtype)])
        if name == "Rsqrt":
            t.graph.node("Reciprocal", [t.graph.node("Sqrt", [x])], out(op))
        else:
            t.graph.node(name, [x], out(op))

    return handler


def _clip(low: str | float, high: str | float) -> Handler:
    def handler(t: Translation, op: Operation) -> None:
        dtype = t.kind(op).dtype
        bounds = [t.number(op, b, math.nan) if isinstance(b, str) else b for b in (low, high)]
        t.graph.node("Clip", [t.tensor(op), *(t.scalar(b, dtype) for b in bounds)], out(op))

    return handler


def _gelu(t: Translation, op: Operation) -> None:
    x, dtype, g = t.tensor(op), t.kind(op).dtype, t.graph
    mode = t.text(op, "mode", "EXACT")
    if mode == "EXACT":
        inner = g.node("Erf", [g.node("Mul", [x, t.scalar(math.sqrt(0.5), dtype)])])
    elif mode == "TANH_APPROXIMATION":
        cube = g.node("Mul", [g.node("Mul", [x, g.node("Mul", [x, x])]), t.scalar(0.044715, dtype)])
        inner = g.node("Tanh", [g.node("Mul", [g.node("Add", [x, cube]), t.scalar(math.sqrt(2 / math.pi), dtype)])])
    elif mode == "SIGMOID_APPROXIMATION":
        g.node("Mul", [x, g.node("Sigmoid", [g.node("Mul", [x, t.scalar(1.702, dtype)])])], out(op))
        return
    else:
        raise Unsupported(f"gelu of mode {mode[:32]}")
    half = g.node("Mul", [x, t.scalar(0.5, dtype)])
    g.node("Mul", [half, g.node("Add", [inner, t.scalar(1, dtype)])], out(op))


def _silu(t: Translation, op: Operation) -> None:
    t.graph.node("Mul", [t.tensor(op), t.graph.node("Sigmoid", [t.tensor(op)])], out(op))


def _square(t: Translation, op: Operation) -> None:
    t.graph.node("Mul", [t.tensor(op), t.tensor(op)], out(op))


def _exp2(t: Translation, op: Operation) -> None:
    t.graph.node("Pow", [t.scalar(2, t.kind(op).dtype), t.tensor(op)], out(op))


def _threshold(t: Translation, op: Operation) -> None:
    t.graph.node("Max", [t.tensor(op), t.scalar(t.number(op, "alpha", 0), t.kind(op).dtype)], out(op))


def _scaled_tanh(t: Translation, op: Operation) -> None:
    dtype = t.kind(op).dtype
    inner = t.graph.node("Tanh", [t.graph.node("Mul", [t.tensor(op), t.scalar(t.number(op, "beta", 1), dtype)])])
    t.graph.node("Mul", [inner, t.scalar(t.number(op, "alpha", 1), dtype)], out(op))


def _linear_activation(t: Translation, op: Operation) -> None:
    dtype = t.kind(op).dtype
    scaled = t.graph.node("Mul", [t.tensor(op), t.scalar(t.number(op, "alpha", 1), dtype)])
    t.graph.node("Add", [scaled, t.scalar(t.number(op, "beta", 0), dtype)], out(op))


def _clamped_relu(t: Translation, op: Operation) -> None:
    dtype = t.kind(op).dtype
    leaky = t.graph.node("LeakyRelu", [t.tensor(op)], alpha=t.number(op, "alpha", 0))
    t.graph.node("Min", [leaky, t.scalar(t.number(op, "beta", math.inf), dtype)], out(op))


def _prelu(t: Translation, op: Operation) -> None:
    slopes = t.constant(op, "alpha")
    if slopes is None:
        raise Unsupported("prelu with an alpha that is computed")
    t.graph.node("PRelu", [t.tensor(op), t.graph.constant(slopes.reshape(-1, *[1] * (t.rank(op) - 2)))], out(op))


def _is_integer(dtype: str) -> bool:
    return dtype.startswith(("int", "uint"))


def _floor_divide(t: Translation, op: Operation) -> str:
    """Rounds down also where ONNX's integer division rounds towards zero."""
    dtype, g = t.kind(op).dtype, t.graph
    x, y = t.tensor(op, "x"), t.tensor(op, "y")
    if _is_integer(dtype):
        wide = g.node("Div", [t.cast(x, "float64"), t.cast(y, "float64")])
        return t.cast(g.node("Floor", [wide]), dtype)
    return g.node("Floor", [g.node("Div", [x, y])])


def _floor_div(t: Translation, op: Operation) -> None:
    t.graph.node("Identity", [_floor_divide(t, op)], out(op))


def _mod(t: Translation, op: Operation) -> None:
    """The sign of the divisor, as Python has it."""
    g = t.graph
    g.node("Sub", [t.tensor(op, "x"), g.node("Mul", [_floor_divide(t, op), t.tensor(op, "y")])], out(op))


def _real_div(t: Translation, op: Operation) -> None:
    x, y, dtype = t.tensor(op, "x"), t.tensor(op, "y"), op.outputs[0][1].dtype
    if _is_integer(t.kind(op).dtype) and not _is_integer(dtype):
        x, y = t.cast(x, dtype), t.cast(y, dtype)
    t.graph.node("Div", [x, y], out(op))


def _cast(t: Translation, op: Operation) -> None:
    names = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bool": "bool"}
    wanted = t.text(op, "dtype", "")
    dtype = names.get(wanted, wanted)
    if dtype not in ONNX_TYPES or dtype == "str":
        raise Unsupported(f"cast to {wanted[:16]}")
    t.cast(t.tensor(op), dtype, out(op))


def _select(t: Translation, op: Operation) -> None:
    t.graph.node("Where", [t.tensor(op, "cond"), t.tensor(op, "a"), t.tensor(op, "b")], out(op))


def _softmax(t: Translation, op: Operation) -> None:
    t.graph.node("Softmax", [t.tensor(op)], out(op), axis=t.integer(op, "axis", -1))


def _cumsum(t: Translation, op: Operation) -> None:
    axis = t.graph.constant(np.asarray(t.integer(op, "axis", 0), np.int64))
    flags: dict[str, Any] = {"exclusive": int(t.flag(op, "exclusive")), "reverse": int(t.flag(op, "reverse"))}
    t.graph.node("CumSum", [t.tensor(op), axis], out(op), **flags)


def _quantize(t: Translation, op: Operation) -> None:
    """``round(x / scale) + zero_point``, within the range of the type."""
    dtype = op.outputs[0][1].dtype
    t.graph.node("QuantizeLinear", [t.tensor(op, "input"), *_scale(t, op, dtype)], out(op), axis=t.integer(op, "axis", 0))


def _dequantize(t: Translation, op: Operation) -> None:
    dtype = t.kind(op, "input").dtype
    t.graph.node("DequantizeLinear", [t.tensor(op, "input"), *_scale(t, op, dtype)], out(op), axis=t.integer(op, "axis", 0))


def _scale(t: Translation, op: Operation, dtype: str) -> list[str]:
    scale = t.constant(op, "scale")
    if scale is None or scale.dtype != np.float32:
        raise Unsupported(f"{op.type} with a scale that is not a constant of 32 bits")
    zero = t.constant(op, "zero_point")
    return [t.graph.constant(scale), t.graph.constant(np.zeros(scale.shape, dtype) if zero is None else zero.astype(dtype))]


UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "erf": "Erf", "sqrt": "Sqrt", "abs": "Abs", "ceil": "Ceil",
    "floor": "Floor", "round": "Round", "sign": "Sign", "sin": "Sin", "cos": "Cos", "tan": "Tan", "sinh": "Sinh", "cosh": "Cosh",
    "asin": "Asin", "acos": "Acos", "atan": "Atan", "atanh": "Atanh", "softplus": "Softplus",
    "softsign": "Softsign", "logical_not": "Not", "identity": "Identity",
}  # fmt: skip
BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "pow": "Pow", "maximum": "Max", "minimum": "Min", "equal": "Equal", "less": "Less",
    "less_equal": "LessOrEqual", "greater": "Greater", "greater_equal": "GreaterOrEqual", "logical_and": "And", "logical_or": "Or",
    "logical_xor": "Xor",
}  # fmt: skip
REDUCTIONS = {
    "reduce_mean": "ReduceMean", "reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_prod": "ReduceProd",
    "reduce_l1_norm": "ReduceL1", "reduce_l2_norm": "ReduceL2", "reduce_log_sum": "ReduceLogSum", "reduce_log_sum_exp": "ReduceLogSumExp",
    "reduce_sum_square": "ReduceSumSquare",
}  # fmt: skip
HANDLERS: dict[str, Handler] = {
    **{name: _unary(onnx) for name, onnx in UNARY.items()},
    **{name: _binary(onnx) for name, onnx in BINARY.items()},
    **{name: _reduction(onnx) for name, onnx in REDUCTIONS.items()},
    "not_equal": _negated("Equal"),
    "reduce_argmax": _arg("ArgMax"),
    "reduce_argmin": _arg("ArgMin"),
    "elu": _activation("Elu", alpha=("alpha", 1)),
    "leaky_relu": _activation("LeakyRelu", alpha=("alpha", 0.01)),
    "sigmoid_hard": _activation("HardSigmoid", alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "thresholded_relu": _activation("ThresholdedRelu", alpha=("alpha", 1)),
    "relu6": _clip(0.0, 6.0),
    "clip": _clip("alpha", "beta"),
    "log": _with_epsilon("Log", 1e-45),
    "rsqrt": _with_epsilon("Rsqrt", 1e-12),
    "inverse": _with_epsilon("Reciprocal", 1e-4),
    "gelu": _gelu,
    "silu": _silu,
    "square": _square,
    "exp2": _exp2,
    "threshold": _threshold,
    "scaled_tanh": _scaled_tanh,
    "linear_activation": _linear_activation,
    "clamped_relu": _clamped_relu,
    "prelu": _prelu,
    "floor_div": _floor_div,
    "mod": _mod,
    "real_div": _real_div,
    "cast": _cast,
    "select": _select,
    "softmax": _softmax,
    "cumsum": _cumsum,
    "quantize": _quantize,
    "dequantize": _dequantize,
}
