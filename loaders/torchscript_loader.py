"""TorchScript models. The archive is rewritten by `loaders.sanitize_torchscript` before torch sees it, and the compiled
graphs are checked, nested blocks and all methods included, before anything runs.

TorchScript tells the names of its inputs; types and shapes come from the manifest, outputs from it or from one run. A
model that changes its own state (attributes, tensors in place) runs on a fresh copy each time: a task must not see
what another left behind.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loaders.api import NOTHING, About, Array, InferenceFailed, LoadedModel, ModelRejected, ModelSchema, TensorSchema
from loaders.checks import check_inputs, native
from loaders.messages import clean_message
from loaders.sanitize_torchscript import TorchScriptLimits, check_operator, sanitize
from loaders.torch_devices import TORCH_ERRORS, choose_device, to_array
from loaders.trial import SIZES, made_up

MAX_OUTPUTS = 256
_PLAIN = {"int": int, "float": float, "bool": bool, "number": float}
"""Arguments that are numbers, not tensors: a scalar input becomes one."""


class TorchScriptLoader:
    format = "torchscript"

    def __init__(self, limits: TorchScriptLimits | None = None) -> None:
        self._limits = limits or TorchScriptLimits()

    def load(self, path: Path, threads: int, about: About = NOTHING) -> LoadedModel:
        """Raises `ModelRejected`."""
        try:
            archive = sanitize(path.read_bytes(), self._limits)
        except OSError as e:
            raise ModelRejected("the model file cannot be read") from e
        if not about.inputs:
            raise ModelRejected("TorchScript does not tell the types and shapes of its inputs; the manifest must name them")
        torch.set_num_threads(threads)
        logging.getLogger("torch").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch would rather have programs; old models are what they are
                module: Any = torch.jit.load(archive, map_location="cpu").eval()
            stateful = check_graphs(module)
            return TorchScriptModel(module.to(choose_device(about.device, about.gpu_memory)), stateful, about)
        except TORCH_ERRORS as e:
            raise ModelRejected(f"torch refused the model: {clean_message(e)}") from e


def check_graphs(module: Any) -> bool:
    """Every operator of every method, called functions included; whether any changes state. Raises `ModelRejected`."""
    stateful = False
    for part in module.modules():
        for name in part._c._method_names():
            for node in _nodes(part._c._get_method(name).inlined_graph):
                kind: str = node.kind()
                namespace, _, operator = kind.partition("::")
                check_operator(namespace, operator)
                stateful |= kind == "prim::SetAttr" or (namespace == "aten" and operator.endswith("_") and not operator.endswith("__"))
    return stateful


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _nodes(block)
        for name in node.attributeNames():
            kind = node.kindOf(name)
            if kind in ("g", "gs"):
                for inner in [node.g(name)] if kind == "g" else node.gs(name):
                    yield from _nodes(inner)


class TorchScriptModel:
    def __init__(self, module: Any, stateful: bool, about: About) -> None:
        self._module, self._stateful = module, stateful
        self._device = next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
        self._arguments = _arguments(module, about.inputs)
        self.schema = ModelSchema(about.inputs, about.outputs or self._find_outputs(about.inputs))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(inputs, self.schema.inputs)
        values = self._call(inputs)
        if len(values) != len(self.schema.outputs):
            raise InferenceFailed(f"the model gives {len(values)} outputs, its manifest names {len(self.schema.outputs)}")
        return {t.name: value for t, value in zip(self.schema.outputs, values, strict=True)}

    def _call(self, inputs: Mapping[str, Array]) -> list[Array]:
        module = copy.deepcopy(self._module) if self._stateful else self._module
        try:
            # the optimising executor compiles anew for every shape, which takes seconds
            with torch.inference_mode(), torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage]
                found = module(*(self._argument(name, kind, inputs[name]) for name, kind in self._arguments))
                return [to_array(v) for v in _flat(found)]
        except TORCH_ERRORS as e:
            raise InferenceFailed(f"torch failed: {_reason(e)}") from e

    def _argument(self, name: str, kind: str, array: Array) -> Any:
        plain = _PLAIN.get(kind)
        if plain is not None:
            if array.ndim:
                raise InferenceFailed(f"input {name!r} is a number for this model and must have no axes")
            return plain(array.item())
        return torch.from_numpy(np.array(native(array))).to(self._device)

    def _find_outputs(self, inputs: tuple[TensorSchema, ...]) -> tuple[TensorSchema, ...]:
        """From runs with two sizes of the open axes: what differs is open too."""
        runs: list[list[Array]] = []
        reason = "its inputs are too large for a trial run"
        wanted = 2 if any(not isinstance(n, int) for t in inputs for n in t.shape[1:]) else 1
        for size in SIZES:
            made = made_up(ModelSchema(inputs, ()), size)
            if made is None or len(runs) == wanted:
                break
            try:
                runs.append(self._call(made))
            except InferenceFailed as e:
                reason = str(e)
                if wanted == 1:
                    break
        if not runs:
            raise ModelRejected(f"its outputs could not be found out ({reason}); the manifest must name them")
        return tuple(_output(i, [run[i] for run in runs], inputs) for i in range(len(runs[0])))


def _reason(error: BaseException) -> str:
    """The interpreter tells where in the model something failed, over many lines, and why in the last one."""
    lines = str(error).strip().splitlines()
    return clean_message(RuntimeError(lines[-1] if lines else "")) if "TorchScript interpreter" in str(error) else clean_message(error)


def _output(number: int, arrays: list[Array], inputs: tuple[TensorSchema, ...]) -> TensorSchema:
    """An axis that had the same size in all runs is fixed; the first one shares its name with the inputs' batch."""
    first = arrays[0]
    batch = next((t.shape[0] for t in inputs if t.shape and isinstance(t.shape[0], str)), None)
    shape: list[int | str | None] = [n if all(a.shape[i : i + 1] == (n,) for a in arrays) else None for i, n in enumerate(first.shape)]
    if batch is not None and shape and first.shape[0] == 1:
        shape[0] = batch
    return TensorSchema(f"output_{number}", "str" if first.dtype.kind in "OU" else first.dtype.name, tuple(shape))


