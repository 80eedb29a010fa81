"""CoreML files and archives that are broken or hostile: refused with a reason, in bounded time and memory."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest

from dimnode.daemon.model_formats import recognise
from dimnode.errors import InvalidArgument
from loaders.api import InferenceFailed, InputRejected, ModelRejected
from loaders.archive import ArchiveLimits, pack_folder, read_archive
from loaders.coreml_loader import CoremlLoader
from loaders.onnx_writer import GraphWriter
from loaders.protobuf import Message, put_bytes, put_int, put_varint
from loaders.trial import try_out

FOLDER = Path(__file__).parents[2] / "fixtures" / "coreml"


def archive(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../../b", "a\\b", "C:/x", ".hidden", "a//b", "x" * 200, "a/" * 20 + "b", "tab\t"]
)
def test_names_that_could_reach_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelRejected, match="odd name"):
        read_archive(archive(tmp_path / "a.zip", {name: b"x"}))


def test_bombs_links_and_twins_are_refused(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "bomb.zip", {"a": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ModelRejected, match="more than is allowed"):
        read_archive(bomb, ArchiveLimits(max_bytes=1_000_000))
    data = bytearray(bomb.read_bytes())  # the directory lies about the size
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = (10).to_bytes(4, "little")
    bomb.write_bytes(data)
    with pytest.raises(ModelRejected):
        read_archive(bomb, ArchiveLimits(max_bytes=1_000_000))
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as out:
        link = zipfile.ZipInfo("weights.bin")
        link.external_attr = 0o120777 << 16
        out.writestr(link, "/etc/passwd")
    with pytest.raises(ModelRejected, match="link"):
        read_archive(tmp_path / "link.zip")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as out:
        out.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            out.writestr("a", b"2")
    with pytest.raises(ModelRejected, match="twice"):
        read_archive(tmp_path / "twice.zip")
    with pytest.raises(ModelRejected, match="too many"):
        read_archive(archive(tmp_path / "many.zip", {f"f{i}": b"" for i in range(20)}), ArchiveLimits(max_members=10))


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.bin").symlink_to("/etc/passwd")
    with pytest.raises(ModelRejected, match="link"):
        pack_folder(tmp_path / "m", tmp_path / "out.zip")


def test_equal_folders_make_equal_archives(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x").write_bytes(b"1")
        (tmp_path / name / "y").write_bytes(b"2")
        pack_folder(tmp_path / name, tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert read_archive(tmp_path / "a.zip") == {"sub/x": b"1", "y": b"2"}


def test_models_of_code_and_of_kinds_without_translation_are_refused_by_name(tmp_path: Path) -> None:
    for kind, words in ((555, "custom models"), (556, "linked models"), (500, "older kind"), (404, "nearest")):
        path = tmp_path / "m.mlmodel"
        path.write_bytes(put_int(1, 1) + put_bytes(2, b"") + put_bytes(kind, b""))
        assert recognise(path) == "coreml"
        with pytest.raises(ModelRejected, match=words):
            CoremlLoader().load(path, 1)


def test_weights_outside_the_package_are_not_read(tmp_path: Path) -> None:
    members = read_archive(FOLDER / "mlp.coreml")
    model = next(n for n in members if n.endswith(".mlmodel"))
    for name in (b"/../weights/weight.bin", b"@model_path/../../../etc/passwd"):
        changed = members[model].replace(b"@model_path/weights/weight.bin", name.ljust(30, b"x")[:30])
        with pytest.raises(ModelRejected, match="not in the package"):
            CoremlLoader().load(archive(tmp_path / "m.zip", {**members, model: changed}), 1)
    weights = next(n for n in members if n.endswith("weight.bin"))
    for data in (b"", members[weights][:80], bytes(len(members[weights]))):
        with pytest.raises(ModelRejected, match=r"weights|not in the package"):
            CoremlLoader().load(archive(tmp_path / "m.zip", {**members, weights: data}), 1)


def test_damaged_models_are_refused_or_run_but_nothing_else(tmp_path: Path) -> None:
    """A thousand flipped bytes: the reader raises only what it says."""
    rng = random.Random(7)
    outcomes: set[str] = set()
    for name in ("mlp", "recurrent", "forest", "logistic"):
        good = (FOLDER / f"{name}.coreml").read_bytes()
        zipped = zipfile.is_zipfile(FOLDER / f"{name}.coreml")
        members = read_archive(FOLDER / f"{name}.coreml") if zipped else {"": good}
        inner = next(n for n in members if n.endswith(".mlmodel") or not n)
        path = tmp_path / "m.coreml"
        for _ in range(250):
            data = bytearray(members[inner])
            for _ in range(rng.choice((1, 3, 20))):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if zipped:
                archive(path, {**members, inner: bytes(data)})
            else:
                path.write_bytes(data)
            try:
                try_out(CoremlLoader().load(path, 1))
                outcomes.add("ran")
            except (ModelRejected, InputRejected, InferenceFailed) as e:
                outcomes.add("told a path" if str(tmp_path) in str(e) else "refused")
    assert outcomes == {"ran", "refused"}


def test_pickles_are_named_for_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(InvalidArgument, match="pickled"):
        recognise(path)
    with pytest.raises(InvalidArgument, match="pickled"):
        recognise(archive(path, {"m/data.pkl": b"\x80\x02.", "m/version": b"3"}))


def test_the_protobuf_reader_is_bounded() -> None:
    for data in (b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 12, b"\x0b", put_varint(1 << 3 | 2) + put_varint(1 << 60)):
        with pytest.raises(ModelRejected):
            Message(memoryview(data))
    assert Message(memoryview(put_int(3, -5))).integer(3) == -5
    with pytest.raises(ModelRejected, match="bytes stand where"):
        Message(memoryview(put_bytes(1, b"x"))).integer(1)
    assert GraphWriter().model().startswith(b"\x08\x08")
