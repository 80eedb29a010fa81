"""The documents: links lead somewhere, named tests exist, every requirement has one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CASES = ROOT / "docs" / "test-cases.md"
WANTED = (
    "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "docs/index.md", "docs/architecture.md", "docs/api.md", "docs/user-guide.md",
    "docs/operations.md", "docs/security.md", "docs/testing.md", "docs/test-plan.md", "docs/test-cases.md", "docs/migration-from-2.0.md",
)  # fmt: skip


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name.startswith("test_"))


def rows() -> list[tuple[str, str, list[str]]]:
    """(requirement id, its words, named tests) of the table of test cases."""
    found: list[tuple[str, str, list[str]]] = []
    for line in CASES.read_text(encoding="utf-8").splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if len(cells) >= 3 and re.fullmatch(r"[A-Z]+-\d+", cells[0]):
            found.append((cells[0], cells[1], re.findall(r"`(tests/[^`]+)`", cells[2])))
    return found


@pytest.mark.parametrize("name", WANTED)
def test_document_exists(name: str) -> None:
    assert (ROOT / name).stat().st_size > 200


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_requirement_has_a_test_that_exists() -> None:
    table = rows()
    ids = [r[0] for r in table]
    assert len(ids) > 40
    assert len(set(ids)) == len(ids)
    for requirement, _, named in table:
        assert named, f"{requirement} names no test"
        for test in named:
            file, _, function = test.partition("::")
            assert (ROOT / file).exists(), f"{requirement}: {test}"
            assert not function or function in names_of_tests(ROOT / file), f"{requirement}: {test}"
