"""What happens to a job form before it is accepted. Nothing is stored if this fails, except input
blocks, which are harmless."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from dimnode.core.participants import NO_JOB
from dimnode.domain import codec
from dimnode.domain.ids import job_id
from dimnode.domain.job_form import JobForm
from dimnode.domain.model import ModelManifest
from dimnode.domain.record import Ballot, Body, Claim, Core
from dimnode.domain.tensors import TensorValue
from dimnode.errors import Code, DimError, FieldProblem, InvalidArgument, NotFound
from dimnode.orchestrator.nodes import gather_facts, models_of, names_of, peer_of, sources_of
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.values import Values
from dimnode.ports import Clock, Models, Registry
from p2p.ipfs.cid import DAG_CBOR, compute
from patterns.api import PatternError, Plan
from patterns.engines import make_plan
from patterns.forms import CLIENT_DATA, ChainedConfig
from patterns.sources import visible


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that may be accepted."""

    job: str
    core: Core
    repeatable: bool
    """The client may submit it again: its id follows from an idempotency key."""
    min_copies: int = 1
    blocks: tuple[str, ...] = ()
    """CIDs of its inputs."""

    def entries(self, ballot: Ballot, at: float) -> list[Body]:
        """What makes it accepted and this node its owner."""
        return [self.core, Claim(job=self.job, ballot=ballot, at=at)]


class Admission:
    def __init__(
        self,
        swarm: str,
        registry: Registry,
        models: Models,
        selector: Selector,
        values: Values,
        clock: Clock,
        settings: OrchestratorSettings,
    ) -> None:
        self._swarm = swarm
        self._registry = registry
        self._models = models
        self._selector = selector
        self._values = values
        self._clock = clock
        self._settings = settings

    async def prepare(self, form: JobForm, principal: str) -> Prepared:
        """Checks what can be known now, writes large inputs as blocks and makes the job's core. Raises
        `InvalidArgument`, `NotFound`, `FailedPrecondition` or `Unavailable`."""
        draft = f"{NO_JOB}draft {secrets.token_hex(16)}"
        adopted = {n: await self._values.adopt(t, draft, f"client_data.{n}") for n, t in form.client_data.items()}
        settled = JobForm(form.form, adopted)
        manifests = await self.check(settled, dry_run=False)
        self.plan_now(settled, manifests)
        settled = JobForm(settled.form, {n: await self._values.settle(t, draft) for n, t in settled.client_data.items()})
        spec = codec.encode_plain(settled.to_plain())
        if len(spec) > self._settings.max_spec_bytes:
            rule = f"must not be larger than {self._settings.max_spec_bytes} bytes, is {len(spec)}"
            raise InvalidArgument(f"the job form {rule}", fields=(FieldProblem("", rule),), hint="Pass large inputs by CID.")
        nonce = form.form.idempotency_key or secrets.token_hex(16)
        job = job_id(self._swarm, principal, nonce, codec.digest(spec))
        blocks = tuple(t.cid for t in settled.client_data.values() if t.cid is not None)
        if blocks:
            await self._values.belong(draft, job)
        timeout = form.form.timeout if form.form.timeout is not None else self._settings.job_timeout
        return Prepared(
            job,
            Core(
                job=job,
                spec_cid=compute(DAG_CBOR, spec).text,
                spec=spec,
                pattern=form.pattern,
                priority=form.form.priority,
                principal=principal,
                submitted=self._clock.wall(),
                timeout=timeout,
                nonce=nonce,
                labels=form.form.labels,
            ),
            repeatable=form.form.idempotency_key is not None,
            min_copies=form.form.min_copies or 1,
            blocks=blocks,
        )

    async def know_models(self, form: JobForm) -> None:
        """Fetches the manifests that it needs, as far as they can be had: `prepare` waits for nobody then."""
        for name in models_of(form.config):
            with suppress(DimError):
                await self._models.manifest(self._models.resolve(name))

    async def check(self, form: JobForm, *, dry_run: bool) -> dict[str, ModelManifest]:
        """Models, nodes, cabinets and inputs that the form names exist. Returns the manifests."""
        for name, field in names_of(form.config).items():
            peer_of(self._registry, name, field)
        manifests = {name: await self._models.manifest(self._models.resolve(name)) for name in models_of(form.config)}
        self._check_cabinets(form)
        if not dry_run:
            self._check_client_data(form, manifests)
        return manifests

    def plan_now(self, form: JobForm, manifests: dict[str, ModelManifest], *, dry_run: bool = False) -> Plan | None:
        """The plan as it would be made now, checked against ``max_cost``; None if the job has to wait for
        nodes. Raises `DimError` for what waiting cannot mend."""
        facts = gather_facts(form, manifests, self._registry, assume_data=dry_run)
        try:
            plan = make_plan(form.pattern, form.config, facts)
        except PatternError as e:
            if e.code == Code.UNAVAILABLE.value:
                return None
            code = Code(e.code) if e.code in Code.__members__ else Code.INTERNAL
            raise DimError(e.message, code=code, hint=e.hint) from e
        self._selector.check_cost(plan, form, {n: self._models.resolve(n) for n in manifests}, manifests)
        return plan

    def _check_cabinets(self, form: JobForm) -> None:
        known = {c.name for v in self._registry.nodes() for c in v.heartbeat.cabinets}
        for name in sources_of(form.config):
            if name != CLIENT_DATA and name not in known:
                raise NotFound(
                    f"no node has a data cabinet named {name!r}",
                    hint="`dimnode cabinet add NAME PATH` registers one on its own node.",
                    fields=(FieldProblem("config.data_source", "must name a cabinet of the swarm, or client_data"),),
                )

    def _check_client_data(self, form: JobForm, manifests: dict[str, ModelManifest]) -> None:
        if CLIENT_DATA in sources_of(form.config) and not form.client_data:
            rule = "is missing, and the job reads it"
            raise InvalidArgument(
                f"client_data {rule}", fields=(FieldProblem("client_data", rule),), hint="Give client_data, or --data FILE."
            )
        if not form.client_data:
            return
        if isinstance(form.config, ChainedConfig):
            _check_steps(form.config, form.client_data, manifests)
            return
        inputs = {t.name for m in manifests.values() for t in m.inputs}
        lone = len(form.client_data) == 1 and all(len(m.inputs) == 1 for m in manifests.values())
        for name in form.client_data:
            if name not in inputs and not lone:
                rule = f"is no input of the model; its inputs are {', '.join(sorted(inputs))}"
                raise InvalidArgument(f"client_data.{name} {rule}", fields=(FieldProblem(f"client_data.{name}", rule),))


def _check_steps(config: ChainedConfig, data: Mapping[str, TensorValue], manifests: Mapping[str, ModelManifest]) -> None:
    """A step that reads only the client's data must find an input of its model there."""
    for i, step in enumerate(config.pipeline):
        inputs = [t.name for t in manifests[step.model_id].inputs]
        if step.sources != (CLIENT_DATA,) or (len(inputs) == 1 and len(data) == 1):
            continue
        if not set(visible(data, step.inputs or {}).values()) & set(inputs):
            rule = f"needs one of {', '.join(inputs)}, and client_data has {', '.join(sorted(data))}"
            field = f"config.pipeline[{i}].input_source"
            raise InvalidArgument(f"{field} {rule}", fields=(FieldProblem(field, rule),), hint="Rename tensors with `inputs`.")
