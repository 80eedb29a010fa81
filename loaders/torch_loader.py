"""PyTorch programs (``.pt2``, `torch.export`).

The archive is rewritten by `loaders.sanitize_pt2` before torch sees it. A program that changes its own buffers runs on
a fresh copy each time: a task must not see what another left behind.
"""

from __future__ import annotations

import copy
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
from loaders.torch_devices import NAMES, TORCH_ERRORS, choose_device, to_array


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
                return TorchModel(_moved(program, choose_device(about.device, about.gpu_memory)), about)
        except TORCH_ERRORS as e:
            raise ModelRejected(f"torch refused the model: {clean_message(e)}") from e


class TorchModel:
    """Outputs have the names that the manifest gives them, else ``output_0`` ..."""

    def __init__(self, program: torch.export.ExportedProgram, about: About) -> None:
        self._module = program.module()
        signature = program.graph_signature
        self._stateful = bool(signature.buffers_to_mutate)
        self._device = next((t.device for t in program.state_dict.values()), torch.device("cpu"))
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        self.schema = ModelSchema(
            inputs=tuple(_schema(str(name), str(name), values) for name in signature.user_inputs),
            outputs=tuple(_schema(n, str(name), values) for n, name in zip(_names(about, signature), signature.user_outputs, strict=True)),
        )
        self._brain = {t.name for t in self.schema.inputs if getattr(values.get(t.name), "dtype", None) == torch.bfloat16}
        in_spec = program.call_spec.in_spec
        if in_spec is None:
            raise ModelRejected("the program does not say how its inputs nest")
        self._in_spec = in_spec

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(inputs, self.schema.inputs)
        tensors = [self._tensor(t.name, inputs[t.name]) for t in self.schema.inputs]
        module = copy.deepcopy(self._module) if self._stateful else self._module
        try:
            with torch.inference_mode():
                args, kwargs = pytree.tree_unflatten(tensors, self._in_spec)
                flat = pytree.tree_leaves(module(*args, **kwargs))
                return {t.name: to_array(value) for t, value in zip(self.schema.outputs, flat, strict=True)}
        except TORCH_ERRORS as e:
            raise InferenceFailed(f"torch failed: {clean_message(e)}") from e

    def _tensor(self, name: str, array: Array) -> torch.Tensor:
        """A writable copy: a program may change its inputs, and torch warns about read-only memory."""
        found = torch.from_numpy(np.array(native(array)))
        return found.to(self._device, torch.bfloat16 if name in self._brain else found.dtype)


def _names(about: About, signature: Any) -> list[str]:
    count = len(signature.user_outputs)
    if about.outputs and len(about.outputs) != count:
        raise ModelRejected(f"the program gives {count} outputs, its manifest names {len(about.outputs)}")
    return [t.name for t in about.outputs] or [f"output_{i}" for i in range(count)]


def _moved(program: torch.export.ExportedProgram, device: torch.device) -> torch.export.ExportedProgram:
    """Programs are exported on the CPU; others are refused."""
    if device.type == "cpu" or not program.state_dict:
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _schema(name: str, node: str, values: Mapping[str, Any]) -> TensorSchema:
    value = values.get(node)
    if isinstance(value, torch.SymInt | int):
        return TensorSchema(name, "int64", ())
    if not isinstance(value, torch.Tensor):
        raise ModelRejected(f"{name!r} of the program is not a tensor")
    dtype = NAMES.get(value.dtype)
    if dtype is None:
        raise ModelRejected(f"tensor {name!r} is of type {value.dtype}, which has no portable form")
    return TensorSchema(name, dtype, tuple(d if isinstance(d, int) else str(d) for d in value.shape))
