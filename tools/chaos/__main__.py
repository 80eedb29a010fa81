"""A real swarm under fire: faults, load, and an account of every job that was acknowledged.

    python -m tools.chaos [--seconds 120] [--seed 1] [--nodes 5] [--rate 4] [--set jobs.replicas=2 ...]

Prints the faults as they happen and a table, writes ``chaos-results.json``; exit 1 if anything was lost or wrong, 2
where namespaces cannot be made. The same seed makes the same schedule and the same jobs.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from tools.chaos import isolation
from tools.chaos.run import arguments


def main() -> NoReturn:
    arguments().parse_args()
    why_not = isolation.why_not()
    if why_not is not None:
        print(why_not, file=sys.stderr)
        sys.exit(2)
    # Coverage would slow the nodes down and change what is measured. A crash in native code shows where it was.
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("DIM_", "COVERAGE_"))} | {"PYTHONFAULTHANDLER": "1"}
    isolation.enter([sys.executable, "-m", "tools.chaos.run", *sys.argv[1:]], environ)


if __name__ == "__main__":
    main()
