"""report.md from test-results.xml and coverage.json: totals, results by kind, coverage, issues, advice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import coverage_gate
import results

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "dimnode/core/", "patterns/", "dimnode/domain/", "dimnode/orchestrator/", "dimnode/daemon/", "dimnode/swarm/", "dimnode/state/",
    "dimnode/rpc/", "dimnode/security/", "dimnode/config/", "dimnode/cli/", "dimnode/demo/", "p2p/ipfs/", "p2p/", "loaders/",
)  # fmt: skip


def main() -> int:
    tests, coverage = ROOT / "test-results.xml", ROOT / "coverage.json"
    if not tests.exists():
        print("no test-results.xml: run `make test` first", file=sys.stderr)
        return 1
    found = results.read(tests)
    lines = ["# Test report", "", f"**{found.summary()}**", "", *_by_kind(found)]
    reached: list[tuple[str, float, float]] = []
    if coverage.exists():
        reached = coverage_gate.gates(coverage)
        lines += ["", *_coverage(coverage, reached)]
    lines += ["", "## Issues found", "", *([f"- {t}" for t in found.troubles] or ["None: no test failed."])]
    if found.skips:
        lines += ["", "Not run here (never counted as passing):", "", *(f"- {t}" for t in found.skips)]
    lines += ["", "## Recommendations", "", *_advice(found, reached, coverage)]
    lines += ["", "## Slowest tests", "", *(f"- {seconds:.1f} s {name}" for seconds, name in found.slowest)]
    (ROOT / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"report.md: {found.summary()}")
    return 0


def _by_kind(found: results.Results) -> list[str]:
    rows = ["| kind | passed | failed | errors | skipped |", "| --- | --- | --- | --- | --- |"]
    kinds = [kind for kind in (*results.KINDS, "other") if kind in found.counts]
    rows += [f"| {kind} | " + " | ".join(str(found.counts[kind][o]) for o in results.OUTCOMES) + " |" for kind in kinds]
    return ["## Results by kind", "", *rows]


def _coverage(path: Path, reached: list[tuple[str, float, float]]) -> list[str]:
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    rows = ["| what | covered | gate |", "| --- | --- | --- |"]
    rows += [f"| {name} | {value:.1f} % | {gate:.0f} % |" for name, value, gate in reached]
    rows += [f"| {package} | {coverage_gate.percent(files, (package,)):.1f} % | |" for package in PACKAGES]
    return ["## Coverage (lines and branches, all processes)", "", *rows, "", "Details: htmlcov/index.html"]


def _advice(found: results.Results, reached: list[tuple[str, float, float]], path: Path) -> list[str]:
    advice: list[str] = []
    if found.troubles:
        advice.append("- Repair what failed before anything else.")
    advice += [f"- Coverage {name} is {value:.1f} %, below {gate:.0f} %." for name, value, gate in reached if value < gate]
    if path.exists():
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        missing = sorted(((e["summary"]["missing_lines"], n) for n, e in files.items()), reverse=True)[:5]
        advice += [f"- {name} has {count} lines that no test reaches." for count, name in missing if count]
    slow = [name for seconds, name in found.slowest if seconds > 30]
    advice += [f"- {name} takes over 30 s: see whether it waits for something it could be told." for name in slow]
    return advice or ["- Nothing stands out."]


if __name__ == "__main__":
    sys.exit(main())
