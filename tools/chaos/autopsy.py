"""What each node's journal knows of a job.

    python -m tools.chaos.autopsy FOLDER JOB

FOLDER is a home or holds homes, at any depth. Nothing is changed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import msgspec

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.domain.record import Ballot, Core
from tools.chaos import journals
from tools.chaos.journals import Found

LONGEST = 120
"""Characters of one value."""
MOST = 30
"""Entries shown of one journal: the first and the last."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.chaos.autopsy", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("job")
    given = parser.parse_args(argv)
    homes = journals.homes(given.folder)
    if not homes:
        print(f"no {journals.NAME} in {given.folder}", file=sys.stderr)
        return 2
    for home in homes:
        print("\n".join(report(home, given.job)))
    return 0


def report(home: Path, job: str) -> list[str]:
    """Lines: what the record comes to, then its entries in order of arrival."""
    found = list(journals.entries(home, job=job))
    ballot = journals.ballot(home, job)
    lines = [f"--- {home.name}: {len(found)} entries, highest ballot {ballot and _short(ballot)}"]
    if found:
        seen = view(Record(job, [f.entry for f in found]))
        owner = _short(seen.owner) if seen.owner else "nobody"
        lines.append(f"    {seen.status}; owner {owner}; attempts {sorted(seen.attempts)}; seals {sorted(seen.seals)}")
    shown = [f"    {_line(f)}" for f in found]
    left_out = len(shown) - MOST
    return lines + (shown if left_out <= 0 else [*shown[: MOST // 2], f"    … {left_out} more …", *shown[-MOST // 2 :]])


def _line(found: Found) -> str:
    if isinstance(found.body, Core):
        body = found.body
        return f"#{found.seq} core {body.pattern} submitted {_clock(body.submitted)} timeout {body.timeout:g} by {found.author[-6:]}"
    plain = msgspec.to_builtins(found.body, builtin_types=(bytes,))
    shown = " ".join(f"{k}={_short(v)}" for k, v in plain.items() if k not in ("type", "job") and v not in (None, "", {}, b""))
    return f"#{found.seq} {found.kind} by {found.author[-6:]} {found.id[:8]} {shown}"


def _short(value: object) -> str:
    if isinstance(value, float) and value > 1e9:
        return _clock(value)
    if isinstance(value, Ballot):
        value = (value.n, value.peer, value.boot)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict) and value.keys() == {"n", "peer", "boot"}:
        value = tuple(value.values())
    if isinstance(value, tuple) and len(value) == 3:
        n, peer, boot = value
        return f"{n}/{str(peer)[-6:]}/{str(boot)[:4]}"
    text = re.sub(r"12D3KooW\w{38}(\w{6})", r"\1", str(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at)) + f"{at % 1:.3f}"[1:]


if __name__ == "__main__":
    sys.exit(main())
