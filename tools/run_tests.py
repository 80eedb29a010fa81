"""All tests, with coverage of every process, and the gates; the last line is the summary.

Performance tests run by themselves and without coverage, which would distort what they measure.
Writes test-results.xml, coverage.xml, coverage.json and htmlcov/. Exit 1 if a test or a gate failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import coverage_gate
import results

ROOT = Path(__file__).parents[1]


def run(*command: str) -> int:
    print("$ python -m", *command, flush=True)
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode


def has_tests(folder: Path) -> bool:
    return any(folder.rglob("test_*.py"))


def main() -> int:
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        covered, timed = Path(scratch) / "covered.xml", Path(scratch) / "timed.xml"
        run("coverage", "erase")
        failed |= run("coverage", "run", "-m", "pytest", "tests", "--ignore=tests/performance", "-q", f"--junitxml={covered}") != 0
        if has_tests(ROOT / "tests" / "performance"):
            failed |= run("pytest", "tests/performance", "-q", f"--junitxml={timed}") != 0
        results.merge([covered, timed], ROOT / "test-results.xml")
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
