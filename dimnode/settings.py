"""From the one `Config` to what each part wants to know. No part reads the configuration itself."""

from __future__ import annotations

import os
from dataclasses import replace

from dimnode.config import Config
from dimnode.core.election import ElectionSettings
from dimnode.core.membership import MembershipSettings
from dimnode.core.provide_plan import ProvideSettings
from dimnode.core.rate_limit import RateLimitSettings
from dimnode.core.retention import RetentionRule
from dimnode.daemon.batching import BatchSettings
from dimnode.daemon.settings import AgentSettings, DaemonSettings, PrewarmSettings
from dimnode.domain.events import channel_of
from dimnode.events.settings import EventSettings
from dimnode.garbage import GarbageSettings
from dimnode.invite import Membership
from dimnode.leadership import LeadershipSettings
from dimnode.orchestrator.seat_questions import AskSettings
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.records.anti_entropy import AntiEntropySettings
from dimnode.records.exchange import ExchangeSettings
from dimnode.records.hints import HintSettings
from dimnode.records.holder import HolderSettings
from dimnode.records.keeping import KeepingSettings
from dimnode.records.links import LinkSettings
from dimnode.records.replicator import ReplicatorSettings
from dimnode.records.retention import RetentionSettings
from dimnode.rpc.channels import ChannelSettings
from dimnode.rpc.orchestrator_server import OrchestratorServerSettings
from dimnode.rpc.server import ServerSettings
from dimnode.security.certificates import CertificateSettings
from dimnode.snapshots.catch_up import CatchUpSettings
from dimnode.snapshots.manager import StateSettings
from dimnode.snapshots.names import NamesSettings
from dimnode.snapshots.publisher import PublisherSettings
from dimnode.snapshots.resolver import ResolverSettings
from dimnode.snapshots.writer import WriterSettings
from dimnode.swarm.electorate import ListSettings
from dimnode.swarm.registry import RegistrySettings
from dimnode.swarm.relay import RelaySettings
from p2p.dht.settings import DhtSettings
from p2p.ipfs.kubo.settings import KuboSettings, RpcSettings
from p2p.ipfs.settings import StoreSettings
from p2p.settings import DialSettings, MdnsSettings, NetworkSettings

READY_POLL = 0.02
READY_MARGIN = 5.0
LOOKS = 0.25
"""Seconds between two looks at changed jobs and members, at the most: what is told of them may be so late."""


