"""For which GPUs the installed frameworks are built, told by their files: nothing is imported. (Written after the layout of their packages.)"""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path

DEVICES = ("auto", "cpu", "cuda", "tensorrt", "mps")
FRAMEWORKS = {
    "onnx": "onnxruntime", "pt2": "torch", "torchscript": "torch", "safetensors": "torch",
    "mlx": "mlx", "mlx-lm": "mlx", "coreml": "coremltools",
}  # fmt: skip
FILES = {
    "onnxruntime": {
        "tensorrt": ("capi/libonnxruntime_providers_tensorrt.so", "capi/onnxruntime_providers_tensorrt.dll"),
        "cuda": ("capi/libonnxruntime_providers_cuda.so", "capi/onnxruntime_providers_cuda.dll"),
    },
    "torch": {"cuda": ("lib/libtorch_cuda.so", "lib/torch_cuda.dll")},
}
"""What a framework's package has beside the rest if it is built for a device."""


def built_for(format: str) -> tuple[str, ...]:
    """The GPUs, as in `DEVICES`, that the framework of a format could use if they were here; none if it is not installed."""
    framework = FRAMEWORKS.get(format, "")
    spec = importlib.util.find_spec(framework) if framework else None
    if spec is None:
        return ()
    return _files(framework, [Path(p) for p in spec.submodule_search_locations or ()], apple=apple_silicon())


def apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def _files(framework: str, folders: list[Path], *, apple: bool) -> tuple[str, ...]:
    if apple:
        return ("mps",)
    return tuple(d for d, names in FILES.get(framework, {}).items() if any((folder / n).is_file() for folder in folders for n in names))
