"""What the node answers on its own socket: `dimnode.ports.NodeApi`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from dimnode.domain.node import CabinetInfo
from dimnode.errors import DimError, FailedPrecondition, FieldProblem, InvalidArgument, NotFound
from dimnode.node_electorate import Electorate
from dimnode.node_ports import ContentApi, EventFeed, Published
from dimnode.ports import DaemonClient, Elector, Models, Registry, TaskService
from dimnode.swarm.views import SwarmViews, manifest_document
from p2p.ipfs.api import ContentStore


class LocalNode(SwarmViews):
    """``describe`` gives the parts of `status` that only the composition root knows."""

    def __init__(
        self,
        swarm: str,
        registry: Registry,
        elector: Elector,
        models: Models,
        store: ContentStore,
        daemon: TaskService,
        *,
        client: DaemonClient,
        describe: Callable[[], Mapping[str, Any]],
        make_invite: Callable[[], str],
        electorate: Electorate,
        content: ContentApi,
        state: Published,
        events: EventFeed,
        max_artifact_bytes: int,
        fetch_timeout: float,
    ) -> None:
        super().__init__(
            swarm, registry, elector, models, store, daemon, max_artifact_bytes=max_artifact_bytes, fetch_timeout=fetch_timeout
        )
        self._client = client
        self._describe = describe
        self._make_invite = make_invite
        self._electorate = electorate
        self.content: ContentApi = content
        self._state = state
        self._events = events

    def status(self) -> Mapping[str, Any]:
        mine = self._elector.mine()
        return {
            **self._describe(),
            "swarm": self._swarm,
            "role": "orchestrator" if mine else "node",
            "term": self._elector.term(),
            "orchestrators": [
                {k: o[k] for k in ("peer_id", "name", "grpc", "term", "local_only")} for o in self.cluster()["orchestrators"]
            ],
        }

    def invite(self) -> str:
        return self._make_invite()

    async def resolve(self, path: str, *, after: str, limit: int) -> Mapping[str, Any]:
        return await self._state.resolve(path, after=after, limit=limit)

    def events(self, kinds: Collection[str], *, follow: bool) -> AsyncGenerator[Mapping[str, Any], None]:
        return self._events.watch(kinds, follow=follow)

    def electorate(self) -> Mapping[str, Any]:
        return self._electorate.document()

    async def change_electorate(self, peer: str, action: str) -> Mapping[str, Any]:
        return await self._electorate.change(peer, action)

    async def node_stats(self, node: str) -> Mapping[str, Any]:
        """Of this node if ``node`` is empty. Raises `NotFound`, `Unavailable`."""
        if not node:
            return self._daemon.stats()
        found = self._registry.find(node)
        if len(found) > 1:
            raise FailedPrecondition(f"{len(found)} nodes are called {node!r}", hint="Use the peer id.")
        if not found:
            raise NotFound(f"{node!r} is not a node of this swarm", hint="`dimnode nodes` lists the nodes.")
        return await self._client.stats(found[0].heartbeat.peer_id)

    async def add_model_file(
        self, path: str, *, id: str, licence: str, batch_axis: int | None, form: str = "", sign: bool = False
    ) -> Mapping[str, Any]:
        manifest, manifest_cid = await self._daemon.add_model_file(
            Path(path), id=id, licence=licence, batch_axis=batch_axis, form=form, sign=sign, check=self._check_free
        )
        return self._published(manifest, manifest_cid)

    async def describe_model(self, name: str) -> Mapping[str, Any]:
        ref = self._models.resolve(name)
        return manifest_document(await self._models.manifest(ref), ref, self._nodes_with(ref))

    async def check_model(self, name: str) -> Mapping[str, Any]:
        ref = self._models.resolve(name)
        manifest = await self._models.manifest(ref)
        found = await self._daemon.check_model(manifest, ref.manifest_cid, self._models.holders(ref.cid)[:16])
        return {"id": ref.id, "cid": ref.cid, "format": ref.format, "signed": bool(manifest.author), **found}

    async def remove_model(self, name: str) -> Mapping[str, Any]:
        gone = await self._daemon.remove_model(name)
        self._registry.announce(models=self._daemon.models())
        return {"removed": [{"id": r.id, "cid": r.cid} for r in gone]}

    async def add_cabinet(self, name: str, path: str, policy: str) -> Mapping[str, Any]:
        info = await self._daemon.add_cabinet(name, Path(path), _policy(policy))
        self._registry.announce(cabinets=self._daemon.cabinets())
        return cabinet_document(info)

    def cabinets(self) -> list[Mapping[str, Any]]:
        return [cabinet_document(c) for c in self._daemon.cabinets()]


def cabinet_document(info: CabinetInfo) -> dict[str, Any]:
    return msgspec.to_builtins(info)


def _policy(text: str) -> Mapping[str, Any] | None:
    if not text:
        return None
    try:
        plain = json.loads(text)
    except ValueError as e:
        raise _bad_policy("must be JSON") from e
    if not isinstance(plain, dict):
        raise _bad_policy("must be a JSON object")
    return plain


def _bad_policy(rule: str) -> DimError:
    return InvalidArgument(f"the policy {rule}", fields=(FieldProblem("policy", rule),), hint="docs/user-guide.md shows one.")
