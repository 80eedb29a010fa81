"""Tensors of text on their way between node and agent, and what they cost.

::

    u64 length in bytes of each text | all texts in UTF-8, one after the other        little-endian

Text costs many times what numbers of the same size do, and Python's codecs hold the interpreter's lock. So large text is worked on in
threads, and a stretch at a time: the event loop gets its turn between two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
STRETCH = 1024
"""Elements that are worked on in one go."""
INLINE = 1 << 15
"""Bytes of text from which on it is worked on in a thread: about a millisecond."""
LENGTH = np.dtype("<u8")


def is_text(array: Array) -> bool:
    return array.dtype.kind in "OUS"


def large(arrays: Iterable[Array]) -> bool:
    """Whether text among these is too much for the event loop. Looks at few elements."""
    left = INLINE
    for array in arrays:
        if is_text(array):
            left -= array.nbytes
            if array.dtype.kind == "O" and left >= 0:
                left -= sum(len(x) for x in array.ravel().tolist() if isinstance(x, str | bytes))
    return left < 0


def encode(array: Array) -> bytes:
    pieces = [_text(x).encode("utf-8", "surrogatepass") for x in _elements(array)]
    lengths = np.fromiter(map(len, pieces), LENGTH, len(pieces))
    return b"".join((lengths.tobytes(), *pieces))


def decode(piece: memoryview, count: int) -> Array:
    """Strings, shape [count]. Raises `ValueError` if that is not what ``piece`` holds."""
    start = count * LENGTH.itemsize
    if start > len(piece):
        raise ValueError("fewer texts than the shape says")
    lengths, texts = np.frombuffer(piece[:start], LENGTH), piece[start:]
    if count and int(lengths.max()) > len(texts):
        raise ValueError("a text is longer than all of them")
    out = np.empty(count, dtype=object)
    end = 0
    for i, (begin, end) in enumerate(pairwise(accumulate(_elements(lengths), initial=0))):
        out[i] = str(texts[begin:end], "utf-8", "surrogatepass")
    if end != len(texts):
        raise ValueError("texts and their lengths differ")
    return out


def fixed_width(array: Array, most: int) -> Array:
    """As numpy keeps text, all of it as wide as the longest. Raises `ValueError` if that takes more than ``most`` bytes."""
    flat = array.ravel()
    width = max(1, max(map(len, _elements(flat)), default=1))
    if width * flat.size * 4 > most:
        raise ValueError("the longest text is too long for so many")
    out = np.empty(flat.size, f"<U{width}")
    step = max(1, STRETCH * 64 // width)
    for at in range(0, flat.size, step):
        out[at : at + step] = flat[at : at + step]
    return out.reshape(array.shape)


def _elements(array: Array) -> Iterator[Any]:
    flat = array.ravel()
    for at in range(0, flat.size, STRETCH):
        yield from flat[at : at + STRETCH].tolist()


def _text(x: object) -> str:
    return x.decode() if isinstance(x, bytes) else str(x)
