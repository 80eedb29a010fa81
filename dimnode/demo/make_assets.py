"""Writes the demo's data and what its jobs must come to, in a process of its own:

    python -m dimnode.demo.make_assets FOLDER NODES

so that neither the demo's driver nor a node imports a framework. `dimnode.demo.assets` starts it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dimnode.demo import data, reference
from dimnode.demo.assets import CABINET, DIGITS, MODELS, ROUNDS
from dimnode.errors import DimError


def make(folder: Path, nodes: int) -> None:
    """Fills the folder: cabinets, ``inputs.npz``, ``expected.npz``, ``facts.json``."""
    facts: dict[str, Any] = {"columns": list(data.feature_names()), "models": {n: str(p) for n, p in data.ocr_model_paths().items()}}
    inputs: dict[str, data.Array] = {}
    expected: dict[str, data.Array] = {}
    _hospitals(folder, nodes, facts, expected)
    _digits(facts, inputs, expected)
    _pages(inputs, expected)
    np.savez(folder / "inputs.npz", allow_pickle=False, **inputs)
    np.savez(folder / "expected.npz", allow_pickle=False, **expected)
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _hospitals(folder: Path, nodes: int, facts: dict[str, Any], expected: dict[str, data.Array]) -> None:
    sites = data.sites(nodes)
    facts["sites"] = []
    for i, (names, x, y) in enumerate(sites):
        path = folder / f"{CABINET}-{i + 1}.csv"
        data.write_cabinet(path, x, y)
        facts["sites"].append({"file": path.name, "hospitals": list(names), "rows": len(y), "benign": float(y.mean())})
    found = reference.predictions(MODELS / "hospital_predict.onnx", sites)
    expected["predict.class"], expected["predict.counts"] = found["class"], found["counts"]
    expected["predict.probabilities"] = found["probabilities"]
    weights = reference.training(MODELS / "hospital_train.onnx", sites, ROUNDS)
    train, _, x, y = data.cancer()
    expected["train.weights"] = weights
    expected["train.mean"], expected["train.scale"] = train.mean(axis=0), train.std(axis=0)
    expected["train.test_x"], expected["train.test_y"] = x, y
    facts["train_accuracy"] = reference.accuracy(weights, train, x, y)


def _digits(facts: dict[str, Any], inputs: dict[str, data.Array], expected: dict[str, data.Array]) -> None:
    _, _, x, y = data.digits()
    inputs["digits.X"] = x
    models = [MODELS / f"{name.replace('-', '_')}.onnx" for name in DIGITS]
    expected["digits.class"], expected["digits.agreement"] = reference.votes(models, x, 10)
    expected["digits.truth"] = y
    facts["digits_accuracy"] = float((expected["digits.class"] == y).mean())


def _pages(inputs: dict[str, data.Array], expected: dict[str, data.Array]) -> None:
    paths = data.ocr_model_paths()
    reader = reference.Reader(paths["ocr-detect"], paths["ocr-orient"], paths["ocr-recognise"])
    page = data.page()
    inputs["ocr.characters"] = reader.characters
    for name, image in (("page", page), ("turned", data.upside_down(page))):
        read = reader.read(image)
        inputs[f"ocr.{name}"] = image
        expected[f"{name}.texts"], expected[f"{name}.scores"] = read["texts"].astype(np.str_), read["scores"]


def main(argv: list[str]) -> int:
    try:
        make(Path(argv[1]), int(argv[2]))
    except ImportError as e:
        print(f"The demo needs {e.name}, which is not installed. `make demo` installs it.", file=sys.stderr)  # noqa: T201
        return 1
    except DimError as e:
        print(f"{e.message} {e.hint}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
