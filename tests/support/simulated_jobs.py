"""Models, jobs and their right answers for a simulation: small enough that thousands cost nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dimnode.domain import codec
from dimnode.domain.job_form import JobForm, parse_job_form
from dimnode.domain.model import ModelManifest, ModelRef, TensorSpec
from dimnode.domain.tensors import from_numpy, to_json
from p2p.ipfs.cid import DAG_CBOR, compute

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

FUNCTIONS: dict[str, Callable[[Array], Array]] = {"double": lambda x: x * 2, "add": lambda x: x + 1, "negate": lambda x: -x}
TRAIN = "train"
"""One round of what converges to multiples of the mean of all rows, however they are spread over nodes."""


def _manifest(name: str) -> tuple[ModelRef, ModelManifest, bytes]:
    cid = compute(DAG_CBOR, codec.encode({"model": name})).text
    rows, weights = TensorSpec(name="x", dtype="float32", shape=("N", 2)), TensorSpec(name="w", dtype="float32", shape=(2,))
    result = TensorSpec(name="y", dtype="float32", shape=("N", 2))
    inputs, outputs = ((rows, weights), (weights,)) if name == TRAIN else ((rows,), (result,))
    manifest = ModelManifest(id=name, cid=cid, format="onnx", size=100, inputs=inputs, outputs=outputs)
    data = codec.encode(manifest)
    return ModelRef(id=name, cid=cid, manifest_cid=compute(DAG_CBOR, data).text, format="onnx", size=100), manifest, data


CATALOGUE = {ref.cid: (ref, manifest, data) for ref, manifest, data in map(_manifest, (*FUNCTIONS, TRAIN))}
"""Every node has all of them."""


def run_model(cid: str, arrays: Arrays) -> dict[str, Array]:
    name = CATALOGUE[cid][0].id
    if name == TRAIN:
        return {"w": arrays["x"].mean(axis=0, dtype=np.float32) + arrays["w"]}
    return {"y": FUNCTIONS[name](arrays["x"])}


@dataclass(frozen=True, slots=True)
class Asked:
    """A job and what it must come to."""

    form: JobForm
    output: str
    answer: Array


def make_job(rng: random.Random, key: str, pattern: str | None = None, **more: Any) -> Asked:
    rows = np.asarray(rng.choices(range(-50, 50), k=2 * rng.randint(1, 4)), np.float32).reshape(-1, 2)
    pattern = pattern or rng.choices(("chained", "collaborative", "comparative"), (4, 2, 2))[0]
    config, output, answer = _KINDS[pattern](rng, rows)
    data = {"x": rows} | ({"w": np.zeros(2, np.float32)} if output == "w" else {})
    plain: dict[str, Any] = {
        "pattern": pattern,
        "config": config,
        "client_data": {name: to_json(from_numpy(array)) for name, array in data.items()},
        "idempotency_key": key,
        "retries": 20,
        **more,
    }
    return Asked(parse_job_form(plain), output, answer)


Kind = tuple[dict[str, Any], str, Array]


def _chained(rng: random.Random, rows: Array) -> Kind:
    steps: list[dict[str, Any]] = []
    for n in range(1, rng.randint(1, 3) + 1):
        name = rng.choice(sorted(FUNCTIONS))
        before = {"input_source": f"step_{n - 1}_output", "inputs": {"y": "x"}} if n > 1 else {}
        steps.append({"step": n, "model_id": name, **before})
        rows = FUNCTIONS[name](rows)
    return {"pipeline": steps}, "y", rows


def _collaborative(rng: random.Random, rows: Array) -> Kind:
    if rng.random() < 0.5:
        return {"model_id": "negate", "aggregation": {"method": "concat"}}, "y", -rows
    rounds = rng.randint(1, 3)
    config = {"model_id": TRAIN, "rounds": rounds, "feedback": {"w": "w"}}
    return config, "w", rounds * rows.mean(axis=0, dtype=np.float32)


def _comparative(rng: random.Random, rows: Array) -> Kind:
    names = sorted(rng.sample(sorted(FUNCTIONS), 2))
    config = {"model_ids": names, "consensus": {"method": "mean", "min_agreement": 0.0}}
    return config, "y", np.mean([FUNCTIONS[n](rows) for n in names], axis=0)


_KINDS: dict[str, Callable[[random.Random, Array], Kind]] = {
    "chained": _chained,
    "collaborative": _collaborative,
    "comparative": _comparative,
}
