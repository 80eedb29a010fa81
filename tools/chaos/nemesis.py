"""Carries a schedule of faults out, heals each, and writes down what it did to whom."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tools.chaos.faults import Fault, choose, ways
from tools.chaos.swarm import FireNode, FireSwarm


@dataclass
class Done:
    """A fault that was carried out. Times are of the monotonic clock."""

    fault: Fault
    victim: int
    held_seat: bool
    what: str
    began: float
    ended: float = 0.0


class Nemesis:
    def __init__(self, swarm: FireSwarm, faults: Sequence[Fault], spare: int = 0) -> None:
        """``spare``: a node that is not hit itself (a cut of others may leave it alone)."""
        self._swarm = swarm
        self._spare = spare
        self._faults = faults
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.done: list[Done] = []
        self.skipped: list[Fault] = []

    def run(self, began: float) -> None:
        """Returns when every fault is healed. ``began``: when the schedule's time 0 was."""
        threads: list[threading.Thread] = []
        for fault in self._faults:
            if self._stop.wait(max(0.0, began + fault.at - time.monotonic())):
                break
            thread = threading.Thread(target=self._inflict, args=(fault, began))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """No further faults; those that last are healed now."""
        self._stop.set()

    def _inflict(self, fault: Fault, began: float) -> None:
        nodes = self._swarm.nodes
        with self._lock:
            free = [n for n, node in nodes.items() if not node.ails and node.running and n != self._spare]
            holders = self._swarm.serving()
            victim = choose(fault, free, holders)
            if victim is None:
                self.skipped.append(fault)
                return
            node = nodes[victim]
            node.ails = fault.kind
        words, cut = ways(fault, victim, list(nodes))
        done = Done(fault, victim, victim in holders, f"{fault.kind} {node.name} {words}".strip(), time.monotonic())
        self.done.append(done)
        print(f"{done.began - began:7.2f} s  {done.what}{' (orchestrator)' if done.held_seat else ''}, {fault.seconds:g} s", flush=True)
        try:
            if cut:
                self._swarm.network.cut(cut)
                self._stop.wait(fault.seconds)
                self._swarm.network.heal(cut)
            else:
                self._hurt(fault, node)
        except (OSError, RuntimeError, subprocess.SubprocessError) as e:  # of a thread nobody else would hear of it
            self._swarm.trouble(f"{done.what} could not be done: {e}")
        finally:
            node.ails = ""
            done.ended = time.monotonic()

    def _hurt(self, fault: Fault, node: FireNode) -> None:
        match fault.kind:
            case "kill" | "stop":
                (self._swarm.kill if fault.kind == "kill" else self._swarm.stop)(node)
                self._stop.wait(fault.seconds)
                self._swarm.up(node)
            case "freeze":
                node.pause()
                self._stop.wait(fault.seconds)
                node.resume()
            case "disk":
                node.fill_disk()
                self._stop.wait(fault.seconds)
                node.free_disk()
            case _:
                raise AssertionError(fault.kind)
