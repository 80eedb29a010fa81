"""What an agent may not do, and by which means of the system that is so."""

from __future__ import annotations

from typing import Literal

import msgspec

Mode = Literal["require", "best", "off"]


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """By protection, the means that are in force, strongest first; none: not protected."""

    files: tuple[str, ...] = ()
    """Nothing but the model, the libraries and an empty folder can be opened."""
    network: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    """No new process, no other program, no look into another process, no signal to it."""
    privileges: tuple[str, ...] = ()
    """None can be gained; none of those that the node has is left."""
    limits: tuple[str, ...] = ()
    """Memory, open files, written bytes, core dumps."""

    @property
    def complete(self) -> bool:
        return not self.missing()

    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.__struct_fields__ if not getattr(self, name))

    def summary(self) -> tuple[str, ...]:
        """For people and heartbeats: ``files: landlock``, ..."""
        return tuple(f"{name}: {' + '.join(getattr(self, name)) or 'none'}" for name in self.__struct_fields__)


class CannotConfine(Exception):
    """The system lacks what ``require`` asks for; the message names it and holds no path."""
