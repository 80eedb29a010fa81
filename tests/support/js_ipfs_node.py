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
    """Skips a module where it is not installed. At its top level."""
    if shutil.which("node") is None:
        pytest.skip("no js-ipfs: there is no program node", allow_module_level=True)
    if not (PLACE / "node_modules" / ".package-lock.json").exists():
        pytest.skip("no js-ipfs: `make js-ipfs` installs it", allow_module_level=True)


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
