"""A network of namespaces: one for each node, joined by a bridge that lives, with the client, in the namespace of this process.

A direction between two members is cut by giving the sender a hardware address for the receiver that nobody has: the
packets leave and arrive nowhere, as with a pulled cable, and nobody is told. That needs no packet filter and no kernel
module, and it works for one direction as well as for both. Neighbour entries are permanent, so that ARP mends nothing.
"""

from __future__ import annotations

import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import permutations

Way = tuple[int, int]
"""From one member to another; nodes are 1, 2, 3, …"""
CLIENT = 0
BRIDGE = "swarm"
_NOWHERE = "02:00:00:00:00:01"


def ip(*argv: str, stdin: str | None = None) -> None:
    done = subprocess.run(["ip", *argv], input=stdin, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(argv)}: {done.stderr.strip()}")


def address(member: int) -> str:
    return f"10.77.0.{member or 254}"


def _hardware(member: int) -> str:
    return f"02:77:00:00:00:{member or 254:02x}"


class Network:
    """Only inside `tools.chaos.isolation`. Thread-safe."""

    def __init__(self, nodes: int) -> None:
        self.members = range(nodes + 1)
        self._cuts: Counter[Way] = Counter()
        self._lock = threading.Lock()
        ip("link", "set", "lo", "up")
        ip("link", "add", BRIDGE, "address", _hardware(CLIENT), "type", "bridge")
        ip("addr", "add", f"{address(CLIENT)}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for n in self.members[1:]:
            name = f"node{n}"
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "address", _hardware(n), "netns", name)
            ip("link", "set", name, "master", BRIDGE, "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address(n)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        self._apply(dict.fromkeys(permutations(self.members, 2), True))

    def enter(self, node: int) -> tuple[str, ...]:
        """What to put before a command so that it runs in the node's namespace."""
        return ("nsenter", f"--net=/run/netns/node{node}")

    def cut(self, ways: Iterable[Way]) -> None:
        """Each way counts its cuts: it is open again when all who cut it have healed it."""
        self._count(ways, 1)

    def heal(self, ways: Iterable[Way]) -> None:
        self._count(ways, -1)

    def _count(self, ways: Iterable[Way], by: int) -> None:
        with self._lock:
            changed: dict[Way, bool] = {}
            for way in set(ways):
                before = self._cuts[way]
                self._cuts[way] += by
                if bool(before) != bool(self._cuts[way]):
                    changed[way] = not self._cuts[way]
            self._apply(changed)

    def _apply(self, ways: dict[Way, bool]) -> None:
        """One `ip` for each sender: way -> whether it is open."""
        lines: defaultdict[int, list[str]] = defaultdict(list)
        for (source, target), is_open in ways.items():
            device = BRIDGE if source == CLIENT else "eth0"
            hardware = _hardware(target) if is_open else _NOWHERE
            lines[source].append(f"neigh replace {address(target)} lladdr {hardware} nud permanent dev {device}\n")
        for source, found in lines.items():
            inside = () if source == CLIENT else ("-n", f"node{source}")
            ip(*inside, "-batch", "-", stdin="".join(found))


def both(a: Iterable[int], b: Iterable[int]) -> set[Way]:
    """Every way between two groups."""
    others = tuple(b)
    return {way for x in a for y in others if x != y for way in ((x, y), (y, x))}
