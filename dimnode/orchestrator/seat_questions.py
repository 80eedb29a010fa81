"""Questions between seat holders about jobs, as requests over the network; a watch is a long poll."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from dimnode.core.partial_text import Seen
from dimnode.domain import codec
from dimnode.domain.job_form import JobForm, from_plain
from dimnode.domain.task import PartialOutput
from dimnode.errors import Code, DimError, FieldProblem, InvalidArgument, error_of
from dimnode.orchestrator.documents import digest
from dimnode.orchestrator.service import Orchestrator
from dimnode.ports import Accepted, Elector, JobDocument, ResultDocument
from p2p.api import MAX_REQUEST_BYTES, Network, RemoteFault

METHOD = "orchestrator/job"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    op: str
    """get, result, cancel, watch, list, submit."""
    job: str = ""
    seen: str = ""
    """watch: digest of the last document that the asker has."""
    text: tuple[tuple[str, int, int, int], ...] | None = None
    """watch: what the asker has of the tasks' text (`Seen.to_plain`), if it wants that, too."""
    wait: float = 0.0
    """result: seconds to wait for the job to end."""
    active: bool = False
    limit: int = 0
    forms: tuple[dict[str, Any], ...] = ()
    """submit: `JobForm.to_plain` of jobs that the asker hands over before it accepts them."""
    principal: str = ""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """Of one form of a submission."""

    job: str = ""
    copies: int = 0
    code: str = ""
    """If it was refused."""
    message: str = ""
    hint: str = ""
    retry_after: float | None = None
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AskSettings:
    timeout: float = 5.0
    """Seconds for one answer of another seat."""
    poll: float = 10.0
    """Seconds that a watch waits for a change before it answers with what there is."""
    grace: float = 10.0
    """Seconds that a watch goes on asking when nobody answers for the job: its owner may just have died."""
    pause: float = 0.25
    """Seconds between such questions."""
    silent: float = 2.0
    """Seconds for which a seat that did not take a submission is handed no others: until the election has noticed, too."""


class JobAnswers:
    """Answers the questions of other seats; registered once, whoever orchestrates here at the time."""

    def __init__(
        self, network: Network, elector: Elector, local: Callable[[], Orchestrator | None], settings: AskSettings | None = None
    ) -> None:
        self._elector = elector
        self._local = local
        self._settings = settings or AskSettings()
        network.serve(METHOD, self._answer)

    async def _answer(self, peer: str, data: bytes) -> bytes:
        local = self._local()
        if local is None:
            raise RemoteFault(Code.UNAVAILABLE.value, "no seat is held here")
        try:
            question = codec.decode(data, Question)
        except codec.CodecError as e:
            raise RemoteFault(Code.INVALID_ARGUMENT.value, "not a question") from e
        try:
            return codec.encode({"answer": await self._reply(local, peer, question)})
        except DimError as e:
            return codec.encode({"refusal": _answered(e)})

    async def _reply(self, local: Orchestrator, peer: str, q: Question) -> Any:
        match q.op:
            case "get":
                return await local.get(q.job)
            case "cancel":
                return await local.cancel(q.job)
            case "result":
                return plain_result(await local.result(q.job, min(q.wait, self._settings.poll)))
            case "list":
                return await local.list_jobs(q.active, max(1, min(q.limit, 1000)))
            case "watch" if q.text is not None:
                return await self._news(local, q, q.text)
            case "watch":
                return await self._changed(local, q)
            case "submit":
                if not any(s.peer == peer for s in self._elector.seats()):
                    raise DimError("only seat holders hand jobs over", code=Code.PERMISSION_DENIED)
                return [_answered(a) for a in await local.submit_many([_form(f) for f in q.forms], q.principal)]
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

    async def _news(self, local: Orchestrator, q: Question, text: Sequence[tuple[str, int, int, int]]) -> dict[str, Any]:
        document, pieces = await local.get(q.job), list[PartialOutput]()
        with trio.move_on_after(self._settings.poll):
            document, pieces = await local.news(q.job, q.seen, Seen.from_plain(text))
        return {"document": document, "text": pieces}


def news_of(answer: Mapping[str, Any]) -> tuple[JobDocument, list[PartialOutput]]:
    """Of an answer to a watch; a node of an earlier version tells no text. Raises `msgspec.ValidationError`."""
    if "document" not in answer:
        return answer, []
    return answer["document"], msgspec.convert(answer.get("text") or [], list[PartialOutput])


class Asker:
    """Asks one other seat. Raises `DimError` for what it answers, `p2p.api.NetworkError` if it does not, or is no seat."""

    def __init__(self, network: Network, settings: AskSettings | None = None) -> None:
        self._network = network
        self._settings = settings or AskSettings()

    async def ask(self, peer: str, question: Question, extra: float = 0.0) -> Any:
        return await self._send(peer, codec.encode(question), extra)

    async def _send(self, peer: str, question: bytes, extra: float) -> Any:
        try:
            data = await self._network.request(peer, METHOD, question, timeout=self._settings.timeout + extra)
            answer = msgspec.convert(codec.decode_plain(data), dict[str, Any])
            refusal = answer.get("refusal")
            refused = None if refusal is None else _accepted(msgspec.convert(refusal, Answered))
        except (codec.CodecError, msgspec.ValidationError) as e:
            raise RemoteFault(Code.INTERNAL.value, "not an answer") from e
        if isinstance(refused, Exception):
            raise refused
        return answer.get("answer")

    async def submit(self, peer: str, forms: Sequence[JobForm], principal: str) -> list[Accepted | Exception]:
        """In as many requests as their size takes."""
        question = codec.encode(Question(op="submit", forms=tuple(f.to_plain() for f in forms), principal=principal))
        if len(question) > MAX_REQUEST_BYTES and (half := len(forms) // 2):
            return [*await self.submit(peer, forms[:half], principal), *await self.submit(peer, forms[half:], principal)]
        answers = await self._send(peer, question, 0.0)
        try:
            return [_accepted(a) for a in msgspec.convert(answers, list[Answered])]
        except msgspec.ValidationError as e:
            raise RemoteFault(Code.INTERNAL.value, "not an answer") from e


def _form(plain: dict[str, Any]) -> JobForm | Exception:
    try:
        return from_plain(plain)
    except InvalidArgument as e:
        return e


def _answered(answer: Accepted | Exception) -> Answered:
    match answer:
        case Accepted():
            return Answered(job=answer.job_id, copies=answer.copies)
        case DimError():
            fields = tuple((f.field, f.rule) for f in answer.fields)
            return Answered(code=answer.code.value, message=answer.message, hint=answer.hint, retry_after=answer.retry_after, fields=fields)
        case _:
            raise answer


def _accepted(answer: Answered) -> Accepted | Exception:
    if not answer.code:
        return Accepted(answer.job, answer.copies)
    fields = tuple(FieldProblem(field, rule) for field, rule in answer.fields)
    code = Code(answer.code) if answer.code in Code.__members__ else Code.INTERNAL
    return error_of(code, answer.message, hint=answer.hint, retry_after=answer.retry_after, fields=fields)


def plain_result(document: ResultDocument) -> dict[str, Any]:
    """The inverse of `documents.result_document`."""
    outputs = {n: {"dtype": t.dtype, "shape": list(t.shape), "raw": t.raw, "cid": t.cid} for n, t in document["outputs"].items()}
    return {**document, "outputs": outputs}
