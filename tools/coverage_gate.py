"""Coverage gates: 80 % overall, 90 % in the core logic. Reads coverage.json; exits 1 below a gate.

Percentages count lines and branches, as coverage's own report does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

GATES: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("overall", ("",), 80.0),
    ("core logic", ("dimnode/core/", "patterns/"), 90.0),
)


def percent(files: dict[str, dict[str, dict[str, int]]], prefixes: tuple[str, ...]) -> float:
    covered = total = 0
    for name, entry in files.items():
        if name.replace("\\", "/").startswith(prefixes):
            summary = entry["summary"]
            covered += summary["covered_lines"] + summary.get("covered_branches", 0)
            total += summary["num_statements"] + summary.get("num_branches", 0)
    return 100.0 * covered / total if total else 0.0


def gates(path: Path) -> list[tuple[str, float, float]]:
    """(name, reached, wanted) for each gate."""
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    return [(name, percent(files, prefixes), wanted) for name, prefixes, wanted in GATES]


def main() -> int:
    failed = False
    for name, reached, wanted in gates(Path("coverage.json")):
        ok = reached >= wanted
        failed |= not ok
        print(f"coverage {name}: {reached:.1f} % (gate {wanted:.0f} %){'' if ok else '  BELOW THE GATE'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
