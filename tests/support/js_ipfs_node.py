"""js-ipfs for tests: an implementation of Kubo's RPC by others than Kubo's authors or DIM's (`tests/support/js_ipfs`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

PLACE = Path(__file__).parent / "js_ipfs"


def need_js_ipfs() -> None:
    """Skips a module where it is not installed, and says what is missing. At its top level."""
    if reason := _missing():
        pytest.skip(f"no js-ipfs: {reason}", allow_module_level=True)


def _missing() -> str:
    if shutil.which("node") is None:
        return "there is no program node"
    modules = PLACE / "node_modules"
    if not modules.exists():
        without = "" if shutil.which("npm") else ", which needs the program npm, and there is none"
        return f"it is not installed: `make js-ipfs` was not run here or did not succeed{without}"
    if not (modules / ".package-lock.json").exists():
        return "`make js-ipfs` was broken off: run it again"
    wanted = json.loads((PLACE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    if lacking := [name for name in wanted if not (modules / name / "package.json").exists()]:
        return f"{', '.join(lacking)} came to its packages since they were installed: run `make js-ipfs` again"
    return ""


@contextmanager
def js_ipfs(folder: Path) -> Generator[str, None, None]:
    """The address of its RPC; an empty repository under ``folder``, which is its home too. It takes seconds to start."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["node", str(PLACE / "server.mjs"), str(folder / "repository")]
    environment = {**os.environ, "HOME": str(folder), "NODE_OPTIONS": ""}
    errors = folder / "errors.log"
    with (
        errors.open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"js-ipfs did not start: {errors.read_text(encoding='utf-8')[-2000:]}")
            yield str(json.loads(line)["api"])
        finally:
            process.kill()
