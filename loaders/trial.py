"""What shows that a model works where it was loaded: its golden pair, or one run on made-up inputs."""

from __future__ import annotations

import numpy as np

from loaders.api import Array, Golden, InferenceFailed, InputRejected, LoadedModel, ModelRejected, ModelSchema
from loaders.checks import dtype_name

SIZES = (1, 2, 16, 32, 64, 128, 224, 256, 512)
"""Sizes that are tried for axes that the schema leaves open, but for the first axis, which is 1."""
MAX_ELEMENTS = 1 << 26
"""In one made-up input."""


def check_golden(model: LoadedModel, golden: Golden) -> dict[str, Array]:
    """Runs the golden inputs and compares; returns the outputs. Raises `ModelRejected` naming what differs."""
    try:
        outputs = model.run(golden.inputs)
    except InputRejected as e:
        raise ModelRejected(f"the golden inputs do not fit the model: {e}") from e
    except InferenceFailed as e:
        raise ModelRejected(f"the model fails on its golden inputs: {e}") from e
    for name, expected in golden.outputs.items():
        if name not in outputs:
            raise ModelRejected(f"the golden pair has an output {name[:64]!r} that the model does not give")
        reason = difference(outputs[name], expected, golden.rtol, golden.atol)
        if reason:
            raise ModelRejected(f"the model does not give its golden answer here: output {name!r} {reason}")
    return outputs


def difference(got: Array, expected: Array, rtol: float, atol: float) -> str:
    """How the two differ, in words; empty if they agree. Floats within the tolerance, anything else exactly."""
    if dtype_name(got) != dtype_name(expected):
        return f"is {dtype_name(got)}, not {dtype_name(expected)}"
    if got.shape != expected.shape:
        return f"has shape {list(got.shape)}, not {list(expected.shape)}"
    if got.dtype.kind not in "fc":
        return "" if got.tolist() == expected.tolist() else "has other values"
    a, b = (x.astype(np.complex128 if x.dtype.kind == "c" else np.float64) for x in (got, expected))
    if np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return "has values that are not finite"
    return f"differs by up to {float(np.nanmax(np.abs(a - b))):.3g}"


def try_out(model: LoadedModel) -> dict[str, Array]:
    """One run on zeros, with growing sizes for axes that are open; returns the outputs. Raises `ModelRejected` with
    the last reason if none works."""
    reason = ""
    if model.schema.sample:
        return _try_sample(model)
    for size in SIZES:
        inputs = made_up(model.schema, size)
        if inputs is None:
            break
        try:
            return model.run(inputs)
        except (InputRejected, InferenceFailed) as e:
            reason = str(e)
        if not _open_axes(model.schema):
            break
    raise ModelRejected(
        f"the model failed its trial run on zeros ({reason or 'its inputs are too large'}); give a golden pair to try it with"
    )


def _try_sample(model: LoadedModel) -> dict[str, Array]:
    try:
        return model.run(model.schema.sample)
    except (InputRejected, InferenceFailed) as e:
        raise ModelRejected(f"the model failed its trial run ({e})") from e


def made_up(schema: ModelSchema, size: int) -> dict[str, Array] | None:
    """Zeros that fit the schema; None if that would be too much. Open axes get ``size``, the first one 1."""
    out: dict[str, Array] = {}
    for t in schema.inputs:
        shape = tuple(n if isinstance(n, int) else 1 if axis == 0 else size for axis, n in enumerate(t.shape))
        count = 1
        for n in shape:
            count *= n
        if count > MAX_ELEMENTS:
            return None
        out[t.name] = np.full(shape, "", dtype=object) if t.dtype == "str" else np.zeros(shape, dtype=t.dtype)
    return out


def _open_axes(schema: ModelSchema) -> bool:
    return any(not isinstance(n, int) for t in schema.inputs for n in t.shape[1:])
