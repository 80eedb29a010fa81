"""How much memory an agent with a model takes: one answer, for whoever places tasks and for the node that runs them. Pure."""

from __future__ import annotations

from dimnode.domain.model import Needs

MEMORY_FACTOR = 3
"""A loaded model takes about so many times its file: the file while it is read, weights, working memory."""
MEMORY_BASE = {
    "onnx": 150 << 20, "coreml": 150 << 20, "mlx": 100 << 20, "mlx-lm": 200 << 20, "builtin": 150 << 20,
    "pt2": 400 << 20, "torchscript": 400 << 20, "safetensors": 400 << 20,
}  # fmt: skip
"""Bytes of an agent before its model."""
GPU_FACTOR = 2
"""Weights and working memory on the card, times the model's file."""
GPU_BASE = 256 << 20
GPU_CONTEXT = 512 << 20
"""Bytes that the driver and a framework's libraries take on a card for each process, beside its tensors."""


def memory_needed(format: str, size: int, needs: Needs) -> int:
    """Bytes of RAM for an agent with a model of ``size`` bytes: as its manifest says, but never less than the model itself; else a guess."""
    return max(needs.memory, size) if needs.memory else MEMORY_BASE.get(format, 200 << 20) + MEMORY_FACTOR * size


def gpu_memory_needed(size: int, needs: Needs) -> int:
    """Bytes of one card for the model's tensors, as its manifest says, else a guess; `GPU_CONTEXT` comes on top."""
    return needs.gpu_memory or GPU_BASE + GPU_FACTOR * size
