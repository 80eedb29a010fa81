"""Bare weights of known architectures; the encoder is compared with torch's own, the MLP with numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders.api import About, InferenceFailed, ModelRejected
from loaders.archive import pack_folder
from loaders.safetensors_file import read_tensors

MLP = {"type": "mlp", "layers": ["one", "two"], "activation": "relu", "final": "softmax"}
BERT = {"type": "bert", "layers": 2, "heads": 4, "epsilon": 1e-12}


def written(arrays: dict[str, Any], **header: Any) -> bytes:
    body, entries = b"", {}
    names = {"float32": "F32", "float16": "F16", "int64": "I64", "float64": "F64"}
    for name, a in arrays.items():
        entries[name] = {"dtype": names[a.dtype.name], "shape": list(a.shape), "data_offsets": [len(body), len(body) + a.nbytes]}
        body += a.tobytes()
    text = json.dumps({**entries, **header}).encode()
    return len(text).to_bytes(8, "little") + text + body


def mlp_weights(seed: int = 0) -> dict[str, Any]:
    r = np.random.default_rng(seed)
    shapes = {"one.weight": (8, 5), "one.bias": (8,), "two.weight": (3, 8), "two.bias": (3,)}
    return {n: r.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def load(path: Path, architecture: dict[str, Any] | None = None):
    from loaders.safetensors_loader import SafetensorsLoader

    return SafetensorsLoader().load(path, 1, About(architecture=architecture or {}))


def test_an_mlp(tmp_path: Path) -> None:
    w = mlp_weights()
    (tmp_path / "m").write_bytes(written(w, __metadata__={"format": "pt"}))
    model = load(tmp_path / "m", MLP)
    assert (model.schema.inputs[0].shape, model.schema.outputs[0].shape) == (("batch", 5), ("batch", 3))
    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    z = np.maximum(x @ w["one.weight"].T + w["one.bias"], 0) @ w["two.weight"].T + w["two.bias"]
    e = np.exp(z - z.max(1, keepdims=True))
    np.testing.assert_allclose(model.run({"x": x})["y"], e / e.sum(1, keepdims=True), rtol=1e-5)


def test_half_precision_is_widened_and_double_precision_is_refused_not_cut(tmp_path: Path) -> None:
    x = np.ones((1, 5), np.float32)
    (tmp_path / "half").write_bytes(written({n: a.astype(np.float16) for n, a in mlp_weights().items()}))
    assert load(tmp_path / "half", MLP).run({"x": x})["y"].dtype == np.float32
    (tmp_path / "double").write_bytes(written({n: a.astype(np.float64) if n == "two.bias" else a for n, a in mlp_weights().items()}))
    with pytest.raises(ModelRejected, match=r"'two.bias' has 64-bit floats.*save it in 32 bits"):
        load(tmp_path / "double", MLP)


def bert_weights(width: int = 16, wide: int = 32) -> dict[str, Any]:
    r = np.random.default_rng(2)
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{n}_embeddings.weight": (size, width) for n, size in (("word", 30), ("position", 12), ("token_type", 2))
    }
    norms = [
        "embeddings.LayerNorm",
        *(f"encoder.layer.{i}.{n}" for i in range(2) for n in ("attention.output.LayerNorm", "output.LayerNorm")),
    ]
    for n in norms:
        shapes |= {f"{n}.weight": (width,), f"{n}.bias": (width,)}
    for i in range(2):
        at = f"encoder.layer.{i}."
        sizes = {"attention.self.query": (width, width), "attention.self.key": (width, width), "attention.self.value": (width, width),
                 "attention.output.dense": (width, width), "intermediate.dense": (wide, width), "output.dense": (width, wide)}  # fmt: skip
        for n, (rows, columns) in sizes.items():
            shapes |= {f"{at}{n}.weight": (rows, columns), f"{at}{n}.bias": (rows,)}
    return {n: (r.normal(size=s) * 0.3 + (1 if n.endswith("LayerNorm.weight") else 0)).astype(np.float32) for n, s in shapes.items()}


def by_torch(w: dict[str, Any], tokens: Any, mask: Any) -> Any:
    """torch's own encoder with the same weights."""
    import torch

    t = {n: torch.from_numpy(a) for n, a in w.items()}
    x = (
        t["embeddings.word_embeddings.weight"][tokens]
        + t["embeddings.position_embeddings.weight"][: tokens.shape[1]]
        + t["embeddings.token_type_embeddings.weight"][0]
    )
    x = torch.nn.functional.layer_norm(x, (16,), t["embeddings.LayerNorm.weight"], t["embeddings.LayerNorm.bias"], 1e-12)
    for i in range(2):
        at = f"encoder.layer.{i}."
        layer = torch.nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, layer_norm_eps=1e-12)
        parts = ("query", "key", "value")
        layer.load_state_dict({
            "self_attn.in_proj_weight": torch.cat([t[f"{at}attention.self.{p}.weight"] for p in parts]),
            "self_attn.in_proj_bias": torch.cat([t[f"{at}attention.self.{p}.bias"] for p in parts]),
            **{f"{ours}.{k}": t[f"{at}{theirs}.{k}"] for k in ("weight", "bias") for ours, theirs in (
                ("self_attn.out_proj", "attention.output.dense"), ("linear1", "intermediate.dense"), ("linear2", "output.dense"),
                ("norm1", "attention.output.LayerNorm"), ("norm2", "output.LayerNorm"))},
        })  # fmt: skip
        layer.train()  # the fast path has other rounding
        layer.dropout.p = layer.dropout1.p = layer.dropout2.p = 0.0
        layer.self_attn.dropout = 0.0
        x = layer(x, src_key_padding_mask=torch.from_numpy(mask == 0))
    return x.detach().numpy()


