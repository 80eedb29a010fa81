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

from loaders.language.gguf_tensors import GROUP, KINDS, to_mlx
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
_CONTROL = 3
"""Kind of a token that is no text."""


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
    names = {k: _named(tokens, header.values.get(f"tokenizer.ggml.{k}_id")) for k in ("bos_token", "eos_token")}
    special = {"bos_token": names["bos_token"].get("text", ""), "eos_token": names["eos_token"].get("text", "")}
    return Parts(
        config, _tokenizer(header.values, tokens), weights, _packed(weights),
        frozenset(numbers(header.values.get("tokenizer.ggml.eos_token_id"))),
        checked_template(header.values.get("tokenizer.chat_template")), special, _first(header.values, tokens),
    )  # fmt: skip


def read_weights(path: Path, header: GgufHeader) -> dict[str, Any]:
    """As `mlx.core.load` gives them: packed tensors as ``X.weight`` with ``X.scales`` and ``X.biases``."""
    data = np.memmap(path, np.uint8, "r")
    out: dict[str, Any] = {}
    for name, t in header.tensors.items():
        out |= to_mlx(name, data[t.begin : t.begin + t.size], tuple(reversed(t.shape)), t.kind)
    return out


def _named(tokens: list[str], number: Any) -> Mapping[str, str]:
    return {"text": tokens[number]} if isinstance(number, int) and 0 <= number < len(tokens) else {}


def _first(values: Mapping[str, Any], tokens: list[str]) -> int | None:
    """The token that the author wants in front of every text."""
    number = values.get("tokenizer.ggml.bos_token_id")
    if values.get("tokenizer.ggml.add_bos_token") is not True or type(number) is not int:
        return None
    if not 0 <= number < len(tokens):
        raise refuse("its first token is none of its tokens")
    return number


def _config(header: GgufHeader) -> dict[str, Any]:
    values = header.values
    kind = values.get("general.architecture")
    if kind != "llama":
        raise refuse(f"GGUF networks of type {str(kind)[:64]!r} are not supported; `llama` is")

    def of(name: str) -> Any:
        if f"llama.{name}" not in values:
            raise refuse(f"its header has no llama.{name}")
        return values[f"llama.{name}"]

    table = header.tensors.get("token_embd.weight")
    return {
        "model_type": "llama", "hidden_size": of("embedding_length"), "num_hidden_layers": of("block_count"),
        "intermediate_size": of("feed_forward_length"), "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": values.get("llama.attention.head_count_kv", of("attention.head_count")),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"), "vocab_size": table.shape[-1] if table is not None else 0,
        "rope_theta": values.get("llama.rope.freq_base", 10000.0), "rope_traditional": True,
        "max_position_embeddings": of("context_length"), "tie_word_embeddings": "output.weight" not in header.tensors,
    }  # fmt: skip


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


def _tokenizer(values: Mapping[str, Any], tokens: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, how = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    merges, kinds = values.get("tokenizer.ggml.merges"), values.get("tokenizer.ggml.token_type")
    if kind != "gpt2" or how not in ("smollm", "gpt-2", "default") or not isinstance(merges, list):
        raise refuse(f"its tokenizer ({str(kind)[:32]}, {str(how)[:32]}) is not supported; publish the model as a folder")
    pairs = [tuple(str(m).split(" ", 1)) for m in merges]
    try:
        tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, pairs))  # pyright: ignore[reportArgumentType]
    except Exception as e:
        raise refuse("its tokenizer is broken") from e
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    first = [pre_tokenizers.Digits(individual_digits=True)] if how == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(kinds, list) and len(kinds) == len(tokens):
        tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, kinds, strict=True) if k == _CONTROL])
    return tokenizer