class Settings:
    """One method per part."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def network(self, member: Membership, *, any_port: bool = False) -> NetworkSettings:
        """``any_port``: the listen addresses with port 0."""
        c = self._config
        listen = tuple(_any_port(a) for a in c.p2p.listen) if any_port else c.p2p.listen
        return NetworkSettings(
            swarm=member.swarm,
            listen=listen,
            announce=c.p2p.announce,
            psk=member.key,
            bootstrap=member.bootstrap,
            allow=frozenset(c.swarm.allow),
            dial=DialSettings(timeout=c.p2p.dial_timeout, backoff_most=c.p2p.redial_max),
            mdns=MdnsSettings(enabled=c.swarm.mdns),
        )

    def store(self) -> StoreSettings:
        ipfs = self._config.ipfs
        return StoreSettings(parallel=ipfs.fetch_parallel, max_bytes=ipfs.max_bytes, grace=ipfs.grace)

    def kubo(self) -> KuboSettings:
        ipfs = self._config.ipfs
        return KuboSettings(api=ipfs.api, credentials=ipfs.api_auth, rpc=RpcSettings(timeout=ipfs.api_timeout))

    def garbage(self) -> GarbageSettings:
        return GarbageSettings(max_bytes=self._config.ipfs.max_bytes)

    def channels(self) -> ChannelSettings:
        return ChannelSettings(connect_timeout=self._config.orchestrator.connect_timeout)

    def certificates(self) -> CertificateSettings:
        return CertificateSettings(exchange_timeout=self._config.p2p.request_timeout)

    def relay(self) -> RelaySettings:
        return RelaySettings(open_timeout=self._config.p2p.request_timeout)

    def registry(self) -> RegistrySettings:
        return RegistrySettings(inbox=self._config.p2p.gossip_queue)

    def daemon(self) -> DaemonSettings:
        d = self._config.daemon
        cores = os.cpu_count() or 1
        slots = d.slots or cores
        threads = min(d.agent_threads, cores) or max(1, cores // slots)
        agents = AgentSettings(
            max_agents=d.agents,
            idle_seconds=d.agent_idle,
            start_timeout=d.agent_start,
            framework_timeout=d.framework_start,
            hang_seconds=d.agent_hang,
            threads=threads,
            memory_base=d.agent_memory,
            cores=max(cores, slots),
            device=d.device,
            sandbox=d.sandbox,
            per_model=d.agents_per_model,
            share_from=d.share_from,
            batch=BatchSettings(most_requests=d.batch, delay=d.batch_delay),
        )
        return DaemonSettings(
            slots=slots,
            queue_capacity=d.queue,
            aging_seconds=d.aging,
            inline_bytes=self._config.jobs.inline_bytes,
            default_timeout=d.task_timeout,
            fetch_timeout=self._config.ipfs.fetch_timeout,
            cache_bytes=d.cache_bytes,
            model_bytes=d.model_bytes,
            min_free_memory=d.memory_reserve,
            min_free_disk=d.disk_reserve,
            min_free_gpu_memory=d.gpu_memory_reserve,
            prewarm=PrewarmSettings(most=d.prewarm, interval=d.prewarm_interval, pinned=d.pinned),
            stop_grace=self._config.node.drain / 4,
            agents=agents,
        )

    def membership(self) -> MembershipSettings:
        s = self._config.swarm
        return MembershipSettings(heartbeat=s.heartbeat, suspect=s.suspect, dead=s.dead, removed=s.removed)

    def election(self) -> ElectionSettings:
        e = self._config.election
        return replace(
            ElectionSettings(),
            mode=e.mode,
            lease=e.lease,
            renew=e.renew,
            drift=e.drift,
            orchestrators=e.orchestrators,
            beat=e.beat,
            suspicion=e.silence,
            pause=e.silence,
            join_wait=e.solo_after,
            allow=frozenset(e.allow),
        )

    def lists(self) -> ListSettings:
        e = self._config.election
        return ListSettings(request_timeout=self._config.p2p.request_timeout, between=e.lease * (1 + e.drift))

    def rate_limit(self) -> RateLimitSettings:
        return RateLimitSettings(rate=self._config.limits.rate, burst=self._config.limits.burst)

    def deciders(self) -> frozenset[str]:
        """Whose decisions over jobs are believed; empty: everybody's."""
        e = self._config.election
        return frozenset((*e.allow, *e.former)) if e.allow else frozenset()

    def orchestrator(self) -> OrchestratorSettings:
        c = self._config
        return OrchestratorSettings(
            job_timeout=c.jobs.timeout,
            retries=c.jobs.retries,
            max_spec_bytes=c.jobs.max_spec_bytes,
            inline_bytes=c.jobs.inline_bytes,
            retention=RetentionRule(retention=c.jobs.retention),
            warm_ahead=c.orchestrator.warm_ahead,
            max_active_jobs=c.orchestrator.max_jobs,
            fetch_timeout=c.ipfs.fetch_timeout,
        )

    def keeping(self) -> KeepingSettings:
        j = self._config.jobs
        links = replace(LinkSettings(), request_timeout=self._config.p2p.request_timeout)
        copies_on, rule = frozenset(j.copies_on), RetentionRule(retention=j.retention)
        return KeepingSettings(
            holder=HolderSettings(retention=rule),
            replicator=ReplicatorSettings(replicas=j.replicas, copies_on=copies_on, patience=j.copy_wait, links=links),
            anti_entropy=AntiEntropySettings(replicas=j.replicas, copies_on=copies_on, exchange=ExchangeSettings(retention=rule)),
            hints=HintSettings(exchange=ExchangeSettings(retention=rule)),
            retention=RetentionSettings(rule=rule),
        )

    def state(self) -> StateSettings:
        c = self._config
        rule, copies_on = RetentionRule(retention=c.jobs.retention), frozenset(c.jobs.copies_on)
        ttl = c.ipfs.snapshot_interval
        return StateSettings(
            names=NamesSettings(validity=c.ipfs.name_validity, ttl=ttl, timeout=c.p2p.request_timeout, repeat=c.dht.reprovide),
            writer=WriterSettings(with_records=not copies_on),
            publisher=PublisherSettings(interval=ttl, validity=c.ipfs.name_validity, ttl=ttl),
            resolver=ResolverSettings(timeout=c.ipfs.fetch_timeout / 2),
            catch_up=CatchUpSettings(
                replicas=c.jobs.replicas,
                copies_on=copies_on,
                eligible=c.election.eligible,
                most_bytes=c.ipfs.catch_up_bytes,
                timeout=c.ipfs.fetch_timeout,
            ),
            exchange=ExchangeSettings(retention=rule, request_timeout=c.p2p.request_timeout),
        )

    def events(self, swarm_key: str) -> EventSettings:
        e = self._config.events
        return EventSettings(
            channel=e.channel or channel_of(swarm_key),
            jobs=e.jobs,
            nodes=e.nodes,
            interval=e.interval,
            batch=e.batch,
            queue=e.queue,
            timeout=e.timeout,
            retry_most=e.retry,
            max_age=e.max_age,
            remember=e.remember,
            looks=min(LOOKS, e.interval / 2),
            inbox=self._config.p2p.gossip_queue,
            changed_jobs=2 * self._config.orchestrator.max_jobs,
            told_jobs=2 * self._config.orchestrator.max_jobs,
        )

    def dht(self) -> DhtSettings | None:
        """None: no part in it."""
        d = self._config.dht
        names = max(1, d.most_kept // 16)
        made = DhtSettings(timeout=d.timeout, refresh=d.refresh, most_providers=d.most_kept, most_records=names)
        return made if d.enabled else None

    def providing(self) -> ProvideSettings:
        d = self._config.dht
        return ProvideSettings(repeat=d.reprovide, most=d.most_provided)

    def leadership(self) -> LeadershipSettings:
        c = self._config
        server = OrchestratorServerSettings(
            server=ServerSettings(setting="orchestrator.listen", max_concurrent_calls=c.orchestrator.max_concurrent),
            max_spec_bytes=c.jobs.max_spec_bytes,
            insecure_public=c.auth.mode == "open",
        )
        return LeadershipSettings(
            listen=c.orchestrator.listen,
            fallback=c.is_default("orchestrator.listen"),
            announce=c.orchestrator.announce,
            server=server,
            ask=AskSettings(timeout=c.p2p.request_timeout),
        )

    def ready_timeout(self) -> float:
        """Seconds after which a node calls itself ready although it knows no orchestrator yet."""
        return self._config.election.solo_after + READY_MARGIN

    def load_interval(self) -> float:
        """Least seconds between two changes of the load that the heartbeat tells."""
        return self._config.swarm.heartbeat / 2

    def ready_poll(self) -> float:
        return READY_POLL


def _any_port(address: str) -> str:
    head, _, _ = address.rpartition("/tcp/")
    return f"{head}/tcp/0"
