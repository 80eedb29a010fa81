"""Runs requests for one model together on the agents that there are for it. `batching` decides; here it is done."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio

from dimnode.daemon.agent_protocol import Array
from dimnode.daemon.batching import Batcher, BatchSettings, Waiting
from dimnode.daemon.model_file import Key, ModelFile
from dimnode.daemon.rows import join, row_count, signature, split
from dimnode.errors import DimError, Unavailable, again

REMEMBERED = 1024
"""Models of which it is known whether their rows are independent, and as many that have a runner."""
INLINE = 4 << 20
"""Bytes from which on copying is done in a thread."""
Run = Callable[[Any, Mapping[str, Array]], Awaitable[dict[str, Array]]]


@dataclass(slots=True, eq=False)
class _Request:
    inputs: Mapping[str, Array]
    rows: int
    done: trio.Event = field(default_factory=trio.Event)
    deadline: float = math.inf
    outputs: dict[str, Array] | None = None
    error: DimError | None = None
    batch: _Batch | None = None


@dataclass(slots=True, eq=False)
class _Batch:
    """Runs on although some have left; the last one to leave ends it."""

    left: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class BatchRunner:
    """For one model. ``acquire`` returns a free agent; ``run`` uses it up: afterwards it is somebody else's. Both raise `DimError`.
    ``release`` gives an agent back unused."""

    def __init__(
        self,
        settings: BatchSettings,
        nursery: trio.Nursery,
        *,
        acquire: Callable[[], Awaitable[Any]],
        run: Run,
        release: Callable[[Any], None],
    ) -> None:
        self._nursery, self._acquire, self._run, self._release = nursery, acquire, run, release
        self._batcher: Batcher[_Request] = Batcher(settings)
        self._changed = trio.Event()
        self._draining = False
        self.batches = self.batched = 0
        """Batches of more than one request, and the requests in them."""

    async def submit(self, inputs: Mapping[str, Array], owner: Hashable) -> dict[str, Array]:
        """One inference, perhaps together with others of the same ``owner``. Raises as ``acquire`` and ``run``."""
        rows = row_count(inputs)
        if rows is None:
            return await self._run(await self._acquire(), inputs)
        request = _Request(inputs, rows, deadline=trio.current_effective_deadline())
        size = sum(a.nbytes for a in inputs.values())
        waiting = self._batcher.add(request, (owner, signature(inputs)), rows, size, trio.current_time())
        self._changed.set()
        if not self._draining:
            self._draining = True
            self._nursery.start_soon(self._drain)
        try:
            await request.done.wait()
        finally:
            if not request.done.is_set() and not self._batcher.cancel(waiting):
                self._leave(request)
        if request.error is not None:
            raise again(request.error)
        assert request.outputs is not None
        return request.outputs

    def _leave(self, request: _Request) -> None:
        if request.batch is not None:
            request.batch.left -= 1
            if not request.batch.left:
                request.batch.scope.cancel()

    async def _drain(self) -> None:
        """As long as requests wait."""
        try:
            while len(self._batcher):
                try:
                    agent = await self._acquire()
                except DimError as e:
                    for waiting in self._batcher.take_all():
                        _fail(waiting.item, e)
                    return
                batch: Sequence[Waiting[_Request]] = ()
                try:
                    batch = await self._gathered()
                finally:
                    if not batch:
                        self._release(agent)
                if batch:
                    self._start(agent, [w.item for w in batch])
        finally:
            self._draining = False
            for waiting in self._batcher.take_all():
                _fail(waiting.item, Unavailable("the node is stopping"))

    async def _gathered(self) -> Sequence[Waiting[_Request]]:
        while not isinstance(due := self._batcher.due(trio.current_time()), list):
            if due is None:
                return ()
            self._changed = trio.Event()
            with trio.move_on_at(due):
                await self._changed.wait()
        return due

    def _start(self, agent: Any, requests: list[_Request]) -> None:
        # nobody waits any longer then; so a batch that hangs ends as a single run would
        batch = _Batch(len(requests), trio.CancelScope(deadline=max(r.deadline for r in requests)))
        for request in requests:
            request.batch = batch
        self._nursery.start_soon(self._run_batch, agent, requests, batch.scope)

    async def _run_batch(self, agent: Any, requests: list[_Request], scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._answer(agent, requests)
        finally:
            for request in requests:
                if not request.done.is_set():
                    _fail(request, Unavailable("the node is stopping"))

    async def _answer(self, agent: Any, requests: list[_Request]) -> None:
        try:
            outputs = await self._together(agent, requests)
        except (DimError, ValueError) as e:
            if len(requests) == 1 and isinstance(e, DimError):
                _fail(requests[0], e)
                return
            # one of them may be to blame, and must not spoil the others
            for request in requests:
                await self._alone(request)
            return
        for request, mine in zip(requests, outputs, strict=True):
            request.outputs = mine
            request.done.set()

    async def _together(self, agent: Any, requests: list[_Request]) -> list[dict[str, Array]]:
        if len(requests) == 1:
            return [await self._run(agent, requests[0].inputs)]
        self.batches += 1
        self.batched += len(requests)
        parts = [r.inputs for r in requests]
        if sum(a.nbytes for p in parts for a in p.values()) > INLINE:
            try:
                inputs = await trio.to_thread.run_sync(join, parts)
            except BaseException:
                self._release(agent)
                raise
        else:
            inputs = join(parts)
        return split(await self._run(agent, inputs), [r.rows for r in requests])

    async def _alone(self, request: _Request) -> None:
        try:
            request.outputs = await self._run(await self._acquire(), request.inputs)
            request.done.set()
        except DimError as e:
            _fail(request, e)


class Pool(Protocol):
    """What batches need of the pool of agents; see `dimnode.daemon.agents`."""

    async def acquire(self, model: ModelFile) -> Any: ...

    async def run_on(self, agent: Any, model: ModelFile, inputs: Mapping[str, Array]) -> dict[str, Array]: ...

    def release(self, agent: Any) -> None: ...

    async def probe(self, model: ModelFile) -> bool | None:
        """Whether the model treats rows one by one; None if no agent is free to tell."""
        ...


class Batching:
    """The runners, by model and where its file lies, and which models may have one."""

    def __init__(self, settings: BatchSettings, pool: Pool) -> None:
        self._settings, self._pool = settings, pool
        self._known: dict[Key, bool] = {}
        self._asking: set[Key] = set()
        self._runners: dict[tuple[Key, Path], BatchRunner] = {}
        self._batches = self._batched = 0
        """Of runners that are forgotten."""

    def possible(self, model: ModelFile) -> bool:
        return model.batchable and self._settings.most_requests > 1

    def independent(self, key: Key) -> bool:
        return self._known.get(key, False)

    def asking(self, key: Key) -> bool:
        return key in self._asking

    def learn(self, key: Key, independent: bool) -> None:
        if key not in self._known and len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[key] = independent

    def forget(self, cid: str) -> None:
        """A model was removed. What waits in a runner is still run."""
        for key in [k for k in self._known if k[0] == cid]:
            del self._known[key]
        for place in [(key, path) for key, path in self._runners if key[0] == cid]:
            self._drop(place)

    def _drop(self, place: tuple[Key, Path]) -> None:
        runner = self._runners.pop(place)
        self._batches += runner.batches
        self._batched += runner.batched

    def ask(self, model: ModelFile, nursery: trio.Nursery | None) -> None:
        """Finds it out beside the work, if it is not known."""
        if nursery is not None and model.key not in self._known and model.key not in self._asking:
            self._asking.add(model.key)
            nursery.start_soon(self._ask, model)

    async def _ask(self, model: ModelFile) -> None:
        try:
            found = await self._pool.probe(model)
            if found is not None:
                self.learn(model.key, found)
        except DimError:
            self.learn(model.key, False)
        finally:
            self._asking.discard(model.key)

    def runner(self, model: ModelFile, nursery: trio.Nursery) -> BatchRunner:
        place = model.key, model.path
        found = self._runners.get(place)
        if found is None:
            if len(self._runners) >= REMEMBERED:
                self._drop(next(iter(self._runners)))
            found = self._runners[place] = BatchRunner(
                self._settings, nursery, acquire=partial(self._pool.acquire, model), release=self._pool.release,
                run=lambda agent, inputs: self._pool.run_on(agent, model, inputs),
            )  # fmt: skip
        return found

    def statistics(self) -> dict[str, int]:
        runners = self._runners.values()
        return {
            "batches": self._batches + sum(r.batches for r in runners),
            "requests": self._batched + sum(r.batched for r in runners),
        }


def _fail(request: _Request, error: DimError) -> None:
    request.error = error
    request.done.set()
