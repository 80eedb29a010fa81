"""Rules of the repository itself."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("dimnode", "p2p", "patterns", "loaders", "dagcbor")
LONGEST = 500


def sources() -> list[Path]:
    found = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    return [p for p in found if "rpc/v1" not in p.as_posix()]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)


def test_imports_run_downwards() -> None:
    done = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_broken_import_rule_would_be_noticed() -> None:
    """The contracts name real modules: import-linter fails for one that does not exist."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    named = {m for c in contracts for key in ("source_modules", "modules") for m in c.get(key, ())}
    assert {"p2p", "patterns", "loaders", "dimnode.orchestrator", "dimnode.daemon", "dimnode.core", "dimnode.domain"} <= named


def test_locks_fit_the_project() -> None:
    done = run("tools/lock.py", "--check")
    assert done.returncode == 0, done.stderr


def test_example_settings_are_generated() -> None:
    assert run("tools/generate_bootstrap.py", "--check").returncode == 0


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_module_is_short_and_says_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < LONGEST
    assert not lines or lines[0].startswith('"""') or path.name == "__init__.py"


def test_protos_hold_contracts_only() -> None:
    assert not list((ROOT / "proto").rglob("__init__.py"))


def test_settings_are_read_in_one_place() -> None:
    """TOML by dimnode.config only; the environment there and where a process starts."""
    readers = {
        p.relative_to(ROOT).as_posix() for p in sources() if re.search(r"^\s*(import|from) tomllib", p.read_text(encoding="utf-8"), re.M)
    }
    assert readers == {"dimnode/config/load.py"}


def test_a_client_starts_without_heavy_imports() -> None:
    code = "import sys, dimnode.cli.main; print([m for m in ('numpy', 'grpc', 'pydantic', 'libp2p', 'trio', 'rich') if m in sys.modules])"
    assert run("-c", code).stdout.strip() == "[]"