def test_a_bert_encoder_gives_what_torch_gives(tmp_path: Path) -> None:
    w = bert_weights()
    tokens = np.random.default_rng(3).integers(0, 30, (2, 7))
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3])
    expected = by_torch(w, tokens, mask)
    (tmp_path / "m").write_bytes(written(w))
    got = load(tmp_path / "m", BERT).run({"input_ids": tokens, "attention_mask": mask})["y"]
    np.testing.assert_allclose(got[mask == 1], expected[mask == 1], atol=2e-5)
    mean = load(tmp_path / "m", {**BERT, "output": "mean"}).run({"input_ids": tokens, "attention_mask": mask})["y"]
    wanted = np.stack([e[m == 1].mean(0) for e, m in zip(expected, mask, strict=True)])
    np.testing.assert_allclose(mean, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=2e-5)
    first = load(tmp_path / "m", {**BERT, "output": "first"}).run({"input_ids": tokens, "attention_mask": mask})["y"]
    np.testing.assert_allclose(first, expected[:, 0], atol=2e-5)
    with pytest.raises(InferenceFailed, match="13 tokens"):
        load(tmp_path / "m", BERT).run({"input_ids": np.zeros((1, 13), np.int64), "attention_mask": np.ones((1, 13), np.int64)})


@pytest.mark.timeout(240)  # transformers takes its time to be imported
def test_a_real_sentence_encoder_gives_what_transformers_gives(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, 22 million weights, from the files that its authors publish."""
    from tests.support.loader_cases import minilm, minilm_answers, minilm_inputs

    model = load(minilm(tmp_path))
    assert model.schema.outputs[0].shape == ("batch", 384)
    found, asked = model.run(minilm_inputs())["y"], minilm_inputs()
    np.testing.assert_allclose(found, minilm_answers()["y"], atol=2e-6)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]
    alone = model.run({n: a[:1, : int(asked["attention_mask"][0].sum())] for n, a in asked.items()})["y"]
    np.testing.assert_allclose(alone, found[:1], atol=2e-6)  # what fills up a row is not seen


def test_a_folder_tells_its_architecture(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(written(bert_weights()))
    config = {"model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 4, "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(config))
    pack_folder(folder, tmp_path / "m")
    assert load(tmp_path / "m").schema.outputs[0].shape == ("batch", 16)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    pack_folder(folder, tmp_path / "m")
    with pytest.raises(ModelRejected, match="architecture that DIM knows: mlp, bert"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": ["one", "three"]}, "no tensor 'three.weight'"), ({"layers": []}, "names of the layers"), ({"activation": "exec"}, "activation"),
        ({"layers": ["two", "one"]}, "another shape"), ({"type": "__import__"}, "mlp, bert"), ({"type": "bert", "layers": -1, "heads": 4}, "layers"),
    ],
)  # fmt: skip
def test_architectures_that_do_not_fit(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "m").write_bytes(written(mlp_weights()))
    with pytest.raises(ModelRejected, match=words):
        load(tmp_path / "m", {**MLP, **change})


def header(**entry: Any) -> bytes:
    text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}", header(data_offsets=[0, 16]), header(data_offsets=[-8, 0]), header(shape=[3]),
        header(shape=[1 << 30, 1 << 30]), header(shape=[-1, -2]), header(dtype="PICKLE"), header(data_offsets=[0.0, 8.0]), header(data_offsets=[8, 0]),
        (4).to_bytes(8, "little") + b"[][]", (2).to_bytes(8, "little") + b"[]", b"\x02" + bytes(7) + b"\xff\xff",
    ],
)  # fmt: skip
def test_files_that_are_broken_or_hostile(data: bytes) -> None:
    with pytest.raises(ModelRejected, match="safetensors file was refused"):
        read_tensors(data)


def test_tensors_may_not_overlap_and_half_floats_are_read() -> None:
    text = json.dumps({n: {"dtype": "F32", "shape": [2], "data_offsets": o} for n, o in (("a", [0, 8]), ("b", [4, 12]))}).encode()
    with pytest.raises(ModelRejected, match="overlap"):
        read_tensors(len(text).to_bytes(8, "little") + text + bytes(12))
    text = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    raw = (np.array([1.5, -2], np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    assert read_tensors(len(text).to_bytes(8, "little") + text + raw)["a"].tolist() == [1.5, -2]
