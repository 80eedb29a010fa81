"""SentencePiece tokenizers of GGUF files, beside SentencePiece itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from loaders.api import ModelRejected
from loaders.language.gguf_tokens import first_token, read_tokenizer
from loaders.language.tokens import TextStream
from tests.support.gguf_files import network, write
from tests.support.sentencepieces import SENTENCES, Pieces, trained
from tests.unit.loaders.test_gguf import PROMPT, load, tokens

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDE0123456789.,;:-_()[]`'\"   \n\té\u0301世界🙂\u2581"


def texts() -> list[str]:
    r = random.Random(5)
    made = ["".join(r.choice(LETTERS) for _ in range(r.randint(1, 60))) for _ in range(700)]
    return [*SENTENCES[-300:], *SENTENCES[:200], *made, "", " ", "   ", " a", "a ", "\n", "x  y   z"]


@pytest.fixture(scope="module")
def made() -> tuple[Any, Pieces]:
    return trained(900)


@pytest.mark.parametrize("prefix", [True, False])
def test_texts_become_the_tokens_that_sentencepiece_makes_and_come_back(made: tuple[Any, Pieces], prefix: bool) -> None:
    it, pieces = made if prefix else trained(900, prefix=False)
    tokenizer = read_tokenizer(pieces.values(add_space_prefix=prefix), pieces.tokens)
    for text in texts():
        expected = it.encode(text)
        found = tokenizer.encode(text, add_special_tokens=False).ids
        assert found == expected, text
        assert tokenizer.decode(found) == it.decode(expected)


def test_pieces_of_a_text_that_is_being_written_sum_up_to_it(made: tuple[Any, Pieces]) -> None:
    it, pieces = made
    tokenizer = read_tokenizer(pieces.values(), pieces.tokens)
    for text in ("A first sentence, and 世界 🙂 in bytes.", "  two spaces  and\nlines"):
        stream = TextStream(tokenizer)
        parts = [stream.push(token) for token in it.encode(text)]
        assert "".join([*parts, stream.end()]) == it.decode(it.encode(text))
        assert sum(map(bool, parts)) > 5, "bit by bit"


def test_control_tokens_are_found_in_a_text_and_not_shown(made: tuple[Any, Pieces]) -> None:
    _, pieces = made
    tokenizer = read_tokenizer(pieces.values(), pieces.tokens)
    ids = tokenizer.encode("<s>Hello</s>", add_special_tokens=False).ids
    assert (ids[0], ids[-1]) == (pieces.tokens.index("<s>"), pieces.tokens.index("</s>"))
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hello"


def test_a_text_begins_with_the_first_token_unless_the_file_says_no(made: tuple[Any, Pieces]) -> None:
    _, pieces = made
    said = pieces.values(bos_token_id=1)
    assert first_token(said, pieces.tokens) == 1
    assert first_token({**said, "tokenizer.ggml.add_bos_token": False}, pieces.tokens) is None


@pytest.mark.parametrize(
    "change",
    [
        {"scores": None}, {"scores": [1.0]}, {"token_type": ["x"] * 900}, {"scores": [float("nan")] * 900}, {"unknown_token_id": 900},
        {"unknown_token_id": "0"}, {"token_type": None},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(made: tuple[Any, Pieces], change: dict[str, Any]) -> None:
    _, pieces = made
    with pytest.raises(ModelRejected):
        read_tokenizer(pieces.values(**change), pieces.tokens)


def test_a_piece_that_is_too_long_is_refused(made: tuple[Any, Pieces]) -> None:
    """Each cut of each piece is looked at."""
    _, pieces = made
    with pytest.raises(ModelRejected, match="longer than"):
        read_tokenizer(pieces.values(), [*pieces.tokens[:-1], "x" * 100_000])


def test_a_network_with_such_a_tokenizer_writes_text(tmp_path: Path) -> None:
    it, pieces = trained(384)
    model = load(write(tmp_path / "m.gguf", network("Q8_0"), pieces=pieces))
    assert model._tokenizer.encode(PROMPT, add_special_tokens=False).ids == it.encode(PROMPT)
    found = tokens(model)
    assert len(found) > 0
    plain = load(write(tmp_path / "n.gguf", network("Q8_0"), pieces=pieces, bos=False))
    assert tokens(plain) != found, "the first token makes a difference"


def test_bytes_that_make_no_character_end_nothing(made: tuple[Any, Pieces]) -> None:
    """A network may write what it likes: here bytes in any order, between words."""
    _, pieces = made
    tokenizer = read_tokenizer(pieces.values(), pieces.tokens)
    r = random.Random(9)
    first = pieces.tokens.index("<0x00>")
    for _ in range(200):
        ids = [first + r.randrange(256) if r.random() < 0.7 else r.randrange(first + 256, len(pieces.tokens)) for _ in range(12)]
        ids += [first + 0xE4] * 100  # for ever the beginning of a character
        stream = TextStream(tokenizer)
        parts = [*map(stream.push, ids), stream.end()]
        assert "".join(parts) == stream.text
        words = "".join(pieces.tokens[i] for i in ids if i >= first + 256).replace("\u2581", "").replace(" ", "")
        shown = iter(stream.text)
        assert all(letter in shown for letter in words), "whatever the bytes are, the words are there, in order"
