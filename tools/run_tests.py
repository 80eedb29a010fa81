"""All tests, with coverage of every process, and the gates; the last line is the summary.

Two tests run at a time, those with real nodes file by file (a file's tests share their nodes); what is measured runs alone. Coverage makes
every process half as fast: simulations and whole nodes run without it, for what they go through is what unit and integration tests assert;
performance tests, for it would distort what they measure.
Writes test-results.xml, coverage.xml, coverage.json and htmlcov/. Exit 1 if a test or a gate failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import coverage_gate
import results

ROOT = Path(__file__).parents[1]
ALONE = "tests/e2e/test_under_fire.py"
"""Five nodes and what attacks them need the machine for themselves."""
TWO = ["-n", "2"]
TWO_FILES = [*TWO, "--dist", "loadfile"]


def run(*command: str) -> int:
    print("$ python -m", *command, flush=True)
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode


def has_tests(folder: Path) -> bool:
    return any(folder.rglob("test_*.py"))


def main() -> int:
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        written: list[Path] = []

        def tests(*kinds: str, coverage: bool = True, how: Sequence[str] = ()) -> bool:
            """Whether any failed."""
            folders = [f"tests/{kind}" for kind in kinds if has_tests(ROOT / "tests" / kind)]
            if not folders:
                return False
            written.append(Path(scratch) / f"{kinds[0]}.xml")
            command = ["pytest", *folders, "-q", f"--junitxml={written[-1]}", *how]
            return run(*(["coverage", "run", "-m"] if coverage else []), *command) != 0

        run("coverage", "erase")
        failed |= tests("unit", "security", how=TWO)
        failed |= tests("simulation", coverage=False, how=TWO)
        failed |= tests("integration", how=TWO_FILES)
        failed |= tests("e2e", coverage=False, how=[*TWO_FILES, f"--ignore={ALONE}"])
        failed |= tests("performance", coverage=False, how=[ALONE])
        results.merge(written, ROOT / "test-results.xml")
    run("coverage", "combine", "-q")
    for form in (("xml", "-q"), ("json", "-q"), ("html", "-q")):
        failed |= run("coverage", *form) != 0
    run("coverage", "report", "--skip-covered", "--skip-empty")
    failed |= coverage_gate.main() != 0
    found = results.read(ROOT / "test-results.xml")
    for trouble in found.troubles:
        print("FAILED", trouble)
    print(f"===== {found.summary()} =====")
    return 1 if failed or found.total("failed") or found.total("errors") else 0


if __name__ == "__main__":
    sys.exit(main())
