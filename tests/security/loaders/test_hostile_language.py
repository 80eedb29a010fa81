"""Language models that are after something: code, pickles, other paths, templates that reach out, sizes out of reason."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders.api import InputRejected, ModelRejected
from loaders.archive import pack_folder
from loaders.language_loader import LanguageLoader
from tests.support.language_models import CONFIG, safetensors, tiny_folder, tokenizer, weights


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("owned",))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tiny_folder(tmp_path_factory.mktemp("m") / "tiny")
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def load(tmp_path: Path, members: dict[str, bytes]) -> Any:
    path = tmp_path / "m.lm"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return LanguageLoader().load(path, 1)


def config(**changes: Any) -> dict[str, bytes]:
    return {"config.json": json.dumps({**CONFIG, **changes}).encode()}


def about(template: Any) -> dict[str, bytes]:
    return {"tokenizer_config.json": json.dumps({"chat_template": template}).encode()}


HOSTILE: dict[str, tuple[dict[str, bytes], str]] = {
    "pickled weights beside": ({"pytorch_model.bin": pickle.dumps(Evil())}, "pytorch_model.bin"),
    "pickled weights instead": ({"model.safetensors": pickle.dumps(Evil())}, "safetensors"),
    "a pickle in a JSON's place": ({"tokenizer.json": pickle.dumps(Evil())}, "tokenizer.json"),
    "Python beside": ({"modeling.py": b"print('owned')"}, "modeling.py"),
    "a name that leaves the archive": ({"../../evil.json": b"{}"}, "odd name"),
    "an absolute name": ({"/etc/evil.json": b"{}"}, "odd name"),
    "a folder within": ({"sub/config.json": b"{}"}, "sub/config.json"),
    "a config that names code": (config(model_file="modeling.py"), "code of its own"),
    "an unknown network": (config(model_type="os"), "'os'"),
    "a network by a path": (config(model_type="../evil"), "not supported"),
    "no config at all": ({"config.json": b"[]"}, "not a JSON object"),
    "a config of endless depth": ({"config.json": b"[" * 100_000}, "not JSON"),
    "nested objects": (config(x={"a": {"a": {"a": {"a": {"a": {"a": {"a": {}}}}}}}}), "nested"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "a number out of reason": (config(hidden_size=1 << 40), "out of bounds"),
    "infinite": (config(rope_theta=float("inf")), "out of bounds"),
    "sizes that the weights do not have": (config(hidden_size=1 << 20), "do not fit"),
    "a vocabulary that the table does not have": (config(vocab_size=1 << 20), "do not fit"),
    "no heads": (config(num_attention_heads=0), "do not fit"),
    "packed in an unknown way": (config(quantization={"group_size": 7, "bits": 4}), "quantised"),
    "packed by somebody else's code": (config(quantization_config={"quant_method": "aqlm"}), "quantised"),
    "a weight that reaches beyond the file": ({"model.safetensors": safetensors(weights(CONFIG))[:-4]}, "beyond the file"),
    "a weight twice": ({"model-2.safetensors": safetensors(weights(CONFIG))}, "same weight"),
    "a template that looks for classes": (about("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "SecurityError"),
    "a template that looks for globals": (about("{{ cycler.__init__.__globals__.os.popen('id').read() }}"), "chat template"),
    "a template that changes what it gets": (about("{{ messages.append(1) }}"), "SecurityError"),
    "a template that imports": (about("{% import 'os' as os %}"), "chat template"),
    "a template that includes a file": (about("{% include '/etc/passwd' %}"), "chat template"),
    "a template that never ends to write": (about("{% for a in range(90000) %}{{ '-' * 60000 }}{% endfor %}"), "writes too much"),
    "a template that repeats": (about("{{ '-' * 1000000000 }}"), "repeats something too often"),
    "a template of towers": (about("{{ 10 ** 10 ** 10 }}"), "powers"),
    "a template that formats": (about("{{ '%1000000000d' % 1 }}"), "formatting"),
    "a template that is none": (about("{% if %}"), "TemplateSyntaxError"),
    "a template that refuses everything": (about("{{ raise_exception('no') }}"), "no"),
    "a template that is too long": (about("a" * (1 << 19)), "too long"),
    "a template that is a number": (about(7), "no text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_are_refused_with_a_reason(tmp_path: Path, good: dict[str, bytes], name: str, capfd: Any) -> None:
    changes, words = HOSTILE[name]
    with pytest.raises(ModelRejected, match=words):
        load(tmp_path, {**good, **changes})
    assert "owned" not in capfd.readouterr().out


def test_the_folder_that_they_were_made_from_is_taken(tmp_path: Path, good: dict[str, bytes]) -> None:
    assert load(tmp_path, {**good, "README.md": b"", "LICENSE": b"", "merges.txt": b""})


def test_tokens_of_a_larger_tokenizer_never_reach_the_table(tmp_path: Path, good: dict[str, bytes]) -> None:
    """The network would read memory that is not its own."""
    model = load(tmp_path, {**good, "tokenizer.json": tokenizer(600).to_str().encode()})
    with pytest.raises(InputRejected, match="another model's"):
        model.run({"prompt": np.array(["Permission is hereby granted for reproduction of the Work"], dtype=object)})


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def gguf(keys: list[bytes], tensors: list[bytes], *, version: int = 3, counts: tuple[int, int] | None = None, data: bytes = b"") -> bytes:
    n, k = counts or (len(tensors), len(keys))
    return b"GGUF" + struct.pack("<IQQ", version, n, k) + b"".join(keys) + b"".join(tensors) + data


def tensor(name: str, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


LLAMA = text("general.architecture") + struct.pack("<I", 8) + text("llama")
BROKEN_GGUF: dict[str, tuple[bytes, str]] = {
    "cut short": (b"GGUF\x03\0\0", "cut short"),
    "an old version": (gguf([], [], version=1), "version 2 or 3"),
    "too many tensors": (gguf([], [], counts=(1 << 40, 0)), "too many"),
    "more keys than there are": (gguf([LLAMA], [], counts=(0, 4000)), "cut short|broken"),
    "a text without end": (gguf([struct.pack("<Q", 1 << 50)], []), "too long"),
    "a list without end": (gguf([text("a") + struct.pack("<IIQ", 9, 4, 1 << 50)], []), "too long"),
    "a list of lists": (gguf([text("a") + struct.pack("<IIQ", 9, 9, 1)], []), "not known"),
    "a text that is no text": (gguf([struct.pack("<Q", 1) + b"\xff"], []), "broken"),
    "a tensor beyond the file": (gguf([LLAMA], [tensor("a", 1 << 20)], data=b"\0" * 256), "beyond the file"),
    "a tensor so large that its size wraps": (gguf([LLAMA], [tensor("a", *[(1 << 32) - 1] * 4)], data=b"\0" * 256), "beyond the file"),
    "a tensor at a far place": (gguf([LLAMA], [tensor("a", 8, offset=(1 << 64) - 32)], data=b"\0" * 256), "beyond the file"),
    "a tensor of no size": (gguf([LLAMA], [tensor("a", 0)], data=b"\0" * 256), "malformed"),
    "a tensor of five axes": (gguf([LLAMA], [tensor("a", 1, 1, 1, 1, 1)], data=b"\0" * 256), "malformed"),
    "a tensor of an unknown type": (gguf([LLAMA], [tensor("a", 256, kind=16)], data=b"\0" * 999), "type 16"),
    "an odd alignment": (gguf([number("general.alignment", 0)], [], data=b"\0" * 64), "alignment"),
    "another network": (gguf([text("general.architecture") + struct.pack("<I", 8) + text("evil")], []), "'evil'"),
    "no sizes": (gguf([LLAMA], []), "llama.attention.head_count"),
    "no heads": (gguf([LLAMA, number("llama.attention.head_count", 0)], []), "no number above 0"),
    "heads that are a text": (
        gguf([LLAMA, text("llama.attention.head_count") + struct.pack("<I", 8) + text("9")], []),
        "no number above 0",
    ),
    "heads that are a list": (
        gguf([LLAMA, text("llama.attention.head_count") + struct.pack("<IIQI", 9, 4, 1, 9)], []),
        "no number above 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN_GGUF)
def test_broken_gguf_files_are_refused_before_mlx_reads_them(tmp_path: Path, name: str) -> None:
    data, words = BROKEN_GGUF[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelRejected, match=words):
        LanguageLoader().load(path, 1)


def test_a_link_in_the_folder_is_not_packed(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "notes.txt").symlink_to("/etc/passwd")
    with pytest.raises(ModelRejected, match="link"):
        pack_folder(folder, tmp_path / "m.lm")
