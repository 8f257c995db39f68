"""A few images that an evaluation attacked, before and after: for the page, which asks the model about both.

They are 8-bit images of the model's size, so that what is kept is exactly what a server can be asked. `ducat evaluate`
writes them beside the checkpoint; `ducat export --examples` puts them into the exported file.
"""

from __future__ import annotations

import base64
from math import prod
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ducat_serve.errors import VerificationError
from ducat_serve.spec import ModelSpec, first_problem

EXAMPLES_KEY = "ducat_examples"
MOST_EXAMPLES = 6
MOST_BYTES = 2**20  # of the JSON: five 224x224 images in colour
Pixels = Annotated[str, Field(max_length=MOST_BYTES)]


def examples_file(checkpoint: Path) -> Path:
    """Where a checkpoint's attacked images are kept: beside it, under its own name unless it has a folder alone."""
    stem = "" if checkpoint.name == "model.safetensors" else f"{checkpoint.stem}-"
    return checkpoint.with_name(f"{stem}examples.json")


class AttackedExample(BaseModel):
    """One image: its true class, the attack, whether it fooled the model; pixels in base64, uint8 [H, W, channels]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_id: int = Field(ge=0)
    attack: str = Field(max_length=64)
    fooled: bool
    original: Pixels
    attacked: Pixels


class AttackedExamples(BaseModel):
    """What one evaluation kept, bound to the weights that it attacked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights_digest: str
    norm: str
    eps: float
    examples: tuple[AttackedExample, ...] = Field(max_length=MOST_EXAMPLES)

    @classmethod
    def from_json(cls, text: str, spec: ModelSpec, source: str) -> Self:
        """Read what came with ``source``. Raises VerificationError where it does not belong to this model."""
        if len(text) > MOST_BYTES:
            raise VerificationError(f"{source}: its examples are larger than {MOST_BYTES} bytes.")
        try:
            found = cls.model_validate_json(text)
        except ValidationError as error:
            raise VerificationError(f"{source}: invalid examples: {first_problem(error)}") from error
        if found.weights_digest != spec.weights_digest:
            raise VerificationError(f"{source}: its examples were made for other weights.")
        size = prod((*spec.image_size, spec.channels))
        for example in found.examples:
            if example.class_id >= spec.num_classes or not all(
                _bytes_in(pixels) == size for pixels in (example.original, example.attacked)
            ):
                raise VerificationError(f"{source}: an example is no image of the model's size and classes.")
        return found


def encode_pixels(image: NDArray[np.uint8]) -> str:
    """Base64 of an image's pixels [H, W, channels]."""
    return base64.b64encode(np.ascontiguousarray(image).tobytes()).decode()


def _bytes_in(text: str) -> int:
    try:
        return len(base64.b64decode(text, validate=True))
    except ValueError:
        return -1
