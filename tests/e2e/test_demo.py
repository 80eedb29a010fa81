"""``dimnode demo``: three nodes, three patterns, and every result equal to its reference."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(600)
def test_the_demo_succeeds() -> None:
    done = subprocess.run([sys.executable, "-m", "dimnode", "demo", "--json"], capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"]
    assert {job["pattern"] for job in document["jobs"]} == {"collaborative", "comparative", "chained"}
