"""A model as an agent needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dimnode.domain.model import Needs


@dataclass(frozen=True, slots=True)
class ModelFile:
    cid: str
    format: str
    path: Path
    size: int
    about: str = ""
    """What its manifest says to the loader, see `model_about`."""
    needs: Needs = field(default_factory=Needs)
    batchable: bool = False
    """Every input and output has the batch on axis 0, by its manifest."""


def claims(model: ModelFile) -> str:
    """Stands for what its manifest says of the model. It may be long, so only its hash is kept."""
    return f"{model.format} {hash(model.about)}"
