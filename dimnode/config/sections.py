"""Every setting, its default and what it means: the source of ``bootstrap.toml``.

Times are seconds, sizes are bytes. An empty string or list means "not set". A description that says
*planned* belongs to a part that this version does not serve yet; see `unserved`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dimnode.config.values import (
    Bytes,
    Count,
    CountOrNone,
    DialableAddresses,
    HostPort,
    HostPortOrNothing,
    IpfsApi,
    IpfsCredentials,
    Multiaddrs,
    PeerIds,
    Seconds,
    Section,
    Strings,
)

Name = Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z0-9]?[A-Za-z0-9._-]*$")]
GIB = 1 << 30


class NodeSection(Section):
    """This node."""

    name: Name = Field(default="", description="How people call this node. Empty: the host name and the end of the peer id.")
    drain: Seconds = Field(default=5.0, description="Most seconds that a clean stop (SIGTERM, SIGINT) may take.")


class SwarmSection(Section):
    """The swarm this node belongs to, how it finds its members and when it gives one up."""

    name: Name = Field(default="", description='Swarm name. Empty: the one that the home was made with, else "dim".')
    key_file: str = Field(default="", description="File with the swarm key (64 hexadecimal digits). Empty: swarm.key in the home.")
    bootstrap: DialableAddresses = Field(
        default=(), description="Multiaddrs of members to dial, again and again until they answer, each ending in /p2p/PEER_ID."
    )
    mdns: bool = Field(default=True, description="Find members on the local network.")
    allow: PeerIds = Field(default=(), description="Peer ids that may connect. Empty: everyone who has the swarm key.")
    heartbeat: Seconds = Field(default=1.0, description="Least seconds between two heartbeats; grows with the swarm.")
    suspect: Seconds = Field(default=3.0, description="Silence after which a node is suspect.")
    dead: Seconds = Field(default=5.0, description="Silence after which a node is dead.")
    removed: Seconds = Field(default=3600.0, description="Silence after which a node is forgotten.")

    @model_validator(mode="after")
    def _ordered(self) -> SwarmSection:
        if not self.heartbeat < self.suspect < self.dead < self.removed:
            raise ValueError("heartbeat, suspect, dead and removed must grow in this order")
        return self


class P2pSection(Section):
    """The libp2p host."""

    listen: Multiaddrs = Field(default=("/ip4/0.0.0.0/tcp/4101",), description="Multiaddrs to listen on; /tcp/0 is any free port.")
    announce: Multiaddrs = Field(default=(), description="Multiaddrs that others should dial. Empty: the listen addresses.")
    dial_timeout: Seconds = Field(default=5.0, description="Time for one attempt to connect.")
    request_timeout: Seconds = Field(default=5.0, description="Time for one request to a peer.")
    redial_max: Seconds = Field(default=15.0, description="Most seconds between two attempts to reach a bootstrap peer.")
    gossip_queue: Count = Field(default=1024, description="Gossip messages that wait per topic before the oldest are dropped.")


class ElectionSection(Section):
    """Who orchestrates."""

    orchestrators: Annotated[int, Field(ge=1, le=64)] = Field(default=3, description="Seats in the swarm. The same on every node.")
    mode: Literal["available", "majority"] = Field(
        default="available",
        description='"available": each side of a partition elects and works on. "majority": only a side that reaches most of the electorate. The same on every node.',
    )
    eligible: bool = Field(default=True, description="Whether this node may hold a seat.")
    allow: PeerIds = Field(
        default=(),
        description="Peer ids whose seats, and whose decisions over jobs, count. Empty: everyone's in the swarm. The same on every node.",
    )
    former: PeerIds = Field(
        default=(),
        description="Peer ids that were in `allow`: what they decided is believed, and they hold no seats. Only with `allow`. The same on every node.",
    )
    electorate: PeerIds = Field(
        default=(),
        description='The voters of version 1 of the electorate of mode "majority", where the operator\'s key is made. Empty: that node alone. Afterwards `dimnode electorate` changes it.',
    )
    beat: Seconds = Field(default=0.5, description="Seconds between two beats among seats and pool.")
    silence: Seconds = Field(default=2.0, description="Silence after which a seat's holder counts as gone.")
    lease: Seconds = Field(default=3.0, description='Mode "majority": seconds that a voter grants a seat for. The same on every node.')
    renew: Seconds = Field(default=0.75, description="Seconds after which a holder asks for its lease again.")
    drift: Annotated[float, Field(ge=0.001, le=0.5)] = Field(
        default=0.05, description="Largest share by which the rates of two nodes' clocks differ. The same on every node."
    )
    solo_after: Seconds = Field(default=10.0, description="A node that was told of peers and reaches none works alone after this time.")

    @model_validator(mode="after")
    def _ordered(self) -> ElectionSection:
        if self.silence < 2 * self.beat:
            raise ValueError("silence must be at least twice beat")
        if self.former and not self.allow:
            raise ValueError("former needs allow: without a list everybody decides")
        if self.lease < 3 * self.renew:
            raise ValueError("lease must be at least three times renew")
        return self


class OrchestratorSection(Section):
    """The client API; open only while this node holds a seat."""

    listen: HostPort = Field(
        default="127.0.0.1:50051",
        description="gRPC address. A default port that is taken falls back to a free one; a configured one does not.",
    )
    announce: HostPortOrNothing = Field(default="", description="host:port that clients should dial. Empty: the listen address.")
    max_jobs: Count = Field(default=10_000, description="Unfinished jobs that this node drives at once; more are refused.")
    max_concurrent: Count = Field(default=10_000, description="Calls served at once.")
    warm_ahead: bool = Field(
        default=True, description="Nodes get the models of a chained job's later steps ready while the first one runs."
    )
    connect_timeout: Seconds = Field(default=5.0, description="Time to connect to a daemon before the task goes to another node.")


class DaemonSection(Section):
    """The part that runs work."""

    listen: HostPort = Field(default="0.0.0.0:50052", description="gRPC address for the orchestrators of the swarm (mutual TLS).")
    announce: HostPortOrNothing = Field(default="", description="host:port that orchestrators should dial. Empty: the listen address.")
    queue: Count = Field(default=1000, description="Tasks that may wait; more are refused and placed elsewhere.")
    slots: CountOrNone = Field(default=0, description="Tasks that run at once. 0: one per core.")
    aging: Seconds = Field(default=30.0, description="Waiting time that raises a task by one priority.")
    task_timeout: Seconds = Field(default=600.0, description="Time for one task that names none, queueing and fetching included.")
    cache_bytes: Bytes = Field(default=20 * GIB, description="Models kept on disk; the least recently used go first.")
    model_bytes: Bytes = Field(default=8 * GIB, description="Largest model that this node takes.")
    agents: Count = Field(default=4, description="Agent processes kept, each with one loaded model.")
    agent_memory: Bytes = Field(default=4 * GIB, description="Memory that one agent may use before it is stopped.")
    agent_threads: CountOrNone = Field(default=0, description="Threads per inference. 0: cores divided by slots, at least 1.")
    agent_idle: Seconds = Field(default=600.0, description="An agent without work for this time is stopped.")
    agent_start: Seconds = Field(default=60.0, description="Time for an agent that has its framework to load its model.")
    framework_start: Seconds = Field(
        default=180.0, description="Time for a framework to be imported. One that takes longer is ended, and no model is blamed for it."
    )
    agent_hang: Seconds = Field(
        default=120.0,
        description="A run that has given nothing after this time, nor after three times the longest that ended well, counts as a crash of its "
        "model when its task's time is over. After three crashes in a row a model rests for a minute.",
    )
    memory_reserve: Bytes = Field(default=256 << 20, description="Free memory that a task must leave to the machine.")
    disk_reserve: Bytes = Field(default=256 << 20, description="Free disk that a task must leave to the machine.")
    gpu_memory_reserve: Annotated[int, Field(ge=0)] = Field(
        default=256 << 20, description="Free memory that agents must leave on each graphics card."
    )
    device: Literal["auto", "cpu", "cuda", "tensorrt", "mps"] = Field(
        default="auto",
        description='Where models run whose framework has a choice. "auto": on a GPU that has room for them, else on the CPU. '
        '"cpu", "cuda", "tensorrt" (ONNX models; the others on CUDA), "mps" (Apple): there, or the task fails and says why.',
    )
    agents_per_model: CountOrNone = Field(
        default=0, description="Agents with the same model, at the most. 0: as many as the cores allow with agent_threads each."
    )
    sandbox: Literal["require", "best", "off"] = Field(
        default="best",
        description='"require": no agent works unless the system confines it in every respect (files, network, processes, privileges, '
        'limits). "best": as far as the system goes; doctor says how far. "off": limits only.',
    )
    batch: Count = Field(default=32, description="Most tasks of one client for one model that run as one. 1: each on its own.")
    batch_delay: Seconds = Field(
        default=0.002, description="Most seconds that a task waits for others to run with, when others have been coming."
    )
    share_from: Annotated[int, Field(ge=0)] = Field(
        default=256 << 10, description="Tensors of a task from this size on go to the agent through shared memory. 0: never."
    )
    prewarm: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=2, description="Models that are kept loaded before they are asked for: pinned, queued and frequent ones. 0: none."
    )
    prewarm_interval: Seconds = Field(default=5.0, description="Time between looks at which models to warm.")
    pinned: Strings = Field(
        default=(), description="Models, by id or CID, that are fetched, kept in the cache and loaded whenever there is room."
    )


class GatewaySection(Section):
    """REST, WebSocket and dashboard: planned. This version reads these settings, serves no gateway and says so in status."""

    enabled: bool = Field(default=True, description="Planned.")
    listen: HostPort = Field(default="127.0.0.1:8088", description="Planned.")


class IpfsSection(Section):
    """The content store."""

    backend: Literal["embedded", "kubo"] = Field(
        default="embedded",
        description='"embedded": in the node itself. "kubo": in a Kubo daemon of yours; it gives what it has to whoever asks it by CID.',
    )
    api: IpfsApi = Field(
        default="/ip4/127.0.0.1/tcp/5001", description="RPC address of Kubo: a multiaddr, an http(s) URL, or unix:/PATH of a socket."
    )
    api_auth: IpfsCredentials = Field(
        default="",
        description='What opens it, if anything: "basic:USER:PASSWORD" or "bearer:TOKEN". Better in DIM_IPFS__API_AUTH than in a file.',
    )
    api_timeout: Seconds = Field(default=10.0, description="Time for Kubo to begin an answer, and between two parts of it.")
    gateway: Annotated[str, Field(min_length=1)] = Field(default="http://127.0.0.1:8080", description="Gateway of Kubo; planned.")
    fetch_timeout: Seconds = Field(default=30.0, description="Seconds without progress after which a fetch gives up.")
    fetch_parallel: Count = Field(default=32, description="Blocks asked for at once in one fetch.")
    max_bytes: Bytes = Field(
        default=64 * GIB,
        description="Bytes of blocks kept on this node's disk at the most. Near it, blocks that no job, model or pin needs are removed, the least recently used "
        "first; if that is not enough, what would need more is refused.",
    )
    snapshot_interval: Seconds = Field(
        default=30.0, description="Least seconds between two publications of the swarm's state, while this node holds a seat."
    )
    name_validity: Annotated[float, Field(ge=60, le=7 * 86_400)] = Field(
        default=86_400.0, description="Seconds for which a published name is valid; it is renewed at half of that."
    )
    catch_up_bytes: Bytes = Field(
        default=GIB // 4,
        description="Bytes of finished jobs' records that a node which is new, or was away, takes from the published state, beside those that it needs.",
    )
    grace: Seconds = Field(default=600.0, description="Seconds that a block which nothing needs stays after it was written or used.")


class DhtSection(Section):
    """The swarm's own distributed hash table: who has which content, and names, where neither heartbeats nor anybody connected can tell."""

    enabled: bool = Field(default=True, description="Take part in it. Without, what nobody who is known has is not found.")
    timeout: Seconds = Field(default=10.0, description="Time for one question to it.")
    refresh: Seconds = Field(default=600.0, description="Seconds between two looks for members that this node does not know of.")
    reprovide: Annotated[float, Field(ge=60, le=43_200)] = Field(
        default=3_600.0,
        description="Seconds after which this node tells again what it has and where its name points; others forget it after a day.",
    )
    most_provided: Count = Field(
        default=512, description="Contents that this node announces: models, published states and what people pinned; never a job's blocks."
    )
    most_kept: Count = Field(
        default=8_192, description="Announcements that are kept in memory for other nodes, and a sixteenth of that many names."
    )


