"""Settings: precedence, provenance, refusals, and the documented example."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dimnode.config import Config, load_config, require_served, split_host_port, unserved
from dimnode.config.load import keys
from dimnode.config.profiles import PROFILES
from dimnode.config.render import example_path, render
from dimnode.errors import FailedPrecondition, InvalidArgument

REPOSITORY = Path(__file__).parents[3]
SPECIFIED = {
    "node.drain": 5,
    "swarm.bootstrap": (),
    "swarm.mdns": True,
    "swarm.allow": (),
    "swarm.heartbeat": 1,
    "swarm.suspect": 3,
    "swarm.dead": 5,
    "swarm.removed": 3600,
    "p2p.listen": ("/ip4/0.0.0.0/tcp/4101",),
    "p2p.announce": (),
    "election.orchestrators": 3,
    "election.mode": "available",
    "election.eligible": True,
    "election.allow": (),
    "orchestrator.listen": "127.0.0.1:50051",
    "daemon.listen": "0.0.0.0:50052",
    "gateway.enabled": True,
    "gateway.listen": "127.0.0.1:8088",
    "ipfs.backend": "embedded",
    "ipfs.api": "/ip4/127.0.0.1/tcp/5001",
    "ipfs.gateway": "http://127.0.0.1:8080",
    "jobs.replicas": 1,
    "jobs.timeout": 3600,
    "jobs.retries": 2,
    "jobs.max_spec_bytes": 1048576,
    "jobs.inline_bytes": 65536,
    "cost.price": 1,
    "metrics.enabled": True,
}
NAMED = ("node.name", "swarm.name", "swarm.key_file", "election.electorate", "orchestrator.announce", "daemon.announce")
NAMED += ("limits.rate", "limits.burst", "tls.cert", "tls.key", "tls.client_ca", "auth.mode", "logging.level", "logging.format")


def value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("key", SPECIFIED)
def test_default_is_the_specified_one(key: str) -> None:
    assert value(Config(), key) == SPECIFIED[key]


def test_every_named_setting_exists() -> None:
    assert set(NAMED) <= set(keys())


def test_example_holds_every_setting_with_its_default() -> None:
    text = (REPOSITORY / "bootstrap.toml").read_text(encoding="utf-8")
    assert text == render()
    assert text == example_path().read_text(encoding="utf-8")
    document = tomllib.loads(text)
    assert {f"{s}.{k}" for s, table in document.items() for k in table} == set(keys())
    assert load_config(file=REPOSITORY / "bootstrap.toml", environ={}).model_dump() == Config().model_dump()


def test_every_setting_is_described() -> None:
    for info in Config.model_fields.values():
        assert info.annotation is not None
        assert info.annotation.__doc__
        assert all(field.description for field in info.annotation.model_fields.values())


def test_home_file_sets_only_what_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.toml"
    path.write_text(render({"node.name": "anna"}), encoding="utf-8")
    config = load_config(file=path, environ={})
    assert config.node.name == "anna"
    assert [key for key in keys() if not config.is_default(key)] == ["node.name"]


def test_precedence_flag_environment_file_profile_default(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text("[node]\nname = 'file'\ndrain = 7\n[logging]\nlevel = 'warning'\n")
    config = load_config(
        file=path,
        environ={"DIM_NODE__NAME": "environment", "DIM_NODE__DRAIN": "8", "DIM_HOME": "/ignored", "OTHER__X": "1"},
        sets=["node.name=flag"],
        profile="prod",
    )
    assert (config.node.name, config.node.drain) == ("flag", 8)
    assert (config.logging.level, config.logging.format) == ("warning", "json")
    assert config.source("node.name") == "--set node.name"
    assert config.source("node.drain") == "the environment variable DIM_NODE__DRAIN"
    assert config.source("logging.level") == "the file b.toml"
    assert config.source("logging.format") == "profile prod"
    assert config.source("jobs.retries") == "default"
    assert config.is_default("logging.format")
    assert not config.is_default("logging.level")


def test_own_flag_wins_over_set() -> None:
    assert load_config(environ={}, sets=["node.name=a"], flags={"node.name": "b"}).node.name == "b"


def test_configured_port_equal_to_the_default_counts_as_configured() -> None:
    config = load_config(environ={}, sets=["orchestrator.listen=127.0.0.1:50051"])
    assert not config.is_default("orchestrator.listen")
    assert config.is_default("daemon.listen")
    with pytest.raises(KeyError):
        config.is_default("daemon.lissen")


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("node.name=123", "node.name", "123"),
        ("node.name='x'", "node.name", "x"),
        ("swarm.mdns=false", "swarm.mdns", False),
        ("cost.price=2", "cost.price", 2.0),
        ("p2p.listen=/ip4/127.0.0.1/tcp/0", "p2p.listen", ("/ip4/127.0.0.1/tcp/0",)),
        ("p2p.listen=['/ip4/127.0.0.1/tcp/0', '/ip6/::1/tcp/0']", "p2p.listen", ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0")),
        ("p2p.announce=", "p2p.announce", ()),
        ("orchestrator.listen=[::1]:0", "orchestrator.listen", "[::1]:0"),
    ],
)
def test_set_values(text: str, key: str, expected: object) -> None:
    assert value(load_config(environ={}, sets=[text]), key) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("swarm.mdsn=true", "swarm.mdsn"),
        ("swam.mdns=true", "swam.mdns"),
        ("node.drain=0", "node.drain"),
        ("node.drain=nan", "node.drain"),
        ("node.drain=soon", "node.drain"),
        ("node.name=a b", "node.name"),
        ("election.orchestrators=true", "election.orchestrators"),
        ("election.orchestrators=1.5", "election.orchestrators"),
        ("election.mode=maybe", "election.mode"),
        ("daemon.device=gpu", "daemon.device"),
        ("election.silence=0.6", "election"),
        ("daemon.listen=50052", "daemon.listen"),
        ("daemon.listen=host:99999", "daemon.listen"),
        ("daemon.listen=::1:5", "daemon.listen"),
        ("swarm.bootstrap=/ip4/127.0.0.1/tcp/4101", "swarm.bootstrap"),
        ("swarm.allow=bob", "swarm.allow"),
        ("p2p.listen=nowhere", "p2p.listen"),
        ("swarm.dead=2", "swarm"),
        ("node.drain", "node.drain"),
    ],
)
def test_refused_values_name_setting_and_source(text: str, named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load_config(environ={}, sets=[text])
    assert named in caught.value.message
    assert "--set" in caught.value.message


def test_a_wrong_device_is_told_which_there_are() -> None:
    with pytest.raises(InvalidArgument, match=r"'auto', 'cpu', 'cuda', 'tensorrt' or 'mps'"):
        load_config(environ={}, sets=["daemon.device=gpu"])


def test_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(InvalidArgument) as caught:
        load_config(environ={"DIM_SWARM__BOOTSTRP": "x"})
    assert "DIM_SWARM__BOOTSTRP" in caught.value.message
    assert "swarm.bootstrap" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [("[nodes]\nname='x'", "nodes"), ("node = 3", "section"), ("[node\n", "not TOML"), ("[node]\nnmae = 'x'", "node.nmae")],
)
def test_bad_file(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "b.toml"
    path.write_text(content)
    with pytest.raises(InvalidArgument, match=words) as caught:
        load_config(file=path, environ={})
    assert "b.toml" in caught.value.message or words == "section"


def test_missing_file_and_profile(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="does not exist"):
        load_config(file=tmp_path / "none.toml", environ={})
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load_config(file=tmp_path, environ={})
    with pytest.raises(InvalidArgument, match="profile"):
        load_config(environ={}, profile="test")


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_valid_and_servable(name: str) -> None:
    require_served(load_config(environ={}, profile=name))


def test_defaults_are_served() -> None:
    assert unserved(Config()) == ()


@pytest.mark.parametrize(
    "text",
    [
        "auth.mode=token",
        "tls.cert=x.pem",
        "orchestrator.listen=0.0.0.0:50051",
    ],
)
def test_what_cannot_be_honoured_is_refused(text: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        require_served(load_config(environ={}, sets=[text]))
    assert text.partition("=")[0] in caught.value.message


def test_open_api_beyond_loopback_must_be_asked_for() -> None:
    require_served(load_config(environ={}, sets=["orchestrator.listen=0.0.0.0:50051", "auth.mode=open"]))


def test_split_host_port() -> None:
    assert split_host_port("[::1]:5") == ("::1", 5)
    assert split_host_port("h:0") == ("h", 0)
