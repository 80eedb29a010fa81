"""Text to tokens and back, with Hugging Face's tokenizers: a data file and a Rust library, no code of the model's."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from loaders.language.parts import MAX_TEXT, refuse


def read_tokenizer(data: bytes) -> Any:
    """Of a ``tokenizer.json``. Raises `ModelRejected`."""
    if len(data) > MAX_TEXT:
        raise refuse("its tokenizer.json is too large")
    try:
        return Tokenizer.from_str(data.decode("utf-8"))
    except Exception as e:
        raise refuse("its tokenizer.json cannot be read") from e


class TextStream:
    """Tokens of one text, turned into pieces whose sum is the text. A piece ends with a whole character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self.text = ""
        """The pieces so far."""

    def push(self, token: int) -> str:
        """The piece that this token completes; often empty."""
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self.text += piece
        return piece

    def end(self) -> str:
        """The last piece: bytes that never became a character."""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        rest = whole[len(self.text) :] if whole.startswith(self.text) else ""
        self.text += rest
        return rest
