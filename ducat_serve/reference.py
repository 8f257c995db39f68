"""What a model answered to images of its own data set when it was exported.

What its answers in service are held against.
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ducat_serve.errors import VerificationError
from ducat_serve.spec import first_problem

REFERENCE_KEY = "ducat_reference"
MOST_CLASSES = 100_000
# Upper ends of the buckets of confidences; the last bucket ends at 1. Finer where trained models mostly are.
BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
Count = Annotated[int, Field(ge=0)]


class Reference(BaseModel):
    """Counts over ``images`` val images.

    Of each class among the answers, and of confidences in the buckets of `BOUNDS`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(gt=0)
    classes: tuple[Count, ...] = Field(max_length=MOST_CLASSES)
    confidence: tuple[Count, ...] = Field(min_length=len(BOUNDS) + 1, max_length=len(BOUNDS) + 1)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not sum(self.classes) == sum(self.confidence) == self.images:
            raise ValueError("the counts do not add up to the number of images")
        return self

    @classmethod
    def of(cls, label: NDArray[np.int64], confidence: NDArray[np.float32], num_classes: int) -> Self:
        """Count the answers to N images: ``label`` and ``confidence`` [N]."""
        # A thousandth more or less is no drift; rounded, so that another machine counts the same.
        bucket = np.searchsorted(BOUNDS, confidence.round(3))
        return cls(
            images=len(label),
            classes=tuple(np.bincount(label, minlength=num_classes).tolist()),
            confidence=tuple(np.bincount(bucket, minlength=len(BOUNDS) + 1).tolist()),
        )

    @classmethod
    def from_json(cls, text: str, num_classes: int, source: str) -> Self:
        """Read what came with the file ``source``.

        Raises VerificationError where it is no reference of such a model.
        """
        try:
            reference = cls.model_validate_json(text)
        except ValidationError as error:
            raise VerificationError(f"{source}: invalid reference: {first_problem(error)}") from error
        if len(reference.classes) != num_classes:
            raise VerificationError(
                f"{source}: its reference has {len(reference.classes)} classes, the model {num_classes}."
            )
        return reference
