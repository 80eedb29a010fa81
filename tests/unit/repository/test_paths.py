"""Nothing in the repository names the place where somebody worked on it."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_no_file_names_this_checkout() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    here = str(ROOT).encode() + b"/"
    named = [name for name in tracked if name and (ROOT / name).is_file() and here in (ROOT / name).read_bytes()]
    assert named == []
