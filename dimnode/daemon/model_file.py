"""A model as an agent needs it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from dimnode.daemon import model_about
from dimnode.domain.model import ModelManifest, Needs

NO_NEEDS = Needs()


@dataclass(frozen=True, slots=True)
class ModelFile:
    cid: str
    format: str
    path: Path
    size: int
    about: str = ""
    """What its manifest says to the loader, see `model_about`."""
    needs: Needs = NO_NEEDS
    batchable: bool = False
    """Every input and output has the batch on axis 0, by its manifest."""
    claims: str = field(init=False, repr=False)
    """Stands for all of this that the manifest says, see `claims`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", claims(self.format, self.size, self.about, self.needs))

    @property
    def key(self) -> Key:
        return self.cid, self.claims


Key = tuple[str, str]
"""A model's CID, which stands for its bytes, and the claims of a manifest. Anybody may write a manifest for any bytes, so what has been found out
under one, and the agents that have loaded the model as it says, are nothing to tasks under another."""


@lru_cache(maxsize=32)  # it is asked for by every task
def claims(format: str, size: int, about: str = "", needs: Needs = NO_NEEDS) -> str:
    """Stands for what a manifest says of its model. That may be long, so only a digest is kept."""
    return hashlib.sha256(msgspec.json.encode((format, size, about, needs))).hexdigest()


@dataclass(frozen=True, slots=True)
class Said:
    """What a manifest says of its model, made once: with a golden pair of images that is milliseconds."""

    about: str
    """As `ModelFile.about`."""
    key: Key
    """That of the model's file, wherever it lies."""

    @classmethod
    def by(cls, manifest: ModelManifest) -> Said:
        if manifest.format == "builtin":
            return cls("", (manifest.cid, claims("builtin", manifest.size)))
        about = model_about.of_manifest(manifest)
        return cls(about, (manifest.cid, claims(manifest.format, manifest.size, about, manifest.needs)))
