"""What a test needs of the machine, and how it is told that it is not there: ``not run here``, which is never counted as passing."""

from __future__ import annotations

import sys

import pytest

from dimnode.daemon import gpus

ON_A_MAC = pytest.mark.skipif(sys.platform != "darwin", reason="not run here: needs macOS")
WITH_NVIDIA = pytest.mark.skipif(sys.platform == "darwin" or not gpus.look(), reason="not run here: needs an NVIDIA card and its driver")


def need_provider(name: str) -> None:
    """Skips the test unless onnxruntime was built with this execution provider."""
    import onnxruntime

    if name not in onnxruntime.get_available_providers():
        pytest.skip(f"not run here: needs an onnxruntime with {name}")


def need_torch(device: str) -> None:
    """Skips the test unless torch can compute on ``cuda`` or ``mps``."""
    import torch

    if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
        pytest.skip(f"not run here: needs a torch that finds a device {device}")
