"""Tensors of GGUF files as MLX has them. The layouts of the blocks are those of ggml (``ggml-common.h``, ``ggml-quants.c``).

What MLX can keep packed stays packed: 4, 5 and 8 bits with a scale and a bias for each 32 values. These are moved bit by bit, which no
library does. Other packings become 16-bit floats, read by ggml's own Python package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from loaders.api import Array
from loaders.language.parts import refuse

GROUP = 32
"""Values that share a scale, in MLX's form."""
_STEP = 1 << 22
"""Values that become floats at once."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a type of tensor is stored: ``values`` in a block of ``size`` bytes."""

    name: str
    values: int
    size: int


KINDS = {
    0: Kind("F32", 1, 4), 1: Kind("F16", 1, 2), 30: Kind("BF16", 1, 2), 2: Kind("Q4_0", 32, 18), 3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22), 7: Kind("Q5_1", 32, 24), 8: Kind("Q8_0", 32, 34), 10: Kind("Q2_K", 256, 84), 11: Kind("Q3_K", 256, 110),
    12: Kind("Q4_K", 256, 144), 13: Kind("Q5_K", 256, 176), 14: Kind("Q6_K", 256, 210), 20: Kind("IQ4_NL", 32, 18), 23: Kind("IQ4_XS", 256, 136),
}  # fmt: skip
_FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
Grouped = tuple[Array, Array, Array, int]
"""(values uint8 [rows, groups, 32], scales, biases float [rows, groups], bits); a value is ``scale * q + bias``."""


def to_mlx(name: str, raw: Array, shape: tuple[int, ...], number: int) -> dict[str, Any]:
    """``X.weight``, and ``X.scales`` and ``X.biases`` beside it if it stays packed. ``raw``: its bytes. Raises `ModelRejected`."""
    kind = KINDS[number]
    if kind.name in _FLOATS:
        array = mx.array(np.frombuffer(raw, _FLOATS[kind.name]).reshape(shape))
        return {name: array.view(mx.bfloat16) if kind.name == "BF16" else array}
    if len(shape) != 2 or not name.endswith(".weight"):
        raise refuse("a tensor of its header is packed and no matrix")
    unpack = _UNPACK.get(kind.name)
    if unpack is None:
        return {name: mx.array(_dense(raw.reshape(shape[0], -1), shape, number))}
    # numbers that a float16 does not hold are the model's own fault, and show in its answers
    with np.errstate(all="ignore"):
        values, scales, biases, bits = unpack(raw.reshape(shape[0], shape[1] // kind.values, kind.size))
        halves = [a.astype(np.float16).reshape(shape[0], -1) for a in (scales, biases)]
    words = _words(values, bits).reshape(shape[0], -1)
    base = name.removesuffix("weight")
    return {name: mx.array(words), f"{base}scales": mx.array(halves[0]), f"{base}biases": mx.array(halves[1])}


def _dense(rows: Array, shape: tuple[int, ...], number: int) -> Array:
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    out = np.empty(shape, np.float16)
    step = max(1, _STEP // shape[1])
    with np.errstate(all="ignore"):
        for at in range(0, shape[0], step):
            out[at : at + step] = quants.dequantize(np.ascontiguousarray(rows[at : at + step]), GGMLQuantizationType(number))
    return out


def _words(values: Array, bits: int) -> Array:
    """MLX's form: the bits of the values one after the other, lowest first, in words of 32."""
    if bits == 8:
        return np.ascontiguousarray(values).view("<u4")
    if bits == 4:
        return np.ascontiguousarray(values[..., 0::2] | values[..., 1::2] << 4).view("<u4")
    eights = values.reshape(*values.shape[:-1], 4, 8)
    joined = np.zeros(eights.shape[:-1], "<u8")
    for place in range(8):
        joined |= eights[..., place].astype("<u8") << np.uint64(bits * place)
    packed = joined[..., None].view(np.uint8)[..., :bits]
    return np.ascontiguousarray(packed.reshape(*values.shape[:-1], 4 * bits)).view("<u4")


def _half(blocks: Array, at: int) -> Array:
    """A float16 of each block [rows, blocks]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(data: Array) -> Array:
    """16 bytes -> 32 values: the second half is in the upper bits."""
    return np.concatenate((data & 15, data >> 4), axis=-1)


def _fifth(blocks: Array, at: int) -> Array:
    """The bits beyond the fourth, of 32 values in 4 bytes."""
    return np.unpackbits(blocks[..., at : at + 4], axis=-1, bitorder="little") << 4


def _q4_0(blocks: Array) -> Grouped:
    scale = _half(blocks, 0)
    return _nibbles(blocks[..., 2:]), scale, scale * -8, 4


def _q4_1(blocks: Array) -> Grouped:
    return _nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2), 4


def _q5_0(blocks: Array) -> Grouped:
    scale = _half(blocks, 0)
    return _nibbles(blocks[..., 6:]) | _fifth(blocks, 2), scale, scale * -16, 5


def _q5_1(blocks: Array) -> Grouped:
    return _nibbles(blocks[..., 8:]) | _fifth(blocks, 4), _half(blocks, 0), _half(blocks, 2), 5


def _q8_0(blocks: Array) -> Grouped:
    scale = _half(blocks, 0)
    return blocks[..., 2:] ^ 0x80, scale, scale * -128, 8


def _k_scales(blocks: Array) -> tuple[Array, Array]:
    """Scales and biases of the 8 groups of a block of 256: 6 bits each in 12 bytes, of the two factors in front."""
    low, high, rest = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate((low & 63, rest & 15 | low >> 6 << 4), axis=-1)
    minima = np.concatenate((high & 63, rest >> 4 | high >> 6 << 4), axis=-1)
    return scales * _half(blocks, 0)[..., None], minima * -_half(blocks, 2)[..., None]


def _k_nibbles(data: Array) -> Array:
    """128 bytes -> 8 groups of 32 values: each 32 bytes hold two groups."""
    pairs = data.reshape(*data.shape[:-1], 4, 1, GROUP)
    return np.concatenate((pairs & 15, pairs >> 4), axis=-2).reshape(*data.shape[:-1], 8, GROUP)


def _q4_k(blocks: Array) -> Grouped:
    return _k_nibbles(blocks[..., 16:]), *_k_scales(blocks), 4


def _q5_k(blocks: Array) -> Grouped:
    """Bit g of the high bytes belongs to group g."""
    high = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _k_nibbles(blocks[..., 48:]) | high << 4, *_k_scales(blocks), 5


_UNPACK: dict[str, Callable[[Array], Grouped]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k,
}  # fmt: skip
