"""MLX exported functions (``.mlxfn``), on Macs and on Linux CPUs.

The file holds a graph of MLX's own primitives and no source, and says nothing about names: inputs come from the
manifest in the order of the function's arguments. Functions exported with ``shapeless=True`` corrupt memory when
they meet another shape than that of the export, so they are refused; several shapes go into one file with
`mlx.core.exporter`. Keyword arguments are not supported by this format of DIM.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from loaders.api import NOTHING, About, Array, InferenceFailed, LoadedModel, ModelRejected, ModelSchema, TensorSchema
from loaders.checks import check_inputs, native
from loaders.messages import clean_message
from loaders.mlx_bytes import HEAD_BYTES, check_head
from loaders.trial import made_up

DTYPES = frozenset((
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64", "complex64",
))  # fmt: skip
_MLX_ERRORS = (RuntimeError, ValueError, TypeError, struct.error)


class MlxLoader:
    format = "mlx"

    def load(self, path: Path, threads: int, about: About = NOTHING) -> LoadedModel:
        """``threads`` is not used: on a CPU MLX computes in one thread, with a BLAS that has one, and knows no other number. Raises
        `ModelRejected`."""
        try:
            with path.open("rb") as f:
                check_head(f.read(HEAD_BYTES))
        except OSError as e:
            raise ModelRejected("the model file cannot be read") from e
        if not about.inputs:
            raise ModelRejected("an MLX function does not tell its inputs; the manifest must name them")
        unfit = next((t for t in (*about.inputs, *about.outputs) if t.dtype not in DTYPES), None)
        if unfit is not None:
            raise ModelRejected(f"{unfit.name!r} is {unfit.dtype}, which MLX does not have")
        try:
            function: Any = mx.import_function(str(path))
        except _MLX_ERRORS as e:
            raise ModelRejected(f"MLX refused the function: {clean_message(e)}") from e
        return MlxModel(function, about)


class MlxModel:
    def __init__(self, function: Callable[..., Sequence[mx.array]], about: About) -> None:
        self._function = function
        self.schema = ModelSchema(about.inputs, about.outputs or _find_outputs(function, about))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(inputs, self.schema.inputs)
        values = _call(self._function, [inputs[t.name] for t in self.schema.inputs])
        if len(values) != len(self.schema.outputs):
            raise InferenceFailed(f"the function gives {len(values)} outputs, its manifest names {len(self.schema.outputs)}")
        named = zip(self.schema.outputs, values, strict=True)
        return {t.name: a if a.dtype.name == t.dtype else a.astype(t.dtype) for t, a in named}


def _call(function: Callable[..., Sequence[mx.array]], arrays: Sequence[Array]) -> list[Array]:
    try:
        found = function(*(mx.array(native(a)) for a in arrays))
        mx.eval(found)
        return [_array(a) for a in found]
    except _MLX_ERRORS as e:
        raise InferenceFailed(f"MLX failed: {clean_message(e)}") from e


def _array(value: mx.array) -> Array:
    """numpy has no bfloat16."""
    return np.array(value.astype(mx.float32) if value.dtype == mx.bfloat16 else value)


def _find_outputs(function: Callable[..., Any], about: About) -> tuple[TensorSchema, ...]:
    """Outputs that the manifest does not name, from one run: ``output_0`` ... Open axes cannot be found out."""
    if any(not isinstance(n, int) for t in about.inputs for n in t.shape):
        raise ModelRejected("the function takes several shapes; the manifest must name its outputs too")
    inputs = made_up(ModelSchema(about.inputs, ()), 1)
    if inputs is None:
        raise ModelRejected("its inputs are too large for a trial run; the manifest must name its outputs too")
    try:
        values = _call(function, [inputs[t.name] for t in about.inputs])
    except InferenceFailed as e:
        raise ModelRejected(f"the function does not take the inputs that its manifest names: {e}") from e
    return tuple(TensorSchema(f"output_{i}", a.dtype.name, a.shape) for i, a in enumerate(values))
