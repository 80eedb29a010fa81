"""Whether a model treats rows one by one, and putting rows together and apart again. Knows arrays only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dimnode.daemon.agent_protocol import Array
from loaders.api import LoadedModel, LoaderError, ModelSchema
from loaders.trial import MAX_ELEMENTS

RELATIVE, ABSOLUTE = 1e-3, 1e-5
"""Matrix products of other sizes may be summed in another order."""
FIRST, SECOND = 2, 3
OTHER_AXES = 2


def independent(model: LoadedModel) -> bool:
    """Tries it: two runs and one of both together must give the same rows. A model for which that cannot be tried (text, odd
    inputs) counts as dependent."""
    rng = np.random.default_rng(7)
    try:
        a, b = (_sample(model.schema, rows, rng) for rows in (FIRST, SECOND))
        alone = [model.run(a), model.run(b)]
        together = split(model.run(join([a, b])), [FIRST, SECOND])
    except (LoaderError, ValueError, TypeError, IndexError):
        return False
    return all(_same(x, y) for x, y in zip(alone, together, strict=True))


def _sample(schema: ModelSchema, rows: int, rng: np.random.Generator) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for t in schema.inputs:
        shape = (rows, *(n if isinstance(n, int) else OTHER_AXES for n in t.shape[1:]))
        dtype = np.dtype(t.dtype)
        if dtype.kind not in "biufc":
            raise TypeError(f"{t.dtype} is no number")
        if math.prod(shape) > MAX_ELEMENTS:  # claimed by a manifest, maybe
            raise ValueError("too large to be tried")
        out[t.name] = rng.standard_normal(shape).astype(dtype) if dtype.kind in "fc" else rng.integers(0, 2, shape).astype(dtype)
    return out


def _same(x: Mapping[str, Array], y: Mapping[str, Array]) -> bool:
    return x.keys() == y.keys() and all(x[k].shape == y[k].shape and np.allclose(x[k], y[k], RELATIVE, ABSOLUTE, equal_nan=True) for k in x)


def join(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Along axis 0."""
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def split(outputs: Mapping[str, Array], rows: Sequence[int]) -> list[dict[str, Array]]:
    """Raises `ValueError` if an output has not as many rows as went in."""
    ends = np.cumsum(rows)
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != ends[-1]:
            raise ValueError(f"output {name!r} has not one row for each of the inputs")
    return [{name: array[end - n : end] for name, array in outputs.items()} for n, end in zip(rows, ends, strict=True)]


def row_count(inputs: Mapping[str, Array]) -> int | None:
    """Rows that all inputs share; None if they do not."""
    counts = {a.shape[0] if a.ndim else -1 for a in inputs.values()}
    count = counts.pop() if len(counts) == 1 else 0
    return count if count > 0 else None


def signature(inputs: Mapping[str, Array]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """What must be equal for inputs to be joined."""
    return tuple(sorted((name, a.dtype.str, a.shape[1:]) for name, a in inputs.items()))
