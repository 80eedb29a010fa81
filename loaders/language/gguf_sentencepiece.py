"""SentencePiece tokenizers of GGUF files (``tokenizer.ggml.model`` = ``llama``: Llama 2, Mistral, TinyLlama).

The file has pieces and their scores, and no merges: of all neighbours those are joined first that make the piece with the
highest score. The same by ranks is BPE, so Hugging Face's tokenizers do it. A piece that is none is spelt in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from loaders.language.parts import refuse

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens, as ggml numbers them."""
SPACE = "\u2581"
MAX_PIECE = 256
"""Characters of a piece: each cut of each is looked at. SentencePiece makes none above 16 unless it is told to."""


def read_sentencepiece(values: Mapping[str, Any], tokens: list[str]) -> Any:
    """A `tokenizers.Tokenizer`. Raises `ModelRejected`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    scores = _numbers(values.get("tokenizer.ggml.scores"), len(tokens))
    kinds = [int(k) for k in _numbers(values.get("tokenizer.ggml.token_type"), len(tokens))]
    if any(len(token) > MAX_PIECE for token in tokens):
        raise refuse(f"a piece of its tokenizer is longer than {MAX_PIECE} characters")
    unknown = values.get("tokenizer.ggml.unknown_token_id", 0)
    if type(unknown) is not int or not 0 <= unknown < len(tokens):
        raise refuse("its unknown token is none of its tokens")
    vocabulary: Any = {t: i for i, t in enumerate(tokens)}
    prefix = values.get("tokenizer.ggml.add_space_prefix", True) is True
    try:
        model: Any = models.BPE(
            vocabulary, joins(tokens, scores, kinds), unk_token=tokens[unknown], fuse_unk=True, byte_fallback=BYTE in kinds
        )
        tokenizer: Any = Tokenizer(model)
    except Exception as e:
        raise refuse("its tokenizer is broken") from e
    before = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after])
    given = [(t, k) for t, k in zip(tokens, kinds, strict=True) if t and k in (CONTROL, USER)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in given if k == CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in given if k == USER])
    return tokenizer


def joins(tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, the one with the highest score first."""
    number = {t: i for i, t in enumerate(tokens) if kinds[i] in (NORMAL, UNUSED)}
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, i in number.items():
        if kinds[i] != NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = number.get(token[:cut]), number.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[i], left, right, (token[:cut], token[cut:])))
    found.sort()
    return [pair for *_, pair in found]


def _numbers(found: Any, count: int) -> list[float]:
    """One for each token. Raises `ModelRejected`."""
    if isinstance(found, list) and len(found) == count:  # pyright: ignore[reportUnknownArgumentType]
        numbers = [float(n) for n in found if isinstance(n, (int, float)) and math.isfinite(n)]  # pyright: ignore[reportUnknownVariableType]
        if len(numbers) == count:
            return numbers
    raise refuse("its tokens have no scores, or no kinds")
