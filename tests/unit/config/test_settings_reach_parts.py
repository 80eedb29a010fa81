"""A documented setting that no part ever sees would be a promise without effect."""

from __future__ import annotations

from typing import Any

import pytest

from dimnode.config import Config, load_config
from dimnode.config.load import keys
from dimnode.invite import Membership
from dimnode.settings import Settings

MEMBER = Membership(swarm="s", key="ab" * 32, bootstrap=())
READ_ELSEWHERE = {
    "node.name", "election.electorate", "swarm.name", "swarm.key_file", "swarm.bootstrap", "election.eligible", "daemon.listen", "daemon.announce",
    "cost.price", "logging.level", "logging.format", "auth.mode", "ipfs.backend",
    "events.kubo",
}  # fmt: skip
"""Taken by the composition root or the command line as they are."""
PLANNED = {
    "gateway.enabled", "gateway.listen", "ipfs.gateway",
    "tls.cert", "tls.key", "tls.client_ca", "metrics.enabled",
}  # fmt: skip
"""Documented as planned."""
OTHER: dict[str, Any] = {
    "ipfs.api": "unix:/run/kubo.sock",
    "ipfs.api_auth": "bearer:x",
    "swarm.mdns": False,
    "dht.enabled": False,
    "election.beat": 0.6,
    "election.mode": "majority",
    "election.renew": 0.9,
    "election.drift": 0.06,
    "daemon.slots": 77,
    "daemon.sandbox": "require",
    "daemon.device": "cpu",
    "orchestrator.warm_ahead": False,
    "daemon.pinned": ["ocr"],
    "daemon.agent_threads": 77,
    "swarm.allow": ["12D3KooWAUp4xKZycTUQEMxfRGky8xyu7MsDS68HmF3BHibS6to3"],
    "election.allow": ["12D3KooWAUp4xKZycTUQEMxfRGky8xyu7MsDS68HmF3BHibS6to3"],
    "election.former": ["12D3KooWRm8J3iL796zPFi2EtGGtUJn58AG67gcRzQ4FENEemvpr"],
    "jobs.copies_on": ["12D3KooWAUp4xKZycTUQEMxfRGky8xyu7MsDS68HmF3BHibS6to3"],
    "p2p.listen": ["/ip4/127.0.0.1/tcp/4999"],
    "p2p.announce": ["/ip4/127.0.0.1/tcp/4999"],
    "orchestrator.listen": "127.0.0.1:4999",
    "orchestrator.announce": "127.0.0.1:4999",
    "events.jobs": False,
    "events.nodes": False,
    "events.channel": "ours",
}


def parts(config: Config) -> str:
    s = Settings(config)
    made = (
        s.network(MEMBER), s.store(), s.channels(), s.certificates(), s.relay(), s.registry(), s.daemon(), s.membership(), s.election(), s.deciders(),
        s.lists(), s.kubo(), s.garbage(), s.rate_limit(), s.orchestrator(), s.leadership(), s.keeping(), s.state(), s.events(MEMBER.key), s.dht(), s.providing(), s.ready_timeout(), s.load_interval(), config.node.drain,
    )  # fmt: skip
    return repr(made)


@pytest.mark.parametrize("key", sorted(set(keys()) - READ_ELSEWHERE - PLANNED))
def test_each_setting_changes_what_some_part_is_given(key: str) -> None:
    section, _, name = key.partition(".")
    default = getattr(getattr(Config(), section), name)
    value = OTHER.get(key, default + 1 if isinstance(default, (int, float)) and not isinstance(default, bool) else None)
    assert value is not None, f"say in OTHER what else {key} may be"
    if key in ("swarm.heartbeat", "swarm.suspect"):  # these must stay in order
        value = default + 0.5
    needs = {"election.allow": OTHER["swarm.allow"]} if key == "election.former" else {}
    changed = load_config(environ={}, flags={**needs, key: value})
    assert parts(changed) != parts(load_config(environ={}, flags=needs))
