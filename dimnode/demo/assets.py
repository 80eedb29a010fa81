"""What the demo needs on disk: models, cabinets, inputs, and what the jobs must come to.

`prepare` has them made by another process (`dimnode.demo.make_assets`), since that takes frameworks
which the demo's driver should not carry.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimnode.errors import FailedPrecondition

Array = NDArray[Any]
MODELS = Path(__file__).parent / "models"
CABINET = "patients"
ROUNDS = 12
"""Of federated training: by then it matches what all rows in one place give."""
DIGITS = ("digits-logreg", "digits-forest", "digits-svm", "digits-mlp")
ARTIFICIAL = (
    "The four hospitals are an artificial split: one site's published data (Wisconsin breast cancer, 398 training rows), "
    "cut in four by mean radius."
)


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model file to publish, and by which node (an index)."""

    id: str
    path: Path
    node: int
    licence: str
    format: str = "onnx"


@dataclass(frozen=True, slots=True)
class DemoCabinet:
    """A file to register as cabinet ``name`` on a node (an index)."""

    node: int
    name: str
    path: Path
    hospitals: tuple[str, ...]
    rows: int
    benign: float
    """Share of benign cases."""


@dataclass(frozen=True, slots=True)
class DemoAssets:
    models: tuple[DemoModel, ...]
    """To be added on their nodes; built-in steps need no adding."""
    cabinets: tuple[DemoCabinet, ...]
    columns: tuple[str, ...]
    """The 30 features among the cabinets' columns."""
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    figures: Mapping[str, float]


def prepare(folder: Path, nodes: int = 3, timeout: float = 300.0) -> DemoAssets:
    """Writes everything under ``folder`` (made if need be) for a swarm of ``nodes`` nodes. Blocks for some
    seconds. Raises `FailedPrecondition` if a package of the demo is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dimnode.demo.make_assets", str(folder), str(nodes)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as e:
        raise FailedPrecondition(f"the demo's data was not ready within {timeout:g} s") from e
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FailedPrecondition(f"the demo's data could not be made: {said}", hint="`make demo` installs what the demo needs.")
    return load(folder, nodes)


def load(folder: Path, nodes: int) -> DemoAssets:
    """What `prepare` wrote."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return DemoAssets(
        models=_models(facts["models"], nodes),
        cabinets=tuple(
            DemoCabinet(i, CABINET, folder / s["file"], tuple(s["hospitals"]), s["rows"], s["benign"]) for i, s in enumerate(facts["sites"])
        ),
        columns=tuple(facts["columns"]),
        inputs=_arrays(folder / "inputs.npz"),
        expected=_arrays(folder / "expected.npz"),
        figures={k: float(facts[k]) for k in ("train_accuracy", "digits_accuracy")},
    )


def _models(ocr: Mapping[str, str], nodes: int) -> tuple[DemoModel, ...]:
    own = [(name, MODELS / f"{name.replace('-', '_')}.onnx") for name in (*DIGITS, "hospital-predict", "hospital-train")]
    files = [*own, *((name, Path(path)) for name, path in ocr.items())]
    return tuple(DemoModel(id=name, path=path, node=i % nodes, licence="Apache-2.0") for i, (name, path) in enumerate(files))


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}
