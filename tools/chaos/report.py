"""What a run found, as plain values, and the table of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.chaos.account import Account
from tools.chaos.jobs import Job
from tools.chaos.load import Load
from tools.chaos.nemesis import Done
from tools.chaos.swarm import FireNode, Seen, others_suffice, replaced

LISTED = 20
"""Jobs of a kind that the table names; the file names all."""


@dataclass
class Findings:
    """All that a run has to say. Times are seconds."""

    seed: int
    seconds: float
    began: float
    """Of the load, on the monotonic clock."""
    faults: Sequence[Done]
    seen: Sequence[Seen]
    load: Load
    account: Account
    nodes: Sequence[FireNode]
    troubles: Sequence[str]
    stops_with_work_left: int
    tracebacks: Sequence[str]
    ended: float
    """When the watches were given up."""


def document(f: Findings) -> dict[str, Any]:
    """JSON-able. ``failures`` empty: nothing was lost, wrong or unexplained."""
    jobs = f.load.acknowledged
    repeated = f.account.executions.repeated()
    out: dict[str, Any] = {
        "seed": f.seed,
        "seconds": f.seconds,
        "faults": [_fault(d, f) for d in f.faults],
        "jobs": {
            "acknowledged": len(jobs),
            "completed": f.account.completed,
            "cancelled": f.account.cancelled,
            "failed_for_their_own_reason": dict(f.account.failed),
            "lost": _listed(f.account.lost),
            "wrong": _listed(f.account.wrong),
            "by_kind": dict(Counter(j.kind for j in jobs)),
            "copies": {str(c): n for c, n in Counter(j.copies for j in jobs).items()},
            "not_acknowledged": dict(f.load.refused),
            "not_sent": f.load.dropped,
            "retried": sum(1 for j in jobs if any(t["attempt"] > 1 for t in j.last.get("tasks", ()))),
            "taken_over": sum(1 for j in jobs if j.last.get("epoch", 0) > 1),
            "acknowledged_after": spread(j.acknowledged - j.submitted for j in jobs),
            "settled_after": f.account.settled_after,
        },
        "executions": {"tasks": f.account.executions.tasks, "repeated": sum(repeated.values()), "jobs_with_repeats": dict(repeated)},
        "watching": {
            "watches": len(f.load.watches),
            "longest_pause": spread(w.longest(f.ended) for w in f.load.watches),
            "without_end": [asdict(w) | {"pause": w.longest(f.ended)} for w in f.load.watches if not w.ended],
        },
        "nodes": {n.name: {"rss_max_mb": round(n.rss / 2**20, 1), "cpu_s": round(n.cpu + n.cpu_now, 1)} for n in f.nodes},
        "memory": {n.name: growth(n.longest_life()) for n in f.nodes},
        "troubles": list(f.troubles),
        "stops_with_work_left": f.stops_with_work_left,
        "tracebacks": list(f.tracebacks),
    }
    gone = [d for d in out["faults"] if d["kind"] in ("kill", "stop") and d["held_seat"]]
    missed = [d for d in gone if not d["seats_held"]]
    for kind in ("kill", "stop"):
        out[f"new_orchestrator_after_{kind}"] = spread(d["replaced_after"] for d in missed if d["kind"] == kind and d["replaced_after"])
    kills = [d for d in missed if d["kind"] == "kill" and d["replaced_after"]]
    out["not_missed"] = len(gone) - len(missed)
    out["new_orchestrator_after_kill_alone"] = spread(d["replaced_after"] for d in kills if alone(d, out["faults"]))
    out["not_replaced"] = [d["what"] for d in gone if d["replaced_after"] is None and not d["others_sufficed"]]
    out["failures"] = failures(out)
    return out


def alone(fault: dict[str, Any], faults: Sequence[dict[str, Any]]) -> bool:
    """Whether nothing else was wrong from this fault's beginning until the orchestrator was replaced."""
    begin, end = fault["at"], fault["at"] + fault["replaced_after"]
    return not any(d is not fault and d["at"] < end and d["at"] + d["lasted"] > begin for d in faults)


def failures(out: dict[str, Any]) -> list[str]:
    """Why the run counts as failed."""
    found = [f"{len(out['jobs'][kind])} {kind} jobs" for kind in ("lost", "wrong") if out["jobs"][kind]]
    found += [f"nobody replaced the orchestrator: {what}" for what in out["not_replaced"]]
    found += [f"trouble: {t.splitlines()[0]}" for t in out["troubles"]]
    found += [f"a traceback in the log of {name}" for name in out["tracebacks"]]
    if not out["jobs"]["acknowledged"]:
        found.append("no job was acknowledged")
    return found


def _listed(found: Sequence[tuple[Job, str]]) -> list[dict[str, Any]]:
    return [{"job_id": j.job_id, "kind": j.kind, "why": why, "copies": j.copies, "key": j.form["idempotency_key"]} for j, why in found]


