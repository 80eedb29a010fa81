"""The tools that judge the tests: they must not call a failure a success."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import coverage_gate, lock, results

JUNIT = """<testsuites><testsuite time="1.5">
<testcase classname="tests.unit.a.test_x" name="test_ok" time="0.1"/>
<testcase classname="tests.unit.a.test_x" name="test_bad" time="0.2"><failure message="boom&#10;more"/></testcase>
<testcase classname="tests.e2e.test_y" name="test_broken" time="0.3"><error message="no"/></testcase>
<testcase classname="tests.e2e.test_y" name="test_mac" time="0"><skipped message="not run here"/></testcase>
</testsuite></testsuites>"""


def test_results_by_kind(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(JUNIT)
    results.merge([tmp_path / "a.xml", tmp_path / "a.xml", tmp_path / "none.xml"], tmp_path / "all.xml")
    found = results.read(tmp_path / "all.xml")
    assert found.summary() == "2 passed, 2 failed, 2 errors, 2 skipped in 3s"
    assert found.counts["unit"]["passed"] == 2
    assert found.troubles[0] == "tests.unit.a.test_x::test_bad: boom"
    assert found.skips == ["tests.e2e.test_y::test_mac: not run here"] * 2
    assert found.slowest[0][1].endswith("test_broken")


def coverage_file(tmp_path: Path, core: int) -> Path:
    path = tmp_path / "coverage.json"
    full = {"num_statements": 900, "covered_lines": 900, "num_branches": 0, "covered_branches": 0}
    part = {"num_statements": 50, "covered_lines": core, "num_branches": 50, "covered_branches": 50}
    path.write_text(json.dumps({"files": {"p2p/a.py": {"summary": full}, "dimnode/core/b.py": {"summary": part}}}))
    return path


def test_gates_count_lines_and_branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert coverage_gate.gates(coverage_file(tmp_path, 30))[1] == ("core logic", 80.0, 90.0)
    monkeypatch.chdir(tmp_path)
    assert coverage_gate.main() == 1
    coverage_file(tmp_path, 45)
    assert coverage_gate.main() == 0


def test_nothing_covered_is_below_the_gate() -> None:
    assert coverage_gate.percent({}, ("dimnode/core/",)) == 0.0


def test_locks_hold_no_cuda_and_no_second_opencv() -> None:
    for kind in lock.KINDS:
        pins = lock.read(kind)
        assert not [name for name in pins if name.startswith(lock.SKIP)]
        assert "opencv-python" not in pins
    assert "torch" not in lock.read(lock.KINDS[1])


def test_a_lock_that_lacks_something_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = {k: v for k, v in lock.read(lock.KINDS[0]).items() if k not in ("trio", "click")}
    monkeypatch.setattr(lock, "read", lambda _: {**pins, "click": "1.0"})
    found = lock.problems(lock.KINDS[0], lock.project())
    assert any("lacks trio" in text for text in found)
    assert any("click==1.0" in text for text in found)
