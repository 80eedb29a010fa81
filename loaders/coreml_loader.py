"""CoreML models: Apple's runtime on macOS, a translation to ONNX everywhere else.

The translation (`loaders.coreml`) reads the file itself and needs nothing of Apple's; it is made anew in each agent,
which takes milliseconds, and never leaves it. A model with an operator that has no translation is refused by its name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from loaders.api import NOTHING, About, LoadedModel
from loaders.coreml.package import translate
from loaders.onnx_loader import OnnxModel, session_of


class CoremlLoader:
    format = "coreml"

    def load(self, path: Path, threads: int, about: About = NOTHING) -> LoadedModel:
        """Raises `ModelRejected`."""
        if sys.platform == "darwin":  # not run here
            from loaders.coreml_native import can_run, load_native

            native = load_native(path, about) if can_run() else None
            if native is not None:
                return native
        return OnnxModel(session_of(translate(path), threads, "cpu"))
