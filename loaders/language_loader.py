"""Language models (mlx-lm's networks) on Macs and on Linux CPUs: prompts in, texts out, piece by piece if somebody listens.

Inputs: ``prompt`` str [N], and, if wanted, ``max_tokens``, ``temperature``, ``top_p``, ``seed`` and ``chat``, one value each. Outputs: ``text``
str [N], ``tokens`` int32 [N, T] (filled up with -1), ``finish`` str [N]: "stop" where the model ended, "length" where it had to.
Each prompt is answered by itself, with the seed begun anew: an answer does not depend on what else was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from loaders.api import (
    NOTHING,
    About,
    Array,
    InferenceFailed,
    InputRejected,
    LoadedModel,
    ModelRejected,
    ModelSchema,
    Tell,
    TensorSchema,
)  # fmt: skip
from loaders.checks import check_inputs
from loaders.language.chat import Chat
from loaders.language.folder import read_folder
from loaders.language.generation import Sampling, generate
from loaders.language.gguf import is_gguf, read_gguf
from loaders.language.networks import build, import_networks
from loaders.language.parts import Parts
from loaders.language.tokens import TextStream
from loaders.messages import clean_message

import_networks()
for _module in ("mlx_lm.models.llama", "mlx_lm.models.cache", "mlx_lm.sample_utils"):
    __import__(_module)  # before the sandbox closes

TASK = "text-generation"
MAX_PROMPTS = 64
MAX_TOKENS = 8192
"""Of one answer."""
MAX_CONTEXT = 32768
"""Tokens of a prompt and its answer: the memory of a longer one is for other machines."""
DEFAULT_TOKENS = 256
_MLX_ERRORS = (RuntimeError, ValueError, TypeError)

SCHEMA = ModelSchema(
    inputs=(
        TensorSchema("prompt", "str", ("N",)),
        TensorSchema("max_tokens", "int32", (), optional=True),
        TensorSchema("temperature", "float32", (), optional=True),
        TensorSchema("top_p", "float32", (), optional=True),
        TensorSchema("seed", "int64", (), optional=True),
        TensorSchema("chat", "bool", (), optional=True),
    ),
    outputs=(TensorSchema("text", "str", ("N",)), TensorSchema("tokens", "int32", ("N", "T")), TensorSchema("finish", "str", ("N",))),
    task=TASK,
    sample={"prompt": np.array(["Hello"], dtype=object), "max_tokens": np.array(2, np.int32)},
)


class LanguageLoader:
    format = "mlx-lm"

    def load(self, path: Path, threads: int, about: About = NOTHING) -> LoadedModel:
        """``threads`` is not used: on a CPU MLX computes in one thread, and knows no other number. Raises `ModelRejected`."""
        if not mx.metal.is_available():
            # on a CPU, MLX compiles by calling a C++ compiler, which no agent may
            mx.disable_compile()
        try:
            with path.open("rb") as f:
                gguf = is_gguf(f.read(8))
            parts = read_gguf(path) if gguf else read_folder(path)
        except OSError as e:
            raise ModelRejected("the model file cannot be read") from e
        return LanguageModel(build(parts), parts)


class LanguageModel:
    schema = SCHEMA

    def __init__(self, network: Any, parts: Parts) -> None:
        self._network, self._tokenizer, self._stops = network, parts.tokenizer, parts.stops
        self._bos, self._first = parts.special.get("bos_token", ""), parts.first
        self._chat = Chat(parts.template, parts.special) if parts.template else None
        # an id beyond the table of the network would read memory that is not its own
        self._vocabulary = int(parts.config.get("vocab_size") or 0)
        told = parts.config.get("max_position_embeddings") or parts.config.get("n_positions") or MAX_CONTEXT
        self._context = min(int(told), MAX_CONTEXT)
        if self._vocabulary < 1 or self._context < 2:
            raise ModelRejected("the language model was refused: its config does not tell its vocabulary or its context")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        return self.stream(inputs, lambda row, text: None)

    def stream(self, inputs: Mapping[str, Array], tell: Tell) -> dict[str, Array]:
        """The same; pieces of text are told as they come."""
        check_inputs(inputs, self.schema.inputs)
        most, sampling, chat = _parameters(inputs)
        prompts = [str(p) for p in inputs["prompt"].tolist()]
        if not 0 < len(prompts) <= MAX_PROMPTS:
            raise InputRejected(f"input 'prompt' must have 1 to {MAX_PROMPTS} texts")
        encoded = [self._encode(p, self._chat is not None if chat is None else chat) for p in prompts]
        try:
            answers = [self._answer(ids, most, sampling, lambda text, row=row: tell(row, text)) for row, ids in enumerate(encoded)]
        except _MLX_ERRORS as e:
            raise InferenceFailed(f"MLX failed: {clean_message(e)}") from e
        width = max(len(ids) for _, ids, _ in answers)
        tokens = np.full((len(answers), width), -1, np.int32)
        for row, (_, ids, _) in enumerate(answers):
            tokens[row, : len(ids)] = ids
        return {"text": _texts([a[0] for a in answers]), "tokens": tokens, "finish": _texts([a[2] for a in answers])}

    def _encode(self, prompt: str, chat: bool) -> list[int]:
        if chat and self._chat is None:
            raise InputRejected("the model has no chat template; leave `chat` out")
        text = self._chat.write(prompt) if chat and self._chat is not None else prompt
        begun = bool(self._bos) and text.startswith(self._bos)
        ids = list(self._tokenizer.encode(text, add_special_tokens=not begun).ids)
        if not ids:
            raise InputRejected("the prompt is empty")
        if self._first is not None and ids[0] != self._first:  # templates write it themselves
            ids = [self._first, *ids]
        if max(ids) >= self._vocabulary:
            raise InputRejected("the prompt has tokens that the network does not know: its tokenizer is another model's")
        if len(ids) >= self._context:
            raise InputRejected(f"the prompt has {len(ids)} tokens, and the model's context has room for {self._context}")
        return ids

    def _answer(self, ids: list[int], most: int, sampling: Sampling, tell: Callable[[str], None]) -> tuple[str, list[int], str]:
        stream, out, finish = TextStream(self._tokenizer), list[int](), "length"
        for token in generate(self._network, ids, min(most, self._context - len(ids)), sampling):
            if token in self._stops:
                finish = "stop"
                break
            out.append(token)
            if piece := stream.push(token):
                tell(piece)
        if piece := stream.end():
            tell(piece)
        return stream.text, out, finish


def _texts(values: list[str]) -> Array:
    return np.array(values, dtype=object)


def _parameters(inputs: Mapping[str, Array]) -> tuple[int, Sampling, bool | None]:
    """Raises `InputRejected` naming the parameter."""

    def given(name: str, default: Any) -> Any:
        return inputs[name].item() if name in inputs else default

    most, sampling = given("max_tokens", DEFAULT_TOKENS), Sampling(given("temperature", 0.0), given("top_p", 1.0), given("seed", 0))
    if not 1 <= most <= MAX_TOKENS:
        raise InputRejected(f"input 'max_tokens' must be 1 to {MAX_TOKENS}, is {most}")
    if not 0 <= sampling.temperature <= 10:
        raise InputRejected("input 'temperature' must be 0 to 10")
    if not 0 < sampling.top_p <= 1:
        raise InputRejected("input 'top_p' must be above 0 and at most 1")
    if not 0 <= sampling.seed < 1 << 63:
        raise InputRejected("input 'seed' must not be negative")
    return most, sampling, given("chat", None)
