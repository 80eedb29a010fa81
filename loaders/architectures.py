"""The architectures whose bare weights (safetensors) can be run: each is code of ours, chosen by name, never by file.

- ``mlp``: ``{"type": "mlp", "layers": ["one", "two"], "activation": "relu", "final": "softmax"}``. Layer L is
  ``x @ L.weight.T + L.bias``; the activation stands between layers; ``final`` is none, softmax or sigmoid.
- ``bert``: ``{"type": "bert", "layers": 6, "heads": 12, "epsilon": 1e-12, "prefix": "", "output": "mean"}``. The
  encoder of Devlin et al., 2018 (https://arxiv.org/abs/1810.04805) with the names of Hugging Face's checkpoints, GELU,
  learned positions. ``output``: ``hidden`` [batch, tokens, width], ``mean`` (over the tokens that the mask keeps, scaled to
  length 1, as sentence encoders do) or ``first`` (the first token's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from loaders.api import ModelRejected, ModelSchema, TensorSchema

Weights = Mapping[str, torch.Tensor]
Forward = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
}  # fmt: skip
_FINALS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x, "softmax": lambda x: torch.softmax(x, dim=-1), "sigmoid": torch.sigmoid,
}  # fmt: skip
MAX_LAYERS = 1000


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture that a Hugging Face ``config.json`` describes, empty if it is none of ours."""
    if config.get("model_type") != "bert" or config.get("hidden_act", "gelu") != "gelu":
        return {}
    return {
        "type": "bert", "layers": config.get("num_hidden_layers"), "heads": config.get("num_attention_heads"),
        "epsilon": config.get("layer_norm_eps", 1e-12), "output": "mean",
    }  # fmt: skip


def build(architecture: Mapping[str, Any], weights: Weights) -> tuple[ModelSchema, Forward]:
    """Raises `ModelRejected` for an unknown architecture, and for weights that do not fit it."""
    makers = {"mlp": _mlp, "bert": _bert}
    kind = architecture.get("type")
    if kind not in makers:
        known = ", ".join(makers)
        raise ModelRejected(f"bare weights need an architecture that DIM knows: {known}; give it in the manifest")
    return makers[kind](architecture, weights)


def _weight(weights: Weights, name: str, *shape: int | None) -> torch.Tensor:
    found = weights.get(name)
    if found is None:
        raise ModelRejected(f"the file has no tensor {name[:128]!r}")
    if found.dim() != len(shape) or any(want is not None and want != have for want, have in zip(shape, found.shape, strict=True)):
        raise ModelRejected(f"tensor {name[:128]!r} has another shape than the architecture needs")
    return found


def _option(architecture: Mapping[str, Any], name: str, default: str, allowed: Mapping[str, Any]) -> Any:
    value = architecture.get(name, default)
    if not isinstance(value, str) or value not in allowed:
        raise ModelRejected(f"{name} of the architecture must be one of {', '.join(allowed)}")
    return allowed[value]


def _count(architecture: Mapping[str, Any], name: str) -> int:
    value = architecture.get(name)
    if type(value) is not int or not 0 < value <= MAX_LAYERS:
        raise ModelRejected(f"{name} of the architecture must be a whole number above 0")
    return value


