"""`python -m tests.simulation --seed 7`: one seed with what happened; `--seeds 1000`, `--hours 2`: as many as that."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.simulation.checks import listing
from tests.simulation.farm import HASHES, Run, farm, perform, perform_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="simulate this seed and print what happened")
    parser.add_argument("--nodes", type=int, default=0, help="how many (5 to 9, by the seed)")
    parser.add_argument("--scenario", default="", help="a scenario instead of the random walk")
    parser.add_argument("--mode", choices=("available", "majority"), default="available", help="of the elections")
    parser.add_argument("--seeds", type=int, default=0, help="simulate so many seeds")
    parser.add_argument("--hours", type=float, default=0.0, help="simulate seeds for so long")
    parser.add_argument("--first", type=int, default=None, help="the first of them (default: by the clock)")
    parser.add_argument("--most", type=int, default=10, help="stop after so many failures")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one for each processor)")
    parser.add_argument("--all", action="store_true", help="with --seed: print everything that happened")
    args = parser.parse_args()
    if args.seed is not None:
        return _one(Run(args.seed, args.nodes, args.scenario, args.mode), everything=args.all)
    return _many(args)


def _one(run: Run, *, everything: bool) -> int:
    if os.environ.get("PYTHONHASHSEED") != HASHES:  # else the same seed would take another way
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": HASHES})
    report = perform(run, keep=everything)
    if everything:
        print(listing(report.trace))
    print(report if report.problem else f"seed {run.seed}, {run.size} nodes: no violation; {dict(report.counts)}")
    print(f"{report.seconds:.2f} s of processor time")
    return 1 if report.problem else 0


def _many(args: argparse.Namespace) -> int:
    first = args.first if args.first is not None else int(time.time())
    until = time.monotonic() + 3600 * args.hours
    seeds = range(first, first + args.seeds) if args.seeds else itertools.count(first)
    done, cost, failed, counts = 0, 0.0, 0, Counter[str]()
    with farm(args.workers) as pool:
        for batch in _batches(iter(seeds), 40):
            runs = (Run(seed, args.nodes, args.scenario, args.mode) for seed in batch)
            for report in perform_all(pool, runs, chunk=1 if args.nodes > 9 else 4):
                done, cost = done + 1, cost + report.seconds
                counts.update(report.counts)
                if report.problem:
                    failed += 1
                    print(f"FAILED: {report.run.command}: {report.problem[:400]}", flush=True)
            if failed >= args.most or (args.hours and time.monotonic() > until):
                break
    print(f"{done} seeds from {first} on, {failed} violations; {cost / max(done, 1):.2f} s of processor time each; {dict(counts)}")
    return 1 if failed else 0


def _batches(seeds: Iterator[int], size: int) -> Iterator[list[int]]:
    while batch := list(itertools.islice(seeds, size)):
        yield batch


if __name__ == "__main__":
    sys.exit(main())
