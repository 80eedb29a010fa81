"""What the demo's jobs must come to, by running the models directly, without any of DIM's machinery:
one process, onnxruntime, numpy. Imported by `dimnode.demo.make_assets` and by tests only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from loaders.builtin import boxes, crop, ctc, image
from loaders.builtin.checks import Limits

Array = NDArray[Any]
Sites = Sequence[tuple[tuple[str, ...], Array, Array]]


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(model: Any, **inputs: Array) -> dict[str, Array]:
    names = [o.name for o in model.get_outputs()]
    return dict(zip(names, model.run(None, inputs), strict=True))


def predictions(model: Path, sites: Sites) -> dict[str, Array]:
    """Over the rows of all sites at once: ``class`` and ``counts`` of the labels, ``probabilities`` [2], the
    mean over the rows in float64."""
    rows = np.concatenate([x for _, x, _ in sites]).astype(np.float32)
    out = run(session(model), x=rows)
    classes, counts = np.unique(out["label"], return_counts=True)
    return {"class": classes, "counts": counts, "probabilities": out["probabilities"].mean(axis=0, dtype=np.float64)}


def training(model: Path, sites: Sites, rounds: int) -> Array:
    """Weights float64 [31] after federated averaging: each round every site takes its steps from the
    common weights, and the results are averaged by rows."""
    step = session(model)
    weights = np.zeros(31)
    for _ in range(rounds):
        local = [run(step, weights=weights, x=x, y=y.astype(np.float64))["new_weights"] for _, x, y in sites]
        weights = np.average(local, axis=0, weights=[len(y) for _, _, y in sites])
    return weights


def accuracy(weights: Array, train: Array, x: Array, y: Array) -> float:
    """Share of test rows that a logistic regression with these weights (30 slopes, an offset) gets right,
    features standardised as in training."""
    z = (x - train.mean(axis=0)) / train.std(axis=0)
    return float((((z @ weights[:-1] + weights[-1]) > 0) == (y == 1)).mean())


def votes(models: Sequence[Path], x: Array, classes: int) -> tuple[Array, Array]:
    """Majority of the models' labels by row (ties to the smallest class), and the winner's share."""
    labels = np.stack([run(session(m), X=x)["label"] for m in models])
    counts = np.stack([(labels == c).sum(axis=0) for c in range(classes)], axis=1)
    return counts.argmax(axis=1), counts.max(axis=1) / len(models)


class Reader:
    """Optical character recognition by three models and the steps between them, called directly."""

    def __init__(self, detect: Path, orient: Path, recognise: Path) -> None:
        self._detect = session(detect)
        self._orient = session(orient)
        self._recognise = session(recognise)
        self._limits = Limits()

    @property
    def characters(self) -> Array:
        """The recogniser's alphabet as its file carries it: str [1], a character by line."""
        return np.array([self._recognise.get_modelmeta().custom_metadata_map["character"]])

    def read(self, page: Array, turn: bool = True) -> dict[str, Array]:
        """``texts`` and ``scores`` of a page, uint8 [1, H, W, 3]; without ``turn`` no line is turned."""
        x = image.prepare(page, self._limits)["x"]
        found = boxes.find_boxes(self._only(self._detect, x), page, self._limits)
        cut = crop.crop(page, found["boxes"], self._limits)
        scores = self._only(self._orient, cut["x"])
        upright = crop.orient(cut["crops"], cut["sizes"], scores if turn else np.zeros_like(scores), self._limits)
        return ctc.decode(self._only(self._recognise, upright["x"]), self.characters, self._limits)

    def _only(self, model: Any, x: Array) -> Array:
        (out,) = run(model, x=x).values()
        return out
