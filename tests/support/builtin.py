"""Built-in steps loaded the way an agent does."""

from __future__ import annotations

from pathlib import Path

from loaders.builtin.checks import Limits
from loaders.builtin_catalog import descriptor
from loaders.builtin_loader import BuiltinLoader, BuiltinStep


def load_step(name: str, folder: Path, limits: Limits | None = None) -> BuiltinStep:
    path = folder / "step.builtin"
    path.write_bytes(descriptor(name))
    return BuiltinLoader(limits).load(path, 1)
