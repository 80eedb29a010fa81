"""Any orchestrator answers for any job: what it does not know it asks of the other seats.

Questions travel as requests between seat holders; a watch is a long poll. Only one seat drives a job, so
at most one of the others knows it better than "not found".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from dimnode.domain import codec
from dimnode.domain.job_form import JobForm
from dimnode.errors import Code, DimError, NotFound, Unavailable
from dimnode.orchestrator.documents import result_document
from dimnode.orchestrator.service import Orchestrator
from dimnode.ports import Accepted, Elector, JobDocument, ResultDocument
from p2p.api import Network, NetworkError, RemoteFault

METHOD = "orchestrator/job"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    op: str
    """get, result, cancel, watch, list."""
    job: str = ""
    seen: str = ""
    """watch: digest of the last document that the asker has."""
    wait: float = 0.0
    """result: seconds to wait for the job to end."""
    active: bool = False
    limit: int = 0


@dataclass(frozen=True, slots=True)
class AskSettings:
    timeout: float = 5.0
    """Seconds for one answer of another seat."""
    poll: float = 10.0
    """Seconds that a watch waits for a change before it answers with what there is."""


class JobAnswers:
    """Answers the questions of other seats; registered once, whoever orchestrates here at the time."""

    def __init__(self, network: Network, local: Callable[[], Orchestrator | None], settings: AskSettings | None = None) -> None:
        self._local = local
        self._settings = settings or AskSettings()
        network.serve(METHOD, self._answer)

    async def _answer(self, peer: str, data: bytes) -> bytes:
        del peer
        local = self._local()
        if local is None:
            raise RemoteFault(Code.UNAVAILABLE.value, "no seat is held here")
        try:
            question = codec.decode(data, Question)
            return codec.encode(await self._reply(local, question))
        except codec.CodecError as e:
            raise RemoteFault(Code.INVALID_ARGUMENT.value, "not a question") from e
        except DimError as e:
            raise RemoteFault(e.code.value, e.message) from e

    async def _reply(self, local: Orchestrator, q: Question) -> Any:
        match q.op:
            case "get":
                return await local.get(q.job)
            case "cancel":
                return await local.cancel(q.job)
            case "result":
                return plain_result(await local.result(q.job, min(q.wait, self._settings.poll)))
            case "list":
                return await local.list_jobs(q.active, max(1, min(q.limit, 1000)))
            case "watch":
                return await self._changed(local, q)
            case _:
                raise DimError(f"unknown question {q.op!r}", code=Code.UNIMPLEMENTED)

    async def _changed(self, local: Orchestrator, q: Question) -> JobDocument:
        document = await local.get(q.job)
        with trio.move_on_after(self._settings.poll):
            async with aclosing(local.watch(q.job)) as documents:
                async for document in documents:
                    if digest(document) != q.seen:
                        break
        return document


class AnySeat:
    """`dimnode.ports.OrchestratorApi`: this seat's jobs, and through it the jobs of the others."""

    def __init__(self, local: Orchestrator, network: Network, elector: Elector, settings: AskSettings | None = None) -> None:
        self._local = local
        self._network = network
        self._elector = elector
        self._settings = settings or AskSettings()

    async def submit(self, form: JobForm, principal: str) -> Accepted:
        return await self._local.submit(form, principal, self._known_elsewhere)

    async def submit_many(self, forms: Sequence[JobForm | Exception], principal: str) -> list[Accepted | Exception]:
        return await self._local.submit_many(forms, principal, self._known_elsewhere)

    async def dry_run(self, form: JobForm, principal: str) -> Mapping[str, Any]:
        return await self._local.dry_run(form, principal)

    async def get(self, job_id: str) -> JobDocument:
        return await self._here_or_there(self._local.get(job_id), Question(op="get", job=job_id))

    async def cancel(self, job_id: str) -> JobDocument:
        return await self._here_or_there(self._local.cancel(job_id), Question(op="cancel", job=job_id))

    async def result(self, job_id: str, wait: float = 0.0) -> ResultDocument:
        try:
            return await self._local.result(job_id, wait)
        except NotFound as missing:
            wait = min(wait, self._settings.poll)
            plain = await self._ask_all(Question(op="result", job=job_id, wait=wait), missing, extra=wait)
            return result_document(plain, plain.get("result_cid"))

    async def list_jobs(self, active: bool, limit: int) -> list[JobDocument]:
        """Of all seats, newest first. A seat that does not answer in time is left out."""
        found = {d["job_id"]: d for d in await self._local.list_jobs(active, limit)}

        async def add(peer: str) -> None:
            try:
                for document in await self._ask(peer, Question(op="list", active=active, limit=limit)):
                    found.setdefault(document["job_id"], document)
            except (NetworkError, DimError):
                return

        async with trio.open_nursery() as nursery:
            for peer in self._others():
                nursery.start_soon(add, peer)
        return sorted(found.values(), key=lambda d: d["submitted"], reverse=True)[:limit]

    async def watch(self, job_id: str) -> AsyncGenerator[JobDocument, None]:
        try:
            async with aclosing(self._local.watch(job_id)) as documents:
                async for document in documents:
                    yield document
        except NotFound as missing:
            async with aclosing(self._watch_elsewhere(job_id, missing)) as documents:
                async for document in documents:
                    yield document

    async def _watch_elsewhere(self, job_id: str, missing: NotFound) -> AsyncGenerator[JobDocument, None]:
        seen = ""
        while True:
            question = Question(op="watch" if seen else "get", job=job_id, seen=seen)
            document = await self._ask_all(question, missing, extra=self._settings.poll if seen else 0.0)
            if digest(document) != seen:
                seen = digest(document)
                yield document
            if document["status"] in ("completed", "failed", "cancelled", "expired"):
                return

    async def _known_elsewhere(self, job: str) -> bool:
        """A client that got no answer sends its job again, perhaps to this seat. One that does not answer does not
        keep others from working."""
        try:
            await self._ask_all(Question(op="get", job=job), NotFound(f"job {job} is not known"))
        except (NotFound, Unavailable):
            return False
        return True

    async def _here_or_there(self, here: Awaitable[JobDocument], question: Question) -> JobDocument:
        try:
            return await here
        except NotFound as missing:
            return await self._ask_all(question, missing)

    async def _ask_all(self, question: Question, missing: NotFound, extra: float = 0.0) -> Any:
        """The first answer other than "not found". Raises ``missing`` if all say so, `Unavailable` if one
        that might know does not answer."""
        silent = False
        for peer in self._others():
            try:
                return await self._ask(peer, question, extra)
            except NotFound:
                continue
            except NetworkError:
                silent = True
        if silent:
            raise Unavailable(f"{missing.message}, and an orchestrator that may know it does not answer", hint="Try again shortly.")
        raise missing

    async def _ask(self, peer: str, question: Question, extra: float = 0.0) -> Any:
        try:
            answer = await self._network.request(peer, METHOD, codec.encode(question), timeout=self._settings.timeout + extra)
        except RemoteFault as e:
            code = Code(e.code) if e.code in Code.__members__ else Code.INTERNAL
            if code is Code.NOT_FOUND:
                raise NotFound(e.message) from e
            if code is Code.UNAVAILABLE:
                raise
            raise DimError(e.message, code=code) from e
        return codec.decode_plain(answer)

    def _others(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.peer for s in self._elector.seats() if s.peer != self._network.peer_id))


def digest(document: JobDocument) -> str:
    return codec.digest(codec.encode(document))


def plain_result(document: ResultDocument) -> dict[str, Any]:
    """The inverse of `documents.result_document`."""
    outputs = {n: {"dtype": t.dtype, "shape": list(t.shape), "raw": t.raw, "cid": t.cid} for n, t in document["outputs"].items()}
    return {**document, "outputs": outputs}
