"""MIL operators that hold weights, and what stands around them: convolution, pooling, products, normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loaders.api import Array, ModelRejected
from loaders.coreml.mil import Operation
from loaders.coreml.program import Handler, Translation, Unsupported, out


def _weight(t: Translation, op: Operation, name: str = "weight") -> Array:
    found = t.constant(op, name)
    if found is None:
        raise Unsupported(f"{op.type} with a {name} that is computed")
    return found


def _pads(t: Translation, op: Operation, axes: int) -> dict[str, Any]:
    kind = t.text(op, "pad_type", "valid")
    if kind == "valid":
        return {}
    if kind == "custom":
        pads = t.integers(op, "pad", [0] * 2 * axes)
        return {"pads": [*pads[0::2], *pads[1::2]]}
    if kind not in ("same", "same_lower"):
        raise Unsupported(f"{op.type} with padding {kind[:16]}")
    return {"auto_pad": "SAME_UPPER" if kind == "same" else "SAME_LOWER"}


def _conv(t: Translation, op: Operation) -> None:
    axes = t.rank(op) - 2
    inputs = [t.tensor(op), t.tensor(op, "weight")]
    if t.has(op, "bias"):
        inputs.append(t.tensor(op, "bias"))
    attributes = {"strides": t.integers(op, "strides", [1] * axes), "dilations": t.integers(op, "dilations", [1] * axes)}
    t.graph.node("Conv", inputs, out(op), group=t.integer(op, "groups", 1), **attributes, **_pads(t, op, axes))


def _conv_transpose(t: Translation, op: Operation) -> None:
    axes = t.rank(op) - 2
    inputs = [t.tensor(op), t.tensor(op, "weight")]
    if t.has(op, "bias"):
        inputs.append(t.tensor(op, "bias"))
    attributes: dict[str, Any] = {"strides": t.integers(op, "strides", [1] * axes), "dilations": t.integers(op, "dilations", [1] * axes)}
    shape = t.integers(op, "output_shape", ())
    if shape:
        attributes["output_shape"] = shape[-axes:]
    t.graph.node("ConvTranspose", inputs, out(op), group=t.integer(op, "groups", 1), **attributes, **_pads(t, op, axes))


def _pool(t: Translation, op: Operation) -> None:
    sizes = t.integers(op, "kernel_sizes")
    attributes: dict[str, Any] = {"kernel_shape": sizes, "strides": t.integers(op, "strides", [1] * len(sizes)), **_pads(t, op, len(sizes))}
    if t.flag(op, "ceil_mode"):
        attributes["ceil_mode"] = 1
    if op.type == "max_pool":
        t.graph.node("MaxPool", [t.tensor(op)], out(op), **attributes)
    else:
        inside = int(not t.flag(op, "exclude_padding_from_average"))
        t.graph.node("AveragePool", [t.tensor(op)], out(op), count_include_pad=inside, **attributes)


def _linear(t: Translation, op: Operation) -> None:
    """``x @ weight.T + bias``, on the last axis."""
    weight = t.constant(op, "weight")
    turned = t.graph.constant(weight.T) if weight is not None else t.graph.node("Transpose", [t.tensor(op, "weight")], perm=[1, 0])
    if not t.has(op, "bias"):
        t.graph.node("MatMul", [t.tensor(op), turned], out(op))
        return
    t.graph.node("Add", [t.graph.node("MatMul", [t.tensor(op), turned]), t.tensor(op, "bias")], out(op))


def _matmul(t: Translation, op: Operation) -> None:
    sides = [_turned(t, op, "x", "transpose_x"), _turned(t, op, "y", "transpose_y")]
    t.graph.node("MatMul", sides, out(op))


def _turned(t: Translation, op: Operation, name: str, flag: str) -> str:
    value, rank = t.tensor(op, name), t.rank(op, name)
    if not t.flag(op, flag) or rank < 2:
        return value
    return t.graph.node("Transpose", [value], perm=[*range(rank - 2), rank - 1, rank - 2])


def _einsum(t: Translation, op: Operation) -> None:
    t.graph.node("Einsum", t.tensors(op, "values"), out(op), equation=t.text(op, "equation", ""))


def _batch_norm(t: Translation, op: Operation) -> None:
    mean, variance = _weight(t, op, "mean"), _weight(t, op, "variance")
    gamma, beta = t.constant(op, "gamma"), t.constant(op, "beta")
    gamma = np.ones_like(mean) if gamma is None else gamma
    beta = np.zeros_like(mean) if beta is None else beta
    values = [t.graph.constant(v) for v in (gamma, beta, mean, variance)]
    t.graph.node("BatchNormalization", [t.tensor(op), *values], out(op), epsilon=t.number(op, "epsilon", 1e-5))


def _instance_norm(t: Translation, op: Operation) -> None:
    channels = t.kind(op).shape[1]
    if channels is None:
        raise Unsupported("instance_norm over an unknown number of channels")
    dtype = t.kind(op).dtype
    gamma, beta = t.constant(op, "gamma"), t.constant(op, "beta")
    values = [np.ones(channels, dtype) if gamma is None else gamma, np.zeros(channels, dtype) if beta is None else beta]
    t.graph.node("InstanceNormalization", [t.tensor(op), *map(t.graph.constant, values)], out(op), epsilon=t.number(op, "epsilon", 1e-5))


def _layer_norm(t: Translation, op: Operation) -> None:
    """Over any axes: ``(x - mean) / sqrt(variance + epsilon) * gamma + beta``."""
    rank, dtype, g, x = t.rank(op), t.kind(op).dtype, t.graph, t.tensor(op)
    axes = [n % rank for n in t.integers(op, "axes", [rank - 1])]
    centred = g.node("Sub", [x, g.node("ReduceMean", [x], axes=axes, keepdims=1)])
    variance = g.node("ReduceMean", [g.node("Mul", [centred, centred])], axes=axes, keepdims=1)
    spread = g.node("Sqrt", [g.node("Add", [variance, t.scalar(t.number(op, "epsilon", 1e-5), dtype)])])
    y = g.node("Div", [centred, spread])
    for name, node in (("gamma", "Mul"), ("beta", "Add")):
        if t.has(op, name):
            y = g.node(node, [y, g.constant(_over_axes(_weight(t, op, name), axes, rank))])
    g.node("Identity", [y], out(op))


def _over_axes(values: Array, axes: list[int], rank: int) -> Array:
    """gamma and beta have the normalised axes only, in their order."""
    if axes != sorted(axes) or values.ndim != len(axes):
        raise Unsupported("layer_norm over axes out of order")
    sizes = iter(values.shape)
    return values.reshape([next(sizes) if axis in axes else 1 for axis in range(min(axes), rank)])


def _l2_norm(t: Translation, op: Operation) -> None:
    """Over the last three axes: ``x / sqrt(sum(x²) + epsilon)``."""
    g, x, rank = t.graph, t.tensor(op), t.rank(op)
    squares = g.node("ReduceSumSquare", [x], axes=list(range(max(0, rank - 3), rank)), keepdims=1)
    g.node("Div", [x, g.node("Sqrt", [g.node("Add", [squares, t.scalar(t.number(op, "epsilon", 1e-6), t.kind(op).dtype)])])], out(op))


def _local_response_norm(t: Translation, op: Operation) -> None:
    attributes: dict[str, Any] = {"alpha": t.number(op, "alpha", 1e-4), "beta": t.number(op, "beta", 0.75), "bias": t.number(op, "k", 1)}
    t.graph.node("LRN", [t.tensor(op)], out(op), size=t.integer(op, "size"), **attributes)


def _attention(t: Translation, op: Operation) -> None:
    g, kind, rank = t.graph, t.kind(op, "query"), t.rank(op, "key")
    width = kind.shape[-1]
    if width is None:
        raise Unsupported("scaled_dot_product_attention of an unknown width")
    turned = g.node("Transpose", [t.tensor(op, "key")], perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = g.node("Mul", [g.node("MatMul", [t.tensor(op, "query"), turned]), t.scalar(1 / math.sqrt(width), kind.dtype)])
    if t.has(op, "attn_mask"):
        mask = t.tensor(op, "attn_mask")
        if t.kind(op, "attn_mask").dtype == "bool":
            mask = g.node("Where", [mask, t.scalar(0, kind.dtype), t.scalar(-30000 if kind.dtype == "float16" else -1e30, kind.dtype)])
        scores = g.node("Add", [scores, mask])
    g.node("MatMul", [g.node("Softmax", [scores], axis=-1), t.tensor(op, "value")], out(op))


def _upsample_nearest(t: Translation, op: Operation) -> None:
    _scale(t, op, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _upsample_bilinear(t: Translation, op: Operation) -> None:
    _scale(t, op, mode="linear", coordinate_transformation_mode="align_corners" if t.flag(op, "align_corners", True) else "half_pixel")


def _scale(t: Translation, op: Operation, **attributes: str) -> None:
    factors = [t.number(op, f"scale_factor_{axis}", 1) for axis in ("height", "width")]
    scales = t.graph.constant(np.array([1] * (t.rank(op) - 2) + factors, np.float32))
    t.graph.node("Resize", [t.tensor(op), "", scales], out(op), **attributes)


_SAMPLING = {
    "STRICT_ALIGN_CORNERS": "align_corners", "ALIGN_CORNERS": "align_corners", "DEFAULT": "asymmetric", "UNALIGN_CORNERS": "half_pixel",
}  # fmt: skip


def _resize_bilinear(t: Translation, op: Operation) -> None:
    mode = _SAMPLING.get(t.text(op, "sampling_mode", "DEFAULT"))
    shape = op.outputs[0][1].shape
    if mode is None or any(n is None for n in shape):
        raise Unsupported("resize_bilinear of this sampling mode or of an unknown size")
    t.graph.node(
        "Resize", [t.tensor(op), "", "", t.long([n or 0 for n in shape])], out(op), mode="linear", coordinate_transformation_mode=mode
    )


def _resize_nearest(t: Translation, op: Operation) -> None:
    shape = op.outputs[0][1].shape
    if any(n is None for n in shape):
        raise Unsupported("resize_nearest_neighbor to an unknown size")
    size = t.long([n or 0 for n in shape])
    t.graph.node(
        "Resize", [t.tensor(op), "", "", size], out(op), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


def _lstm(t: Translation, op: Operation) -> None:
    """Gates are i, f, o, z in MIL and i, o, f, c in ONNX; states have both directions side by side in MIL."""
    direction = t.text(op, "direction", "forward")
    sides = ["", "_back"] if direction == "bidirectional" else [""]
    if direction not in ("forward", "reverse", "bidirectional") or t.has(op, "peephole") or t.has(op, "clip"):
        raise Unsupported("lstm with peepholes, clipping or an unknown direction")
    _plain_activations(t, op)
    parts = [[_gates(_weight(t, op, name + side)) for side in sides] for name in ("weight_ih", "weight_hh")]
    hidden = parts[1][0].shape[1]
    biases = [_bias(t, op, "bias" + side, hidden) for side in sides]
    g, dtype = t.graph, t.kind(op).dtype
    states = [_initial(t, op, name, len(sides), hidden) for name in ("initial_h", "initial_c")]
    weights = [g.constant(np.stack(p).astype(dtype)) for p in parts]
    inputs = [t.tensor(op), *weights, g.constant(np.stack(biases).astype(dtype)), "", *states]
    every, last_h, last_c = g.fresh(), g.fresh(), g.fresh()
    g.node("LSTM", inputs, [every, last_h, last_c], hidden_size=hidden, direction=direction)
    _sequence(t, op, every, last_h, len(sides) * hidden)
    for value, (name, _) in zip((last_h, last_c), op.outputs[1:], strict=False):
        g.node("Reshape", [g.node("Transpose", [value], perm=[1, 0, 2]), t.long([0, len(sides) * hidden])], name)


def _plain_activations(t: Translation, op: Operation) -> None:
    for name, plain in (("recurrent_activation", "sigmoid"), ("cell_activation", "tanh"), ("activation", "tanh")):
        if t.text(op, name, plain) != plain:
            raise Unsupported(f"lstm with another {name} than {plain}")


def _gates(weight: Array) -> Array:
    if weight.shape[0] % 4:
        raise ModelRejected("the weights of an lstm have another shape than its gates")
    i, f, o, z = np.split(weight, 4)
    return np.concatenate([i, o, f, z])


def _bias(t: Translation, op: Operation, name: str, hidden: int) -> Array:
    """MIL has one bias, ONNX one for the input and one for the state."""
    found = _gates(_weight(t, op, name)) if t.has(op, name) else np.zeros(4 * hidden, np.float32)
    return np.concatenate([found, np.zeros_like(found)])


def _initial(t: Translation, op: Operation, name: str, sides: int, hidden: int) -> str:
    split = t.graph.node("Reshape", [t.tensor(op, name), t.long([0, sides, hidden])])
    return t.graph.node("Transpose", [split], perm=[1, 0, 2])


def _sequence(t: Translation, op: Operation, every: str, last: str, width: int) -> None:
    """ONNX gives [time, directions, batch, hidden]; MIL wants [time, batch, directions * hidden], or the last step."""
    g = t.graph
    if t.flag(op, "output_sequence"):
        g.node("Reshape", [g.node("Transpose", [every], perm=[0, 2, 1, 3]), t.long([0, 0, width])], out(op))
    else:
        g.node("Reshape", [g.node("Transpose", [last], perm=[1, 0, 2]), t.long([1, -1, width])], out(op))


def _classify(t: Translation, op: Operation) -> None:
    """The likeliest class by its label; the probabilities stay a tensor instead of becoming a dictionary."""
    labels = np.asarray(t.value(op, "classes")).reshape(-1)
    flat = t.graph.node("Reshape", [t.tensor(op, "probabilities"), t.long([-1])])
    best = t.graph.node("ArgMax", [flat], axis=0, keepdims=0)
    kind = op.outputs[0][1]
    if labels.dtype.kind in "OU":
        labels = labels.astype(object)
    t.graph.node("Gather", [t.graph.constant(labels), best], out(op))
    t.kinds[out(op)] = type(kind)("str" if labels.dtype.kind == "O" else labels.dtype.name, ())
    if len(op.outputs) > 1:
        t.graph.node("Identity", [flat], out(op, 1))
        t.kinds[out(op, 1)] = type(kind)(t.kind(op, "probabilities").dtype, (len(labels),))


HANDLERS: dict[str, Handler] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _pool,
    "avg_pool": _pool,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "l2_norm": _l2_norm,
    "local_response_norm": _local_response_norm,
    "scaled_dot_product_attention": _attention,
    "upsample_nearest_neighbor": _upsample_nearest,
    "upsample_bilinear": _upsample_bilinear,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest,
    "lstm": _lstm,
    "classify": _classify,
}
