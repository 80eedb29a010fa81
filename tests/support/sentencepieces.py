"""Tokenizers made by SentencePiece itself, small ones, and what a GGUF file says of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from loaders.language.gguf_sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED

SENTENCES = [
    line
    for path in sorted((Path(__file__).resolve().parents[2] / "docs").glob("*.md"))
    for line in path.read_text("utf-8").splitlines()
    if line
]


@dataclass(frozen=True)
class Pieces:
    tokens: list[str]
    scores: list[float]
    kinds: list[int]

    def values(self, **more: Any) -> dict[str, Any]:
        found = {"model": "llama", "tokens": self.tokens, "scores": self.scores, "token_type": self.kinds, **more}
        return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def trained(vocabulary: int, *, prefix: bool = True, sentences: Sequence[str] = SENTENCES) -> tuple[Any, Pieces]:
    """SentencePiece's own processor, and the pieces as llama.cpp's converter writes them down."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences[:3000]), model_writer=out, vocab_size=vocabulary, model_type="bpe", byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
        allow_whitespace_only_pieces=True, split_digits=True, num_threads=1, minloglevel=2,
    )  # fmt: skip
    it = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    numbers = range(it.get_piece_size())
    return it, Pieces([it.id_to_piece(i) for i in numbers], [it.get_score(i) for i in numbers], [_kind(it, i) for i in numbers])


def _kind(it: Any, number: int) -> int:
    if it.is_unknown(number):
        return UNKNOWN
    if it.is_control(number):
        return CONTROL
    if it.is_unused(number):
        return UNUSED
    return BYTE if it.is_byte(number) else NORMAL
