"""Imports a framework before the sandbox closes: what it reads and makes while it starts is its own business, no model's."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import tempfile

from loaders.registry import ENTRIES

MORE = {
    "pt2": (
        "torch.export",
        "torch._dynamo",
        "torch._export.serde.serialize",
        "torch.fx.experimental.symbolic_shapes",
        "torch._functorch.aot_autograd",
        "torch._functorch.partitioners",
        "torch._export.passes.collect_tracepoints_pass",
        "torch._export.passes.add_runtime_assertions_for_constraints_pass",
    ),
    "mlx-lm": ("gguf.quants",),
}
"""Beside the loader's own module: what the framework would otherwise import while it loads its first model."""


def framework_of(format: str) -> str:
    """The module that a format's loader is built on; formats that share it share a fork server."""
    entry = ENTRIES.get(format)
    return entry.needs[0] if entry is not None else format


def formats_of(framework: str) -> tuple[str, ...]:
    return tuple(f for f in ENTRIES if framework_of(f) == framework)


def preload(*formats: str) -> None:
    """Starts no thread, so that the process can be forked afterwards."""
    # some libraries make a folder for caches as they are imported
    tempfile.tempdir = os.getcwd()
    for name in formats:
        for module in (ENTRIES[name].module, *MORE.get(name, ())):
            # what is not installed, or has another name in this version, is the loader's business
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
    # pages that the collector never touches again stay shared with the agents
    gc.collect()
    gc.freeze()
