"""What documents look like to people. rich is loaded when something is shown."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
PLAIN_WIDTH = 160
"""Columns of tables that go to a file or a pipe."""


def console(stderr: bool = False) -> Any:
    from rich.console import Console

    out = Console(stderr=stderr, highlight=False)
    return out if out.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


def _table(*columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def clock(seconds: float | None) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) if seconds else "-"


def status(d: Document) -> str:
    lines = [
        f"{d.get('name')}  {d.get('peer_id')}",
        f"swarm {d.get('swarm')}, {d.get('role')}, term {d.get('term')}, {d.get('peers')} peers",
        f"listens on {', '.join(d.get('listen') or ()) or '-'}",
        f"orchestrator API {d.get('grpc') or '- (no seat)'}, daemon {d.get('daemon_grpc')}, gateway {d.get('gateway') or '-'}",
    ]
    ipfs = d.get("ipfs") or {}
    told = [f"ipfs {ipfs.get('backend')}: {'ok' if ipfs.get('ok') else 'not ok'}"]
    if ipfs.get("backlog"):
        told.append(f"{ipfs['backlog']} blocks and pins to be handed over")
    if ipfs.get("problem"):
        told.append(str(ipfs["problem"]))
    publishing = d.get("publishing") or {}
    if publishing.get("backlog"):
        told.append(f"forms, results and receipts of {publishing['backlog']} jobs to be made blocks")
    if publishing.get("problem"):
        told.append(str(publishing["problem"]))
    lines.append(", ".join(told))
    feeds = d.get("events") or {}
    lines += [f"events not sent ({name}): {feeds[name]['problem']}" for name in ("swarm", "kubo") if (feeds.get(name) or {}).get("problem")]
    lines += [f"seat: {o.get('name')}  {o.get('grpc')}  term {o.get('term')}" for o in d.get("orchestrators") or ()]
    return "\n".join(lines)


def nodes(found: Sequence[Document]) -> Any:
    table = _table("name", "state", "role", "runs", "running", "models", "cabinets", "price", "peer id")
    for n in found:
        load, can = n.get("load") or {}, n.get("capabilities") or {}
        cabinets = ", ".join(str(c.get("name")) for c in n.get("cabinets") or ())
        table.add_row(
            str(n.get("name")), str(n.get("state")), str(n.get("role")), " ".join(can.get("loaders") or ()),
            f"{load.get('running', 0)}+{load.get('queued', 0)}", str(len(n.get("models") or ())), cabinets,
            f"{n.get('price', 0):g}", str(n.get("peer_id")),
        )  # fmt: skip
    return table


def pins(found: Sequence[Document]) -> Any:
    table = _table("cid", "kind", "since", "reason")
    for p in found:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(p["since"])) if p.get("since") else "-"
        table.add_row(str(p.get("cid")), str(p.get("kind")), since, str(p.get("reason")))
    return table


def models(found: Sequence[Document]) -> Any:
    table = _table("id", "format", "size", "inputs", "outputs", "nodes", "cid")
    for m in found:
        table.add_row(
            str(m.get("id")), str(m.get("format")), size(m.get("size") or 0), _tensors(m.get("inputs")), _tensors(m.get("outputs")),
            ", ".join(m.get("nodes") or ()), str(m.get("cid")),
        )  # fmt: skip
    return table


def _tensors(specs: Any) -> str:
    return ", ".join(f"{t['name']} {t['dtype']}[{','.join('?' if n is None else str(n) for n in t['shape'])}]" for t in specs or ())


def cabinets(found: Sequence[Document]) -> Any:
    table = _table("name", "rows", "format", "columns")
    for c in found:
        table.add_row(str(c["name"]), str(c["rows"]), str(c["format"]), ", ".join(c["columns"]))
    return table


def jobs(found: Sequence[Document]) -> Any:
    table = _table("job", "pattern", "status", "owner", "submitted", "updated")
    for j in found:
        row = (j["job_id"], j["pattern"], j["status"], j["owner"], clock(j["submitted"]), clock(j["updated"]))
        table.add_row(*(str(x) for x in row))
    return table


def event(e: Document) -> str:
    """One line."""
    what = f"job {e['job']}, epoch {e.get('epoch', 0)}" if e.get("job") else f"node {e.get('node')}"
    seat = f", seat {e['seat']}, term {e.get('term', 0)}" if e.get("seat") is not None else ""
    return f"{clock(e.get('at'))} {e.get('event')}: {what}{seat} (by {e.get('publisher')})"


def progress(job: Document) -> str:
    """One line: status and how far the tasks are."""
    tasks = job.get("tasks") or ()
    done = sum(t.get("status") == "completed" for t in tasks)
    return f"{clock(job.get('updated'))} {job['status']}" + (f" ({done} of {len(tasks)} tasks)" if tasks else "")


def job(j: Document) -> str:
    lines = [f"{j.get('job_id')}  {j.get('pattern', '')}  {j.get('status')}"]
    times = sorted((j.get("times") or {}).items(), key=lambda item: item[1])
    lines += [f"  {clock(at)}  {name}" for name, at in times]
    lines += [_task(t) for t in j.get("tasks") or ()]
    error = j.get("error")
    if error and error.get("code"):
        lines.append(f"error {error['code']}: {error.get('message')}" + (f"\n{error['hint']}" if error.get("hint") else ""))
    return "\n".join(lines)


def _task(t: Document) -> str:
    error = t.get("error") or {}
    text = f"  task {t.get('task_id')}: {t.get('status')} on {t.get('node')} (attempt {t.get('attempt')})"
    return text + (f": {error.get('code')} {error.get('message')}" if error.get("code") else "")


def result(r: Document) -> str:
    lines = [f"{r['job_id']}  {r['pattern']}  {r['status']}  cost {r.get('cost', 0):g}"]
    for name, t in r["outputs"].items():
        lines.append(f"  {name}: {t.get('dtype')}{t.get('shape')} {_values(t)}")
    lines += [f"  {name}: {_short(value)}" for name, value in (r.get("details") or {}).items()]
    return "\n".join(lines)


def _values(tensor: Document) -> str:
    data = tensor.get("data")
    if data is None:
        return f"in {tensor.get('cid')} (`dimnode result JOB --out FILE` fetches it)"
    return _short(data[:12])[:-1] + (", ...]" if len(data) > 12 else "]")


def _short(value: Any, most: int = 160) -> str:
    text = str(value)
    return text if len(text) <= most else text[: most - 4] + " ..."


def receipts(report: Document) -> str:
    lines = [f"{t['task_id']} on {t['node']}: {'ok' if t['ok'] else t['reason']}" for t in report["tasks"]]
    return "\n".join([*lines, "every receipt is good" if report["ok"] else "NOT every receipt is good"])


def tree(document: Any, depth: int = 0) -> str:
    """Nested plain values, indented."""
    pad = "  " * depth
    if isinstance(document, Mapping):
        lines: list[str] = []
        for key, value in document.items():  # pyright: ignore[reportUnknownVariableType]
            nested = isinstance(value, (Mapping, list)) and value
            lines.append(f"{pad}{key}:" + (f"\n{tree(value, depth + 1)}" if nested else f" {value}"))
        return "\n".join(lines)
    if isinstance(document, list):
        return "\n".join(f"{pad}-\n{tree(v, depth + 1)}" if isinstance(v, Mapping) else f"{pad}- {v}" for v in document)  # pyright: ignore[reportUnknownVariableType]
    return f"{pad}{document}"


def manifest(d: Document) -> str:
    lines = [
        f"{d['id']}  {d['format']}, {size(d['size'])}, licence {d.get('licence') or '-'}",
        f"artifact {d['cid']}",
        f"manifest {d['manifest_cid']}",
        f"author   {d.get('author') or '- (not signed)'}",
        f"on       {', '.join(d.get('nodes') or ()) or '-'}",
    ]
    lines += [f"{kind:<8} {_tensor(t)}" for kind, key in (("input", "inputs"), ("output", "outputs")) for t in d.get(key) or ()]
    needs = d.get("needs") or {}
    card = needs.get("gpu_memory") or 0
    gpu = f", {size(card)} of a GPU's memory" if card else ", a GPU" if needs.get("gpu") else ""
    if needs.get("memory") or gpu:
        lines.append(f"needs    {size(needs.get('memory') or 0)} of memory{gpu}")
    golden = d.get("golden")
    if golden:
        lines.append(
            f"golden   {', '.join(golden['inputs'])} → {', '.join(golden['outputs']) or '(not compared)'}, within {golden['rtol']:g}"
        )
    return "\n".join(lines)


def _tensor(t: Document) -> str:
    return f"{t['name']}: {t['dtype']}[{', '.join(str(n) for n in t['shape'])}]"


def model_check(d: Document) -> str:
    compared = "its golden answer" if d.get("golden") else "an answer to zeros, no golden pair to compare with"
    schema = "" if d.get("schema") else "; its inputs and outputs are not those of the manifest"
    return f"{d['id']} works here: {compared}; {size(d.get('memory') or 0)} of memory{schema}"


def resolved(d: Document) -> Any:
    """Of `ipfs resolve`."""
    lines = [
        f"seat {s.get('name')}: /ipns/{s.get('ipns')} → /ipfs/{s.get('root')}, of {clock(s.get('at'))}"
        + (f", {s['problem']}" if s.get("problem") else "")
        for s in d.get("seats") or ()
    ]
    for line in lines:
        console(stderr=True).print(line, soft_wrap=True)
    if d["path"] == "registry":
        return nodes(d["nodes"])
    if d["path"] == "jobs":
        return jobs(d["jobs"])
    found = d["job"]
    return job(found) if isinstance(found.get("times"), Mapping) else tree(found)
