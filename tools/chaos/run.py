"""One run, inside its namespaces: swarm, load, nemesis, account. `tools.chaos` starts it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from dimnode.client import Client, Settings
from tools.chaos import account, autopsy
from tools.chaos.faults import SECONDS, Kind, schedule
from tools.chaos.jobs import make_models
from tools.chaos.load import CALL, Load
from tools.chaos.nemesis import Nemesis
from tools.chaos.network import Network
from tools.chaos.report import Findings, document, show
from tools.chaos.swarm import FireSwarm

FOLDER = Path("/run/dim")
"""In the run's own mounts."""
WATCHES_END = 30.0
"""Seconds that watching clients get to see their jobs' ends."""
CUT_UP = 5
"""Lost or wrong jobs whose journals are shown."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description="A real swarm under fire; exit 1 if a job is lost or wrong.")
    parser.add_argument("--seconds", type=float, default=120, help="of load and faults")
    parser.add_argument("--seed", type=int, default=1, help="of faults and jobs")
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--rate", type=float, default=4.0, help="arrivals per second")
    parser.add_argument("--only", default="", metavar="KIND,...", help=f"these faults only, one after the other: {', '.join(SECONDS)}")
    parser.add_argument("--calm", action="store_true", help="no faults at all")
    parser.add_argument("--spare", type=int, default=0, metavar="N", help="node N is not hit: how its memory grows is seen there")
    parser.add_argument("--settle", type=float, default=60.0, help="seconds after the last healing in which every job must end")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="a setting of every node")
    parser.add_argument("--out", type=Path, default=Path("chaos-results.json"))
    parser.add_argument("--keep", type=Path, default=Path("chaos-kept"), help="where homes and logs go after a failure")
    parser.add_argument("--keep-always", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    given.only = _kinds(given.only)
    os.environ["TMPDIR"] = str(FOLDER / "tmp")
    (FOLDER / "tmp").mkdir(parents=True)
    swarm = FireSwarm(FOLDER / "nodes", Network(given.nodes), dict(s.split("=", 1) for s in given.set))
    try:
        swarm.start(make_models(FOLDER / "models"))
        findings = fire(swarm, given)
    finally:
        swarm.end()
    for node in swarm.nodes.values():
        findings.account.executions.add_home(node.home.path)
    out = document(findings)
    given.out.write_text(json.dumps(out, indent=1), encoding="utf-8")
    show(out, Console(width=150))
    if out["failures"] or given.keep_always:
        swarm.keep(given.keep)
        print(f"homes and logs: {given.keep}")
        _cut_up(out)
    return 1 if out["failures"] else 0


def _kinds(text: str) -> list[Kind]:
    kinds = [k.strip() for k in text.split(",") if k.strip()]
    if wrong := [k for k in kinds if k not in SECONDS]:
        sys.exit(f"no such fault: {', '.join(wrong)}; there are {', '.join(SECONDS)}")
    return [k for k in SECONDS if k in kinds]


def fire(swarm: FireSwarm, given: argparse.Namespace) -> Findings:
    load = Load(swarm.targets, given.seed, given.rate)
    faults = [] if given.calm else schedule(given.seed, given.seconds, given.only)
    nemesis = Nemesis(swarm, faults, 0 if not given.spare else list(swarm.nodes)[given.spare - 1])
    print(f"seed {given.seed}: {given.nodes} nodes, {given.seconds:g} s", flush=True)
    began = time.monotonic()
    attack = threading.Thread(target=nemesis.run, args=(began,))
    attack.start()
    try:
        load.run(given.seconds)
    except KeyboardInterrupt:
        nemesis.stop()
    attack.join()
    print(f"{time.monotonic() - began:7.2f} s  all is healed; {len(load.acknowledged)} jobs acknowledged", flush=True)
    try:
        swarm.wait_formed()
    except AssertionError as e:
        swarm.trouble(f"the swarm did not form again: {e}")
    with load.client() as client:
        found = account.settle(load.acknowledged, client, given.settle)
    load.wait_watches(WATCHES_END)
    ended = time.monotonic()
    lost = {job.job_id for job, _ in found.lost}
    done = [j for j in load.acknowledged if j.job_id not in lost]
    with ExitStack() as stack:
        serving = sorted(swarm.serving())
        seats = [stack.enter_context(Client(swarm.targets[n - 1], Settings(connection=CALL))) for n in serving]
        found.wrong += account.disagreements(done, seats, given.settle)
    return Findings(
        seed=given.seed,
        seconds=given.seconds,
        began=began,
        faults=nemesis.done,
        seen=tuple(swarm.seen),
        load=load,
        account=found,
        nodes=list(swarm.nodes.values()),
        troubles=swarm.troubles,
        stops_with_work_left=swarm.stops_with_work_left,
        tracebacks=swarm.tracebacks(),
        ended=ended,
    )


def _cut_up(out: dict[str, Any]) -> None:
    """What each node knows of the first that were lost or went wrong."""
    for job in [*out["jobs"]["lost"], *out["jobs"]["wrong"]][:CUT_UP]:
        print(f"=== {job['kind']} {job['job_id']}: {job['why']}")
        autopsy.main([str(FOLDER / "nodes"), job["job_id"]])


if __name__ == "__main__":
    sys.exit(main())
