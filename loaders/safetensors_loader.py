"""Bare weights (``.safetensors``, or a folder with ``config.json`` and ``model.safetensors``) of the architectures that
`loaders.architectures` knows, run by torch on what the node has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from loaders.api import NOTHING, About, Array, InferenceFailed, LoadedModel, ModelRejected, ModelSchema
from loaders.architectures import Forward, build, from_config
from loaders.checks import check_inputs, native
from loaders.messages import clean_message
from loaders.safetensors_file import read_folder_or_file
from loaders.torch_devices import TORCH_ERRORS, choose_device, to_array


class SafetensorsLoader:
    format = "safetensors"

    def load(self, path: Path, threads: int, about: About = NOTHING) -> LoadedModel:
        """Raises `ModelRejected`."""
        torch.set_num_threads(threads)
        device = choose_device(about.device, about.gpu_memory)
        try:
            arrays, config = read_folder_or_file(path)
            weights = {n: _weight(n, a).to(device) for n, a in arrays.items()}
            return SafetensorsModel(*build(about.architecture or from_config(config), weights), device)
        except OSError as e:
            raise ModelRejected("the model file cannot be read") from e
        except TORCH_ERRORS as e:
            raise ModelRejected(f"the weights do not fit the architecture: {clean_message(e)}") from e


def _weight(name: str, array: Array) -> torch.Tensor:
    """Half precision is for files: CPUs compute slowly with it."""
    if array.dtype == np.float64:
        raise ModelRejected(f"tensor {name[:128]!r} has 64-bit floats, and the known architectures compute in 32: save it in 32 bits")
    return torch.from_numpy(np.array(array, dtype=np.float32 if array.dtype.kind == "f" else None))


class SafetensorsModel:
    def __init__(self, schema: ModelSchema, forward: Forward, device: torch.device) -> None:
        self.schema = schema
        self._forward, self._device = forward, device

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(inputs, self.schema.inputs)
        try:
            with torch.inference_mode():
                found = self._forward({n: torch.from_numpy(np.array(native(a))).to(self._device) for n, a in inputs.items()})
                return {self.schema.outputs[0].name: to_array(found)}
        except TORCH_ERRORS as e:
            raise InferenceFailed(f"torch failed: {clean_message(e)}") from e
