"""Models that never end, or want all memory there is, in every framework. Made in processes of their own: FOLDER.

As a script with `torch` or `mlx` and a folder it makes the files of one framework.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "torchscript": ("endless.pt", "hungry.pt", "hoarding.pt", "wide.pt"),
    "pt2": ("endless.pt2", "hungry.pt2", "wide.pt2"),
    "mlx": ("endless.mlxfn", "hungry.mlxfn", "wide.mlxfn"),
}
"""Takes x float32 [1] and gives one float32. ``endless``: computes for hours or for ever; ``hungry``: 4 GiB at once; ``hoarding``: more and
more; ``wide``: an output of 4 TiB and more, which most frameworks describe without having it."""


def hostile_models(folder: Path, format: str) -> dict[str, Path]:
    """By the first part of their names."""
    framework = "mlx" if format == "mlx" else "torch"
    subprocess.run([sys.executable, "-W", "ignore", __file__, framework, str(folder)], check=True, capture_output=True)
    return {name.partition(".")[0]: folder / name for name in NAMES[format]}


def _torch(folder: str) -> None:
    import torch

    class Loop(torch.nn.Module):
        def forward(self, x):
            while bool(x.sum() < 1e30):
                x = x * 1.0
            return x

    class Sum(torch.nn.Module):
        def forward(self, x):
            return x.expand(1 << 45).sum()

    class Hungry(torch.nn.Module):
        def forward(self, x):
            return x.repeat(1 << 30)

    class Hoarding(torch.nn.Module):
        def forward(self, x):
            kept: list[torch.Tensor] = []
            while len(kept) < 1_000_000:
                kept.append(torch.ones([1 << 22]))
            return torch.stack(kept).sum() + x

    class Wide(torch.nn.Module):
        def forward(self, x):
            return x.expand(1 << 40)

    for name, module in (("endless", Loop()), ("hungry", Hungry()), ("hoarding", Hoarding()), ("wide", Wide())):
        torch.jit.script(module.eval()).save(f"{folder}/{name}.pt")
    for name, module in (("endless", Sum()), ("hungry", Hungry()), ("wide", Wide())):
        torch.export.save(torch.export.export(module, (torch.ones(1),)), f"{folder}/{name}.pt2")


def _mlx(folder: str) -> None:
    import mlx.core as mx

    def endless(x: Any) -> Any:
        y = mx.broadcast_to(x, (2048, 2048)) * 1e-9
        for _ in range(5000):
            y = y @ y
        return (y[0, 0].reshape(1),)

    def hungry(x: Any) -> Any:
        return ((mx.broadcast_to(x, (1 << 15, 1)) @ mx.broadcast_to(x, (1, 1 << 15))).reshape(-1),)

    def wide(x: Any) -> Any:
        return (mx.broadcast_to(x, (1 << 20, 1 << 20)),)

    for name, function in (("endless", endless), ("hungry", hungry), ("wide", wide)):
        mx.export_function(f"{folder}/{name}.mlxfn", function, mx.zeros((1,)))


if __name__ == "__main__":
    (_mlx if sys.argv[1] == "mlx" else _torch)(sys.argv[2])
