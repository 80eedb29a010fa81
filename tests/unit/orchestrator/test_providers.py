"""Whom a node is told to fetch a model from."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from dimnode.domain.model import ModelRef
from dimnode.orchestrator.selection import PROVIDERS, SHARED_BYTES, Selector


class Holders:
    """`dimnode.ports.Models`, as far as providers need it."""

    def __init__(self, *peers: str) -> None:
        self.peers = peers

    def holders(self, cid: str) -> tuple[str, ...]:
        return self.peers


def selector(*holders: str) -> Selector:
    registry: Any = None  # not asked for providers
    models: Any = Holders(*holders)
    return Selector(registry, models)


def ref(cid: str = "large", size: int = SHARED_BYTES + 1) -> ModelRef:
    return ModelRef(id="m", cid=cid, manifest_cid="manifest", format="onnx", size=size)


def test_nodes_that_fetch_a_large_model_at_the_same_time_are_told_of_each_other_after_its_holders():
    chosen = selector("holder")
    with chosen.sent("a", ref()), chosen.sent("b", ref()):
        assert chosen.providers(ref(), ("producer",)) == ("producer", "holder", "a", "b")
        assert chosen.providers(ref("another"), ()) == ("holder",)
    assert chosen.providers(ref(), ()) == ("holder",)


def test_a_node_counts_as_long_as_any_task_of_the_model_is_out_on_it():
    chosen = selector("holder")
    with chosen.sent("a", ref()):
        with chosen.sent("a", ref()):
            pass
        assert chosen.providers(ref(), ()) == ("holder", "a")


def test_a_small_model_comes_from_its_holders():
    chosen = selector("holder")
    with chosen.sent("a", ref(size=SHARED_BYTES)):
        assert chosen.providers(ref(size=SHARED_BYTES), ()) == ("holder",)


def test_a_node_is_told_of_so_many_at_the_most():
    chosen = selector(*(f"holder-{n}" for n in range(100)))
    with ExitStack() as tasks:
        for n in range(100):
            tasks.enter_context(chosen.sent(f"node-{n}", ref()))
        assert len(chosen.providers(ref(), ())) == 2 * PROVIDERS
