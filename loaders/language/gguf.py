"""Language models as GGUF files, llama.cpp's format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

It is read here, with bounds: MLX's own reader is written in C, trusts the file, and wants to open it for writing, which no agent may.
Networks of type ``llama`` with byte-level tokenizers are taken; tensors in the forms that `loaders.language.gguf_tensors` knows.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from loaders.api import Array
from loaders.language.gguf_tensors import GROUP, KINDS, to_mlx
from loaders.language.gguf_tokens import first_token, read_tokenizer, special_tokens
from loaders.language.networks import check_config
from loaders.language.parts import Parts, checked_template, numbers, refuse

MAGIC = b"GGUF"
MAX_KEYS, MAX_TENSORS, MAX_ITEMS = 4096, 65536, 4 << 20
MAX_TEXT = 1 << 20
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_NAMES = (
    ("blk.", "model.layers."), ("ffn_gate", "mlp.gate_proj"), ("ffn_down", "mlp.down_proj"), ("ffn_up", "mlp.up_proj"),
    ("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"), ("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj"),
    ("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"), ("output.", "lm_head."),
)  # fmt: skip
_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class GgufHeader:
    values: dict[str, Any]
    tensors: dict[str, GgufTensor]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    shape: tuple[int, ...]
    """The last axis first."""
    kind: int
    begin: int
    """Place in the file."""
    size: int
    """Bytes."""


def is_gguf(head: bytes) -> bool:
    return head[:4] == MAGIC


def read_header(path: Path) -> GgufHeader:
    """Raises `ModelRejected`, `OSError`."""
    try:
        with path.open("rb") as f:
            return _header(f, os.fstat(f.fileno()).st_size)
    except (struct.error, UnicodeDecodeError) as e:
        raise refuse("its header is cut short, or broken") from e


def _header(f: BinaryIO, size: int) -> GgufHeader:
    magic, version, tensors, keys = f.read(4), *_read(f, "IQQ")
    if magic != MAGIC or version not in (2, 3):
        raise refuse("it is no GGUF file of version 2 or 3")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise refuse("its header has too many entries")
    values: dict[str, Any] = {}
    for _ in range(keys):
        key = _text(f)
        values[key] = _value(f, *_read(f, "I"))
    found: dict[str, GgufTensor] = {}
    for _ in range(tensors):
        name, (axes,) = _text(f), _read(f, "I")
        if not 0 < axes <= 4 or name in found:
            raise refuse("a tensor of its header is malformed")
        shape = _read(f, "Q" * axes)
        kind, offset = _read(f, "IQ")
        found[name] = GgufTensor(shape, kind, offset, _bytes(shape, kind))
    alignment = values.get("general.alignment", 32)
    if alignment not in (8, 16, 32, 64, 128, 256, 512, 1024, 4096):
        raise refuse("its alignment is odd")
    begin = -(-f.tell() // alignment) * alignment
    if any(t.begin % alignment or begin + t.begin + t.size > size for t in found.values()):
        raise refuse("its tensors reach beyond the file")
    return GgufHeader(values, {name: replace(t, begin=begin + t.begin) for name, t in found.items()})


def _read(f: BinaryIO, form: str) -> tuple[Any, ...]:
    """Little-endian, without gaps. Raises `struct.error` at the end of the file."""
    form = "<" + form
    return struct.unpack(form, f.read(struct.calcsize(form)))


def _text(f: BinaryIO) -> str:
    (size,) = _read(f, "Q")
    if size > MAX_TEXT:
        raise refuse("a text of its header is too long")
    data = f.read(size)
    if len(data) != size:
        raise refuse("its header is cut short")
    return data.decode("utf-8")


def _value(f: BinaryIO, kind: int) -> Any:
    if kind in _SCALARS:
        return _read(f, _SCALARS[kind])[0]
    if kind == _TEXT:
        return _text(f)
    if kind != _ARRAY:
        raise refuse("a value of its header is of a type that is not known")
    item, count = _read(f, "IQ")
    if count > MAX_ITEMS:
        raise refuse("a list of its header is too long")
    if item == _TEXT:
        return [_text(f) for _ in range(count)]
    if item not in _SCALARS:
        raise refuse("a list of its header is of a type that is not known")
    return list(_read(f, f"{count}{_SCALARS[item]}"))


def _bytes(shape: tuple[int, ...], number: int) -> int:
    kind = KINDS.get(number)
    if kind is None:
        names = ", ".join(k.name for k in KINDS.values())
        raise refuse(f"it has tensors of type {number}, which is not supported; those that are: {names}")
    if not all(0 < n < 1 << 32 for n in shape) or shape[0] % kind.values:
        raise refuse("a tensor of its header is malformed")
    return math.prod(shape) // kind.values * kind.size


def read_gguf(path: Path) -> Parts:
    """Raises `ModelRejected`, `OSError`."""
    header = read_header(path)
    config = _config(header)
    check_config(config)
    tokens = header.values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise refuse("it has no tokens")
    weights = {_renamed(name): array for name, array in read_weights(path, header).items()}
    if (factors := weights.pop(_FREQUENCIES, None)) is not None:
        config["rope_scaling"] = _rope_scaling(np.array(factors), config)
    return Parts(
        config, read_tokenizer(header.values, tokens), weights, _packed(weights),
        frozenset(n for k in ("eos", "eot") for n in numbers(header.values.get(f"tokenizer.ggml.{k}_token_id"))),
        checked_template(header.values.get("tokenizer.chat_template")), special_tokens(header.values, tokens), first_token(header.values, tokens),
    )  # fmt: skip


def read_weights(path: Path, header: GgufHeader) -> dict[str, Any]:
    """As `mlx.core.load` gives them: packed tensors as ``X.weight`` with ``X.scales`` and ``X.biases``."""
    data = np.memmap(path, np.uint8, "r")
    out: dict[str, Any] = {}
    for name, t in header.tensors.items():
        out |= to_mlx(name, data[t.begin : t.begin + t.size], tuple(reversed(t.shape)), t.kind)
    return out


def _config(header: GgufHeader) -> dict[str, Any]:
    values = header.values
    kind = values.get("general.architecture")
    if kind != "llama":
        raise refuse(f"GGUF networks of type {str(kind)[:64]!r} are not supported; `llama` is")

    def of(name: str, default: Any = None) -> Any:
        found = values.get(f"llama.{name}", default)
        if found is None:
            raise refuse(f"its header has no llama.{name}")
        if type(found) not in (int, float) or not found > 0:
            raise refuse(f"llama.{name} of its header is no number above 0")
        return found

    heads = of("attention.head_count")
    width = of("attention.key_length", max(1, of("embedding_length") // heads))
    if values.get("llama.rope.scaling.type", "none") != "none" or values.get("llama.rope.dimension_count", width) != width:
        raise refuse("it scales its positions in a way that is not supported; publish the model as a folder")
    table = header.tensors.get("token_embd.weight")
    return {
        "model_type": "llama", "hidden_size": of("embedding_length"), "num_hidden_layers": of("block_count"),
        "intermediate_size": of("feed_forward_length"), "num_attention_heads": heads, "head_dim": width,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"), "vocab_size": table.shape[-1] if table is not None else 0,
        "rope_theta": of("rope.freq_base", 10000.0), "rope_traditional": True,
        "max_position_embeddings": of("context_length"), "tie_word_embeddings": "output.weight" not in header.tensors,
    }  # fmt: skip


def _rope_scaling(factors: Array, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1 and later stretch slow rotations for longer contexts. GGUF has the result, a factor for each frequency; mlx-lm wants what it
    was made of. All that were published differ in one number, the largest factor; others are refused."""
    factor = float(factors.max(initial=1))
    scaling: dict[str, Any] = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    width = config["head_dim"]
    if not isinstance(width, int) or factors.shape != (width // 2,) or not 1 <= factor < 1000:
        raise refuse("its rotations have factors that do not fit")
    turns = 8192 / (2 * math.pi * float(config["rope_theta"]) ** (np.arange(0, width, 2) / width))
    smooth = np.clip((turns - 1) / 3, 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise refuse("it scales its positions in a way that is not supported; publish the model as a folder")
    return scaling


def _renamed(name: str) -> str:
    for old, new in _NAMES:
        if old != "output." or name.startswith(old):
            name = name.replace(old, new)
    return name


def _packed(weights: Mapping[str, Any]) -> dict[str, Any]:
    """How many bits a value has is seen from the sizes."""
    out: dict[str, Any] = {}
    for name in (n.removesuffix(".scales") for n in weights if n.endswith(".scales")):
        blocks = weights[f"{name}.scales"].shape[-1]
        out[name] = {"group_size": GROUP, "bits": weights[f"{name}.weight"].shape[-1] // max(1, blocks)}
    return out