def _arguments(module: Any, inputs: tuple[TensorSchema, ...]) -> list[tuple[str, str]]:
    """(input, type) in the order of the function's arguments. Manifest and code must name the same; with unlike names
    the order counts."""
    declared = [(a.name, str(a.type), a.has_default_value()) for a in module.forward.schema.arguments[1:]]
    needed = [d for d in declared if not d[2]]
    if not len(needed) <= len(inputs) <= len(declared):
        raise ModelRejected(f"the model takes {len(needed)} to {len(declared)} inputs, its manifest names {len(inputs)}")
    names = {t.name for t in inputs}
    if names <= {d[0] for d in declared} and all(d[0] in names for d in needed):
        given = [d for d in declared if d[0] in names]
        if [d[0] for d in declared[: len(given)]] == [d[0] for d in given]:
            return [(d[0], d[1]) for d in given]
    return [(t.name, d[1]) for t, d in zip(inputs, declared, strict=False)]


def _flat(value: Any) -> list[Any]:
    """Tensors and numbers out of tuples, lists and dicts, in order."""
    if isinstance(value, tuple | list):
        out = [leaf for item in value for leaf in _flat(item)]  # pyright: ignore[reportUnknownVariableType]
    elif isinstance(value, dict):
        out = [leaf for item in value.values() for leaf in _flat(item)]  # pyright: ignore[reportUnknownVariableType]
    elif isinstance(value, torch.Tensor | int | float | bool):
        out = [value]
    else:
        raise InferenceFailed("the model returns something that is no tensor")
    if len(out) > MAX_OUTPUTS:
        raise InferenceFailed(f"the model returns more than {MAX_OUTPUTS} outputs")
    return out
