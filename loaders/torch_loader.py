"""PyTorch programs (``.pt2``, `torch.export`), on the CPU.

The archive is rewritten by `loaders.sanitize_pt2` before torch sees it. TorchScript and pickled models
are not loaded.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from loaders.api import NOTHING, About, Array, InferenceFailed, LoadedModel, ModelRejected, ModelSchema, TensorSchema
from loaders.checks import check_inputs, native
from loaders.messages import clean_message
from loaders.sanitize_pt2 import Pt2Limits, sanitize

_NAMES = {
    torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bool: "bool",
    torch.int8: "int8", torch.int16: "int16", torch.int32: "int32", torch.int64: "int64", torch.uint8: "uint8",
    torch.complex64: "complex64", torch.complex128: "complex128",
}  # fmt: skip
# what torch raises for files and inputs that it cannot use; MemoryError is left to the agent
_TORCH_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError)


class TorchLoader:
    format = "pt2"

    def __init__(self, limits: Pt2Limits | None = None) -> None:
        self._limits = limits or Pt2Limits()

    def load(self, path: Path, threads: int, about: About = NOTHING) -> LoadedModel:
        """Raises `ModelRejected`."""
        try:
            data = path.read_bytes()
        except OSError as e:
            raise ModelRejected("the model file cannot be read") from e
        archive = sanitize(data, self._limits)
        del data
        torch.set_num_threads(threads)
        logging.getLogger("torch").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.load(archive)
                return TorchModel(program)
        except _TORCH_ERRORS as e:
            raise ModelRejected(f"torch refused the model: {clean_message(e)}") from e


class TorchModel:
    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._module = program.module()
        signature = program.graph_signature
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        self.schema = ModelSchema(
            inputs=tuple(_schema(str(name), str(name), values) for name in signature.user_inputs),
            outputs=tuple(_schema(f"output_{i}", str(name), values) for i, name in enumerate(signature.user_outputs)),
        )
        in_spec = program.call_spec.in_spec
        if in_spec is None:
            raise ModelRejected("the program does not say how its inputs nest")
        self._in_spec = in_spec

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(inputs, self.schema.inputs)
        # writable copies: a program may change its inputs, and torch warns about read-only memory
        tensors = [torch.from_numpy(np.array(native(inputs[t.name]))) for t in self.schema.inputs]
        try:
            with torch.inference_mode():
                args, kwargs = pytree.tree_unflatten(tensors, self._in_spec)
                flat = pytree.tree_leaves(self._module(*args, **kwargs))
        except _TORCH_ERRORS as e:
            raise InferenceFailed(f"torch failed: {clean_message(e)}") from e
        return {t.name: _array(value) for t, value in zip(self.schema.outputs, flat, strict=True)}


def _array(value: Any) -> Array:
    """Sizes that a program returns as plain numbers become scalars."""
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _schema(name: str, node: str, values: Mapping[str, Any]) -> TensorSchema:
    value = values.get(node)
    if isinstance(value, torch.SymInt | int):
        return TensorSchema(name, "int64", ())
    if not isinstance(value, torch.Tensor):
        raise ModelRejected(f"{name!r} of the program is not a tensor")
    dtype = _NAMES.get(value.dtype)
    if dtype is None:
        raise ModelRejected(f"tensor {name!r} is of type {value.dtype}, which has no portable form")
    return TensorSchema(name, dtype, tuple(d if isinstance(d, int) else str(d) for d in value.shape))
