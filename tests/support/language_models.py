"""A tiny language model as a folder, the way real ones are published: random weights, a real tokenizer, trained on the licence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = Path(__file__).parents[2] / "LICENSE"
END, USER, BOT = "<|end|>", "<|user|>", "<|bot|>"
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 384, "rope_theta": 10000.0,
    "max_position_embeddings": 16384, "tie_word_embeddings": True, "head_dim": 16,
}  # fmt: skip


def tokenizer(vocabulary: int = 384) -> Tokenizer:
    out = Tokenizer(models.BPE())
    out.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    out.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, USER, BOT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    out.train_from_iterator([CORPUS.read_text()], trainer)
    return out


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    r = np.random.default_rng(seed)
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": (width, width), f"{layer}.self_attn.k_proj.weight": (keys, width),
            f"{layer}.self_attn.v_proj.weight": (keys, width), f"{layer}.self_attn.o_proj.weight": (width, width),
            f"{layer}.mlp.gate_proj.weight": (inner, width), f"{layer}.mlp.up_proj.weight": (inner, width),
            f"{layer}.mlp.down_proj.weight": (width, inner),
            f"{layer}.input_layernorm.weight": (width,), f"{layer}.post_attention_layernorm.weight": (width,),
        }  # fmt: skip
    return {
        name: (np.ones(shape) if len(shape) == 1 else r.normal(size=shape) * (1.0 if "embed" in name else 0.3)).astype(np.float32)
        for name, shape in shapes.items()
    }


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header: dict[str, Any] = {}
    at = 0
    for name, array in tensors.items():
        size = math.prod(array.shape) * array.itemsize
        header[name] = {"dtype": {"float32": "F32", "float16": "F16", "uint16": "BF16"}[array.dtype.name], "shape": list(array.shape),
                        "data_offsets": [at, at + size]}  # fmt: skip
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values())


def tiny_folder(folder: Path, *, stops: bool = True, template: str | None = TEMPLATE, seed: int = 0, **changes: Any) -> Path:
    """``stops``: it may end a text by itself. ``changes``: of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    if stops:
        config["eos_token_id"] = 0
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if stops:
        about["eos_token"] = END
    if template is not None:
        about["chat_template"] = template
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "model.safetensors").write_bytes(safetensors(weights({**CONFIG}, seed)))
    return folder


def about_pickle(folder: Path) -> None:
    """A pickle as older models are published with."""
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