class JobsSection(Section):
    """Jobs."""

    replicas: Annotated[int, Field(ge=0, le=100)] = Field(
        default=1,
        description="Copies of each job's record, inputs and result on other nodes. A submission is answered once they are there, "
        "or after copy_wait with the true count; what is missing is made up for later.",
    )
    copies_on: PeerIds = Field(
        default=(), description="Peer ids of the nodes that may keep copies of the jobs that this node accepts. Empty: every member."
    )
    copy_wait: Seconds = Field(default=2.0, description="Most seconds that a decision waits for its copies.")
    retention: Seconds = Field(
        default=7 * 86_400.0,
        description="Time that a finished job's record is kept, after its own timeout. Older unfinished ones never run.",
    )
    timeout: Seconds = Field(default=3600.0, description="Time for a whole job that names none.")
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        default=2,
        description="Further attempts at a failed task, on other nodes if there are any. One that a stop or restart of its node "
        "ended does not count.",
    )
    max_spec_bytes: Bytes = Field(default=1 << 20, description="Largest job form.")
    inline_bytes: Annotated[int, Field(ge=0)] = Field(
        default=65_536, description="Tensors up to this size travel inside messages, larger ones by CID."
    )


class EventsSection(Section):
    """Job and node events for listeners, as docs/events.md describes them: signed hints, without anything of forms, inputs or results."""

    jobs: bool = Field(default=True, description="Publish what happens to the jobs that this node drives.")
    nodes: bool = Field(default=True, description="Publish seats won and lost, and, from the lowest seat, who joins and leaves.")
    kubo: bool = Field(
        default=True,
        description='With ipfs.backend = "kubo": publish through Kubo\'s pubsub, too, to whoever in its network knows the topics.',
    )
    channel: Name = Field(
        default="",
        description="Part of the topics' names. Empty: made from the swarm key, so that nobody can guess it; `dimnode status` tells. The same on every node.",
    )
    interval: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=0.5, description="Least seconds between two messages of one kind; what happens meanwhile goes together."
    )
    batch: Annotated[int, Field(ge=1, le=200)] = Field(default=100, description="Events in one message, at the most.")
    queue: Count = Field(default=1000, description="Events of one kind that wait to be sent; the oldest is dropped and counted.")
    timeout: Seconds = Field(default=5.0, description="Time for one message to be sent.")
    retry: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=60.0, description="Most seconds between two tries to send while that fails, as when Kubo's pubsub is off."
    )
    max_age: Seconds = Field(default=120.0, description="Messages whose time differs from this node's clock by more are not believed.")
    remember: Count = Field(default=200, description="Latest events that `dimnode events` shows.")


