"""Text to tokens and back, with Hugging Face's tokenizers: a data file and a Rust library, no code of the model's."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from loaders.language.parts import MAX_TEXT, refuse

_BROKEN = "\ufffd"
"""Stands for bytes that are no character, or none yet."""
_PATIENCE = 64
"""Tokens that may wait for a character to be whole. It takes four bytes at the most."""


def read_tokenizer(data: bytes) -> Any:
    """Of a ``tokenizer.json``. Raises `ModelRejected`."""
    if len(data) > MAX_TEXT:
        raise refuse("its tokenizer.json is too large")
    try:
        return Tokenizer.from_str(data.decode("utf-8"))
    except Exception as e:
        raise refuse("its tokenizer.json cannot be read") from e


class TextStream:
    """Tokens of one text, turned into pieces whose sum is the text. A piece ends with a whole character.

    Tokenizers that spell in bytes decode a run of bytes as a whole, so that one more can make nonsense of what was a character before.
    (`tokenizers.decoders.DecodeStream` fails there.) What was told stays told, and the rest counts on its own.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        """Those of the last piece, and those that have not made one yet."""
        self._told = 0
        """How many are of the last piece."""
        self._before = ""
        """What those are by themselves."""
        self.text = ""
        """The pieces so far."""

    def push(self, token: int) -> str:
        """The piece that this token completes; often empty."""
        self._ids.append(token)
        piece = self._rest()
        if len(self._ids) - self._told < _PATIENCE and (not piece or piece.endswith(_BROKEN)):
            return ""
        del self._ids[: self._told]
        self._told, self._before = len(self._ids), self._decode(self._ids)
        self.text += piece
        return piece

    def end(self) -> str:
        """The last piece: bytes that never became a character."""
        rest = self._rest()
        self._ids.clear()
        self._told, self._before = 0, ""
        self.text += rest
        return rest

    def _rest(self) -> str:
        whole = self._decode(self._ids)
        return whole[len(self._before) :] if whole.startswith(self._before) else self._decode(self._ids[self._told :])

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
