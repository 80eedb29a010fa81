"""Every limit of the content store in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 1 << 20
MAX_BLOCK = 2 * MIB
"""Largest block that Kubo passes on by bitswap."""


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """Times in seconds."""

    max_wants: int = 128
    """Blocks asked for at once by the whole node: the bound of memory in flight is this times the size of a
    block (256 KiB as a rule, 2 MiB at the most)."""
    window: int = 16
    """Blocks asked of one peer at once."""
    stall: float = 5.0
    """A peer that is asked and sends no byte for so long is dropped for the block, and another is asked."""
    hedge: float = 3.0
    """A block that was asked of one peer is asked of another one too, if there is one, when the first has brought nothing for so long,
    or only what it was asked for later."""
    patience: float = 120.0
    """Longest wait for one block from one peer, whatever else it sends."""
    distrust: float = 60.0
    """A peer that sent a block that nobody asked for, or a wrong one, is not asked for so long."""
    probe_peers: int = 16
    """Connected peers that are asked at once whether they have a block that no named provider has."""
    helpful: float = 60.0
    """A peer that a search found, or that brought a block since, is for so long a provider of what has none named: who has the root
    of a DAG is likely to have the rest, and only roots are announced."""
    tick: float = 0.25
    """How often deadlines are looked at while something is wanted."""
    idle: float = 30.0
    """An outgoing stream without traffic is closed after so long."""
    open_timeout: float = 5.0
    """To open a stream to a peer, dialling included."""
    write_timeout: float = 30.0
    """To write one message."""
    max_message: int = 4 * MIB
    """Largest message that is read (Kubo's limit)."""
    serve_bytes: int = MIB
    """Blocks packed into one outgoing message; one such message per peer is in memory at once."""
    max_queued: int = 1024
    """Requests of one peer that wait to be served; more are answered with "don't have"."""
    max_lacking: int = 16_384
    """Requests for what was not here whose peers are told when it is."""
    max_streams: int = 8
    """Incoming streams per peer; more are reset."""
    max_peers: int = 256
    """Peers with an exchange of messages going on."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    chunk: int = 262_144
    """Bytes of a leaf. Any other value gives other CIDs than the rest of the swarm."""
    parallel: int = 64
    """Blocks of one DAG fetched at once."""
    readahead: int = 16
    """Blocks that `iterate` holds ready."""
    write_batch: int = 16
    """Leaves that are hashed and written in one go."""
    max_depth: int = 32
    """Levels of a DAG."""
    min_leaf: int = 16
    """A file may have `few_leaves` plus one leaf per so many bytes: the smallest chunk that Kubo's chunkers make."""
    few_leaves: int = 65_536
    max_nodes: int = 16_777_216
    """Nodes of one DAG (4 TiB of full leaves)."""
    reserve_bytes: int = 64 * MIB
    """Space on the disk that the store leaves free."""
    max_bytes: int = 0
    """Bytes of blocks that the store holds at the most; 0: as many as the disk has room for."""
    grace: float = 600.0
    """Seconds that a block which nobody needs stays after it was written or used: whoever wrote it may be about to pin it."""
    touch_after: float = 60.0
    """A use is noted on the disk if the last one noted is older than so many seconds."""
    collect_batch: int = 64
    """Blocks removed in one go."""
    io_threads: int = 8
    """Threads that wait for the disk at once."""
    io_lanes: int = 2
    """Threads that read at once; what comes meanwhile goes together."""
    io_together: int = 16
    """Short calls in one go."""
    synced_memory: int = 65_536
    """How many blocks are remembered as already on the disk."""
    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)
