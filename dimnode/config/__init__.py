"""The settings of a node: one frozen, documented object."""

from dimnode.config.load import Config, environment, load_config
from dimnode.config.served import require_served, unserved
from dimnode.config.values import is_loopback, is_multiaddr, split_host_port

__all__ = ["Config", "environment", "is_loopback", "is_multiaddr", "load_config", "require_served", "split_host_port", "unserved"]
