"""Any orchestrator answers for any job, and hands new ones to a freer seat before it accepts them.

Of a job the present owner knows most: it is asked first, while it holds a seat. A copy here answers for what has ended,
and for what nobody drives at the moment; a job that is unknown here is looked for at the other seats, then at every
node that may hold a copy.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import structlog
import trio

from dimnode.core.job_view import JobView
from dimnode.core.load_sharing import LoadSharing
from dimnode.core.partial_text import Seen
from dimnode.domain.ids import may_be_job_id
from dimnode.domain.job_form import JobForm
from dimnode.domain.task import PartialOutput
from dimnode.errors import Code, DimError, NotFound, Unavailable
from dimnode.orchestrator.documents import result_document
from dimnode.orchestrator.gathering import Gathering, GatheringSettings
from dimnode.orchestrator.seat_questions import Asker, AskSettings, Question, digest, news_of
from dimnode.orchestrator.service import Orchestrator
from dimnode.ports import Accepted, Clock, Elector, JobDocument, ResultDocument
from dimnode.records.search import Found
from dimnode.records.table import RecordTable
from p2p.api import Network, NetworkError, Unreachable
from p2p.groups import collapse

log = structlog.get_logger(__name__)
ENDED = frozenset({"completed", "failed", "cancelled", "expired"})
_ORDER = ("queued", "scheduling", "fetching", "running", "aggregating")
_ELSEWHERE = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED})
"""Refusals of a seat that was to take a job over which are no reason to refuse the client."""

T = TypeVar("T")
Search = Callable[[str], Awaitable[Found]]
"""Looks for a job's record at all nodes."""


async def nowhere(job: str) -> Found:
    del job
    await trio.lowlevel.checkpoint()
    return Found.NOWHERE


