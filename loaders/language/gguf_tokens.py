"""Tokenizers of GGUF files: byte-level BPE, whose vocabulary and merges the header has (how a text is cut before is known by a name),
and SentencePiece's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loaders.language.gguf_sentencepiece import CONTROL, read_sentencepiece
from loaders.language.parts import refuse

SENTENCEPIECE = "llama"
"""What ``tokenizer.ggml.model`` says then."""
_LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""As Llama 3's tokenizer.json has it: numbers by three digits."""
_CUTS = ("default", "gpt-2", "smollm", "llama-bpe")


def read_tokenizer(values: Mapping[str, Any], tokens: list[str]) -> Any:
    """A `tokenizers.Tokenizer`. Raises `ModelRejected`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    if values.get("tokenizer.ggml.model") == SENTENCEPIECE:
        return read_sentencepiece(values, tokens)
    kind, how = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    merges, kinds = values.get("tokenizer.ggml.merges"), values.get("tokenizer.ggml.token_type")
    if kind != "gpt2" or how not in _CUTS or not isinstance(merges, list):
        raise refuse(f"its tokenizer ({str(kind)[:32]}, {str(how)[:32]}) is not supported; publish the model as a folder")
    pairs = [tuple(str(m).split(" ", 1)) for m in merges]
    vocabulary: Any = {t: i for i, t in enumerate(tokens)}
    try:
        # Llama 3 has words that its merges do not make
        tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=how == "llama-bpe"))  # pyright: ignore[reportArgumentType]
    except Exception as e:
        raise refuse("its tokenizer is broken") from e
    tokenizer.pre_tokenizer = _cut(how)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(kinds, list) and len(kinds) == len(tokens):
        tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, kinds, strict=True) if k == CONTROL])
    return tokenizer


def _cut(how: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=how != "llama-bpe")
    if how == "llama-bpe":
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"), byte_level])
    digits = [pre_tokenizers.Digits(individual_digits=True)] if how == "smollm" else []
    return pre_tokenizers.Sequence([*digits, byte_level])  # pyright: ignore[reportArgumentType]


def special_tokens(values: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    """``bos_token`` and ``eos_token``, as templates write them; empty where the model has none."""
    found: dict[str, str] = {}
    for name in ("bos_token", "eos_token"):
        number = values.get(f"tokenizer.ggml.{name}_id")
        found[name] = tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else ""
    return found


def first_token(values: Mapping[str, Any], tokens: list[str]) -> int | None:
    """The token that the author wants in front of every text; Llama 3's, and SentencePiece's, say nothing and mean it. Raises `ModelRejected`."""
    number = values.get("tokenizer.ggml.bos_token_id")
    silent = values.get("tokenizer.ggml.pre") == "llama-bpe" or values.get("tokenizer.ggml.model") == SENTENCEPIECE
    wanted = values.get("tokenizer.ggml.add_bos_token", silent)
    if wanted is not True or type(number) is not int:
        return None
    if not 0 <= number < len(tokens):
        raise refuse("its first token is none of its tokens")
    return number