class CostSection(Section):
    """What this node asks for its work."""

    price: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(default=1.0, description="Credits for one task that succeeds.")


class LimitsSection(Section):
    """Rate limits of the client API, per client; until clients can authenticate, all of a node's count as one."""

    rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(default=0.0, description="Calls per second and client. 0: no limit.")
    burst: CountOrNone = Field(default=0, description="Calls at once above the rate. 0: what one second allows.")


class TlsSection(Section):
    """Certificates of the client API: planned. start refuses them (nodes use their own among each other)."""

    cert: str = Field(default="", description="Certificate file (PEM).")
    key: str = Field(default="", description="Its key (PEM).")
    client_ca: str = Field(default="", description="Clients must show a certificate of this authority (PEM).")


class AuthSection(Section):
    """Who may use the client API."""

    mode: Literal["local", "open", "token"] = Field(
        default="local",
        description='"local": on loopback everyone on this machine; start refuses other listen addresses. '
        '"open": everyone who reaches it. "token" is planned: start refuses it.',
    )


class LoggingSection(Section):
    """Logs go to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="debug, info, warning or error.")
    format: Literal["auto", "console", "json"] = Field(default="auto", description='"auto": console on a terminal, else json.')


class MetricsSection(Section):
    """Prometheus metrics, served by the gateway: planned."""

    enabled: bool = Field(default=True, description="Planned.")
