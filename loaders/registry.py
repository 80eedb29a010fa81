"""Which loaders this machine has, without importing a framework: the node process asks here."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from loaders.api import Loader, LoaderError


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a format's loader lives and what it needs."""

    module: str
    cls: str
    needs: tuple[str, ...]
    """Modules that must be installed for all that the loader offers."""
    suffix: str
    """File suffix that the loader expects."""


ENTRIES = {
    "onnx": Entry("loaders.onnx_loader", "OnnxLoader", ("onnxruntime",), ".onnx"),
    "pt2": Entry("loaders.torch_loader", "TorchLoader", ("torch",), ".pt2"),
    "torchscript": Entry("loaders.torchscript_loader", "TorchScriptLoader", ("torch",), ".ts"),
    "safetensors": Entry("loaders.safetensors_loader", "SafetensorsLoader", ("torch",), ".safetensors"),
    "mlx": Entry("loaders.mlx_loader", "MlxLoader", ("mlx",), ".mlxfn"),
    # translated to ONNX where Apple's runtime is not
    "coreml": Entry("loaders.coreml_loader", "CoremlLoader", ("onnxruntime",), ".coreml"),
    "mlx-lm": Entry("loaders.language_loader", "LanguageLoader", ("mlx", "mlx_lm", "tokenizers", "jinja2"), ".lm"),
    "builtin": Entry("loaders.builtin_loader", "BuiltinLoader", ("cv2", "pyclipper"), ".builtin"),
}


def available_loaders() -> tuple[str, ...]:
    """Formats whose framework is installed. Looks for modules, imports none of them."""
    return tuple(name for name, entry in ENTRIES.items() if _installed(entry))


def missing_modules(format: str) -> tuple[str, ...]:
    """What would have to be installed for a format of `ENTRIES`."""
    return tuple(m for m in ENTRIES[format].needs if importlib.util.find_spec(m) is None)


def _installed(entry: Entry) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in entry.needs)


def open_loader(format: str) -> Loader:
    """The loader of a format; imports its framework, so only agents call this. Raises `LoaderError`."""
    entry = ENTRIES.get(format)
    if entry is None or not _installed(entry):
        raise LoaderError(f"no loader for format {format!r} is installed on this node")
    loader: Loader = getattr(importlib.import_module(entry.module), entry.cls)()
    return loader
