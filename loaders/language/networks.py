"""Which networks are run: mlx-lm's own code, chosen by name from a list. No file brings code of its own.

mlx-lm's front door imports transformers, the hub's client and, through them, every framework that is installed: seconds, hundreds
of megabytes and threads, which would keep agents from being forked, for parts that DIM does not use. So its networks, caches and
samplers are imported from behind it (`import_networks`).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from loaders.api import ModelRejected
from loaders.language.parts import Parts, refuse
from loaders.messages import clean_message

NETWORKS = {
    "cohere": "cohere", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3_text", "gpt2": "gpt2", "gpt_neox": "gpt_neox",
    "granite": "granite", "llama": "llama", "mistral": "llama", "olmo2": "olmo2", "phi": "phi", "phi3": "phi3", "qwen2": "qwen2",
    "qwen3": "qwen3", "smollm3": "smollm3", "stablelm": "stablelm", "starcoder2": "starcoder2",
}  # fmt: skip
"""``model_type`` of a config -> module of `mlx_lm.models`. Dense networks of text."""
MAX_LAYERS = 512
MAX_SIZE = 1 << 31
"""Of any number of a config. What really must fit is checked against the weights."""
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_DEPTH = 6


def import_networks() -> None:
    """Makes `mlx_lm.models` and `mlx_lm.sample_utils` importable without what the package itself would import. For agents: in
    a process that has mlx-lm already nothing changes. Raises `ImportError`."""
    if "mlx_lm" in sys.modules:
        return
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("mlx-lm is not installed")
    bare = ModuleType("mlx_lm")
    bare.__spec__ = spec
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["mlx_lm"] = bare


def check_config(config: Mapping[str, Any]) -> None:
    """Raises `ModelRejected` for networks that are not on the list, code, and sizes that are out of reason."""
    kind = config.get("model_type")
    if config.get("model_file") is not None:
        raise refuse("its config names a file with code of its own")
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise refuse(f"networks of type {str(kind)[:64]!r} are not supported; those that are: {', '.join(sorted(NETWORKS))}")
    for name in _LAYERS:
        layers = config.get(name)
        if layers is not None and not (type(layers) is int and 0 < layers <= MAX_LAYERS):
            raise refuse(f"its {name} is out of bounds")
    _check_numbers(config, 0)


def _check_numbers(value: Any, depth: int) -> None:
    if depth > _DEPTH:
        raise refuse("its config is nested too deeply")
    if isinstance(value, dict):
        for part in value.values():
            _check_numbers(part, depth + 1)
    elif isinstance(value, list):
        for part in value:
            _check_numbers(part, depth + 1)
    elif isinstance(value, int | float) and not -MAX_SIZE <= value <= MAX_SIZE:
        raise refuse("a number of its config is out of bounds")


def build(parts: Parts) -> Any:
    """The network with its weights. Raises `ModelRejected`."""
    module: Any = importlib.import_module(f"mlx_lm.models.{NETWORKS[parts.config['model_type']]}")
    try:
        network = module.Model(module.ModelArgs.from_dict(dict(parts.config)))
        weights = network.sanitize(parts.weights) if hasattr(network, "sanitize") else parts.weights
        if parts.quantized:
            nn.quantize(network, class_predicate=lambda path, layer: hasattr(layer, "to_quantized") and parts.quantized.get(path, False))
        network.eval()
        # every weight of the network must be there, and of its size: nothing is computed before
        network.load_weights(list(weights.items()), strict=True)
        mx.eval(network.parameters())
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, IndexError, OverflowError) as e:
        raise ModelRejected(f"the weights do not fit the network: {_first_words(e)}") from e
    return network


def _first_words(error: BaseException) -> str:
    return re.sub(r"\s+", " ", clean_message(error))[:200]
