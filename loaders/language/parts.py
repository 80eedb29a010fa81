"""What a language model is made of, whatever file it came in. Plain data: nothing here runs what a file brings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loaders.api import ModelRejected

MAX_TEXT = 64 << 20
"""Bytes of one JSON file: tokenizers of large vocabularies have ten million."""
MAX_TEMPLATE = 256 << 10


@dataclass(frozen=True, slots=True)
class Parts:
    config: Mapping[str, Any]
    """The network's sizes, as ``config.json`` has them."""
    tokenizer: Any
    """A `tokenizers.Tokenizer`."""
    weights: dict[str, Any]
    """Name -> `mlx.core.array`."""
    quantized: Mapping[str, Any]
    """Layer -> ``{"group_size", "bits"}`` of weights that are packed; empty: none is."""
    stops: frozenset[int]
    """Tokens that end a text."""
    template: str = ""
    """How a chat is written down, in Jinja; empty: the model is not for chats."""
    special: Mapping[str, str] = field(default_factory=dict[str, str])
    """``bos_token`` and ``eos_token``, which templates use."""
    first: int | None = None
    """A token that stands in front of every text, where the tokenizer does not see to that itself."""


def refuse(what: str) -> ModelRejected:
    return ModelRejected(f"the language model was refused: {what}")


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises `ModelRejected`."""
    if len(data) > MAX_TEXT:
        raise refuse(f"{name} is too large")
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise refuse(f"{name} is not JSON") from e
    if not isinstance(found, dict):
        raise refuse(f"{name} is not a JSON object")
    return {str(k): v for k, v in found.items()}


def token_text(value: Any) -> str:
    """Special tokens are a text, or an object with their ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def numbers(value: Any) -> set[int]:
    """A number or a list of them; anything else is nothing."""
    several = value if isinstance(value, list) else [value]
    return {n for n in several if type(n) is int and n >= 0}


def checked_template(value: Any) -> str:
    """A template, or the one named ``default`` of several. Raises `ModelRejected`."""
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_TEMPLATE:
        raise refuse("its chat template is no text, or too long")
    return value
