"""Test results as pytest's JUnit files tell them, by kind."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

KINDS = ("unit", "simulation", "integration", "e2e", "performance", "security")
OUTCOMES = ("passed", "failed", "errors", "skipped")


@dataclass
class Results:
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """kind -> outcome -> number."""
    troubles: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def total(self, outcome: str) -> int:
        return sum(counter[outcome] for counter in self.counts.values())

    def summary(self) -> str:
        """Pytest's own words, so that whoever reads the last line knows."""
        parts = [f"{self.total(o)} {o}" for o in OUTCOMES if self.total(o) or o in ("passed", "failed")]
        return f"{', '.join(parts)} in {self.seconds:.0f}s"


def merge(files: Iterable[Path], into: Path) -> None:
    """One JUnit file of several."""
    suites = ET.Element("testsuites", name="dim")
    for file in files:
        if file.exists():
            suites.extend(ET.parse(file).getroot().iter("testsuite"))
    ET.ElementTree(suites).write(into, encoding="utf-8", xml_declaration=True)


def read(file: Path) -> Results:
    out = Results()
    for suite in ET.parse(file).getroot().iter("testsuite"):
        out.seconds += float(suite.get("time", "0"))
        for case in suite.iter("testcase"):
            _add(out, case)
    out.slowest = sorted(out.slowest, reverse=True)[:10]
    return out


def _add(out: Results, case: ET.Element) -> None:
    place = case.get("classname", "")
    name = f"{place}::{case.get('name', '')}"
    parts = place.split(".")
    kind = parts[1] if len(parts) > 1 and parts[1] in KINDS else "other"
    outcome = "passed"
    for tag, word in (("failure", "failed"), ("error", "errors"), ("skipped", "skipped")):
        found = case.find(tag)
        if found is not None:
            outcome = word
            first = (found.get("message") or "").strip().splitlines()
            (out.skips if word == "skipped" else out.troubles).append(f"{name}: {first[0][:200] if first else word}")
            break
    out.counts.setdefault(kind, Counter())[outcome] += 1
    out.slowest.append((float(case.get("time", "0")), name))