class AnySeat:
    """`dimnode.ports.OrchestratorApi`. ``hint``: job -> the owner that gossip told, if any."""

    def __init__(
        self,
        local: Orchestrator,
        table: RecordTable,
        network: Network,
        elector: Elector,
        clock: Clock,
        settings: AskSettings | None = None,
        *,
        sharing: LoadSharing | None = None,
        hint: Callable[[str], str | None] = lambda job: None,
        search: Search = nowhere,
        gathering: GatheringSettings | None = None,
    ) -> None:
        self._local = local
        self._table = table
        self._me = network.peer_id
        self._elector = elector
        self._clock = clock
        self._settings = settings or AskSettings()
        self._asker = Asker(network, self._settings)
        self._sharing = sharing or LoadSharing()
        self._hint = hint
        self._search = search
        self._gathering = gathering or GatheringSettings()
        self._gathered: dict[str | None, Gathering[JobForm, Accepted]] = {}
        """By the seat that is to accept; None: this one."""
        self._silent: dict[str, float] = {}
        """Seats that did not answer a submission, and until when they get none."""

    # --- new jobs

    async def submit(self, form: JobForm, principal: str) -> Accepted:
        """Small jobs that come at the same time go together: to another seat, to the disk and to the copies in one go."""
        await self._local.know_models(form)  # here, so that no other job waits for a manifest that does not come
        (seat,) = self._place([form])
        size = sum(t.nbytes for t in form.client_data.values())
        alone = size > self._gathering.large or form.form.min_copies is not None or not _movable(form)
        if alone:  # others would wait for what it waits for
            answer = (await self._accept(seat, [form if seat is None else _with_key(form)], principal))[0]
            if isinstance(answer, Exception):
                raise answer
            return answer
        return await self._together(seat).call(form if seat is None else _with_key(form), principal, size)

    def _together(self, seat: str | None) -> Gathering[JobForm, Accepted]:
        if seat not in self._gathered:
            seats = self._others()
            self._gathered = {s: g for s, g in self._gathered.items() if s is None or s in seats or g.pending}

            async def accept(principal: Hashable, forms: Sequence[JobForm]) -> list[Accepted | Exception]:
                return await self._accept(seat, forms, str(principal))

            self._gathered[seat] = Gathering(accept, self._local.start_soon, self._gathering)
        return self._gathered[seat]

    async def submit_many(self, forms: Sequence[JobForm | Exception], principal: str) -> list[Accepted | Exception]:
        """In order. What another seat does not take is accepted here, under the same id: it carries its own key."""
        answers: list[Accepted | Exception | None] = [f if isinstance(f, Exception) else None for f in forms]
        shares: dict[str | None, dict[int, JobForm]] = {}
        movable = {n: f for n, f in enumerate(forms) if isinstance(f, JobForm)}
        for (n, form), seat in zip(movable.items(), self._place(list(movable.values())), strict=True):
            shares.setdefault(seat, {})[n] = form if seat is None else _with_key(form)

        async def accept(seat: str | None, share: Mapping[int, JobForm]) -> None:
            for n, answer in zip(share, await self._accept(seat, list(share.values()), principal), strict=True):
                answers[n] = answer

        with collapse():
            async with trio.open_nursery() as nursery:
                for seat, share in shares.items():
                    nursery.start_soon(accept, seat, share)
        return [a for a in answers if a is not None]

    def _place(self, forms: Sequence[JobForm]) -> list[str | None]:
        now = self._clock.monotonic()
        others = {s.peer: s.jobs for s in self._elector.seats() if s.peer != self._me and self._silent.get(s.peer, now) <= now}
        movable = [_movable(f) for f in forms]
        own = self._local.load() + self._together(None).pending
        placed = iter(self._sharing.place(own, others, sum(movable), now))
        return [next(placed) if m else None for m in movable]

    async def _accept(self, seat: str | None, forms: Sequence[JobForm], principal: str) -> list[Accepted | Exception]:
        now = self._clock.monotonic()
        if seat is None or self._silent.get(seat, now) > now:
            return await self._local.submit_many(forms, principal)
        try:
            answers = await self._asker.submit(seat, forms, principal)
            self._silent.pop(seat, None)
            if len(answers) == len(forms):
                return await self._accept_refused(forms, answers, principal)
        except NetworkError as e:
            now = self._clock.monotonic()
            self._silent = {s: until for s, until in self._silent.items() if until > now} | {seat: now + self._settings.silent}
            log.info("jobs.not_handed_over", seat=seat, jobs=len(forms), reason=str(e))
        except DimError as e:
            if e.code not in _ELSEWHERE:
                raise
        return await self._local.submit_many(forms, principal)

    async def _accept_refused(
        self, forms: Sequence[JobForm], answers: list[Accepted | Exception], principal: str
    ) -> list[Accepted | Exception]:
        """Here, for what the other seat has no room for, or does not know yet: its view of the swarm is its own."""
        back = [n for n, a in enumerate(answers) if isinstance(a, DimError) and a.code in (*_ELSEWHERE, Code.NOT_FOUND)]
        if back:
            for n, answer in zip(back, await self._local.submit_many([forms[n] for n in back], principal), strict=True):
                answers[n] = answer
        return answers

    async def dry_run(self, form: JobForm, principal: str) -> Mapping[str, Any]:
        return await self._local.dry_run(form, principal)

    # --- jobs that exist

    async def get(self, job_id: str) -> JobDocument:
        return await self._best(job_id, lambda: self._local.get(job_id), Question(op="get", job=job_id))

    async def cancel(self, job_id: str) -> JobDocument:
        return await self._best(job_id, lambda: self._local.cancel(job_id), Question(op="cancel", job=job_id))

    async def result(self, job_id: str, wait: float = 0.0) -> ResultDocument:
        wait = min(wait, self._settings.poll)

        async def elsewhere() -> ResultDocument:
            plain = await self._best_elsewhere(job_id, Question(op="result", job=job_id, wait=wait), extra=wait)
            return result_document(plain, plain.get("result_cid"))

        return await self._here_or(job_id, lambda: self._local.result(job_id, wait), elsewhere)

    async def list_jobs(self, active: bool, limit: int) -> list[JobDocument]:
        """Of all seats, newest first; of a job that several know the latest state. A seat that does not answer in time is
        left out."""
        found: dict[str, JobDocument] = {}

        def add(documents: Sequence[JobDocument]) -> None:
            for d in documents:
                known = found.get(d["job_id"])
                if known is None or progress(d) > progress(known):
                    found[d["job_id"]] = d

        async def ask(peer: str) -> None:
            try:
                # Ended ones too: a copy elsewhere may not know yet that a job ended, and would list it as active.
                add(await self._asker.ask(peer, Question(op="list", active=active, limit=limit)))
            except (NetworkError, DimError):
                return

        add(await self._local.list_jobs(active, limit))
        async with trio.open_nursery() as nursery:
            for peer in self._others():
                nursery.start_soon(ask, peer)
        return sorted(found.values(), key=lambda d: d["submitted"], reverse=True)[:limit]

    async def watch(self, job_id: str) -> AsyncGenerator[JobDocument, None]:
        """Never goes back: what is older than the last document (a copy that has not heard all) is left out."""
        async with aclosing(self._follow(job_id, None)) as events:
            async for event in events:
                if not isinstance(event, PartialOutput):
                    yield event

    async def follow(self, job_id: str) -> AsyncGenerator[JobDocument | PartialOutput, None]:
        """The same, and the text of tasks while it grows, whichever seat drives the job."""
        async with aclosing(self._follow(job_id, Seen())) as events:
            async for event in events:
                yield event

    async def _follow(self, job_id: str, seen: Seen | None) -> AsyncGenerator[JobDocument | PartialOutput, None]:
        last: JobDocument | None = None
        alone_since: float | None = None
        while True:
            try:
                document, pieces = await self._next(job_id, last, seen)
                alone_since = None
            except (NotFound, Unavailable):
                # Its owner may just have died, and the next one not have begun.
                alone_since = self._clock.monotonic() if alone_since is None else alone_since
                if last is None or self._clock.monotonic() - alone_since > self._settings.grace:
                    raise
                await trio.sleep(self._settings.pause)
                continue
            for piece in pieces:
                if seen is not None and (new := seen.news(piece)) is not None:
                    yield new
            if last is None or (progress(document) >= progress(last) and document != last):
                last = document
                yield document
            elif not pieces:
                await trio.sleep(self._settings.pause)
            if document["status"] in ENDED:
                return

    async def _next(self, job_id: str, last: JobDocument | None, seen: Seen | None) -> tuple[JobDocument, list[PartialOutput]]:
        """The job's document as soon as it is another than ``last``, or when the poll's time is over, or there is text beyond what was
        ``seen``."""
        text = tuple((t, a, r, c) for t, a, r, c in seen.to_plain()) if seen is not None else None
        known = "" if last is None else digest(last)
        question = Question(op="get" if last is None else "watch", job=job_id, seen=known, text=text)

        async def here() -> tuple[JobDocument, list[PartialOutput]]:
            document = last
            with trio.move_on_after(self._settings.poll):
                if seen is not None and last is not None:
                    return await self._local.news(job_id, known, seen)
                async with aclosing(self._local.watch(job_id)) as documents:
                    async for document in documents:
                        if document != last or self._driven_elsewhere(job_id):
                            break
            if document is None:
                raise NotFound(f"job {job_id} is not known here")
            return document, []

        async def elsewhere() -> tuple[JobDocument, list[PartialOutput]]:
            return news_of(await self._best_elsewhere(job_id, question, extra=0.0 if last is None else self._settings.poll))

        return await self._here_or(job_id, here, elsewhere)

    # --- whom to ask

    async def _best(self, job_id: str, here: Callable[[], Awaitable[JobDocument]], question: Question, extra: float = 0.0) -> JobDocument:
        return await self._here_or(job_id, here, lambda: self._best_elsewhere(job_id, question, extra))

    async def _here_or(self, job_id: str, here: Callable[[], Awaitable[T]], elsewhere: Callable[[], Awaitable[T]]) -> T:
        known = await self._table.exists(job_id)
        if known and not self._driven_elsewhere(job_id):
            return await here()
        try:
            return await elsewhere()
        except (NotFound, NetworkError, Unavailable) as e:
            if not known and not may_be_job_id(job_id):  # whoever is silent does not know it either
                raise NotFound(f"{job_id!r} is no job's id", hint="`dimnode jobs` lists the jobs.") from e
            found = Found.HERE if known else await self._search(job_id)
            if found is Found.HERE:
                return await here()
            if found is Found.UNKNOWN and isinstance(e, NotFound):
                raise Unavailable(
                    f"job {job_id} is not known here, and a node that may know it does not answer",
                    hint="Try again shortly. `dimnode jobs` lists the jobs that are known.",
                ) from e
            raise

    def _driven_elsewhere(self, job_id: str) -> bool:
        """Whether another live seat knows more of this unfinished job. It is in memory, as all unfinished ones are."""
        return self._table.holds(job_id) and self._owner(self._table.view(job_id)) is not None

    def _owner(self, seen: JobView) -> str | None:
        """The other seat that drives it now."""
        if seen.terminal or seen.owner is None:
            return None
        owner = seen.owner
        return next((s.peer for s in self._elector.seats() if s.peer == owner.peer != self._me and s.boot == owner.boot), None)

    async def _best_elsewhere(self, job_id: str, question: Question, extra: float = 0.0) -> Any:
        """The answer of the owner, if it is known, else the first other than "not found". Raises `NotFound` if all say so,
        `Unavailable` if one that might know does not answer."""
        owner = self._owner(self._table.view(job_id)) if self._table.holds(job_id) else self._hint(job_id)
        silent = False
        for peer in sorted(self._others(), key=lambda p: p != owner):
            try:
                return await self._ask_while_seated(peer, question, extra)
            except NotFound:
                continue
            except NetworkError:
                silent = True
        missing = f"job {job_id} is not known"
        if silent:
            raise Unavailable(f"{missing} here, and an orchestrator that may know it does not answer", hint="Try again shortly.")
        raise NotFound(missing, hint="`dimnode jobs` lists the jobs.")

    async def _ask_while_seated(self, peer: str, question: Question, extra: float) -> Any:
        """Raises `Unreachable` as soon as the other is seen to have lost its seat: a frozen one answers nobody."""
        answers: list[Any] = []

        async def give_up(scope: trio.CancelScope) -> None:
            since = self._elector.changed()
            while peer in self._others():
                since = await self._elector.wait_changed(since)
            scope.cancel()

        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_up, nursery.cancel_scope)
                answers.append(await self._asker.ask(peer, question, extra))
                nursery.cancel_scope.cancel()
        if not answers:
            raise Unreachable(f"{peer} lost its seat")
        return answers[0]

    def _others(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.peer for s in self._elector.seats() if s.peer != self._me))


def progress(document: JobDocument) -> tuple[int, int, int, float]:
    """Sorts documents of one job, the latest last: ended ones, then by owner and status."""
    status = document["status"]
    return (
        status in ENDED,
        document["epoch"],
        _ORDER.index(status) if status in _ORDER else len(_ORDER),
        document["updated"],
    )


def _movable(form: JobForm) -> bool:
    """Inputs by CID are on this node as a rule: such a job stays here."""
    return all(t.cid is None for t in form.client_data.values())


def _with_key(form: JobForm) -> JobForm:
    """A form whose job has the same id wherever it is accepted: an answer that got lost makes no second job."""
    if form.form.idempotency_key is not None:
        return form
    return JobForm(form.form.model_copy(update={"idempotency_key": secrets.token_hex(16)}), form.client_data)
