"""What nodes tell each other about themselves."""

from __future__ import annotations

from typing import Literal

import msgspec

from dimnode.domain.model import ModelRef

NodeState = Literal["alive", "suspect", "dead", "removed"]


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    os: str
    arch: str
    cpus: int
    memory: int
    """Bytes of RAM in all."""
    gpus: tuple[str, ...] = ()
    gpu_memory: tuple[int, ...] = ()
    """Bytes of each of ``gpus``, in their order; 0: not known, or shared with the processor."""
    gpu_formats: tuple[str, ...] = ()
    """Formats whose loaders, as they are installed and set up here, can use ``gpus``."""
    loaders: tuple[str, ...] = ()
    """Formats this node can run, of `dimnode.domain.model.FORMATS`."""
    sandbox: tuple[str, ...] = ()
    """What agents are kept from, as far as the node's system can: ``files``, ``network``, ``processes``, ``privileges``, ``limits``."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    running: int = 0
    """Tasks running now."""
    queued: int = 0
    slots: int = 1
    """Tasks that may run at once."""
    queue_capacity: int = 0
    memory_free: int = -1
    """Bytes that a further agent could have: beside a reserve, what is free and what idle agents would give back. -1: not told."""
    gpu_free: tuple[int, ...] = ()
    """The same of each card, in the order of ``Capabilities.gpus``; meaningless where the card's memory is not known."""
    cpu: float = 0.0
    """0..1 over all cores."""


SANDBOX = frozenset(("files", "network", "processes", "privileges", "limits"))
"""A complete sandbox, see `Capabilities.sandbox`."""


class CabinetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A data cabinet as others see it: never its content."""

    name: str
    rows: int
    columns: dict[str, str]
    """Column or array name -> dtype name (arrays: ``float32[64]`` with the shape past axis 0)."""
    format: str
    sandbox: bool = False
    """Its policy lets only agents in a complete sandbox at it."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """Who I am and what I can do; gossiped, signed by its author. Liveness and the seats do not hang
    on it, placement does."""

    peer_id: str
    name: str
    swarm: str
    protocol: int
    boot: str
    """Random at each start: tells a restart from a late message."""
    incarnation: int
    """Grows with each start (persisted) and when the node refutes a suspicion."""
    seq: int
    """Grows with each heartbeat within one incarnation."""
    addresses: tuple[str, ...]
    """Multiaddrs ending in /p2p/{peer_id}."""
    daemon: str
    """host:port of the daemon service; host may be empty: use the address the peer was reached at."""
    capabilities: Capabilities
    load: Load
    models: tuple[ModelRef, ...] = ()
    cabinets: tuple[CabinetInfo, ...] = ()
    price: float = 1.0
    interval: float = 1.0
    """Seconds until the next one: receivers judge silence by it."""
    leaving: bool = False
    eligible: bool = True
    """May hold an orchestrator seat (``election.eligible``)."""


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """A claim on an orchestrator seat. Order of claims: (support, n, peer, boot)."""

    seat: int
    n: int
    """The term: grows with every change of a seat's holder."""
    peer: str
    boot: str
    support: int = 1
    """Largest live set seen during this tenure."""
    grpc: str = ""
    """Advertised host:port of the orchestrator API."""
    local_only: bool = False
    """True if that address is loopback: reach it through a libp2p stream."""
    jobs: int = 0
    """Unfinished jobs that this seat drives, as of the holder's latest beat."""


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """Streamed between seats and pool every 0.5 s. DESIGN.md section 5."""

    peer: str
    boot: str
    seq: int
    n: int
    heard: tuple[str, ...]
    """Peers whose beats arrived within the suspicion time."""
    claim: Seat | None = None
    vouch: tuple[Seat, ...] = ()
    """Claims of my live peers."""
    stance: Literal["candidate", "waiting", "observer", "resting"] = "candidate"
    """In the pool, as I see it; the same, but claiming nothing yet (just started or awoken); outside; claiming nothing for a while
    (released, in quarantine)."""
    reach: int = 0
    """How many of seats and pool I hear and am heard by."""
    spare: int = 0
    """The highest reach of a candidate without a seat that I know."""
    you: str = ""
    """In an answer, or when two nodes speak under one id: the boot id by which I know the recipient. Another than its own
    means that its disk was copied."""
