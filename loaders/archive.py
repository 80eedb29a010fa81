"""A model that is a folder, as one file: a zip archive without compression, equal folders giving equal bytes.

Archives are read in memory and never unpacked to disk, so a name in one can reach no file. Compressed members are
taken too (other tools make them), within bounds that hold whatever the directory of the archive claims. `opened` and
`read_member` are the only way in which DIM opens a model's archive, whatever its format.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from loaders.api import ModelRejected

_PART = re.compile(r"[A-Za-z0-9_@+][A-Za-z0-9_.@+ \-]{0,127}", re.ASCII)
_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, UnicodeDecodeError)
_WHEN = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    max_bytes: int = 8 << 30
    """All members together, unpacked."""
    max_members: int = 10_000
    max_depth: int = 8
    """Folders within folders."""


DEFAULT_LIMITS = ArchiveLimits()


def read_archive(path: Path, limits: ArchiveLimits = DEFAULT_LIMITS) -> dict[str, bytes]:
    """Members by name (``folder/file``). Raises `ModelRejected`."""
    try:
        with opened(path) as archive:
            return _members(archive, limits)
    except OSError as e:
        raise ModelRejected("the model file cannot be read") from e


@contextmanager
def opened(source: Path | IO[bytes]) -> Generator[zipfile.ZipFile, None, None]:
    """For reading. What is wrong with the archive itself, then and within, is `ModelRejected`. Raises `OSError`."""
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except _ERRORS as e:
        raise ModelRejected("the model's archive is broken: it is not a whole zip archive") from e


def _members(archive: zipfile.ZipFile, limits: ArchiveLimits) -> dict[str, bytes]:
    infos = archive.infolist()
    if len(infos) > limits.max_members:
        raise ModelRejected("the model's archive has too many members")
    out: dict[str, bytes] = {}
    left = limits.max_bytes
    for info in infos:
        if info.is_dir():
            continue
        check_name(info.filename, limits)
        if info.filename in out:
            raise ModelRejected("the model's archive has a member twice")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ModelRejected("the model's archive has a link")
        out[info.filename] = content = read_member(archive, info, left)
        left -= len(content)
    return out


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """At most ``most`` bytes, whatever the directory of the archive claims. Raises `ModelRejected`."""
    if info.file_size > most:
        raise ModelRejected("the model's archive unpacks to more than is allowed")
    with archive.open(info) as f:
        content = f.read(most + 1)
    if len(content) > most:
        raise ModelRejected("the model's archive unpacks to more than is allowed")
    return content


def check_name(name: str, limits: ArchiveLimits = DEFAULT_LIMITS) -> None:
    """Raises `ModelRejected` for absolute names, ``..``, hidden files and odd characters."""
    parts = name.split("/")
    if len(parts) > limits.max_depth or not all(_PART.fullmatch(part) for part in parts):
        raise ModelRejected("the model's archive has a member with an odd name")


def pack_folder(folder: Path, target: Path, limits: ArchiveLimits = DEFAULT_LIMITS) -> None:
    """Writes the archive of a folder. Links are not followed but refused. Raises `ModelRejected`, `OSError`."""
    total = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for number, (name, path) in enumerate(sorted(_files(folder, "", limits))):
            size = path.stat().st_size
            total += size
            if total > limits.max_bytes or number >= limits.max_members:
                raise ModelRejected("the model's folder is larger than allowed")
            info = zipfile.ZipInfo(name, _WHEN)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.create_system = 3
            with path.open("rb") as source, archive.open(info, "w", force_zip64=size >= 1 << 31) as out:
                while chunk := source.read(1 << 20):
                    out.write(chunk)


def _files(folder: Path, prefix: str, limits: ArchiveLimits) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue  # what file managers leave behind
            name = prefix + entry.name
            check_name(name, limits)
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise ModelRejected("the model's folder has a link or something that is no file")
            if entry.is_dir():
                yield from _files(Path(entry.path), name + "/", limits)
            else:
                yield name, Path(entry.path)