def _mlp(architecture: Mapping[str, Any], weights: Weights) -> tuple[ModelSchema, Forward]:
    names = architecture.get("layers")
    if not isinstance(names, list) or not 0 < len(names) <= MAX_LAYERS:  # pyright: ignore[reportUnknownArgumentType]
        raise ModelRejected("layers of the architecture must be the names of the layers")
    activation = _option(architecture, "activation", "relu", _ACTIVATIONS)
    final = _option(architecture, "final", "none", _FINALS)
    layers: list[tuple[torch.Tensor, torch.Tensor]] = []
    width = None
    for name in names:  # pyright: ignore[reportUnknownVariableType]
        weight = _weight(weights, f"{name}.weight", None, width)
        width = int(weight.shape[0])
        layers.append((weight, _weight(weights, f"{name}.bias", width)))

    def forward(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = inputs["x"]
        for number, (weight, bias) in enumerate(layers):
            x = functional.linear(activation(x) if number else x, weight, bias)
        return final(x)

    x = TensorSchema("x", "float32", ("batch", int(layers[0][0].shape[1])))
    return ModelSchema((x,), (TensorSchema("y", "float32", ("batch", width)),)), forward


def _bert(architecture: Mapping[str, Any], weights: Weights) -> tuple[ModelSchema, Forward]:
    layers, heads = _count(architecture, "layers"), _count(architecture, "heads")
    output = _option(architecture, "output", "hidden", {n: n for n in ("hidden", "mean", "first")})
    encoder = _Bert(weights, str(architecture.get("prefix", "")), layers, heads, float(architecture.get("epsilon", 1e-12)))

    def forward(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        hidden, mask = encoder.hidden(inputs), inputs["attention_mask"]
        if output == "hidden":
            return hidden
        if output == "first":
            return hidden[:, 0]
        kept = mask.to(hidden.dtype)[:, :, None]
        return functional.normalize((hidden * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1), dim=1)

    names = (TensorSchema(n, "int64", ("batch", "tokens")) for n in ("input_ids", "attention_mask"))
    shape = ("batch", "tokens", encoder.width) if output == "hidden" else ("batch", encoder.width)
    return ModelSchema(tuple(names), (TensorSchema("y", "float32", shape),)), forward


class _Bert:
    def __init__(self, weights: Weights, prefix: str, layers: int, heads: int, epsilon: float) -> None:
        self._weights, self._prefix, self._layers, self._heads, self._epsilon = weights, prefix, layers, heads, epsilon
        self._words = _weight(weights, f"{prefix}embeddings.word_embeddings.weight", None, None)
        self.width = int(self._words.shape[1])
        if self.width % heads:
            raise ModelRejected("the width of the model is no multiple of its heads")
        self._positions = _weight(weights, f"{prefix}embeddings.position_embeddings.weight", None, self.width)
        self._types = _weight(weights, f"{prefix}embeddings.token_type_embeddings.weight", None, self.width)
        self._norms = {
            n: self._pair(n, self.width) for n in ("embeddings.LayerNorm", *self._each("attention.output.LayerNorm", "output.LayerNorm"))
        }
        attention = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        self._linears = {n: self._pair(n, self.width, self.width) for n in self._each(*attention)}
        for number in range(layers):
            wide = self._pair(f"encoder.layer.{number}.intermediate.dense", None, self.width)
            self._linears[f"encoder.layer.{number}.intermediate.dense"] = wide
            self._linears[f"encoder.layer.{number}.output.dense"] = self._pair(
                f"encoder.layer.{number}.output.dense", self.width, int(wide[0].shape[0])
            )

    def _each(self, *names: str) -> list[str]:
        return [f"encoder.layer.{number}.{name}" for number in range(self._layers) for name in names]

    def _pair(self, name: str, *shape: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        weight = _weight(self._weights, f"{self._prefix}{name}.weight", *shape)
        return weight, _weight(self._weights, f"{self._prefix}{name}.bias", int(weight.shape[0]))

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (self.width,), *self._norms[name], eps=self._epsilon)

    def hidden(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[batch, tokens, width]"""
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        length = tokens.shape[1]
        if length > self._positions.shape[0]:
            raise ValueError(f"the text has {length} tokens, the model takes {self._positions.shape[0]}")
        x = functional.embedding(tokens, self._words) + self._positions[:length] + self._types[0]
        x = self._norm("embeddings.LayerNorm", x)
        ignored = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(mask == 0, torch.finfo(x.dtype).min)
        for number in range(self._layers):
            x = self._layer(f"encoder.layer.{number}.", x, ignored[:, None, None, :])
        return x

    def _layer(self, at: str, x: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            functional.linear(x, *self._linears[f"{at}attention.self.{n}"]).reshape(batch, length, self._heads, -1).transpose(1, 2)
            for n in ("query", "key", "value")
        )
        scores = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width // self._heads) + ignored, dim=-1)
        mixed = (scores @ v).transpose(1, 2).reshape(batch, length, width)
        x = self._norm(f"{at}attention.output.LayerNorm", x + functional.linear(mixed, *self._linears[f"{at}attention.output.dense"]))
        wide = functional.gelu(functional.linear(x, *self._linears[f"{at}intermediate.dense"]))
        return self._norm(f"{at}output.LayerNorm", x + functional.linear(wide, *self._linears[f"{at}output.dense"]))
