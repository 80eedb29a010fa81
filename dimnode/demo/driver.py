"""``dimnode demo``: a swarm of three, real models and data, one table of results.

Everything goes through the same doors that any user has: node processes, invites, the nodes' sockets and
the orchestrator API. A result counts only if it equals what the models give when they are run directly.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dimnode.cli.tables import console
from dimnode.demo.assets import ARTIFICIAL, DemoAssets, prepare
from dimnode.demo.jobs import DemoJob, jobs
from dimnode.demo.local_swarm import LocalSwarm, local_swarm
from dimnode.errors import DimError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one job."""

    title: str
    pattern: str
    job_id: str
    seconds: float
    nodes: tuple[str, ...]
    got: str
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def run_demo(folder: Path | None, *, keep: bool = False, as_json: bool = False) -> int:
    """Exit code: 0 only if every result equals its reference. Stops its nodes in any case."""
    out = console(stderr=True)
    started = time.monotonic()

    def say(text: str) -> None:
        out.print(f"[dim]{time.monotonic() - started:6.1f} s[/dim]  {text}")

    place = folder.absolute() if folder else Path(tempfile.mkdtemp(prefix="dim-demo-"))
    ok = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the nodes are stopped then too
    try:
        ok = _run(place, say, keep=keep, as_json=as_json, started=started)
    except DimError as e:
        out.print(f"[red]{e.message}[/red] {e.hint}")
        _show_logs(place)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        if folder is None and ok:
            shutil.rmtree(place, ignore_errors=True)
    if folder is None and not ok:
        say(f"homes and logs are kept in {place}")
    return 0 if ok else 1


def _run(place: Path, say: Say, *, keep: bool, as_json: bool, started: float) -> bool:
    say("computing the reference results by running the models directly")
    assets = prepare(place / "assets")
    say("starting three nodes")
    with local_swarm(place / "nodes", say) as swarm:
        _publish(swarm, assets, say)
        names = [n.name for n in swarm.nodes]
        rows = [_run_job(swarm, i, job, say) for i, job in enumerate(jobs(assets, names))]
        _show(rows, time.monotonic() - started, as_json)
        if any(not row.ok for row in rows):
            _show_logs(place)
        if keep:
            _explore(swarm, say)
    return all(row.ok for row in rows)


def _publish(swarm: LocalSwarm, assets: DemoAssets, say: Say) -> None:
    clients = [swarm.node_client(node) for node in swarm.nodes]
    for model in assets.models:
        clients[model.node].add_model_file(str(model.path), id=model.id, licence=model.licence)
    say(f"{len(assets.models)} models published to the swarm")
    for cabinet in assets.cabinets:
        clients[cabinet.node].add_cabinet(cabinet.name, str(cabinet.path))
        who = " and ".join(cabinet.hospitals)
        say(f"{swarm.nodes[cabinet.node].name} holds hospital {who}: {cabinet.rows} rows, {cabinet.benign:.0%} benign")
    say(ARTIFICIAL)
    _wait_known(swarm, {m.id for m in assets.models}, {(c.node, c.name) for c in assets.cabinets})
    for client in clients:
        client.close()


def _wait_known(swarm: LocalSwarm, models: set[str], cabinets: set[tuple[int, str]]) -> None:
    """Until every node has heard of every model and cabinet: heartbeats carry them."""
    wanted = {(swarm.nodes[i].name, name) for i, name in cabinets}
    until = time.monotonic() + swarm.timing.ready
    for node in swarm.nodes:
        with swarm.node_client(node) as client:
            while True:
                known = {(n["name"], c["name"]) for n in client.nodes() for c in n["cabinets"]}
                if wanted <= known and models <= {m["id"] for m in client.models()}:
                    break
                if time.monotonic() > until:
                    raise DimError(f"{node.name} has not heard of every model and cabinet")
                time.sleep(swarm.timing.poll)


def _run_job(swarm: LocalSwarm, turn: int, job: DemoJob, say: Say) -> Row:
    """Submit through one node after the other, follow, compare."""
    began = time.monotonic()
    pattern, job_id = str(job.form["pattern"]), "-"
    node = swarm.nodes[turn % len(swarm.nodes)]
    try:
        with swarm.client(node) as client:
            job_id = client.submit(job.form, job.client_data)["job_id"]
            status = ""
            for document in client.watch(job_id):
                done = sum(t["status"] == "completed" for t in document["tasks"])
                line = f"{document['status']} {done}/{len(document['tasks'])}"
                if line != status:
                    status = line
                    say(f"{job.title}: {line}")
            result = client.result(job_id)
    except DimError as e:
        return Row(job.title, pattern, job_id, time.monotonic() - began, (), "-", (f"{e.code}: {e.message}",))
    problems = job.check(result["outputs"], result["details"])
    got = job.summary(result["outputs"], result["details"]) if not problems else "-"
    nodes = tuple(sorted({str(t["node"]) for t in result["tasks"] if t["status"] == "completed"}))
    return Row(job.title, pattern, job_id, time.monotonic() - began, nodes, got, tuple(problems))


def _show(rows: list[Row], seconds: float, as_json: bool) -> None:
    good = sum(row.ok for row in rows)
    if as_json:
        document = {"ok": good == len(rows), "seconds": round(seconds, 1), "jobs": [{**asdict(row), "ok": row.ok} for row in rows]}
        sys.stdout.write(json.dumps(document) + "\n")
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="DIM demo: three nodes, three patterns")
    for column in ("pattern", "job", "nodes", "time", "equals direct run", "result"):
        table.add_column(column, overflow="fold")
    for row in rows:
        verdict = "[green]yes[/green]" if row.ok else "[red]NO[/red]"
        text = row.got if row.ok else "; ".join(row.problems)
        table.add_row(row.pattern, row.title, str(len(row.nodes)), f"{row.seconds:.1f} s", verdict, text)
    out = console()
    out.print(table)
    out.print(f"{good} of {len(rows)} results equal the models run directly. Total time {seconds:.1f} s.")


def _show_logs(place: Path) -> None:
    out = console(stderr=True)
    for log in sorted((place / "nodes").glob("*/node.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        out.print(f"--- end of {log.parent.name}'s log", markup=False)
        out.print("\n".join(lines), markup=False)


def _explore(swarm: LocalSwarm, say: Say) -> None:
    say("the nodes keep running; press Ctrl-C to stop them. For example:")
    for node in swarm.nodes:
        say(f"  dimnode status --home {node.home.path}")
    try:
        for node in swarm.nodes:
            node.process.wait()
    except KeyboardInterrupt:
        say("stopping")
