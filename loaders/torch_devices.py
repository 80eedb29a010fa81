"""Where torch models run: CUDA, Apple's GPU, or the CPU; and what torch's types and errors are called here."""

from __future__ import annotations

from typing import Any

import torch

from loaders.api import Array, DeviceMissing

NAMES = {
    torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "float32", torch.bool: "bool",
    torch.int8: "int8", torch.int16: "int16", torch.int32: "int32", torch.int64: "int64", torch.uint8: "uint8",
    torch.uint16: "uint16", torch.uint32: "uint32", torch.uint64: "uint64",
    torch.complex64: "complex64", torch.complex128: "complex128",
}  # fmt: skip
"""numpy has no bfloat16: it goes in and out as float32, which holds all of it."""
# what torch raises for files and inputs that it cannot use; MemoryError is left to the agent
TORCH_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError)


def choose_device(wanted: str, gpu_memory: int = 0) -> torch.device:
    """``auto``: the first GPU that works, else the CPU; ``tensorrt``, which torch does not have, is CUDA. ``gpu_memory``: bytes that
    this process may take of a card; 0: no bound. Raises `DeviceMissing`."""
    if wanted in ("auto", "cuda", "tensorrt") and torch.cuda.is_available():
        if gpu_memory:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_memory / total), 0)
        return torch.device("cuda", 0)
    if wanted in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if wanted not in ("auto", "cpu"):
        raise DeviceMissing(f"torch, as it is installed here, finds no device for {wanted!r}")
    return torch.device("cpu")


def to_array(value: Any) -> Array:
    """A tensor, or a plain number as a scalar; numpy has no bfloat16."""
    import numpy as np

    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    # contiguous: one number can pose as terabytes of them, and must not get beyond here
    value = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