def _fault(done: Done, f: Findings) -> dict[str, Any]:
    after = replaced(f.seen, done.victim, done.began)
    return {
        "kind": done.fault.kind,
        "what": done.what,
        "held_seat": done.held_seat,
        "at": round(done.began - f.began, 2),
        "lasted": round(done.ended - done.began, 2),
        "client": done.fault.client,
        "replaced_after": after and round(after[0], 2),
        "replaced_by": after and f"node{after[1]}",
        "seats_held": others_suffice(f.seen, done.victim, done.began),
        "others_sufficed": others_suffice(f.seen, done.victim, done.ended),
    }


def growth(line: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Of a memory line [(seconds, bytes)]: how long it is (s), and its bytes (MB) after a quarter, a half, three quarters and at its end."""
    if not line:
        return {"seconds": 0.0, "mb": []}
    first, last = line[0][0], line[-1][0]
    marks = (first + (last - first) * share for share in (0.25, 0.5, 0.75, 1.0))
    return {"seconds": round(last - first), "mb": [round(next(rss for at, rss in line if at >= mark) / 2**20, 1) for mark in marks]}


def spread(values: Iterable[float]) -> dict[str, float]:
    """count, p50, p99 and max; zeros if there are none."""
    found = sorted(values)
    if not found:
        return {"count": 0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    at = {"p50": found[(len(found) - 1) // 2], "p99": found[round((len(found) - 1) * 0.99)], "max": found[-1]}
    return {"count": len(found), **{name: round(value, 3) for name, value in at.items()}}


def show(out: dict[str, Any], console: Console) -> None:
    jobs, repeated = out["jobs"], out["executions"]
    table = Table("what", "value", title=f"{out['seconds']:g} s under fire, seed {out['seed']}")
    rows = [
        ("faults", ", ".join(f"{kind} {n}" for kind, n in Counter(f["kind"] for f in out["faults"]).items())),
        ("jobs acknowledged", f"{jobs['acknowledged']} (copies: {_counts(jobs['copies'])})"),
        ("  not acknowledged", f"{_counts(jobs['not_acknowledged'])}; not sent: {jobs['not_sent']}"),
        ("  acknowledged after, s", _spread(jobs["acknowledged_after"])),
        ("completed", str(jobs["completed"])),
        ("cancelled", str(jobs["cancelled"])),
        ("failed for their own reason", _counts(jobs["failed_for_their_own_reason"])),
        ("lost", str(len(jobs["lost"]))),
        ("wrong", str(len(jobs["wrong"]))),
        ("retried", str(jobs["retried"])),
        ("taken over (epoch above 1)", str(jobs["taken_over"])),
        ("all ended after the last healing, s", f"{jobs['settled_after']:.1f}"),
        ("executions, of them repeated", f"{repeated['tasks'] + repeated['repeated']}, {repeated['repeated']}"),
        ("new orchestrator after a kill, s", _spread(out["new_orchestrator_after_kill"])),
        ("  while nothing else was wrong", _spread(out["new_orchestrator_after_kill_alone"])),
        ("orchestrators not missed, for others held all seats", str(out["not_missed"])),
        ("new orchestrator after a clean stop, s", _spread(out["new_orchestrator_after_stop"])),
        ("  stops with work left while another ailed", str(out["stops_with_work_left"])),
        ("longest pause of a watching client, s", _spread(out["watching"]["longest_pause"])),
        ("watches without an end", str(len(out["watching"]["without_end"]))),
        ("memory of a node and its agents, MB", ", ".join(f"{n['rss_max_mb']:.0f}" for n in out["nodes"].values())),
        ("memory of a node alone over its longest life", _lines(out["memory"])),
        ("processor time, s", ", ".join(f"{n['cpu_s']:.0f}" for n in out["nodes"].values())),
    ]
    for what, value in rows:
        table.add_row(what, value)
    console.print(table)
    for kind in ("lost", "wrong"):
        for job in jobs[kind][:LISTED]:
            console.print(f"[red]{kind}[/red] {job['kind']} {job['job_id']}: {job['why']}", highlight=False, soft_wrap=True)
    for failure in out["failures"]:
        console.print(f"[red]failed:[/red] {failure}", highlight=False, soft_wrap=True)


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(found.items())) or "0"


def _lines(found: dict[str, dict[str, Any]]) -> str:
    return "; ".join(f"{m['seconds']} s: {' '.join(f'{mb:.0f}' for mb in m['mb'])}" for m in found.values())


def _spread(found: dict[str, float]) -> str:
    return f"p50 {found['p50']:.2f}, p99 {found['p99']:.2f}, max {found['max']:.2f} (of {found['count']:g})" if found["count"] else "-"
