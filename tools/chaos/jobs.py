"""The jobs that are submitted under fire: real models, all three patterns, and what each must come to.

What a job must come to is computed here with numpy and onnxruntime alone; nothing of the swarm has a part in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.support.models import save, slow_onnx
from tests.support.real_swarm import MODELS

Array = np.ndarray
TURNS = 1_500_000
"""Of the slow model: about a second."""
TWIN = np.random.default_rng(11).normal(size=(30, 2)).astype(np.float32)
TAIL = np.array([[1.0], [-2.0]], np.float32)
RETRIES = 20
"""So many that no series of faults uses them up: a job that fails did not fail for want of them."""
TIMEOUT = 600


@dataclass
class Job:
    """One job, from its making to its end, as the client knows it."""

    kind: str
    form: dict[str, Any]
    data: dict[str, Array]
    outputs: dict[str, Array] | None
    """None: it must fail, with ``code``."""
    code: str = ""
    cancel_after: float | None = None
    """Seconds from the acknowledgement to a cancellation."""
    again_after: float | None = None
    """Seconds from the acknowledgement to a second submission with the same key."""
    job_id: str = ""
    copies: int = 0
    submitted: float = 0.0
    acknowledged: float = 0.0
    cancelled: bool = False
    """The cancellation was acknowledged."""
    wrong: list[str] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    """Its document, as last seen."""


def make_models(folder: Path) -> dict[str, Path]:
    """Name -> file: ``mlp`` and ``twin`` [N, 30] -> probabilities [N, 2], ``tail`` probabilities -> score, ``slow`` x -> x + turns."""
    folder.mkdir(parents=True, exist_ok=True)
    twin = save(
        folder / "twin.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["s"]), helper.make_node("Softmax", ["s"], ["probabilities"], axis=1)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 30])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(TWIN, "w")],
    )
    tail = save(
        folder / "tail.onnx",
        [helper.make_node("MatMul", ["probabilities", "w"], ["score"])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(TAIL, "w")],
    )
    return {"mlp": MODELS / "mlp.onnx", "twin": twin, "tail": tail, "slow": slow_onnx(folder / "slow.onnx", TURNS, batch="N")}


class Maker:
    """A stream of jobs that follows from the seed. Not thread-safe."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self._session = onnxruntime.InferenceSession(MODELS / "mlp.onnx", providers=["CPUExecutionProvider"])
        self._seed = seed
        self._made = 0
        self._kinds: Mapping[Callable[[], Job], int] = {
            self._single: 25,
            self._pipeline: 15,
            self._concat: 12,
            self._average: 12,
            self._mean: 10,
            self._vote: 4,
            self._large: 4,
            self._doomed: 4,
            self._slow: 3,
            self._cancelled: 4,
        }

    def job(self) -> Job:
        (make,) = self._chance.choices(list(self._kinds), list(self._kinds.values()))
        return self._keyed(make())

    def batch(self, count: int) -> list[Job]:
        """Small jobs for one call, their inputs inside their forms."""
        jobs = [self._keyed(self._single()) for _ in range(count)]
        for job in jobs:
            job.kind = "batch"
            job.form["client_data"] = {
                n: {"dtype": str(a.dtype), "shape": list(a.shape), "data": a.ravel().tolist()} for n, a in job.data.items()
            }
            job.data = {}
        return jobs

    def _keyed(self, job: Job) -> Job:
        self._made += 1
        job.form |= {"idempotency_key": f"fire-{self._seed}-{self._made}", "retries": RETRIES, "timeout": TIMEOUT}
        if job.cancel_after is None and self._chance.random() < 0.05:
            job.again_after = self._chance.uniform(0, 5)
        return job

    def _rows(self, count: int = 6) -> Array:
        return self._numbers.normal(size=(count, 30)).astype(np.float32)

    def _mlp(self, x: Array) -> Array:
        return np.asarray(self._session.run(None, {"x": x})[0])

    def _single(self) -> Job:
        x = self._rows(2)
        return Job("single", chained("mlp"), {"x": x}, {"probabilities": self._mlp(x)})

    def _large(self) -> Job:
        """An input that goes as a block."""
        x = self._rows(1000)
        return Job("large", chained("mlp"), {"x": x}, {"probabilities": self._mlp(x)})

    def _pipeline(self) -> Job:
        x = self._rows()
        return Job("pipeline", chained("mlp", "tail"), {"x": x}, {"score": self._mlp(x) @ TAIL})

    def _concat(self) -> Job:
        x = self._rows(10)
        return Job("concat", collaborative("concat"), {"x": x}, {"probabilities": self._mlp(x)})

    def _average(self) -> Job:
        x = self._rows(10)
        return Job("average", collaborative("federated_averaging"), {"x": x}, {"probabilities": self._mlp(x).mean(axis=0)})

    def _mean(self) -> Job:
        x = self._rows()
        return Job("mean", comparative("mean", 0.0), {"x": x}, {"probabilities": (self._mlp(x) + softmax(x @ TWIN)) / 2})

    def _vote(self) -> Job:
        """One model outvotes the other."""
        x = self._rows()
        form = comparative("weighted_vote", 0.0)
        form["config"]["consensus"]["weights"] = {"mlp": 3}
        return Job("vote", form, {"x": x}, {"class": self._mlp(x).argmax(axis=1)})

    def _doomed(self) -> Job:
        """The models do not agree, and the job wants them to: it fails by itself."""
        x = self._rows(40)
        return Job("doomed", comparative("unanimous", 1.0), {"x": x}, None, "NO_CONSENSUS")

    def _slow(self) -> Job:
        x = self._numbers.integers(0, 1000, size=1).astype(np.float32)
        return Job("slow", chained("slow"), {"x": x}, {"y": x + TURNS})

    def _cancelled(self) -> Job:
        job = self._slow()
        job.kind, job.cancel_after = "cancel", self._chance.uniform(0, 1.5)
        return job


def chained(*models: str) -> dict[str, Any]:
    steps = [
        {"step": n, "model_id": model, "input_source": f"step_{n - 1}_output" if n > 1 else "client_data"}
        for n, model in enumerate(models, 1)
    ]
    return {"pattern": "chained", "config": {"pipeline": steps}}


def collaborative(method: str) -> dict[str, Any]:
    return {"pattern": "collaborative", "config": {"model_id": "mlp", "aggregation": {"method": method}}}


def comparative(method: str, agreement: float) -> dict[str, Any]:
    consensus = {"method": method, "minAgreement": agreement}
    return {"pattern": "comparative", "config": {"model_ids": ["mlp", "twin"], "data_source": "client_data", "consensus": consensus}}


def softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def same(expected: Mapping[str, Array], got: Mapping[str, Any]) -> str:
    """Empty, or how the outputs differ from what was computed directly."""
    for name, value in expected.items():
        if name not in got:
            return f"no output {name!r}, but {sorted(got)}"
        found = np.asarray(got[name])
        if found.shape != value.shape:
            return f"{name} has shape {found.shape} instead of {value.shape}"
        if not np.allclose(found, value, rtol=1e-4, atol=1e-6):
            return f"{name} is off by {np.abs(found - value).max():g}"
    return ""
