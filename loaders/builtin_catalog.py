"""The built-in steps by name and version, as a node knows them without running any.

A built-in step is part of DIM: named, versioned, with a fixed interface. Its artifact is a small
descriptor, so that it has a CID and is placed, cached and receipted like any model. A step's behaviour
never changes under its name; another behaviour is another version. Nothing here imports a vision
library: the node process reads this file, agents run the steps.

Images are uint8 [1, height, width, 3]. The leading 1 keeps the batch axis free for what a step counts
(boxes, lines).
"""

from __future__ import annotations

import json

import libipld

from loaders.api import ModelRejected, ModelSchema, TensorSchema

FORMAT = "builtin"
MAX_DESCRIPTOR_BYTES = 1024

_IMAGE = TensorSchema("image", "uint8", (1, "height", "width", 3))
_CROPS = TensorSchema("crops", "uint8", ("lines", "crop_height", "crop_width", 3))
_SIZES = TensorSchema("sizes", "int32", ("lines", 2))


def _step(inputs: tuple[TensorSchema, ...], *outputs: TensorSchema) -> ModelSchema:
    return ModelSchema(inputs=inputs, outputs=outputs)


BUILTIN_SCHEMAS: dict[str, ModelSchema] = {
    "dim/ocr-prepare@1": _step(
        (_IMAGE,),
        TensorSchema("x", "float32", (1, 3, "map_height", "map_width")),
    ),
    "dim/boxes@1": _step(
        (TensorSchema("scores", "float32", (1, 1, "map_height", "map_width")), _IMAGE),
        TensorSchema("boxes", "float32", ("lines", 4, 2)),
        TensorSchema("box_scores", "float32", ("lines",)),
    ),
    "dim/crop@1": _step(
        (_IMAGE, TensorSchema("boxes", "float32", ("lines", 4, 2))),
        _CROPS,
        _SIZES,
        TensorSchema("x", "float32", ("lines", 3, 48, 192)),
    ),
    "dim/orient@1": _step(
        (_CROPS, _SIZES, TensorSchema("scores", "float32", ("lines", 2))),
        TensorSchema("x", "float32", ("images", 3, 48, "x_width")),
        TensorSchema("turned", "bool", ("lines",)),
    ),
    "dim/ctc@1": _step(
        (TensorSchema("probabilities", "float32", ("lines", "steps", "classes")), TensorSchema("characters", "str", (1,))),
        TensorSchema("texts", "str", ("lines",)),
        TensorSchema("scores", "float32", ("lines",)),
    ),
}
"""Step name -> its inputs and outputs. What each does:

- ``dim/ocr-prepare@1``: image -> ``x``, the input of a text detector: the shorter side scaled up to 736,
  the longer one down to 2000, both to multiples of 32; BGR, (v / 255 - 0.5) / 0.5, channels first.
- ``dim/boxes@1``: a detector's score map -> text boxes in the image's pixels, corners clockwise from the
  top left, in reading order; ``box_scores`` is the mean score inside. (DBNet post-processing.)
- ``dim/crop@1``: each box straightened into its own image: ``crops`` are padded with 0 to a common size,
  ``sizes`` are their heights and widths; ``x`` is what an orientation classifier reads.
- ``dim/orient@1``: turns a crop by 180 degrees where the second class of ``scores`` is above 0.9; ``x`` is
  what a text recogniser reads, padded to a common width. Recognisers fail on an empty batch, so without
  any line ``x`` is one blank image.
- ``dim/ctc@1``: a recogniser's class probabilities -> texts and their mean scores. ``characters`` holds one
  string: the classes 1, 2, ... by line; class 0 is the blank, the last one the space.
"""


def descriptor(name: str) -> bytes:
    """The artifact of a step: canonical DAG-CBOR of ``{"builtin": name}``. Raises `KeyError` for an
    unknown name."""
    BUILTIN_SCHEMAS[name]
    return libipld.encode_dag_cbor({"builtin": name})


def parse_descriptor(data: bytes) -> str:
    """The step's name out of a descriptor (DAG-CBOR or JSON). Raises `ModelRejected`."""
    if len(data) > MAX_DESCRIPTOR_BYTES:
        raise ModelRejected("a built-in step's descriptor is never that large")
    try:
        found = json.loads(data) if data[:1] == b"{" else libipld.decode_dag_cbor(data)
    except (ValueError, RecursionError) as e:
        raise ModelRejected("the descriptor of a built-in step is neither DAG-CBOR nor JSON") from e
    name = found.get("builtin") if isinstance(found, dict) and set(found) == {"builtin"} else None
    if not isinstance(name, str):
        raise ModelRejected('the descriptor of a built-in step must be {"builtin": name}')
    if name not in BUILTIN_SCHEMAS:
        raise ModelRejected(f"there is no built-in step {name[:64]!r}; there are {', '.join(BUILTIN_SCHEMAS)}")
    return name
