"""MIL operators that move values: shapes, slices, gathering, joining."""

from __future__ import annotations

from typing import Any

import numpy as np

from loaders.coreml.mil import Operation
from loaders.coreml.program import Handler, Translation, Unsupported, out

_FAR = (1 << 63) - 1


def _reshape(t: Translation, op: Operation) -> None:
    """0 copies a size in both; MIL has -1 as ONNX has it."""
    t.graph.node("Reshape", [t.tensor(op), t.as_long(op, "shape")], out(op))


def _flatten(t: Translation, op: Operation) -> None:
    t.graph.node("Flatten", [t.tensor(op)], out(op), axis=t.integer(op, "axis", 1) % (t.rank(op) + 1))


def _transpose(t: Translation, op: Operation) -> None:
    rank = t.rank(op)
    t.graph.node("Transpose", [t.tensor(op)], out(op), perm=[n % rank for n in t.integers(op, "perm")])


def _expand_dims(t: Translation, op: Operation) -> None:
    t.graph.node("Unsqueeze", [t.tensor(op), t.long(t.integers(op, "axes"))], out(op))


def _squeeze(t: Translation, op: Operation) -> None:
    axes = t.integers(op, "axes", ())
    t.graph.node("Squeeze", [t.tensor(op), *([t.long(axes)] if axes else [])], out(op))


def _concat(t: Translation, op: Operation) -> None:
    if t.flag(op, "interleave"):
        raise Unsupported("concat that interleaves")
    values = t.tensors(op, "values")
    t.graph.node("Concat", values, out(op), axis=t.integer(op, "axis"))


def _stack(t: Translation, op: Operation) -> None:
    axis = t.integer(op, "axis")
    if axis < 0:
        axis += len(op.outputs[0][1].shape)
    parts = [t.graph.node("Unsqueeze", [v, t.long([axis])]) for v in t.tensors(op, "values")]
    t.graph.node("Concat", parts, out(op), axis=axis)


def _split(t: Translation, op: Operation) -> None:
    axis = t.integer(op, "axis")
    sizes = t.integers(op, "split_sizes", ())
    if not sizes:
        sizes = [kind.shape[axis] or 0 for _, kind in op.outputs]
        if 0 in sizes:
            raise Unsupported("split of an axis whose size is not known")
    t.graph.node("Split", [t.tensor(op), t.long(sizes)], [name for name, _ in op.outputs], axis=axis)


