"""TorchScript files, made in a process of its own: torch warns about its age, and hostile ones are not run here."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

_CODE = Path(__file__).with_name("torchscript_models.py")
GOOD = ("Linear", "Counter", "Number")
HOSTILE = ("Reads", "Hidden", "Saves", "Forks", "Raw", "Loads")


def torchscripts(folder: Path, *names: str) -> dict[str, Path]:
    """Class -> its file. ``Saves`` and the like name a file MARKER in the working directory."""
    subprocess.run([sys.executable, str(_CODE), str(folder), *names], check=True, capture_output=True)
    return {name: folder / f"{name}.pt" for name in names}


def changed(path: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with some members changed, or left out."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as out:
        for info in source.infolist():
            content = change(info.filename.partition("/")[2], source.read(info))
            if content is not None:
                out.writestr(info.filename, content)
    return target
