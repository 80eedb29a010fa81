"""The swarm's model catalogue: what the heartbeats of live nodes say, and manifests by CID."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from dimnode.domain import codec
from dimnode.domain.model import ModelManifest, ModelRef
from dimnode.errors import FailedPrecondition, NotFound, Unavailable
from dimnode.ports import Registry
from p2p.identity import verify as verify_with_peer_id
from p2p.ipfs.api import ContentError, ContentStore

Verify = Callable[[str, bytes, bytes], bool]


class SwarmModels:
    """`dimnode.ports.Models`. The index is made once per change of the registry."""

    def __init__(
        self,
        registry: Registry,
        store: ContentStore,
        *,
        fetch_timeout: float = 30.0,
        keep: int = 4096,
        verify: Verify = verify_with_peer_id,
    ) -> None:
        self._registry = registry
        self._store = store
        self._timeout = fetch_timeout
        self._keep = keep
        self._verify = verify
        self._manifests: OrderedDict[str, ModelManifest] = OrderedDict()
        self._version = -1
        self._by_cid: dict[str, ModelRef] = {}
        self._by_id: dict[str, tuple[ModelRef, ...]] = {}
        self._holders: dict[str, tuple[str, ...]] = {}

    def all(self) -> tuple[ModelRef, ...]:
        self._refresh()
        return tuple(ref for refs in self._by_id.values() for ref in refs)

    def holders(self, cid: str) -> tuple[str, ...]:
        self._refresh()
        return self._holders.get(cid, ())

    def resolve(self, name: str) -> ModelRef:
        self._refresh()
        if name in self._by_cid:
            return self._by_cid[name]
        found = self._by_id.get(name, ())
        if len(found) > 1:
            cids = ", ".join(sorted(r.cid for r in found))
            raise FailedPrecondition(f"{len(found)} different models are called {name!r}", hint=f"Use the CID: {cids}.")
        if not found:
            raise NotFound(f"no live node has a model {name!r}", hint="`dimnode model list` lists the models of the swarm.")
        return found[0]

    def find(self, name: str) -> tuple[ModelRef, tuple[str, ...]] | None:
        """As `resolve`, and who has it; None where that would raise."""
        try:
            ref = self.resolve(name)
        except (NotFound, FailedPrecondition):
            return None
        return ref, self.holders(ref.cid)

    async def manifest(self, ref: ModelRef) -> ModelManifest:
        known = self._manifests.get(ref.manifest_cid)
        if known is not None:
            self._manifests.move_to_end(ref.manifest_cid)
            return known
        try:
            plain = await self._store.get_dag(ref.manifest_cid, providers=self.holders(ref.cid), timeout=self._timeout)
            manifest = codec.decode(codec.encode(plain), ModelManifest)
        except (ContentError, codec.CodecError) as e:
            raise Unavailable(f"the manifest of model {ref.id!r} cannot be had: {e}", hint="The node that has it may be down.") from e
        if not manifest.authentic(self._verify):
            raise Unavailable(f"the manifest of model {ref.id!r} is not by the author that it names", hint="Add the model anew.")
        self._manifests[ref.manifest_cid] = manifest
        while len(self._manifests) > self._keep:
            self._manifests.popitem(last=False)
        return manifest

    def _refresh(self) -> None:
        version = self._registry.changed()
        if version == self._version:
            return
        by_cid: dict[str, ModelRef] = {}
        by_id: dict[str, dict[str, ModelRef]] = {}
        holders: dict[str, list[str]] = {}
        for node in self._registry.alive():
            for ref in node.heartbeat.models:
                by_cid.setdefault(ref.cid, ref)
                by_id.setdefault(ref.id, {}).setdefault(ref.cid, ref)
                holders.setdefault(ref.cid, []).append(node.heartbeat.peer_id)
        self._by_cid = by_cid
        self._by_id = {i: tuple(refs.values()) for i, refs in by_id.items()}
        self._holders = {cid: tuple(dict.fromkeys(peers)) for cid, peers in holders.items()}
        self._version = version
