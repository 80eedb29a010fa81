"""What a node knows of models by their manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from dimnode.daemon import model_file
from dimnode.daemon.model_file import ModelFile, Said
from dimnode.daemon.model_shelf import ModelShelf
from dimnode.domain import codec
from dimnode.domain.model import GoldenPair, ModelManifest
from dimnode.domain.tensors import TensorValue
from p2p.ipfs.memory import MemoryStore
from tests.support.entries import fake_verify


def manifest(name: str, cid: str = "c") -> ModelManifest:
    golden = GoldenPair(inputs={"x": TensorValue(dtype="float32", shape=(2,), raw=b"\0" * 8)})
    return ModelManifest(id=name, cid=cid, format="onnx", inputs=(), outputs=(), size=9, golden=golden)


async def test_what_a_manifest_says_is_made_once_and_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    by = Said.by
    monkeypatch.setattr(model_file.Said, "by", lambda m: made.append(m.id) or by(m))
    store = MemoryStore()
    shelf = ModelShelf(store, tmp_path, fetch_timeout=1.0, remember=2, verify=fake_verify)
    names = {name: await store.put_dag_bytes(codec.encode(manifest(name))) for name in "abc"}
    known = {name: await shelf.manifest(cid, (), "c") for name, cid in names.items()}
    assert [shelf.known(cid) is not None for cid in names.values()] == [False, True, True], "two are remembered"
    for _ in range(2):
        for name in "bc":
            said = shelf.said(names[name], known[name])
            assert said.key == ModelFile("c", "onnx", tmp_path, 9, about=said.about).key
    assert made == ["b", "c"]
    shelf.said(names["a"], known["a"])
    shelf.said(names["a"], known["a"])
    assert made == ["b", "c", "a", "a"], "of one that is not remembered nothing is kept"


def test_built_in_steps_have_a_key_of_their_own(tmp_path: Path) -> None:
    said = Said.by(ModelManifest(id="filter", cid="b", format="builtin", inputs=(), outputs=(), size=3))
    assert (said.about, said.key) == ("", ModelFile("b", "builtin", tmp_path, 3).key)
