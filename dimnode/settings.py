"""From the one `Config` to what each part wants to know. No part reads the configuration itself."""

from __future__ import annotations

from dimnode.config import Config
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.rpc.channels import ChannelSettings
from dimnode.rpc.orchestrator_server import OrchestratorServerSettings
from p2p.ipfs.settings import StoreSettings
from p2p.settings import DialSettings, MdnsSettings, NetworkSettings


def network_settings(config: Config, swarm: str, key: str, bootstrap: tuple[str, ...], listen: tuple[str, ...]) -> NetworkSettings:
    return NetworkSettings(
        swarm=swarm,
        listen=listen,
        announce=config.p2p.announce,
        psk=key,
        bootstrap=bootstrap,
        allow=frozenset(config.swarm.allow),
        dial=DialSettings(timeout=config.p2p.dial_timeout, backoff_most=config.p2p.redial_max),
        mdns=MdnsSettings(enabled=config.swarm.mdns),
    )


def store_settings(config: Config) -> StoreSettings:
    del config
    return StoreSettings()


def orchestrator_settings(config: Config) -> OrchestratorSettings:
    return OrchestratorSettings(
        job_timeout=config.jobs.timeout,
        retries=config.jobs.retries,
        max_spec_bytes=config.jobs.max_spec_bytes,
        inline_bytes=config.jobs.inline_bytes,
        max_active_jobs=config.orchestrator.max_jobs,
        max_running_jobs=config.orchestrator.max_concurrent,
        fetch_timeout=config.ipfs.fetch_timeout,
    )


def client_api_settings(config: Config) -> OrchestratorServerSettings:
    return OrchestratorServerSettings(max_spec_bytes=config.jobs.max_spec_bytes, insecure_public=config.auth.mode == "open")


def channel_settings(config: Config) -> ChannelSettings:
    del config
    return ChannelSettings()
