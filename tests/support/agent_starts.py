"""Code that runs in agents and their servers before anything else, to have them fail as a machine would make them fail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NO_LANDLOCK = "from dimnode.daemon.sandbox import landlock; landlock.version = lambda: 0"
"""As on a kernel without it: files are not confined."""


def first(folder: Path, code: str) -> Mapping[str, str]:
    """For `AgentSettings.environment`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}
