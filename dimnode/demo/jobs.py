"""The demo's jobs: what is submitted, what must come back, how to say it in a line.

Collaborative: predictions on rows that stay at their sites, as counts and as an average, and federated
training. Comparative: four digits classifiers vote. Chained: three models and five built-in steps read
a page, the right way up and upside down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dimnode.demo.assets import ARTIFICIAL, CABINET, DIGITS, ROUNDS, Array, DemoAssets

Outputs = Mapping[str, Array]
Check = Callable[[Outputs, Mapping[str, Any]], list[str]]
CLOSE = 1e-6
"""Largest difference between a result and its reference: float32 models, summed in another order."""
READABLE = 0.5
"""Lines that are recognised with less confidence are left out of what is shown."""


@dataclass(frozen=True, slots=True)
class DemoJob:
    title: str
    form: Mapping[str, Any]
    """The job form, without ``client_data``."""
    client_data: Outputs
    check: Check
    """(outputs, details) -> problems; none if the result equals the reference."""
    summary: Callable[[Outputs, Mapping[str, Any]], str]


def jobs(assets: DemoAssets, node_names: Sequence[str]) -> list[DemoJob]:
    """The jobs for these nodes (names or peer ids), in the order to run them."""
    return [
        *_hospital_jobs(assets, [node_names[c.node] for c in assets.cabinets]),
        _digits_job(assets),
        _page_job(assets, node_names, "page", "a scanned page"),
        _page_job(assets, node_names, "turned", "the same page upside down"),
    ]


def _hospital_jobs(assets: DemoAssets, sites: Sequence[str]) -> list[DemoJob]:
    where = {"nodes": list(sites), "data_source": CABINET}
    predict = {"model_id": "hospital-predict", **where, "columns": {"x": list(assets.columns)}}
    train = {"model_id": "hospital-train", **where, "columns": {"x": list(assets.columns), "y": ["y"]}}
    feedback = {"rounds": ROUNDS, "feedback": {"new_weights": "weights"}}
    return [
        DemoJob(
            "count predictions at every hospital",
            _form("collaborative", {**predict, "aggregation": {"method": "majority_vote"}}),
            {},
            _all(_equal(assets, "class", "predict.class"), _equal(assets, "counts", "predict.counts")),
            lambda out, _: f"{int(out['counts'].sum())} patients: " + ", ".join(_counted(out)) + f". {ARTIFICIAL}",
        ),
        DemoJob(
            "average predictions over the hospitals",
            _form("collaborative", {**predict, "aggregation": {"method": "federated_averaging"}}),
            {},
            _equal(assets, "probabilities", "predict.probabilities"),
            lambda out, _: f"mean probability of benign {float(out['probabilities'][1]):.4f}, rows never left their nodes",
        ),
        DemoJob(
            f"train together, {ROUNDS} rounds",
            _form("collaborative", {**train, "aggregation": {"method": "federated_averaging"}, **feedback}),
            {"weights": np.zeros(31)},
            _all(_equal(assets, "new_weights", "train.weights"), lambda out, _: _check_accuracy(assets, out)),
            lambda out, _: f"{accuracy(assets, out['new_weights']):.4f} of the test rows right (all rows in one place: .9591)",
        ),
    ]


def _form(pattern: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"pattern": pattern, "config": dict(config), "priority": "normal", "timeout": 300}


def _counted(out: Outputs) -> list[str]:
    names = {0: "malignant", 1: "benign"}
    return [f"{int(n)} {names.get(int(c), str(c))}" for c, n in zip(out["class"], out["counts"], strict=True)]


def accuracy(assets: DemoAssets, weights: Array) -> float:
    """Share of the 171 test rows that these weights get right."""
    e = assets.expected
    z = (e["train.test_x"] - e["train.mean"]) / e["train.scale"]
    return float((((z @ weights[:-1] + weights[-1]) > 0) == (e["train.test_y"] == 1)).mean())


def _check_accuracy(assets: DemoAssets, out: Outputs) -> list[str]:
    if "new_weights" not in out or out["new_weights"].shape != (31,):
        return ["there are no weights to test"]
    found, want = accuracy(assets, out["new_weights"]), assets.figures["train_accuracy"]
    return [] if found == want else [f"accuracy is {found:.4f}, the reference's is {want:.4f}"]


def _digits_job(assets: DemoAssets) -> DemoJob:
    def summary(out: Outputs, details: Mapping[str, Any]) -> str:
        right = float((out["class"] == assets.expected["digits.truth"]).mean())
        return f"{right:.4f} of {len(out['class'])} digits right, agreement {details.get('agreement', 0):.4f}"

    def agreement(_: Outputs, details: Mapping[str, Any]) -> list[str]:
        want = float(assets.expected["digits.agreement"].mean())
        found = details.get("agreement")
        return [] if isinstance(found, (int, float)) and abs(found - want) <= CLOSE else [f"agreement is {found}, not {want:.6f}"]

    return DemoJob(
        "four models vote on handwritten digits",
        _form("comparative", {"model_ids": list(DIGITS), "consensus": {"method": "majority_vote", "minAgreement": 0.75}}),
        {"X": assets.inputs["digits.X"]},
        _all(_equal(assets, "class", "digits.class"), agreement),
        summary,
    )


def _page_job(assets: DemoAssets, node_names: Sequence[str], name: str, what: str) -> DemoJob:
    def summary(out: Outputs, _: Mapping[str, Any]) -> str:
        lines = [str(t) for t, s in zip(out["texts"], out["scores"], strict=True) if s >= READABLE]
        return f"{len(lines)} lines: " + " / ".join(lines)

    return DemoJob(
        f"read {what}",
        _form("chained", {"pipeline": ocr_pipeline(node_names)}),
        {"image": assets.inputs[f"ocr.{name}"], "characters": assets.inputs["ocr.characters"]},
        _all(_equal(assets, "texts", f"{name}.texts"), _equal(assets, "scores", f"{name}.scores", tolerance=1e-3)),
        summary,
    )


def ocr_pipeline(nodes: Sequence[str]) -> list[dict[str, Any]]:
    """Eight steps, each on the next node in turn."""
    steps: list[dict[str, Any]] = [
        {"name": "prepare", "model_id": "dim/ocr-prepare@1"},
        {"name": "detect", "model_id": "ocr-detect", "input_source": "step_1_output", "outputs": {"sigmoid_0.tmp_0": "scores"}},
        {"name": "boxes", "model_id": "dim/boxes@1", "input_source": ["client_data", "step_2_output"]},
        {"name": "crop", "model_id": "dim/crop@1", "input_source": ["client_data", "step_3_output"]},
        {
            "name": "classify",
            "model_id": "ocr-orient",
            "input_source": "step_4_output",
            "outputs": {"save_infer_model/scale_0.tmp_1": "scores"},
        },
        {"name": "orient", "model_id": "dim/orient@1", "input_source": ["step_4_output", "step_5_output"]},
        {
            "name": "recognise",
            "model_id": "ocr-recognise",
            "input_source": "step_6_output",
            "outputs": {"softmax_11.tmp_0": "probabilities"},
        },
        {"name": "decode", "model_id": "dim/ctc@1", "input_source": ["client_data", "step_7_output"]},
    ]
    return [
        {"step": i + 1, "input_source": "client_data", **step, "node_id": nodes[i % len(nodes)], "timeout": 120}
        for i, step in enumerate(steps)
    ]


def _all(*checks: Check) -> Check:
    return lambda out, details: [problem for check in checks for problem in check(out, details)]


def _equal(assets: DemoAssets, output: str, expected: str, tolerance: float = CLOSE) -> Check:
    return lambda out, _: compare(output, assets.expected[expected], out.get(output), tolerance)


def compare(name: str, expected: Array, actual: Array | None, tolerance: float = CLOSE) -> list[str]:
    """Problems of one output: missing, of another shape, different. Floats may differ by ``tolerance``."""
    if actual is None:
        return [f"output {name!r} is missing"]
    if actual.shape != expected.shape:
        return [f"output {name!r} has shape {list(actual.shape)}, not {list(expected.shape)}"]
    if expected.dtype.kind == "f":
        far = float(np.abs(actual.astype(np.float64) - expected).max()) if actual.size else 0.0
        return [] if far <= tolerance else [f"output {name!r} is off by up to {far:.3g}"]
    wrong = int((actual.astype(expected.dtype) != expected).sum())
    return [f"output {name!r} differs from the reference in {wrong} of {expected.size} values"] if wrong else []