def _slice(t: Translation, op: Operation) -> None:
    """MIL's strided slice: masks take an end of an axis, squeezed axes keep the one at ``begin``."""
    rank = t.rank(op)
    begin, end = t.integers(op, "begin"), t.integers(op, "end")
    stride = t.integers(op, "stride", [1] * rank)
    masks = [t.integers(op, name, [0] * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")]
    for axis in range(rank):
        _bounds(axis, begin, end, stride, [bool(mask[axis]) for mask in masks])
    squeezed = [axis for axis in range(rank) if masks[2][axis]]
    inputs = [t.tensor(op), t.long(begin), t.long(end), t.long(range(rank)), t.long(stride)]
    if squeezed:
        t.graph.node("Squeeze", [t.graph.node("Slice", inputs), t.long(squeezed)], out(op))
    else:
        t.graph.node("Slice", inputs, out(op))


def _bounds(axis: int, begin: list[int], end: list[int], stride: list[int], masks: list[bool]) -> None:
    """Puts one axis as ONNX wants it."""
    from_start, to_end, squeeze = masks
    if squeeze:
        end[axis] = begin[axis] + 1 if begin[axis] != -1 else _FAR
        stride[axis] = 1
        return
    if from_start:
        begin[axis] = 0 if stride[axis] > 0 else _FAR
    if to_end:
        end[axis] = _FAR if stride[axis] > 0 else -_FAR


def _slice_by_size(t: Translation, op: Operation) -> None:
    begin, size = t.integers(op, "begin"), t.integers(op, "size")
    end = [b + n if n >= 0 else _FAR for b, n in zip(begin, size, strict=True)]
    t.graph.node("Slice", [t.tensor(op), t.long(begin), t.long(end)], out(op))


def _gather(t: Translation, op: Operation) -> None:
    if t.integer(op, "batch_dims", 0):
        raise Unsupported("gather with batch_dims")
    t.graph.node("Gather", [t.tensor(op), t.tensor(op, "indices")], out(op), axis=t.integer(op, "axis", 0))


def _gather_along_axis(t: Translation, op: Operation) -> None:
    t.graph.node("GatherElements", [t.tensor(op), t.tensor(op, "indices")], out(op), axis=t.integer(op, "axis", 0))


def _gather_nd(t: Translation, op: Operation) -> None:
    indices = t.as_long(op, "indices")
    t.graph.node("GatherND", [t.tensor(op), indices], out(op), batch_dims=t.integer(op, "batch_dims", 0))


def _pad(t: Translation, op: Operation) -> None:
    """MIL pads the last axes; ONNX wants all starts, then all ends."""
    pads, rank, dtype = t.integers(op, "pad"), t.rank(op), t.kind(op).dtype
    free = [0] * (rank - len(pads) // 2)
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(t.text(op, "mode", "constant"))
    if mode is None:
        raise Unsupported(f"pad of mode {t.text(op, 'mode', '')[:16]}")
    inputs = [t.tensor(op), t.long([*free, *pads[0::2], *free, *pads[1::2]])]
    if mode == "constant":
        inputs.append(t.scalar(t.number(op, "constant_val", 0), dtype))
    t.graph.node("Pad", inputs, out(op), mode=mode)


def _tile(t: Translation, op: Operation) -> None:
    t.graph.node("Tile", [t.tensor(op), t.as_long(op, "reps")], out(op))


def _shape(t: Translation, op: Operation) -> None:
    t.cast(t.graph.node("Shape", [t.tensor(op)]), op.outputs[0][1].dtype, out(op))


def _fill(t: Translation, op: Operation) -> None:
    value = t.constant(op, "value")
    like = np.zeros(1, np.float32) if value is None else value.reshape(1)
    t.graph.node("ConstantOfShape", [t.as_long(op, "shape")], out(op), value=like)


def _fill_like(t: Translation, op: Operation) -> None:
    value = t.constant(op, "value")
    like = np.zeros(1, np.float32) if value is None else value.reshape(1)
    t.graph.node("ConstantOfShape", [t.graph.node("Shape", [t.tensor(op, "ref_tensor")])], out(op), value=like)


def _range(t: Translation, op: Operation) -> None:
    t.graph.node("Range", [t.tensor(op, "start"), t.tensor(op, "end"), t.tensor(op, "step")], out(op))


def _one_hot(t: Translation, op: Operation) -> None:
    """onnxruntime has few combinations of types: int64 indices and float32 values are one."""
    on, off = t.number(op, "on_value", 1), t.number(op, "off_value", 0)
    size = t.graph.constant(np.asarray(t.integer(op, "one_hot_vector_size"), np.int64))
    inputs = [t.as_long(op, "indices"), size, t.graph.constant(np.array([off, on], np.float32))]
    t.cast(t.graph.node("OneHot", inputs, axis=t.integer(op, "axis", -1)), op.outputs[0][1].dtype, out(op))


def _topk(t: Translation, op: Operation) -> None:
    """Largest first, or smallest first with ``ascending``. MIL sorts unless told not to."""
    attributes: dict[str, Any] = {
        "axis": t.integer(op, "axis", -1),
        "largest": int(not t.flag(op, "ascending")),
        "sorted": int(t.flag(op, "sort", True)),
    }
    indices = t.graph.fresh()
    t.graph.node("TopK", [t.tensor(op), t.long([t.integer(op, "k", 1)])], [out(op), indices], **attributes)
    if len(op.outputs) > 1:
        t.cast(indices, op.outputs[1][1].dtype, out(op, 1))


def _argsort(t: Translation, op: Operation) -> None:
    axis, shape = t.integer(op, "axis", -1), t.graph.node("Shape", [t.tensor(op)])
    size = t.graph.node("Gather", [shape, t.long([axis % t.rank(op)])])
    unused, indices = t.graph.fresh(), t.graph.fresh()
    t.graph.node("TopK", [t.tensor(op), size], [unused, indices], axis=axis, largest=int(not t.flag(op, "ascending")))
    t.cast(indices, op.outputs[0][1].dtype, out(op))


def _reverse(t: Translation, op: Operation) -> None:
    axes = t.integers(op, "axes", range(t.rank(op)))
    bounds = [t.long([n] * len(axes)) for n in (-1, -_FAR)]
    t.graph.node("Slice", [t.tensor(op), *bounds, t.long(axes), t.long([-1] * len(axes))], out(op))


def _depth_to_space(t: Translation, op: Operation) -> None:
    t.graph.node("DepthToSpace", [t.tensor(op)], out(op), blocksize=t.integer(op, "block_size"), mode="DCR")


def _space_to_depth(t: Translation, op: Operation) -> None:
    t.graph.node("SpaceToDepth", [t.tensor(op)], out(op), blocksize=t.integer(op, "block_size"))


def _pixel_shuffle(t: Translation, op: Operation) -> None:
    t.graph.node("DepthToSpace", [t.tensor(op)], out(op), blocksize=t.integer(op, "upscale_factor"), mode="CRD")


def _non_zero(t: Translation, op: Operation) -> None:
    found = t.graph.node("Transpose", [t.graph.node("NonZero", [t.tensor(op)])], perm=[1, 0])
    t.cast(found, op.outputs[0][1].dtype, out(op))


def _band_part(t: Translation, op: Operation) -> None:
    """Keeps ``lower`` diagonals below the main one and ``upper`` above; -1 keeps all."""
    x, g = t.tensor(op), t.graph
    lower, upper = t.integer(op, "lower", -1), t.integer(op, "upper", -1)
    if upper >= 0:
        x = g.node("Trilu", [x, g.constant(np.asarray(upper, np.int64))], upper=0)
    if lower >= 0:
        x = g.node("Trilu", [x, g.constant(np.asarray(-lower, np.int64))], upper=1)
    g.node("Identity", [x], out(op))


HANDLERS: dict[str, Handler] = {
    "reshape": _reshape,
    "flatten2d": _flatten,
    "transpose": _transpose,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "concat": _concat,
    "stack": _stack,
    "split": _split,
    "slice_by_index": _slice,
    "slice_by_size": _slice_by_size,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "pad": _pad,
    "tile": _tile,
    "shape": _shape,
    "fill": _fill,
    "fill_like": _fill_like,
    "range_1d": _range,
    "one_hot": _one_hot,
    "topk": _topk,
    "argsort": _argsort,
    "reverse": _reverse,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
    "pixel_shuffle": _pixel_shuffle,
    "non_zero": _non_zero,
    "band_part": _band_part,
}
