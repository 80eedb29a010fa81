"""Language models as folders, the way they are published: ``config.json``, ``tokenizer.json``, ``*.safetensors``.

A folder may hold data only. Pickled weights and Python files are refused even if nothing would read them: a folder that was
made to be trusted by other programs is not one to pass on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from loaders.archive import read_archive
from loaders.language.networks import check_config
from loaders.language.parts import Parts, checked_template, numbers, parse_object, refuse, token_text
from loaders.language.tokens import read_tokenizer
from loaders.safetensors_file import read_raw

_WEIGHTS = re.compile(r"model[A-Za-z0-9_\-]*\.safetensors", re.ASCII)
_DATA = re.compile(r"[A-Za-z0-9_.\-]+\.(json|safetensors|txt|md|jinja|model)|LICENSE|LICENCE|NOTICE|README", re.ASCII)
"""``.model`` is SentencePiece's; it is not read."""


def read_folder(path: Path) -> Parts:
    """Raises `ModelRejected`, `OSError`."""
    members = read_archive(path)
    odd = next((name for name in members if not _DATA.fullmatch(name)), None)
    if odd is not None:
        raise refuse(f"it holds {odd[:64]!r}; data files are taken, code and pickles are not")
    for name in ("config.json", "tokenizer.json"):
        if name not in members:
            raise refuse(f"it has no {name}")
    config = parse_object(members["config.json"], "config.json")
    check_config(config)
    about = parse_object(members.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    generation = parse_object(members.get("generation_config.json", b"{}"), "generation_config.json")
    tokenizer = read_tokenizer(members["tokenizer.json"])
    special = {name: token_text(about.get(name)) for name in ("bos_token", "eos_token")}
    stops = numbers(config.get("eos_token_id")) | numbers(generation.get("eos_token_id"))
    if (end := tokenizer.token_to_id(special["eos_token"])) is not None:
        stops.add(end)
    apart = members.get("chat_template.jinja")
    template = checked_template(about.get("chat_template") if apart is None else apart.decode("utf-8", "replace"))
    weights = _weights(members)
    return Parts(config, tokenizer, weights, quantized_layers(config, weights), frozenset(stops), template, special)


def _weights(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Of all parts, as MLX arrays."""
    out: dict[str, Any] = {}
    for name in sorted(n for n in members if _WEIGHTS.fullmatch(n)):
        for key, (kind, array) in read_raw(members[name]).items():
            if key in out:
                raise refuse("two of its files have the same weight")
            if array.dtype == np.float64:
                raise refuse("its weights are 64-bit floats")
            out[key] = mx.array(array).view(mx.bfloat16) if kind == "BF16" else mx.array(array)
    if not out:
        raise refuse("it has no model.safetensors")
    return out


def quantized_layers(config: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """By what mlx-lm writes into a config (``quantization``), the layers that are packed."""
    how = config.get("quantization")
    if how is None:
        if config.get("quantization_config") is not None:
            raise refuse("it is quantised in a way that is not supported; mlx_lm.convert makes one that is")
        return {}
    if not isinstance(how, dict):
        raise refuse("its quantization is no object")
    _packing(how)
    names = [n.removesuffix(".scales") for n in weights if n.endswith(".scales")]
    return {name: _packing(how.get(name, how)) for name in names}


def _packing(how: Any) -> dict[str, int]:
    size, bits = (how.get("group_size"), how.get("bits")) if isinstance(how, dict) else (None, None)
    if size not in (16, 32, 64, 128) or bits not in (2, 3, 4, 5, 6, 8) or how.get("mode", "affine") != "affine":
        raise refuse("it is quantised in a way that is not supported")
    return {"group_size": size, "bits": bits}
