"""GGUF files made on the spot, by ggml's own package: blocks of every packing, and a tiny language model of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES

from tests.support.language_models import CONFIG, tokenizer
from tests.support.sentencepieces import Pieces

HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2),
    "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Packing -> where in a block its float16 numbers are."""
WIDTH = 256
CHANGES = {"hidden_size": WIDTH, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 1, "tie_word_embeddings": True}
_NAMES = (
    ("model.layers.", "blk."), ("mlp.gate_proj", "ffn_gate"), ("mlp.down_proj", "ffn_down"), ("mlp.up_proj", "ffn_up"),
    ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"), ("input_layernorm", "attn_norm"), ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"),
)  # fmt: skip


def blocks(kind: str, rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Random bytes [rows, bytes] with reasonable factors."""
    r = np.random.default_rng(seed)
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    out = r.integers(0, 256, (rows, width // values, size), dtype=np.uint8)
    for at in HALVES[kind]:
        numbers = r.uniform(0.0005, 0.002, (rows, width // values)) * r.choice([-1, 1], (rows, width // values))
        out[..., at : at + 2] = numbers.astype(np.float16)[..., None].view(np.uint8)
    return out.reshape(rows, -1)


def values(raw: np.ndarray, kind: str) -> np.ndarray:
    """By ggml's own package, float32."""
    return quants.dequantize(raw, GGMLQuantizationType[kind])


def write(
    path: Path, tensors: dict[str, tuple[np.ndarray, str]], *, bos: bool | None = None, template: str | None = None, cut: str = "gpt-2",
    scaling: str | None = None, pieces: Pieces | None = None,
) -> Path:  # fmt: skip
    """A network of the `llama` family. ``tensors``: GGUF's name -> (bytes of rows, or floats; the type). ``cut``: how texts are cut. ``pieces``: SentencePiece's, instead of byte-level BPE."""
    config = {**CONFIG, **CHANGES}
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    words = tokenizer()
    names = [words.id_to_token(i) for i in range(words.get_vocab_size())]
    if pieces is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut)
        writer.add_token_list(names)
        writer.add_token_types([3 if n.startswith("<|") else 1 for n in names])
        writer.add_token_merges([" ".join(m) for m in merges(words)])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(pieces.tokens)
        writer.add_token_scores(pieces.scores)
        writer.add_token_types(pieces.kinds)
    if scaling is not None:
        writer.add_string("llama.rope.scaling.type", scaling)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    if bos is not None:
        writer.add_add_bos_token(bos)
    if template is not None:
        writer.add_chat_template(template)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merges(words: Any) -> list[tuple[str, str]]:
    import json

    found = json.loads(words.to_str())["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in found]


def renamed(name: str) -> str:
    """Hugging Face's name of a weight -> GGUF's."""
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name


def from_hugging_face(weights: dict[str, np.ndarray], factors: np.ndarray | None = None) -> dict[str, tuple[np.ndarray, str]]:
    """As llama.cpp's converter does it: the halves of each head of queries and keys become pairs. ``factors``: of the rotations."""
    out: dict[str, tuple[np.ndarray, str]] = {}
    for name, array in weights.items():
        if "q_proj" in name or "k_proj" in name:
            width = CHANGES["head_dim"]
            array = array.reshape(-1, 2, width // 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        out[renamed(name)] = (np.ascontiguousarray(array), "F32")
    if factors is not None:
        out["rope_freqs.weight"] = (factors.astype(np.float32), "F32")
    return out


def shapes() -> dict[str, tuple[int, ...]]:
    """GGUF's name -> shape."""
    from tests.support.language_models import weights

    return {renamed(name): array.shape for name, array in weights({**CONFIG, **CHANGES}).items()}


def network(kind: str) -> dict[str, tuple[np.ndarray, str]]:
    """Every matrix in one packing."""
    return {
        name: (np.ones(shape, np.float32), "F32") if len(shape) == 1 else (blocks(kind, *shape, seed=number), kind)
        for number, (name, shape) in enumerate(shapes().items())
    }


def unpacked(tensors: dict[str, tuple[np.ndarray, str]], to: str = "F32") -> dict[str, tuple[np.ndarray, str]]:
    """The same numbers as plain floats: ``F32`` or ``BF16``."""
    floats = {n: (data if kind == "F32" else values(data, kind)).astype(np.float32) for n, (data, kind) in tensors.items()}
    if to == "F32":
        return {n: (a, "F32") for n, a in floats.items()}
    return {n: (a, "F32") if a.ndim == 1 else (quants.quantize(a, GGMLQuantizationType[to]), to) for n, a in floats.items()}
