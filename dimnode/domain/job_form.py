"""The job form: one schema for the CLI, REST and gRPC. SPEC.md section 3.

`parse_job_form` turns what a client wrote into a frozen `JobForm` or one `InvalidArgument` that names
every field that broke a rule, and the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.alias_generators import to_snake

from dimnode.domain.tensors import TensorValue, from_json, to_json
from dimnode.errors import FieldProblem, InvalidArgument
from patterns.forms import ChainedConfig, CollaborativeConfig, ComparativeConfig, Form, Seconds

Priority = Literal["low", "normal", "high", "critical"]
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high", "critical")
PatternName = Literal["collaborative", "comparative", "chained"]


class _Common(Form):
    priority: Priority = "normal"
    max_cost: Annotated[float, Field(ge=0)] | None = None
    timeout: Seconds | None = None
    retries: Annotated[int, Field(ge=0, le=100)] | None = None
    labels: Annotated[dict[str, Annotated[str, Field(max_length=256)]], Field(max_length=64)] = Field(default_factory=dict)
    idempotency_key: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    min_copies: Annotated[int, Field(ge=1, le=100)] | None = None


class _Collaborative(_Common):
    pattern: Literal["collaborative"]
    config: CollaborativeConfig


class _Comparative(_Common):
    pattern: Literal["comparative"]
    config: ComparativeConfig


class _Chained(_Common):
    pattern: Literal["chained"]
    config: ChainedConfig


_FORMS: dict[str, type[_Collaborative] | type[_Comparative] | type[_Chained]] = {
    "collaborative": _Collaborative,
    "comparative": _Comparative,
    "chained": _Chained,
}
AnyForm = _Collaborative | _Comparative | _Chained
AnyConfig = CollaborativeConfig | ComparativeConfig | ChainedConfig


class JobForm:
    """A valid job form. ``client_data`` is kept apart, as tensors."""

    __slots__ = ("client_data", "form")

    def __init__(self, form: AnyForm, client_data: Mapping[str, TensorValue]) -> None:
        self.form = form
        self.client_data = dict(client_data)

    @property
    def pattern(self) -> PatternName:
        return self.form.pattern

    @property
    def config(self) -> AnyConfig:
        return self.form.config

    def to_plain(self) -> dict[str, Any]:
        """Canonical plain form (snake case, defaults left out), for storage: tensors keep raw bytes."""
        plain = self.form.model_dump(mode="json", exclude_unset=True, by_alias=False)
        plain["pattern"] = self.form.pattern
        if self.client_data:
            plain["client_data"] = {
                name: {"dtype": t.dtype, "shape": list(t.shape), **({"raw": t.raw} if t.raw is not None else {"cid": t.cid})}
                for name, t in self.client_data.items()
            }
        return plain

    def to_json(self) -> dict[str, Any]:
        """The outside form, tensors as lists."""
        plain = self.form.model_dump(mode="json", exclude_unset=True, by_alias=False)
        plain["pattern"] = self.form.pattern
        if self.client_data:
            plain["client_data"] = {name: to_json(t) for name, t in self.client_data.items()}
        return plain


def parse_job_form(obj: Any) -> JobForm:
    """Raises `InvalidArgument` with a `FieldProblem` for every broken rule."""
    if not isinstance(obj, Mapping):
        raise _invalid([FieldProblem("", "must be a JSON object")])
    plain: dict[str, Any] = {str(k): v for k, v in obj.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if "client_data" in plain and "clientData" in plain:
        raise _invalid([FieldProblem("clientData", "is given twice, in snake case and in camel case")])
    raw_data = plain.pop("client_data", plain.pop("clientData", None))
    problems: list[FieldProblem] = []
    tensors: dict[str, TensorValue] = {}
    try:
        tensors = _parse_client_data(raw_data)
    except InvalidArgument as e:
        problems.extend(e.fields)
    pattern = plain.get("pattern")
    kind = _FORMS.get(pattern) if isinstance(pattern, str) else None
    if kind is None:
        problems.append(FieldProblem("pattern", f"must be one of {', '.join(_FORMS)}"))
        raise _invalid(problems)
    try:
        form = kind.model_validate(plain)
    except ValidationError as e:
        found = e.errors(include_url=False, include_input=False)
        # A list whose items are wrong is reported as too short as well: only the items are worth a word.
        inside = {err["loc"][:n] for err in found for n in range(len(err["loc"]))}
        problems.extend(
            FieldProblem(_path(_as_documented(err["loc"], err["type"])), _rule(err["type"], err["msg"]))
            for err in found
            if not (err["type"] == "too_short" and err["loc"] in inside)
        )
        raise _invalid(problems) from None
    if problems:
        raise _invalid(problems)
    return JobForm(form, tensors)


def from_plain(plain: Mapping[str, Any]) -> JobForm:
    """The inverse of `JobForm.to_plain` for stored specs."""
    rest = dict(plain)
    data = rest.pop("client_data", {})
    tensors = {n: TensorValue(dtype=t["dtype"], shape=tuple(t["shape"]), raw=t.get("raw"), cid=t.get("cid")) for n, t in data.items()}
    form = parse_job_form(rest)
    return JobForm(form.form, tensors)


def _parse_client_data(raw: Any) -> dict[str, TensorValue]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        rule = "must be an object of named tensors"
        raise InvalidArgument(f"client_data {rule}", fields=(FieldProblem("client_data", rule),))
    out: dict[str, TensorValue] = {}
    for name, value in raw.items():  # pyright: ignore[reportUnknownVariableType]
        out[str(name)] = value if isinstance(value, TensorValue) else from_json(value, f"client_data.{name}")  # pyright: ignore[reportUnknownArgumentType]
    return out


def _as_documented(loc: tuple[int | str, ...], kind: str) -> tuple[int | str, ...]:
    """A field that is missing was written in neither case: it is named as the documents have it."""
    last = loc[-1] if loc else ""
    return (*loc[:-1], to_snake(last)) if kind == "missing" and isinstance(last, str) else loc


def _path(loc: tuple[int | str, ...]) -> str:
    out = ""
    for part in loc:
        if isinstance(part, int):
            out += f"[{part}]"
        elif not part.startswith(("tuple[", "function-", "constrained-")):
            out += f".{part}" if out else part
    return out


def _rule(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "is not a known field"
    if kind == "missing":
        return "is missing"
    if kind == "too_short":
        return "has too few items"
    return message.removeprefix("Value error, ")


def _invalid(problems: list[FieldProblem]) -> InvalidArgument:
    text = "; ".join(f"{p.field} {p.rule}".strip() for p in problems[:10])
    return InvalidArgument(text, fields=tuple(problems), hint="Correct the named fields; the forms are in docs/api.md.")
