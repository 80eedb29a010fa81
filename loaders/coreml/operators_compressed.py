"""MIL's compressed constants: quantised, palettised and sparse weights become plain ones."""

from __future__ import annotations

import numpy as np

from loaders.api import Array, ModelRejected
from loaders.coreml.mil import MAX_ELEMENTS, Operation
from loaders.coreml.program import Handler, Translation, Unsupported


def _given(t: Translation, op: Operation, name: str) -> Array:
    found = t.value(op, name)
    if found is None:
        raise ModelRejected(f"{op.type} of the program has no {name}")
    return np.asarray(found)


def _affine(t: Translation, op: Operation) -> None:
    """``scale * (data - zero_point)``, per tensor or along one axis."""
    data, scale, zero = (_given(t, op, n) for n in ("quantized_data", "scale", "zero_point"))
    axis = int(_given(t, op, "axis").ravel()[0])

    def along(values: Array) -> Array:
        return values.reshape([-1 if a == axis else 1 for a in range(data.ndim)]) if values.ndim else values

    t.define(op, (along(scale).astype(np.float32) * (data.astype(np.float32) - along(zero).astype(np.float32))).astype(scale.dtype))


def _cast(t: Translation, op: Operation) -> None:
    t.define(op, _given(t, op, "source_val").astype(op.outputs[0][1].dtype))


def _palette(t: Translation, op: Operation) -> None:
    """Indices into a table; the older form packs them into bytes and gives the shape apart."""
    indices, table = _given(t, op, "indices"), _given(t, op, "lut")
    if t.has(op, "shape"):
        shape = tuple(int(n) for n in _given(t, op, "shape").ravel())
        bits = max(1, int(table.size - 1).bit_length())
        count = _count(shape)
        flat = np.unpackbits(indices.astype(np.uint8).ravel(), bitorder="little")
        if count * bits > flat.size:
            raise ModelRejected("the weights of the program are malformed")
        unpacked = (flat[: count * bits].reshape(count, bits).astype(np.uint16) << np.arange(bits, dtype=np.uint16)).sum(axis=1)
        t.define(op, _look_up(table.ravel(), unpacked.astype(np.int64)).reshape(shape))
        return
    if table.ndim != indices.ndim + 2 or table.shape[-1] != 1:
        raise Unsupported("constexpr_lut_to_dense with vectors in its table")
    groups = table.shape[:-2]
    blocks = [n // g for n, g in zip(indices.shape, groups, strict=True)]
    place = np.indices(indices.shape, sparse=True)
    which = tuple(p // max(1, b) for p, b in zip(place, blocks, strict=True))
    if int(indices.max(initial=0)) >= table.shape[-2]:
        raise ModelRejected("the weights of the program are malformed")
    t.define(op, table[(*which, indices.astype(np.int64), 0)])


def _look_up(table: Array, indices: Array) -> Array:
    if int(indices.max(initial=0)) >= table.size:
        raise ModelRejected("the weights of the program are malformed")
    return table[indices]


def _sparse(t: Translation, op: Operation) -> None:
    """The values where the mask has bits, zeros elsewhere."""
    values, mask = _given(t, op, "nonzero_data").ravel(), _given(t, op, "mask")
    if t.has(op, "shape"):
        shape = tuple(int(n) for n in _given(t, op, "shape").ravel())
        bits = np.unpackbits(mask.astype(np.uint8).ravel(), bitorder="little")[: _count(shape)]
        if bits.size != _count(shape):
            raise ModelRejected("the weights of the program are malformed")
        mask = bits.reshape(shape)
    chosen = mask.astype(bool)
    if int(chosen.sum()) != values.size:
        raise ModelRejected("the weights of the program are malformed")
    dense = np.zeros(mask.shape, values.dtype)
    dense[chosen] = values
    t.define(op, dense)


def _blockwise(t: Translation, op: Operation) -> None:
    """``scale * (data - offset)``; scale and offset have one entry per block of each axis."""
    data, scale = _given(t, op, "data"), _given(t, op, "scale")
    wide = data.astype(np.float32)
    if t.has(op, "offset"):
        wide = wide - _spread(_given(t, op, "offset"), data.shape).astype(np.float32)
    t.define(op, (wide * _spread(scale, data.shape).astype(np.float32)).astype(scale.dtype))


def _spread(values: Array, shape: tuple[int, ...]) -> Array:
    if values.ndim != len(shape) or any(n % max(1, v) for n, v in zip(shape, values.shape, strict=True)):
        raise ModelRejected("the weights of the program are malformed")
    for axis, (n, v) in enumerate(zip(shape, values.shape, strict=True)):
        values = np.repeat(values, n // max(1, v), axis=axis)
    return values


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    if count < 0 or any(n < 0 for n in shape) or count > MAX_ELEMENTS:
        raise ModelRejected("a constant of the program has no usable shape")
    return count


HANDLERS: dict[str, Handler] = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _palette,
    "constexpr_sparse_to_dense": _sparse,
    "constexpr_blockwise_shift_scale": _blockwise,
}
